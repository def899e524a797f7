# SPDX-License-Identifier: GPL-3.0-or-later
"""What people and programs get to see, verb by verb."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys

import pytest
import yaml
from rich.console import Console
from tests.api.recording import STATUS, TARGET

from blockfleet.cli.present import VolumesView, size
from blockfleet.engine.interface import EngineEvent
from blockfleet.model.plan import (
    Action,
    DesiredView,
    DiscoveredPortalView,
    DiscoveredTarget,
    DiscoveryReport,
    Disruption,
    EngineView,
    HostStatus,
    Kind,
    Origin,
    Plan,
    Problem,
    Summary,
    Verb,
)

PROBLEM = Problem(
    code=0xEFFF0003, name="ISDSC_CONNECTION_FAILED", message="connection refused", subject="192.0.2.11:3260"
)
SOCKET = "/run/blockfleet/engine/volumes/db01.sock"


def _stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_status_shows_the_host_its_targets_volumes_and_problems(agent, cli):
    agent.control.answers["status"] = STATUS.model_copy(update={"in_sync": False, "problems": (PROBLEM,)})
    outcome = cli("status")
    assert outcome.code == 2
    assert _stripped(outcome.out) == [
        "Initiator  iqn.2026-11.com.example:host1 (web 1)",
        "State      not in sync  generation 7",
        "Engine     running  version 0.1.0, process 77, instance e1",
        "",
        "Targets",
        "TARGET                       PORTALS UP   POLICY        LIFETIME     STATE",
        f"{TARGET}   1/2          round_robin   persistent   partly logged in, 192.0.2.11:3260 recovering",
        "",
        "Volumes",
        "VOLUME    SIZE   STATE      PATHS   POLICY        CLIENTS   IDENTITY               DEVICE",
        f"db01     1 GiB   degraded   1/2     round_robin   1         naa.6000000000000001   {SOCKET}",
        "",
        "Paths",
        "VOLUME   PORTAL   LUN   STATE    POLICY        ROLE   COMMANDS   IN FLIGHT   FAILED   LOST",
        "db01     a          -   active   round_robin   -             0           0        0      0",
        "db01     b          -   failed   round_robin   -             0           0        0      0",
        "",
        "problem: 192.0.2.11:3260: connection refused [ISDSC_CONNECTION_FAILED]",
    ]


def test_status_of_an_empty_host_says_what_to_do_first(agent, cli):
    agent.control.answers["status"] = HostStatus(
        generation=0, in_sync=True, engine=EngineView(reachable=False), degraded="state.db was damaged"
    )
    outcome = cli("status")
    assert _stripped(outcome.out) == [
        "Initiator  no initiator name yet",
        "State      in sync  generation 0",
        "Engine     not reachable",
        "degraded: state.db was damaged",
        "",
        "Nothing is declared. Write a document and hand it to 'blockfleet apply FILE'.",
    ]


PLAN = Plan(
    changed=True,
    generation=6,
    actions=(
        Action(verb=Verb.CREATE, kind=Kind.TARGET, subject=TARGET, text=f"+ target {TARGET}"),
        Action(
            verb=Verb.LOGIN,
            kind=Kind.SESSION,
            subject="s",
            text=f"+ session {TARGET} via 192.0.2.10:3260",
            origin=Origin.CORRECTIVE,
        ),
        Action(
            verb=Verb.UPDATE,
            kind=Kind.CHAP,
            subject=TARGET,
            text="~ chap.secret (fingerprint 0011aabb -> 22334455)",
            disruption=Disruption.RELOGIN,
        ),
        Action(
            verb=Verb.WITHDRAW,
            kind=Kind.VOLUME,
            subject="db01",
            text="- volume db01",
            disruption=Disruption.INTERRUPTS,
            refused="one client has it open",
        ),
    ),
    summary=Summary(add=2, change=1, remove=1),
    warnings=("the new secret is used at the next login",),
    problems=(PROBLEM,),
)


def test_a_plan_is_lines_with_signs_and_a_summary(agent, cli):
    agent.control.answers["plan"] = PLAN
    outcome = cli("plan")
    assert outcome.code == 2
    assert _stripped(outcome.out) == [
        f"+ target {TARGET}",
        f"+ session {TARGET} via 192.0.2.10:3260  (drift)",
        "~ chap.secret (fingerprint 0011aabb -> 22334455)  (re-login: I/O on one path pauses)",
        "- volume db01  (interrupts who uses it)",
        "    refused: one client has it open",
        "Plan: 2 to add, 1 to change, 1 to remove.",
        "warning: the new secret is used at the next login",
        "problem: 192.0.2.11:3260: connection refused [ISDSC_CONNECTION_FAILED]",
    ]


def test_a_plan_without_changes_says_so(agent, cli):
    agent.control.answers["plan"] = Plan(generation=6)
    outcome = cli("plan")
    assert (outcome.code, outcome.out) == (0, "No changes: nothing is left to do for generation 6.\n")


def test_a_report_tells_what_was_done_and_how_it_ended(agent, cli):
    outcome = cli("apply")
    assert outcome.code == 0
    assert _stripped(outcome.out) == [
        f"+ session {TARGET} via 192.0.2.10:3260",
        "Applied: 1 added, 0 changed, 0 removed; generation 7, waited 0.2 s: in sync",
    ]


def test_sessions_show_what_was_negotiated_and_why_one_is_not_up(agent, cli):
    lines = _stripped(cli("sessions").out)
    assert lines[0].split("  ")[0] == "TARGET"
    assert re.split(r" {2,}", lines[1]) == [
        TARGET, "192.0.2.10:3260", "logged in", "800000000001", "5", "CRC32C/None", "3", "1",
    ]  # fmt: skip
    assert re.split(r" {2,}", lines[2])[-1] == "connection refused"


def test_volumes_are_listed(agent, cli):
    lines = _stripped(cli("volumes").out)
    assert len(lines) == 2
    assert lines[1].startswith("db01     1 GiB   degraded   1/2")


def test_a_narrow_terminal_gets_identity_and_device_unbroken_below_the_table():
    console = Console(width=80, file=io.StringIO())
    console.print(VolumesView(STATUS.volumes))
    assert _stripped(console.file.getvalue()) == [
        "VOLUME    SIZE   STATE      PATHS   POLICY        CLIENTS",
        "db01     1 GiB   degraded   1/2     round_robin   1",
        "db01 is naa.6000000000000001",
        f"db01 at {SOCKET}",
    ]


def test_the_desired_state_is_yaml_with_masked_secrets(agent, cli):
    document = {
        "version": 1,
        "targets": [{"name": TARGET, "chap": {"user": "h", "secret": {"set": True, "fingerprint": "0011aabb"}}}],
    }
    agent.control.answers["desired"] = DesiredView(generation=9, document=document)
    outcome = cli("desired")
    assert outcome.out.startswith("# generation 9\nversion: 1\n")
    assert yaml.safe_load(outcome.out) == document


def test_events_are_one_line_each(agent, cli):
    agent.control.kept = [
        EngineEvent(
            sequence=5,
            time=1_700_000_000.25,
            number=1203,
            name="path_failed",
            severity="warning",
            subject="db01",
            message="a path failed",
        )
    ]
    assert cli("events").out == "2023-11-14T22:13:20.250Z 1203 path_failed db01: a path failed\n"
    assert cli("events", "--after", "5").out == ""


def test_discovery_lists_portals_and_what_did_not_answer(agent, cli):
    found = DiscoveredTarget(
        target=TARGET,
        portals=(
            DiscoveredPortalView(portal="192.0.2.10:3260", tag=1),
            DiscoveredPortalView(portal="[2001:db8::10]:3260"),
        ),
    )
    agent.control.answers["discover"] = DiscoveryReport(targets=(found,), problems=(PROBLEM,))
    outcome = cli("discover", "192.0.2.10", "192.0.2.11")
    assert outcome.code == 1
    assert _stripped(outcome.out) == [
        "TARGET                       PORTAL                GROUP TAG",
        f"{TARGET}   192.0.2.10:3260       1",
        f"{TARGET}   [2001:db8::10]:3260",
        "problem: 192.0.2.11:3260: connection refused [ISDSC_CONNECTION_FAILED]",
    ]
    assert agent.control.asked == [("discover", ("192.0.2.10:3260", "192.0.2.11:3260"))]


def test_version_names_all_three_parts(agent, cli):
    own, theirs, engine = cli("version").out.splitlines()
    assert own.startswith("blockfleet ")
    assert theirs.endswith("(API 1)")
    assert engine == "engine     0.1.0"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["status"], "in_sync"),
        (["plan"], "actions"),
        (["apply"], "verified"),
        (["drift"], "actions"),
        (["discover"], "targets"),
        (["login", TARGET], "verified"),
        (["logout", TARGET], "verified"),
        (["rescan"], "volumes"),
        (["volumes"], "volumes"),
        (["sessions"], "sessions"),
        (["desired"], "document"),
        (["events"], "events"),
        (["version"], "agent"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_every_verb_speaks_json_with_a_format_version(agent, cli, arguments, key):
    outcome = cli(*arguments, "--json")
    answer = json.loads(outcome.out)
    assert answer["format_version"] == 1
    assert key in answer
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1 << 26, "64 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 40, "1 TiB"),
        (1 << 70, "1024 EiB"),
    ],
)
def test_sizes_are_in_binary_units(count, text):
    assert size(count) == text


def _on_a_terminal(agent, environment: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "blockfleet.cli.main", "--runtime-dir", str(agent.runtime), "status"]
    settings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160", **environment}
    for name in {"NO_COLOR", "FORCE_COLOR"} - environment.keys():
        settings.pop(name, None)
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=settings) as child:
        os.close(theirs)
        output = b""
        try:
            while piece := os.read(ours, 65536):
                output += piece
        except OSError:  # EIO: the other side of the terminal is closed
            pass
        finally:
            os.close(ours)
        assert child.wait(timeout=30) == 0
    return output.decode()


def test_colours_are_on_a_terminal(agent):
    assert "\x1b[1;32min sync" in _on_a_terminal(agent, {})


def test_no_color_is_honoured(agent):
    output = _on_a_terminal(agent, {"NO_COLOR": "1"})
    assert "in sync" in output
    assert "\x1b[1;32m" not in output
    assert "\x1b[32m" not in output


def test_no_colour_in_a_pipe(agent, cli):
    assert "\x1b" not in cli("status").out
