# SPDX-License-Identifier: GPL-3.0-or-later
"""Verified load on a nexus: every block that is written is read back and compared."""

from __future__ import annotations

import asyncio
from types import TracebackType

from tests.net.nexus_rig import PATIENCE, run

from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

BLOCKS = 16
SIZE = 512 * BLOCKS


class Load:
    """``workers`` that write and read back extents of their own until the block is left; an error ends the test."""

    def __init__(self, nexus: Nexus, workers: int) -> None:
        self.count = 0
        self.slowest = 0.0
        self._nexus = nexus
        self._workers = [self._work(number) for number in range(workers)]
        self._tasks: list[asyncio.Task[None]] = []
        self._progress = asyncio.Event()
        self._stopping = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.ensure_future(worker) for worker in self._workers]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._tasks)

    async def done(self, count: int) -> None:
        """Wait until so many write-read pairs are done since the start."""
        async with asyncio.timeout(PATIENCE):
            while self.count < count:
                for task in self._tasks:
                    if task.done():
                        task.result()
                self._progress.clear()
                await self._progress.wait()

    async def _work(self, number: int) -> None:
        generation = 0
        try:
            while not self._stopping:
                generation += 1
                lba = BLOCKS * (number * 8 + generation % 8)
                where = lba.to_bytes(4, "big") + b"\0" + BLOCKS.to_bytes(2, "big") + b"\0"
                data = (number << 24 | generation).to_bytes(4, "big") * (SIZE // 4)
                await self._run(b"\x2a\0" + where, write=data)
                assert await self._run(b"\x28\0" + where, read=SIZE) == data
                self.count += 1
                self._progress.set()
        finally:
            self._progress.set()

    async def _run(self, cdb: bytes, *, read: int = 0, write: bytes = b"") -> bytes:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        command = await run(self._nexus, cdb, read=read, write=write)
        self.slowest = max(self.slowest, loop.time() - begun)
        assert (command.outcome, command.status) == (Outcome.COMPLETE, 0), (command, command.error, command.sense)
        return bytes(command.data_in or b"")
