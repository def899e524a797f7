# SPDX-License-Identifier: GPL-3.0-or-later
"""A session in full feature phase, its user and its target, and what must hold whatever the target sends.

:class:`Scene` has no opinion on what happens next: the fuzzing harness and the state machine of the property tests
both drive it.
"""

from __future__ import annotations

from tests.fuzz.harness import wire

from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.constants import TaskFunction
from blockfleet.iscsi.events import ConnectionLost, Event, LoggedOut, LoginFailed
from blockfleet.iscsi.login import LoginMachine, LoginParameters
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.iscsi.session import Patience, Session
from blockfleet.scsi.command import Outcome, ScsiCommand

LUN = 5 << 48
FIRST_CMD_SN = 0xFFFFFFF0
"""Just before the wrap."""
MAXIMUM_PIECES = 256
"""Pieces that one PDU is sent in."""
MASK, HALF = 0xFFFFFFFF, 1 << 31


def after(a: int, b: int) -> bool:
    """Serial number comparison (RFC 1982)."""
    return 0 < (a - b & MASK) < HALF


class Issued:
    """A command of the user's and how often it ended."""

    def __init__(self, cdb: bytes, read: int, write: int, timeout: float) -> None:
        self.ends = 0
        self.written = bytes((7 * at + write) & 0xFF for at in range(min(write, 251))) * (write // 251 + 1)
        self.written = self.written[:write]
        self.read = bytearray(b"\xee" * read)
        self.command = ScsiCommand(
            LUN,
            cdb,
            self._done,
            data_in=memoryview(self.read) if read else None,
            data_out=memoryview(self.written) if write else None,
            timeout=timeout,
        )

    def _done(self, command: ScsiCommand) -> None:
        assert command is self.command
        self.ends += 1
        assert self.ends == 1, "a command ended twice"
        assert command.outcome is not Outcome.PENDING


class Scene:
    """A session that is logged in with ``keys`` as the target's answers."""

    def __init__(
        self,
        keys: dict[str, str],
        *,
        offer: SessionOffer,
        patience: Patience,
        window: int,
        header_digest: bool,
        data_digest: bool,
    ) -> None:
        self.now = 100.0
        self.window = window
        self.header_digest, self.data_digest = header_digest, data_digest
        self.stat_sn = 0xFFFFFFFA
        self.exp_cmd_sn = FIRST_CMD_SN
        self.wild = False
        """Whether bytes were sent of which nobody knows what they look like."""
        self.told_windows = {FIRST_CMD_SN + window - 1 & MASK}
        self.issued: list[Issued] = []
        self.sent: dict[int, wire.Sent] = {}
        """The last commands and requests by their task tag."""
        self.acknowledged = 0
        self.next_cmd_sn = FIRST_CMD_SN
        self.endings: list[Event] = []
        self.answered: list[object] = []
        self.asked = 0
        self.session = Session(patience, self.now, FIRST_CMD_SN)
        machine = LoginMachine(
            LoginParameters(
                initiator_name="iqn.2026-11.com.example:host",
                target_name="iqn.2026-11.com.example:disk",
                isid=bytes.fromhex("80aabbcc0001"),
                cid=1,
                cmd_sn=FIRST_CMD_SN,
                offer=offer,
            ),
            lambda count: bytes(range(count)),
        )
        self.connection = Connection(self.session, 1, machine, self._wake, self.now + 10)
        self.session.add_connection(self.connection)
        self._log_in(keys)
        self.limit = self.connection.negotiated.target_max_recv_data_segment_length

    def _wake(self) -> None:
        """Output is taken after every step."""

    def _log_in(self, keys: dict[str, str]) -> None:
        self.connection.connecting()
        self.connection.connected(self.now)
        answers = "".join(f"{key}={value}\0" for key, value in keys.items()).encode()
        for flags, tsih, text in ((0x81, 0, b"AuthMethod=None\0TargetPortalGroupTag=3\0"), (0x87, 0x77, answers)):
            request = b"".join(bytes(part) for part in self.connection.take_output())
            bhs = wire.header(wire.LOGIN_RESPONSE, flags, statsn=self.stat_sn, **self._window())
            bhs[8:14] = request[8:14]
            bhs[14:16] = tsih.to_bytes(2, "big")
            bhs[16:20] = request[16:20]
            self.stat_sn = self.stat_sn + 1 & MASK
            self._feed(bytes(wire.frame(bhs, text, False, False)), 1 << 20)
        assert self.session.live is self.connection, self.session.events
        self.acknowledged = self.stat_sn
        self.session.events.clear()

    def _window(self) -> dict[str, int]:
        return {"expcmdsn": self.exp_cmd_sn, "maxcmdsn": self.exp_cmd_sn + self.window - 1 & MASK}

    @property
    def alive(self) -> bool:
        """Whether the connection is neither lost nor logged out."""
        return not self.endings

    # -- the target's side

    def numbers(self, *, advance: bool = True) -> dict[str, int]:
        """Return StatSN, ExpCmdSN and MaxCmdSN as a target in its right mind has them for its next PDU."""
        stat_sn = self.stat_sn
        if advance:
            self.stat_sn = stat_sn + 1 & MASK
        return {"statsn": stat_sn, **self._window()}

    def give(self, bhs: bytearray, data: bytes = b"", *, chunk: int = 1 << 20, flip: int | None = None) -> None:
        """Send one PDU; ``flip`` is a bit to be sent wrong."""
        self.told_windows.add(int.from_bytes(bhs[32:36], "big"))
        stream = wire.frame(bhs, data, self.header_digest, self.data_digest)
        if flip is not None:
            at = flip % (8 * len(stream))
            stream[at // 8] ^= 1 << at % 8
        # A length that is wrong makes payload look like headers.
        self.wild = self.wild or bool(bhs[4]) or (flip is not None and not self.header_digest)
        self._feed(bytes(stream), chunk)
        self.check()

    def feed(self, stream: bytes, chunk: int) -> None:
        """Send raw bytes in pieces, then look at what came of them."""
        self.wild = True
        self._feed(stream, chunk)
        self.check()

    def _feed(self, stream: bytes, chunk: int) -> None:
        chunk = max(chunk, len(stream) // MAXIMUM_PIECES)
        at = 0
        while at < len(stream):
            buffer = self.connection.get_buffer(-1)
            count = min(len(buffer), chunk, len(stream) - at)
            assert count, "an empty buffer to receive into"
            buffer[:count] = stream[at : at + count]
            at += count
            self.connection.received(count, self.now)

    # -- the user's side

    def execute(self, cdb: bytes, read: int = 0, write: int = 0, timeout: float = 30.0) -> Issued:
        """Give the session a command."""
        issued = Issued(cdb, read, write, timeout)
        self.issued.append(issued)
        self.session.execute(issued.command, self.now)
        self.check()
        return issued

    def manage(self, function: TaskFunction) -> None:
        """Ask for a task management function."""
        self.asked += 1
        named = next(iter(self.session.tasks.values()), None) if function is TaskFunction.ABORT_TASK else None
        self.session.manage_task(function, LUN, self.now, self.answered.append, task=named)
        self.check()

    def ask(self) -> None:
        """Send a text request."""
        self.asked += 1
        self.session.send_text(b"SendTargets=All\0", self.now, _ignore, self.answered.append)
        self.check()

    def logout(self) -> None:
        """Ask for a logout."""
        self.session.logout(self.now)
        self.check()

    def pass_time(self, seconds: float) -> None:
        """Move the clock through every deadline."""
        until = self.now + seconds
        for _ in range(10_000):
            due = self.session.next_deadline()
            if due > until:
                break
            self.now = max(due, self.now)
            self.session.advance(self.now)
            self.check()
        else:
            raise AssertionError("deadlines that never end")
        self.now = until
        self.session.advance(until)
        self.check()

    def drop(self) -> None:
        """Lose the transport."""
        self.connection.closed("reset by the test")
        self.check()

    # -- what must hold

    def check(self) -> None:
        """Hold the session to everything that does not depend on what happened before."""
        self._check_events()
        self._check_output()
        session = self.session
        carried = sum(connection.in_flight for connection in session.connections.values())
        assert carried == len(session.tasks), "in_flight and the tasks differ"
        open_commands = sum(not issued.ends for issued in self.issued)
        assert open_commands == len(session.tasks) + len(session.pending), "a command is lost or kept"
        assert len(session.control) <= self.asked + len(self.issued) + 8, "requests pile up"
        assert len(self.answered) <= self.asked, "a request was answered twice"
        assert self.wild or session.max_cmd_sn in self.told_windows, "a window that nobody told"

    def _check_events(self) -> None:
        events = self.session.events
        while events:
            event = events.popleft()
            if isinstance(event, ConnectionLost | LoggedOut | LoginFailed):
                self.endings.append(event)
        assert len(self.endings) <= 1, "a connection that ended twice"

    def _check_output(self) -> None:
        segments = self.connection.take_output()
        if not self.alive:
            assert not segments, "output after the end"
            assert not self.session.tasks
            assert not self.session.pending
            return
        stream = b"".join(bytes(segment) for segment in segments)
        for pdu in wire.split(stream, self.header_digest, self.data_digest):
            self._check_pdu(pdu)

    def _check_pdu(self, pdu: wire.Sent) -> None:
        assert pdu.opcode in _REQUESTS, f"opcode {pdu.opcode:#x} is no initiator's"
        assert len(pdu.data) <= self.limit, "a data segment over the target's limit"
        assert not after(self.acknowledged, pdu.expstatsn), "ExpStatSN went back"
        self.acknowledged = pdu.expstatsn
        if pdu.opcode == wire.DATA_OUT:
            command = self.sent[pdu.itt]
            written = self._written(command)
            assert written[pdu.offset : pdu.offset + len(pdu.data)] == pdu.data, (
                "other data than were to be written"
            )
            return
        if pdu.itt != wire.NONE_TAG:
            self.sent[pdu.itt] = pdu
        if not pdu.immediate and not after(self.next_cmd_sn, pdu.cmdsn):
            assert pdu.cmdsn == self.next_cmd_sn, "a CmdSN was left out"
            assert (self.session.max_cmd_sn - pdu.cmdsn & MASK) < HALF, "CmdSN beyond MaxCmdSN"
            self.next_cmd_sn = pdu.cmdsn + 1 & MASK
        if pdu.opcode == wire.COMMAND:
            written = self._written(pdu)
            assert written[: len(pdu.data)] == pdu.data

    def _written(self, command: wire.Sent) -> bytes:
        """Return the data of the write whose first four bytes of CDB are its number."""
        return self.issued[int.from_bytes(command.bhs[34:38], "big")].written

    def finish(self) -> None:
        """End the scene: whatever still runs must end with the connection."""
        self.drop()
        assert not self.alive
        assert all(issued.ends == 1 for issued in self.issued), "a command never ended"
        assert len(self.answered) == self.asked, "a request was never answered"
        assert not self.session.control
        assert self.session.next_deadline() == float("inf")
        self._feed(bytes(200), 48)
        self.check()
        refused = self.execute(self.cdb())
        assert refused.command.outcome is Outcome.REFUSED

    def cdb(self, length: int = 16) -> bytes:
        """Return a CDB that carries the number of the next command at byte 2."""
        return (b"\x8a\0" + len(self.issued).to_bytes(4, "big")).ljust(length, b"\0")


_REQUESTS = frozenset(
    {wire.NOP_OUT, wire.COMMAND, wire.TASK_REQUEST, wire.TEXT, wire.DATA_OUT, wire.LOGOUT, wire.SNACK}
)


def _ignore(_data: bytes) -> None:
    """Text that nobody wants."""
