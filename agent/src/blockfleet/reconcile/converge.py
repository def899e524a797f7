# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry a plan out and look until the host is as planned, or until there is nothing more to hope for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from blockfleet.engine.interface import EngineState, SessionPhase
from blockfleet.model.change import Options
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import Action, Problem, Report, ReportStatus, Summary
from blockfleet.reconcile.core import Core
from blockfleet.reconcile.plan import Planned, diff_of
from blockfleet.reconcile.scope import Scope
from blockfleet.reconcile.steps import Step
from blockfleet.reconcile.verify import Verdict, judge

LOOK_INTERVAL = 0.1
"""Seconds between two looks at first; it doubles up to :data:`LONGEST_INTERVAL`."""

LONGEST_INTERVAL = 1.0

SETTLED_FOR = 1.0
"""Seconds that a bad verdict must stand before it is believed: a path joins a moment after its login."""

ATTEMPTS = 3
"""How often one step is tried in one apply."""


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    verdict: Verdict = field(default_factory=lambda: Verdict(ReportStatus.NOT_VERIFIED, settled=False))
    unforeseen: list[Action] = field(default_factory=list)
    """Actions that the first plan could not know of."""
    problems: tuple[Problem, ...] = ()
    waited: float = 0.0


class Convergence:
    """One run of carrying out and looking."""

    def __init__(self, core: Core, options: Options, scope: Scope) -> None:
        self._core = core
        self._scope = scope
        self._wait = options.wait_timeout
        # What was to be done at once has been; looking again must not do it a second time.
        self._options = Options(allow_disruption=options.allow_disruption)
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._failures: dict[str, Problem] = {}
        self._outcome = Outcome()
        self._foreseen: set[tuple[str, str, str]] = set()

    async def run(self, planned: Planned, observed: EngineState) -> Outcome:
        """Carry out ``planned`` and wait up to the wait timeout; never raises for what the engine does."""
        clock = self._core.timing.clock
        start = clock()
        self._foreseen = {_what(action) for action in planned.plan.actions}
        try:
            await self._perform(planned.steps, observed)
            await self._retry_failed_logins(planned, observed)
            await self._look_until(start + self._wait)
        except BlockfleetError as error:
            self._outcome.problems = (Problem.of(error),)
            self._outcome.verdict = Verdict(ReportStatus.NOT_VERIFIED, settled=True)
        self._outcome.waited = round(clock() - start, 3)
        return self._outcome

    async def _perform(self, steps: Iterable[Step], observed: EngineState) -> None:
        due = [step for step in steps if not step.refused and self._attempts[_key(step)] < ATTEMPTS]
        self._attempts.update(_key(step) for step in due)
        failures = await self._core.executor.run(due, observed)
        for step in due:
            self._failures.pop(step.key, None)
        self._failures.update(failures)

    async def _retry_failed_logins(self, planned: Planned, observed: EngineState) -> None:
        """Have logins that the engine has given up for now tried once more: the user may have mended the target."""
        touched = {step.key for step in planned.steps}
        for state in observed.sessions:
            if (
                state.phase is SessionPhase.FAILED
                and state.key in planned.wanted.sessions
                and state.key not in touched
                and self._scope.covers_target(state.target)
            ):
                await self._core.engine.relogin(state.key)

    async def _look_until(self, deadline: float) -> None:
        timing = self._core.timing
        interval, settled_at = LOOK_INTERVAL, None
        while True:
            observed = await self._core.engine.observe()
            planned = self._core.plan(observed, self._core.store.desired, self._options, self._scope)
            verdict = judge(planned, observed, self._scope)
            self._outcome.verdict = verdict
            self._outcome.problems = self._problems(planned, verdict)
            now = timing.clock()
            if verdict.status is ReportStatus.IN_SYNC or now >= deadline:
                return
            settled_at = (settled_at if settled_at is not None else now) if verdict.settled else None
            if settled_at is not None and now - settled_at >= SETTLED_FOR:
                return
            await self._perform_newly_possible(planned, observed)
            await timing.sleep(min(interval, max(0.0, deadline - timing.clock())))
            interval = min(2 * interval, LONGEST_INTERVAL)

    async def _perform_newly_possible(self, planned: Planned, observed: EngineState) -> None:
        """Do what became possible since, such as serving a volume once its identity is known."""
        for action in planned.plan.actions:
            if not action.refused and _what(action) not in self._foreseen:
                self._foreseen.add(_what(action))
                self._outcome.unforeseen.append(action)
        await self._perform(planned.steps, observed)

    def _problems(self, planned: Planned, verdict: Verdict) -> tuple[Problem, ...]:
        found = list(planned.plan.problems)
        outstanding = [step for step in planned.steps if not step.refused]
        found += [self._failures[step.key] for step in outstanding if step.key in self._failures]
        if verdict.status is ReportStatus.NOT_VERIFIED and not found:
            pending = ", ".join(step.action.text for step in outstanding if step.action is not None)
            error = BlockfleetError(
                Isdsc.NOT_VERIFIED,
                f"the host is not as declared after {self._wait:g} s; still to be done: {pending}",
                remedy="look at the status, or wait longer",
            )
            found.append(Problem.of(error))
        return tuple(found)


def _key(step: Step) -> tuple[str, str]:
    return step.operation.name, step.key


def _what(action: Action) -> tuple[str, str, str]:
    return action.verb.value, action.kind.value, action.subject


def report_of(planned: Planned, outcome: Outcome, generation: int) -> Report:
    """Return the plan as it was shown before, what had to be done besides, and how it ended."""
    plan = planned.plan
    actions: Sequence[Action] = (*plan.actions, *outcome.unforeseen)
    performed = [action for action in actions if action not in planned.declared]
    done = [action for action in actions if not action.refused]
    return Report(
        changed=bool(done),
        generation=generation,
        actions=tuple(actions),
        diff=diff_of(planned.declared, performed),
        summary=Summary.of(tuple(actions)),
        warnings=plan.warnings,
        problems=outcome.problems,
        applied=bool(done),
        verified=outcome.verdict.status is not ReportStatus.NOT_VERIFIED,
        status=outcome.verdict.status,
        waited=outcome.waited,
    )
