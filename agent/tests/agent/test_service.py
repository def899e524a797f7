# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a process: how it starts, what it tells, how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import grp
import os
import stat
import time
from pathlib import Path

import pytest

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

CANARY = "canary-Zq8vR2-secret"


async def test_ready_is_told_once_the_api_can_be_used(start, engine, manager, tmp_path):
    agent = start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    told = await asyncio.to_thread(manager.recv, 4096)
    assert b"READY=1" in told.split(b"\n")
    version = await asyncio.to_thread(agent.client.get, "/v1/version")
    assert version["engine"]["reachable"] is True


async def test_the_watchdog_is_fed_and_the_stop_is_told(start, engine, manager, tmp_path):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    agent = start(environment=environment)
    told = [await asyncio.to_thread(manager.recv, 4096) for _ in range(4)]
    assert told.count(b"WATCHDOG=1") >= 2
    agent.process.terminate()
    while b"STOPPING=1" not in told:
        told.append(await asyncio.to_thread(manager.recv, 4096))
    assert await agent.ended() == 0


async def test_sigterm_ends_it_within_five_seconds_and_takes_its_sockets_away(start, engine):
    agent = start()
    await agent.ready()
    assert {path.name for path in agent.runtime.iterdir()} >= {"agent.sock", "read.sock"}
    began = time.monotonic()
    assert await agent.terminate() == 0
    assert time.monotonic() - began < 5
    assert list(agent.runtime.iterdir()) == []


async def test_a_followed_stream_does_not_hold_up_the_stop(start, engine):
    agent = start()
    await agent.ready()
    following = asyncio.ensure_future(asyncio.to_thread(lambda: list(agent.client.follow(0))))
    await agent.status_when(lambda status: status["engine"]["reachable"])
    began = time.monotonic()
    assert await agent.terminate() == 0
    assert time.monotonic() - began < 5
    await asyncio.wait_for(following, 10)


async def test_sockets_are_for_root_alone_unless_a_group_is_named(start, engine):
    agent = start()
    await agent.ready()
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in agent.runtime.iterdir()}
    assert modes == {"agent.sock": 0o600, "read.sock": 0o600}


async def test_a_named_group_may_use_the_reading_socket(start, engine):
    group = grp.getgrgid(os.getegid())
    agent = start("--group", group.gr_name)
    await agent.ready()
    read = (agent.runtime / "read.sock").stat()
    assert (stat.S_IMODE(read.st_mode), read.st_gid) == (0o660, group.gr_gid)
    assert stat.S_IMODE((agent.runtime / "agent.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(agent.runtime.stat().st_mode) == 0o755


async def test_an_unknown_group_keeps_it_from_starting(start):
    agent = start("--group", "no-such-group")
    assert await agent.ended() == 1
    assert "there is no such group" in agent.log.read_text()
    assert not agent.state.exists()


async def test_a_second_agent_on_one_state_exits_with_75_and_says_why(start, engine):
    first = start()
    await first.ready()
    second = start("--runtime-dir", str(first.runtime.parent / "other"))
    assert await second.ended() == 75
    assert f"another agent (process {first.process.pid}) uses {first.state}" in first.log.read_text()
    assert first.process.poll() is None
    await first.ready()


async def test_a_second_agent_on_the_same_sockets_exits_with_75_and_says_why(start, engine):
    first = start()
    await first.ready()
    second = start("--state-dir", str(first.state.parent / "other"))
    assert await second.ended() == 75
    assert "another agent answers there" in first.log.read_text()
    await first.ready()


async def test_an_agent_starts_without_an_engine_and_says_so(start):
    agent = start()
    await agent.ready()
    status = await asyncio.to_thread(agent.client.get, "/v1/status")
    assert status["engine"]["reachable"] is False
    assert "ISDSC_ENGINE_NOT_RUNNING" in [problem["name"] for problem in status["problems"]]


async def test_unusable_state_makes_it_watch_only(start, engine, tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    agent = start()
    await agent.ready()
    status = await asyncio.to_thread(agent.client.get, "/v1/status")
    assert "cannot use" in status["degraded"]
    assert status["engine"]["reachable"] is True
    with pytest.raises(BlockfleetError) as caught:
        await asyncio.to_thread(agent.client.post, "/v1/apply", {})
    assert caught.value.code is Isdsc.STATE_UNUSABLE
    assert await agent.terminate() == 0


async def test_a_runtime_folder_that_cannot_be_made_is_named(start, tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    agent = start()
    assert await agent.ended() == 1
    assert "cannot use the runtime folder" in agent.log.read_text()


TARGET = "iqn.2026-11.com.example:db"
PORTALS = ["192.0.2.10:3260", "192.0.2.11:3260"]
LOGIN = {
    "document": {"targets": [{"name": TARGET, "portals": PORTALS, "chap": {"user": "host", "secret": CANARY}}]},
    "options": {"wait_timeout": 20},
}


async def test_after_kill_9_the_next_agent_adopts_what_runs(start, engine):
    for portal in PORTALS:
        engine.serve(TARGET, portal)
    agent = start()
    await agent.ready()
    report = await asyncio.to_thread(agent.client.post, "/v1/apply", LOGIN, 20.0)
    assert report["status"] == "in_sync"
    before = await engine.observe()
    engine.calls.clear()
    for _ in range(3):
        await agent.kill()
        agent = start()
        await agent.ready()
        status = await agent.status_when(lambda status: status["in_sync"])
        assert status["generation"] == report["generation"]
        again = await asyncio.to_thread(agent.client.post, "/v1/apply", LOGIN, 20.0)
        assert (again["changed"], again["actions"]) == (False, [])
    after = await engine.observe()
    assert engine.changes == []
    assert [(s.key, s.isid, s.tsih, s.logins) for s in after.sessions] == [
        (s.key, s.isid, s.tsih, s.logins) for s in before.sessions
    ]


async def test_a_secret_shows_nowhere(start, engine):
    for portal in PORTALS:
        engine.serve(TARGET, portal)
    agent = start("--log-level", "debug")
    await agent.ready()
    await asyncio.to_thread(agent.client.post, "/v1/apply", LOGIN, 20.0)
    for route in ("/v1/status", "/v1/desired", "/v1/observed", "/v1/drift", "/v1/events"):
        assert CANARY not in str(await asyncio.to_thread(agent.client.get, route)), route
    for name in ("cmdline", "environ"):
        assert CANARY.encode() not in Path(f"/proc/{agent.process.pid}/{name}").read_bytes(), name
    assert await agent.terminate() == 0
    assert CANARY not in agent.log.read_text()
    files = [path for path in agent.state.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
