# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes to fields and back for iSCSI PDUs (RFC 3720 chapter 10), as a target sees them."""

from __future__ import annotations

import enum
import struct

HEADER_LENGTH = 48
DIGEST_LENGTH = 4
NO_TAG = 0xFFFFFFFF
NO_LUN = bytes(8)
MASK32 = 0xFFFFFFFF

FINAL = 0x80
CONTINUE = 0x40
TRANSIT = 0x80
READ = 0x40
WRITE = 0x20
STATUS = 0x01
OVERFLOW = 0x04
UNDERFLOW = 0x02


class Op(enum.IntEnum):
    """Opcodes (10.2.1.2)."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC = 0x32
    REJECT = 0x3F


class RejectReason(enum.IntEnum):
    """Reasons of a Reject PDU (10.17.1)."""

    DATA_DIGEST = 0x02
    SNACK = 0x03
    PROTOCOL_ERROR = 0x04
    NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_FIELD = 0x09
    LONG_OPERATION = 0x0A
    NEGOTIATION_RESET = 0x0B
    WAITING_FOR_LOGOUT = 0x0C


class SnackKind(enum.IntEnum):
    """Types of a SNACK Request (10.16.1)."""

    DATA = 0
    STATUS = 1
    DATA_ACK = 2
    R_DATA = 3


class AsyncEvent(enum.IntEnum):
    """Events of an Asynchronous Message (10.9.1)."""

    SCSI = 0
    LOGOUT_REQUEST = 1
    DROP_CONNECTION = 2
    DROP_SESSION = 3
    NEGOTIATE = 4
    VENDOR = 255


_TARGET = struct.Struct(">BBBBI8sIIIIIIII")
_WORD = struct.Struct(">I")
_HALF = struct.Struct(">H")
_PAIR = struct.Struct(">II")


def later(a: int, b: int) -> bool:
    """Whether serial number a comes after b (RFC 1982, 32 bits)."""
    return a != b and ((a - b) & MASK32) < 0x80000000


class Pdu:
    """One PDU: 48 bytes of basic header, additional headers, data segment without padding.

    Fields are read from the bytes when asked for. A received `data` may be a view of the receive
    buffer that is valid only while the PDU is handled; `detach` makes a copy that lasts.
    """

    __slots__ = ("ahs", "bhs", "data")

    def __init__(self, bhs: bytes, data: bytes | bytearray | memoryview = b"", ahs: bytes = b"") -> None:
        self.bhs = bhs
        self.ahs = ahs
        self.data = data

    def __repr__(self) -> str:
        try:
            name = Op(self.opcode).name
        except ValueError:
            name = f"{self.opcode:#04x}"
        return f"<{name} itt={self.itt:#x} flags={self.flags:#04x} data={len(self.data)}>"

    def detach(self) -> Pdu:
        """Return a copy that does not depend on the receive buffer."""
        return Pdu(self.bhs, bytes(self.data), self.ahs)

    def word(self, offset: int) -> int:
        """Return the 32-bit field at a byte offset of the header."""
        value: int = _WORD.unpack_from(self.bhs, offset)[0]
        return value

    def half(self, offset: int) -> int:
        """Return the 16-bit field at a byte offset of the header."""
        value: int = _HALF.unpack_from(self.bhs, offset)[0]
        return value

    @property
    def opcode(self) -> int:
        return self.bhs[0] & 0x3F

    @property
    def immediate(self) -> bool:
        return bool(self.bhs[0] & 0x40)

    @property
    def flags(self) -> int:
        return self.bhs[1]

    @property
    def final(self) -> bool:
        return bool(self.bhs[1] & FINAL)

    @property
    def continued(self) -> bool:
        return bool(self.bhs[1] & CONTINUE)

    @property
    def current_stage(self) -> int:
        return (self.bhs[1] >> 2) & 3

    @property
    def next_stage(self) -> int:
        return self.bhs[1] & 3

    @property
    def data_length(self) -> int:
        return self.word(4) & 0xFFFFFF

    @property
    def lun(self) -> bytes:
        return self.bhs[8:16]

    @property
    def isid(self) -> bytes:
        return self.bhs[8:14]

    @property
    def tsih(self) -> int:
        return self.half(14)

    @property
    def itt(self) -> int:
        return self.word(16)

    @property
    def ttt(self) -> int:
        """Target Transfer Tag, Referenced Task Tag or SNACK Tag: the field at byte 20."""
        return self.word(20)

    @property
    def expected_length(self) -> int:
        """Expected Data Transfer Length of a SCSI Command."""
        return self.word(20)

    @property
    def cid(self) -> int:
        return self.half(20)

    @property
    def cmdsn(self) -> int:
        """CmdSN of a request; StatSN of a response."""
        return self.word(24)

    @property
    def statsn(self) -> int:
        return self.word(24)

    @property
    def expstatsn(self) -> int:
        """ExpStatSN of a request; ExpCmdSN of a response."""
        return self.word(28)

    @property
    def expcmdsn(self) -> int:
        return self.word(28)

    @property
    def maxcmdsn(self) -> int:
        return self.word(32)

    @property
    def refcmdsn(self) -> int:
        """RefCmdSN of a task management request."""
        return self.word(32)

    @property
    def datasn(self) -> int:
        """DataSN, R2TSN or ExpDataSN: the field at byte 36."""
        return self.word(36)

    @property
    def buffer_offset(self) -> int:
        return self.word(40)

    @property
    def desired_length(self) -> int:
        """Desired Data Transfer Length of an R2T; Residual Count of a response."""
        return self.word(44)

    @property
    def status_class(self) -> int:
        return self.bhs[36]

    @property
    def status_detail(self) -> int:
        return self.bhs[37]

    @property
    def run(self) -> tuple[int, int]:
        """BegRun and RunLength of a SNACK."""
        return self.word(40), self.word(44)

    @property
    def cdb(self) -> bytes:
        """CDB of a SCSI Command, with what an Extended CDB header adds (10.2.2.3)."""
        return self.bhs[32:48] + extended_cdb(self.ahs)

    def replace(self, **fields: int) -> Pdu:
        """Return a copy with named header fields changed; names are those of `FIELDS`."""
        header = bytearray(self.bhs)
        for name, value in fields.items():
            offset, size = FIELDS[name]
            header[offset : offset + size] = value.to_bytes(size, "big")
        return Pdu(bytes(header), self.data, self.ahs)


# Where a script that bends a PDU finds its fields: name -> (offset, bytes).
FIELDS = {
    "opcode": (0, 1),
    "flags": (1, 1),
    "byte2": (2, 1),
    "byte3": (3, 1),
    "ahs_length": (4, 1),
    "data_length": (5, 3),
    "lun": (8, 8),
    "tsih": (14, 2),
    "itt": (16, 4),
    "ttt": (20, 4),
    "statsn": (24, 4),
    "cmdsn": (24, 4),
    "expcmdsn": (28, 4),
    "expstatsn": (28, 4),
    "maxcmdsn": (32, 4),
    "datasn": (36, 4),
    "status": (36, 2),
    "buffer_offset": (40, 4),
    "residual": (44, 4),
    "desired_length": (44, 4),
}


def extended_cdb(ahs: bytes) -> bytes:
    """Return the CDB bytes beyond 16 that an Extended CDB AHS carries, or nothing."""
    position = 0
    while position + 4 <= len(ahs):
        length = _HALF.unpack_from(ahs, position)[0]
        if ahs[position + 2] & 0x3F == 1:
            return ahs[position + 4 : position + 3 + length]
        position += (3 + length + 3) & ~3
    return b""


def target_header(
    opcode: int,
    *,
    flags: int = FINAL,
    byte2: int = 0,
    byte3: int = 0,
    length: int = 0,
    lun: bytes = NO_LUN,
    itt: int = NO_TAG,
    ttt: int = 0,
    statsn: int = 0,
    window: tuple[int, int] = (0, 0),
    word36: int = 0,
    word40: int = 0,
    word44: int = 0,
) -> bytes:
    """Build the header of any PDU that a target sends: they all share one layout.

    `window` is ExpCmdSN and MaxCmdSN.
    """
    return _TARGET.pack(
        opcode,
        flags,
        byte2,
        byte3,
        length,
        lun,
        itt,
        ttt,
        statsn,
        *window,
        word36,
        word40,
        word44,
    )


def with_window(bhs: bytes, window: tuple[int, int]) -> bytes:
    """Return the header of a PDU sent before with the ExpCmdSN and MaxCmdSN of now."""
    return bhs[:28] + _PAIR.pack(*window) + bhs[36:]


def padding(length: int) -> bytes:
    """Return the zero bytes that bring a segment to a multiple of four."""
    return bytes(-length & 3)
