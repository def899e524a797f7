# SPDX-License-Identifier: GPL-3.0-or-later
"""The five load balance policies (Microsoft guide, "Load Balance Policies"), over lanes of any kind.

A policy is given the candidates, the lanes that can be used now in order of preference, whenever they change; per
command it only picks one of them that has room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from blockfleet.model.load_balance import LoadBalancePolicy

__all__ = [
    "SELECTORS",
    "FailOverOnly",
    "Lane",
    "LeastQueueDepth",
    "LoadBalancePolicy",
    "RoundRobin",
    "RoundRobinWithSubset",
    "Selector",
    "WeightedPath",
]


class Lane(Protocol):
    """One way for I/O: it has room while ``in_flight`` is below ``limit``, in commands.

    ``weight`` and ``standby`` are what the administrator gave it: the lightest is used first by the weighted path,
    standby ones are held in reserve by fail over only and by round robin with a subset.
    """

    @property
    def in_flight(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def weight(self) -> int: ...
    @property
    def standby(self) -> bool: ...


L = TypeVar("L", bound=Lane)


class Selector(Protocol[L]):
    """A policy at work."""

    def update(self, candidates: Sequence[L]) -> None:
        """Take the lanes to choose from, best first."""

    def select(self) -> L | None:
        """Return a candidate with room for one more command, ``None`` when there is none.  The hot path."""

    def is_active(self, lane: L) -> bool:
        """Tell whether the policy sends I/O to this candidate, or holds it in reserve."""


class FailOverOnly(Generic[L]):
    """One lane carries everything; the others wait for it to fail, and give way when it is back."""

    __slots__ = ("_lane",)

    def __init__(self) -> None:
        self._lane: L | None = None

    def update(self, candidates: Sequence[L]) -> None:
        """Take the best candidate, one in standby only where there is no other."""
        self._lane = self._best(candidates) if candidates else None

    @staticmethod
    def _best(candidates: Sequence[L]) -> L:
        return next((lane for lane in candidates if not lane.standby), candidates[0])

    def select(self) -> L | None:
        """Return the one lane, if it has room."""
        lane = self._lane
        return lane if lane is not None and lane.in_flight < lane.limit else None

    def is_active(self, lane: L) -> bool:
        """Only the one lane is."""
        return lane is self._lane


class WeightedPath(FailOverOnly[L]):
    """The candidate of the lowest weight carries everything; of several, the one that is preferred."""

    __slots__ = ()

    @staticmethod
    def _best(candidates: Sequence[L]) -> L:
        return min(candidates, key=lambda lane: lane.weight)


class RoundRobin(Generic[L]):
    """All candidates in turn; one that is full is passed over."""

    __slots__ = ("_lanes", "_last")

    def __init__(self) -> None:
        self._lanes: tuple[L, ...] = ()
        self._last = -1

    def update(self, candidates: Sequence[L]) -> None:
        """Take all candidates."""
        self._lanes = tuple(candidates)
        self._last = -1

    def select(self) -> L | None:
        """Return the next lane in turn that has room."""
        lanes = self._lanes
        turn = self._last
        for _ in lanes:
            turn += 1
            if turn >= len(lanes):
                turn = 0
            lane = lanes[turn]
            if lane.in_flight < lane.limit:
                self._last = turn
                return lane
        return None

    def is_active(self, lane: L) -> bool:
        """All that take turns are."""
        return lane in self._lanes


class RoundRobinWithSubset(RoundRobin[L]):
    """The candidates that are not in standby, in turn; one of those in standby while there is no other."""

    __slots__ = ()

    def update(self, candidates: Sequence[L]) -> None:
        """Take the active candidates."""
        active = [lane for lane in candidates if not lane.standby]
        super().update(active or candidates[:1])


class LeastQueueDepth(RoundRobin[L]):
    """The candidate with the fewest commands in flight; equals take turns."""

    __slots__ = ()

    def select(self) -> L | None:
        """Return the least busy lane that has room."""
        lanes = self._lanes
        best: L | None = None
        turn = self._last
        for _ in lanes:
            turn += 1
            if turn >= len(lanes):
                turn = 0
            lane = lanes[turn]
            if lane.in_flight < lane.limit and (best is None or lane.in_flight < best.in_flight):
                best = lane
                self._last = turn
        return best


SELECTORS: dict[LoadBalancePolicy, Callable[[], Selector[Any]]] = {
    LoadBalancePolicy.FAIL_OVER_ONLY: FailOverOnly,
    LoadBalancePolicy.ROUND_ROBIN: RoundRobin,
    LoadBalancePolicy.ROUND_ROBIN_WITH_SUBSET: RoundRobinWithSubset,
    LoadBalancePolicy.WEIGHTED_PATH: WeightedPath,
    LoadBalancePolicy.LEAST_QUEUE_DEPTH: LeastQueueDepth,
}
"""What puts each policy to work."""
