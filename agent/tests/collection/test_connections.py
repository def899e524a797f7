# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections a session through the collection; istgt allows four, tgt allows one."""

from __future__ import annotations

from typing import Any

import pytest
from tests.collection.guide import documented
from tests.collection.host import AgentHost
from tests.collection.playbook import Playbook
from tests.peers.istgt import Istgt
from tests.peers.process import wait_for
from tests.peers.tgt import Tgt

pytestmark = pytest.mark.peer

IQN = "iqn.2026-11.com.example:db"


@pytest.fixture
def istgt2(make_istgt: Any) -> Istgt:
    """An istgt with two portals of one group and a disk."""
    target: Istgt = make_istgt(("127.0.0.1:0", "127.0.0.1:0"))
    target.add_target(IQN, 16 << 20)
    target.start()
    return target


def connections(host: AgentHost) -> list[tuple[str, bool]]:
    """Return portal and activity of the connections that are logged in of the one session."""
    (session,) = host.get("/v1/observed")["sessions"]
    return [(c["portal"], c["active"]) for c in session["connections"] if c["phase"] == "logged_in"]


def session_id(host: AgentHost) -> tuple[int, int]:
    (session,) = host.get("/v1/observed")["sessions"]
    return session["tsih"], session["logins"]


def test_the_play_of_the_guide(istgt2: Istgt, agent_host: AgentHost, host_playbook: Playbook) -> None:
    one, other = istgt2.portals
    tasks = documented("Several connections a session", {"192.0.2.10": one, "192.0.2.11": other})
    predicted = host_playbook.run(*tasks, arguments=("--check", "--diff"))
    done = host_playbook.run(*tasks, arguments=("--diff",))
    assert done.returncode == 0, done.output
    assert predicted[0].result["actions"] == done[0].result["actions"]
    assert predicted[0].diff == done[0].diff
    shown = done[0].result["sessions"][0]["connections"]
    assert [(c["cid"], c["portal"], c["phase"], c["active"]) for c in shown] == [
        (0, one, "logged_in", True),
        (1, other, "logged_in", True),
        (2, one, "logged_in", False),
    ]
    before = agent_host.get("/v1/desired"), session_id(agent_host)
    again = host_playbook.run(*tasks)
    assert (again[0].changed, again[0].texts) == (False, [])
    assert (agent_host.get("/v1/desired"), session_id(agent_host)) == before


def test_connections_and_their_policy_change_within_the_session(
    istgt2: Istgt, agent_host: AgentHost, host_playbook: Playbook
) -> None:
    one, other = istgt2.portals
    login = {"target": IQN, "portals": [one], "connections": [{"portal": other}, {"portal": one, "standby": True}]}
    assert host_playbook.one("iscsi_target_login", login).outcome == "ok"
    assert connections(agent_host) == [(one, True), (other, True), (one, True)]
    first = session_id(agent_host)
    run = host_playbook.run(
        host_playbook.task("iscsi_target_login", {**login, "connection_policy": "fail_over_only"}),
        host_playbook.task(
            "iscsi_target_login", {"target": IQN, "portals": [one], "connections": [{"portal": other}]}
        ),
        host_playbook.task("iscsi_target_login", {"target": IQN, "portals": [one], "unset": ["connections"]}),
    )
    assert run.returncode == 0, run.output
    policy, removed, alone = run.results
    assert policy.texts == [
        f"~ target {IQN}: connection_policy (none) -> fail_over_only",
        f"~ session {IQN} via {one}: change connection policy round_robin -> fail_over_only",
    ]
    assert removed.texts[-1] == f"~ session {IQN} via {one}: remove connection via {one}"
    assert alone.texts[-1] == f"~ session {IQN} via {one}: remove connection via {other}"
    assert [c["active"] for c in policy.result["sessions"][0]["connections"]] == [True, False, False]
    wait_for(lambda: connections(agent_host) == [(one, True)], "the further connections are logged out")
    assert session_id(agent_host) == first


def test_a_level_that_the_target_does_not_have_is_negotiated_down(
    istgt2: Istgt, agent_host: AgentHost, host_playbook: Playbook
) -> None:
    login = {"target": IQN, "portals": [istgt2.portals[0]], "error_recovery_level": 2}
    assert host_playbook.one("iscsi_target_login", login).outcome == "ok"
    info = host_playbook.one("iscsi_info", {"gather_subset": ["status"]}).result
    (session,) = info["status"]["targets"][0]["sessions"]
    assert session["negotiated"]["ErrorRecoveryLevel"] == "0"
    assert not host_playbook.one("iscsi_target_login", login).changed


def test_a_target_that_allows_one_connection_is_warned_of(
    tgt6: Tgt, agent_host: AgentHost, host_playbook: Playbook
) -> None:
    tgt6.add_target(IQN)
    tgt6.add_unit(IQN, 16 << 20)
    portal = tgt6.portals[0]
    login = {"target": IQN, "portals": [portal], "connections": [{"portal": portal}], "min_paths": 1}
    result = host_playbook.one("iscsi_target_login", login)
    assert (result.outcome, result.result["status"]) == ("ok", "partial")
    assert any("MaxConnections" in warning for warning in result.warnings)
    assert connections(agent_host) == [(portal, True)]


BAD_INPUT: list[tuple[dict[str, Any], str, str]] = [
    ({"connections": [{}] * 8}, "connections", "8 connections besides the leading one"),
    ({"connections": [{"weight": 65536}]}, "connections[0].weight", "65536"),
    ({"connections": [{"portal": "192.0.2.1:0"}]}, "connections[0].portal", "from 1 to 65535"),
    ({"connections": [{"standby": True}], "leading_connection": {"standby": True}}, "connections", "in standby"),
    ({"leading_connection": {"weight": -1}}, "leading_connection.weight", "-1"),
    ({"leading_connection": {"standby": True}}, "connections", "in standby"),
    ({"connections": [], "unset": ["connections"]}, "unset", "connections is given too"),
]


def test_bad_input_is_one_error_that_names_the_option_before_anything_changes(
    agent_host: AgentHost, host_playbook: Playbook
) -> None:
    tasks = [
        host_playbook.task("iscsi_target_login", {"target": IQN, **options}, ignore_errors=True)
        for options, _, _ in BAD_INPUT
    ]
    done = host_playbook.run(*tasks)
    assert [result.outcome for result in done.results] == ["ignored"] * len(BAD_INPUT), done.output
    wrong = [
        (options, result.message)
        for result, (options, option, words) in zip(done.results, BAD_INPUT, strict=True)
        if not (result.message.startswith(f"{option}:") and words in result.message)
    ]
    assert wrong == []
    assert agent_host.get("/v1/status")["generation"] == 0
