# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner: a pure function of what is desired, what is observed and what is remembered.

Its result is what a dry run shows, what apply carries out and what drift detection reports, so the three cannot
disagree.  A path is (target, portal, interface), compared as a whole and never by pattern.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blockfleet.engine.interface import EngineState
from blockfleet.model.change import Options
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import Action, Diff, Kind, Origin, Plan, Summary
from blockfleet.reconcile.declared import declared_actions
from blockfleet.reconcile.scope import Finding, Scope, finding
from blockfleet.reconcile.session_steps import session_findings, session_steps
from blockfleet.reconcile.steps import ORDER, Step
from blockfleet.reconcile.volume_steps import volume_findings, volume_steps
from blockfleet.reconcile.volumes import Resolution, resolve_all
from blockfleet.reconcile.wanted import Fingerprint, Shown, Wanted, wanted_of
from blockfleet.reconcile.warnings import warnings_of
from blockfleet.store.documents import Desired
from blockfleet.store.state import Binding


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that planning depends on besides the new desired state."""

    desired: Desired
    applied: Desired | None
    """What was last reached and verified: what differs from it without having been asked for is drift."""
    observed: EngineState
    shown: Shown
    bindings: Mapping[str, Binding]
    initiator_name: str
    foreign: frozenset[str]
    """Session keys and volume names that ran before anything was declared."""
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with the steps that carry it out and what stands in its way."""

    plan: Plan
    declared: tuple[Action, ...]
    """Those of the plan's actions that change the desired state."""
    steps: tuple[Step, ...]
    wanted: Wanted
    resolutions: Mapping[str, Resolution]
    findings: tuple[Finding, ...]
    """All of them; ``plan.problems`` has those in scope."""

    @property
    def refused(self) -> tuple[Action, ...]:
        """Return the actions that need the request to allow disruption."""
        return tuple(action for action in self.plan.actions if action.refused)


_SECTIONS = {
    Kind.INITIATOR: "initiator",
    Kind.DISCOVERY_PORTAL: "discovery_portals",
    Kind.STATIC_TARGET: "static_targets",
    Kind.TARGET: "targets",
    Kind.CHAP: "chap",
    Kind.POLICY: "policies",
    Kind.VOLUME: "volumes",
    Kind.SESSION: "sessions",
}

_LIVE_SECTIONS = {**_SECTIONS, Kind.VOLUME: "served"}
"""What the engine does is shown apart from what is declared where both have a name for it."""


def make_plan(situation: Situation, new: Desired, options: Options, scope: Scope) -> Planned:
    """Plan how the host gets from the situation to ``new``.

    ``new`` is the present desired state when nothing is to be declared anew.
    """
    wanted = _wanted(new, situation)
    before = _wanted(situation.applied, situation) if situation.applied else None
    declared = declared_actions(situation.desired.document, new.document, situation.fingerprint)
    virgin = situation.desired.generation == 0
    # With nothing ever declared there is no ground for taking what runs for drift.
    foreign = names_of(situation.observed) if virgin else situation.foreign
    sessions = session_steps(wanted, before, situation.observed, options, foreign=foreign)
    logging_in = frozenset(s.session.target for s in sessions if s.session is not None and s.will_log_in)
    known = {volume.name for volume in situation.desired.document.volumes}
    declared_now = frozenset(volume.name for volume in new.document.volumes if volume.name not in known)
    resolutions = resolve_all(wanted, situation.observed, situation.bindings, logging_in, declared_now)
    volumes = volume_steps(wanted, before, situation.observed, resolutions, options, foreign=foreign)
    steps = _ordered([*sessions, *volumes])
    performed = tuple(step.action for step in steps if step.action is not None)
    actions = (*declared, *performed)
    findings = (
        *wanted.findings,
        *session_findings(wanted, situation.observed, frozenset(s.key for s in sessions if s.will_log_in)),
        *volume_findings(wanted, situation.observed, resolutions),
        *_refusals(steps),
    )
    plan = Plan(
        changed=any(not action.refused for action in actions),
        generation=situation.desired.generation,
        actions=actions,
        diff=diff_of(declared, performed),
        summary=Summary.of(actions),
        warnings=warnings_of(new.document, situation.fingerprint),
        problems=tuple(found.problem for found in scope.of(findings)),
    )
    return Planned(plan, declared, steps, wanted, resolutions, findings)


def _wanted(desired: Desired, situation: Situation) -> Wanted:
    name, running = situation.initiator_name, situation.observed.initiator
    if situation.desired.generation == 0 and running is not None:
        name = running.name
    return wanted_of(desired, situation.shown, name, situation.fingerprint)


def names_of(observed: EngineState) -> frozenset[str]:
    """Return the keys of all sessions and the names of all volumes."""
    return frozenset([*(s.key for s in observed.sessions), *(v.name for v in observed.volumes)])


def _ordered(steps: list[Step]) -> tuple[Step, ...]:
    return tuple(sorted(steps, key=lambda step: (ORDER[step.operation], step.key)))


def _refusals(steps: Iterable[Step]) -> list[Finding]:
    """Say what stays undone because it would hurt a user."""
    return [
        finding(
            Isdsc.DISRUPTION_REFUSED,
            f"{step.action.text}: refused, {step.action.refused}",
            step.action.subject,
            remedy="close the volume's users, or allow disruption",
            target=step.key.partition("@")[0] if step.action.kind is Kind.SESSION else "",
            volume=step.key if step.action.kind is Kind.VOLUME else "",
            final=True,
        )
        for step in steps
        if step.action is not None and step.action.refused
    ]


def diff_of(declared: Iterable[Action], performed: Iterable[Action]) -> Diff:
    """Gather what actions change in the desired state and on the host, by kind and name, before and after."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for sections, actions in ((_SECTIONS, declared), (_LIVE_SECTIONS, performed)):
        for action in actions:
            for side, value in ((before, action.before), (after, action.after)):
                if value is not None:
                    side.setdefault(sections[action.kind], {})[action.subject] = value
    return Diff(before=before, after=after)


def corrective_part(plan: Plan) -> Plan:
    """Return the plan with only what puts drift right."""
    actions = tuple(action for action in plan.actions if action.origin is Origin.CORRECTIVE)
    return plan.model_copy(
        update={
            "changed": any(not action.refused for action in actions),
            "actions": actions,
            "diff": diff_of((), actions),
            "summary": Summary.of(actions),
        }
    )
