# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve a disk in memory over NBD until SIGTERM: ``python memory_export.py SOCKET MEBIBYTES``."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from blockfleet.block.device import BlockRequest, Geometry, Operation
from blockfleet.export.server import NbdExport


class FastMemory:
    """The shortest device there can be, so that what is measured is the server."""

    def __init__(self, size: int) -> None:
        self.geometry = Geometry(size, 512, 4096, 1 << 25, can_trim=True, can_write_zeroes=True)
        self._data = memoryview(bytearray(size))

    def submit(self, request: BlockRequest) -> None:
        """Copy and complete."""
        start, end = request.offset, request.offset + request.length
        if request.operation == Operation.READ and request.buffer is not None:
            request.buffer[:] = self._data[start:end]
        elif request.operation == Operation.WRITE and request.buffer is not None:
            self._data[start:end] = request.buffer
        request.on_done(request)


async def _serve(path: Path, size: int) -> None:
    export = NbdExport("memory", FastMemory(size), path)
    await export.start()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await export.stop()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), int(sys.argv[2]) << 20))
