# SPDX-License-Identifier: GPL-3.0-or-later
"""``make fuzz``: every harness for a while, then a table.

Exits with 1 where there was a finding and with 2 where nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.harness import HARNESSES
from tests.fuzz.run import AVAILABLE, OUTPUT, Report, fuzz, keep

SECONDS = 720
"""Of each harness: ten of them, two at a time, make an hour."""


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def table(reports: list[Report]) -> str:
    """Return the table of a number of runs."""
    lines = [f"{'harness':<12} {'inputs':>10} {'per s':>7} {'coverage':>8} {'corpus':>6} {'MiB':>5}  result"]
    for one in reports:
        result = f"{one.fault} (see {one.log})" if one.fault else "ok"
        lines.append(
            f"{one.name:<12} {one.executions:>10} {one.rate:>7.0f} {one.coverage:>8} {one.kept:>6} {one.peak:>5}"
            f"  {result}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run what the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each harness (%(default)s)")
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
        reports = list(pool.map(lambda harness: fuzz(harness, arguments.seconds), chosen))
    _say(table(reports))
    if arguments.keep:
        for harness in chosen:
            _say(f"{harness.name}: {keep(harness.name)} inputs were added to the corpus")
    OUTPUT.joinpath("table").write_text(table(reports) + "\n")
    return 1 if any(one.fault for one in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
