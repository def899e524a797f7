# SPDX-License-Identifier: GPL-3.0-or-later
"""A session in full feature phase, its user and its target, and what must hold whatever the target sends.

:class:`Scene` has no opinion on what happens next: the fuzzing harness and the state machine of the property tests
both drive it.
"""

from __future__ import annotations

from dataclasses import replace

from tests.fuzz.harness import wire

from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.constants import TaskFunction
from blockfleet.iscsi.events import (
    ConnectionClosed,
    ConnectionDropped,
    ConnectionLost,
    LoggedOut,
    LoginFailed,
    ReinstatementWanted,
)
from blockfleet.iscsi.login import LoginMachine, LoginParameters
from blockfleet.iscsi.parameters import Negotiated, SessionOffer
from blockfleet.iscsi.session import Patience, Session
from blockfleet.scsi.command import Outcome, ScsiCommand

LUN = 5 << 48
MAXIMUM_PIECES = 256
"""Pieces that one PDU is sent in."""
MAXIMUM_LINKS = 6
"""Connections of one scene, those that are over counted."""
MAXIMUM_STUCK = 50
"""Times that time may stand still: each has to bring something about."""
LONGEST_RECOVERY = 140_000.0
"""Seconds: more than Time2Wait and Time2Retain together can be, which have 16 bits each."""
FIRST_CMD_SN = 0xFFFFFFF0
"""Just before the wrap."""
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


class Link:
    """One connection of a scene, and what its target has to remember."""

    def __init__(self, connection: Connection, header_digest: bool, data_digest: bool, stat_sn: int) -> None:
        self.connection = connection
        self.header_digest = header_digest
        self.data_digest = data_digest
        self.stat_sn = stat_sn
        self.acknowledged = stat_sn
        self.over = False
        self.limit = 8192


class Scene:
    """A session that is logged in with ``keys`` as the target's answers; ``link`` is where the next PDU goes."""

    def __init__(
        self,
        keys: dict[str, str],
        *,
        offer: SessionOffer,
        patience: Patience,
        window: int,
        digests: tuple[bool, bool],
    ) -> None:
        self.now = 100.0
        self.window = window
        self.exp_cmd_sn = self.next_cmd_sn = FIRST_CMD_SN
        self.wild = False
        """Whether bytes were sent of which nobody knows what they look like."""
        self.told_windows = {FIRST_CMD_SN + window - 1 & MASK}
        self.issued: list[Issued] = []
        self.sent: dict[int, wire.Sent] = {}
        """The last commands and requests by their task tag."""
        self.over = False
        self.wanted: int | None = None
        """The CID that is to be logged in anew."""
        self.answered: list[object] = []
        self.asked = 0
        self.session = Session(patience, self.now, FIRST_CMD_SN)
        self._offer = offer
        self._digests = digests
        self._parameters = LoginParameters(
            initiator_name="iqn.2026-11.com.example:host",
            target_name="iqn.2026-11.com.example:disk",
            isid=bytes.fromhex("80aabbcc0001"),
            cid=1,
            cmd_sn=FIRST_CMD_SN,
            offer=offer,
        )
        self.links: list[Link] = []
        self.link = self._log_in(self._parameters, keys)
        assert self.session.live is self.link.connection, self.session.events
        self.session.events.clear()
        self._connection_keys = {key: value for key, value in keys.items() if key in _OF_A_CONNECTION}

    @property
    def negotiated(self) -> Negotiated:
        """What the connection runs on that the next PDU goes to."""
        return self.link.connection.negotiated

    def join(self, cid: int) -> None:
        """Log another connection in, or one anew; where that is not possible nothing happens."""
        if self.over or cid in self.session.connections or len(self.links) > MAXIMUM_LINKS:
            return
        parameters = replace(
            self._parameters,
            cid=cid,
            cmd_sn=self.session.cmd_sn,
            leading=False,
            tsih=self.session.tsih,
            session=self.links[0].connection.negotiated,
        )
        self.wanted = None
        self.link = self._log_in(parameters, self._connection_keys)
        self.check()

    def _log_in(self, parameters: LoginParameters, keys: dict[str, str]) -> Link:
        machine = LoginMachine(parameters, lambda count: bytes(range(count)))
        connection = Connection(self.session, parameters.cid, machine, _wake, self.now + 10)
        self.session.add_connection(connection)
        link = Link(connection, False, False, 0xFFFFFFFA)
        self.links.append(link)
        connection.connecting()
        connection.connected(self.now)
        answers = "".join(f"{key}={value}\0" for key, value in keys.items()).encode()
        for flags, tsih, text in ((0x81, 0, b"AuthMethod=None\0TargetPortalGroupTag=3\0"), (0x87, 0x77, answers)):
            request = b"".join(bytes(part) for part in connection.take_output())
            bhs = wire.header(wire.LOGIN_RESPONSE, flags, statsn=link.stat_sn, **self._window())
            self.told_windows.add(self._window()["maxcmdsn"])
            bhs[8:14] = request[8:14]
            bhs[14:16] = tsih.to_bytes(2, "big")
            bhs[16:20] = request[16:20]
            link.stat_sn = link.acknowledged = link.stat_sn + 1 & MASK
            self._feed(link, bytes(wire.frame(bhs, text, False, False)), 1 << 20)
        link.header_digest, link.data_digest = self._digests
        link.limit = connection.negotiated.target_max_recv_data_segment_length
        return link

    def _window(self) -> dict[str, int]:
        return {"expcmdsn": self.exp_cmd_sn, "maxcmdsn": self.exp_cmd_sn + self.window - 1 & MASK}

    # -- the target's side

    def numbers(self, *, advance: bool = True) -> dict[str, int]:
        """Return StatSN, ExpCmdSN and MaxCmdSN as a target in its right mind has them for its next PDU."""
        stat_sn = self.link.stat_sn
        if advance:
            self.link.stat_sn = stat_sn + 1 & MASK
        return {"statsn": stat_sn, **self._window()}

    def give(self, bhs: bytearray, data: bytes = b"", *, chunk: int = 1 << 20, flip: int | None = None) -> None:
        """Send one PDU; ``flip`` is a bit to be sent wrong."""
        link = self.link
        self.told_windows.add(int.from_bytes(bhs[32:36], "big"))
        stream = wire.frame(bhs, data, link.header_digest, link.data_digest)
        if flip is not None:
            at = flip % (8 * len(stream))
            stream[at // 8] ^= 1 << at % 8
        # A length that is wrong makes payload look like headers.
        self.wild = self.wild or bool(bhs[4]) or (flip is not None and not link.header_digest)
        self._feed(link, bytes(stream), chunk)
        self.check()

    def feed(self, stream: bytes, chunk: int) -> None:
        """Send raw bytes in pieces, then look at what came of them."""
        self.wild = True
        self._feed(self.link, stream, chunk)
        self.check()

    def _feed(self, link: Link, stream: bytes, chunk: int) -> None:
        chunk = max(chunk, len(stream) // MAXIMUM_PIECES)
        at = 0
        while at < len(stream):
            buffer = link.connection.get_buffer(-1)
            count = min(len(buffer), chunk, len(stream) - at)
            assert count, "an empty buffer to receive into"
            buffer[:count] = stream[at : at + count]
            at += count
            link.connection.received(count, self.now)

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
        stuck = 0
        while (due := self.session.next_deadline()) <= until:
            stuck = stuck + 1 if due <= self.now else 0
            assert stuck < MAXIMUM_STUCK, "a deadline that stays in the past"
            self.now = max(due, self.now)
            self.session.advance(self.now)
            self.check()
        self.now = until
        self.session.advance(until)
        self.check()

    def drop(self) -> None:
        """Lose the transport of one connection."""
        self.link.connection.closed("reset by the test")
        self.check()

    # -- what must hold

    def check(self) -> None:
        """Hold the session to everything that does not depend on what happened before."""
        self._check_events()
        self._check_output()
        session = self.session
        for link in self.links:
            carried = sum(task.connection is link.connection for task in session.tasks.values())
            assert link.connection.in_flight == carried, "in_flight and the tasks differ"
        open_commands = sum(not issued.ends for issued in self.issued)
        assert open_commands == len(session.tasks) + len(session.pending), "a command is lost or kept"
        allowed = self.asked + 2 * len(self.issued) + 8 * len(self.links) + 8
        assert len(session.control) <= allowed, "requests pile up"
        assert len(self.answered) <= self.asked, "a request was answered twice"
        assert self.wild or session.max_cmd_sn in self.told_windows, "a window that nobody told"

    def _check_events(self) -> None:
        events = self.session.events
        while events:
            event = events.popleft()
            if isinstance(event, LoginFailed | ConnectionDropped | ConnectionClosed):
                for link in self.links:
                    link.over = link.over or link.connection.cid == event.cid
            elif isinstance(event, ReinstatementWanted):
                self.wanted = event.cid
            elif isinstance(event, ConnectionLost | LoggedOut):
                assert not self.over, "a session that ended twice"
                self.over = True
        assert self.over == self.session.over
        for link in self.links:
            link.over = link.over or self.over

    def _check_output(self) -> None:
        newest = self.next_cmd_sn
        for link in self.links:
            segments = link.connection.take_output()
            assert not segments or not link.over, "output after the end"
            stream = b"".join(bytes(segment) for segment in segments)
            for pdu in wire.split(stream, link.header_digest, link.data_digest):
                self._check_pdu(link, pdu)
                if not pdu.immediate and pdu.opcode in _NUMBERED and not after(newest, pdu.cmdsn):
                    newest = pdu.cmdsn + 1 & MASK
        # A number that was used before may be far behind a window that has moved.
        if newest != self.next_cmd_sn:
            assert (self.session.max_cmd_sn - newest + 1 & MASK) < HALF, "CmdSN beyond MaxCmdSN"
            assert newest == self.session.cmd_sn
            self.next_cmd_sn = newest
        if self.over:
            assert not self.session.tasks
            assert not self.session.pending
            assert not self.session.control

    def _check_pdu(self, link: Link, pdu: wire.Sent) -> None:
        assert pdu.opcode in _REQUESTS, f"opcode {pdu.opcode:#x} is no initiator's"
        assert len(pdu.data) <= link.limit, "a data segment over the target's limit"
        if pdu.opcode != wire.LOGOUT or pdu.bhs[1] & 0x7F != wire.FOR_RECOVERY:
            assert not after(link.acknowledged, pdu.expstatsn), "ExpStatSN went back"
            link.acknowledged = pdu.expstatsn
        if pdu.opcode == wire.DATA_OUT:
            written = self._written(self.sent[pdu.itt])
            assert written[pdu.offset : pdu.offset + len(pdu.data)] == pdu.data, (
                "other data than were to be written"
            )
            return
        if pdu.opcode != wire.SNACK and pdu.itt != wire.NONE_TAG:
            self.sent[pdu.itt] = pdu
        if pdu.opcode == wire.COMMAND:
            assert self._written(pdu)[: len(pdu.data)] == pdu.data

    def _written(self, command: wire.Sent) -> bytes:
        """Return the data of the write whose CDB has its number at byte 2."""
        return self.issued[int.from_bytes(command.bhs[34:38], "big")].written

    def finish(self) -> None:
        """End the scene: whatever still runs must end with the session, in the time that recovery has at most."""
        for link in self.links:
            link.connection.closed("reset by the test")
            self.check()
        for _ in range(3):
            self.now += LONGEST_RECOVERY
            self.session.advance(self.now)
            self.check()
        assert self.over, "a session without a connection that never ends"
        assert all(issued.ends == 1 for issued in self.issued), "a command never ended"
        assert len(self.answered) == self.asked, "a request was never answered"
        assert self.session.next_deadline() == float("inf")
        for link in self.links:
            self._feed(link, bytes(200), 48)
        self.check()
        refused = self.execute(self.cdb())
        assert refused.command.outcome is Outcome.REFUSED

    def cdb(self, length: int = 16) -> bytes:
        """Return a CDB that carries the number of the next command at byte 2."""
        return (b"\x8a\0" + len(self.issued).to_bytes(4, "big")).ljust(length, b"\0")


_NUMBERED = frozenset({wire.NOP_OUT, wire.COMMAND, wire.TASK_REQUEST, wire.TEXT, wire.LOGOUT})
_REQUESTS = _NUMBERED | {wire.DATA_OUT, wire.SNACK}
_OF_A_CONNECTION = ("HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength")


def _wake() -> None:
    """Output is taken after every step."""


def _ignore(_data: bytes) -> None:
    """Text that nobody wants."""
