# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace as a stream of an HTTP answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from fastapi.responses import StreamingResponse

from blockfleet.engine.interface import TraceBatch, TraceSpec
from blockfleet.model.desired import PortalText, TargetName
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.plan import FORMAT_VERSION

NDJSON = "application/x-ndjson"

log = logging.getLogger("blockfleet.api")

READ_AHEAD = 4
"""Batches that wait here for a client; what is beyond waits in the engine, which drops what it cannot hold."""

_STOP_INTERVAL = 0.25
"""Seconds between two looks whether the agent stops."""


class TraceRequest(TraceSpec):
    """What to trace."""

    target: TargetName
    portal: PortalText | None = None


class TraceLine(TraceBatch):
    """One line of the answer."""

    format_version: int = FORMAT_VERSION


TRACE_ROUTE: Mapping[str, Any] = {
    "response_class": StreamingResponse,
    "response_model": None,
    "responses": {
        200: {
            "description": "One batch a line; fields that have their default are left out",
            "content": {NDJSON: {"schema": TraceLine.model_json_schema(mode="serialization")}},
        }
    },
}


async def lines(
    first: TraceBatch, batches: AsyncGenerator[TraceBatch, None], stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    """Yield ``first`` and what follows, a line each, until the trace ends, the client goes or the agent stops."""
    waiting: asyncio.Queue[TraceBatch | None] = asyncio.Queue(READ_AHEAD)
    # A task of its own: the client's going cancels this generator at any point, and the trace has to be closed.
    pump = asyncio.create_task(_pump(batches, waiting))
    try:
        batch: TraceBatch | None = first
        while batch is not None and not stopping.is_set():
            yield _line(batch)
            batch = await _next(waiting, stopping)
    finally:
        pump.cancel()


async def _next(waiting: asyncio.Queue[TraceBatch | None], stopping: asyncio.Event) -> TraceBatch | None:
    while not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(waiting.get(), _STOP_INTERVAL)
    return None


async def _pump(batches: AsyncGenerator[TraceBatch, None], waiting: asyncio.Queue[TraceBatch | None]) -> None:
    """Hand the batches on and a None at the end; an engine that goes away ends the stream, unfinished."""
    async with contextlib.aclosing(batches):
        try:
            async for batch in batches:
                await waiting.put(batch)
        except BlockfleetError as error:
            log.warning("a trace ended early: %s", error)
    await waiting.put(None)


def _line(batch: TraceBatch) -> bytes:
    fields = batch.model_dump_json(exclude_defaults=True).encode()
    return b'{"format_version":%d%b%b\n' % (FORMAT_VERSION, b"," if len(fields) > 2 else b"", fields[1:])
