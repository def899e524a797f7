# SPDX-License-Identifier: GPL-3.0-or-later
"""The target's side of a session, PDU by PDU, written from the figures of RFC 3720 chapter 10.

Offsets and codes are this module's own: nothing is taken from the code under test but the entry points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.login import LoginMachine, LoginParameters
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.iscsi.session import Patience, Session
from blockfleet.scsi.command import ScsiCommand

LUN = 5 << 48
RESERVED = 0xFFFFFFFF

FIELDS: dict[str, tuple[int, int]] = {
    "ahs": (4, 1),
    "dsl": (5, 3),
    "lun": (8, 8),
    "itt": (16, 4),
    "ttt": (20, 4),
    "edtl": (20, 4),
    "snack_tag": (20, 4),
    "rtt": (20, 4),
    "cmdsn": (24, 4),
    "statsn": (24, 4),
    "expstatsn": (28, 4),
    "expcmdsn": (28, 4),
    "maxcmdsn": (32, 4),
    "refcmdsn": (32, 4),
    "datasn": (36, 4),
    "expdatasn": (36, 4),
    "offset": (40, 4),
    "residual": (44, 4),
    "desired": (44, 4),
}


def field(header: bytes, name: str) -> int:
    """Read a big-endian header field."""
    at, size = FIELDS[name]
    return int.from_bytes(header[at : at + size], "big")


def header(opcode: int, byte1: int = 0x80, byte2: int = 0, byte3: int = 0, **fields: int) -> bytearray:
    """Build a Basic Header Segment."""
    bhs = bytearray(48)
    bhs[0:4] = bytes([opcode, byte1, byte2, byte3])
    for name, value in fields.items():
        at, size = FIELDS[name]
        bhs[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
    return bhs


@dataclass
class Sent:
    """One PDU that the initiator sent."""

    bhs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.bhs[0] & 0x3F

    @property
    def immediate(self) -> bool:
        return bool(self.bhs[0] & 0x40)

    @property
    def final(self) -> bool:
        return bool(self.bhs[1] & 0x80)

    def __getattr__(self, name: str) -> int:
        if name in FIELDS:
            return field(self.bhs, name)
        raise AttributeError(name)


def split(stream: bytes) -> list[Sent]:
    """Cut an initiator's stream without digests into PDUs; bytes left over are a failure."""
    pdus = []
    while stream:
        ahs, length = 4 * stream[4], int.from_bytes(stream[5:8], "big")
        begin = 48 + ahs
        end = begin + (length + 3 & ~3)
        assert len(stream) >= end, "a PDU is cut short"
        pdus.append(Sent(stream[:begin], stream[begin : begin + length]))
        stream = stream[end:]
    return pdus


class ScriptedTarget:
    """Drives a session under test and plays its target; ``keys`` are the target's answers in negotiation."""

    def __init__(
        self,
        *,
        keys: dict[str, str] | None = None,
        offer: SessionOffer | None = None,
        patience: Patience | None = None,
        window: int = 64,
        stat_sn: int = 0x1000,
        cmd_sn: int = 0x20,
    ) -> None:
        self.now = 100.0
        self.wakes = 0
        self.done: list[ScsiCommand] = []
        self.stat_sn = stat_sn
        self.window = window
        self.session = Session(patience or Patience(noop_interval=0.0), self.now, cmd_sn)
        machine = LoginMachine(
            LoginParameters(
                initiator_name="iqn.2026-11.com.example:host",
                target_name="iqn.2026-11.com.example:disk",
                isid=bytes.fromhex("80aabbcc0001"),
                cid=1,
                cmd_sn=cmd_sn,
                offer=offer or SessionOffer(),
            ),
            lambda count: bytes(range(count)),
        )
        self.connection = Connection(self.session, 1, machine, self._wake, self.now + 10)
        self.session.add_connection(self.connection)
        self.exp_cmd_sn = cmd_sn
        self.login_pdus: list[Sent] = []
        self._log_in(keys or {})

    def _wake(self) -> None:
        self.wakes += 1

    # -- the wire

    def take(self) -> list[Sent]:
        """Return the PDUs that the initiator wants to send."""
        return split(b"".join(bytes(part) for part in self.connection.take_output()))

    def take_digested(self, header_digest: bool) -> list[Sent]:
        """Return PDUs without data that were sent with or without a header digest, which is not looked at."""
        stream = b"".join(bytes(part) for part in self.connection.take_output())
        step = 52 if header_digest else 48
        assert len(stream) % step == 0
        return [Sent(stream[at : at + 48], b"") for at in range(0, len(stream), step)]

    def give(self, bhs: bytearray, data: bytes = b"") -> None:
        """Send one PDU to the initiator."""
        bhs[5:8] = len(data).to_bytes(3, "big")
        self.feed(bytes(bhs) + data + bytes(-len(data) % 4))

    def feed(self, stream: bytes) -> None:
        """Send raw bytes in pieces as large as the initiator takes them."""
        while stream:
            buffer = self.connection.get_buffer(-1)
            count = min(len(buffer), len(stream))
            buffer[:count] = stream[:count]
            stream = stream[count:]
            self.connection.received(count, self.now)

    def numbers(self, *, advance: bool = True) -> dict[str, int]:
        """Return StatSN, ExpCmdSN and MaxCmdSN for the next PDU of the target."""
        stat_sn = self.stat_sn
        if advance:
            self.stat_sn = self.stat_sn + 1 & RESERVED
        return {"statsn": stat_sn, "expcmdsn": self.exp_cmd_sn, "maxcmdsn": self.exp_cmd_sn + self.window - 1}

    def _log_in(self, keys: dict[str, str]) -> None:
        self.connection.connecting()
        self.connection.connected(self.now)
        for byte1, text in ((0x81, "AuthMethod=None\0TargetPortalGroupTag=3\0"), (0x87, "")):
            (request,) = self.take()
            self.login_pdus.append(request)
            bhs = header(0x23, byte1, itt=request.itt, **self.numbers())
            bhs[8:14] = request.bhs[8:14]
            answer = text or "".join(f"{k}={v}\0" for k, v in keys.items())
            if byte1 == 0x87:
                bhs[14:16] = (0x77).to_bytes(2, "big")
            self.give(bhs, answer.encode())
        self.session.events.clear()

    # -- commands

    def execute(
        self, cdb: bytes, *, read: int = 0, write: bytes = b"", lun: int = LUN, timeout: float = 30.0
    ) -> ScsiCommand:
        """Give the session a command; it is in ``done`` when it ends."""
        command = ScsiCommand(
            lun,
            cdb.ljust(16, b"\0") if len(cdb) < 16 else cdb,
            self.done.append,
            data_in=memoryview(bytearray(b"\xee" * read)) if read else None,
            data_out=memoryview(write) if write else None,
            timeout=timeout,
        )
        self.session.execute(command, self.now)
        return command

    def accept(self, *pdus: Sent) -> None:
        """Count commands as received: ExpCmdSN moves past the non-immediate ones."""
        for pdu in pdus:
            if pdu.opcode != 0x05 and not pdu.immediate:
                self.exp_cmd_sn = pdu.cmdsn + 1 & RESERVED

    def respond(
        self, request: Sent, status: int = 0, *, sense: bytes = b"", byte1: int = 0x80, **more: int
    ) -> None:
        """Send a SCSI Response."""
        data = len(sense).to_bytes(2, "big") + sense if sense else b""
        self.give(header(0x21, byte1, 0, status, itt=request.itt, **self.numbers(), **more), data)

    def data_in(
        self, request: Sent, data_sn: int, offset: int, data: bytes, *, byte1: int = 0, status: int = 0, **more: int
    ) -> None:
        """Send one Data-In; with S in ``byte1`` it carries status."""
        numbers = self.numbers(advance=bool(byte1 & 1))
        fields: dict[str, Any] = {"ttt": RESERVED, "datasn": data_sn, "offset": offset, **numbers, **more}
        self.give(header(0x25, byte1, 0, status, itt=request.itt, **fields), data)

    def r2t(self, request: Sent, r2t_sn: int, offset: int, length: int, ttt: int = 0x51) -> None:
        """Ask for data of a write."""
        fields = {"ttt": ttt, "datasn": r2t_sn, "offset": offset, "desired": length, "lun": LUN}
        self.give(header(0x31, itt=request.itt, **fields, **self.numbers(advance=False)))

    # -- time

    def at(self, seconds: float) -> None:
        """Move the clock forward through every deadline of the session up to ``seconds`` from the start."""
        until = 100.0 + seconds
        while (due := self.session.next_deadline()) <= until:
            self.now = max(due, self.now)
            self.session.advance(self.now)
        self.now = until
        self.session.advance(until)

    def events(self) -> list[Any]:
        """Return the events since the last call."""
        events = list(self.session.events)
        self.session.events.clear()
        return events


Make = Callable[..., ScriptedTarget]
