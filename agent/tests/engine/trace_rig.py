# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces as files, read back by tshark."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.peers.capture import Pdu, Recording

from blockfleet.cli.tracefile import TraceFile
from blockfleet.engine.interface import Engine, TraceBatch, TraceRecord, TraceSpec


class Reader:
    """Reads a trace into memory and a file, in a task of its own; ``begun`` when it is on."""

    def __init__(self, engine: Engine, spec: TraceSpec, file: Path) -> None:
        self.file = file
        self.batches: list[TraceBatch] = []
        self._spec = spec
        self._engine = engine
        self.read = asyncio.Event()
        """Cleared, the reader stops reading after the next batch."""
        self.read.set()
        self._begun = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self.file.open("wb") as stream:
            written = TraceFile(stream, self._spec.target)
            async with contextlib.aclosing(self._engine.trace(self._spec)) as batches:
                async for batch in batches:
                    self.batches.append(batch)
                    written.write(batch)
                    self._begun.set()
                    await self.read.wait()
            written.finish(len(self.pdus) + self.dropped, self.dropped, self.records[-1].time)

    async def begun(self) -> Reader:
        await asyncio.wait_for(self._begun.wait(), 10)
        return self

    async def ended(self) -> Reader:
        """Wait for the end that the engine makes."""
        await asyncio.wait_for(self._task, 30)
        return self

    async def stop(self) -> None:
        """Go away in the middle."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def records(self) -> list[TraceRecord]:
        return [record for batch in self.batches for record in batch.records]

    @property
    def pdus(self) -> list[TraceRecord]:
        return [record for record in self.records if record.kind == "pdu"]

    @property
    def dropped(self) -> int:
        return self.batches[-1].dropped

    def recording(self) -> Recording:
        return Recording(self.file, {r.remote[1] for r in self.records if r.kind == "opened"})


def opcodes(pdus: Iterable[Pdu]) -> Counter[int]:
    """How many PDUs of each type tshark found."""
    return Counter(pdu.opcode for pdu in pdus)
