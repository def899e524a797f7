# SPDX-License-Identifier: GPL-3.0-or-later
"""Random verified load on a volume's socket: reads, writes, FUA and flushes under the eye of the oracle.

Also a program, which prints a report as JSON and ends with 1 where there was an error or a violation::

    python -m tests.integrity.load --socket /run/blockfleet/volumes/db.sock --seconds 60 --depth 32 --seed 7

It overwrites the blocks that it is given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.integrity.nbd import FLUSH, FUA, READ, WRITE, NbdPipe, Request
from tests.integrity.oracle import BLOCK, Glance, Oracle

STALL = 0.05
"""Seconds without any answer, while some are due, from which it counts as a stall."""
LONGEST = 8
"""Blocks of the longest request."""
DRAIN_TIMEOUT = 60.0
"""Seconds that the last answers may take when the load ends."""
_SHOWN = 20


@dataclass(frozen=True)
class Mix:
    """What the load consists of: shares of all requests, and blocks it is spread over."""

    blocks: int = 512
    first: int = 0
    reads: float = 0.45
    flushes: float = 0.005
    fua: float = 0.02
    """Share of the writes."""
    rate: float = 0.0
    """Requests a second, 0 for as many as are answered."""


@dataclass
class Report:
    """What a run has seen; times are in seconds."""

    seed: int
    seconds: float = 0.0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    errors: int = 0
    first_errors: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    mixed: int = 0
    """Reads that saw a part of a write which ran beside them."""
    connections: int = 0
    replayed: int = 0
    """Requests sent again on a new connection."""
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """When each stall ended, and how long it was."""
    stall_longest: float = 0.0
    stall_p99: float = 0.0
    gap_p99: float = 0.0
    """Between one answer and the next."""
    latency_p50: float = 0.0
    latency_p99: float = 0.0
    latency_longest: float = 0.0

    @property
    def operations(self) -> int:
        return self.reads + self.writes + self.flushes

    @property
    def clean(self) -> bool:
        """Whether no request failed and no block was wrong."""
        return not (self.errors or self.violations)

    def as_json(self) -> str:
        """Return it for programs; of the violations the first ones."""
        shown = asdict(self) | {"violations": self.violations[:_SHOWN], "violation_count": len(self.violations)}
        return json.dumps(shown | {"operations": self.operations, "clean": self.clean}, indent=1)


class Load:
    """Keeps ``depth`` requests in flight from :meth:`start` to :meth:`finish`.

    Writes to one block never run side by side (the oracle could not tell which is the newer); reads run beside
    everything.  ``patience`` is how long it tries to reach a server that went away.
    """

    def __init__(
        self, socket: Path, *, seed: int, depth: int = 32, mix: Mix | None = None, patience: float = 0.0
    ) -> None:
        self.mix = mix or Mix()
        self._random = random.Random(seed)
        self.oracle = Oracle(self._random.randbytes(16))
        self.pipe = NbdPipe(socket, patience)
        self.report = Report(seed)
        self._depth = depth
        self._writing: set[int] = set()
        self._running = False
        self._idle = asyncio.Event()
        self._started = 0.0
        self._last = 0.0
        self._slots = 0
        """Requests in flight or waiting for their turn by the rate."""
        self._turn = 0.0
        self._gaps = array("f")
        self._latencies = array("f")

    async def start(self) -> None:
        """Connect and begin."""
        await self.pipe.open()
        assert self.pipe.size >= (self.mix.first + self.mix.blocks) * BLOCK
        self._running = True
        loop = asyncio.get_running_loop()
        self._started = self._last = self._turn = loop.time()
        for _ in range(self._depth):
            self._slots += 1
            self._next()

    async def finish(self) -> Report:
        """Wait for what is in flight, read every block that was written, and report."""
        self._running = False
        report = self.report
        async with asyncio.timeout(DRAIN_TIMEOUT):
            while self._slots:
                self._idle.clear()
                await self._idle.wait()
            report.seconds = round(asyncio.get_running_loop().time() - self._started, 3)
            await self.sweep()
        await self.pipe.close()
        report.violations, report.mixed = self.oracle.violations, self.oracle.mixed
        report.connections, report.replayed = self.pipe.connections, self.pipe.replayed
        lengths = sorted(length for _, length in report.stalls)
        report.stall_longest, report.stall_p99 = _percentile(lengths, 1.0), _percentile(lengths, 0.99)
        report.gap_p99 = _percentile(sorted(self._gaps), 0.99)
        latencies = sorted(self._latencies)
        report.latency_p50, report.latency_p99 = _percentile(latencies, 0.5), _percentile(latencies, 0.99)
        report.latency_longest = _percentile(latencies, 1.0)
        return report

    async def sweep(self) -> None:
        """Read every block that was written and judge it."""
        for lba in self.oracle.blocks:
            before = self.oracle.glance(lba)
            answer = await self.pipe.ask(READ, lba * BLOCK, BLOCK)
            if answer.error:
                self._failed(answer)
            else:
                self.oracle.check(lba, before, answer.data)

    # --- requests ----------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Begin a slot's next request, when it is its turn."""
        if self.mix.rate:
            loop = asyncio.get_running_loop()
            self._turn = max(self._turn + 1 / self.mix.rate, loop.time() - 0.05)
            if self._turn > loop.time() + 0.001:
                loop.call_at(self._turn, self._submit)
                return
        self._submit()

    def _submit(self) -> None:
        if not self._running:
            self._end_slot()
            return
        chosen = self._random.random()
        if chosen < self.mix.flushes:
            request = Request(FLUSH, self._flushed, context=self.oracle.flush_begins())
        elif chosen < self.mix.flushes + self.mix.reads:
            request = self._read()
        else:
            request = self._write() or self._read()
        if not self.pipe.outstanding:
            self._last = asyncio.get_running_loop().time()
        self.pipe.submit(request)

    def _extent(self) -> range:
        length = self._random.choice((1, 1, 1, 1, 2, 3, LONGEST))
        first = self._random.randrange(self.mix.blocks)
        return range(self.mix.first + first, self.mix.first + min(first + length, self.mix.blocks))

    def _read(self) -> Request:
        extent = self._extent()
        before = [(lba, self.oracle.glance(lba)) for lba in extent]
        return Request(READ, self._was_read, extent.start * BLOCK, len(extent) * BLOCK, context=before)

    def _write(self) -> Request | None:
        extent = self._extent()
        if not self._writing.isdisjoint(extent):
            return None
        self._writing.update(extent)
        data = b"".join(self.oracle.intend(lba) for lba in extent)
        flags = FUA if self._random.random() < self.mix.fua else 0
        versions = [(lba, self.oracle.register(lba).submitted) for lba in extent]
        return Request(WRITE, self._written, extent.start * BLOCK, data=data, flags=flags, context=versions)

    # --- answers -----------------------------------------------------------------------------------------

    def _was_read(self, request: Request) -> None:
        self.report.reads += 1
        if request.error:
            self._failed(request)
        else:
            blocks: list[tuple[int, Glance]] = request.context  # type: ignore[assignment]
            for index, (lba, before) in enumerate(blocks):
                self.oracle.check(lba, before, request.data[index * BLOCK : (index + 1) * BLOCK])
        self._answered(request)

    def _written(self, request: Request) -> None:
        self.report.writes += 1
        versions: list[tuple[int, int]] = request.context  # type: ignore[assignment]
        for lba, version in versions:
            self._writing.discard(lba)
            if request.error:
                self.oracle.failed(lba, version)
            else:
                self.oracle.acknowledged(lba, version, durable=bool(request.flags & FUA))
        if request.error:
            self._failed(request)
        self._answered(request)

    def _flushed(self, request: Request) -> None:
        self.report.flushes += 1
        epoch: int = request.context  # type: ignore[assignment]
        if request.error:
            self.oracle.flush_failed(epoch)
            self._failed(request)
        else:
            self.oracle.flushed(epoch)
        self._answered(request)

    def _failed(self, request: Request) -> None:
        report = self.report
        report.errors += 1
        if len(report.first_errors) < _SHOWN:
            report.first_errors.append(f"command {request.command} at {request.offset}: error {request.error}")

    def _answered(self, request: Request) -> None:
        now = asyncio.get_running_loop().time()
        gap = now - self._last
        self._last = now
        self._gaps.append(gap)
        self._latencies.append(now - request.begun)
        if gap >= STALL:
            self.report.stalls.append((round(now - self._started, 3), round(gap, 3)))
        if self._running:
            self._next()
        else:
            self._end_slot()

    def _end_slot(self) -> None:
        self._slots -= 1
        self._idle.set()


def _percentile(ordered: list[float], part: float) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(int(len(ordered) * part), len(ordered) - 1)], 4)


async def run(load: Load, seconds: float) -> Report:
    """Run a load for a while."""
    await load.start()
    await asyncio.sleep(seconds)
    return await load.finish()


def main() -> int:
    """Run as a program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.integrity.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--socket", type=Path, required=True, help="the volume's NBD socket")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--depth", type=int, default=32, help="requests in flight")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--first", type=int, default=0, help="first block of 4 KiB to use")
    parser.add_argument("--blocks", type=int, default=Mix.blocks, help="blocks of 4 KiB to use")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second (default: as they are answered)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a server that went away")
    parser.add_argument("--journal", type=Path, help="where to write down what was intended and answered")
    options = parser.parse_args()
    mix = Mix(blocks=options.blocks, first=options.first, rate=options.rate)

    async def work() -> Report:
        load = Load(options.socket, seed=options.seed, depth=options.depth, mix=mix, patience=options.patience)
        if options.journal is None:
            return await run(load, options.seconds)
        with options.journal.open("w", buffering=1) as load.oracle.journal:
            return await run(load, options.seconds)

    report = asyncio.run(work())
    sys.stdout.write(report.as_json() + "\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
