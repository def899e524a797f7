# SPDX-License-Identifier: GPL-3.0-or-later
"""Hides what a trace of a login should not show: the CHAP response, from which a weak secret can be guessed."""

from __future__ import annotations

from blockfleet.iscsi.constants import BHS_LENGTH, OPCODE_MASK, LoginFlag, Opcode
from blockfleet.iscsi.layout import LENGTHS, LENGTHS_OFFSET, split_lengths

HIDDEN = (b"CHAP_R=",)
"""Keys whose values are replaced (RFC 3720 11.1.4); names and challenges stay."""

MASK = b"*"

_LONGEST = max(map(len, HIDDEN))
_LOGIN = frozenset({Opcode.LOGIN_REQUEST, Opcode.LOGIN_RESPONSE})


class LoginMask:
    """Masks the login PDUs of one direction of a connection; lengths stay as they are.

    A pair may go on in the next PDU where C is set (RFC 3720 10.12.2), so that the mask remembers how it began.
    """

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = b""

    def __call__(self, pdu: bytes) -> bytes:
        """Return a PDU with the values of :data:`HIDDEN` masked; what is no login PDU comes back as it is."""
        if len(pdu) < BHS_LENGTH or pdu[0] & OPCODE_MASK not in _LOGIN:
            return pdu
        ahs_length, length = split_lengths(LENGTHS.unpack_from(pdu, LENGTHS_OFFSET)[0])
        start = BHS_LENGTH + ahs_length
        pairs = pdu[start : start + length].split(b"\0")
        pairs[0], begun = self._mask(pairs[0], self._begun)
        for index in range(1, len(pairs)):
            pairs[index], begun = self._mask(pairs[index], b"")
        self._begun = begun if pdu[1] & LoginFlag.CONTINUE else b""
        return pdu[:start] + b"\0".join(pairs) + pdu[start + length :]

    @staticmethod
    def _mask(piece: bytes, begun: bytes) -> tuple[bytes, bytes]:
        """Return a piece of a pair masked, and as much of the pair as tells its key."""
        pair = begun + piece
        for key in HIDDEN:
            if pair.startswith(key):
                shown = max(len(key) - len(begun), 0)
                piece = piece[:shown] + MASK * (len(piece) - shown)
        return piece, pair[:_LONGEST]
