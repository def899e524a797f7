# SPDX-License-Identifier: GPL-3.0-or-later
"""Client and server of the control socket against each other, and each against a hostile other end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from blockfleet.engine import protocol
from blockfleet.engine import server as server_module
from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import (
    Credentials,
    DiscoveredPortal,
    DiscoverySpec,
    InitiatorSpec,
    SessionSpec,
    VolumeSpec,
)
from blockfleet.engine.server import ControlServer
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.events import EventNumber
from blockfleet.model.isdsc import Isdsc

TARGET = "iqn.2026-11.com.example:t"
HELLO = b'{"id":0,"method":"hello","params":{"protocols":[1]}}\n'


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def raw(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(path), limit=1 << 25)


async def test_every_call_arrives_with_its_arguments(client, engine) -> None:
    spec = SessionSpec(
        key="k",
        target=TARGET,
        portal="192.0.2.1:3260",
        isid="80a1b2c3d4e5",
        credentials=Credentials(user="u", secret="canary-in-flight", fingerprint="f7"),
    )
    engine.found = (DiscoveredPortal(target=TARGET, portal="192.0.2.9:3260", tag=4),)
    await client.configure(InitiatorSpec(name="iqn.2026-11.com.example:h", alias="h"))
    assert await client.discover(DiscoverySpec(portal="192.0.2.1:3260", timeout=2.5)) == engine.found
    opened = await client.open_session(spec)
    assert (opened.key, opened.credentials_fingerprint) == ("k", "f7")
    await client.relogin("k")
    assert (await client.rescan("k")).key == "k"
    volume = await client.publish(VolumeSpec(name="v", identity="naa.5", targets=(TARGET,)))
    assert volume.name == "v"
    await client.withdraw("v")
    await client.close_session("k")
    assert (await client.observe()).instance == "scripted"
    assert [call for call, _ in engine.asked] == [
        "configure",
        "discover",
        "open_session",
        "relogin",
        "rescan",
        "publish",
        "withdraw",
        "close_session",
        "observe",
    ]
    received = dict(engine.asked)["open_session"]
    assert received == spec
    assert received.credentials.secret.get_secret_value() == "canary-in-flight"


async def test_slow_call_does_not_hold_up_others_of_the_same_client(client, engine) -> None:
    engine.gate.clear()
    slow = asyncio.create_task(client.discover(DiscoverySpec(portal="192.0.2.1:3260")))
    await eventually(lambda: bool(engine.asked))
    assert (await client.observe()).pid == 7
    assert not slow.done()
    engine.gate.set()
    assert await slow == ()


async def test_engine_error_reaches_the_caller_whole(client, engine) -> None:
    engine.fail = BlockfleetError(Isdsc.SESSION_BUSY, "session k is in use", remedy="withdraw v", field="key")
    with pytest.raises(BlockfleetError) as caught:
        await client.close_session("k")
    assert caught.value.code is Isdsc.SESSION_BUSY
    assert str(caught.value) == "session k is in use: withdraw v"
    assert caught.value.field == "key"


async def test_fault_inside_the_engine_is_an_initiator_error_without_its_text(client, engine, caplog) -> None:
    engine.fail = ValueError("canary in a traceback")
    with pytest.raises(BlockfleetError) as caught:
        await client.observe()
    assert caught.value.code is Isdsc.INITIATOR_ERROR
    assert "canary" not in str(caught.value)
    engine.fail = None
    assert (await client.observe()).pid == 7


async def test_events_kept_ones_first_then_as_they_happen(client, engine) -> None:
    for name in ("a", "b"):
        engine.log.record(EventNumber.LOGGED_IN, name)
    seen = []

    async def follow() -> None:
        async for event in client.events():
            seen.append(event.subject)  # noqa: PERF401 - the stream has no end

    follower = asyncio.create_task(follow())
    await eventually(lambda: seen == ["a", "b"])
    engine.log.record(EventNumber.CONNECTION_LOST, "c")
    await eventually(lambda: seen == ["a", "b", "c"])
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower


async def test_events_after_a_sequence_number(client, engine) -> None:
    first = engine.log.record(EventNumber.LOGGED_IN, "a")
    engine.log.record(EventNumber.LOGGED_OUT, "b", "by request", {"portal": "p"})
    stream = client.events(first.sequence)
    event = await anext(stream)
    await stream.aclose()
    assert (event.subject, event.number, event.name, event.severity) == ("b", 1002, "logged_out", "info")
    assert (event.message, event.details) == ("by request", {"portal": "p"})


async def test_lagging_follower_sees_a_gap_not_a_queue(engine) -> None:
    stream = engine.log.follow(0)
    engine.log.record(EventNumber.LOGGED_IN, "first")
    first = await anext(stream)
    for _ in range(1000):
        engine.log.record(EventNumber.LOGGED_IN, "flood")
    following = await anext(stream)
    await stream.aclose()
    assert following.sequence == first.sequence + 1000 - 64 + 1


async def test_socket_is_for_its_owner_alone(server, tmp_path) -> None:
    assert stat.S_IMODE((tmp_path / "engine.sock").stat().st_mode) == 0o600


async def test_absent_engine_is_engine_not_running_with_a_remedy(tmp_path) -> None:
    client = EngineClient(tmp_path / "nobody.sock")
    with pytest.raises(BlockfleetError) as caught:
        await client.observe()
    assert caught.value.code is Isdsc.ENGINE_NOT_RUNNING
    assert "No such file" in str(caught.value)
    assert "start blockfleet-engine" in caught.value.remedy
    with pytest.raises(BlockfleetError) as caught:
        await anext(client.events())
    assert caught.value.code is Isdsc.ENGINE_NOT_RUNNING


async def test_client_finds_a_restarted_engine_by_itself(engine, tmp_path) -> None:
    path = tmp_path / "engine.sock"
    client = EngineClient(path)
    first = ControlServer(engine, path, instance="one", version="9")
    await first.start()
    await client.observe()
    await first.stop()
    with pytest.raises(BlockfleetError):
        await client.observe()
    second = ControlServer(engine, path, instance="two", version="9")
    await second.start()
    assert (await client.observe()).pid == 7
    await client.close()
    await second.stop()


async def test_engine_that_goes_in_the_middle_of_a_call_ends_the_call(engine, tmp_path) -> None:
    path = tmp_path / "engine.sock"
    server = ControlServer(engine, path, instance="one", version="9")
    await server.start()
    client = EngineClient(path)
    engine.gate.clear()
    call = asyncio.create_task(client.discover(DiscoverySpec(portal="192.0.2.1:3260")))
    await eventually(lambda: bool(engine.asked))
    await server.stop()
    with pytest.raises(BlockfleetError) as caught:
        await call
    assert caught.value.code is Isdsc.ENGINE_NOT_RUNNING
    await client.close()


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b'{"id":1,"method":"observe"}\n',
        b'{"id":0,"method":"hello","params":{}}\n',
        b'{"id":0,"method":"hello","params":{"protocols":[]}}\n',
        b"\x00" * 100 + b"\n",
    ],
    ids=["http", "call-before-hello", "hello-without-versions", "hello-with-no-version", "nul-bytes"],
)
async def test_first_line_that_is_no_hello_is_answered_and_closed(server, tmp_path, line, engine) -> None:
    reader, writer = await raw(tmp_path / "engine.sock")
    writer.write(line)
    answer = json.loads(await reader.readline())
    assert answer["error"]["name"] in ("ISDSC_PROTOCOL_ERROR", "ISDSC_INVALID_PARAMETER")
    assert await reader.read() == b""
    assert engine.asked == []
    writer.close()


async def test_client_of_another_version_is_told_both_versions(server, tmp_path) -> None:
    reader, writer = await raw(tmp_path / "engine.sock")
    writer.write(b'{"id":0,"method":"hello","params":{"protocols":[7,8]}}\n')
    error = json.loads(await reader.readline())["error"]
    assert error["name"] == "ISDSC_VERSION_MISMATCH"
    assert "version 1" in error["message"]
    assert "7, 8" in error["message"]
    writer.close()


async def test_silent_client_is_closed_after_the_hello_timeout(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "HELLO_TIMEOUT", 0.05)
    reader, writer = await raw(tmp_path / "engine.sock")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_request_line_over_the_limit_ends_that_connection_only(server, client, tmp_path) -> None:
    reader, writer = await raw(tmp_path / "engine.sock")
    writer.write(HELLO)
    await reader.readline()
    writer.write(b"x" * (protocol.MAXIMUM_REQUEST + 2))
    answer = json.loads(await asyncio.wait_for(reader.readline(), 10))
    assert "longer than 1048576 bytes" in answer["error"]["message"]
    writer.close()
    assert (await client.observe()).pid == 7


async def test_unknown_method_and_bad_params_leave_the_connection_usable(server, tmp_path) -> None:
    reader, writer = await raw(tmp_path / "engine.sock")
    writer.write(HELLO)
    await reader.readline()
    writer.write(b'{"id":1,"method":"format_disk"}\n')
    assert json.loads(await reader.readline())["error"]["name"] == "ISDSC_REQUEST_NOT_SUPPORTED"
    writer.write(b'{"id":1,"method":"relogin","params":{"key":"k","force":true}}\n')
    error = json.loads(await reader.readline())["error"]
    assert (error["name"], error["field"]) == ("ISDSC_INVALID_PARAMETER", "force")
    writer.write(b'{"id":1,"method":"observe"}\n')
    assert json.loads(await reader.readline())["result"]["pid"] == 7
    writer.close()


async def test_flood_of_calls_runs_a_bounded_number_at_once(server, engine, tmp_path) -> None:
    engine.gate.clear()
    reader, writer = await raw(tmp_path / "engine.sock")
    writer.write(HELLO)
    await reader.readline()
    for number in range(1, 101):
        writer.write(b'{"id":%d,"method":"discover","params":{"portal":"192.0.2.1:3260","timeout":9}}\n' % number)
    await eventually(lambda: len(engine.asked) == server_module.MAXIMUM_CALLS)
    await asyncio.sleep(0.05)
    assert len(engine.asked) == server_module.MAXIMUM_CALLS
    engine.gate.set()
    for _ in range(100):
        await asyncio.wait_for(reader.readline(), 10)
    assert len(engine.asked) == 100
    writer.close()


async def test_clients_over_the_limit_are_refused_and_the_others_go_on(server, client, tmp_path) -> None:
    assert (await client.observe()).pid == 7
    others = []
    for _ in range(server_module.MAXIMUM_CLIENTS - 1):
        reader, writer = await raw(tmp_path / "engine.sock")
        writer.write(HELLO)
        await reader.readline()
        others.append(writer)
    reader, writer = await raw(tmp_path / "engine.sock")
    assert json.loads(await reader.readline())["error"]["name"] == "ISDSC_OUT_OF_RESOURCES"
    assert (await client.observe()).pid == 7
    for each in (*others, writer):
        each.close()


async def test_client_that_never_reads_is_dropped(server, engine, client, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "LINE_TIMEOUT", 0.1)
    reader, writer = await raw(tmp_path / "engine.sock")
    writer.write(HELLO)
    await reader.readline()
    writer.transport.pause_reading()
    writer.write(b'{"id":1,"method":"events","params":{}}\n')
    engine.log.record(EventNumber.LOGGED_IN, "x" * (1 << 22))
    await eventually(lambda: len(server._clients) == 0)
    assert (await client.observe()).pid == 7
    writer.transport.abort()


@asynccontextmanager
async def impostor(path: Path, answer: bytes) -> AsyncIterator[None]:
    """Something that listens where the engine should and answers the first line with ``answer``."""
    handlers: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.append(task)
        await reader.readline()
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, str(path))
    yield
    server.close()
    await asyncio.wait_for(asyncio.gather(*handlers), 10)


HELLO_REPLY = b'{"id":0,"result":{"protocol":1,"instance":"i","version":"1","pid":1}}\n'


@pytest.mark.parametrize(
    "answer",
    [b"220 mail ESMTP\r\n", b'{"id":0,"result":{}}\n', HELLO_REPLY + b"nonsense\n", HELLO_REPLY + b'{"id":1}\n'],
    ids=["smtp", "empty-hello", "nonsense-answer", "answer-without-result"],
)
async def test_client_meets_something_that_is_no_engine(tmp_path, answer) -> None:
    async with impostor(tmp_path / "e.sock", answer):
        client = EngineClient(tmp_path / "e.sock")
        with pytest.raises(BlockfleetError) as caught:
            await client.observe()
        assert caught.value.code is Isdsc.PROTOCOL_ERROR
        await client.close()


async def test_answer_that_never_comes_is_bounded(tmp_path, monkeypatch) -> None:
    row = protocol.METHODS["observe"]
    quick = protocol.Method(row.params, row.reply, row.call, 0.05)
    monkeypatch.setitem(protocol.METHODS, "observe", quick)
    async with impostor(tmp_path / "e.sock", HELLO_REPLY):
        client = EngineClient(tmp_path / "e.sock")
        with pytest.raises(BlockfleetError) as caught:
            await client.observe()
        assert caught.value.code is Isdsc.SERVICE_DID_NOT_RESPOND
        await client.close()
