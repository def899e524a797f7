# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the next PDU begins after one whose header has a digest error (RFC 3720 6.7).

The header says how long its PDU is, and may say it wrong.  There are two guesses: the length in the header as it
was before a single byte of it was damaged, which the CRC tells, and the length as it stands there.  A guess is
believed only when a header with a good digest, an opcode of a target's and an allowed length stands where it leads.
The data are never searched for a header: they are the user's, and may hold the image of a PDU.
"""

from __future__ import annotations

import enum
import struct
from functools import cache

from crc32c import crc32c

from blockfleet.iscsi.constants import BHS_LENGTH, OPCODE_MASK, Opcode
from blockfleet.iscsi.digest import DIGEST_LENGTH
from blockfleet.iscsi.layout import LENGTHS, LENGTHS_OFFSET, padded_length

HEADER_ON_WIRE = BHS_LENGTH + DIGEST_LENGTH
"""Bytes of a target's header with its digest; a target sends no additional header segments."""

MAXIMUM_DAMAGED = 4
"""Damaged headers in a row that are stepped over."""

_OPCODES = frozenset(
    {
        Opcode.NOP_IN,
        Opcode.SCSI_RESPONSE,
        Opcode.TASK_MANAGEMENT_RESPONSE,
        Opcode.TEXT_RESPONSE,
        Opcode.SCSI_DATA_IN,
        Opcode.LOGOUT_RESPONSE,
        Opcode.R2T,
        Opcode.ASYNC_MESSAGE,
        Opcode.REJECT,
    }
)
"""What a target sends in full feature phase."""

_DIGEST = struct.Struct("<I")


class Search(enum.Enum):
    """How far the search for the next header has come."""

    FOUND = "there it is"
    MORE = "more bytes must come first"
    NONE = "no guess holds"


@cache
def _damages() -> dict[int, tuple[int, int]]:
    """Return what one damaged byte does to the digest: syndrome to (position, bits changed).

    A CRC is linear, so that the syndrome does not depend on the header.  Syndromes that two damages share are
    left out.
    """
    base = crc32c(bytes(BHS_LENGTH))
    found: dict[int, tuple[int, int]] = {}
    shared: set[int] = set()
    for position in range(HEADER_ON_WIRE):
        for bits in range(1, 256):
            if position < BHS_LENGTH:
                header = bytearray(BHS_LENGTH)
                header[position] = bits
                syndrome = crc32c(header) ^ base
            else:
                syndrome = bits << 8 * (position - BHS_LENGTH)
            if syndrome in found:
                shared.add(syndrome)
            found[syndrome] = (position, bits)
    for syndrome in shared:
        del found[syndrome]
    return found


def repaired(header: bytes) -> bytes | None:
    """Return the BHS in ``header`` (BHS and digest) as it was before one byte was damaged; None if more were.

    A header without damage comes back as it is.  More damage may look like that of one byte: what is returned is
    a hint, and no header to act on.
    """
    syndrome = crc32c(header[:BHS_LENGTH]) ^ _DIGEST.unpack_from(header, BHS_LENGTH)[0]
    bhs = bytearray(header[:BHS_LENGTH])
    if syndrome:
        damage = _damages().get(syndrome)
        if damage is None:
            return None
        position, bits = damage
        if position < BHS_LENGTH:
            bhs[position] ^= bits
    return bytes(bhs)


def following(
    stream: memoryview, at: int, end: int, *, maximum_segment: int, data_digest: bool
) -> tuple[Search, int]:
    """Look for the PDU after the damaged one at ``stream[at]``; the stream has come up to ``end``.

    Returns FOUND and where it begins, MORE and where the stream must reach at least, or NONE.
    """
    tail = DIGEST_LENGTH if data_digest else 0
    if end - at < HEADER_ON_WIRE:
        return Search.MORE, at + HEADER_ON_WIRE
    header = bytes(stream[at : at + HEADER_ON_WIRE])
    guesses: list[int] = []
    for bhs in (repaired(header), header):
        length = None if bhs is None else _length(bhs, maximum_segment, tail)
        if length is not None and at + length not in guesses:
            guesses.append(at + length)
    for guess in guesses:
        verdict = _follow(stream, guess, end, maximum_segment, tail)
        if verdict[0] is not Search.NONE:
            return verdict
    return Search.NONE, at


def _follow(stream: memoryview, at: int, end: int, maximum_segment: int, tail: int) -> tuple[Search, int]:
    """Step over headers with one damaged byte from ``at`` until there is a good one."""
    for _ in range(MAXIMUM_DAMAGED):
        if end - at < HEADER_ON_WIRE:
            return Search.MORE, at + HEADER_ON_WIRE
        header = bytes(stream[at : at + HEADER_ON_WIRE])
        bhs = repaired(header)
        length = (
            None if bhs is None or bhs[0] & OPCODE_MASK not in _OPCODES else _length(bhs, maximum_segment, tail)
        )
        if bhs is None or length is None:
            break
        if crc32c(header[:BHS_LENGTH]) == _DIGEST.unpack_from(header, BHS_LENGTH)[0]:
            return Search.FOUND, at
        at += length
    return Search.NONE, at


def _length(bhs: bytes, maximum_segment: int, tail: int) -> int | None:
    """Return the bytes of the PDU that this header begins; None where it says what it cannot."""
    lengths = LENGTHS.unpack_from(bhs, LENGTHS_OFFSET)[0]
    if lengths > maximum_segment:  # TotalAHSLength is the highest byte
        return None
    return HEADER_ON_WIRE + (padded_length(lengths) + tail if lengths else 0)
