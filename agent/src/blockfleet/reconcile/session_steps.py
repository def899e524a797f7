# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions: from those that run to those that are wanted.  Pure."""

from __future__ import annotations

from typing import Any

from blockfleet.engine.interface import ConnectionSet, EngineState, InitiatorSpec, SessionPhase, SessionState
from blockfleet.model.change import Options
from blockfleet.model.desired import LoginOptions
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import Action, Kind, Origin, Problem, Verb
from blockfleet.reconcile.connection_steps import (
    connection_changes,
    connection_findings,
    needs_new_login,
    shown_connections,
)
from blockfleet.reconcile.disruption import Cost, cost_of_relogin, cost_of_renaming, costs_of_logout
from blockfleet.reconcile.scope import Finding
from blockfleet.reconcile.steps import Operation, Step
from blockfleet.reconcile.wanted import Wanted, WantedSession
from blockfleet.store.secrets import SHOWN_FINGERPRINT


def session_steps(
    wanted: Wanted,
    before: Wanted | None,
    observed: EngineState,
    options: Options,
    *,
    foreign: frozenset[str],
) -> list[Step]:
    """Return what has to be done with sessions and the initiator's name.

    ``before`` is what was wanted when the host was last in order; ``foreign`` sessions are left alone while
    nobody declares them.
    """
    running = {s.key: s for s in observed.sessions if s.phase is not SessionPhase.CLOSING}
    if _must_rename(wanted, observed, running):
        return _renaming(wanted, before, observed, running, options)
    steps = []
    if observed.initiator != wanted.initiator:
        steps.append(_configuring(wanted, before, observed.initiator, Cost(), options))
    declared_before = before.sessions if before else {}
    ours = {k: state for k, state in running.items() if k not in foreign or k in declared_before}
    steps += _endings(wanted, before, observed, ours, options)
    for key, session in wanted.sessions.items():
        origin = _origin(session, before)
        if session.untouchable:
            continue
        if key not in running:
            steps.append(_opening(session, origin))
        else:
            step = _updating(session, running[key], origin, observed, options)
            if step is not None:
                steps.append(step)
    return steps


def _origin(session: WantedSession, before: Wanted | None) -> Origin:
    """Say whether the session was to be just so before: then it is drift that it is not."""
    return Origin.CORRECTIVE if before and before.sessions.get(session.key) == session else Origin.INTENDED


def _refusal(cost: Cost, options: Options) -> str:
    return "" if options.allow_disruption else cost.why


def _shown(session: WantedSession) -> dict[str, Any]:
    """Describe a session by what it shall be, without anything that changes by itself."""
    return _described(session, session.fingerprint, session.options, session.connection_set)


def _shown_state(state: SessionState) -> dict[str, Any]:
    return _described(state, state.credentials_fingerprint, state.options, state.connection_set)


def _described(
    session: WantedSession | SessionState, fingerprint: str, options: LoginOptions, connections: ConnectionSet
) -> dict[str, Any]:
    parts = {
        "target": session.target,
        "portal": session.portal,
        "credentials": fingerprint[:SHOWN_FINGERPRINT],
        "login": options.model_dump(mode="json", exclude_defaults=True),
        "connections": shown_connections(connections),
    }
    return {name: part for name, part in parts.items() if part}


def _opening(session: WantedSession, origin: Origin) -> Step:
    action = Action(
        verb=Verb.LOGIN,
        kind=Kind.SESSION,
        subject=session.key,
        text=f"+ session {session.target} via {session.portal}",
        origin=origin,
        after=_shown(session),
    )
    return Step(Operation.OPEN, session.key, action, session=session)


def _updating(
    session: WantedSession, state: SessionState, origin: Origin, observed: EngineState, options: Options
) -> Step | None:
    live = connection_changes(state.connection_set, session.connection_set)
    at_login = _new_at_login(session, state)
    if live and needs_new_login(state, session.connection_set):
        at_login, live = [*at_login, *live], []
    logged_in = state.phase in (SessionPhase.LOGGED_IN, SessionPhase.RECOVERING)
    now = options.relogin == "now" and logged_in
    if now and state.relogin_pending and not at_login:
        at_login = ["pending changes"]
    if not at_login and not live:
        return None
    cost, operation, verb, when = Cost(), Operation.UPDATE, Verb.UPDATE, "from its next login on"
    if at_login and (now or not logged_in):
        # Who is not in has nothing to lose, and would else wait for the end of a back-off.
        cost = cost_of_relogin(observed, session.key) if logged_in else Cost()
        operation, verb, when = Operation.RELOGIN, Verb.RELOGIN, "log in again"
    refused = _refusal(cost, options)
    what = "; ".join(
        [*([", ".join(live)] if live else []), *([f"{', '.join(at_login)}, {when}"] if at_login else [])]
    )
    action = Action(
        verb=verb,
        kind=Kind.SESSION,
        subject=session.key,
        text=f"~ session {session.target} via {session.portal}: {what}",
        origin=origin,
        disruption=cost.disruption,
        refused=refused,
        before=_shown_state(state),
        after=_shown(session),
    )
    return Step(operation, session.key, action, session=session, refused=bool(refused))


def _new_at_login(session: WantedSession, state: SessionState) -> list[str]:
    """Return what differs and comes into force with a login only."""
    new = []
    if state.credentials_fingerprint != session.fingerprint:
        new.append("credentials" if session.fingerprint else "no credentials")
    if state.options != session.options:
        new.append("login options")
    return [f"new {' and '.join(new)}"] if new else []


def _endings(
    wanted: Wanted,
    before: Wanted | None,
    observed: EngineState,
    running: dict[str, SessionState],
    options: Options,
) -> list[Step]:
    ending = frozenset(
        key
        for key, state in running.items()
        if key not in wanted.sessions and state.target not in wanted.open_ended
    )
    costs = costs_of_logout(observed, ending)
    steps = []
    for key in sorted(ending):
        state, cost = running[key], costs[key]
        refused = _refusal(cost, options)
        action = Action(
            verb=Verb.LOGOUT,
            kind=Kind.SESSION,
            subject=key,
            text=f"- session {state.target} via {state.portal}",
            origin=Origin.INTENDED if before is None or key in before.sessions else Origin.CORRECTIVE,
            disruption=cost.disruption,
            refused=refused,
            before=_shown_state(state),
        )
        steps.append(Step(Operation.CLOSE, key, action, refused=bool(refused)))
    return steps


# --- the initiator's name ------------------------------------------------------------------------------------


def _must_rename(wanted: Wanted, observed: EngineState, running: dict[str, SessionState]) -> bool:
    return bool(running) and observed.initiator is not None and observed.initiator.name != wanted.initiator.name


def _configuring(
    wanted: Wanted, before: Wanted | None, present: InitiatorSpec | None, cost: Cost, options: Options
) -> Step:
    refused = _refusal(cost, options)
    action = Action(
        verb=Verb.UPDATE if present else Verb.CREATE,
        kind=Kind.INITIATOR,
        subject="engine",
        text=f"{'~' if present else '+'} initiator name in use: {wanted.initiator.name}",
        origin=Origin.CORRECTIVE if before and before.initiator == wanted.initiator else Origin.INTENDED,
        disruption=cost.disruption,
        refused=refused,
        before=present.model_dump(mode="json") if present else None,
        after=wanted.initiator.model_dump(mode="json"),
    )
    return Step(Operation.CONFIGURE, "", action, initiator=wanted.initiator, refused=bool(refused))


def _renaming(
    wanted: Wanted,
    before: Wanted | None,
    observed: EngineState,
    running: dict[str, SessionState],
    options: Options,
) -> list[Step]:
    """End every session, take the new name, and begin those that are wanted: a name holds for all sessions."""
    if any(session.untouchable for session in wanted.sessions.values()):
        return []  # A session whose secret cannot be read could not be begun again; a finding says so.
    cost = cost_of_renaming(observed)
    renaming = _configuring(wanted, before, observed.initiator, cost, options)
    assert renaming.action is not None
    refused, origin = renaming.action.refused, renaming.action.origin
    steps = [renaming]
    for key, state in sorted(running.items()):
        session = wanted.sessions.get(key)
        action = Action(
            verb=Verb.RELOGIN if session else Verb.LOGOUT,
            kind=Kind.SESSION,
            subject=key,
            text=f"{'~' if session else '-'} session {state.target} via {state.portal}"
            + (": log in under the new name" if session else ""),
            origin=origin,
            disruption=cost.disruption,
            refused=refused,
            before=_shown_state(state),
            after=_shown(session) if session else None,
        )
        steps.append(Step(Operation.CLOSE, key, action, refused=bool(refused)))
    for key, session in wanted.sessions.items():
        opening = _opening(session, _origin(session, before))
        action_of_opening = None if key in running else opening.action
        steps.append(Step(Operation.OPEN, key, action_of_opening, session=session, refused=bool(refused)))
    return steps


# --- what is not as it should be and no step mends -----------------------------------------------------------


def session_findings(wanted: Wanted, observed: EngineState, acted_on: frozenset[str]) -> list[Finding]:
    """Return the wanted sessions that are not logged in or lack connections, with the cause, but those acted on."""
    findings = []
    for state in observed.sessions:
        if state.key not in wanted.sessions or state.key in acted_on:
            continue
        if state.phase is SessionPhase.LOGGED_IN:
            findings += connection_findings(wanted.sessions[state.key], state)
            continue
        where = f"session {state.target} via {state.portal}"
        if state.fault is not None:
            problem = Problem(
                code=state.fault.code,
                name=state.fault.name,
                message=f"{where} is not logged in: {state.fault.message}",
                subject=state.key,
            )
        else:
            problem = Problem(
                code=int(Isdsc.LOGIN_FAILED),
                name=str(Isdsc.LOGIN_FAILED),
                message=f"{where} is not logged in yet ({state.phase})",
                subject=state.key,
            )
        findings.append(
            Finding(
                problem,
                target=state.target,
                portal=state.portal,
                is_path=True,
                tried=state.fault is not None,
                final=state.phase is SessionPhase.FAILED,
            )
        )
    return findings
