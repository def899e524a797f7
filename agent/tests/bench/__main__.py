# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: our engine beside C programs that do the same work, in one run, turn and turn about.

The machine is shared with whatever else runs on it, so only what was measured in the same round is compared: every
round measures both sides of a row one right after the other, and the next round the other way round.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.progress import Progress
from tests.bench import rows as bench
from tests.bench.report import Result, earlier_ratios, show, write_json
from tests.bench.rows import PEERS, Measure, Row
from tests.bench.servers import (
    Checkout,
    Server,
    Unit,
    start_engine,
    start_memory,
    start_nbdkit_memory,
    start_qemu_nbd,
)
from tests.peers.tgt import Tgt

ROOT = Path(os.environ.get("BLOCKFLEET_ROOT", Path(__file__).parents[3]))
TARGET = "iqn.2026-11.com.example:bench"
SIZE = 256 << 20
_SHARED_MEMORY = Path("/dev/shm")


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one short round")
    parser.add_argument("--rows", metavar="PATTERN", default="", help="only rows whose name the pattern finds")
    parser.add_argument("--rounds", type=int, help="rounds a row (default 6, a whole turn of the order)")
    parser.add_argument("--seconds", type=float, help="seconds a measurement (default 1)")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="an earlier bench.json, to show its ratios; or a checkout, to measure its engine in the same rounds",
    )
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json", help="where the rows go")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 6)
    options.seconds = options.seconds or 1.0
    if options.against is not None and not options.against.exists():
        parser.error(f"--against {options.against}: no such file or checkout")
    return options


class Bench:
    """All that is measured, started when a row first needs it."""

    def __init__(self, before: Checkout | None, stack: ExitStack) -> None:
        self._stack = stack
        self._checkouts = {"ours": Checkout(ROOT)} | ({"before": before} if before else {})
        self._measures: dict[str, dict[str, Measure]] = {}
        self._unit: Unit | None = None

    def measures(self, group: str) -> dict[str, Measure]:
        """Return how each side of a group is measured: ``ours``, ``peer`` and perhaps ``before``."""
        if group not in self._measures:
            self._measures[group] = getattr(self, f"_{group}")()
        return self._measures[group]

    def _initiator(self) -> dict[str, Measure]:
        unit = self._shared_unit()
        ours = {side: bench.measure_ours(checkout, unit) for side, checkout in self._checkouts.items()}
        return ours | {"peer": bench.measure_iscsi_perf(unit)}

    def _volume(self) -> dict[str, Measure]:
        unit = self._shared_unit()
        servers = {side: start_engine(checkout, unit) for side, checkout in self._checkouts.items()}
        return self._nbd(servers | {"peer": start_qemu_nbd(unit)})

    def _export(self) -> dict[str, Measure]:
        servers = {side: start_memory(checkout, SIZE) for side, checkout in self._checkouts.items()}
        return self._nbd(servers | {"peer": start_nbdkit_memory(SIZE)})

    def _nbd(self, servers: dict[str, Server]) -> dict[str, Measure]:
        for server in servers.values():
            self._stack.callback(server.close)
        return {side: bench.measure_nbd(server, SIZE) for side, server in servers.items()}

    def _shared_unit(self) -> Unit:
        """Return the one unit that both sides use, its data in memory."""
        if self._unit is None:
            target = Tgt(parent=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None)
            self._stack.callback(target.close)
            target.add_target(TARGET)
            target.add_unit(TARGET, SIZE).write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
            self._unit = Unit(TARGET, 1, target.portals[0], SIZE)
        return self._unit


def order_of(sides: list[str], turn: int) -> list[str]:
    """Return who goes when in a round: each side is as often in each place, and after each other side.

    The place counts: after a pause, or after somebody else's work, the first in a row is slower by some percent.
    """
    rotation = turn % len(sides)
    rotated = sides[rotation:] + sides[:rotation]
    return rotated if turn // len(sides) % 2 == 0 else rotated[::-1]


def _run(options: argparse.Namespace, chosen: list[Row], before: Checkout | None) -> list[Result]:
    results = [Result(row) for row in chosen]
    with ExitStack() as stack, Progress(transient=True) as progress:
        subjects = Bench(before, stack)
        sides = len(subjects.measures(chosen[0].group))
        todo = progress.add_task("", total=len(chosen) * options.rounds * sides)
        for result in results:
            measures = subjects.measures(result.row.group)
            for turn in range(options.rounds):
                for side in order_of(list(measures), turn):
                    progress.update(todo, description=f"{result.row.name}: {side}")
                    getattr(result, side).append(measures[side](result.row, options.seconds))
                    progress.advance(todo)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the file."""
    options = _options(arguments)
    rows = bench.QUICK if options.quick else bench.ROWS
    chosen = [row for row in rows if re.search(options.rows, row.name)]
    if not chosen:
        names = "\n  ".join(row.name for row in rows)
        sys.exit(f"no row has {options.rows!r} in its name; there are:\n  {names}")
    earlier: dict[str, float] = {}
    before = None
    if options.against is not None and options.against.is_dir():
        before = Checkout(options.against.resolve())
    elif options.against is not None:
        earlier = earlier_ratios(options.against)
    results = _run(options, chosen, before)
    used = {"rounds": options.rounds, "seconds": options.seconds, "quick": options.quick, "peers": PEERS}
    write_json(options.json, results, used)
    show(results, earlier)
    return 0


if __name__ == "__main__":
    sys.exit(main())
