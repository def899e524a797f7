# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies of volumes and roles of their paths as they are declared; the bad ones have the guide's error codes."""

from __future__ import annotations

import pytest

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_change, load_document
from blockfleet.model.merge import merge, plain

TARGET = "iqn.2026-11.com.example:db"
P1, P2, P3 = "192.0.2.10:3260", "192.0.2.11:3260", "[2001:db8::10]:3260"


def document(target=None, volume=None, **fields):
    targets = [{"name": TARGET, "portals": [P1, P2], **(target or {})}]
    volumes = [{"name": "db01", "target": TARGET, "lun": 0}, {"name": "db02", "target": TARGET, "lun": 1}]
    return load_document({"targets": targets, "volumes": [volumes[0], volumes[1] | (volume or {})], **fields})


@pytest.mark.parametrize(
    "policy",
    [
        "fail_over_only",
        "round_robin",
        "round_robin_with_subset",
        "weighted_path",
        "least_queue_depth",
        "service_time",
    ],
)
def test_each_policy_can_be_declared_for_a_volume_a_target_and_the_host(policy):
    found = document({"policy": policy}, {"policy": policy}, policy=policy)
    assert (found.targets[0].policy, found.volumes[1].policy, found.policy) == (policy,) * 3
    assert found.volumes[0].policy is None


def test_roles_are_written_the_same_way_everywhere_and_failback_is_the_default():
    found = document(
        {"portals": [P1, P3], "paths": [{"portal": "2001:db8::10", "primary": True}, {"portal": "192.0.2.10"}]}
    )
    assert [(p.portal, p.primary, p.standby, p.weight) for p in found.targets[0].paths] == [
        (P3, True, False, 0),
        (P1, False, False, 0),
    ]
    assert (found.failback, found.targets[0].failback, found.volumes[0].paths) == (True, None, None)


BAD_PATHS = [
    ([{"portal": P1}, {"portal": "192.0.2.10"}], "paths", Isdsc.DUPLICATE_PATH_SPECIFIED, "twice"),
    (
        [{"portal": P1, "primary": True}, {"portal": P2, "primary": True}],
        "paths",
        Isdsc.MULTIPLE_PRIMARY_PATHS_SPECIFIED,
        "2 primary paths",
    ),
    ([{"portal": P1, "primary": True, "standby": True}], "paths", Isdsc.NO_PRIMARY_PATH_SPECIFIED, "in standby"),
    (
        [{"portal": P1, "standby": True}, {"portal": P2, "standby": True}],
        "paths",
        Isdsc.NO_PRIMARY_PATH_SPECIFIED,
        "let one of them be active",
    ),
    ([{"portal": P3}], "paths", Isdsc.INVALID_PATH_ID, f"no path via {P3}"),
    ([{"portal": P1, "weight": 65536}], "paths[0].weight", Isdsc.DOCUMENT_INVALID, "65536"),
    ([{"portal": P1, "weight": -1}], "paths[0].weight", Isdsc.DOCUMENT_INVALID, "-1"),
    ([{"portal": P1, "weight": True}], "paths[0].weight", Isdsc.DOCUMENT_INVALID, "number"),
    ([{"portal": "192.0.2.1:0"}], "paths[0].portal", Isdsc.DOCUMENT_INVALID, "1 to 65535"),
    ([{"weight": 1}], "paths[0].portal", Isdsc.MISSING_PARAMETER, "missing"),
    ([{"portal": P1, "primry": True}], "paths[0].primry", Isdsc.DOCUMENT_INVALID, "no such field"),
]


@pytest.mark.parametrize("where", ["target", "volume"])
@pytest.mark.parametrize(
    ("paths", "field", "code", "words"), BAD_PATHS, ids=[f"{b[2].name}-{b[3]}" for b in BAD_PATHS]
)
def test_roles_that_make_no_sense_are_refused_with_their_field(where, paths, field, code, words):
    with pytest.raises(BlockfleetError) as caught:
        document(**{where: {"paths": paths}})
    owner = {"target": "targets[0]", "volume": "volumes[1]"}[where]
    assert (caught.value.field, caught.value.code) == (f"{owner}.{field}", code)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"policy": "fastest"}, "policy"),
        ({"target": {"policy": "vendor"}}, "targets[0].policy"),
        ({"volume": {"policy": "service-time"}}, "volumes[1].policy"),
        ({"target": {"connection_policy": "service_time"}}, "targets[0].connection_policy"),
    ],
)
def test_a_policy_that_there_is_not_is_refused(fields, field):
    with pytest.raises(BlockfleetError) as caught:
        document(**fields)
    assert (caught.value.field, caught.value.code) == (field, Isdsc.INVALID_LOAD_BALANCE_POLICY)


def test_roles_at_all_portals_are_taken_unseen():
    found = document({"portals": "all", "paths": [{"portal": P3, "standby": True}]})
    assert found.targets[0].paths[0].portal == P3


def changed(before, **change):
    return merge(before, load_change(change))


ROLES = [{"portal": P1, "weight": 7}, {"portal": P2, "primary": True}]


def test_a_merge_takes_roles_whole_and_null_takes_them_away():
    before = document({"paths": ROLES, "policy": "weighted_path", "failback": False})
    after = changed(before, document={"targets": [{"name": TARGET, "paths": [{"portal": P2, "weight": 3}]}]})
    target = after.targets[0]
    assert [(p.portal, p.weight, p.primary) for p in target.paths] == [(P2, 3, False)]
    assert (target.policy, target.failback) == ("weighted_path", False)
    gone = changed(after, document={"targets": [{"name": TARGET, "paths": None, "failback": None}]}).targets[0]
    assert (gone.paths, gone.failback, gone.policy) == (None, None, "weighted_path")


def test_without_its_policy_a_target_has_no_roles_and_the_host_fails_back():
    before = document({"paths": ROLES, "policy": "weighted_path", "failback": False}, failback=False)
    after = changed(before, absent={"policies": [TARGET, "default"]})
    assert (after.targets[0].policy, after.targets[0].paths, after.targets[0].failback) == (None, None, None)
    assert (after.policy, after.failback) == ("fail_over_only", True)


@pytest.mark.parametrize(
    "change",
    [
        {"absent": {"target_portals": {TARGET: ["192.0.2.11"]}}},
        {"document": {"targets": [{"name": TARGET, "portals": ["192.0.2.10"]}]}, "exclusive": ["targets.portals"]},
    ],
    ids=["absent", "exclusive"],
)
def test_the_roles_of_a_portal_that_is_taken_away_go_with_it(change):
    before = document({"paths": ROLES}, {"paths": [{"portal": P2, "standby": True}]})
    after = changed(before, **change)
    assert [p.portal for p in after.targets[0].paths] == [P1]
    assert after.volumes[1].paths is None


def test_roles_stay_for_the_next_login_when_the_last_one_is_taken_away():
    before = document({"paths": ROLES})
    after = changed(before, absent={"target_portals": {TARGET: "all"}})
    assert (after.targets[0].portals, after.targets[0].paths) == (None, before.targets[0].paths)


def test_roles_that_a_change_itself_declares_are_not_corrected():
    target = {"name": TARGET, "portals": [P1], "paths": [{"portal": P2, "primary": True}]}
    with pytest.raises(BlockfleetError) as caught:
        changed(document(), document={"targets": [target]}, exclusive=["targets.portals"])
    assert caught.value.code == Isdsc.INVALID_PATH_ID


def test_the_error_of_a_merge_names_the_place_in_the_change():
    with pytest.raises(BlockfleetError) as caught:
        changed(document(), document={"volumes": [{"name": "db02", "paths": [{"portal": P3}]}]})
    assert caught.value.field == "volumes[0].paths"


def test_a_document_survives_its_own_plain_form():
    whole = document({"paths": ROLES, "failback": False}, {"paths": ROLES[:1], "failback": True}, failback=False)
    assert load_document(plain(whole)) == whole


@pytest.mark.parametrize("name", [["192.0.2.1"], {"a": 1}, 7, None], ids=["list", "object", "number", "nothing"])
@pytest.mark.parametrize("kind", ["targets", "volumes"])
@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_a_name_that_is_no_text_is_one_error_where_there_are_roles(kind, name, mode):
    state = document({"paths": [{"portal": P1, "primary": True}]})
    change = load_change({"version": 1, "mode": mode, "document": {kind: [{"name": name, "portals": [P2]}]}})
    with pytest.raises(BlockfleetError) as caught:
        merge(state, change)
    assert str(caught.value.field).startswith(kind)
