# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks on the block ranges of writes whose outcome is not known yet.

A write that may have run, may run or may still run ("unknown") locks its blocks.  While a lock is **unfenced**,
nothing may touch them: the old copy may still reach the medium at any moment.  Once fenced, the write may be
sent again, and until it is done its lock still keeps everything later out: a reader could have seen the first
copy, and a later write that is acknowledged must not be overtaken by the second.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from blockfleet.multipath.path import Path
from blockfleet.scsi.command import ScsiCommand
from blockfleet.scsi.effect import Extent

FENCE_BACK_OFF = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds until a fence that failed is asked for again."""


class RangeLock:
    """A locked range of blocks, its owner, and the commands that wait for it."""

    __slots__ = ("command", "end", "order", "path", "start", "waiters")

    def __init__(self, extent: Extent, order: int, command: ScsiCommand) -> None:
        self.start, self.end = extent
        self.order = order
        """Locks wait only for locks of a lower order, or unfenced ones: so they cannot wait in a circle."""
        self.command: ScsiCommand | None = command
        """The write; ``None`` when it was failed to its sender while not fenced."""
        self.path: Path | None = None
        """The path that has to be fenced; ``None`` once it is."""
        self.waiters: list[ScsiCommand] = []


_start = attrgetter("start")


class RangeLocks:
    """All locks of a device, found by range.

    Kept sorted by first block; the longest range there has been since the table was empty bounds how far back
    a look has to start.
    """

    __slots__ = ("_locks", "_longest", "_orders")

    def __init__(self) -> None:
        self._locks: list[RangeLock] = []
        self._longest = 0
        self._orders = 0

    def __len__(self) -> int:
        return len(self._locks)

    def __iter__(self) -> Iterator[RangeLock]:
        return iter(self._locks)

    def add(self, extent: Extent, command: ScsiCommand) -> RangeLock:
        """Lock a range for ``command``; ranges may overlap."""
        self._orders += 1
        lock = RangeLock(extent, self._orders, command)
        insort(self._locks, lock, key=_start)
        self._longest = max(self._longest, lock.end - lock.start)
        return lock

    def remove(self, lock: RangeLock) -> None:
        """Give a range free; its waiters are the caller's business."""
        at = bisect_left(self._locks, lock.start, key=_start)
        while self._locks[at] is not lock:
            at += 1
        del self._locks[at]
        if not self._locks:
            self._longest = 0

    def blocking(self, extent: Extent, own: RangeLock | None = None) -> RangeLock | None:
        """Return a lock that keeps a command on ``extent`` from being sent, ``None`` when it may go.

        ``own`` is the lock that the command itself holds: it waits for older locks and for unfenced ones.
        """
        start, end = extent
        if start >= end:
            return None
        locks = self._locks
        for at in range(bisect_left(locks, start - self._longest, key=_start), len(locks)):
            lock = locks[at]
            if lock.start >= end:
                break
            if lock is own or lock.end <= start:
                continue
            if lock.path is not None or own is None or lock.order < own.order:
                return lock
        return None


class Fences:
    """Paths that have to be fenced, what is locked for them, and how long anybody waits for it.

    A path that was removed from its device stays here until it is fenced.
    """

    __slots__ = ("_until", "locks")

    def __init__(self) -> None:
        self.locks = RangeLocks()
        self._until: dict[Path, float] = {}
        """When patience with a path's fence ends; 0 once it has."""

    def __bool__(self) -> bool:
        return bool(self._until)

    def __contains__(self, path: Path) -> bool:
        return path in self._until

    def demand(self, lock: RangeLock, path: Path, until: float) -> bool:
        """Make ``lock`` wait for a fence of ``path``, with patience ``until`` then; tells if it is the first."""
        self._until[path] = self._until.get(path) or until
        lock.path = path
        path.unfenced += 1
        return path.unfenced == 1

    def failed(self, path: Path, now: float) -> None:
        """Take note that an attempt to fence ``path`` failed: it is due again after a pause."""
        path.fence_attempts += 1
        pause = FENCE_BACK_OFF[min(path.fence_attempts, len(FENCE_BACK_OFF)) - 1]
        path.fence_at = now + pause

    def done(self, path: Path) -> list[ScsiCommand]:
        """Take note that ``path`` is fenced; returns the commands to look at again, in order."""
        del self._until[path]
        path.unfenced = path.fence_attempts = 0
        path.fence_at = 0.0
        freed: list[ScsiCommand] = []
        for lock in self.of(path):
            lock.path = None
            if lock.command is None:
                self.locks.remove(lock)
            else:
                freed.append(lock.command)
            freed.extend(lock.waiters)
            lock.waiters = []
        return freed

    def of(self, path: Path) -> list[RangeLock]:
        """Return the locks that wait for the fence of ``path``."""
        return [lock for lock in self.locks if lock.path is path]

    def is_hopeless(self, lock: RangeLock) -> bool:
        """Tell whether nobody waits for this lock any more."""
        return lock.path is not None and not self._until[lock.path]

    def times(self) -> list[float]:
        """Return when something is due."""
        return [at for at in self._until.values() if at] + [path.fence_at for path in self._until if path.fence_at]

    def due(self, now: float) -> list[Path]:
        """Return the paths whose fence has to be asked for again."""
        paths = [path for path in self._until if path.fence_at and path.fence_at <= now]
        for path in paths:
            path.fence_at = 0.0
        return paths

    def overdue(self, now: float) -> list[Path]:
        """Return the paths that patience with has just ended."""
        paths = [path for path, until in self._until.items() if until and until <= now]
        for path in paths:
            self._until[path] = 0.0
        return paths
