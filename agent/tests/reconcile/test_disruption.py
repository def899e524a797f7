# SPDX-License-Identifier: GPL-3.0-or-later
"""What would interrupt a user is refused before anything changes, unless the request allows it."""

from __future__ import annotations

import pytest
from tests.reconcile.host import IDENTITY, P1, P2, TARGET, login
from tests.reconcile.simulated_engine import disk

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

SECRET = "correct-horse-battery"
CHAP = {"user": "host", "secret": SECRET}


@pytest.fixture
async def used(host):
    """A host whose one volume, over two paths, has a client."""
    document = {**login(P1, P2, chap=CHAP), "volumes": [{"name": "db01", "target": TARGET, "lun": 0}]}
    assert (await host.apply(document=document)).status == "in_sync"
    host.engine.open_volume("db01")
    host.engine.calls.clear()
    return host


CHANGES = {
    "logout-of-all-portals": {"absent": {"target_portals": {TARGET: "all"}}},
    "forget-target": {"absent": {"targets": [TARGET]}},
    "withdraw-volume": {"absent": {"volumes": ["db01"]}},
    "read-only": {"document": {"volumes": [{"name": "db01", "read_only": True}]}},
    "initiator-name": {"document": {"initiator": {"name": "iqn.2026-11.com.example:host"}}},
    "relogin-now": {
        "document": {"targets": [{"name": TARGET, "chap": {"secret": "another-horse-battery"}}]},
        "options": {"relogin": "now"},
    },
}


@pytest.mark.parametrize("name", CHANGES)
async def test_refused_and_nothing_changed(used, name):
    change = CHANGES[name]
    plan = await used.plan(**change)
    assert any(action.refused and action.disruption != "none" for action in plan.actions)
    generation = used.store.desired.generation
    with pytest.raises(BlockfleetError) as caught:
        await used.apply(**change)
    assert caught.value.code is Isdsc.DISRUPTION_REFUSED
    assert "allow_disruption" in str(caught.value)
    assert used.engine.changes == []
    assert used.store.desired.generation == generation


@pytest.mark.parametrize("name", CHANGES)
async def test_carried_out_when_allowed(used, name):
    change = dict(CHANGES[name])
    change["options"] = {**change.get("options", {}), "allow_disruption": True, "wait_timeout": 5}
    plan = await used.plan(**change)
    assert not any(action.refused for action in plan.actions)
    assert any(action.disruption != "none" for action in plan.actions)
    report = await used.apply(**change)
    assert report.actions == plan.actions
    assert used.engine.changes
    follow_up = await used.plan()
    assert follow_up.actions == ()


@pytest.mark.parametrize("name", CHANGES)
async def test_free_where_nobody_uses_the_volume(used, name):
    used.engine.open_volume("db01", clients=0)
    plan = await used.plan(**CHANGES[name])
    assert not any(action.refused for action in plan.actions)


async def test_one_of_two_paths_may_go_under_use(used):
    report = await used.apply(absent={"target_portals": {TARGET: [P2]}})
    assert (report.changed, report.status) == (True, "in_sync")
    assert set(used.engine.sessions) == {f"{TARGET}@{P1}"}


async def test_the_last_working_path_may_not_go_though_a_broken_one_stays(used, target):
    target.faults[P1] = "refused"
    await used.engine.observe()
    await used.engine.observe()
    with pytest.raises(BlockfleetError) as caught:
        await used.apply(absent={"target_portals": {TARGET: [P2]}})
    assert caught.value.code is Isdsc.DISRUPTION_REFUSED
    assert "last path" in str(caught.value)


async def test_another_unit_for_a_volume_in_use_is_refused(used, target):
    target.units = (disk(0, IDENTITY), disk(1, "naa.6000000000000009"))
    with pytest.raises(BlockfleetError) as caught:
        await used.apply(document={"volumes": [{"name": "db01", "lun": 1}]})
    assert caught.value.code is Isdsc.DISRUPTION_REFUSED


async def test_relogin_now_goes_path_by_path(used, target):
    target.secret = "another-horse-battery"
    change = CHANGES["relogin-now"]
    options = {"relogin": "now", "allow_disruption": True}
    report = await used.apply(document=change["document"], options=options)
    assert report.status == "in_sync"
    assert used.engine.changes == [
        ("open_session", f"{TARGET}@{P1}"),
        ("relogin", f"{TARGET}@{P1}"),
        ("open_session", f"{TARGET}@{P2}"),
        ("relogin", f"{TARGET}@{P2}"),
    ]
    assert [s.logins for s in used.engine.sessions.values()] == [2, 2]


async def test_relogin_with_a_wrong_secret_costs_one_path_and_no_more(used, target):
    target.secret = SECRET
    change = CHANGES["relogin-now"]
    options = {"relogin": "now", "allow_disruption": True, "wait_timeout": 5}
    report = await used.apply(document=change["document"], options=options)
    assert report.status == "not_verified"
    assert [p.code for p in report.problems] == [Isdsc.AUTHENTICATION_FAILURE]
    state = await used.engine.observe()
    assert sorted(session.phase for session in state.sessions) == ["failed", "logged_in"]
    assert [call for call in used.engine.calls if call[0] == "relogin"] == [("relogin", f"{TARGET}@{P1}")]


async def test_relogin_now_with_a_path_down_waits_for_it_before_it_touches_the_other(used, target):
    options = {"relogin": "now", "allow_disruption": True, "wait_timeout": 5}
    target.secret = SECRET
    await used.apply(document=CHANGES["relogin-now"]["document"], options=options)
    both_down = []
    relogin = used.engine.relogin

    async def watched(key):
        await relogin(key)
        phases = {session.phase for session in (await used.engine.observe()).sessions}
        both_down.append("logged_in" not in phases)

    used.engine.relogin = watched
    target.secret = "third-horse-battery"
    document = {"targets": [{"name": TARGET, "chap": {"secret": target.secret}}]}
    assert (await used.apply(document=document, options=options)).status == "in_sync"
    assert both_down == [False, False]
    assert [session.in_use.credentials.secret.get_secret_value() for session in used.engine.sessions.values()] == [
        target.secret,
        target.secret,
    ]


async def test_drift_that_is_in_use_stays_and_is_told(used):
    stray = used.engine.serve("iqn.2026-11.com.example:stray", P1)
    stray.units = (disk(0, "naa.600000000000000a"),)
    key = f"{stray.name}@{P1}"
    spec = used.engine.sessions[f"{TARGET}@{P1}"].spec
    await used.engine.open_session(spec.model_copy(update={"key": key, "target": stray.name}))
    volume = used.engine.volumes["db01"].spec
    await used.engine.publish(
        volume.model_copy(update={"name": "stray", "identity": "naa.600000000000000a", "targets": (stray.name,)})
    )
    used.engine.open_volume("stray")
    for _ in range(3):
        await used.engine.observe()
    used.engine.calls.clear()
    drift = await used.agent.drift()
    assert [(action.subject, bool(action.refused)) for action in drift.actions] == [("stray", True), (key, True)]
    assert drift.changed is False
    report = await used.apply(options={"wait_timeout": 2})
    assert (report.changed, report.status) == (False, "not_verified")
    assert {p.code for p in report.problems} == {Isdsc.DISRUPTION_REFUSED}
    assert used.engine.changes == []
    used.engine.open_volume("stray", clients=0)
    assert (await used.apply()).status == "in_sync"
    assert set(used.engine.volumes) == {"db01"}
