# SPDX-License-Identifier: GPL-3.0-or-later
"""Logical unit numbers: the 64-bit structure and its addressing methods (SAM-5 4.7), and REPORT LUNS data."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

MAXIMUM_LUNS = 2048
"""Logical units that one REPORT LUNS answer is read for; the rest is left out."""

REPORT_LUNS_ALLOCATION = 8 + 8 * MAXIMUM_LUNS

WELL_KNOWN_REPORT_LUNS = 0xC101 << 48
"""The REPORT LUNS well known logical unit: answers where LUN 0 does not exist."""

_HEADER = struct.Struct(">I4x")
_ENTRY = struct.Struct(">Q")


class Form(enum.StrEnum):
    """Addressing methods of the first level."""

    PERIPHERAL = "peripheral"
    FLAT = "flat"
    LOGICAL_UNIT = "logical unit"
    EXTENDED = "extended flat"
    WELL_KNOWN = "well known"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Lun:
    """A decoded LUN structure; ``number`` is ``None`` for what has no plain number (hierarchy, W-LUN)."""

    form: Form
    number: int | None


def encode(number: int) -> int:
    """Return the LUN structure of a plain number: peripheral below 256, flat below 16384, else extended flat.

    Raises :class:`ValueError` beyond 24 bits.
    """
    if number < 0 or number >= 1 << 24:
        raise ValueError(f"LUN {number} is not in 0..{(1 << 24) - 1}")
    if number < 256:
        return number << 48
    if number < 16384:
        return (0x4000 | number) << 48
    return (0xD2 << 56) | (number << 32)


def decode(lun: int) -> Lun:
    """Tell the addressing method of a LUN structure, and its number where it has one."""
    first = lun >> 48
    method = first >> 14
    single = not lun & 0xFFFFFFFFFFFF
    if method == 0:
        plain = single and not first & 0x3F00
        return Lun(Form.PERIPHERAL, first & 0xFF if plain else None)
    if method == 1:
        return Lun(Form.FLAT, first & 0x3FFF if single else None)
    if method == 2:
        return Lun(Form.LOGICAL_UNIT, None)
    if first >> 8 == 0xC1:
        return Lun(Form.WELL_KNOWN, None)
    if first >> 8 == 0xD2 and not lun & 0xFFFFFFFF:
        return Lun(Form.EXTENDED, (lun >> 32) & 0xFFFFFF)
    return Lun(Form.OTHER, None)


def describe(lun: int) -> str:
    """Return the LUN as people write it: its number, or the whole structure in hexadecimal."""
    number = decode(lun).number
    return f"LUN {number}" if number is not None else f"LUN {lun:#018x}"


def parse_report_luns(data: bytes) -> tuple[int, ...]:
    """Return the LUN structures of REPORT LUNS parameter data, in order, each once.

    Reads what is there: at most MAXIMUM_LUNS, at most what the header announces, at most what was received.
    """
    if len(data) < _HEADER.size:
        return ()
    (announced,) = _HEADER.unpack_from(data)
    count = min(announced, len(data) - _HEADER.size) // _ENTRY.size
    end = _HEADER.size + min(count, MAXIMUM_LUNS) * _ENTRY.size
    return tuple(dict.fromkeys(lun for (lun,) in _ENTRY.iter_unpack(data[_HEADER.size : end])))
