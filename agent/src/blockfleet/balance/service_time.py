# SPDX-License-Identifier: GPL-3.0-or-later
"""Service time: each command goes where its answer is expected first, by how fast each lane has answered lately.

The Microsoft guide does not have it; the name is that of the path selector of Linux' dm-multipath, which is told
how fast each path is.  Here it is measured, without a clock: within one window of selections, the mean number of
commands in flight on a lane, divided by the answers that it gave, is proportional to the time that it takes for
one (Little's law; the length of the window is the same for all lanes and cancels out).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from blockfleet.balance.policy import Lane

WINDOW = 128
"""Selections after which the lanes are measured anew."""

FORGETTING = 0.5
"""How much of a measured difference is gone after a window in which a lane was not used: so it is tried again."""

NOISE = 1.25
"""A lane whose cost is not higher counts as fast as the fastest one."""


class CountingLane(Lane, Protocol):
    """A lane that counts the commands that it has answered."""

    @property
    def completed(self) -> int: ...


C = TypeVar("C", bound=CountingLane)


class _Figure(Generic[C]):
    """What is known of one lane; ``cost`` is its time for a command as a multiple of the fastest lane's."""

    __slots__ = ("completed", "cost", "lane", "queued")

    def __init__(self, lane: C, cost: float) -> None:
        self.lane = lane
        self.cost = cost
        self.begin()

    def begin(self) -> None:
        """Begin a window."""
        self.completed = self.lane.completed
        self.queued = 0

    def settle(self, cost: float) -> None:
        """Take what was measured."""
        self.cost = cost if cost > NOISE else 1.0


class ServiceTime(Generic[C]):
    """The lane that is expected to answer first; equals take turns.

    With one command at a time all lanes look equal, as under round robin.
    """

    __slots__ = ("_figures", "_last", "_left")

    def __init__(self) -> None:
        self._figures: tuple[_Figure[C], ...] = ()
        self._last = -1
        self._left = WINDOW

    def update(self, candidates: Sequence[C]) -> None:
        """Take all candidates; what is known of those that stay is kept, new ones count as fast."""
        costs = {id(figure.lane): figure.cost for figure in self._figures}
        self._figures = tuple(_Figure(lane, costs.get(id(lane), 1.0)) for lane in candidates)
        self._last = -1
        self._left = WINDOW

    def select(self) -> C | None:
        """Return the lane with room whose queue and speed promise the earliest answer."""
        figures = self._figures
        turn = self._last
        best: C | None = None
        least = 0.0
        for _ in figures:
            turn += 1
            if turn >= len(figures):
                turn = 0
            figure = figures[turn]
            lane = figure.lane
            queued = lane.in_flight
            figure.queued += queued
            expected = (queued + 1) * figure.cost
            if (best is None or expected < least) and queued < lane.limit:
                best, least = lane, expected
                self._last = turn
        self._left -= 1
        if self._left <= 0:
            self._measure()
        return best

    def is_active(self, lane: C) -> bool:
        """All candidates are."""
        return any(figure.lane is lane for figure in self._figures)

    def _measure(self) -> None:
        """Take the window's figures, halfway: one window may have been odd."""
        self._left = WINDOW
        measured: list[tuple[_Figure[C], float]] = []
        for figure in self._figures:
            answers = figure.lane.completed - figure.completed
            if answers or figure.queued:
                measured.append((figure, (figure.queued / WINDOW + 1) / max(answers, 0.5)))
            else:
                figure.settle(1.0 + (figure.cost - 1.0) * FORGETTING)
            figure.begin()
        fastest = min((cost for _, cost in measured), default=1.0)
        for figure, cost in measured:
            figure.settle((figure.cost + cost / fastest) / 2)
