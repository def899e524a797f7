# SPDX-License-Identifier: GPL-3.0-or-later
"""Serial number arithmetic on 32 bits (RFC 1982), as CmdSN and StatSN need it (RFC 3720 3.2.2)."""

from __future__ import annotations

MASK = 0xFFFFFFFF
HALF = 0x80000000


def after(a: int, b: int) -> bool:
    """Whether ``a`` comes after ``b``; a distance of exactly 2**31 counts as neither."""
    return 0 < ((a - b) & MASK) < HALF


def within(first: int, number: int, last: int) -> bool:
    """Whether ``number`` lies in the window ``first``..``last``, an empty one being ``last == first - 1``."""
    return ((number - first) & MASK) <= ((last - first) & MASK) < HALF


def add(a: int, b: int) -> int:
    """Return ``a + b`` modulo 2**32."""
    return (a + b) & MASK
