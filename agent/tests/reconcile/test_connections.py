# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections a session: planned live, repeated for free, and named where they are missing."""

from __future__ import annotations

import pytest
from tests.reconcile.host import P1, P2, TARGET, login

P3 = "192.0.2.13:3260"
ROUND_TO_WEIGHTED = "change connection policy round_robin -> weighted_path"
KEY = f"{TARGET}@{P1}"


@pytest.fixture
def mcs(host):
    """The host of this folder, at a target that takes four connections in a session."""
    host.engine.targets[TARGET].max_connections = 4
    return host


def connections(host):
    return [(c.portal, c.weight, c.standby) for c in host.engine.sessions[KEY].spec.connection_set.further]


async def used(host, *further, **fields):
    """Bring up a session of several connections, with a volume that a client uses on it."""
    volume = {"name": "db01", "target": TARGET, "lun": 0}
    report = await host.apply(document={**login(P1, connections=list(further), **fields), "volumes": [volume]})
    assert report.status == "in_sync"
    host.engine.open_volume("db01")
    host.engine.calls.clear()


def texts(plan):
    return [a.text for a in plan.actions if a.kind == "session"]


async def test_a_session_begins_with_its_connections(mcs):
    report = await mcs.apply(document=login(P1, connections=[{"portal": P3, "weight": 4}, {"standby": True}]))
    assert report.status == "in_sync"
    assert connections(mcs) == [(P3, 4, False), (P1, 0, True)]
    mcs.engine.calls.clear()
    again = await mcs.apply(document=login(P1, connections=[{"portal": P3, "weight": 4}, {"standby": True}]))
    assert (again.changed, again.actions, mcs.engine.changes) == (False, (), [])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"connections": [{}, {"portal": P3, "weight": 2}]}, f"add connection via {P3} (weight 2)"),
        ({"connections": []}, f"remove connection via {P1}"),
        ({"connections": [{"weight": 6}]}, f"connection via {P1} weight 0 -> 6"),
        ({"connections": [{"standby": True}]}, f"connection via {P1} active -> standby"),
        ({"leading_connection": {"weight": 5}}, "leading connection weight 0 -> 5"),
        (
            {"connection_policy": "least_queue_depth"},
            "change connection policy round_robin -> least_queue_depth",
        ),
        (
            {"connections": [{"portal": P3}], "connection_policy": "weighted_path"},
            f"add connection via {P3}, remove connection via {P1}, {ROUND_TO_WEIGHTED}",
        ),
    ],
)
async def test_changes_are_live_and_disturb_nobody(mcs, change, text):
    await used(mcs, {})
    for answer in (await mcs.plan(document=login(P1, **change)), await mcs.apply(document=login(P1, **change))):
        assert texts(answer) == [f"~ session {TARGET} via {P1}: {text}"]
        assert {(a.disruption, a.refused) for a in answer.actions} == {("none", "")}
    assert answer.status == "in_sync"
    assert mcs.engine.changes == [("open_session", KEY)]
    assert mcs.engine.sessions[KEY].logins == 1


async def test_relogin_now_is_not_taken_for_what_needs_no_login(mcs):
    await used(mcs, {})
    change = {"document": login(P1, connections=[{}, {}]), "options": {"relogin": "now"}}
    report = await mcs.apply(**change)
    assert (report.status, mcs.engine.changes) == ("in_sync", [("open_session", KEY)])


async def test_the_first_further_connection_waits_for_a_login_that_has_room_for_it(mcs):
    """RFC 3720 12.2: MaxConnections is negotiated by the leading login only."""
    await used(mcs)
    plan = await mcs.plan(document=login(P1, connections=[{}]))
    assert texts(plan) == [f"~ session {TARGET} via {P1}: add connection via {P1}, from its next login on"]
    report = await mcs.apply(document=login(P1, connections=[{}]))
    assert (report.status, mcs.engine.sessions[KEY].logins) == ("in_sync", 1)
    refused = await mcs.plan(options={"relogin": "now"})
    assert [(a.verb, bool(a.refused)) for a in refused.actions] == [("relogin", True)]
    mcs.engine.open_volume("db01", clients=0)
    report = await mcs.apply(options={"relogin": "now"})
    assert (report.status, mcs.engine.sessions[KEY].logins) == ("in_sync", 2)
    assert len((await mcs.engine.observe()).sessions[0].connections) == 2


async def test_new_options_and_new_connections_are_one_action_of_two_parts(mcs):
    await used(mcs, {})
    change = login(P1, connections=[{}, {}], login={"error_recovery_level": 2})
    assert texts(await mcs.plan(document=change)) == [
        f"~ session {TARGET} via {P1}: add connection via {P1}; new login options, from its next login on"
    ]


async def test_a_target_that_allows_fewer_connections_is_named_with_its_limit(host):
    host.engine.targets[TARGET].max_connections = 2
    report = await host.apply(document=login(P1, connections=[{}, {}]))
    assert report.status == "partial"
    (problem,) = report.problems
    assert (problem.name, problem.subject) == ("ISDSC_TOO_MANY_CONNECTIONS", KEY)
    assert "cannot have 3 connections: the target allows 2 (MaxConnections)" in problem.message


async def test_a_connection_that_does_not_come_is_named_with_its_cause_and_the_session_counts(mcs):
    mcs.engine.targets[TARGET].connection_faults[P2] = "cannot include the connection in this session (0208)"
    report = await mcs.apply(document=login(P1, connections=[{"portal": P2}, {}]))
    assert report.status == "partial"
    (problem,) = report.problems
    assert f"lacks its connection via {P2}: cannot include the connection in this session (0208)" in problem.message
    assert "portal group" in problem.message
    del mcs.engine.targets[TARGET].connection_faults[P2]
    assert (await mcs.apply()).status == "in_sync"


async def test_connections_that_went_without_the_agents_doing_are_drift(mcs):
    await used(mcs, {}, {"portal": P3})
    session = mcs.engine.sessions[KEY]
    one = session.spec.connection_set.model_copy(update={"further": session.spec.connection_set.further[:1]})
    session.spec = session.spec.model_copy(update={"connection_set": one})
    drift = await mcs.agent.drift()
    assert [(a.text, a.origin) for a in drift.actions] == [
        (f"~ session {TARGET} via {P1}: add connection via {P3}", "corrective")
    ]


async def test_every_session_of_the_target_gets_the_connections_each_its_own_portal(mcs):
    await mcs.apply(document=login(P1, P2, connections=[{"weight": 3}]))
    further = {key: [c.portal for c in s.spec.connection_set.further] for key, s in mcs.engine.sessions.items()}
    assert further == {f"{TARGET}@{P1}": [P1], f"{TARGET}@{P2}": [P2]}


async def test_the_declared_part_of_a_plan_tells_connections_as_words(mcs):
    await mcs.apply(document=login(P1, connections=[{"portal": P3, "weight": 2}]))
    plan = await mcs.plan(document=login(P1, connections=[{"standby": True}], connection_policy="fail_over_only"))
    (action,) = [a for a in plan.actions if a.kind == "target"]
    assert action.text == (
        f"~ target {TARGET}: connection_policy (none) -> fail_over_only, "
        f"connections {P3} weight 2 -> the session's own portal standby"
    )
