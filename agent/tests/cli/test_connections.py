# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs of connections change the declared ones; sessions and status show those that there are."""

from __future__ import annotations

import json
import re

import pytest
from tests.api.recording import STATUS, TARGET

from blockfleet.cli.main import GROUPS
from blockfleet.model.plan import DesiredView

P1, P3 = "192.0.2.10:3260", "192.0.2.13:3260"
UP = {"phase": "logged_in"}
MASKED = {"user": "h", "secret": {"set": True, "fingerprint": "0011aabb", "changed_at": ""}}


@pytest.fixture
def declared(agent):
    """Let a target be declared with connections."""

    def declare(*further, **fields):
        target = {"name": TARGET, "portals": [P1], "chap": MASKED, "connections": list(further), **fields}
        document = {"version": 1, "targets": [target]}
        agent.control.answers["desired"] = DesiredView(generation=7, document=document)

    return declare


def sent(agent):
    what, change = agent.control.asked[-1]
    assert what == "apply"
    (target,) = change.document["targets"]
    assert target.pop("name") == TARGET
    return target


@pytest.mark.parametrize("verb", [(n, v.__name__) for n, (_, vs) in GROUPS.items() for v in vs], ids=" ".join)
def test_every_verb_of_two_words_has_json_and_help(cli, verb):
    outcome = cli(*verb, "--help")
    assert (outcome.code, "--json" in outcome.out) == (0, True)


def test_a_connection_is_added_behind_those_that_are_declared(agent, cli, declared):
    declared({"portal": P3, "weight": 4}, {"standby": True})
    assert cli("connections", "add", TARGET, "--portal", "192.0.2.13", "--weight", "9").code == 0
    assert sent(agent) == {
        "connections": [{"portal": P3, "weight": 4}, {"standby": True}, {"portal": "192.0.2.13", "weight": 9}]
    }
    cli("connections", "add", TARGET.upper(), "--standby")
    assert sent(agent)["connections"][-1] == {"standby": True}


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ((), [{"portal": P3, "weight": 4}, {}]),
        (("--portal", "192.0.2.13"), [{"portal": P3, "weight": 4}, {}]),
        (("--portal", P1), [{"portal": P3, "weight": 4}, {"portal": P3}]),
    ],
    ids=["the last one", "the last one through a portal", "one through the session's own portal"],
)
def test_a_connection_is_removed(agent, cli, declared, arguments, left):
    declared({"portal": P3, "weight": 4}, {}, {"portal": P3})
    assert cli("connections", "remove", TARGET, *arguments).code == 0
    assert sent(agent) == {"connections": left}


@pytest.mark.parametrize(
    ("further", "portal", "name", "words"),
    [
        ((), None, "ISDSC_CANT_REMOVE_LAST_CONNECTION", "blockfleet logout"),
        (({"portal": P3},), P1, "ISDSC_CANNOT_REMOVE_LEADING_CONNECTION", "leading"),
        (({"portal": P3},), "192.0.2.99", "ISDSC_INVALID_CONNECTION_ID", "192.0.2.99:3260"),
    ],
)
def test_a_connection_that_cannot_be_removed_is_refused_and_nothing_is_sent(
    agent, cli, declared, further, portal, name, words
):
    declared(*further)
    outcome = cli("connections", "remove", TARGET, *(["--portal", portal] if portal else []), "--json")
    assert outcome.code == 1
    error = json.loads(outcome.out)["error"]
    assert error["name"] == name
    assert words in outcome.err
    assert [what for what, _ in agent.control.asked] == ["desired"]


def test_the_policy_goes_with_the_role_of_the_leading_connection(agent, cli, declared):
    declared({})
    cli("connections", "policy", TARGET, "weighted_path", "--leading-weight", "3")
    assert sent(agent) == {"connection_policy": "weighted_path", "leading_connection": {"weight": 3}}
    cli("connections", "policy", TARGET, "fail_over_only", "--leading-standby")
    assert sent(agent) == {"connection_policy": "fail_over_only", "leading_connection": {"standby": True}}
    outcome = cli("connections", "policy", TARGET, "fastest")
    assert outcome.code == 1
    assert "round_robin" in outcome.err


@pytest.mark.parametrize("fields", [{"portals": None}, {"name": f"{TARGET}2"}], ids=["no login", "another"])
def test_a_target_without_a_declared_login_has_no_connections_to_change(agent, cli, declared, fields):
    declared(**fields)
    outcome = cli("connections", "add", TARGET)
    assert outcome.code == 1
    assert f"blockfleet login {TARGET}" in outcome.err
    assert [what for what, _ in agent.control.asked] == ["desired"]


def several(session):
    """Give a session three connections under a policy that uses the first."""
    return {
        **session,
        "connection_set": {"policy": "weighted_path", "further": [{"portal": P1}, {"portal": P3}]},
        "connections": [
            {"cid": 0, "portal": P1, **UP, "active": True, "weight": 2, "commands": 41, "in_flight": 3},
            {"cid": 1, "portal": P1, **UP, "active": False, "weight": 5, "commands": 7, "in_flight": 0},
            {"cid": None, "portal": P3, "phase": "failed", "active": False, "weight": 6, "error": "refused (0208)"},
        ],
        "counters": {"commands": 48, "connections_lost": 2, "data_snacks": 0, "tasks_reassigned": 5},
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["sessions", "status"])
def test_connections_are_shown_under_their_session_with_what_the_policy_makes_of_them(agent, cli, verb):
    target = STATUS.targets[0]
    sessions = (several(target.sessions[0]), target.sessions[1])
    agent.control.answers["status"] = STATUS.model_copy(
        update={"targets": (target.model_copy(update={"sessions": sessions}),)}
    )
    lines = [line.rstrip() for line in cli(verb).out.splitlines()]
    start = lines.index("Connections")
    rows = [re.split(r" {2,}", line) for line in lines[start + 2 : start + 5]]
    assert rows == [
        [TARGET, P1, "0", P1, "logged in", "weighted_path", "active, weight 2", "41", "3"],
        [TARGET, P1, "1", P1, "logged in", "weighted_path", "standby, weight 5", "7", "0"],
        [TARGET, P1, "-", P3, "failed", "weighted_path", "-, weight 6", "0", "0", "refused (0208)"],
    ]
    told = f"counted: {TARGET} via {P1}: 2 connections lost, 5 tasks reassigned"
    assert (told in lines) == (verb == "sessions")


def test_a_session_of_one_connection_is_not_listed_twice(agent, cli):
    assert "Connections" not in cli("sessions").out


def test_a_portal_that_is_none_is_an_error_of_one_line(agent, cli, declared):
    declared({"portal": P3})
    outcome = cli("connections", "remove", TARGET, "--portal", "192.0.2.13:0")
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert "from 1 to 65535" in outcome.err
