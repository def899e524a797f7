# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies, fail-back and roles of paths: resolved from volume, target and host, changed live, kept."""

from __future__ import annotations

import pytest
from tests.reconcile.host import P1, P2, TARGET, login

K1, K2 = f"{TARGET}@{P1}", f"{TARGET}@{P2}"
DB01 = {"name": "db01", "target": TARGET, "lun": 0}


def spread(host):
    spec = host.engine.volumes["db01"].spec
    roles = {s.session: (s.weight, s.standby, s.primary) for s in spec.path_settings}
    return spec.policy.value, spec.failback, roles


async def used(host, volume=None, **target):
    """Serve a volume that a client uses."""
    document = {**login(P1, P2, **target), "volumes": [DB01 | (volume or {})]}
    assert (await host.apply(document=document)).status == "in_sync"
    host.engine.open_volume("db01")
    host.engine.calls.clear()


def texts(answer):
    return [action.text for action in answer.actions if action.text.startswith("~ volume db01 served")]


async def test_the_narrowest_declaration_counts_each_thing_by_itself(host):
    document = {"policy": "round_robin", "failback": False, "volumes": [DB01]}
    roles = [{"portal": P1, "weight": 5}, {"portal": P2}]
    await host.apply(document={**document, **login(P1, P2, policy="weighted_path", paths=roles)})
    assert spread(host) == ("weighted_path", False, {K1: (5, False, False)})
    own = {"policy": "fail_over_only", "failback": True, "paths": [{"portal": P2, "primary": True}]}
    await host.apply(document={"volumes": [{"name": "db01", **own}]})
    assert spread(host) == ("fail_over_only", True, {K2: (0, False, True)})
    await host.apply(document={"volumes": [{"name": "db01", "paths": []}]})
    assert spread(host) == ("fail_over_only", True, {})
    await host.apply(document={"volumes": [{"name": "db01", "policy": None, "failback": None, "paths": None}]})
    assert spread(host) == ("weighted_path", False, {K1: (5, False, False)})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"policy": "service_time"}, "policy fail_over_only -> service_time"),
        ({"failback": False}, "failback True -> False"),
        ({"paths": [{"portal": P2, "primary": True}]}, f"paths [] -> [{P2} primary]"),
        (
            {"policy": "round_robin_with_subset", "paths": [{"portal": P1, "standby": True, "weight": 3}]},
            f"policy fail_over_only -> round_robin_with_subset, paths [] -> [{P1} standby weight 3]",
        ),
    ],
)
async def test_changes_are_live_and_disturb_nobody(host, change, text):
    await used(host)
    wanted = {"targets": [{"name": TARGET, **change}]}
    for answer in (await host.plan(document=wanted), await host.apply(document=wanted)):
        assert texts(answer) == [f"~ volume db01 served: {text}"]
        assert {(a.disruption, a.refused) for a in answer.actions} == {("none", "")}
    assert (answer.status, host.engine.changes) == ("in_sync", [("publish", "db01")])
    again = await host.apply(document=wanted)
    assert (again.changed, again.actions) == (False, ())


async def test_a_role_that_says_nothing_is_no_change_for_the_engine(host):
    await used(host)
    await host.apply(document={"targets": [{"name": TARGET, "paths": [{"portal": P1}]}]})
    assert host.engine.changes == []


@pytest.mark.parametrize(
    "update",
    [{"policy": "least_queue_depth"}, {"failback": True}, {"path_settings": ()}],
    ids=lambda u: next(iter(u)),
)
async def test_what_was_changed_without_the_agents_doing_is_drift_and_put_right(host, update):
    await used(host, policy="weighted_path", failback=False, paths=[{"portal": P2, "weight": 9}])
    before = spread(host)
    volume = host.engine.volumes["db01"]
    volume.spec = volume.spec.model_copy(update=update)
    drift = await host.agent.drift()
    assert [(a.kind, a.subject, a.origin) for a in drift.actions] == [("volume", "db01", "corrective")]
    assert (await host.apply()).status == "in_sync"
    assert spread(host) == before


async def test_the_declared_part_of_a_plan_tells_policies_as_words(host):
    roles = [{"portal": P2, "primary": True}]
    plan = await host.plan(document=login(P1, P2, policy="weighted_path", paths=roles, failback=False))
    assert [a.text for a in plan.actions if a.kind == "policy"] == [
        f"+ policy {TARGET}: weighted_path, paths {P2} primary, failback False"
    ]
    await host.apply(document=login(P1, P2, policy="weighted_path", paths=roles))
    plan = await host.plan(document={"targets": [{"name": TARGET, "paths": [{"portal": P1, "weight": 2}]}]})
    assert [a.text for a in plan.actions if a.kind == "policy"] == [
        f"~ policy {TARGET}: paths {P2} primary -> {P1} weight 2"
    ]
    plan = await host.plan(document={"failback": False})
    assert [a.text for a in plan.actions] == ["~ policy default: failback (none) -> False"]


async def test_a_role_through_a_portal_that_discovery_does_not_show_is_named(host):
    strange = "192.0.2.99:3260"
    target = {"name": TARGET, "portals": "all", "paths": [{"portal": strange, "standby": True}]}
    document = {"discovery": {"portals": [{"portal": P1}]}, "targets": [target]}
    report = await host.apply(document=document)
    (problem,) = report.problems
    assert (problem.name, problem.subject) == ("ISDSC_INVALID_PATH_ID", TARGET)
    assert strange in problem.message
    assert report.status != "in_sync"
    fixed = {"targets": [{"name": TARGET, "paths": [{"portal": P2, "standby": True}]}]}
    assert (await host.apply(document=fixed)).status == "in_sync"


async def test_policies_outlive_the_agent(host):
    await used(host, policy="weighted_path", failback=False, paths=[{"portal": P2, "weight": 9}])
    before = spread(host)
    host.engine.restart()
    host.restart_agent()
    assert (await host.apply()).status == "in_sync"
    assert spread(host) == before
