# SPDX-License-Identifier: GPL-3.0-or-later
"""``POST /v1/trace``: a stream of batches, for whoever may change things."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from blockfleet.engine.interface import TraceBatch, TraceRecord, TraceSpec
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

TARGET = "iqn.2026-11.com.example:db"


async def test_each_batch_is_a_line_and_the_last_one_says_so(api, sockets, caplog):
    caplog.set_level(logging.INFO, "blockfleet.audit")
    record = TraceRecord(kind="pdu", connection=1, time=1, data="AA==", length=1)
    sockets.engine.batches = (TraceBatch(records=(record,)), sockets.engine.batches[1])
    body = {"target": TARGET, "portal": "192.0.2.10", "data": 64, "with_chap": True, "seconds": 2.5}
    answer = await api.post("/v1/trace", json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    first, last = map(json.loads, answer.text.splitlines())
    assert first == {
        "format_version": 1,
        "records": [{"kind": "pdu", "connection": 1, "time": 1, "length": 1, "data": "AA=="}],
    }
    assert last == {"format_version": 1, "dropped": 3, "dropped_bytes": 144, "ended": True}
    wanted = TraceSpec(target=TARGET, portal="192.0.2.10:3260", data=64, with_chap=True, seconds=2.5)
    assert [spec.model_dump() for spec in sockets.engine.traced] == [wanted.model_dump()]
    assert any(f"target={TARGET}" in r.getMessage() for r in caplog.records if r.name == "blockfleet.audit")
    assert sockets.engine.traces_open == 0


async def test_the_reading_socket_shows_no_user_data(reader, sockets):
    answer = await reader.post("/v1/trace", json={"target": TARGET})
    assert answer.status_code == 403
    assert sockets.engine.traced == []


async def test_a_trace_that_cannot_begin_is_an_error_and_no_stream(api, sockets):
    sockets.engine.failure = BlockfleetError(Isdsc.TARGET_NOT_FOUND, "there is no session to it")
    answer = await api.post("/v1/trace", json={"target": TARGET})
    assert answer.status_code == 404
    assert answer.json()["error"]["name"] == "ISDSC_TARGET_NOT_FOUND"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"target": "no name"},
        {"target": TARGET, "data": -1},
        {"target": TARGET, "seconds": 0},
        {"target": TARGET, "x": 1},
    ],
)
async def test_a_wrong_request_is_refused(api, sockets, body):
    assert (await api.post("/v1/trace", json=body)).status_code == 422
    assert sockets.engine.traced == []


async def test_a_client_that_goes_ends_its_trace(api, sockets):
    sockets.engine.hold = asyncio.Event()
    async with api.stream("POST", "/v1/trace", json={"target": TARGET}) as answer:
        assert await anext(answer.aiter_lines())
        assert sockets.engine.traces_open == 1
    async with asyncio.timeout(10):
        while sockets.engine.traces_open:
            await asyncio.sleep(0.01)


async def test_stopping_the_agent_ends_a_trace_cleanly(api, sockets):
    sockets.engine.hold = asyncio.Event()
    async with api.stream("POST", "/v1/trace", json={"target": TARGET}) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines)
        sockets.servers[0].stop()
        assert [line async for line in lines] == []
    async with asyncio.timeout(10):
        while sockets.engine.traces_open:
            await asyncio.sleep(0.01)
