# SPDX-License-Identifier: GPL-3.0-or-later
"""Every route over its real socket: what it hands to the control plane and what it answers."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.api.recording import STATUS

from blockfleet.engine.interface import EngineEvent
from blockfleet.model.change import Change
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

TARGET = "iqn.2026-11.com.example:db"


def _event(sequence: int) -> EngineEvent:
    return EngineEvent(
        sequence=sequence, time=1.5, number=1001, name="logged_in", subject=TARGET, message="logged in"
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/version", None),
        ("GET", "/v1/status", None),
        ("GET", "/v1/desired", None),
        ("GET", "/v1/observed", None),
        ("POST", "/v1/plan", {}),
        ("POST", "/v1/apply", {}),
        ("GET", "/v1/drift", None),
        ("POST", "/v1/discover", {"portals": None}),
        ("POST", "/v1/rescan", {"target": None}),
        ("GET", "/v1/events", None),
    ],
)
async def test_every_answer_carries_the_format_version(api, method, path, body):
    answer = await api.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["format_version"] == 1


async def test_an_empty_change_asks_for_what_is_left_to_do(api, sockets):
    await api.post("/v1/plan", json={})
    await api.post("/v1/apply", json={})
    assert sockets.control.asked == [("plan", None), ("apply", None)]


async def test_a_change_reaches_the_control_plane_as_it_was_sent(api, sockets):
    body = {
        "document": {"targets": [{"name": TARGET, "portals": "all"}]},
        "options": {"allow_disruption": True, "wait_timeout": 3},
        "exclusive": ["targets.portals"],
    }
    answer = await api.post("/v1/apply", json=body)
    assert answer.json()["status"] == "in_sync"
    assert answer.json()["summary"] == {"add": 1, "change": 0, "remove": 0}
    assert sockets.control.asked == [("apply", Change.model_validate(body))]


async def test_options_alone_are_a_change_with_those_options(api, sockets):
    await api.post("/v1/apply", json={"options": {"wait_timeout": 0}})
    assert sockets.control.asked[0][1].options.wait_timeout == 0


async def test_version_tells_that_the_engine_is_gone_without_failing(api, sockets):
    assert (await api.get("/v1/version")).json()["engine"]["pid"] == 77
    sockets.engine.failure = BlockfleetError(Isdsc.ENGINE_NOT_RUNNING, "cannot reach the engine")
    answer = (await api.get("/v1/version")).json()
    assert answer["engine"] == {"reachable": False, "instance": "", "version": "", "pid": 0}


async def test_portals_to_discover_are_normalised(api, sockets):
    await api.post("/v1/discover", json={"portals": ["2001:DB8:0::10"]})
    assert sockets.control.asked == [("discover", ("[2001:db8::10]:3260",))]


async def test_events_are_paged_by_sequence(api, sockets):
    sockets.control.kept = [_event(n) for n in (3, 4, 5)]
    answer = (await api.get("/v1/events", params={"after": 3, "limit": 1})).json()
    assert [event["sequence"] for event in answer["events"]] == [4]


async def test_events_are_followed_as_lines_of_json(api, sockets):
    sockets.control.kept = [_event(1)]
    async with api.stream("GET", "/v1/events", headers={"accept": "application/x-ndjson"}) as answer:
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines))["sequence"] == 1
        sockets.control.kept.append(_event(2))
        assert json.loads(await asyncio.wait_for(anext(lines), 10))["sequence"] == 2


async def test_stopping_ends_a_followed_stream_cleanly(api, sockets):
    sockets.control.kept = [_event(1)]
    async with api.stream("GET", "/v1/events", headers={"accept": "application/x-ndjson"}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        sockets.servers[0].stop()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(lines), 10)


async def test_an_apply_goes_on_when_its_client_goes_away(sockets):
    sockets.control.hold = asyncio.Event()
    _, writer = await asyncio.open_unix_connection(str(sockets.change))
    writer.write(
        b"POST /v1/apply HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    await asyncio.wait_for(sockets.control.entered.wait(), 10)
    writer.close()
    await writer.wait_closed()
    sockets.control.hold.set()
    async with sockets.client(sockets.change) as client:
        page = await _eventually(client, 'operation_seconds_count{operation="apply"} 1.0')
    assert "blockfleet_operation_seconds" in page


async def _eventually(client, text):
    for _ in range(200):
        page = (await client.get("/metrics")).text
        if text in page:
            return page
        await asyncio.sleep(0.02)
    raise AssertionError(f"{text} never came:\n{page}")


async def test_metrics_show_sessions_paths_volumes_and_drift(api):
    answer = await api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for line in (
        "blockfleet_in_sync 1.0",
        "blockfleet_engine_up 1.0",
        "blockfleet_generation 7.0",
        f'blockfleet_sessions_wanted{{target="{TARGET}"}} 2.0',
        f'blockfleet_sessions{{phase="logged_in",target="{TARGET}"}} 1.0',
        f'blockfleet_sessions{{phase="recovering",target="{TARGET}"}} 1.0',
        f'blockfleet_session_events_total{{counter="commands",portal="192.0.2.10:3260",target="{TARGET}"}} 9.0',
        'blockfleet_volume_size_bytes{volume="db01"} 1.073741824e+09',
        'blockfleet_volume_paths{phase="failed",volume="db01"} 1.0',
        'blockfleet_drift_actions{verb="login"} 1.0',
    ):
        assert line in lines, f"{line} is not in\n{answer.text}"


async def test_metrics_show_connections(api, sockets):
    session = {
        **STATUS.targets[0].sessions[0],
        "connection_set": {"further": [{}, {}]},
        "connections": [
            {"cid": 0, "portal": "192.0.2.10:3260", "phase": "logged_in", "commands": 41, "in_flight": 3},
            {"cid": 4, "portal": "192.0.2.13:3260", "phase": "logged_in", "commands": 7, "in_flight": 1},
            {"cid": None, "portal": "192.0.2.10:3260", "phase": "failed", "commands": 0, "in_flight": 0},
        ],
    }
    target = STATUS.targets[0].model_copy(update={"sessions": (session,)})
    sockets.control.answers["status"] = STATUS.model_copy(update={"targets": (target,)})
    lines = (await api.get("/metrics")).text.splitlines()
    where = f'portal="192.0.2.10:3260",target="{TARGET}"'
    one = f'cid="4",portal="192.0.2.10:3260",target="{TARGET}",via="192.0.2.13:3260"'
    for line in (
        f"blockfleet_connections_wanted{{{where}}} 3.0",
        f'blockfleet_connections{{phase="logged_in",{where}}} 2.0',
        f"blockfleet_connection_commands_total{{{one}}} 7.0",
        f"blockfleet_connection_in_flight{{{one}}} 1.0",
    ):
        assert line in lines, f"{line} is not in\n" + "\n".join(lines)


async def test_openapi_describes_every_route_and_its_errors(api):
    description = (await api.get("/openapi.json")).json()
    assert set(description["paths"]) >= {
        "/v1/version", "/v1/status", "/v1/desired", "/v1/observed", "/v1/plan", "/v1/apply",
        "/v1/drift", "/v1/discover", "/v1/rescan", "/v1/events", "/metrics",
    }  # fmt: skip
    for path, methods in description["paths"].items():
        for operation in methods.values():
            assert operation["description"].endswith("."), path
            assert {"403", "422", "503"} <= set(operation["responses"]), path
            error = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorAnswer"}, path
