# SPDX-License-Identifier: GPL-3.0-or-later
"""``make fuzz``: every harness for a while, then a table.

Exits with 1 where there was a finding: an exception, an input that hangs, memory without bound or that grows; and
with 2 where nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.harness import HARNESSES
from tests.fuzz.harness.base import Harness
from tests.fuzz.run import AVAILABLE, OUTPUT, Report, fuzz, keep

DURATION = 3600
"""Seconds for all harnesses together."""


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def table(reports: list[Report]) -> str:
    """Return the table of a number of runs."""
    head = f"{'harness':<12} {'inputs':>9} {'per s':>6} {'coverage':>8} {'corpus':>6}"
    lines = [f"{head} {'peak MiB':>8} {'growth':>6} {'blocks':>7}  result"]
    for one in reports:
        result = f"{one.fault} (see {one.log})" if one.fault else "ok"
        lines.append(
            f"{one.name:<12} {one.executions:>9} {one.rate:>6.0f} {one.coverage:>8} {one.kept:>6}"
            f" {one.peak:>8} {one.growth:>6.1f} {one.blocks:>7}  {result}"
        )
    return "\n".join(lines)


def shares(chosen: list[Harness], duration: int, jobs: int) -> list[tuple[Harness, int]]:
    """Split the time by weight, the longest first, so that as many as run at a time end together."""
    total = max(sum(harness.weight for harness in chosen), jobs * max(harness.weight for harness in chosen))
    ordered = sorted(chosen, key=lambda harness: -harness.weight)
    return [(harness, max(1, duration * jobs * harness.weight // total)) for harness in ordered]


def main() -> int:
    """Run what the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--duration", type=int, default=DURATION, help="seconds for all together (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="harnesses at a time (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus in the repository")
    parser.add_argument("names", nargs="*", metavar="HARNESS", help=f"some of: {', '.join(HARNESSES)}")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(HARNESSES)
    if unknown:
        parser.error(f"no harness {', '.join(sorted(unknown))}; there are {', '.join(HARNESSES)}")
    if not AVAILABLE:
        _say("make fuzz: atheris is not installed: pip install -e 'agent[fuzz]' where there is a wheel of it")
        return 2
    chosen = [HARNESSES[name] for name in arguments.names or HARNESSES]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        split = shares(chosen, arguments.duration, arguments.jobs)
        reports = list(pool.map(lambda share: fuzz(*share), split))
    _say(table(reports))
    if arguments.keep:
        for harness in chosen:
            _say(f"{harness.name}: {keep(harness.name)} inputs were added to the corpus")
    OUTPUT.joinpath("table").write_text(table(reports) + "\n")
    return 1 if any(one.fault for one in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
