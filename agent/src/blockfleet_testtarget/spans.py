# SPDX-License-Identifier: GPL-3.0-or-later
"""Which bytes of a transfer are there, and which are missing."""

from __future__ import annotations


class Spans:
    """Disjoint byte ranges, half open, in ascending order."""

    __slots__ = ("_spans",)

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        """Count a range as being there; ranges that touch become one."""
        if start >= end:
            return
        spans = self._spans
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
            return
        apart = [span for span in spans if span[1] < start or span[0] > end]
        touching = [span for span in spans if span[1] >= start and span[0] <= end]
        whole = (min([start, *(span[0] for span in touching)]), max([end, *(span[1] for span in touching)]))
        self._spans = sorted([*apart, whole])

    def holes(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return what is missing of a range, in ascending order."""
        found: list[tuple[int, int]] = []
        for first, last in self._spans:
            if last <= start:
                continue
            if first >= end:
                break
            if first > start:
                found.append((start, first))
            start = last
        if start < end:
            found.append((start, end))
        return found
