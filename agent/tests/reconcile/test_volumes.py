# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume is the unit it was bound to, or it is not served."""

from __future__ import annotations

import pytest
from tests.reconcile.host import IDENTITY, P1, P2, TARGET, login
from tests.reconcile.simulated_engine import disk

from blockfleet.model.isdsc import Isdsc

OTHER = "naa.6000000000000002"


def volume(name="db01", **fields):
    return {"name": name, "target": TARGET, **fields}


def declared(*volumes):
    return {**login(P1, P2), "volumes": list(volumes)}


async def test_two_sessions_to_one_unit_are_one_volume_with_two_paths(host):
    report = await host.apply(document=declared(volume(lun=0)))
    assert report.status == "in_sync"
    (state,) = (await host.engine.observe()).volumes
    assert (state.identity, len(state.paths)) == (IDENTITY, 2)


async def test_a_volume_is_found_by_its_identity_whatever_its_lun(host, target):
    target.units = (disk(0, OTHER), disk(7, IDENTITY))
    await host.apply(document=declared(volume(identity=IDENTITY)))
    assert host.engine.volumes["db01"].spec.identity == IDENTITY


@pytest.mark.parametrize(
    ("units", "fields", "code", "says"),
    [
        ((disk(0, IDENTITY),), {"lun": 3}, Isdsc.VOLUME_NOT_FOUND, "shows LUN 0"),
        ((), {"lun": 0}, Isdsc.VOLUME_NOT_FOUND, "shows no logical unit"),
        ((disk(0, IDENTITY),), {"identity": OTHER}, Isdsc.VOLUME_NOT_FOUND, OTHER),
        ((disk(0, IDENTITY),), {"lun": 0, "identity": OTHER}, Isdsc.IDENTITY_MISMATCH, f"bound to {OTHER}"),
        ((disk(0, IDENTITY), disk(1, IDENTITY)), {"lun": 0}, Isdsc.VOLUME_AMBIGUOUS, "LUN 0 and LUN 1"),
        ((disk(0, IDENTITY), disk(1, IDENTITY)), {"identity": IDENTITY}, Isdsc.VOLUME_AMBIGUOUS, "LUN 0 and LUN 1"),
        ((disk(0, IDENTITY, weak=True), disk(1, IDENTITY, weak=True)), {"lun": 1}, Isdsc.VOLUME_AMBIGUOUS, "LUN 1"),
        ((disk(0, ""),), {"lun": 0}, Isdsc.REQUEST_NOT_SUPPORTED, "no identity"),
        ((disk(0, IDENTITY, device_type=5),), {"lun": 0}, Isdsc.REQUEST_NOT_SUPPORTED, "device type 5"),
    ],
    ids=[
        "lun-not-there",
        "no-units",
        "identity-not-there",
        "other-identity",
        "lun-whose-unit-has-two",
        "identity-on-two",
        "weak-identity-on-two",
        "no-identity",
        "no-disk",
    ],
)
async def test_a_volume_that_cannot_be_told_for_certain_is_not_served(host, target, units, fields, code, says):
    target.units = units
    report = await host.apply(document=declared(volume(**fields)), options={"wait_timeout": 3})
    assert report.status == "not_verified"
    assert [(p.code, p.subject) for p in report.problems] == [(code, "db01")]
    assert says in report.problems[0].message
    assert host.engine.volumes == {}


async def test_portals_that_show_different_units_at_one_lun_are_refused(host, target):
    target.units_at = {P2: (disk(0, OTHER),)}
    report = await host.apply(document=declared(volume(lun=0)), options={"wait_timeout": 3})
    assert [p.code for p in report.problems] == [Isdsc.VOLUME_AMBIGUOUS]
    assert host.engine.volumes == {}


async def test_two_names_for_one_unit_are_refused(host):
    document = declared(volume("a", lun=0), volume("b", identity=IDENTITY))
    report = await host.apply(document=document, options={"wait_timeout": 3})
    assert [(p.code, p.subject) for p in report.problems] == [(Isdsc.VOLUME_ALREADY_PERSISTENTLY_BOUND, "b")]
    assert list(host.engine.volumes) == ["a"]


async def test_a_unit_that_was_swapped_while_nobody_looked_is_not_served(host, target):
    await host.apply(document=declared(volume(lun=0)))
    target.units = (disk(0, OTHER),)
    host.engine.restart()
    host.restart_agent()
    report = await host.apply(options={"wait_timeout": 3})
    assert [p.code for p in report.problems] == [Isdsc.IDENTITY_MISMATCH]
    assert host.engine.volumes == {}
    status = await host.agent.status()
    verified = next(c for c in status.volumes[0].conditions if c.type == "Verified")
    assert (verified.status, verified.reason) == ("False", "IdentityMismatch")


async def test_removing_and_declaring_a_volume_again_binds_it_anew(host, target):
    await host.apply(document=declared(volume(lun=0)))
    target.units = (disk(0, OTHER),)
    await host.apply(absent={"volumes": ["db01"]})
    report = await host.apply(document=declared(volume(lun=0)))
    assert report.status == "in_sync"
    assert host.engine.volumes["db01"].spec.identity == OTHER


async def test_another_lun_for_a_name_is_another_unit_and_served_anew(host, target):
    target.units = (disk(0, IDENTITY), disk(1, OTHER))
    await host.apply(document=declared(volume(lun=0)))
    report = await host.apply(document=declared(volume(lun=1)))
    assert report.status == "in_sync"
    assert [call for call in host.engine.calls if call[1] == "db01"] == [
        ("publish", "db01"),
        ("withdraw", "db01"),
        ("publish", "db01"),
    ]
    assert host.store.bindings["db01"].identity == OTHER


@pytest.mark.parametrize(
    ("document_policy", "target_policy", "volume_policy", "expected"),
    [
        (None, None, None, "fail_over_only"),
        ("round_robin", None, None, "round_robin"),
        ("round_robin", "fail_over_only", None, "fail_over_only"),
        ("fail_over_only", "fail_over_only", "round_robin", "round_robin"),
    ],
)
async def test_a_policy_is_the_volumes_then_the_targets_then_the_documents(
    host, document_policy, target_policy, volume_policy, expected
):
    document = {**login(P1, policy=target_policy), "volumes": [volume(lun=0, policy=volume_policy)]}
    if document_policy:
        document["policy"] = document_policy
    await host.apply(document=document)
    assert host.engine.volumes["db01"].spec.policy == expected


async def test_a_policy_changes_under_the_users_of_a_volume(host):
    await host.apply(document=declared(volume(lun=0)))
    host.engine.open_volume("db01")
    report = await host.apply(document={"targets": [{"name": TARGET, "policy": "round_robin"}]})
    assert [action.text for action in report.actions] == [
        f"+ policy {TARGET}: round_robin",
        "~ volume db01 served: policy fail_over_only -> round_robin",
    ]
    assert report.status == "in_sync"
    assert ("withdraw", "db01") not in host.engine.calls


async def test_a_volume_whose_target_nobody_logs_in_to_says_so(host):
    report = await host.apply(document={"volumes": [volume(lun=0)]}, options={"wait_timeout": 3})
    assert [p.code for p in report.problems] == [Isdsc.TARGET_MAPPING_UNAVAILABLE]
    assert "declare its portals" in report.problems[0].message
    report = await host.apply(document=login(P1))
    assert report.status == "in_sync"
    assert list(host.engine.volumes) == ["db01"]
