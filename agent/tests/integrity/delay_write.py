# SPDX-License-Identifier: GPL-3.0-or-later
"""A target's backing file that takes its time with chosen writes: ``delay_write.c``, built and steered."""

from __future__ import annotations

import asyncio
import mmap
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("delay_write.c")
_CONTROL = struct.Struct("=IIiII108s")
_LENGTH = 4
"""Offset of the marker's length: written last, since the shim reads it first."""
_COUNTERS = struct.Struct("=II")
_COUNTERS_AT = 12


def build(folder: Path) -> Path:
    """Compile the shim into ``folder`` and return it."""
    built = folder / "delay_write.so"
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o", built, _SOURCE, "-ldl"],
        check=True,
    )
    return built


class DelayedWrites:
    """What a target that was started with ``environment`` does with marked writes."""

    def __init__(self, library: Path, folder: Path) -> None:
        path = folder / "delay.control"
        path.write_bytes(bytes(_CONTROL.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _CONTROL.size)
        self.environment = {"LD_PRELOAD": str(library), "DELAY_WRITE_CONTROL": str(path)}

    def hold(self, marker: bytes, seconds: float, times: int = 1) -> None:
        """Hold the next ``times`` writes that begin with ``marker``, each for ``seconds``."""
        assert 0 < len(marker) <= 108
        self.stop()
        begun, ended = self._counters()
        self._shared[:] = _CONTROL.pack(round(seconds * 1000), 0, times, begun, ended, marker)
        struct.pack_into("=I", self._shared, _LENGTH, len(marker))

    def stop(self) -> None:
        """Hold no further write; those that wait go on waiting."""
        struct.pack_into("=I", self._shared, _LENGTH, 0)

    @property
    def begun(self) -> int:
        """Writes that have begun to wait."""
        return self._counters()[0]

    @property
    def ended(self) -> int:
        """Writes that have waited and then reached the file."""
        return self._counters()[1]

    async def until_begun(self, count: int = 1, seconds: float = 10.0) -> None:
        """Wait until ``count`` writes have begun to wait."""
        async with asyncio.timeout(seconds):
            while self.begun < count:
                await asyncio.sleep(0.01)

    async def until_ended(self, count: int = 1, seconds: float = 30.0) -> None:
        """Wait until ``count`` writes that waited have reached the file."""
        async with asyncio.timeout(seconds):
            while self.ended < count:
                await asyncio.sleep(0.01)

    def _counters(self) -> tuple[int, int]:
        begun, ended = _COUNTERS.unpack_from(self._shared, _COUNTERS_AT)
        return int(begun), int(ended)
