# SPDX-License-Identifier: GPL-3.0-or-later
"""What users of the modules get back, in real playbook runs against an agent that says what it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.collection.fake_agent import FakeAgent, error, login_action, plan, problem, report
from tests.collection.playbook import Playbook

IQN = "iqn.2026-11.com.example:db"
SHOWN = {"cid": 1, "portal": "192.0.2.11:3260", "phase": "logged_in", "active": False}
CONNECTIONS = [{**SHOWN, "weight": 7, "standby": True, "commands": 48, "error": ""}]
STATUS: dict[str, Any] = {
    "format_version": 1,
    "targets": [
        {
            "name": IQN,
            "sessions": [
                {"portal": "192.0.2.10:3260", "phase": "logged_in", "tsih": 4, "connections": CONNECTIONS}
            ],
        },
        {"name": f"{IQN}0", "sessions": [{"portal": "192.0.2.99:3260", "phase": "failed"}]},
    ],
    "volumes": [
        {"name": "db01", "socket": "/run/blockfleet/volumes/db01.sock", "size": 1 << 30, "phase": "online"},
        {"name": "db010", "socket": "/run/blockfleet/volumes/db010.sock"},
    ],
}
LOGIN = ("iscsi_target_login", {"target": IQN})


@pytest.fixture(autouse=True)
def _status(agent: FakeAgent) -> None:
    agent.answers["/v1/status"] = (200, STATUS)


def test_a_change_shows_its_actions_and_its_diff(agent: FakeAgent, playbook: Playbook) -> None:
    diff = {"before": {"targets": {}}, "after": {"targets": {IQN: {"portals": "all"}}}}
    agent.answers["/v1/apply"] = (200, report(login_action(before=None, after={"phase": "logged_in"}), diff=diff))
    run = playbook.run(playbook.task(*LOGIN), arguments=("--diff",))
    result = run[0]
    assert (run.returncode, run.recap["changed"], result.changed) == (0, 1, True)
    assert result.texts == [f"+ session {IQN} via 192.0.2.10:3260"]
    assert {key: result.diff[key] for key in ("before", "after")} == diff
    assert f'+        "{IQN}"' in run.output
    assert result.result["sessions"] == [
        {"portal": "192.0.2.10:3260", "phase": "logged_in", "connections": [SHOWN]}
    ]


def test_nothing_to_do_is_no_change(agent: FakeAgent, playbook: Playbook) -> None:
    agent.answers["/v1/apply"] = (200, report())
    assert not playbook.one(*LOGIN).changed


def test_check_mode_asks_for_the_plan_of_the_very_change_and_applies_nothing(
    agent: FakeAgent, playbook: Playbook
) -> None:
    agent.answers["/v1/plan"] = (200, plan(login_action()))
    agent.answers["/v1/apply"] = (200, report(login_action()))
    predicted = playbook.one(*LOGIN, "--check")
    assert agent.routes() == ["POST /v1/plan", "GET /v1/status"]
    done = playbook.one(*LOGIN)
    assert (predicted.changed, predicted.texts) == (done.changed, done.texts)
    assert agent.changes("POST /v1/plan") == agent.changes("POST /v1/apply")


def test_a_host_that_does_not_get_there_fails_the_task_and_the_change_shows(
    agent: FakeAgent, playbook: Playbook
) -> None:
    problems = (problem("cannot log in: authentication failed (0201): check chap.secret"),)
    agent.answers["/v1/apply"] = (200, report(login_action(), status="not_verified", problems=problems, waited=2.0))
    result = playbook.one("iscsi_target_login", {"target": IQN, "wait_timeout": 2})
    assert (result.outcome, result.changed) == ("failed", True)
    assert "within 2 s: cannot log in: authentication failed (0201): check chap.secret" in result.message
    assert result.texts == [f"+ session {IQN} via 192.0.2.10:3260"]
    assert result.result["problems"][0]["name"] == "ISDSC_AUTHENTICATION_FAILURE"


def test_enough_paths_but_not_all_is_a_warning(agent: FakeAgent, playbook: Playbook) -> None:
    problems = (problem("192.0.2.11:3260 does not answer"),)
    agent.answers["/v1/apply"] = (200, report(status="partial", problems=problems, warnings=("slow path",)))
    result = playbook.one(*LOGIN)
    assert (result.outcome, result.result["status"]) == ("ok", "partial")
    assert "slow path" in result.warnings
    assert any("192.0.2.11:3260 does not answer" in warning for warning in result.warnings)


def test_what_would_disturb_is_refused_in_check_mode_as_in_the_real_run(
    agent: FakeAgent, playbook: Playbook
) -> None:
    refused = login_action(refused="db01 is in use", disruption="interrupts")
    agent.answers["/v1/plan"] = (200, plan(refused))
    agent.answers["/v1/apply"] = error(409, name="ISDSC_DISRUPTION_REFUSED", message="db01 is in use")
    predicted, real = playbook.one(*LOGIN, "--check"), playbook.one(*LOGIN)
    assert [r.outcome for r in (predicted, real)] == ["failed", "failed"]
    assert [r.changed for r in (predicted, real)] == [False, False]
    assert "db01 is in use" in predicted.message
    assert "allow_disruption" in predicted.message
    assert real.result["error"]["name"] == "ISDSC_DISRUPTION_REFUSED"


def test_consent_is_passed_on(agent: FakeAgent, playbook: Playbook) -> None:
    agent.answers["/v1/apply"] = (200, report())
    playbook.one("iscsi_target_login", {"target": IQN, "allow_disruption": True, "relogin": "now"})
    (change,) = agent.changes("POST /v1/apply")
    assert (change.options.allow_disruption, change.options.relogin) == (True, "now")


@pytest.mark.parametrize(
    ("task", "field", "option"),
    [
        (("iscsi_target_login", {"target": "db"}), "targets[0].name", "target"),
        (("iscsi_target_login", {"target": IQN, "portals": ["x:0"]}), "targets[0].portals[0]", "portals[0]"),
        (
            ("iscsi_target_login", {"target": IQN, "noop_timeout": -1}),
            "targets[0].login.noop_timeout",
            "noop_timeout",
        ),
        (("iscsi_chap", {"target": IQN, "user": "u", "secret": "brief"}), "targets[0].chap.secret", "secret"),
        (("iscsi_portal", {"portals": ["a", "b:0"]}), "discovery.portals[1].portal", "portals[1].portal"),
        (("iscsi_config", {"document": {"version": 9}}), "version", "document.version"),
        (("mpio_policy", {"volume": "x", "policy": "round_robin"}), "volumes[0].target", "volume.target"),
    ],
)
def test_an_error_names_the_option_that_the_user_wrote(
    agent: FakeAgent, playbook: Playbook, task: tuple[str, dict[str, Any]], field: str, option: str
) -> None:
    agent.answers["/v1/apply"] = error(422, message=f"{field}: is wrong: mend it", field=field, remedy="mend it")
    result = playbook.one(*task)
    assert result.message == f"{option}: is wrong: mend it"
    assert result.result["error"]["option"] == option
    assert result.result["error"]["field"] == field


def test_a_portal_task_returns_the_targets_found(agent: FakeAgent, playbook: Playbook) -> None:
    targets = [{"target": IQN, "portals": [{"portal": "192.0.2.10:3260", "tag": 1}]}]
    agent.answers["/v1/apply"] = (200, report())
    agent.answers["/v1/plan"] = (200, plan(login_action()))
    problems = [problem("192.0.2.11:3260 does not answer").model_dump()]
    agent.answers["/v1/discover"] = (200, {"format_version": 1, "targets": targets, "problems": problems})
    options = {"portals": ["192.0.2.10", "192.0.2.11"]}
    result = playbook.one("iscsi_portal", options)
    assert result.result["targets"] == targets
    assert any("does not answer" in warning for warning in result.warnings)
    agent.requests.clear()
    assert playbook.one("iscsi_portal", options, "--check").result["targets"] == []
    assert agent.routes() == ["POST /v1/plan"], "undeclared portals are not asked in check mode"


def test_a_volume_task_returns_what_to_open(agent: FakeAgent, playbook: Playbook) -> None:
    agent.answers["/v1/apply"] = (200, report())
    result = playbook.one("iscsi_persistent", {"target": IQN, "volumes": [{"name": "db01", "lun": 0}]})
    (volume,) = result.result["volumes"]
    assert (volume["name"], volume["socket"]) == ("db01", "/run/blockfleet/volumes/db01.sock")


def test_info_returns_what_was_asked_for_and_changes_nothing(agent: FakeAgent, playbook: Playbook) -> None:
    agent.answers["/v1/drift"] = (200, plan(login_action(origin="corrective")))
    agent.answers["/v1/version"] = (200, {"format_version": 1, "agent_version": "0.1.0"})
    for arguments in ((), ("--check",)):
        result = playbook.one("iscsi_info", {"gather_subset": ["drift", "version"]}, *arguments)
        assert (result.outcome, result.changed) == ("ok", False)
        assert result.result["drift"]["actions"][0]["origin"] == "corrective"
        assert result.result["version"] == {"agent_version": "0.1.0"}
        assert "status" not in result.result
    assert {route.split()[0] for route in agent.routes()} == {"GET"}


BAD_OPTIONS = [
    ("iscsi_portal", {}, "one of the following is required: portals, static"),
    (
        "iscsi_portal",
        {"static": [], "chap": {"user": "u", "secret": "long-enough-secret"}},
        "missing parameter(s) required by 'chap'",
    ),
    ("iscsi_target_login", {"target": IQN, "portals": ["all", "192.0.2.1"]}, "'all' stands alone"),
    ("iscsi_target_login", {"target": IQN, "forget": True}, "only with state=absent"),
    ("iscsi_persistent", {"volumes": [{"name": "a", "lun": 0}]}, "volume a has no target"),
    ("iscsi_persistent", {"target": IQN, "volumes": [{"name": "a"}]}, "names no logical unit"),
    ("iscsi_chap", {"target": IQN, "user": "u"}, "state is present but all of the following are missing: secret"),
    (
        "iscsi_chap",
        {"user": "u", "secret": "long-enough-secret"},
        "one of the following is required: target, discovery",
    ),
    ("iscsi_chap", {"discovery": ["192.0.2.1"], "state": "absent"}, "write 'all'"),
    ("iscsi_chap", {"discovery": ["all"], "user": "u", "secret": "long-enough-secret"}, "'all' can only be absent"),
    (
        "iscsi_chap",
        {"target": IQN, "user": "u", "secret": "long-enough-secret", "mutual_user": "m"},
        "required by 'mutual_user'",
    ),
    ("mpio_policy", {"target": IQN}, "all of the following are missing: policy"),
    ("mpio_policy", {"target": IQN, "volume": "a", "policy": "round_robin"}, "mutually exclusive"),
    ("mpio_policy", {"default": False, "policy": "round_robin"}, "default: false says nothing"),
    ("mpio_policy", {"default": True, "policy": "round_robin", "paths": []}, "paths: they are those of a target"),
    ("mpio_policy", {"target": IQN, "state": "absent", "failback": True}, "state: absent takes failback and paths"),
    ("mpio_policy", {"target": IQN, "policy": "random"}, "value of policy must be one of"),
    ("iscsi_config", {"document": {"sessions": []}}, "Unsupported parameters"),
    ("iscsi_config", {"document": {}, "mode": "replace", "exclusive": ["volumes"]}, "owns every list already"),
    ("iscsi_info", {"gather_subset": ["everything"]}, "value of gather_subset must be one or more of"),
]


def test_bad_options_are_refused_before_the_agent_is_asked(agent: FakeAgent, playbook: Playbook) -> None:
    run = playbook.run(*(playbook.task(module, options, ignore_errors=True) for module, options, _ in BAD_OPTIONS))
    seen = [
        (r.outcome, r.task, want in r.message, r.message)
        for r, (_, _, want) in zip(run.results, BAD_OPTIONS, strict=True)
    ]
    assert [s for s in seen if (s[0], s[2]) != ("ignored", True)] == []
    assert agent.requests == []


def test_an_agent_that_is_not_running_is_named_with_the_role_that_installs_it(
    tmp_path: Path, runtime_dir: Path
) -> None:
    playbook = Playbook(tmp_path, runtime_dir / "nobody.sock")
    run = playbook.run(
        playbook.task(*LOGIN, ignore_errors=True),
        playbook.task("iscsi_info", {}, ignore_errors=True),
    )
    for result in run.results:
        assert result.outcome == "ignored"
        assert f"no answer at {runtime_dir}/nobody.sock: No such file or directory" in result.message
        assert "blockfleet.iscsi.agent" in result.message
    assert len(run.results) == 2
