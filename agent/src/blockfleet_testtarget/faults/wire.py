# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of connections and of the PDUs on them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockfleet_testtarget.codec import FIELDS, STATUS, Op, Pdu
from blockfleet_testtarget.faults.base import Fault, FaultError, register

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.target import TestTarget

ANY = ""
SCSI_STATUS = "status"  # a SCSI Response, or a Data-In that carries the status
_WITH_DATASN = frozenset({Op.DATA_IN, Op.R2T, Op.DATA_OUT})


def opcode_number(name: str) -> int:
    """Return the opcode of a name such as data_in or 0x25, -1 for the empty name; raises FaultError."""
    if name in (ANY, SCSI_STATUS):
        return -1
    named = Op.__members__.get(name.upper())
    if named is not None:
        return named.value
    try:
        return int(name, 0)
    except ValueError:
        known = ", ".join(op.name.lower() for op in Op)
        raise FaultError(f"{name!r} is no opcode (known: {known}, or a number)") from None


def carries_status(pdu: Pdu) -> bool:
    """Whether a PDU brings the status of a SCSI command."""
    return pdu.opcode == Op.SCSI_RESPONSE or (pdu.opcode == Op.DATA_IN and bool(pdu.flags & STATUS))


@dataclass(slots=True, kw_only=True)
class PduFault(Fault):
    """Base of faults that wait for PDUs of one opcode (empty: any; status: whatever carries a SCSI status).

    With `sn` only Data-In, R2T and Data-Out PDUs with this DataSN or R2TSN count.
    """

    opcode: str = ANY
    sn: int = -1

    def armed(self, endpoint: TestTarget) -> bool:
        del endpoint
        opcode_number(self.opcode)
        return True

    def chosen(self, connection: Connection, pdu: Pdu) -> bool:
        """Whether the fault strikes at this PDU."""
        wanted = opcode_number(self.opcode)
        if wanted not in (-1, pdu.opcode):
            return False
        if self.sn != -1 and (pdu.opcode not in _WITH_DATASN or pdu.datasn != self.sn):
            return False
        if self.opcode == SCSI_STATUS and not carries_status(pdu):
            return False
        return self.strikes(connection)


@register
@dataclass(slots=True, kw_only=True)
class Drop(PduFault):
    """Drop the connection at a PDU: received (before it has an effect) or, with `sent`, after sending it."""

    name: ClassVar[str] = "drop"
    reset: bool = False
    sent: bool = False

    def _drop(self, connection: Connection) -> None:
        if self.reset:
            connection.reset("fault: drop")
        else:
            connection.close("fault: drop")

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        if self.sent or not self.chosen(connection, pdu):
            return False
        self._drop(connection)
        return True

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        if self.sent and self.chosen(connection, pdu):
            asyncio.get_running_loop().call_soon(self._drop, connection)
        return None


@register
@dataclass(slots=True, kw_only=True)
class RefuseConnection(Fault):
    """Reset new connections as soon as they are accepted."""

    name: ClassVar[str] = "refuse_connection"

    def accepting(self, connection: Connection) -> bool:
        if not self.strikes(connection):
            return False
        connection.reset("fault: refuse_connection")
        return True


@dataclass(slots=True, kw_only=True)
class Standing(Fault):
    """Base of faults that hold for matching connections, present and new, until disarmed."""

    times: int = 0

    def armed(self, endpoint: TestTarget) -> bool:
        for connection in endpoint.connections:
            self.accepting(connection)
        return True

    def accepting(self, connection: Connection) -> bool:
        if self.strikes(connection):
            self.begin(connection)
        return False

    def disarmed(self, endpoint: TestTarget) -> None:
        for connection in endpoint.connections:
            if self.matches(connection):
                self.end(connection)

    def begin(self, connection: Connection) -> None:
        """Start on a connection."""

    def end(self, connection: Connection) -> None:
        """Stop on a connection."""


@register
@dataclass(slots=True, kw_only=True)
class BlackHole(Standing):
    """Neither read nor answer; what the initiator sent meanwhile is acted upon after disarming."""

    name: ClassVar[str] = "black_hole"

    def begin(self, connection: Connection) -> None:
        connection.freeze()

    def end(self, connection: Connection) -> None:
        connection.thaw()


@register
@dataclass(slots=True, kw_only=True)
class Delay(Standing):
    """Send everything later by `seconds`, in order."""

    name: ClassVar[str] = "delay"
    seconds: float = 1.0

    def begin(self, connection: Connection) -> None:
        connection.delay = self.seconds

    def end(self, connection: Connection) -> None:
        connection.delay = 0.0


@register
@dataclass(slots=True, kw_only=True)
class Drip(Standing):
    """Send in pieces of `size` bytes, one every `seconds`."""

    name: ClassVar[str] = "drip"
    size: int = 1
    seconds: float = 0.01

    def begin(self, connection: Connection) -> None:
        connection.drip = (self.size, self.seconds)

    def end(self, connection: Connection) -> None:
        connection.drip = None


@register
@dataclass(slots=True, kw_only=True)
class Swallow(PduFault):
    """Ignore a received PDU as if it had not come."""

    name: ClassVar[str] = "swallow"

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        return self.chosen(connection, pdu)


@register
@dataclass(slots=True, kw_only=True)
class Withhold(PduFault):
    """Do not send a PDU; numbers are used up as if it had been sent. With data_in it skips a DataSN."""

    name: ClassVar[str] = "withhold"

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        return [] if self.chosen(connection, pdu) else None


@register
@dataclass(slots=True, kw_only=True)
class Duplicate(PduFault):
    """Send a PDU twice."""

    name: ClassVar[str] = "duplicate"

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        return [pdu, pdu] if self.chosen(connection, pdu) else None


@register
@dataclass(slots=True, kw_only=True)
class Reorder(PduFault):
    """Hold a PDU back until the next one of the same opcode on the connection was sent."""

    name: ClassVar[str] = "reorder"
    held: tuple[Connection, Pdu] | None = None

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        if self.held is not None and self.held[0] is connection and self.held[1].opcode == pdu.opcode:
            first, self.held = self.held[1], None
            return [pdu, first]
        if self.held is None and self.chosen(connection, pdu):
            self.held = (connection, Pdu(pdu.bhs, bytes(pdu.data), pdu.ahs))
            return []
        return None

    @property
    def spent(self) -> bool:
        return self.held is None and bool(self.times) and self.struck >= self.times


@register
@dataclass(slots=True, kw_only=True)
class Bend(PduFault):
    """Change a header field of a PDU that is sent: set it to `value`, or add `value` to it."""

    name: ClassVar[str] = "bend"
    field: str = "flags"
    value: int = 0
    add: bool = False

    def armed(self, endpoint: TestTarget) -> bool:
        del endpoint
        opcode_number(self.opcode)
        if self.field not in FIELDS:
            raise FaultError(f"{self.field!r} is no field (known: {', '.join(FIELDS)})")
        return True

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        if not self.chosen(connection, pdu):
            return None
        offset, size = FIELDS[self.field]
        present = int.from_bytes(pdu.bhs[offset : offset + size], "big")
        value = (present + self.value if self.add else self.value) & ((1 << 8 * size) - 1)
        return [pdu.replace(**{self.field: value})]


@register
@dataclass(slots=True, kw_only=True)
class Corrupt(PduFault):
    """Flip a bit on the wire: in `header`, `data`, `header_digest` or `data_digest`.

    With `received` it is as if a bit of a received PDU had been flipped; digests must be in use.
    """

    name: ClassVar[str] = "corrupt"
    part: str = "data"
    bit: int = 0
    received: bool = False

    def armed(self, endpoint: TestTarget) -> bool:
        del endpoint
        opcode_number(self.opcode)
        if self.part not in ("header", "data", "header_digest", "data_digest"):
            raise FaultError(f"{self.part!r} is none of header, data, header_digest, data_digest")
        return True

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        header = self.part.startswith("header")
        seen = connection.header_digest if header else connection.data_digest and bool(len(pdu.data))
        if not self.received or not seen or not self.chosen(connection, pdu):
            return False
        if not header:
            connection.data_lost(pdu)
        elif not connection.skips_headers:
            connection.close("fault: corrupt")
        return True

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        if self.received:
            return None
        has_data = bool(len(pdu.data))
        digest = {"header_digest": connection.header_digest, "data_digest": connection.data_digest and has_data}
        possible = digest.get(self.part, has_data or self.part == "header")
        if not possible or not self.chosen(connection, pdu):
            return None
        raw = bytearray(b"".join(connection.encode(pdu.bhs, pdu.data)))
        data_start = len(pdu.bhs) + (4 if connection.header_digest else 0)
        start = {"header": 16, "header_digest": len(pdu.bhs), "data": data_start, "data_digest": len(raw) - 4}
        raw[start[self.part] + self.bit // 8] ^= 1 << self.bit % 8
        connection.emit_bytes(bytes(raw))
        return []


@register
@dataclass(slots=True, kw_only=True)
class Garbage(PduFault):
    """Answer a received PDU with bytes that are no PDU, the same for the same `seed`."""

    name: ClassVar[str] = "garbage"
    length: int = 256
    seed: int = 0

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        if not self.chosen(connection, pdu):
            return False
        connection.emit_bytes(random.Random(self.seed).randbytes(self.length))
        return True


@register
@dataclass(slots=True, kw_only=True)
class AnswerRaw(PduFault):
    """Answer a received PDU with the bytes in `hex`, as they are."""

    name: ClassVar[str] = "answer_raw"
    hex: str = ""

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        if not self.chosen(connection, pdu):
            return False
        connection.emit_bytes(bytes.fromhex(self.hex))
        return True


@register
@dataclass(slots=True, kw_only=True)
class Refuse(PduFault):
    """Answer a received PDU with Reject and a reason (10.17.1)."""

    name: ClassVar[str] = "reject"
    reason: int = 4

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        if not self.chosen(connection, pdu):
            return False
        connection.reject(pdu, self.reason)
        return True


@register
@dataclass(slots=True, kw_only=True)
class HalfClose(PduFault):
    """Send FIN at a received PDU and keep reading, without an answer."""

    name: ClassVar[str] = "half_close"

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        if not self.chosen(connection, pdu):
            return False
        connection.half_close()
        return True
