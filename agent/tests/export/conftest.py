# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from tests.export.memory_disk import MemoryDisk
from tests.export.nbd_client import NbdClient

from blockfleet.block.device import Geometry
from blockfleet.export.server import NbdExport

Serve = Callable[..., Awaitable[NbdExport]]

MEBIBYTE = 1 << 20
FULL = Geometry(
    size=8 * MEBIBYTE,
    block_size=512,
    preferred_block_size=4096,
    maximum_transfer=4 * MEBIBYTE,
    can_trim=True,
    can_write_zeroes=True,
)


def pytest_asyncio_loop_factories(config, item):
    """Run every asynchronous test here on both event loops: they differ in how they treat a transport."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def folder():
    """A folder whose socket paths are short."""
    path = Path(tempfile.mkdtemp(prefix="nbd-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(FULL, keep_log=True)


@pytest_asyncio.fixture
async def serve(folder: Path) -> AsyncIterator[Serve]:
    exports: list[NbdExport] = []

    async def start(device: MemoryDisk, name: str = "vol1") -> NbdExport:
        export = NbdExport(name, device, folder / f"{name}.sock")
        await export.start()
        exports.append(export)
        return export

    yield start
    await NbdClient.close_all()
    for export in exports:
        await export.stop(drain_timeout=0.2)


@pytest_asyncio.fixture
async def export(serve: Serve, disk: MemoryDisk) -> NbdExport:
    return await serve(disk)


async def eventually(condition: Callable[[], bool], within: float = 5.0) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Awaitable[None]]:
    return eventually
