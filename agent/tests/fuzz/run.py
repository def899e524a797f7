# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of the fuzzer as child processes, and what they tell of themselves."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.harness import HARNESSES
from tests.fuzz.harness.base import Harness

CORPUS = Path(__file__).with_name("corpus")
"""Inputs that are kept: one folder a harness."""

AGENT = Path(__file__).parents[2]
OUTPUT = AGENT.parent / "build" / "fuzz"

INPUT_TIMEOUT = 120
"""Seconds after which an input hangs, however little of the machine this process gets."""
RSS_LIMIT = 1024
"""MiB that the process of one harness may have."""
GRACE = 600.0
"""Seconds above its time that a run gets to start and to end."""

AVAILABLE = importlib.util.find_spec("atheris") is not None
"""Whether the fuzzer is installed; there are no wheels of it for every architecture."""

_PROGRESS = re.compile(r"^#(\d+)\s.*\bcov: (\d+)", re.MULTILINE)
_FILES = re.compile(r"\bcorp: (\d+)/")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_PEAK = re.compile(r"stat::peak_rss_mb:\s*(\d+)")
_ALIVE = re.compile(r"^alive: (\d+) blocks, ([\d.]+) MiB", re.MULTILINE)
_EXCEPTION = re.compile(r"=== Uncaught Python exception: ===\n(.*)")
_FAULT = re.compile(r"ERROR: libFuzzer: (.*)|SUMMARY: libFuzzer: (.*)")


@dataclass(frozen=True, slots=True)
class Report:
    """One run: inputs tried, edges of the product that were reached, inputs that were kept, memory.

    ``peak`` is the largest resident size in MiB, ``growth`` that of the last look above that of the first in MiB,
    ``blocks`` the same in blocks that the interpreter has given out.
    """

    name: str
    seconds: float
    executions: int
    coverage: int
    kept: int
    peak: int
    growth: float
    blocks: int
    fault: str
    log: Path

    @property
    def rate(self) -> float:
        """Inputs a second."""
        return self.executions / self.seconds if self.seconds else 0.0


def fuzz(harness: Harness, seconds: int, *, folder: Path = OUTPUT, seed: int = 0) -> Report:
    """Fuzz one harness for so long, from the kept corpus on; new inputs, log and findings go to ``folder``."""
    place = folder / harness.name
    found = place / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    words = place / "words"
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in harness.tokens))
    command = [
        *(sys.executable, "-m", "tests.fuzz.one", harness.name, str(found), str(CORPUS / harness.name)),
        *(f"-max_total_time={seconds}", f"-timeout={INPUT_TIMEOUT}", f"-rss_limit_mb={RSS_LIMIT}"),
        *(f"-max_len={harness.maximum_length}", f"-artifact_prefix={place}/", f"-seed={seed}"),
        *((f"-dict={words}",) if harness.tokens else ()),
        *("-print_final_stats=1", "-detect_leaks=0", "-len_control=20"),
    ]
    log = place / "log"
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    with log.open("wb") as out:
        try:
            status = subprocess.run(
                command, cwd=AGENT, env=environment, stdout=out, stderr=out, timeout=seconds + GRACE, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    return report(harness.name, time.monotonic() - begin, status, log)


def report(name: str, seconds: float, status: int, log: Path) -> Report:
    """Read the log of a run that ended with ``status``."""
    text = log.read_text(errors="replace")
    progress = _PROGRESS.findall(text)
    executed, peak, files = _EXECUTED.findall(text), _PEAK.findall(text), _FILES.findall(text)
    looks = [(int(blocks), float(size)) for blocks, size in _ALIVE.findall(text)]
    return Report(
        name,
        seconds,
        int(executed[-1]) if executed else int(progress[-1][0]) if progress else 0,
        int(progress[-1][1]) if progress else 0,
        int(files[-1]) if files else 0,
        int(peak[-1]) if peak else 0,
        looks[-1][1] - looks[0][1] if looks else 0.0,
        looks[-1][0] - looks[0][0] if looks else 0,
        _fault(status, text),
        log,
    )


def _fault(status: int, text: str) -> str:
    if not status:
        return ""
    exception = _EXCEPTION.search(text)
    if exception:
        return exception[1].strip()
    fault = _FAULT.search(text)
    return next(part for part in (*fault.groups(), "?") if part) if fault else f"ended with status {status}"


def _escaped(token: bytes) -> str:
    return "".join(chr(b) if 0x20 <= b < 0x7F and b not in b'"\\' else f"\\x{b:02x}" for b in token)


def kept(name: str) -> list[Path]:
    """Return the inputs that are kept for a harness, in order."""
    return sorted(path for path in (CORPUS / name).iterdir() if path.is_file())


def keep(name: str, folder: Path = OUTPUT) -> int:
    """Add to the kept corpus what reaches something that it does not; return how many inputs that is."""
    before = len(kept(name))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.one",
            name,
            "-merge=1",
            str(CORPUS / name),
            str(folder / name / "corpus"),
        ],
        cwd=AGENT,
        check=True,
        capture_output=True,
    )
    return len(kept(name)) - before


__all__ = ["AVAILABLE", "CORPUS", "HARNESSES", "Report", "fuzz", "keep", "kept", "report"]
