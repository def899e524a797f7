# SPDX-License-Identifier: GPL-3.0-or-later
"""PDUs of a hostile target in full feature phase, with reads, writes and requests outstanding.

An input is a little program: its first bytes choose what was negotiated, each of the following the next step of
user, clock or target.  A target's PDU is right unless the input says which field is not: digests are computed,
numbers and tags follow those of the session, so that what is wrong is found where it matters and not at the CRC.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.harness import wire
from tests.fuzz.harness.base import Harness
from tests.fuzz.harness.hostile import HALF, LUN, MASK, Scene
from tests.fuzz.source import Source

from blockfleet.balance.policy import LoadBalancePolicy
from blockfleet.iscsi.constants import TaskFunction
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.iscsi.session import Patience

_SIZES = (512, 1, 4096, 3, 8192, 20000, 511)
_CHUNKS = (1 << 20, 1 << 20, 1 << 20, 1, 7, 48, 52, 1460)
_DELTAS = (0, 0, 0, 0, 1, MASK, 2, HALF, HALF - 1, HALF + 1, 0xFFFF)
_SECONDS = (0.1, 0.6, 3.0, 6.0, 11.0, 31.0)
_POLICIES = tuple(LoadBalancePolicy)
_FUNCTIONS = tuple(TaskFunction)[:6]
MAXIMUM_STEPS = 300
LONGEST = 1 << 15
"""Bytes of the longest data segment that is sent."""


def _scene(source: Source) -> Scene:
    bits = source.number()
    header_digest, data_digest = bool(bits & 1), bool(bits & 2)
    level = (bits >> 2) % 3
    keys = {
        "HeaderDigest": "CRC32C" if header_digest else "None",
        "DataDigest": "CRC32C" if data_digest else "None",
        "InitialR2T": "Yes" if bits & 16 else "No",
        "ImmediateData": "Yes" if bits & 32 else "No",
        "MaxRecvDataSegmentLength": source.choose(("8192", "512", "65536", "513")),
        "MaxBurstLength": source.choose(("8192", "512", "262144")),
        "FirstBurstLength": "512",
        "ErrorRecoveryLevel": str(level),
        "MaxOutstandingR2T": "1",
        "MaxConnections": "4",
    }
    return Scene(
        keys,
        offer=SessionOffer(
            header_digest=("CRC32C", "None"),
            data_digest=("CRC32C", "None"),
            max_recv_data_segment_length=source.choose((16384, 8192, 512, 262144)),
            error_recovery_level=level,
            max_connections=4,
        ),
        patience=Patience(noop_interval=5.0 if bits & 64 else 0.0, target_reset=bool(bits & 128)),
        window=source.choose((32, 1, 0, 2, 1000, HALF - 1)),
        digests=(header_digest, data_digest),
    )


class Program:
    """Runs the steps of one input."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.scene = _scene(source)

    def run(self) -> None:
        for _ in range(MAXIMUM_STEPS):
            if not self.source.left:
                break
            self.source.choose(_STEPS)(self)
        self.scene.finish()

    # -- the user and the clock

    def read(self) -> None:
        self.scene.execute(self.scene.cdb(), read=self.source.choose(_SIZES), timeout=self.source.choose((30, 0.5)))

    def write(self) -> None:
        self.scene.execute(
            self.scene.cdb(), write=self.source.choose(_SIZES), timeout=self.source.choose((30, 0.5))
        )

    def other(self) -> None:
        kind = self.source.number()
        read, write = (700, 1300) if kind & 1 else (0, 0)
        self.scene.execute(self.scene.cdb(32 if kind & 2 else 16), read=read, write=write, timeout=0.0)

    def wait(self) -> None:
        self.scene.pass_time(self.source.choose(_SECONDS))

    def ask(self) -> None:
        kind = self.source.number()
        if kind < 100:
            self.scene.manage(_FUNCTIONS[kind % len(_FUNCTIONS)])
        elif kind < 200:
            self.scene.ask()
        elif kind < 210:
            self.scene.logout()
        elif kind < 215:
            self.scene.drop()
        else:
            self.scene.link.connection.pause(bool(kind & 1))
            self.scene.check()

    def connect(self) -> None:
        """Come and go with connections, and turn to another one."""
        scene, kind = self.scene, self.source.number()
        if kind < 100:
            scene.link = scene.links[kind % len(scene.links)]
        elif kind < 160:
            scene.join(scene.wanted if scene.wanted is not None and kind & 1 else kind & 3)
        elif kind < 190:
            scene.drop()
        elif kind < 210:
            scene.session.remove_connection(scene.link.connection.cid, scene.now, float(kind & 3))
            scene.check()
        else:
            scene.session.set_policy(_POLICIES[kind % len(_POLICIES)])
            scene.check()

    # -- the target

    def accept(self) -> None:
        """Let the target take the commands that were sent: ExpCmdSN moves."""
        scene = self.scene
        if scene.session.cmd_sn != scene.exp_cmd_sn and self.source.number() < 250:
            scene.exp_cmd_sn = scene.session.cmd_sn
        else:
            scene.exp_cmd_sn = scene.exp_cmd_sn + self.source.choose(_DELTAS) & MASK

    def _tag(self, kinds: tuple[int, ...]) -> int:
        """Choose a task tag: of a request of a fitting kind for most values of one byte."""
        choice = self.source.number()
        session = self.scene.session
        live = [tag for tag, pdu in self.scene.sent.items() if tag in session.tasks or tag in session.control]
        fitting = [tag for tag in live if self.scene.sent[tag].opcode in kinds]
        if choice >= 240:
            return (wire.NONE_TAG, self.source.number(4), 0, *live, *self.scene.sent)[choice % 3]
        pool = fitting or live or list(self.scene.sent) or [1]
        return pool[choice % len(pool)]

    def _give(self, bhs: bytearray, data: bytes = b"", *, numbered: bool = True) -> None:
        """Send a PDU, right or with one thing wrong."""
        odd = self.source.number()
        for name, value in self.scene.numbers(advance=numbered).items():
            at = wire.FIELDS[name][0]
            told = value + self.source.choose(_DELTAS) if odd & 0xF0 == 0xE0 else value
            bhs[at : at + 4] = (told & MASK).to_bytes(4, "big")
        if odd & 0xF0 == 0xD0:
            bhs[self.source.number() % 48] = self.source.number()
        flip = self.source.number(2) if odd & 0xF0 == 0xF0 else None
        self.scene.give(bhs, data, chunk=_CHUNKS[odd % len(_CHUNKS)], flip=flip)

    def _flags(self, usual: int) -> int:
        choice = self.source.number()
        return usual if choice < 200 else choice & 0xFF | (self.source.number() & 0x80)

    def data_in(self) -> None:
        tag = self._tag((wire.COMMAND,))
        task = self.scene.session.tasks.get(tag)
        sn, offset, room = (0, 0, 512) if task is None else (task.data_sn, task.received, 512)
        if task is not None and task.command.data_in is not None:
            room = len(task.command.data_in) - offset
        odd = self.source.number()
        length = min(room, LONGEST) if odd < 128 else min(self.source.number(2), LONGEST)
        if odd & 0x70 == 0x70:
            sn += self.source.choose(_DELTAS)
            offset += self.source.choose((0, 1, MASK, 512, HALF))
        last = length == room
        flags = self._flags(0x81 if last and odd & 1 else 0x80 if last else 0)
        bhs = wire.header(wire.DATA_IN, flags, 0, itt=tag, ttt=wire.NONE_TAG, lun=LUN, datasn=sn, offset=offset)
        if odd & 0x08:
            bhs[44:48] = self.source.number(2).to_bytes(4, "big")
        self._give(bhs, bytes((offset + 1 & 0xFF,)) * length, numbered=bool(flags & 1))

    def r2t(self) -> None:
        tag = self._tag((wire.COMMAND,))
        task = self.scene.session.tasks.get(tag)
        sn = 0 if task is None else task.data_sn
        size = 512 if task is None or task.command.data_out is None else len(task.command.data_out)
        odd = self.source.number()
        offset = self.source.choose((0, 512, 1024, size // 2, size))
        length = min(size - offset, self.scene.negotiated.max_burst_length) if odd < 200 else odd * 997
        if odd & 0x3F == 0x3F:
            sn += self.source.choose(_DELTAS)
        ttt = wire.NONE_TAG if odd == 201 else odd
        bhs = wire.header(wire.R2T, 0x80, itt=tag, ttt=ttt, lun=LUN, datasn=sn, offset=offset, desired=length)
        self._give(bhs, numbered=False)

    def response(self) -> None:
        tag = self._tag((wire.COMMAND,))
        odd = self.source.number()
        status = self.source.choose((0, 0, 2, 8, 0x18, 0x28, 0x30, 0xFF))
        task = self.scene.session.tasks.get(tag)
        fields = {"datasn": 0 if task is None else task.data_sn}
        flags = 0x80
        if odd & 0xC0 == 0xC0:
            flags = self._flags(0x82)
            fields["residual"] = self.source.number(2)
            fields["bidi"] = self.source.number(2)
            fields["datasn"] += self.source.choose(_DELTAS)
        data = b""
        if status == 2:
            length = self.source.number()
            data = self.source.choose((length, 18, 0xFFFF)).to_bytes(2, "big") + self.source.take(length)
        response = self.source.number() if odd == 7 else 0
        self._give(wire.header(wire.RESPONSE, flags, response, status, itt=tag, **fields), data)

    def nop_in(self) -> None:
        choice = self.source.number()
        answer = choice & 1
        tag = self._tag((wire.NOP_OUT,)) if answer else wire.NONE_TAG
        ttt = wire.NONE_TAG if answer or choice & 2 else choice
        data = self.source.take(choice >> 3)
        self._give(wire.header(wire.NOP_IN, 0x80, itt=tag, ttt=ttt, lun=LUN), data, numbered=bool(answer))

    def flood(self) -> None:
        """Send the same ping many times."""
        for _ in range(self.source.number()):
            numbers = self.scene.numbers(advance=False)
            self.scene.give(wire.header(wire.NOP_IN, 0x80, itt=wire.NONE_TAG, ttt=7, **numbers))

    def task_response(self) -> None:
        tag = self._tag((wire.TASK_REQUEST,))
        response = self.source.choose((0, 0, 1, 2, 3, 4, 5, 6, 7, 255, self.source.number()))
        self._give(wire.header(wire.TASK_RESPONSE, 0x80, response, itt=tag))

    def text_response(self) -> None:
        choice = self.source.number()
        tag = self._tag((wire.TEXT,))
        flags = self.source.choose((0x80, 0x80, 0, 0x40, 0xC0))
        ttt = wire.NONE_TAG if flags & 0x80 else choice
        text = b"TargetName=iqn.2026-11.com.example:t\0" if choice & 1 else self.source.take(choice >> 2)
        text = b"MaxRecvDataSegmentLength=1024\0" if choice & 3 == 3 else text
        self._give(wire.header(wire.TEXT_RESPONSE, flags, itt=tag, ttt=ttt, lun=LUN), text)

    def logout_response(self) -> None:
        tag = self._tag((wire.LOGOUT,))
        response = self.source.choose((0, 0, 1, 2, 3, 255))
        self._give(wire.header(wire.LOGOUT_RESPONSE, 0x80, response, itt=tag, time2wait=2, time2retain=20))

    def asynchronous(self) -> None:
        event = self.source.choose((0, 4, 255, 1, 2, 3, 5, self.source.number()))
        data = b"" if event else b"\0\x12" + bytes(18)
        fields = {"event": event, "p1": self.source.number() & 3, "p2": 1, "p3": 2}
        self._give(wire.header(wire.ASYNC, 0x80, itt=wire.NONE_TAG, lun=LUN, **fields), data)

    def reject(self) -> None:
        reason = self.source.choose((2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, self.source.number()))
        tag = self._tag((wire.COMMAND, wire.TASK_REQUEST, wire.TEXT, wire.LOGOUT))
        known = self.scene.sent.get(tag)
        data = known.bhs if known is not None and self.source.number() < 230 else self.source.take(60)
        self._give(wire.header(wire.REJECT, 0x80, reason, itt=wire.NONE_TAG), bytes(data))

    def any_pdu(self) -> None:
        bhs = bytearray(self.source.take(48).ljust(48, b"\0"))
        data = self.source.take(self.source.number())
        bhs[4] = 0
        self._give(bhs, data)

    def raw(self) -> None:
        self.scene.feed(self.source.take(self.source.number()), self.source.choose(_CHUNKS))


_STEPS: tuple[Callable[[Program], None], ...] = (
    Program.read,
    Program.write,
    Program.other,
    Program.accept,
    Program.data_in,
    Program.r2t,
    Program.response,
    Program.nop_in,
    Program.ask,
    Program.wait,
    Program.task_response,
    Program.text_response,
    Program.logout_response,
    Program.asynchronous,
    Program.reject,
    Program.any_pdu,
    Program.raw,
    Program.flood,
    Program.connect,
    Program.connect,
)


def test_one_input(data: bytes) -> None:
    """Run the program that the bytes are."""
    Program(Source(data)).run()


HARNESS = Harness("connection", "PDUs in full feature phase", test_one_input, maximum_length=2048, weight=4)
