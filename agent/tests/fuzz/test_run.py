# SPDX-License-Identifier: GPL-3.0-or-later
"""How the time is split, what is read from the log of a run, and that each kind of finding is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz import run
from tests.fuzz.__main__ import shares, table
from tests.fuzz.harness import HARNESSES
from tests.fuzz.harness.base import Harness

LOG = """\
#2\tINITED cov: 5 ft: 5 corp: 1/1b exec/s: 0 rss: 60Mb
alive: 1000 blocks, 70.0 MiB
#4096\tNEW    cov: 77 ft: 90 corp: 12/3Kb lim: 20 exec/s: 2048 rss: 71Mb
alive: 1010 blocks, 71.5 MiB
stat::number_of_executed_units: 5000
stat::peak_rss_mb:              73
"""
"""As libFuzzer writes it."""


def logged(tmp_path: Path, text: str, status: int) -> run.Report:
    log = tmp_path / "log"
    log.write_text(text)
    return run.report("nbd", 10.0, status, log)


def test_a_run_without_a_finding(tmp_path: Path) -> None:
    report = logged(tmp_path, LOG, 0)
    assert (report.executions, report.rate, report.coverage, report.kept) == (5000, 500.0, 77, 12)
    assert (report.peak, report.growth, report.blocks, report.fault) == (73, 1.5, 10, "")
    assert table([report]).splitlines()[1].split()[-1] == "ok"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (" === Uncaught Python exception: ===\nKeyError: 3\nTraceback", "KeyError: 3"),
        ("==1== ERROR: libFuzzer: timeout after 121 seconds", "timeout after 121 seconds"),
        ("==1== ERROR: libFuzzer: out-of-memory (used: 1065Mb; limit: 1024Mb)", "out-of-memory (used: 1065Mb"),
        ("", "ended with status 1"),
    ],
    ids=["exception", "hang", "memory", "anything else"],
)
def test_each_kind_of_finding_is_told(tmp_path: Path, text: str, says: str) -> None:
    report = logged(tmp_path, LOG + text, 1)
    assert report.fault.startswith(says)
    assert says in table([report])


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_whole_time_is_split_by_weight(jobs: int) -> None:
    split = {harness.name: seconds for harness, seconds in shares(list(HARNESSES.values()), 3600, jobs)}
    assert split.keys() == HARNESSES.keys()
    assert 0.98 * 3600 * jobs < sum(split.values()) <= 3600 * jobs
    assert split["connection"] == max(split.values()) <= 3600
    assert split["login"] == pytest.approx(2 * split["scsi"], abs=1)


def test_one_harness_alone_has_the_time_that_there_is() -> None:
    only: list[Harness] = [HARNESSES["scsi"]]
    assert shares(only, 60, 2) == [(HARNESSES["scsi"], 60)]


@pytest.mark.timeout(run.GRACE)
@pytest.mark.skipif(not run.AVAILABLE, reason="atheris is not installed: there is no wheel of it for this machine")
@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"MAXIMUM_CPU": -1.0}, "SlowError"),
        ({"FIRST_LOOK": 0.0, "LOOK_EVERY": 1, "MAXIMUM_GROWTH": -(10**9)}, "Growth"),
    ],
    ids=["slow", "growing"],
)
def test_what_is_slow_or_grows_is_a_finding(
    change: dict[str, float], finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are set so low that every input is beyond them."""
    script = tmp_path / "one.py"
    lines = [f"one.{name} = {value!r}" for name, value in change.items()]
    script.write_text("\n".join(["import sys", "from tests.fuzz import one", *lines, "one.main()"]))
    monkeypatch.setenv("PYTHONPATH", f"{run.AGENT}:{run.AGENT / 'src'}")
    command = [sys.executable, str(script), "addresses", "-runs=2000", f"-artifact_prefix={tmp_path}/"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        status = subprocess.run(
            command, cwd=run.AGENT, stdout=out, stderr=out, timeout=run.GRACE, check=False
        ).returncode
    report = run.report("addresses", 1.0, status, log)
    assert finding in report.fault
