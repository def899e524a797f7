# SPDX-License-Identifier: GPL-3.0-or-later
"""PDUs by byte offset, from the figures of RFC 3720 chapter 10.

Written for the conformance suite alone: it shares no code, table or constant with the initiator that is tested.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from crc32c import crc32c

NONE_TAG = 0xFFFFFFFF
"""The reserved tag: "no task" (10.2.1.8) or "no transfer" (10.7.4)."""

# Opcodes, RFC 3720 10.2.1.2
NOP_OUT, COMMAND, TASK_REQUEST, LOGIN, TEXT, DATA_OUT, LOGOUT, SNACK = (
    0x00,
    0x01,
    0x02,
    0x03,
    0x04,
    0x05,
    0x06,
    0x10,
)
NOP_IN, RESPONSE, TASK_RESPONSE, LOGIN_RESPONSE, TEXT_RESPONSE = 0x20, 0x21, 0x22, 0x23, 0x24
DATA_IN, LOGOUT_RESPONSE, R2T, ASYNC, REJECT = 0x25, 0x26, 0x31, 0x32, 0x3F

F, READ, WRITE = 0x80, 0x40, 0x20
"""Byte 1 of a SCSI Command (10.3.1)."""
T, C = 0x80, 0x40
"""Byte 1 of login PDUs (10.12.1, 10.12.2)."""
OVERFLOW, UNDERFLOW, BIDI_OVERFLOW, BIDI_UNDERFLOW = 0x04, 0x02, 0x10, 0x08
"""Byte 1 of SCSI Response (10.4.1); O and U also of SCSI Data-In (10.7)."""
DATA_SNACK, STATUS_SNACK, DATA_ACK, R_DATA_SNACK = 0x80, 0x81, 0x82, 0x83
"""Byte 1 of a SNACK Request (10.16.1)."""
STATUS = 0x01
ACKNOWLEDGE = 0x40
"""Byte 1 of SCSI Data-In (10.7)."""

FIELDS: dict[str, tuple[int, int]] = {
    "ahs": (4, 1),
    "dsl": (5, 3),
    "lun": (8, 8),
    "isid": (8, 6),
    "tsih": (14, 2),
    "itt": (16, 4),
    "ttt": (20, 4),
    "edtl": (20, 4),
    "rtt": (20, 4),
    "cid": (20, 2),
    "cmdsn": (24, 4),
    "statsn": (24, 4),
    "expstatsn": (28, 4),
    "expcmdsn": (28, 4),
    "maxcmdsn": (32, 4),
    "refcmdsn": (32, 4),
    "datasn": (36, 4),
    "r2tsn": (36, 4),
    "expdatasn": (36, 4),
    "event": (36, 1),
    "vcode": (37, 1),
    "parameter1": (38, 2),
    "parameter2": (40, 2),
    "parameter3": (42, 2),
    "status": (36, 2),
    "offset": (40, 4),
    "begrun": (40, 4),
    "bidi_residual": (40, 4),
    "time2wait": (40, 2),
    "time2retain": (42, 2),
    "residual": (44, 4),
    "runlength": (44, 4),
    "desired": (44, 4),
}


def header(opcode: int, byte1: int = F, byte2: int = 0, byte3: int = 0, **fields: int) -> bytearray:
    """Build a Basic Header Segment."""
    bhs = bytearray(48)
    bhs[0:4] = bytes([opcode, byte1, byte2, byte3])
    for name, value in fields.items():
        at, size = FIELDS[name]
        bhs[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
    return bhs


def pad(size: int) -> bytes:
    """Return the bytes that fill ``size`` up to a multiple of four (10.2.3)."""
    return bytes(-size % 4)


def digest(data: bytes) -> bytes:
    """Return a CRC32C as it goes over the wire (12.1, B.4)."""
    return int(crc32c(data)).to_bytes(4, "little")


def text(*pairs: tuple[str, object] | str) -> bytes:
    """Return key=value pairs, each ended by one NUL; a string stands for itself."""
    return b"".join((p if isinstance(p, str) else f"{p[0]}={p[1]}").encode() + b"\0" for p in pairs)


def pairs(data: bytes) -> list[tuple[str, str]]:
    """Cut text into pairs and hold it to RFC 3720 5.1: every pair, also the last, ends with one NUL."""
    if not data:
        return []
    assert data[-1] == 0, "text that does not end with NUL"
    found = []
    for raw in data[:-1].split(b"\0"):
        key, equals, value = raw.decode().partition("=")
        assert equals, f"{raw!r} has no ="
        assert 0 < len(key.encode()) <= 63, f"key {key!r}"
        found.append((key, value))
    return found


def serial_add(number: int, by: int = 1) -> int:
    """Add as RFC 1982 does, in 32 bits."""
    return number + by & 0xFFFFFFFF


def sense(key: int, code: int, qualifier: int) -> bytes:
    """Return fixed format sense data with the length before it that iSCSI wants (10.4.7)."""
    data = bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0])
    return len(data).to_bytes(2, "big") + data


@dataclass
class Pdu:
    """One PDU of the initiator, taken off the wire; header fields are attributes."""

    bhs: bytes
    ahs: bytes = b""
    data: bytes = b""

    @property
    def opcode(self) -> int:
        return self.bhs[0] & 0x3F

    @property
    def immediate(self) -> bool:
        return bool(self.bhs[0] & 0x40)

    @property
    def final(self) -> bool:
        return bool(self.bhs[1] & 0x80)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return pairs(self.data)

    @property
    def keys(self) -> dict[str, str]:
        found = dict(self.pairs)
        assert len(found) == len(self.pairs), f"a key came twice: {self.pairs}"
        return found

    @property
    def csg(self) -> int:
        return self.bhs[1] >> 2 & 3

    @property
    def nsg(self) -> int:
        return self.bhs[1] & 3

    @property
    def transit(self) -> bool:
        return bool(self.bhs[1] & T)

    @property
    def more(self) -> bool:
        return bool(self.bhs[1] & C)

    def __getattr__(self, name: str) -> int:
        try:
            at, size = FIELDS[name]
        except KeyError:
            raise AttributeError(name) from None
        return int.from_bytes(self.bhs[at : at + size], "big")


def luns(values: Iterable[int]) -> bytes:
    """Return REPORT LUNS parameter data (SPC-3 6.21)."""
    entries = b"".join(value.to_bytes(8, "big") for value in values)
    return len(entries).to_bytes(4, "big") + bytes(4) + entries
