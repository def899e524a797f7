# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections of a session: what changes, whether that needs a new login, and what is missing.  Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

from blockfleet.engine.interface import ConnectionPhase, ConnectionSet, SessionPhase, SessionState
from blockfleet.model.desired import ConnectionRole
from blockfleet.model.isdsc import Isdsc
from blockfleet.reconcile.scope import Finding, finding
from blockfleet.reconcile.wanted import WantedSession


def connection_changes(present: ConnectionSet, wanted: ConnectionSet) -> list[str]:
    """Return what turns ``present`` into ``wanted``, a phrase each; connections are matched by their portals."""
    known: dict[str | None, deque[ConnectionRole]] = defaultdict(deque)
    for connection in present.further:
        known[connection.portal].append(connection)
    changes = _role_changes("leading connection", present.leading, wanted.leading)
    for connection in wanted.further:
        if known[connection.portal]:
            name = f"connection via {connection.portal}"
            changes += _role_changes(name, known[connection.portal].popleft(), connection)
        else:
            changes.append(f"add connection via {connection.portal}{_role(connection)}")
    for portal, left in known.items():
        changes += [f"remove connection via {portal}"] * len(left)
    if present.policy != wanted.policy:
        changes.append(f"change connection policy {present.policy} -> {wanted.policy}")
    if not changes and present != wanted:
        changes.append("change the order of connections")
    return changes


def _role(role: ConnectionRole) -> str:
    words = ([f"weight {role.weight}"] if role.weight else []) + (["standby"] if role.standby else [])
    return f" ({', '.join(words)})" if words else ""


def _role_changes(name: str, present: ConnectionRole, wanted: ConnectionRole) -> list[str]:
    changes = []
    if present.weight != wanted.weight:
        changes.append(f"{name} weight {present.weight} -> {wanted.weight}")
    if present.standby != wanted.standby:
        changes.append(f"{name} {'active -> standby' if wanted.standby else 'standby -> active'}")
    return changes


def shown_connections(wanted: ConnectionSet) -> dict[str, Any]:
    """Return what a diff shows of the connections; nothing for a session with one that nobody said anything of."""
    return wanted.model_dump(mode="json", exclude_defaults=True)


def needs_new_login(state: SessionState, wanted: ConnectionSet) -> bool:
    """Tell whether the present login has no room for further connections because none were wanted at it.

    MaxConnections is negotiated by the leading login only (RFC 3720 12.2).
    """
    began_with_one = state.relogin_pending or not state.connection_set.further
    return (
        state.phase is SessionPhase.LOGGED_IN and bool(wanted.further) and _allowed(state) == 1 and began_with_one
    )


def _allowed(state: SessionState) -> int:
    return int(state.negotiated.get("MaxConnections", "1"))


def connection_findings(session: WantedSession, state: SessionState) -> list[Finding]:
    """Return what keeps a session that is logged in from all its connections.

    One whose connections have still to be asked for, or wait for its next login, lacks none yet.
    """
    wanted = session.connection_set
    if state.connection_set != wanted or state.relogin_pending:
        return []
    where = f"session {state.target} via {state.portal}"
    allowed = _allowed(state)
    if wanted.size > allowed:
        found = finding(
            Isdsc.TOO_MANY_CONNECTIONS,
            f"{where} cannot have {wanted.size} connections: the target allows {allowed} (MaxConnections)",
            state.key,
            remedy="declare fewer, or let the target allow more",
            target=state.target,
            portal=state.portal,
            final=True,
        )
        return [found.as_path(tried=True)]
    findings = []
    for connection in state.connections:
        if connection.phase in (ConnectionPhase.LOGGED_IN, ConnectionPhase.LEAVING):
            continue
        found = finding(
            Isdsc.CONNECTION_FAILED,
            f"{where} lacks its connection via {connection.portal}: {connection.error or connection.phase}",
            state.key,
            remedy="" if not connection.error else "check the portal, and that it is of the session's portal group",
            target=state.target,
            portal=state.portal,
        )
        findings.append(found.as_path(tried=bool(connection.error)))
    unborn = wanted.size - sum(c.phase is not ConnectionPhase.LEAVING for c in state.connections)
    if unborn > 0:
        found = finding(
            Isdsc.CONNECTION_FAILED,
            f"{where} lacks {unborn} of its {wanted.size} connections",
            state.key,
            target=state.target,
            portal=state.portal,
        )
        findings.append(found.as_path(tried=False))
    return findings
