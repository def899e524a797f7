# SPDX-License-Identifier: GPL-3.0-or-later
"""The paths of one device: which of them carry I/O, and what that makes of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blockfleet.balance.policy import SELECTORS, Selector
from blockfleet.balance.service_time import ServiceTime
from blockfleet.model.desired import Policy
from blockfleet.multipath.events import DevicePhase, Event, EventKind
from blockfleet.multipath.path import RANKS, Path, PathPhase
from blockfleet.multipath.spread import Spread
from blockfleet.scsi.alua import AccessState

MAXIMUM_PATHS = 64

PATH_SELECTORS: dict[Policy, Callable[[], Selector[Any]]] = {
    **{Policy(policy.value): selector for policy, selector in SELECTORS.items()},
    Policy.SERVICE_TIME: ServiceTime,
}
"""What puts each policy to work on paths."""

_RESERVING = (Policy.FAIL_OVER_ONLY, Policy.WEIGHTED_PATH, Policy.ROUND_ROBIN_WITH_SUBSET)
"""Policies under which a path may take over what was another's, so that there is something to return."""

_WORKING = (PathPhase.ACTIVE, PathPhase.STANDBY)


class PathGroup:
    """Paths in order of preference, the policy over them, and the phases that follow."""

    __slots__ = ("paths", "phase", "selector", "serving", "spread")

    def __init__(self, spread: Spread) -> None:
        self.paths: list[Path] = []
        self.phase = DevicePhase.QUEUEING
        self.spread = spread
        self.selector: Selector[Path] = PATH_SELECTORS[spread.policy]()
        self.serving = False
        """Whether there is a path that can be expected to serve the unit."""

    @property
    def is_whole(self) -> bool:
        """Whether no path that is up is cut back or in doubt."""
        return all(path.limit == path.maximum and not path.doubtful for path in self.paths if path.up)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight."""
        return not any(path.in_flight for path in self.paths)

    def add(self, path: Path) -> None:
        """Take a path.  Raises :class:`ValueError` beyond MAXIMUM_PATHS."""
        if len(self.paths) >= MAXIMUM_PATHS:
            raise ValueError(f"a device has at most {MAXIMUM_PATHS} paths")
        path.take_role(self.spread.role_of(path.session))
        self.paths.append(path)

    def set_spread(self, spread: Spread) -> None:
        """Spread I/O in another way, with no regard to which paths carry it now; :meth:`update` has to follow."""
        self.spread = spread
        self.selector = PATH_SELECTORS[spread.policy]()
        for path in self.paths:
            path.take_role(spread.role_of(path.session))
            path.displaced = False

    def update(self, cause: str) -> list[Event]:
        """Work out the phases after anything about a path changed; returns what there is to tell.

        The candidates are the usable paths of the best access state: the primary first, then those that the target
        prefers.
        """
        usable = [path for path in self.paths if path.usable]
        best = min((path.rank for path in usable), default=0)
        candidates = [path for path in usable if path.rank == best]
        candidates.sort(key=lambda path: (not path.primary, not path.preferred))
        if not self.spread.failback:
            candidates = self._without_displaced(candidates)
        self.selector.update(candidates)
        self.serving = best <= RANKS[AccessState.STANDBY] and any(not path.doubtful for path in candidates)
        events: list[Event] = []
        for path in self.paths:
            before, path.phase = path.phase, self._phase_of(path, candidates)
            if path.phase is not before:
                if path.phase is PathPhase.ACTIVE:
                    path.displaced = False
                elif path.phase not in _WORKING and before in _WORKING:
                    path.displaced = True
                events.append(Event(EventKind.PATH, path, before=before, cause=cause))
        before_phase, self.phase = self.phase, self._own_phase()
        if self.phase is not before_phase:
            events.append(Event(EventKind.PHASE, phase=self.phase, cause=cause))
        return events

    def _without_displaced(self, candidates: list[Path]) -> list[Path]:
        """Leave out paths that were lost and are back, while what took over from them works."""
        if self.spread.policy not in _RESERVING:
            return candidates
        current = [path for path in candidates if path.phase is PathPhase.ACTIVE]
        ordinary = self.spread.policy is Policy.ROUND_ROBIN_WITH_SUBSET and not all(p.standby for p in current)
        if not current or ordinary:
            return candidates
        return [path for path in candidates if path in current or not path.displaced]

    def _phase_of(self, path: Path, candidates: list[Path]) -> PathPhase:
        if path.mismatch:
            return PathPhase.MISMATCH
        if path.unfenced:
            return PathPhase.FENCING
        if not path.up:
            return PathPhase.FAILED
        active = path in candidates and self.selector.is_active(path)
        return PathPhase.ACTIVE if active else PathPhase.STANDBY

    def _own_phase(self) -> DevicePhase:
        if self.serving:
            whole = all(path.phase in _WORKING for path in self.paths)
            return DevicePhase.ONLINE if whole else DevicePhase.DEGRADED
        if self.phase is DevicePhase.FAILED:
            return DevicePhase.FAILED
        # a check takes milliseconds and is no outage; the device's queue timer runs all the same
        checking = any(path.checking and path.up for path in self.paths)
        return self.phase if checking else DevicePhase.QUEUEING
