# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections of a session as they are declared."""

from __future__ import annotations

import pytest

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_change, load_document
from blockfleet.model.merge import merge

TARGET = "iqn.2026-11.com.example:db"


def document(**fields):
    return load_document({"targets": [{"name": TARGET, "portals": "all", **fields}]})


def test_what_is_left_out_is_not_declared():
    target = document().targets[0]
    assert (target.connections, target.leading_connection, target.connection_policy) == (None, None, None)


def test_connections_may_share_a_portal_which_is_written_the_same_way_everywhere():
    target = document(connections=[{"portal": "2001:db8::10", "weight": 7}, {"standby": True}, {}]).targets[0]
    assert [(c.portal, c.weight, c.standby) for c in target.connections] == [
        ("[2001:db8::10]:3260", 7, False),
        (None, 0, True),
        (None, 0, False),
    ]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_error_recovery_level_that_is_offered_can_be_declared(level):
    assert document(login={"error_recovery_level": level}).targets[0].login.error_recovery_level == level


BAD = [
    ({"login": {"error_recovery_level": 3}}, "login.error_recovery_level", Isdsc.DOCUMENT_INVALID, "3"),
    ({"login": {"error_recovery_level": True}}, "login.error_recovery_level", Isdsc.DOCUMENT_INVALID, "number"),
    ({"connections": [{}] * 8}, "connections", Isdsc.TOO_MANY_CONNECTIONS, "8 at most"),
    ({"connections": [{"weight": 65536}]}, "connections[0].weight", Isdsc.DOCUMENT_INVALID, "65536"),
    ({"connections": [{}, {"weight": -1}]}, "connections[1].weight", Isdsc.DOCUMENT_INVALID, "-1"),
    ({"connections": [{"portal": "192.0.2.1:0"}]}, "connections[0].portal", Isdsc.DOCUMENT_INVALID, "1 to 65535"),
    ({"connections": [{"wieght": 1}]}, "connections[0].wieght", Isdsc.DOCUMENT_INVALID, "no such field"),
    ({"connection_policy": "fastest"}, "connection_policy", Isdsc.INVALID_LOAD_BALANCE_POLICY, "'fastest'"),
    (
        {"leading_connection": {"standby": True}, "connections": [{"standby": True}]},
        "connections",
        Isdsc.NO_PRIMARY_PATH_SPECIFIED,
        "standby",
    ),
    ({"leading_connection": {"standby": True}}, "connections", Isdsc.NO_PRIMARY_PATH_SPECIFIED, "standby"),
]


@pytest.mark.parametrize(("fields", "field", "code", "words"), BAD, ids=[f"{b[1]}-{b[3]}" for b in BAD])
def test_what_makes_no_sense_is_refused_with_its_field(fields, field, code, words):
    with pytest.raises(BlockfleetError) as caught:
        document(**fields)
    assert (caught.value.field, caught.value.code) == (f"targets[0].{field}", code)
    assert words in str(caught.value)


def test_seven_further_connections_are_as_many_as_there_may_be():
    assert len(document(connections=[{}] * 7).targets[0].connections) == 7


def changed(before, **fields):
    return merge(before, load_change({"document": {"targets": [{"name": TARGET, **fields}]}})).targets[0]


def test_a_merge_takes_the_connections_of_a_change_whole_and_leaves_the_policy():
    before = document(connections=[{"weight": 3}, {}], connection_policy="weighted_path")
    assert [c.weight for c in changed(before, connections=[{"weight": 9}]).connections] == [9]
    assert changed(before, connections=[]).connections == ()
    assert changed(before, connections=[]).connection_policy == "weighted_path"
    assert changed(before, connections=None, connection_policy=None).connections is None


def test_taking_an_option_away_that_was_never_declared_is_no_change():
    before = document()
    assert changed(before, login={"error_recovery_level": None, "login_timeout": None}) == before.targets[0]
    declared = document(login={"error_recovery_level": 1, "login_timeout": 3})
    after = changed(declared, login={"error_recovery_level": None})
    assert (after.login.error_recovery_level, after.login.login_timeout) == (None, 3)
