# SPDX-License-Identifier: GPL-3.0-or-later
"""An initiator's stream taken apart by the figures of RFC 3720 chapter 10, and a target's headers put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crc32c import crc32c

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
NOP_IN, RESPONSE, TASK_RESPONSE, LOGIN_RESPONSE, TEXT_RESPONSE, DATA_IN, LOGOUT_RESPONSE = range(0x20, 0x27)
R2T, ASYNC, REJECT = 0x31, 0x32, 0x3F
NONE_TAG = 0xFFFFFFFF
FOR_RECOVERY = 2
"""Reason of a Logout Request, whose ExpStatSN is that of the connection to be removed (10.14)."""

FIELDS: dict[str, tuple[int, int]] = {
    "lun": (8, 8), "itt": (16, 4), "ttt": (20, 4), "edtl": (20, 4), "cmdsn": (24, 4), "statsn": (24, 4),
    "expstatsn": (28, 4), "expcmdsn": (28, 4), "maxcmdsn": (32, 4), "datasn": (36, 4), "bidi": (40, 4),
    "offset": (40, 4), "desired": (44, 4), "residual": (44, 4), "time2wait": (40, 2), "time2retain": (42, 2),
    "event": (36, 1), "vcode": (37, 1), "p1": (38, 2), "p2": (40, 2), "p3": (42, 2),
}  # fmt: skip


def header(opcode: int, *bytes_1_to_3: int, **fields: int) -> bytearray:
    """Build a Basic Header Segment; what a field cannot hold is cut."""
    bhs = bytearray(48)
    bhs[: 1 + len(bytes_1_to_3)] = bytes((opcode & 0x3F, *bytes_1_to_3))
    for name, value in fields.items():
        at, size = FIELDS[name]
        bhs[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
    return bhs


def digest(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, "little")


def frame(bhs: bytearray, data: bytes, header_digest: bool, data_digest: bool) -> bytearray:
    """Put a PDU of the target on the wire."""
    bhs[5:8] = len(data).to_bytes(3, "big")
    out = bytearray(bhs)
    if header_digest:
        out += digest(bytes(bhs))
    padded = data + bytes(-len(data) % 4)
    out += padded
    if data_digest and data:
        out += digest(padded)
    return out


@dataclass(slots=True)
class Sent:
    """One PDU of the initiator's."""

    bhs: bytes
    ahs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.bhs[0] & 0x3F

    @property
    def immediate(self) -> bool:
        return bool(self.bhs[0] & 0x40)

    def __getattr__(self, name: str) -> int:
        at, size = FIELDS[name]
        return int.from_bytes(self.bhs[at : at + size], "big")


def split(stream: bytes, header_digest: bool, data_digest: bool) -> Iterator[Sent]:
    """Cut a stream into PDUs; a digest that is wrong and a PDU that is cut short are failures."""
    at = 0
    while at < len(stream):
        begin = at + 48 + 4 * stream[at + 4]
        length = int.from_bytes(stream[at + 5 : at + 8], "big")
        head = stream[at:begin]
        assert len(head) == begin - at >= 48, "a header is cut short"
        if header_digest:
            assert stream[begin : begin + 4] == digest(head), "a wrong header digest"
            begin += 4
        end = begin + length + (-length % 4)
        padded = stream[begin:end]
        assert len(padded) == end - begin, "a data segment is cut short"
        assert not any(padded[length:]), "padding that is not zero"
        if data_digest and length:
            assert stream[end : end + 4] == digest(padded), "a wrong data digest"
            end += 4
        yield Sent(head[:48], head[48:], padded[:length])
        at = end
