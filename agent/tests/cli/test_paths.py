# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs of paths declare how I/O is spread; tables show the paths of volumes that have several."""

from __future__ import annotations

import json
import re

import pytest
from tests.api.recording import STATUS, TARGET

P1, P2 = "192.0.2.10:3260", "[2001:db8::10]:3260"


def sent(agent):
    what, change = agent.control.asked[-1]
    assert what == "apply"
    return change.document


@pytest.mark.parametrize(
    ("arguments", "document"),
    [
        (("service_time",), {"policy": "service_time"}),
        (("round_robin", "--no-failback"), {"policy": "round_robin", "failback": False}),
        (
            ("fail_over_only", "--target", TARGET, "--primary", "192.0.2.10", "--failback"),
            {
                "targets": [
                    {
                        "name": TARGET,
                        "policy": "fail_over_only",
                        "failback": True,
                        "paths": [{"portal": P1, "primary": True}],
                    }
                ]
            },
        ),
        (
            ("weighted_path", "--volume", "db01", "--weight", "192.0.2.10=7", "--weight", f"{P2}=0"),
            {
                "volumes": [
                    {
                        "name": "db01",
                        "policy": "weighted_path",
                        "paths": [{"portal": P1, "weight": 7}, {"portal": P2, "weight": 0}],
                    }
                ]
            },
        ),
        (
            ("round_robin_with_subset", "--volume", "db01", "--standby", "192.0.2.10", "--standby", "2001:db8::10"),
            {
                "volumes": [
                    {
                        "name": "db01",
                        "policy": "round_robin_with_subset",
                        "paths": [{"portal": P1, "standby": True}, {"portal": P2, "standby": True}],
                    }
                ]
            },
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_policy_is_declared_with_what_belongs_to_it(agent, cli, arguments, document):
    assert cli("paths", "policy", *arguments).code == 0
    assert sent(agent) == document


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fastest",), "service_time"),
        (("round_robin", "--target", TARGET, "--volume", "db01"), "leave one of them out"),
        (("weighted_path", "--weight", f"{P1}=1"), "--target"),
        (("weighted_path", "--volume", "db01", "--weight", P1), "PORTAL=NUMBER"),
        (("weighted_path", "--volume", "db01", "--weight", f"{P1}=heavy"), "PORTAL=NUMBER"),
        (("weighted_path", "--volume", "db01", "--weight", "=3"), "PORTAL=NUMBER"),
        (("fail_over_only", "--volume", "db01", "--primary", "192.0.2.10:0"), "from 1 to 65535"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_sent(agent, cli, arguments, words):
    outcome = cli("paths", "policy", *arguments)
    assert outcome.code == 1
    assert words in outcome.err
    assert [what for what, _ in agent.control.asked if what == "apply"] == []


PATHS = (
    {
        "session": f"{TARGET}@{P1}",
        "lun": 3,
        "phase": "active",
        "weight": 4,
        "primary": True,
        "counters": {"issued": 1200, "in_flight": 2, "failed": 0, "losses": 0},
    },
    {
        "session": f"{TARGET}@{P2}",
        "lun": 5,
        "phase": "failed",
        "standby": True,
        "preferred": True,
        "counters": {"issued": 31, "in_flight": 0, "failed": 6, "losses": 1},
    },
)


@pytest.fixture
def two_paths(agent):
    volume = STATUS.volumes[0].model_copy(update={"name": "db01", "policy": "weighted_path", "paths": PATHS})
    agent.control.answers["status"] = STATUS.model_copy(update={"volumes": (volume,)})


@pytest.mark.parametrize("verb", [("status",), ("paths", "show"), ("paths", "show", "db01")], ids=" ".join)
def test_each_path_is_a_row_with_its_state_its_role_and_its_counts(agent, cli, two_paths, verb):
    words = [re.split(r"\s{2,}", line.strip()) for line in cli(*verb).out.splitlines()]
    policy = "weighted_path"
    assert ["db01", P1, "3", "active", policy, "primary, weight 4", "1200", "2", "0", "0"] in words
    role = "in reserve, preferred by the target, weight 0"
    assert ["db01", P2, "5", "failed", policy, role, "31", "0", "6", "1"] in words


def test_paths_as_json_are_those_of_the_agent(agent, cli, two_paths):
    answer = json.loads(cli("paths", "show", "--json").out)
    assert answer["volumes"] == [{"name": "db01", "policy": "weighted_path", "paths": list(PATHS)}]


def test_a_volume_that_there_is_not_is_an_error(agent, cli, two_paths):
    outcome = cli("paths", "show", "db99")
    assert (outcome.code, "there is no volume db99" in outcome.err) == (1, True)


def test_volumes_with_one_path_need_no_table_of_paths(agent, cli):
    volume = STATUS.volumes[0].model_copy(update={"paths": PATHS[:1]})
    agent.control.answers["status"] = STATUS.model_copy(update={"volumes": (volume,)})
    assert "IN FLIGHT" not in cli("status").out
