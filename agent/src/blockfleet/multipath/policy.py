# SPDX-License-Identifier: GPL-3.0-or-later
"""How I/O is spread over paths (Microsoft guide, "Load Balance Policies").

A policy is given the candidates, the usable paths of the best access state in order of preference, whenever
they change; per command it only picks one of them that has room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from blockfleet.model.desired import Policy
from blockfleet.multipath.path import Path


class Selector(Protocol):
    """A policy at work."""

    def update(self, candidates: Sequence[Path]) -> None:
        """Take the paths to choose from, best first."""

    def select(self) -> Path | None:
        """Return a candidate with room for one more command, ``None`` when all are full.  The hot path."""

    def is_active(self, path: Path) -> bool:
        """Tell whether the policy sends I/O to this candidate, or holds it in reserve."""


class FailOverOnly:
    """One path carries everything; the others wait for it to fail, and give way when it is back."""

    __slots__ = ("_path",)

    def __init__(self) -> None:
        self._path: Path | None = None

    def update(self, candidates: Sequence[Path]) -> None:
        """Take the best candidate."""
        self._path = candidates[0] if candidates else None

    def select(self) -> Path | None:
        """Return the one path, if it has room."""
        path = self._path
        return path if path is not None and path.in_flight < path.limit else None

    def is_active(self, path: Path) -> bool:
        """Only the one path is."""
        return path is self._path


class RoundRobin:
    """All candidates in turn; one that is full is passed over."""

    __slots__ = ("_last", "_paths")

    def __init__(self) -> None:
        self._paths: tuple[Path, ...] = ()
        self._last = -1

    def update(self, candidates: Sequence[Path]) -> None:
        """Take all candidates."""
        self._paths = tuple(candidates)
        self._last = -1

    def select(self) -> Path | None:
        """Return the next path in turn that has room."""
        paths = self._paths
        turn = self._last
        for _ in paths:
            turn += 1
            if turn >= len(paths):
                turn = 0
            path = paths[turn]
            if path.in_flight < path.limit:
                self._last = turn
                return path
        return None

    def is_active(self, path: Path) -> bool:
        """All candidates are."""
        return path in self._paths


SELECTORS: dict[Policy, Callable[[], Selector]] = {
    Policy.FAIL_OVER_ONLY: FailOverOnly,
    Policy.ROUND_ROBIN: RoundRobin,
}
