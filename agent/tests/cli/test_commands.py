# SPDX-License-Identifier: GPL-3.0-or-later
"""What the verbs send, how they end, and what they refuse before anything is sent."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tests.api.recording import REPORT, STATUS, TARGET

from blockfleet.api.access import Access, Gate
from blockfleet.api.server import listen
from blockfleet.engine.interface import EngineEvent
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import DiscoveryReport, Plan, ReportStatus

CANARY = "canary-Zq8vR2-secret"
PORTALS = ("192.0.2.10:3260", "[2001:db8::10]:3260")


def _sent(agent):
    (what, change) = agent.control.asked[-1]
    assert what in ("apply", "plan")
    return change


def _stdin(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode()), isatty=lambda: False))


@pytest.mark.parametrize(
    ("verb", "what", "answer", "code"),
    [
        ("apply", "apply", REPORT, 0),
        ("apply", "apply", REPORT.model_copy(update={"status": ReportStatus.NOT_VERIFIED}), 3),
        ("apply", "apply", REPORT.model_copy(update={"status": ReportStatus.PARTIAL}), 4),
        ("plan", "plan", Plan(changed=True, generation=1), 2),
        ("plan", "plan", Plan(generation=1), 0),
        ("drift", "drift", Plan(changed=True, generation=1), 2),
        ("drift", "drift", Plan(generation=1), 0),
        ("status", "status", STATUS, 0),
        ("status", "status", STATUS.model_copy(update={"in_sync": False}), 2),
        ("discover", "discover", DiscoveryReport(), 0),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_exit_codes(agent, cli, verb, what, answer, code, form):
    agent.control.answers[what] = answer
    assert cli(verb, *form).code == code


def test_a_file_is_merged_and_its_secrets_go_along(agent, cli, tmp_path):
    file = tmp_path / "host.yaml"
    file.write_text(f"targets:\n- name: {TARGET}\n  portals: all\n  chap: {{user: h, secret: {CANARY}}}\n")
    outcome = cli("apply", str(file), "--allow-disruption", "--relogin-now", "--wait-timeout", "5")
    change = _sent(agent)
    assert change.mode == "merge"
    assert change.document["targets"][0]["chap"]["secret"] == CANARY
    assert change.options.model_dump() == {"allow_disruption": True, "relogin": "now", "wait_timeout": 5.0}
    assert CANARY not in outcome.out + outcome.err


def test_replace_makes_the_file_the_whole(agent, cli, monkeypatch):
    _stdin(monkeypatch, '{"version": 1, "targets": []}')
    assert cli("plan", "--replace", "-").code == 2
    assert _sent(agent).mode == "replace"


def test_login_is_at_all_portals_or_those_given(agent, cli):
    cli("login", TARGET)
    assert _sent(agent).document == {"targets": [{"name": TARGET, "portals": "all"}]}
    cli("login", TARGET, "--portal", PORTALS[0], "--portal", PORTALS[1], "--min-paths", "1", "--until-boot")
    assert _sent(agent).document["targets"] == [
        {"name": TARGET, "portals": list(PORTALS), "lifetime": "boot", "min_paths": 1}
    ]


def test_login_takes_secrets_from_files(agent, cli, tmp_path, monkeypatch):
    (tmp_path / "mutual").write_text("another secret\n")
    _stdin(monkeypatch, CANARY + "\n")
    outcome = cli(
        "login", TARGET, "--user", "h", "--secret-file", "-",
        "--mutual-user", "t", "--mutual-secret-file", str(tmp_path / "mutual"),
    )  # fmt: skip
    assert outcome.code == 0
    assert _sent(agent).document["targets"][0]["chap"] == {
        "user": "h",
        "secret": CANARY,
        "mutual_user": "t",
        "mutual_secret": "another secret",
    }
    assert CANARY not in outcome.out + outcome.err


def test_no_option_takes_a_secret_as_an_argument(cli):
    for verb in ("login", "apply", "plan"):
        options = re.findall(r"--[a-z-]*secret[a-z-]*", cli(verb, "--help").out)
        assert not [option for option in options if not option.endswith("-file")], verb


def test_a_secret_cannot_be_asked_for_without_a_terminal(agent, cli, monkeypatch):
    _stdin(monkeypatch, "")
    outcome = cli("login", TARGET, "--user", "h")
    assert outcome.code == 1
    assert "not a terminal" in outcome.err
    assert agent.control.asked == []


def test_logout_withdraws_the_logins_only(agent, cli):
    cli("logout", TARGET)
    assert _sent(agent).absent.target_portals == {TARGET: "all"}
    cli("logout", TARGET, "--portal", "192.0.2.10")
    assert _sent(agent).absent.target_portals == {TARGET: ("192.0.2.10:3260",)}
    assert _sent(agent).document == {}


def test_events_are_followed_until_the_agent_stops(agent, tmp_path):
    agent.control.kept = [
        EngineEvent(sequence=n, time=1.0, number=1001, name="logged_in", subject="s", message="m") for n in (1, 2)
    ]
    command = [
        sys.executable,
        "-m",
        "blockfleet.cli.main",
        "--runtime-dir",
        str(tmp_path),
        "events",
        "-f",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            lines = [json.loads(child.stdout.readline()) for _ in range(2)]
        finally:
            child.terminate()
    assert [(line["format_version"], line["sequence"]) for line in lines] == [(1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("targets: [", "line 1"),
        ("- a\n- b\n", "an object, not list"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases"),
        ("[" * 40 + "]" * 40, "deeper than 32 levels"),
        ("a: !!timestamp x\n", "line 1: tags"),
        ("a: 1\nb: !!int ''\n", "line 2: tags"),
        ("a: !!python/name:os.system\n", "line 1: tags"),
        (f"secret: '{CANARY}\n", "line"),
        (f"secret: !!python/object:{CANARY} x\n", "line 1"),
        (f"secret: {CANARY}: x\n", "line 1"),
        ("volumes: []\nversion: 2\n", "version"),
        ("surprise: 1\n", "surprise"),
        ("targets: [{name: iqn.wrong}]\n", "targets[0].name"),
        (f"targets: [{{name: '{TARGET}', chap: {{user: h, secret: short}}}}]\n", "targets[0].chap.secret"),
    ],
    ids=range(14),
)
def test_a_bad_file_is_one_line_that_names_the_place_and_no_secret(cli, tmp_path, text, says):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    outcome = cli("validate", str(file))
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("blockfleet: ")
    assert outcome.err.count("\n") == 1
    assert says in outcome.err
    assert CANARY not in outcome.err
    assert "short" not in outcome.err.replace("shorter", "").replace("short_", "")


def test_a_good_file_is_valid_without_an_agent(cli, tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(f"targets: [{{name: '{TARGET}', portals: all}}]\n")
    outcome = cli("validate", str(file))
    assert outcome.code == 0
    assert outcome.out.endswith("is a valid document of version 1: 0 portals, 1 targets, 0 volumes.\n")
    assert json.loads(cli("validate", "--json", str(file)).out)["valid"] is True


@pytest.mark.parametrize("name", ["missing.yaml", "."], ids=["not there", "a folder"])
def test_a_file_that_cannot_be_read_is_named(cli, tmp_path, name):
    outcome = cli("validate", str(tmp_path / name))
    assert outcome.code == 1
    assert "cannot read" in outcome.err


def test_a_file_of_more_than_a_mebibyte_is_refused(cli, tmp_path):
    (tmp_path / "big.yaml").write_text("#" * ((1 << 20) + 1))
    assert "longer than 1048576 bytes" in cli("validate", str(tmp_path / "big.yaml")).err


def test_without_an_agent_the_command_says_how_to_start_it(cli, tmp_path):
    outcome = cli("status")
    assert outcome.code == 1
    assert outcome.err.startswith(f"blockfleet: cannot reach the agent at {tmp_path}/agent.sock: ")
    assert "systemctl start blockfleetd" in outcome.err
    assert "command_version" in json.loads(cli("version", "--json").out)


def test_a_killed_agents_socket_is_told_from_a_living_one(cli, tmp_path):
    listen(tmp_path / "agent.sock", Gate(Access.CHANGE)).close()
    assert "nobody listens on its socket" in cli("status").err


def test_a_document_that_grows_beyond_the_agents_limit_is_answered_not_cut(agent, cli, tmp_path):
    names = "\n".join(f"- {{name: 'iqn.2026-11.com.example:t{n}', portals: all}}" for n in range(17_500))
    (tmp_path / "big.json").write_text(f"targets:\n{names}\n")
    assert (tmp_path / "big.json").stat().st_size < 1 << 20
    outcome = cli("plan", str(tmp_path / "big.json"))
    assert outcome.code == 1
    assert "longer than 1048576 bytes" in outcome.err


def test_an_error_of_the_agent_is_one_line_and_one_object(agent, cli):
    agent.control.failure = BlockfleetError(
        Isdsc.DISRUPTION_REFUSED, "cannot log out of X", remedy="pass --allow-disruption", field="absent"
    )
    outcome = cli("logout", TARGET)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "blockfleet: cannot log out of X: pass --allow-disruption\n"
    error = json.loads(cli("logout", TARGET, "--json").out)["error"]
    assert error == {
        "code": int(Isdsc.DISRUPTION_REFUSED),
        "name": "ISDSC_DISRUPTION_REFUSED",
        "message": "cannot log out of X: pass --allow-disruption",
        "field": "absent",
        "remedy": "pass --allow-disruption",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["statsu"],
        ["status", "--nonsense"],
        ["login"],
        ["apply", "--wait-timeout", "-1"],
        ["events", "--limit", "x"],
    ],
    ids=" ".join,
)
def test_usage_errors_do_not_look_like_pending_changes(cli, arguments):
    outcome = cli(*arguments)
    assert outcome.code == 1
    assert outcome.err.startswith("blockfleet: ")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("portal", ["192.0.2.1:0", "192.0.2.1:70000", "[2001:db8::1"])
def test_a_bad_portal_is_refused_with_its_field(agent, cli, portal):
    outcome = cli("logout", TARGET, "--portal", portal)
    assert outcome.code == 1
    assert "target_portals" in outcome.err
    assert agent.control.asked == []


def test_reading_falls_back_to_the_reading_socket(agent, cli, tmp_path, monkeypatch):
    (tmp_path / "agent.sock").rename(tmp_path / "read.sock")
    assert cli("status").code == 0
    outcome = cli("apply")
    assert outcome.code == 1
    assert "agent.sock" in outcome.err


def test_help_costs_little():
    began = os.times()
    subprocess.run([sys.executable, "-m", "blockfleet.cli.main", "--help"], check=True, stdout=subprocess.DEVNULL)
    ended = os.times()
    used = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert used < 2
