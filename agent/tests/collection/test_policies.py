# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies over the paths of a volume through the collection, against tgt: where reads go, by counts of paths."""

from __future__ import annotations

from typing import Any

import pytest
from tests.collection.guide import documented
from tests.collection.host import AgentHost
from tests.collection.playbook import Playbook, TaskResult
from tests.peers.tgt import Tgt

pytestmark = pytest.mark.peer

IQN = "iqn.2026-11.com.example:db"


@pytest.fixture
def portals(tgt: Tgt) -> tuple[str, ...]:
    """The two portals of a tgt with a disk."""
    tgt.add_target(IQN)
    tgt.add_unit(IQN, 16 << 20)
    return tgt.portals


def served(playbook: Playbook, portals: tuple[str, ...]) -> None:
    done = playbook.run(
        playbook.task("iscsi_target_login", {"target": IQN, "portals": list(portals)}),
        playbook.task("iscsi_persistent", {"target": IQN, "volumes": [{"name": "db01", "lun": 1}]}),
    )
    assert done.returncode == 0, done.output


def by_portal(result: TaskResult, field: str) -> dict[str, Any]:
    (volume,) = result.result["volumes"]
    return {path["portal"]: path[field] for path in volume["paths"]}


def test_reads_go_where_each_policy_says(
    portals: tuple[str, ...], agent_host: AgentHost, host_playbook: Playbook
) -> None:
    one, other = portals
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"policy": "fail_over_only", "paths": [{"portal": other, "primary": True}]}, {other}),
        ({"policy": "weighted_path", "paths": [{"portal": other, "weight": 2}]}, {one}),
        ({"policy": "round_robin_with_subset", "paths": [{"portal": one, "standby": True}]}, {other}),
        ({"policy": "round_robin", "paths": []}, {one, other}),
        ({"policy": "least_queue_depth"}, {one, other}),
        ({"policy": "service_time"}, {one, other}),
    ]
    served(host_playbook, portals)
    read = {
        "name": "Read the whole disk",
        "ansible.builtin.command": {
            "argv": ["nbdcopy", f"nbd+unix:///db01?socket={socket_of(agent_host)}", "null:"]
        },
    }
    tasks = [
        task
        for options, _ in cases
        for task in (host_playbook.task("mpio_policy", {"target": IQN, **options}), read)
    ]
    done = host_playbook.run(*tasks, tasks[-2])
    assert done.returncode == 0, done.output
    for index, (options, used) in enumerate(cases):
        declared, then = done[2 * index], done[2 * index + 2]
        assert declared.changed, options
        assert {p for p, phase in by_portal(declared, "phase").items() if phase == "active"} == used, options
        before, after = by_portal(declared, "commands"), by_portal(then, "commands")
        assert {portal for portal in portals if after[portal] > before[portal]} == used, options
    assert not done[-1].changed
    assert agent_host.logins(IQN) == {one: 1, other: 1}


def socket_of(host: AgentHost) -> str:
    (volume,) = host.get("/v1/observed")["volumes"]
    return str(volume["socket"])


def test_the_play_of_the_guide(portals: tuple[str, ...], agent_host: AgentHost, host_playbook: Playbook) -> None:
    one, other = portals
    served(host_playbook, portals)
    tasks = documented("How I/O is spread over paths", {"192.0.2.10": one, "192.0.2.11": other})
    predicted = host_playbook.run(*tasks, arguments=("--check", "--diff"))
    done = host_playbook.run(*tasks, arguments=("--diff",))
    assert done.returncode == 0, done.output
    assert predicted[0].result["actions"] == done[0].result["actions"]
    (volume,) = done[0].result["volumes"]
    assert (volume["name"], volume["policy"], volume["failback"]) == ("db01", "fail_over_only", False)
    paths = {p["portal"]: (p["phase"], p["primary"], p["standby"]) for p in volume["paths"]}
    assert paths == {one: ("active", True, False), other: ("standby", False, True)}
    assert not host_playbook.run(*tasks)[0].changed


def test_a_policy_that_was_changed_behind_the_agents_back_is_drift(
    portals: tuple[str, ...], agent_host: AgentHost, host_playbook: Playbook
) -> None:
    served(host_playbook, portals)
    policy = {"volume": "db01", "policy": "weighted_path", "paths": [{"portal": portals[0], "weight": 9}]}
    assert host_playbook.one("mpio_policy", policy).outcome == "ok"
    agent_host.restart_agent("--no-repair")
    agent_host.engine_spreads_otherwise("db01")
    drift = host_playbook.one("iscsi_info", {"gather_subset": ["drift"]}).result["drift"]
    assert [(a["verb"], a["kind"], a["origin"]) for a in drift["actions"]] == [("update", "volume", "corrective")]
    mended = host_playbook.one("mpio_policy", policy)
    assert (mended.changed, [a["origin"] for a in mended.result["actions"]]) == (True, ["corrective"])
    assert by_portal(mended, "weight") == {portals[0]: 9, portals[1]: 0}
    assert by_portal(mended, "phase") == {portals[0]: "standby", portals[1]: "active"}


BAD_INPUT: list[tuple[dict[str, Any], str, str, str]] = [
    ({"paths": [{"portal": "192.0.2.99"}]}, "paths", "192.0.2.99:3260", "ISDSC_INVALID_PATH_ID"),
    ({"paths": [{"portal": "ONE"}, {"portal": "ONE"}]}, "paths", "twice", "ISDSC_DUPLICATE_PATH_SPECIFIED"),
    (
        {"paths": [{"portal": "ONE", "primary": True}, {"portal": "OTHER", "primary": True}]},
        "paths",
        "let one of them be primary",
        "ISDSC_MULTIPLE_PRIMARY_PATHS_SPECIFIED",
    ),
    (
        {"paths": [{"portal": "ONE", "standby": True}, {"portal": "OTHER", "standby": True}]},
        "paths",
        "let one of them be active",
        "ISDSC_NO_PRIMARY_PATH_SPECIFIED",
    ),
    (
        {"paths": [{"portal": "ONE", "standby": True, "primary": True}]},
        "paths",
        "primary and in standby",
        "ISDSC_NO_PRIMARY_PATH_SPECIFIED",
    ),
    ({"paths": [{"portal": "ONE", "weight": 65536}]}, "paths[0].weight", "65536", "ISDSC_DOCUMENT_INVALID"),
    ({"paths": [{"portal": "192.0.2.1:0"}]}, "paths[0].portal", "from 1 to 65535", "ISDSC_DOCUMENT_INVALID"),
]


def test_bad_input_is_one_error_with_the_guides_code_before_anything_changes(
    portals: tuple[str, ...], agent_host: AgentHost, host_playbook: Playbook
) -> None:
    served(host_playbook, portals)
    names = dict(zip(("ONE", "OTHER"), portals, strict=True))
    tasks = []
    for options, _, _, _ in BAD_INPUT:
        paths = [{**path, "portal": names.get(path["portal"], path["portal"])} for path in options["paths"]]
        scopes: tuple[dict[str, Any], ...] = ({"target": IQN}, {"volume": "db01"})
        tasks += [
            host_playbook.task(
                "mpio_policy", {**scope, "policy": "fail_over_only", "paths": paths}, ignore_errors=True
            )
            for scope in scopes
        ]
    before = agent_host.get("/v1/status")["generation"]
    done = host_playbook.run(*tasks)
    results = iter(done.results)
    for _, option, words, code in BAD_INPUT:
        for _ in range(2):
            refused(next(results), option, words, code)
    assert agent_host.get("/v1/status")["generation"] == before


def refused(result: TaskResult, option: str, words: str, code: str) -> None:
    assert (result.outcome, result.changed) == ("ignored", False)
    assert result.message.startswith(f"{option}:")
    assert words in result.message
    assert (result.result["error"]["name"], result.result["error"]["option"]) == (code, option)
