# SPDX-License-Identifier: GPL-3.0-or-later
"""The connections of sessions, and what sessions have recovered from, as people see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from blockfleet.cli.tables import DOUBTFUL, FAINT, phase_text, table_of
from blockfleet.model.load_balance import LoadBalancePolicy
from blockfleet.model.plan import TargetStatus

_COLUMNS = ("TARGET", "SESSION", "CID", "PORTAL", "STATE", "POLICY", "ROLE", "COMMANDS", "IN FLIGHT", "CAUSE")

_NO_TROUBLE = frozenset({"commands", "bytes_in", "bytes_out", "r2ts", "pings", "async_messages", "data_acks"})
"""Counters of a session that grow while all is well; the others are errors and recoveries."""


def have_several(targets: Iterable[TargetStatus]) -> bool:
    """Tell whether any session has, or shall have, more than one connection."""
    return any(_has_several(session) for target in targets for session in target.sessions)


def _has_several(session: Mapping[str, Any]) -> bool:
    return bool(_wanted(session).get("further")) or len(session.get("connections", ())) > 1


def _wanted(session: Mapping[str, Any]) -> Mapping[str, Any]:
    wanted: Mapping[str, Any] = session.get("connection_set") or {}
    return wanted


def connections_table(targets: Iterable[TargetStatus]) -> Table:
    """Return one row a connection, session by session, with what the session's policy makes of it.

    Sessions that have one connection and shall have no other are left out.
    """
    table = table_of(*_COLUMNS)
    for target in targets:
        for session in filter(_has_several, target.sessions):
            policy = str(_wanted(session).get("policy", ""))
            for connection in session.get("connections", ()):
                cid = connection.get("cid")
                table.add_row(
                    target.name,
                    str(session["portal"]),
                    "-" if cid is None else str(cid),
                    str(connection["portal"]),
                    phase_text(str(connection["phase"])),
                    policy,
                    _role(connection, policy),
                    str(connection.get("commands", 0)),
                    str(connection.get("in_flight", 0)),
                    str(connection.get("error", "")),
                )
    return table


def _role(connection: Mapping[str, Any], policy: str) -> Text:
    weight = f", weight {connection.get('weight', 0)}" if policy == LoadBalancePolicy.WEIGHTED_PATH else ""
    if connection["phase"] != "logged_in":
        return Text(f"-{weight}", FAINT)
    return Text(("active" if connection.get("active") else "standby") + weight)


def trouble_lines(targets: Iterable[TargetStatus]) -> Iterator[Text]:
    """Yield a line for each session that met errors: what it counted of them and of its recoveries."""
    for target in targets:
        for session in target.sessions:
            counters = {n: c for n, c in session.get("counters", {}).items() if c and n not in _NO_TROUBLE}
            if counters:
                told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counters.items())
                line = Text("counted: ", DOUBTFUL)
                yield line.append(f"{target.name} via {session['portal']}: {told}", "default")
