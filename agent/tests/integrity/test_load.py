# SPDX-License-Identifier: GPL-3.0-or-later
"""The load with its oracle against disks in memory: quiet on a good one, and it finds what a bad one does."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.export.memory_disk import MemoryDisk
from tests.integrity.load import Load, Mix, Report, run
from tests.integrity.oracle import BLOCK

from blockfleet.block.device import BlockRequest, Geometry, Operation
from blockfleet.export.server import NbdExport

GEOMETRY = Geometry(size=64 * BLOCK, block_size=512, preferred_block_size=4096, maximum_transfer=1 << 20)
MIX = Mix(blocks=64, rate=2000)


class BadDisk(MemoryDisk):
    """Does ``wrong`` to the disk after every tenth write, which it is given."""

    def __init__(self, wrong: Callable[[BadDisk, BlockRequest], None]) -> None:
        super().__init__(GEOMETRY)
        self._wrong = wrong
        self._writes = 0
        self.before = b""

    def submit(self, request: BlockRequest) -> None:
        if request.operation == Operation.WRITE:
            self._writes += 1
            if self._writes % 10 == 0:
                self.before = bytes(self.data)
                super().submit(request)
                self._wrong(self, request)
                return
        super().submit(request)


def ghost(disk: BadDisk, request: BlockRequest) -> None:
    """What the write replaced comes back."""
    span = slice(request.offset, request.offset + request.length)
    disk.data[span] = disk.before[span]


def misplaced(disk: BadDisk, request: BlockRequest) -> None:
    """One block is found in the place of another."""
    other = (request.offset + 32 * BLOCK) % GEOMETRY.size
    disk.data[other : other + BLOCK] = disk.data[request.offset : request.offset + BLOCK]


def flipped(disk: BadDisk, request: BlockRequest) -> None:
    """One bit changes."""
    disk.data[request.offset + 1000] ^= 1


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="load-"))
    yield path
    shutil.rmtree(path)


async def loaded(folder: Path, disk: MemoryDisk, seconds: float = 0.6) -> Report:
    export = NbdExport("v", disk, folder / "v.sock")
    await export.start()
    try:
        return await run(Load(folder / "v.sock", seed=5, depth=8, mix=MIX), seconds)
    finally:
        await export.stop(drain_timeout=0.2)


async def test_good_disk_is_clean(folder: Path) -> None:
    report = await loaded(folder, MemoryDisk(GEOMETRY))
    assert report.clean
    assert report.reads > 100
    assert report.writes > 100
    assert report.flushes
    assert report.connections == 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(ghost, "after version"), (misplaced, "of LBA"), (flipped, "torn or damaged")],
    ids=["ghost", "misplaced", "flipped bit"],
)
async def test_bad_disk_is_found(folder: Path, wrong: Callable[[BadDisk, BlockRequest], None], text: str) -> None:
    report = await loaded(folder, BadDisk(wrong))
    assert any(text in violation for violation in report.violations), report.violations
    assert not report.clean


async def test_errors_are_counted_and_leave_the_oracle_in_doubt_only(folder: Path) -> None:
    disk = MemoryDisk(GEOMETRY)
    loop = asyncio.get_running_loop()
    loop.call_later(0.2, setattr, disk, "fail_with", errno.EIO)
    loop.call_later(0.3, setattr, disk, "fail_with", 0)
    report = await loaded(folder, disk)
    assert report.errors
    assert report.violations == []
    assert not report.clean


async def test_stall_is_measured(folder: Path) -> None:
    disk = MemoryDisk(GEOMETRY)
    loop = asyncio.get_running_loop()

    def go_on() -> None:
        disk.hold = False
        disk.release()

    loop.call_later(0.1, setattr, disk, "hold", True)
    loop.call_later(0.4, go_on)
    report = await loaded(folder, disk)
    assert report.clean
    assert 0.2 < report.stall_longest < 0.6


async def test_server_that_goes_away_is_waited_for_and_gets_its_requests_again(folder: Path) -> None:
    disk = MemoryDisk(GEOMETRY)
    exports = [NbdExport("v", disk, folder / "v.sock")]
    await exports[0].start()
    load = Load(folder / "v.sock", seed=6, depth=8, mix=MIX, patience=10)
    await load.start()
    await asyncio.sleep(0.2)
    disk.hold = True
    await asyncio.sleep(0.1)
    await exports[0].stop(drain_timeout=0.05)
    disk.hold = False
    disk.release()
    await asyncio.sleep(0.1)
    exports.append(NbdExport("v", disk, folder / "v.sock"))
    await exports[1].start()
    await asyncio.sleep(0.3)
    report = await load.finish()
    await exports[1].stop(drain_timeout=0.2)
    assert report.violations == []
    assert report.connections == 2


async def test_program_prints_its_report(folder: Path) -> None:
    export = NbdExport("v", MemoryDisk(GEOMETRY), folder / "v.sock")
    await export.start()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integrity.load", "--socket", str(folder / "v.sock"), "--seconds", "0.4"),
        *("--depth", "8", "--seed", "7", "--blocks", "64", "--rate", "1000", "--journal", str(folder / "journal")),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    output, _ = await asyncio.wait_for(program.communicate(), 30)
    await export.stop(drain_timeout=0.2)
    report = json.loads(output)
    assert program.returncode == 0
    assert (report["clean"], report["violation_count"], report["seed"]) == (True, 0, 7)
    assert report["operations"] > 50
    noted = {line.split()[0] for line in (folder / "journal").read_text().splitlines()}
    assert {"intent", "ack", "read"} <= noted
