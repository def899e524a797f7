# SPDX-License-Identifier: GPL-3.0-or-later
"""Laying a change over the desired state: by name, given fields win, what is absent goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.model.desired import Document
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_change
from blockfleet.model.merge import merge, plain

T, U = "iqn.2026-11.com.example:db", "iqn.2026-11.com.example:log"
A, B = "192.0.2.1:3260", "192.0.2.2:3260"
SECRET = "canary-canary-canary"


def laid(*changes, over=None):
    document = over or Document()
    for change in changes:
        document = merge(document, load_change(change))
    return document


def named(document, name=T):
    return next(target for target in document.targets if target.name == name)


def document(**fields):
    return {"document": fields}


def test_modules_own_parts_of_one_target():
    result = laid(
        document(targets=[{"name": T, "chap": {"user": "host", "secret": SECRET}}]),
        document(targets=[{"name": T.upper(), "portals": [A]}]),
        document(targets=[{"name": T, "policy": "round_robin"}]),
    )
    target = named(result)
    assert (target.portals, target.policy, target.chap.user) == ((A,), "round_robin", "host")
    assert len(result.targets) == 1


def test_credentials_may_come_before_the_login():
    assert named(laid(document(targets=[{"name": T, "chap": {"user": "u", "secret": SECRET}}]))).portals is None


def test_given_fields_win_and_null_takes_away():
    result = laid(
        document(
            targets=[{"name": T, "portals": [A], "min_paths": 1, "login": {"noop_interval": 9, "noop_timeout": 4}}]
        ),
        document(targets=[{"name": T, "min_paths": None, "login": {"noop_interval": 2}}]),
    )
    assert named(result).min_paths is None
    assert (named(result).login.noop_interval, named(result).login.noop_timeout) == (2, 4)


def test_portals_of_a_target_are_added_and_keep_their_order():
    result = laid(document(targets=[{"name": T, "portals": [B]}]), document(targets=[{"name": T, "portals": [A]}]))
    assert named(result).portals == (B, A)
    assert laid(document(targets=[{"name": T, "portals": ["192.0.2.1"]}]), over=result) == result


def test_all_covers_every_portal():
    everything = laid(document(targets=[{"name": T, "portals": "all"}]))
    assert laid(document(targets=[{"name": T, "portals": [A]}]), over=everything) == everything
    result = laid(
        {**document(targets=[{"name": T, "portals": [A]}]), "exclusive": ["targets.portals"]}, over=everything
    )
    assert named(result).portals == (A,)


@pytest.mark.parametrize(
    ("exclusive", "change", "kept"),
    [
        ("targets", {"targets": [{"name": U}]}, {"targets": [U]}),
        ("volumes", {"volumes": []}, {"volumes": []}),
        ("discovery.portals", {"discovery": {"portals": [{"portal": B}]}}, {"discovery": [B]}),
        ("discovery.static", {"discovery": {"static": []}}, {"static": []}),
    ],
)
def test_exclusive_lists_lose_what_is_not_named(exclusive, change, kept):
    full = laid(
        document(
            targets=[{"name": T}, {"name": U, "policy": "round_robin"}],
            volumes=[{"name": "v", "target": T, "lun": 0}],
            discovery={"portals": [{"portal": A}, {"portal": B}], "static": [{"target": T, "portals": [A]}]},
        )
    )
    assert laid({"document": change}, over=full) == full
    result = laid({"document": change, "exclusive": [exclusive]}, over=full)
    found = {
        "targets": [t.name for t in result.targets],
        "volumes": [v.name for v in result.volumes],
        "discovery": [p.portal for p in result.discovery.portals],
        "static": [s.target for s in result.discovery.static],
    }
    before = {
        "targets": [T, U],
        "volumes": ["v"],
        "discovery": [A, B],
        "static": [T],
    }
    assert found == {**before, **kept}


def test_a_list_that_is_not_given_is_not_owned_though_named_exclusive():
    full = laid(document(targets=[{"name": T}]))
    assert laid({"document": {}, "exclusive": ["targets", "volumes"]}, over=full) == full


FULL = {
    "discovery": {
        "portals": [{"portal": A, "chap": {"user": "d", "secret": "discovery-secret"}}],
        "static": [{"target": T, "portals": [A]}],
    },
    "policy": "round_robin",
    "targets": [
        {
            "name": T,
            "portals": [A, B],
            "min_paths": 2,
            "lifetime": "boot",
            "policy": "round_robin",
            "chap": {"user": "host", "secret": SECRET},
        }
    ],
    "volumes": [{"name": "v", "target": T, "lun": 0}],
}


@pytest.mark.parametrize(
    ("absent", "check"),
    [
        ({"discovery_portals": ["192.0.2.1"]}, lambda d: d.discovery.portals == ()),
        ({"static_targets": [T]}, lambda d: d.discovery.static == ()),
        ({"targets": [T]}, lambda d: d.targets == ()),
        ({"chap": [T]}, lambda d: named(d).chap is None and named(d).portals == (A, B)),
        ({"chap": ["discovery"]}, lambda d: d.discovery.portals[0].chap is None),
        ({"policies": [T]}, lambda d: named(d).policy is None),
        ({"policies": ["default"]}, lambda d: d.policy == "fail_over_only"),
        ({"volumes": ["v"]}, lambda d: d.volumes == ()),
        (
            {"target_portals": {T: "all"}},
            lambda d: (
                (named(d).portals, named(d).min_paths, named(d).lifetime) == (None, None, None)
                and named(d).chap.user == "host"
            ),
        ),
        (
            {"target_portals": {T: "all"}, "chap": [T], "policies": [T]},
            lambda d: d.targets == (),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_absent_takes_away_and_a_second_time_changes_nothing(absent, check):
    result = laid(document(**FULL), {"absent": absent})
    assert check(result)
    assert laid({"absent": absent}, over=result) == result


@pytest.mark.parametrize(
    "absent", [{"targets": [U]}, {"volumes": ["w"]}, {"target_portals": {U: "all"}}, {"chap": [U]}]
)
def test_removing_what_is_not_there_is_no_change(absent):
    full = laid(document(**FULL))
    assert laid({"absent": absent}, over=full) == full


def test_a_portal_cannot_be_taken_from_all():
    full = laid(document(targets=[{"name": T, "portals": "all"}]))
    with pytest.raises(BlockfleetError) as caught:
        laid({"absent": {"target_portals": {T: [A]}}}, over=full)
    assert (caught.value.code, caught.value.field) == (Isdsc.DOCUMENT_INVALID, "absent.target_portals")


def test_taking_a_portal_that_min_paths_needs_says_so():
    with pytest.raises(BlockfleetError) as caught:
        laid(document(**FULL), {"absent": {"target_portals": {T: [A]}}})
    assert caught.value.code is Isdsc.PATH_COUNT_MISMATCH


def test_replace_forgets_what_it_does_not_name():
    result = laid(document(**FULL), {"mode": "replace", "document": {"targets": [{"name": U}]}})
    assert result == laid(document(targets=[{"name": U}]))


@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_a_secret_that_comes_back_as_it_was_shown_stays(mode):
    shown = {"set": True, "fingerprint": "00112233", "changed_at": "2026-11-21T00:00:00+00:00"}
    change = {"mode": mode, "document": {"targets": [{"name": T, "chap": {"user": "new", "secret": shown}}]}}
    target = named(laid(document(**FULL), change))
    assert (target.chap.user, target.chap.secret.get_secret_value()) == ("new", SECRET)


@pytest.mark.parametrize("value", [{"set": True}, {"set": False}, {"fingerprint": "00"}])
def test_a_shown_secret_that_is_not_stored_is_refused(value):
    with pytest.raises(BlockfleetError) as caught:
        laid(document(targets=[{"name": U, "chap": {"user": "u", "secret": value}}]))
    assert (caught.value.code, caught.value.field) == (Isdsc.INVALID_CHAP_SECRET, "targets[0].chap.secret")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"targets": [{"name": U}, {"name": "db"}]}, "targets[1].name"),
        ({"targets": [{"name": U, "portals": [A, "x:0"]}]}, "targets[0].portals[1]"),
        ({"targets": [{"portals": [A]}]}, "targets[0].name"),
        ({"targets": "all"}, "targets"),
        ({"targets": ["db"]}, "targets[0]"),
        ({"targets": [{"name": U, "chap": {"user": "u", "secret": "short"}}]}, "targets[0].chap.secret"),
        ({"targets": [{"name": U}, {"name": U}]}, "targets[1].name"),
        ({"volumes": [{"name": "w", "target": T, "lun": -1}]}, "volumes[0].lun"),
        ({"volumes": [{"name": "w"}]}, "volumes[0].target"),
        ({"discovery": []}, "discovery"),
        ({"discovery": {"portals": [{"portal": "x:0"}]}}, "discovery.portals[0].portal"),
        ({"discovery": {"isns": []}}, "discovery.isns"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)
def test_the_path_in_an_error_is_that_of_the_change(change, field):
    full = laid(document(**{**FULL, "targets": [{"name": f"{T}{n}"} for n in range(3)] + FULL["targets"]}))
    with pytest.raises(BlockfleetError) as caught:
        laid({"document": change}, over=full)
    assert caught.value.field == field
    assert field in str(caught.value)


# --- laws ----------------------------------------------------------------------------------------------------

entries = st.fixed_dictionaries(
    {"name": st.sampled_from([T, U, T.upper()])},
    optional={
        "portals": st.one_of(st.just("all"), st.lists(st.sampled_from([A, B, "[::1]"]), min_size=1, unique=True)),
        "policy": st.sampled_from(["fail_over_only", "round_robin"]),
        "chap": st.just({"user": "u", "secret": SECRET}),
        "login": st.fixed_dictionaries({}, optional={"noop_interval": st.integers(0, 9)}),
    },
)
parts = st.fixed_dictionaries(
    {},
    optional={
        "targets": st.lists(entries, max_size=3, unique_by=lambda e: e["name"].lower()),
        "policy": st.sampled_from(["fail_over_only", "round_robin"]),
        "initiator": st.fixed_dictionaries({}, optional={"alias": st.sampled_from(["a", "b"])}),
    },
)


@given(parts, parts)
def test_merging_is_idempotent(first, second):
    once = laid({"document": first}, {"document": second})
    assert laid({"document": second}, over=once) == once


@given(parts)
def test_an_empty_change_changes_nothing(first):
    before = laid({"document": first})
    assert laid({}, over=before) == before


@given(parts, parts)
def test_what_a_change_does_not_name_stays(first, second):
    before = laid({"document": first})
    after = laid({"document": second}, over=before)
    touched = {entry["name"].lower() for entry in second.get("targets", [])}
    for target in before.targets:
        if target.name not in touched:
            assert target == named(after, target.name)


@given(parts)
def test_replace_is_the_merge_into_nothing(first):
    replaced = laid(document(**FULL), {"mode": "replace", "document": first})
    assert replaced == laid({"document": first})


@given(parts)
def test_a_document_laid_over_itself_is_itself(first):
    before = laid({"document": first})
    assert laid({"document": plain(before)}, over=before) == before
