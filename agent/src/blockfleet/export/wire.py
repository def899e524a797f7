# SPDX-License-Identifier: GPL-3.0-or-later
"""Constants and layouts of the NBD protocol (NetworkBlockDevice ``doc/proto.md``), all in network byte order."""

from __future__ import annotations

import enum
import errno
import struct
from dataclasses import dataclass

from blockfleet.block.device import Geometry

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

GREETING = struct.Struct(">8s8sH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">8sII")
"""Magic, option, length of data."""
OPTION_REPLY = struct.Struct(">QIII")
"""Magic, option, reply type, length of data."""
EXPORT = struct.Struct(">QH")
"""Size, transmission flags."""
EXPORT_NAME_PADDING = bytes(124)
INFO_EXPORT = struct.Struct(">HQH")
INFO_BLOCK_SIZE = struct.Struct(">HIII")
"""Information type, minimum, preferred and maximum size."""
REQUEST = struct.Struct(">IHH8sQI")
"""Magic, command flags, command, cookie, offset, length."""
SIMPLE_REPLY = struct.Struct(">II8s")
"""Magic, error, cookie."""
READ_CHUNK = struct.Struct(">IHH8sIQ")
"""A structured reply chunk of type OFFSET_DATA up to its data: magic, flags, type, cookie, length, offset."""
ERROR_CHUNK = struct.Struct(">IHH8sIIH")
"""A structured reply chunk of type ERROR up to its text: magic, flags, type, cookie, length, error, text length."""
COOKIE = slice(8, 16)
"""Where the cookie stands in every reply, simple or structured."""

MAXIMUM_STRING = 4096
"""The longest string that the protocol allows, in bytes."""
MAXIMUM_PAYLOAD = 1 << 25
"""The longest payload in bytes that is ever taken or given in one request; a longer WRITE ends the connection."""
MAXIMUM_MINIMUM_BLOCK = 1 << 16
"""The largest minimum block size that may be advertised."""


class HandshakeFlag(enum.IntFlag):
    """Handshake flags, and client flags of the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(enum.IntEnum):
    """Options of the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """Replies to an option; errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = 0x80000001
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006
    ERR_TOO_BIG = 0x80000009


class Info(enum.IntEnum):
    """Kinds of information that INFO and GO ask for."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(enum.IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8


class Command(enum.IntEnum):
    """Request types of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """Flags of a request."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(enum.IntEnum):
    """Types of structured reply chunks; errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    ERROR = 0x8001


CHUNK_DONE = 1
"""Flag of the last chunk of a reply."""

_ERRORS = {
    number: number
    for number in (
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ESHUTDOWN,
    )
} | {
    errno.EROFS: errno.EPERM,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
    # "The server SHOULD NOT return NBD_ENOTSUP except" for fast zeroes, which are not offered.
    errno.EOPNOTSUPP: errno.EINVAL,
}


def nbd_error(number: int) -> int:
    """Map an errno to one of the error values that the protocol allows; those without one become EIO."""
    return _ERRORS.get(number, errno.EIO)


@dataclass(frozen=True, slots=True)
class ExportDescription:
    """What a client is told of an export: size and block sizes in bytes, flags without SEND_DF."""

    name: str
    size: int
    flags: TransmissionFlag
    minimum_block: int
    preferred_block: int
    maximum_payload: int


def describe(name: str, geometry: Geometry) -> ExportDescription:
    """Say what a device of this geometry is to an NBD client.

    CAN_MULTI_CONN is right because every connection of an export ends in the same device: a flush covers what
    was written through any of them.
    """
    offered = (
        (TransmissionFlag.READ_ONLY, geometry.read_only),
        (TransmissionFlag.SEND_FLUSH, geometry.can_flush),
        (TransmissionFlag.SEND_FUA, geometry.can_fua),
        (TransmissionFlag.ROTATIONAL, geometry.rotational),
        (TransmissionFlag.SEND_TRIM, geometry.can_trim),
        (TransmissionFlag.SEND_WRITE_ZEROES, geometry.can_write_zeroes),
    )
    flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.CAN_MULTI_CONN
    for flag, on in offered:
        if on:
            flags |= flag
    minimum = min(geometry.block_size, MAXIMUM_MINIMUM_BLOCK)
    preferred = max(512, minimum, 1 << (max(geometry.preferred_block_size, 1).bit_length() - 1))
    return ExportDescription(
        name=name,
        size=geometry.size,
        flags=flags,
        minimum_block=minimum,
        preferred_block=min(preferred, MAXIMUM_PAYLOAD),
        maximum_payload=min(max(geometry.maximum_transfer, preferred), MAXIMUM_PAYLOAD),
    )


def option_reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    """Encode a reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def simple_reply(cookie: bytes, error: int = 0) -> bytes:
    """Encode a simple reply without data."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def error_chunk(cookie: bytes, error: int, text: bytes = b"") -> bytes:
    """Encode a structured reply that consists of one error chunk."""
    fixed = 6
    return (
        ERROR_CHUNK.pack(
            STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.ERROR, cookie, fixed + len(text), error, len(text)
        )
        + text
    )
