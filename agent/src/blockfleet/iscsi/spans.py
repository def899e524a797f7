# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of integers kept as intervals: which bytes, or which sequence numbers, have come."""

from __future__ import annotations

from bisect import bisect_left

MAXIMUM_SPANS = 4096
"""Intervals that one set holds; a peer that leaves more holes than that is refused."""


class Spans:
    """Disjoint half-open intervals of integers, in order, none touching the next."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> bool:
        """Add ``start <= n < end``; False, and no change, where some of it is there or the set is too ragged."""
        if start >= end:
            return True
        starts, ends = self._starts, self._ends
        at = bisect_left(starts, start)
        if (at < len(starts) and starts[at] < end) or (at and ends[at - 1] > start):
            return False
        joins_before = at > 0 and ends[at - 1] == start
        joins_after = at < len(starts) and starts[at] == end
        if joins_before and joins_after:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_before:
            ends[at - 1] = end
        elif joins_after:
            starts[at] = start
        elif len(starts) >= MAXIMUM_SPANS:
            return False
        else:
            starts.insert(at, start)
            ends.insert(at, end)
        return True

    def has(self, number: int) -> bool:
        """Whether ``number`` is in the set."""
        return self.reach(number) > number

    def reach(self, number: int) -> int:
        """Return the first number from ``number`` on that is not in the set."""
        at = bisect_left(self._starts, number + 1)
        return max(self._ends[at - 1], number) if at else number

    def holes(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the intervals of ``start <= n < end`` that are not in the set."""
        found = []
        at = start
        for begin, stop in zip(self._starts, self._ends, strict=True):
            if begin >= end:
                break
            if begin > at:
                found.append((at, begin))
            at = max(at, stop)
        if at < end:
            found.append((at, end))
        return found
