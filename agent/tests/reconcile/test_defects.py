# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module of community.general did wrong, each as a rule that holds here (letters as its defects)."""

from __future__ import annotations

import pytest
from tests.reconcile.host import P1, P2, TARGET, login
from tests.reconcile.simulated_engine import SimulatedTarget

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_change

SECRET = "correct-horse-battery"


def opened(host):
    return [key for call, key in host.engine.calls if call == "open_session"]


def closed(host):
    return [key for call, key in host.engine.calls if call == "close_session"]


async def test_a_login_goes_to_the_given_portal_only(host):
    report = await host.apply(document=login(P1))
    assert (report.changed, report.status) == (True, "in_sync")
    assert opened(host) == [f"{TARGET}@{P1}"]


async def test_a_login_goes_to_the_given_portal_only_though_discovery_shows_two(host):
    await host.apply(document={"discovery": {"portals": [{"portal": P1}]}})
    await host.apply(document=login(P2))
    assert opened(host) == [f"{TARGET}@{P2}"]


async def test_b_logout_of_one_portal_leaves_the_other(host):
    await host.apply(document=login(P1, P2))
    report = await host.apply(absent={"target_portals": {TARGET: [P1]}})
    assert report.changed
    assert closed(host) == [f"{TARGET}@{P1}"]
    assert set(host.engine.sessions) == {f"{TARGET}@{P2}"}
    assert (await host.apply(absent={"target_portals": {TARGET: [P1]}})).changed is False


async def test_c_a_dry_run_changes_nothing_on_the_host(host):
    await host.apply(document=login(P1))
    host.engine.calls.clear()
    generation = host.store.desired.generation
    plan = await host.plan(
        document={**login(P2), "volumes": [{"name": "v", "target": TARGET, "lun": 0}]},
        absent={"target_portals": {TARGET: [P1]}},
    )
    assert plan.changed
    assert host.engine.changes == []
    assert host.store.desired.generation == generation


@pytest.mark.parametrize("spelling", ["[2001:db8::10]:3260", "2001:db8::10", "[2001:DB8:0:0::10]"])
async def test_d_an_ipv6_portal_that_is_logged_in_is_recognised(host, spelling):
    await host.apply(document=login(P2))
    report = await host.apply(document=login(spelling))
    assert (report.changed, report.status) == (False, "in_sync")
    assert opened(host) == [f"{TARGET}@{P2}"]


async def test_e_a_target_without_a_name_is_refused_before_anything_changes(host):
    with pytest.raises(BlockfleetError) as caught:
        await host.apply(document={"targets": [{"portals": [P1]}]})
    assert (caught.value.code, caught.value.field) == (Isdsc.MISSING_PARAMETER, "targets[0].name")
    assert host.engine.changes == []


async def test_f_logout_of_several_targets_at_once(host):
    other = "iqn.2026-11.com.example:other"
    host.engine.serve(other, P1)
    await host.apply(document={"targets": [*login(P1)["targets"], *login(P1, name=other)["targets"]]})
    report = await host.apply(absent={"target_portals": {TARGET: "all", other: "all"}})
    assert report.changed
    assert host.engine.sessions == {}


async def test_g_a_new_secret_on_a_session_that_is_logged_in_is_a_change(host, target):
    target.secret = SECRET
    chap = {"user": "host", "secret": SECRET}
    await host.apply(document=login(P1, chap=chap))
    target.secret = "another-horse-battery"
    report = await host.apply(document=login(P1, chap={"user": "host", "secret": target.secret}))
    assert report.changed
    assert [action.text for action in report.actions] == [
        f"~ chap {TARGET}: secret (sensitive) changed",
        f"~ session {TARGET} via {P1}: new credentials, from its next login on",
    ]
    session = host.engine.sessions[f"{TARGET}@{P1}"]
    assert session.logins == 1
    assert session.spec.credentials.secret.get_secret_value() == target.secret
    assert (await host.apply(document=login(P1, chap={"user": "host", "secret": target.secret}))).changed is False


async def test_h_a_name_that_begins_like_another_is_another(host):
    longer = f"{TARGET}10"
    host.engine.serve(longer, P1)
    await host.apply(document=login(P1, name=longer))
    report = await host.apply(document=login(P1))
    assert report.changed
    assert set(host.engine.sessions) == {f"{TARGET}@{P1}", f"{longer}@{P1}"}


async def test_i_a_secret_is_in_no_plan_report_or_event(host, target, caplog):
    target.secret = SECRET
    document = login(P1, chap={"user": "host", "secret": SECRET, "mutual_secret": "mutual-mutual-mutual"})
    plan = await host.plan(document=document)
    report = await host.apply(document=document)
    shown = [plan, report, await host.agent.status(), await host.agent.desired_view()]
    shown += await host.agent.events(0, 100)
    text = "".join(f"{item!r}{item.model_dump_json()}" for item in shown) + caplog.text + repr(host.store.desired)
    assert SECRET not in text
    assert "mutual-mutual" not in text


async def test_j_discovery_changes_nothing_but_what_is_known(host):
    await host.apply(document=login(P1, policy="round_robin", lifetime="boot"))
    before = host.store.desired
    host.engine.calls.clear()
    for _ in range(2):
        report = await host.agent.discover([P1])
        assert [t.target for t in report.targets] == [TARGET]
    assert host.store.desired == before
    assert host.engine.changes == []
    assert (await host.plan(document=login(P1))).changed is False


async def test_j_declaring_a_discovery_portal_twice_changes_once(host):
    document = {"discovery": {"portals": [{"portal": P1}]}}
    assert (await host.apply(document=document)).changed is True
    assert (await host.apply(document=document)).changed is False
    assert [call for call, _ in host.engine.calls].count("discover") == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("refused", Isdsc.CONNECTION_FAILED),
        ("black_hole", Isdsc.SERVICE_DID_NOT_RESPOND),
        ("garbage", Isdsc.PROTOCOL_ERROR),
        ("not_found", Isdsc.TARGET_NOT_FOUND),
    ],
)
async def test_k_a_login_that_fails_is_reported_with_portal_and_cause_in_bounded_time(host, target, fault, code):
    target.faults[P1] = fault
    report = await host.agent.apply(load_change({"document": login(P1), "options": {"wait_timeout": 7}}))
    assert (report.status, report.verified) == ("not_verified", False)
    assert [(p.code, p.subject) for p in report.problems] == [(code, f"{TARGET}@{P1}")]
    assert report.waited <= 7.1
    # The engine keeps trying by itself; asking again does not add logins.
    calls = len(opened(host))
    assert (await host.apply(document=login(P1), options={"wait_timeout": 3})).status == "not_verified"
    assert len(opened(host)) == calls


async def test_k_a_wrong_secret_fails_at_once_and_the_right_one_logs_in_at_once(host, target):
    target.secret = SECRET
    report = await host.apply(document=login(P1, chap={"user": "host", "secret": "wrong-wrong-wrong"}))
    assert report.status == "not_verified"
    assert report.problems[0].code == Isdsc.AUTHENTICATION_FAILURE
    assert report.waited < 5
    report = await host.apply(document=login(P1, chap={"user": "host", "secret": SECRET}))
    assert report.status == "in_sync"


async def test_k_all_portals_of_a_target_that_nobody_shows(host):
    ghost = "iqn.2026-11.com.example:ghost"
    document = {"discovery": {"portals": [{"portal": P1}]}, "targets": [{"name": ghost, "portals": "all"}]}
    report = await host.apply(document=document)
    assert [p.code for p in report.problems] == [Isdsc.TARGET_NOT_FOUND]
    assert P1 in report.problems[0].message
    host.engine.targets[ghost] = SimulatedTarget(ghost, {P1: 1})
    host.time.now += 10
    assert (await host.apply(document=document)).status == "in_sync"
