# SPDX-License-Identifier: GPL-3.0-or-later
"""Cuts a copy of one direction of a connection into PDUs, for a trace; it answers nothing and corrects nothing."""

from __future__ import annotations

from collections.abc import Iterator

from blockfleet.iscsi.constants import BHS_LENGTH, OPCODE_MASK, Opcode
from blockfleet.iscsi.digest import DIGEST_LENGTH, matches
from blockfleet.iscsi.layout import LENGTHS, LENGTHS_OFFSET, padded_length, split_lengths
from blockfleet.iscsi.resync import Search, following

LOGIN_OPCODES = frozenset({Opcode.LOGIN_REQUEST, Opcode.LOGIN_RESPONSE})
"""PDUs that never carry digests, whatever is negotiated in them (RFC 3720 12.1)."""


class PduSplitter:
    """Holds the bytes of one direction until a PDU is whole.

    A PDU whose header digest is wrong ends where the next good one is found, as for whoever reads the stream in
    earnest.  What is held is bounded by that reader: it ends a connection whose PDU is too long or not found.
    """

    __slots__ = ("_held", "_login")

    def __init__(self) -> None:
        self._held = bytearray()
        self._login = True

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream."""
        self._held += data

    def take(self, header_digest: bool, data_digest: bool, maximum_segment: int) -> Iterator[bytes]:
        """Yield the PDUs that are whole, digests included; the arguments are those of the full feature phase."""
        held = self._held
        start = 0
        while len(held) - start >= BHS_LENGTH:
            self._login = self._login and held[start] & OPCODE_MASK in LOGIN_OPCODES
            if self._login:
                end = start + _length(held, start, False, False)
            else:
                end = self._end(start, header_digest, data_digest, maximum_segment)
            if end > len(held):
                break
            yield bytes(held[start:end])
            start = end
        del held[:start]

    def rest(self) -> bytes:
        """Return and forget what is not a whole PDU: the connection has ended in the middle of one."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _end(self, start: int, header_digest: bool, data_digest: bool, maximum_segment: int) -> int:
        """Return where the PDU at ``start`` ends; beyond what is held where that is not known yet."""
        held = self._held
        if header_digest:
            tail = start + BHS_LENGTH + split_lengths(LENGTHS.unpack_from(held, start + LENGTHS_OFFSET)[0])[0]
            if len(held) < tail + DIGEST_LENGTH:
                return tail + DIGEST_LENGTH
            with memoryview(held) as view:
                if not matches(view[start:tail], view[tail : tail + DIGEST_LENGTH]):
                    verdict, where = following(
                        view, start, len(held), maximum_segment=maximum_segment, data_digest=data_digest
                    )
                    return where if verdict is Search.FOUND else len(held) + 1
        return start + _length(held, start, header_digest, data_digest)


def _length(held: bytearray, start: int, header_digest: bool, data_digest: bool) -> int:
    ahs_length, data_length = split_lengths(LENGTHS.unpack_from(held, start + LENGTHS_OFFSET)[0])
    length = BHS_LENGTH + ahs_length + padded_length(data_length)
    if header_digest:
        length += DIGEST_LENGTH
    if data_digest and data_length:
        length += DIGEST_LENGTH
    return length
