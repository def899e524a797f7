# SPDX-License-Identifier: GPL-3.0-or-later
"""CRC32C header and data digests (RFC 3720 10.2.3, 12.1; check values in appendix B.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from crc32c import crc32c

from blockfleet.iscsi.layout import padding

DIGEST_LENGTH = 4

_WIRE = struct.Struct("<I")


def digest(segment: bytes | bytearray | memoryview) -> bytes:
    """Return the four digest bytes that follow ``segment``, least significant first as they go on the wire.

    For a header digest ``segment`` is BHS and AHS together, for a data digest data and padding.
    """
    return _WIRE.pack(crc32c(segment))


def digest_of(parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Return the digest of a segment that lies in several buffers, without joining them."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return _WIRE.pack(value)


def data_digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the data digest of unpadded ``data``, counting the zero padding that is sent after it."""
    value = crc32c(data)
    pad = padding(len(data))
    return _WIRE.pack(crc32c(pad, value) if pad else value)


def matches(segment: bytes | bytearray | memoryview, received: bytes | bytearray | memoryview) -> bool:
    """Tell whether ``received`` (four bytes off the wire) is the digest of ``segment``, padding included."""
    return _WIRE.pack(crc32c(segment)) == received
