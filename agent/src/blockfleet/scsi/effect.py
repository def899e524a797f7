# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command does to the medium: whether it may be repeated, and which blocks it touches.

A retry after an unknown outcome depends on nothing else: see :class:`~blockfleet.scsi.command.Outcome`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from blockfleet.scsi.cdb import Opcode


class Effect(enum.IntEnum):
    """What is left behind when a command runs once more than its sender thinks."""

    NONE = 0
    """Nothing: reads, inquiries, cache flushes.  May be repeated at any time."""
    OVERWRITE = 1
    """The same blocks with the same contents: may be repeated, but only while no other copy can still run."""
    OTHER = 2
    """Something else, or not known: must not be repeated."""


Extent = tuple[int, int]
"""First logical block and the one behind the last; equal where no block is touched."""

NOWHERE: Extent = (0, 0)
EVERYWHERE: Extent = (0, 1 << 64)

_Buffer = bytes | bytearray | memoryview


def _number(cdb: _Buffer, start: int, length: int) -> int:
    return int.from_bytes(cdb[start : start + length], "big")


def _blocks_6(cdb: _Buffer, _out: _Buffer) -> Extent:
    lba = _number(cdb, 1, 3) & 0x1FFFFF
    return lba, lba + (cdb[4] or 256)


def _blocks_10(cdb: _Buffer, _out: _Buffer) -> Extent:
    lba = _number(cdb, 2, 4)
    return lba, lba + _number(cdb, 7, 2)


def _blocks_12(cdb: _Buffer, _out: _Buffer) -> Extent:
    lba = _number(cdb, 2, 4)
    return lba, lba + _number(cdb, 6, 4)


def _blocks_16(cdb: _Buffer, _out: _Buffer) -> Extent:
    lba = _number(cdb, 2, 8)
    return lba, lba + _number(cdb, 10, 4)


def _atomic_16(cdb: _Buffer, _out: _Buffer) -> Extent:
    lba = _number(cdb, 2, 8)
    return lba, lba + _number(cdb, 12, 2)


def _compare_and_write(cdb: _Buffer, _out: _Buffer) -> Extent:
    lba = _number(cdb, 2, 8)
    return lba, lba + cdb[13]


def _same_10(cdb: _Buffer, out: _Buffer) -> Extent:
    start, end = _blocks_10(cdb, out)
    return (start, end) if end > start else (start, EVERYWHERE[1])


def _same_16(cdb: _Buffer, out: _Buffer) -> Extent:
    start, end = _blocks_16(cdb, out)
    return (start, end) if end > start else (start, EVERYWHERE[1])


def _unmap(_cdb: _Buffer, out: _Buffer) -> Extent:
    end = min(len(out), 8 + _number(out, 2, 2))
    start, stop = EVERYWHERE[1], 0
    for at in range(8, end - 15, 16):
        lba, blocks = _number(out, at, 8), _number(out, at + 8, 4)
        if blocks:
            start, stop = min(start, lba), max(stop, lba + blocks)
    return (start, stop) if stop else NOWHERE


def _nowhere(_cdb: _Buffer, _out: _Buffer) -> Extent:
    return NOWHERE


def _everywhere(_cdb: _Buffer, _out: _Buffer) -> Extent:
    return EVERYWHERE


_Rule = tuple[Effect, Callable[[_Buffer, _Buffer], Extent]]

_RULES: dict[int, _Rule] = {
    Opcode.TEST_UNIT_READY: (Effect.NONE, _nowhere),
    Opcode.REQUEST_SENSE: (Effect.NONE, _nowhere),
    Opcode.INQUIRY: (Effect.NONE, _nowhere),
    Opcode.MODE_SENSE_6: (Effect.NONE, _nowhere),
    Opcode.MODE_SENSE_10: (Effect.NONE, _nowhere),
    Opcode.LOG_SENSE: (Effect.NONE, _nowhere),
    Opcode.READ_CAPACITY_10: (Effect.NONE, _nowhere),
    Opcode.SERVICE_ACTION_IN_16: (Effect.NONE, _nowhere),
    Opcode.REPORT_LUNS: (Effect.NONE, _nowhere),
    Opcode.MAINTENANCE_IN: (Effect.NONE, _nowhere),
    Opcode.PERSISTENT_RESERVE_IN: (Effect.NONE, _nowhere),
    Opcode.RECEIVE_COPY_RESULTS: (Effect.NONE, _nowhere),
    Opcode.SYNCHRONIZE_CACHE_10: (Effect.NONE, _nowhere),
    Opcode.SYNCHRONIZE_CACHE_16: (Effect.NONE, _nowhere),
    Opcode.PRE_FETCH_10: (Effect.NONE, _nowhere),
    Opcode.PRE_FETCH_16: (Effect.NONE, _nowhere),
    Opcode.READ_6: (Effect.NONE, _blocks_6),
    Opcode.READ_10: (Effect.NONE, _blocks_10),
    Opcode.READ_12: (Effect.NONE, _blocks_12),
    Opcode.READ_16: (Effect.NONE, _blocks_16),
    Opcode.VERIFY_10: (Effect.NONE, _blocks_10),
    Opcode.VERIFY_12: (Effect.NONE, _blocks_12),
    Opcode.VERIFY_16: (Effect.NONE, _blocks_16),
    Opcode.WRITE_6: (Effect.OVERWRITE, _blocks_6),
    Opcode.WRITE_10: (Effect.OVERWRITE, _blocks_10),
    Opcode.WRITE_12: (Effect.OVERWRITE, _blocks_12),
    Opcode.WRITE_16: (Effect.OVERWRITE, _blocks_16),
    Opcode.WRITE_ATOMIC_16: (Effect.OVERWRITE, _atomic_16),
    Opcode.WRITE_AND_VERIFY_10: (Effect.OVERWRITE, _blocks_10),
    Opcode.WRITE_AND_VERIFY_12: (Effect.OVERWRITE, _blocks_12),
    Opcode.WRITE_AND_VERIFY_16: (Effect.OVERWRITE, _blocks_16),
    Opcode.WRITE_SAME_10: (Effect.OVERWRITE, _same_10),
    Opcode.WRITE_SAME_16: (Effect.OVERWRITE, _same_16),
    Opcode.UNMAP: (Effect.OVERWRITE, _unmap),
    Opcode.COMPARE_AND_WRITE: (Effect.OTHER, _compare_and_write),
    Opcode.ORWRITE_16: (Effect.OTHER, _blocks_16),
    Opcode.XDWRITEREAD_10: (Effect.OTHER, _blocks_10),
    Opcode.PERSISTENT_RESERVE_OUT: (Effect.OTHER, _nowhere),
}
_UNLISTED: _Rule = (Effect.OTHER, _everywhere)


def effect_of(cdb: bytes) -> Effect:
    """Return what the command in ``cdb`` leaves behind; unlisted operation codes are OTHER."""
    return _RULES.get(cdb[0], _UNLISTED)[0]


def extent_of(cdb: bytes, data_out: bytes | bytearray | memoryview | None = None) -> Extent:
    """Return the blocks that a command reads or writes; an UNMAP's is the hull of its descriptors."""
    return _RULES.get(cdb[0], _UNLISTED)[1](cdb, data_out or b"")
