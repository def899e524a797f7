# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd units are valid, hardened, and keep the engine apart from the agent."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
UNITS = ("blockfleet-engine.service", "blockfleetd.service")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def _unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Read a unit; systemd allows a key to come several times."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (PACKAGING / name).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_units_are_valid(name, tmp_path):
    for unit in UNITS:
        text = (PACKAGING / unit).read_text()
        (tmp_path / unit).write_text(
            re.sub(r"ExecStart=/usr/bin/", f"ExecStart={Path(sys.executable).parent}/", text)
        )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_units_are_exposed_to_1_5_at_most(name):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", str(PACKAGING / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposure, done.stdout + done.stderr
    assert float(exposure[1]) <= 1.5


def test_the_agent_wants_the_engine_and_does_not_stop_with_it_or_stop_it():
    unit = _unit("blockfleetd.service")["Unit"]
    assert "blockfleet-engine.service" in unit["Wants"]
    assert "blockfleet-engine.service" in unit["After"]
    assert not unit.keys() & {"Requires", "BindsTo", "PartOf", "Requisite"}
    assert not _unit("blockfleet-engine.service")["Unit"].keys() & {"Requires", "BindsTo", "PartOf", "Requisite"}


def test_a_restart_of_the_agent_leaves_the_engines_folder():
    agent, engine = (_unit(name)["Service"] for name in reversed(UNITS))
    assert engine["RuntimeDirectory"] == ["blockfleet/engine"]
    assert agent["RuntimeDirectory"] == ["blockfleet"]
    assert agent["RuntimeDirectoryPreserve"] == ["yes"]
    assert "--engine-socket /run/blockfleet/engine/engine.sock" in agent["ExecStart"][0]
    assert "--runtime-dir /run/blockfleet/engine" in engine["ExecStart"][0]


def test_the_engine_has_its_own_user_and_no_privileges():
    engine = _unit("blockfleet-engine.service")["Service"]
    users = (PACKAGING / "blockfleet.sysusers.conf").read_text()
    assert re.search(rf"^u {engine['User'][0]} ", users, re.MULTILINE)
    assert engine["CapabilityBoundingSet"] == [""]
    # The engine knows its client, root, by SO_PEERCRED; a user namespace would turn root into nobody.
    assert "PrivateUsers" not in engine


def test_the_group_that_the_agent_opens_its_reading_socket_to_is_made():
    command = _unit("blockfleetd.service")["Service"]["ExecStart"][0]
    group = re.search(r"--group (\S+)", command)
    assert re.search(rf"^g {group[1]} ", (PACKAGING / "blockfleet.sysusers.conf").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", UNITS)
def test_both_report_ready_are_watched_and_leave_no_secret_behind(name):
    service = _unit(name)["Service"]
    assert service["Type"] == ["notify"]
    assert int(service["WatchdogSec"][0]) > 0
    assert service["LimitCORE"] == ["0"]
    assert service["MemorySwapMax"] == ["0"]


def test_two_agents_on_one_state_do_not_restart_for_ever():
    assert _unit("blockfleetd.service")["Service"]["RestartPreventExitStatus"] == ["75"]
