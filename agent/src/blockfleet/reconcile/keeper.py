# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop that keeps a host as it was declared: look, compare, put right, tell."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from blockfleet.engine.interface import EngineState
from blockfleet.model.change import Options
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.events import EventNumber
from blockfleet.model.plan import Action, Origin, Problem, ReportStatus
from blockfleet.reconcile.core import Core
from blockfleet.reconcile.plan import Planned
from blockfleet.reconcile.scope import Scope
from blockfleet.reconcile.steps import Operation, Step
from blockfleet.reconcile.verify import judge

INTERVAL = 2.0
"""Seconds between two looks when nothing happens."""

SETTLE = 0.2
"""Seconds from an engine event to the look that it causes, so that a burst costs one."""

DISCOVERY_INTERVAL = 600.0
"""Seconds after which a portal that answered is asked again."""

DISCOVERY_RETRY = 60.0
"""Seconds after which a portal that did not answer, or did not show a target, is asked again."""

FIRST_BACKOFF = 2.0
LONGEST_BACKOFF = 60.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Backoff:
    """When a step that failed may be tried again."""

    delay: float
    until: float


class Keeper:
    """Runs until it is cancelled.  ``lock`` keeps it out while a change is applied.

    ``repair`` decides about drift; what was declared and is not carried out yet is always carried out.
    """

    def __init__(self, core: Core, lock: asyncio.Lock, *, repair: bool) -> None:
        self._core = core
        self._lock = lock
        self.repair = repair
        self._instance = ""
        self._lost = False
        self._drift: frozenset[str] = frozenset()
        self._backoff: dict[tuple[str, str], _Backoff] = {}
        self._engine_sequence = core.store.engine_sequence
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Follow the engine's events and keep the host in order."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_events())
            tasks.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            await self.look()
            self._save_events()
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                continue
            await self._core.timing.sleep(SETTLE)

    async def _follow_events(self) -> None:
        while True:
            try:
                async for event in self._core.engine.events(self._engine_sequence):
                    self._core.store.events.take(event)
                    self._engine_sequence = event.sequence
                    self._wake.set()
            except BlockfleetError as error:
                _log.debug("the engine's events have stopped: %s", error)  # Losing the engine is told by look().
            await self._core.timing.sleep(INTERVAL)

    def _save_events(self) -> None:
        try:
            self._core.store.flush_events(self._engine_sequence)
            if not self._core.store.read_only:
                self._core.store.backup_if_due()
        except BlockfleetError as error:
            _log.error("cannot save events: %s", error)

    async def look(self) -> None:
        """Look once and do what is due; while a change is being applied, leave it to that."""
        if self._lock.locked():
            return
        async with self._lock:
            try:
                await self._look()
            except BlockfleetError as error:
                self._note_loss(error)

    async def _look(self) -> None:
        core = self._core
        able = not core.store.degraded
        observed = await core.observe(prepare=able)
        self._note_engine(observed)
        if not able:
            return
        await self._discover()
        observed = await core.observe(prepare=True)
        planned = core.plan(observed, core.store.desired, Options(), Scope())
        self._note_drift(planned.plan.actions)
        due = self._due(planned)
        if due:
            await self._perform(due, observed)
        elif not planned.plan.actions and judge(planned, observed, Scope()).status is not ReportStatus.NOT_VERIFIED:
            core.store.mark_applied(core.store.desired.generation)

    async def _discover(self) -> None:
        core = self._core
        desired = core.store.desired
        await core.discoverer.ask_missing(desired, retry_after=DISCOVERY_RETRY)
        old = [s for s in desired.document.discovery.portals if core.discoverer.age(s) >= DISCOVERY_INTERVAL]
        await core.discoverer.ask(old)
        core.discoverer.keep(desired.document)

    # --- carrying out ------------------------------------------------------------------------------------

    def _due(self, planned: Planned) -> list[Step]:
        now = self._core.timing.clock()
        steps = [step for step in planned.steps if not step.refused and self._may(step, planned.steps)]
        return [s for s in steps if (wait := self._backoff.get(_key(s))) is None or wait.until <= now]

    def _may(self, step: Step, steps: Iterable[Step]) -> bool:
        """Say whether a step may run unasked; one without an action belongs to the change of the name."""
        if self.repair:
            return True
        if step.action is None:
            renaming = [s.action for s in steps if s.operation is Operation.CONFIGURE]
            return any(action is not None and action.origin is Origin.INTENDED for action in renaming)
        return step.action.origin is Origin.INTENDED

    async def _perform(self, due: list[Step], observed: EngineState) -> None:
        problems = await self._core.executor.run(due, observed)
        for step in due:
            problem = problems.get(step.key)
            if problem is None:
                self._backoff.pop(_key(step), None)
            else:
                self._hold_back(step)
            self._note_repair(step, problem)

    def _hold_back(self, step: Step) -> None:
        known = self._backoff.get(_key(step))
        delay = FIRST_BACKOFF if known is None else min(2 * known.delay, LONGEST_BACKOFF)
        self._backoff[_key(step)] = _Backoff(delay, self._core.timing.clock() + delay)

    # --- telling -----------------------------------------------------------------------------------------

    def _note_engine(self, observed: EngineState) -> None:
        events = self._core.store.events
        if observed.instance != self._instance:
            adopted = bool(observed.sessions or observed.volumes)
            number = EventNumber.ENGINE_ADOPTED if adopted else EventNumber.ENGINE_STARTED
            text = f"{len(observed.sessions)} sessions, {len(observed.volumes)} volumes" if adopted else ""
            events.record(number, f"engine {observed.pid}", text)
        self._instance, self._lost = observed.instance, False

    def _note_loss(self, error: BlockfleetError) -> None:
        if not self._lost:
            self._core.store.events.record(EventNumber.ENGINE_LOST, "engine", str(error))
            _log.warning("%s", error)
        self._lost = True

    def _note_drift(self, actions: Iterable[Action]) -> None:
        drift = {action.text: action for action in actions if action.origin is Origin.CORRECTIVE}
        for text in drift.keys() - self._drift:
            self._core.store.events.record(EventNumber.DRIFT_FOUND, drift[text].subject, f"needed: {text}")
        self._drift = frozenset(drift)

    def _note_repair(self, step: Step, problem: Problem | None) -> None:
        if step.action is None or step.action.origin is not Origin.CORRECTIVE:
            return
        if problem is None:
            self._core.store.events.record(
                EventNumber.DRIFT_REPAIRED, step.action.subject, f"done: {step.action.text}"
            )
        else:
            self._core.store.events.record(EventNumber.DRIFT_REPAIR_FAILED, step.action.subject, problem.message)


def _key(step: Step) -> tuple[str, str]:
    return step.operation.name, step.key
