# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical unit over its paths: choice of path, retry, fence and queue.

Sans I/O: everything happens inside calls; time and randomness are passed in.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Literal

from blockfleet.model.desired import Policy
from blockfleet.multipath.events import DevicePhase, Event, EventKind
from blockfleet.multipath.fence import Fences, RangeLock
from blockfleet.multipath.group import PathGroup
from blockfleet.multipath.path import INACCESSIBLE, Path, PathPhase
from blockfleet.multipath.recovery import (
    ACCESS_POLL,
    ATTENTION_LIMIT,
    LOSS_LIMIT,
    QUEUE_LIMIT,
    QUEUE_TIMEOUT,
    RESET_GRACE,
    RETRY_BUDGET,
    RETRY_LIMIT,
    Recovery,
    access_after,
    renew,
)
from blockfleet.multipath.spread import Spread
from blockfleet.scsi.alua import AccessState
from blockfleet.scsi.command import Outcome, ScsiCommand
from blockfleet.scsi.condition import Action, Attention, Disposition, classify
from blockfleet.scsi.effect import Effect, Extent, extent_of

_COMPLETE = int(Outcome.COMPLETE)


class MultipathDevice:
    """A :class:`~blockfleet.scsi.command.ScsiExecutor` over one or more paths to the same logical unit.

    The healthy case is short: a path from the policy, the command to its session, its end to the sender.  When
    anything is out of order (``_calm`` is false) every command goes the long way:

    * What was **not sent**, and what only reads, is sent again on any path at once.
    * A **write of unknown outcome** is held and its blocks are locked; the path gets no I/O and the owner is
      asked for a fence.  After :meth:`fence_done` the write is sent again and the blocks are free when it is
      done.  What must not be repeated (COMPARE AND WRITE, PERSISTENT RESERVE OUT) goes up as UNKNOWN; its
      blocks stay locked until the fence.
    * **Busy** targets are asked again with growing pauses within ``retry_budget`` seconds, and get fewer
      commands at a time; unit attentions are consumed and reported as RECHECK.
    * Without a path, commands wait, at most ``queue_limit`` of them and ``queue_timeout`` seconds; then they
      and all that follow fail (REFUSED) until a path is back.

    A path goes down at the first UNKNOWN or REFUSED; only :meth:`path_up` brings it back, after the owner's check.
    ``now`` returns monotonic seconds, ``random`` numbers in [0, 1).  :meth:`advance` is due at :meth:`deadline`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        now: Callable[[], float],
        random: Callable[[], float],
        on_event: Callable[[Event], None],
        queue_timeout: float = QUEUE_TIMEOUT,
        queue_limit: int = QUEUE_LIMIT,
        retry_budget: float = RETRY_BUDGET,
    ) -> None:
        self._now = now
        self._random = random
        self._emit = on_event
        self.queue_timeout = queue_timeout
        self._queue_limit = queue_limit
        self._retry_budget = retry_budget
        self._group = PathGroup(Spread(policy))
        # bound once: a bound method made per command would be an allocation per command
        self._select = self._group.selector.select
        self._on_done = self._done
        self._calm = False
        self._closed = False
        self._pumping = False
        self._suspensions = 0
        self._drains: list[tuple[float, Callable[[], None]]] = []
        self._ready: deque[ScsiCommand] = deque()
        self._later: list[tuple[float, int, ScsiCommand]] = []
        self._later_count = 0
        self._held = 0
        self._recoveries: dict[ScsiCommand, Recovery] = {}
        self._losing: list[Path] = []
        """Lost paths whose other commands have yet to come back: what they wrote is not locked before."""
        self._fences = Fences()
        self._locks = self._fences.locks
        self._queue_until: float | None = now() + queue_timeout
        self._poll_at: float | None = None
        self._told: float | None = None
        self._retries = 0
        self._fences_asked = 0
        self._refused = 0
        self._expired = 0
        self._actions: dict[Action, Callable[[ScsiCommand, Path, Recovery, Disposition], bool]] = {
            Action.RETRY: self._retry,
            Action.BACK_OFF: self._back_off,
            Action.ATTENTION: self._consume,
            Action.NOT_READY: self._not_ready,
            Action.LOST: self._unit_lost,
        }

    # --- the short way ------------------------------------------------------------------------------------

    def execute(self, command: ScsiCommand) -> None:
        """Send a command on a path, or hold it until there is one; see the class for what is retried."""
        if self._calm:
            path = self._select()
            if path is not None:
                command.outer_done = command.on_done
                command.on_done = self._on_done
                command.path = path
                command.lun = path.lun
                path.in_flight += 1
                path.execute(command)
                return
        self._admit(command)

    def _done(self, command: ScsiCommand) -> None:
        path: Path = command.path  # type: ignore[assignment]
        path.in_flight -= 1
        if command.outcome == _COMPLETE and not command.status:
            path.completed += 1
            if self._calm:
                done = command.outer_done
                command.on_done = done  # type: ignore[assignment]
                done(command)  # type: ignore[misc]
                return
            self._succeeded(command, path)
        else:
            self._settle(command, path)
        self._pump()

    # --- for the owner ------------------------------------------------------------------------------------

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths, in the order they were added: the order of preference among equals."""
        return tuple(self._group.paths)

    @property
    def phase(self) -> DevicePhase:
        """State of the device."""
        return self._group.phase

    @property
    def spread(self) -> Spread:
        """How I/O is spread."""
        return self._group.spread

    @property
    def counters(self) -> dict[str, int]:
        """What the device as a whole has done, and what it holds."""
        return {
            "held": self._held,
            "retries": self._retries,
            "fences": self._fences_asked,
            "refused": self._refused,
            "expired": self._expired,
            "locked_ranges": len(self._locks),
        }

    def add_path(self, path: Path) -> None:
        """Take a path; it carries no I/O before :meth:`path_up`.  Raises :class:`ValueError` beyond 64."""
        self._group.add(path)
        self._changed()

    def remove_path(self, path: Path) -> None:
        """Forget a path.  Writes on it that are unfenced, or become so, still have to be fenced."""
        path.up = False
        path.generation += 1
        path.phase = PathPhase.FENCING if path.unfenced else PathPhase.FAILED
        self._group.paths.remove(path)
        self._changed()

    def path_up(self, path: Path, generation: int | None = None) -> bool:
        """Let I/O onto a path whose identity was found right.

        ``generation`` is what ``path.generation`` was when the check began: if something happened since, the
        check counts for nothing, another one is asked for and the answer is False.
        """
        if path not in self._group.paths:
            return False
        if generation is not None and generation != path.generation:
            self._emit(
                Event(EventKind.RECHECK, path, Attention.IDENTITY, cause="the path changed during the check")
            )
            return False
        if not path.up:
            path.limit = path.maximum
        path.up = True
        path.checking = path.mismatch = path.not_ready = path.doubtful = False
        self._changed()
        return True

    def path_down(self, path: Path, cause: str = "") -> None:
        """Take a path out of use: its session is lost or being closed."""
        path.up = path.checking = False
        path.generation += 1
        self._changed(cause)

    def path_mismatch(self, path: Path, cause: str = "") -> None:
        """Keep all I/O off a path that leads to another unit, or to none."""
        path.mismatch = True
        path.checking = False
        path.generation += 1
        self._changed(cause)

    def set_access(self, path: Path, state: AccessState, preferred: bool = False) -> None:
        """Take the access state that the target reports for a path (RTPG)."""
        path.access = state
        path.preferred = preferred
        path.not_ready = path.doubtful = state in INACCESSIBLE
        self._changed()

    def set_spread(self, spread: Spread) -> None:
        """Spread I/O in another way from now on."""
        self._group.set_spread(spread)
        self._select = self._group.selector.select
        self._changed()

    def fence_done(self, path: Path, ok: bool) -> None:
        """Answer a FENCE event: whether it is certain that no write sent on ``path`` so far can still run.

        If not, the fence is asked for again after a pause.
        """
        if path not in self._fences:
            return
        if not ok:
            self._fences.failed(path, self._now())
            self._arm()
            return
        grace = self._now() + RESET_GRACE
        for other in self._group.paths:
            other.reset_until = grace
        freed = self._fences.done(path)
        for command in freed:
            if command.outcome != Outcome.PENDING:
                self._retries += 1
                renew(command)
        self._ready.extendleft(reversed(freed))
        self._changed()

    def quiesce(self, drained: Callable[[], None], timeout: float) -> None:
        """Send nothing more, and call ``drained`` when no command is in flight, or after ``timeout`` seconds.

        For a LOGICAL UNIT RESET: it also ends the commands of all other sessions, often without an answer.
        Every call has to be followed by one of :meth:`resume`.
        """
        self._suspensions += 1
        self._calm = False
        for path in self._group.paths:
            path.reset_until = self._now() + timeout + RESET_GRACE
        self._drains.append((self._now() + timeout, drained))
        self._drained()
        self._arm()

    def resume(self) -> None:
        """End one :meth:`quiesce`."""
        self._suspensions = max(self._suspensions - 1, 0)
        self._pump()

    def close(self) -> None:
        """Fail what is held and all that comes; what is in flight ends as it will, without a retry."""
        self._closed = True
        self._calm = False
        self._fail_held("the volume is closed")

    def deadline(self) -> float | None:
        """Return when :meth:`advance` has to be called next, ``None`` for never."""
        times = [self._later[0][0]] if self._later else []
        times += [at for at in (self._queue_until, self._poll_at) if at is not None]
        times += [at for at, _ in self._drains]
        times += self._fences.times()
        return min(times, default=None)

    def advance(self, now: float) -> None:
        """Do what is due at ``now``."""
        self._told = None
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        for path in self._fences.due(now):
            self._emit(Event(EventKind.FENCE, path, cause=f"attempt {path.fence_attempts + 1}"))
        for path in self._fences.overdue(now):
            # what waits fails, the blocks stay locked until the fence comes after all
            for lock in self._fences.of(path):
                self._fail_lock(lock, f"it could not be fenced in {self.queue_timeout:g} s")
        if self._poll_at is not None and self._poll_at <= now:
            self._poll()
        if self._queue_until is not None and self._queue_until <= now:
            self._expire()
        self._drained(now)
        self._pump()

    # --- paths --------------------------------------------------------------------------------------------

    def _changed(self, cause: str = "") -> None:
        """Take up whatever changed about a path, tell of it, and send what waits."""
        self._calm = False
        events = self._group.update(cause)
        if self._group.serving:
            self._queue_until = None
        elif self._queue_until is None and self._group.phase is not DevicePhase.FAILED:
            self._queue_until = self._now() + self.queue_timeout
        if self._poll_at is None and any(path.not_ready and path.up for path in self._group.paths):
            self._poll_at = self._now() + ACCESS_POLL
        for event in events:
            self._emit(event)
        self._pump()

    def _lose(self, path: Path, cause: str) -> None:
        """Take a path down at the word of a command; the owner is asked to look whether it is really so."""
        if path.up:
            path.losses += 1
            path.up = False
            path.generation += 1
            self._changed(cause)
            self._emit(Event(EventKind.RECHECK, path, Attention.IDENTITY, cause=cause))

    def _attend(self, path: Path, attention: Attention, cause: str) -> None:
        """Report what a command's end says has to be looked at again."""
        now = self._now()
        resets = Attention.CACHE | Attention.IDENTITY
        if attention & resets == resets and (self._fences or now < path.reset_until):
            # a fence's own LOGICAL UNIT RESET is no power loss, though some targets report both alike
            attention &= ~Attention.CACHE
            path.reset_until = 0.0
        if attention & Attention.IDENTITY:
            path.checking = True
            path.generation += 1
            self._changed(cause)
        if attention:
            self._emit(Event(EventKind.RECHECK, path, attention, cause=cause))

    def _poll(self) -> None:
        self._poll_at = None
        waiting = [path for path in self._group.paths if path.not_ready and path.up]
        for path in waiting:
            path.not_ready = False
        self._changed()
        for path in waiting:
            self._emit(Event(EventKind.RECHECK, path, Attention.ALUA, cause="poll of the access state"))

    # --- ends of commands, the long way -------------------------------------------------------------------

    def _succeeded(self, command: ScsiCommand, path: Path) -> None:
        if path.doubtful:
            path.doubtful = False
            self._changed()
        path.grow()
        self._finish(command)

    def _finish(self, command: ScsiCommand) -> None:
        """Give a command back to its sender, as it ended."""
        recovery = self._recoveries.pop(command, None)
        lock = recovery.lock if recovery else None
        if lock is not None:
            lock.command = None
            if lock.path is None:
                self._locks.remove(lock)
                self._ready.extendleft(reversed(lock.waiters))
                lock.waiters = []
        done = command.outer_done
        assert done is not None
        command.on_done = done
        command.outer_done = None
        done(command)

    def _settle(self, command: ScsiCommand, path: Path) -> None:
        """Decide what becomes of a command that did not simply succeed."""
        if self._closed:
            path.failed += 1
            self._finish(command)
            return
        self._calm = False
        recovery = self._recoveries.get(command) or self._recoveries.setdefault(command, Recovery(command))
        if command.outcome == Outcome.COMPLETE:
            row = classify(command.status, command.sense)
            if row.action is Action.DONE:
                path.completed += 1
                again = False
            else:
                path.failed += 1
                act = self._actions.get(row.action)
                again = act is not None and act(command, path, recovery, row)
            if row.attention:
                self._attend(path, row.attention, row.cause)
        else:
            path.failed += 1
            again = self._unanswered(command, path, recovery)
        if not again:
            self._finish(command)

    def _unanswered(self, command: ScsiCommand, path: Path, recovery: Recovery) -> bool:
        """Deal with a command that the target did not answer; returns whether it is kept."""
        outcome, cause = command.outcome, command.error
        if outcome == Outcome.ABORTED:
            return self._retry(command, path, recovery, None)
        recovery.losses += 1
        keep = recovery.losses <= LOSS_LIMIT
        if outcome == Outcome.UNKNOWN and path.in_flight and path not in self._losing:
            self._losing.append(path)
        if outcome == Outcome.UNKNOWN and recovery.effect is not Effect.NONE:
            keep = keep and recovery.effect is Effect.OVERWRITE
            self._held += keep
            self._lock_until_fenced(command, path, recovery, keep)
        elif keep:
            self._send_again(command)
        if outcome != Outcome.NOT_SENT:
            self._lose(path, cause)
        return keep

    def _lock_until_fenced(self, command: ScsiCommand, path: Path, recovery: Recovery, keep: bool) -> None:
        lock = recovery.lock or self._locks.add(recovery.extent, command)
        recovery.lock = lock if keep else None
        lock.command = command if keep else None
        if self._fences.demand(lock, path, self._now() + self.queue_timeout):
            self._fences_asked += 1
            self._lose(path, command.error)
            self._changed(command.error)
            self._emit(Event(EventKind.FENCE, path, cause=command.error))

    def _hold(self, command: ScsiCommand) -> None:
        renew(command)
        self._retries += 1
        self._held += 1

    def _send_again(self, command: ScsiCommand) -> Literal[True]:
        """Keep a command and send it as soon as a path takes it."""
        self._hold(command)
        self._ready.appendleft(command)
        return True

    def _retry(self, command: ScsiCommand, _path: Path, recovery: Recovery, _row: Disposition | None) -> bool:
        """Repeat a command that may have run in part, but does not run any more."""
        recovery.retries += 1
        if recovery.effect is Effect.OTHER or recovery.retries > RETRY_LIMIT:
            return False
        if recovery.effect is Effect.OVERWRITE and recovery.lock is None:
            recovery.lock = self._locks.add(recovery.extent, command)
        return self._send_again(command)

    def _consume(self, command: ScsiCommand, path: Path, recovery: Recovery, _row: Disposition) -> bool:
        path.attentions += 1
        recovery.attentions += 1
        if recovery.attentions > ATTENTION_LIMIT:
            return False
        return self._send_again(command)

    def _back_off(self, command: ScsiCommand, path: Path, recovery: Recovery, _row: Disposition) -> bool:
        path.cut_back()
        at = recovery.pause(self._now(), self._retry_budget, self._random())
        if at is None:
            return False
        self._hold(command)
        self._later_count += 1
        heapq.heappush(self._later, (at, self._later_count, command))
        return True

    def _not_ready(self, command: ScsiCommand, path: Path, recovery: Recovery, _row: Disposition) -> bool:
        now = self._now()
        if recovery.ready_until is None:
            recovery.ready_until = now + self.queue_timeout
        if now >= recovery.ready_until:
            return False
        path.access = access_after(command.sense, path.access)
        path.not_ready = path.doubtful = True
        self._send_again(command)
        self._changed("the target port does not serve the unit")
        return True

    def _unit_lost(self, command: ScsiCommand, _path: Path, recovery: Recovery, _row: Disposition) -> bool:
        recovery.losses += 1
        if recovery.losses > LOSS_LIMIT:
            return False
        return self._send_again(command)

    # --- the queue ----------------------------------------------------------------------------------------

    def _admit(self, command: ScsiCommand) -> None:
        """Take a command when it cannot simply be sent."""
        command.outer_done = command.on_done
        command.on_done = self._on_done
        why = ""
        if self._closed:
            why = "the volume is closed"
        elif self.phase is DevicePhase.FAILED:
            why = f"no path for more than {self.queue_timeout:g} s"
        elif self._held >= self._queue_limit:
            why = f"{self._queue_limit} commands are waiting already"
        if why:
            self._refuse(command, why)
            return
        self._held += 1
        self._ready.append(command)
        self._pump()

    def _refuse(self, command: ScsiCommand, why: str, outcome: Outcome = Outcome.REFUSED) -> None:
        self._refused += 1
        command.outcome = outcome
        command.error = why
        self._finish(command)

    def _extent(self, command: ScsiCommand) -> tuple[Extent, RangeLock | None]:
        recovery = self._recoveries.get(command)
        if recovery is not None:
            return recovery.extent, recovery.lock
        return extent_of(command.cdb, command.data_out), None

    def _pump(self) -> None:
        """Send what can be sent, then see whether everything is in order again."""
        if self._pumping:
            return
        self._pumping = True
        ready = self._ready
        self._losing = [path for path in self._losing if path.in_flight]
        while ready and not (self._suspensions or self._losing):
            command = ready[0]
            if self._locks:
                extent, own = self._extent(command)
                lock = self._locks.blocking(extent, own)
                if lock is not None:
                    ready.popleft()
                    if self._fences.is_hopeless(lock):
                        self._held -= 1
                        self._refuse(command, "its blocks have a write of unknown outcome that was not fenced")
                    else:
                        lock.waiters.append(command)
                    continue
            path = self._select()
            if path is None:
                break
            ready.popleft()
            self._held -= 1
            command.path = path
            command.lun = path.lun
            path.in_flight += 1
            path.execute(command)
        self._pumping = False
        self._drained()
        self._calm = (
            self._group.serving
            and not (ready or self._locks or self._recoveries or self._suspensions or self._losing or self._closed)
            and self._group.is_whole
        )
        self._arm()

    def _drained(self, now: float | None = None) -> None:
        """Tell those who wait for quiet, when it is quiet or their time is up."""
        if not self._drains:
            return
        quiet = self._group.is_quiet
        for drain in [drain for drain in self._drains if quiet or (now is not None and drain[0] <= now)]:
            self._drains.remove(drain)
            drain[1]()

    def _arm(self) -> None:
        at = self.deadline()
        if at is not None and (self._told is None or at < self._told):
            self._told = at
            self._emit(Event(EventKind.DEADLINE))

    def _expire(self) -> None:
        """No path for too long: fail everything, and all that follows, until one is back."""
        self._queue_until = None
        self._calm = False
        self._group.phase = DevicePhase.FAILED
        why = f"no path for {self.queue_timeout:g} s"
        self._emit(Event(EventKind.PHASE, phase=self.phase, cause=why))
        self._fail_held(why)

    def _fail_lock(self, lock: RangeLock, why: str) -> None:
        waiters, lock.waiters = lock.waiters, []
        if lock.command is not None and lock.path is not None:
            self._drop(lock.command, why, Outcome.UNKNOWN)
        for command in waiters:
            self._drop(command, why)

    def _drop(self, command: ScsiCommand, why: str, outcome: Outcome = Outcome.REFUSED) -> None:
        self._held -= 1
        self._expired += 1
        self._refuse(command, why, outcome)

    def _fail_held(self, why: str) -> None:
        waiting = [*self._ready, *(command for _, _, command in self._later)]
        self._ready.clear()
        self._later.clear()
        for lock in list(self._locks):
            self._fail_lock(lock, why)
        for command in waiting:
            self._drop(command, why)
        self._pump()
