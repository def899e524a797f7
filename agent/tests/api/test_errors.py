# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors leave the API in one shape, with the status of their kind, and without a word of a secret."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

CANARY = "canary-Zq8vR2-secret"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Isdsc.DOCUMENT_INVALID, 422),
        (Isdsc.DOCUMENT_TOO_NEW, 422),
        (Isdsc.NOT_PERMITTED, 403),
        (Isdsc.TARGET_NOT_FOUND, 404),
        (Isdsc.DISRUPTION_REFUSED, 409),
        (Isdsc.VOLUME_AMBIGUOUS, 409),
        (Isdsc.AUTHENTICATION_FAILURE, 502),
        (Isdsc.CONNECTION_FAILED, 502),
        (Isdsc.ENGINE_NOT_RUNNING, 503),
        (Isdsc.STATE_UNUSABLE, 503),
    ],
    ids=str,
)
async def test_each_error_has_its_status_number_and_name(api, sockets, code, status):
    sockets.control.failure = BlockfleetError(code, "cannot do it", remedy="do that", field="targets[0].name")
    answer = await api.post("/v1/apply", json={})
    assert answer.status_code == status
    assert answer.json() == {
        "format_version": 1,
        "error": {
            "code": int(code),
            "name": f"ISDSC_{code.name}",
            "message": "cannot do it: do that",
            "field": "targets[0].name",
            "remedy": "do that",
        },
    }


@pytest.mark.parametrize(
    ("body", "status", "field", "says"),
    [
        (b"{", 400, "", "request body"),
        (b"[]", 422, "", "a change is an object, not list"),
        (b'"text"', 422, "", "a change is an object, not str"),
        (b'{"version": 99}', 422, "version", "reads up to 1"),
        (b'{"mode": "destroy"}', 422, "mode", "'merge' or 'replace'"),
        (b'{"surprise": 1}', 422, "surprise", "there is no such field"),
        (b'{"options": {"wait_timeout": -1}}', 422, "options.wait_timeout", "greater than or equal to 0"),
        (b'{"absent": {"targets": ["iqn.wrong"]}}', 422, "absent.targets[0]", "not an iSCSI name"),
        (b'{"absent": {"discovery_portals": ["192.0.2.1:70000"]}}', 422, "absent.discovery_portals[0]", "65535"),
    ],
)
async def test_invalid_input_is_one_error_with_its_field_before_anything_is_done(
    api, sockets, body, status, field, says
):
    answer = await api.post("/v1/apply", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["field"] == field
    assert says in error["message"]
    assert sockets.control.asked == []


@pytest.mark.parametrize("body", [CANARY, [CANARY], [{"secret": CANARY}]], ids=repr)
async def test_a_body_that_is_no_change_is_not_echoed(api, caplog, body):
    caplog.set_level(logging.DEBUG)
    answer = await api.post("/v1/plan", json=body)
    assert answer.status_code == 422
    assert CANARY not in answer.text
    assert CANARY not in caplog.text


async def test_a_body_that_is_not_json_is_not_echoed(api):
    answer = await api.post("/v1/plan", content=f"secret={CANARY}", headers={"content-type": "text/plain"})
    assert answer.status_code == 422
    assert CANARY not in answer.text


async def test_a_secret_in_a_change_stays_out_of_logs_and_answers(api, sockets, caplog):
    caplog.set_level(logging.DEBUG)
    chap = {"user": "host", "secret": CANARY}
    document = {"targets": [{"name": "iqn.2026-11.com.example:db", "portals": "all", "chap": chap}]}
    pages = [
        await api.post("/v1/plan", json={"document": document}),
        await api.post("/v1/apply", json={"document": document}),
        await api.get("/v1/desired"),
        await api.get("/v1/observed"),
        await api.get("/v1/events"),
        await api.get("/metrics"),
        await api.get("/openapi.json"),
    ]
    sockets.control.failure = BlockfleetError(Isdsc.DOCUMENT_INVALID, "cannot take it")
    pages.append(await api.post("/v1/apply", json={"document": document}))
    assert [page.status_code for page in pages] == [200] * 7 + [422]
    assert not [page.url for page in pages if CANARY in page.text]
    assert CANARY not in caplog.text


async def test_an_unknown_route_names_itself(api):
    answer = await api.get("/v1/nonsense")
    assert answer.status_code == 404
    assert "/v1/nonsense" in answer.json()["error"]["message"]


async def test_a_wrong_method_is_an_error_of_the_same_shape(api):
    answer = await api.get("/v1/apply")
    assert answer.status_code == 405
    assert answer.json()["error"]["name"] == "ISDSC_INVALID_PARAMETER"


async def test_a_defect_is_reported_without_its_text(sockets, caplog):
    sockets.control.failure = RuntimeError(CANARY)
    async with sockets.client(sockets.change) as client:
        answer = await client.get("/v1/status")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.json()["error"]["message"]
    assert CANARY not in answer.text


async def test_what_is_not_http_is_answered_in_the_same_shape(sockets):
    reader, writer = await asyncio.open_unix_connection(str(sockets.change))
    writer.write(b"\x00\x01\x02 hello\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["name"] == "ISDSC_INVALID_PARAMETER"


async def test_a_change_leaves_one_line_with_the_peer(api, caplog):
    caplog.set_level(logging.INFO, "blockfleet.audit")
    await api.post("/v1/apply", json={})
    lines = [record.getMessage() for record in caplog.records if record.name == "blockfleet.audit"]
    assert len(lines) == 1
    assert lines[0].startswith("apply by uid=")
    assert lines[0].endswith("changed=True actions=1 generation=7 status=in_sync")


async def test_a_refused_change_leaves_a_line_too(api, sockets, caplog):
    sockets.control.failure = BlockfleetError(Isdsc.DISRUPTION_REFUSED, "cannot")
    await api.post("/v1/apply", json={})
    lines = [record.getMessage() for record in caplog.records if record.name == "blockfleet.audit"]
    assert [line.rpartition(": ")[2] for line in lines] == ["refused (ISDSC_DISRUPTION_REFUSED)"]
