# SPDX-License-Identifier: GPL-3.0-or-later
"""How requests to a disk are cut: what its profile allows, in logical blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blockfleet.block.profile import UnitProfile

TRANSFER_LIMIT = 1 << 20
"""Bytes of one READ or WRITE where the unit reports no limit, and of one at most."""
REQUEST_LIMIT = 32 << 20
"""Bytes of one request that a disk takes."""
COUNT_10 = 0xFFFF
"""Blocks that a 10-byte command can count."""
COUNT_16 = 0xFFFFFFFF
WRITE_SAME_LIMIT = 0xFFFF
"""Blocks of one WRITE SAME where the unit reports no limit."""
PREFERRED = 4096
"""Bytes that requests had better be multiples of, where the unit has no wish of its own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one disk; counts are logical blocks."""

    transfer: int
    write_same: int
    unmap: int
    """0 where UNMAP is not to be used."""
    unmap_granularity: int
    unmap_alignment: int
    preferred: int
    """Bytes."""


def limits_of(profile: UnitProfile) -> Limits:
    """Return the limits that follow from a profile."""
    reported = profile.limits
    transfer = min(TRANSFER_LIMIT // profile.block_size, COUNT_10)
    if reported.maximum_transfer:
        transfer = min(transfer, reported.maximum_transfer)
    granularity = reported.optimal_granularity * profile.block_size
    preferred = max(PREFERRED, profile.physical_block_size, granularity)
    can_unmap = profile.thin and profile.provisioning.unmap and reported.maximum_unmap_descriptors
    return Limits(
        transfer=max(transfer, 1),
        write_same=min(reported.maximum_write_same or WRITE_SAME_LIMIT, COUNT_16),
        unmap=min(reported.maximum_unmap_blocks, COUNT_16) if can_unmap else 0,
        unmap_granularity=max(reported.unmap_granularity, 1),
        unmap_alignment=reported.unmap_alignment,
        preferred=preferred if not preferred & (preferred - 1) else PREFERRED,
    )


def pieces(first: int, count: int, at_most: int) -> Iterator[tuple[int, int]]:
    """Cut ``count`` blocks from ``first`` into runs of ``at_most``."""
    end = first + count
    while first < end:
        run = min(at_most, end - first)
        yield first, run
        first += run


def whole_units(first: int, count: int, limits: Limits) -> tuple[int, int]:
    """Shrink a range to whole deallocation units (SBC-3 4.7.3.4); the count may become 0."""
    unit, offset = limits.unmap_granularity, limits.unmap_alignment % limits.unmap_granularity
    if unit == 1:
        return first, count
    start = first + (offset - first) % unit
    end = first + count - (first + count - offset) % unit
    return start, max(end - start, 0)
