# SPDX-License-Identifier: GPL-3.0-or-later
"""iSCSI names: the iqn., eui. and naa. forms, checked and normalised (RFC 3720 3.2.6, RFC 3722, 3980)."""

from __future__ import annotations

import re
import stringprep
import unicodedata

MAXIMUM_LENGTH = 223
"""Bytes of UTF-8 in a name (RFC 3720 3.2.6.1)."""

_IQN = re.compile(
    r"iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:.+)?"
)
_EUI = re.compile(r"eui\.[0-9a-f]{16}")
_NAA = re.compile(r"naa\.([0-9a-f]{16}|[0-9a-f]{32})")
_ASCII_PUNCTUATION = frozenset("-.:")


class InvalidName(ValueError):
    """The text is not an iSCSI name; the message names the text and the fault."""


def normalise(text: str) -> str:
    """Return the canonical form of an iSCSI name: mapped to lower case and NFKC (RFC 3722).

    Raises :class:`InvalidName` for anything that RFC 3720 3.2.6 and RFC 3722 do not allow, so that a name
    from a peer can never carry a path, a control character or a line break.
    """
    if not text.isascii():
        text = _prepared(text)
    name = text.lower()
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    if len(name.encode()) > MAXIMUM_LENGTH:
        raise InvalidName(f"iSCSI name {shown} is longer than {MAXIMUM_LENGTH} bytes")
    for char in name:
        if char.isascii() and not (char.isalnum() or char in _ASCII_PUNCTUATION):
            raise InvalidName(f"iSCSI name {shown} has the character {char!r}, which RFC 3722 forbids")
    if not (_IQN.fullmatch(name) or _EUI.fullmatch(name) or _NAA.fullmatch(name)):
        raise InvalidName(
            f"{shown} is not an iSCSI name: write iqn.YYYY-MM.reversed.domain[:text],"
            " eui. and 16 hexadecimal digits, or naa. and 16 or 32"
        )
    return name


def _prepared(text: str) -> str:
    """Apply the mapping, normalisation and prohibition tables of RFC 3722 to text beyond ASCII."""
    mapped = "".join(stringprep.map_table_b2(c) for c in text if not stringprep.in_table_b1(c))
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for char in prepared:
        if (
            stringprep.in_table_c11_c12(char)
            or stringprep.in_table_c21_c22(char)
            or stringprep.in_table_c3(char)
            or stringprep.in_table_c4(char)
            or stringprep.in_table_c5(char)
            or stringprep.in_table_c6(char)
            or stringprep.in_table_c7(char)
            or stringprep.in_table_c8(char)
            or stringprep.in_table_c9(char)
            or stringprep.in_table_a1(char)
            or char == "\u3002"
        ):
            raise InvalidName(f"iSCSI name {text[:80]!r} has the character {char!r}, which RFC 3722 forbids")
    return prepared
