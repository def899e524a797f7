# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths, targets, the engine and the agent fail under verified load: no error, and no block but the right ones.

``BLOCKFLEET_FAULT_SCALE`` multiplies rounds and outages, as 10 for a run of half an hour.  What each case
measured is kept in ``build/integrity``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess
from tests.engine.rig import HOST
from tests.integrity.load import Load, Mix, Report
from tests.integrity.site import Site, site
from tests.peers.tgt import Tgt

from blockfleet.model.desired import Policy

pytestmark = [pytest.mark.peer, pytest.mark.alone]

SCALE = float(os.environ.get("BLOCKFLEET_FAULT_SCALE", "1"))
DEPTH = 32
MIX = Mix(blocks=512, rate=1000)
NO_FLUSH = Mix(blocks=512, rate=1000, flushes=0, fua=0)
"""Of a target that loses its write cache a flush has to fail: see the cases of ordering."""

Keep = Callable[[Report], None]


def rounds(count: int) -> int:
    return max(1, round(count * SCALE))


@asynccontextmanager
async def under_load(
    host: Site, seed: int, keep: Keep, mix: Mix = MIX, patience: float = 0.0
) -> AsyncIterator[Load]:
    """Load the volume around the body; no request may fail and no block may be wrong."""
    load = Load(host.socket, seed=seed, depth=DEPTH, mix=mix, patience=patience)
    await load.start()
    await asyncio.sleep(0.3)
    yield load
    await asyncio.sleep(0.3)
    report = await load.finish()
    keep(report)
    assert report.violations == []
    assert report.first_errors == []
    assert report.operations > 100


async def in_order(host: Site, logins: int = 0) -> None:
    """Wait until every path is back, after ``logins`` logins in all."""
    await host.until(lambda s: s.volumes[0].phase == "online" and sum(x.logins for x in s.sessions) >= logins, 40)


# --- network and path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [pytest.param(1, id="one-path"), pytest.param(2, id="two-paths")])
async def test_a1_resets_of_the_active_path(paths: int, shim: Path, tmp_path: Path, keep: Keep) -> None:
    async with site("tgt", paths, shim, tmp_path) as host:
        await host.serve()
        async with under_load(host, 1, keep):
            for count in range(1, rounds(6) + 1):
                assert host.proxies[await host.active()].reset() == 1
                await in_order(host, paths + count)
                await asyncio.sleep(0.3)
        assert (await host.volume()).counters["errors"] == 0


async def test_a2_silent_path_is_left_within_its_patience(shim: Path, tmp_path: Path, keep: Keep) -> None:
    """A ping after 1 s of silence, 1 s for its answer, then the fence."""
    async with site("tgt", 2, shim, tmp_path) as host:
        await host.serve()
        async with under_load(host, 2, keep) as load:
            for count in range(1, rounds(2) + 1):
                host.proxies[await host.active()].hold()
                await in_order(host, 2 + count)
                await asyncio.sleep(0.3)
        assert load.report.stall_longest < 5


async def test_a3_silent_path_whose_bytes_are_delivered_when_the_retry_is_acknowledged(
    shim: Path, tmp_path: Path, keep: Keep
) -> None:
    async with site("tgt", 2, shim, tmp_path) as host:
        await host.serve(Policy.ROUND_ROBIN)
        async with under_load(host, 3, keep):
            wires = host.proxies[0].hold()
            await in_order(host, 3)
            await asyncio.sleep(0.2)
            for wire in wires:
                await wire.deliver()
            await asyncio.sleep(0.5)


async def test_a5_target_that_stands_still(shim: Path, tmp_path: Path, keep: Keep) -> None:
    async with site("tgt", 2, shim, tmp_path) as host:
        assert isinstance(host.target, Tgt)
        await host.serve(Policy.ROUND_ROBIN)
        async with under_load(host, 5, keep):
            host.target.pause()
            await asyncio.sleep(5 * SCALE)
            host.target.resume()
            await in_order(host, 4)


@pytest.mark.parametrize("kind", ["tgt", "istgt"])
async def test_a6_target_that_is_killed_and_started_again(
    kind: str, shim: Path, tmp_path: Path, keep: Keep
) -> None:
    async with site(kind, 2, shim, tmp_path) as host:
        await host.serve(Policy.ROUND_ROBIN)
        async with under_load(host, 6, keep, NO_FLUSH):
            for count in range(1, rounds(1) + 1):
                await asyncio.to_thread(host.target.kill9)
                await asyncio.sleep(1)
                await asyncio.to_thread(host.target.restart)
                await in_order(host, 2 + 2 * count)


async def test_a9_all_paths_down_within_the_queue_timer(shim: Path, tmp_path: Path, keep: Keep) -> None:
    async with site("tgt", 2, shim, tmp_path) as host:
        await host.serve(Policy.ROUND_ROBIN)
        async with under_load(host, 9, keep) as load:
            for proxy in host.proxies:
                await proxy.refuse()
                proxy.reset()
            await host.until(lambda s: s.volumes[0].phase == "queueing")
            await asyncio.sleep(7 * SCALE)
            for proxy in host.proxies:
                await proxy.start()
            await in_order(host, 4)
        assert load.report.stall_longest > 6 * SCALE


async def test_a10_paths_that_come_and_go_out_of_phase(shim: Path, tmp_path: Path, keep: Keep) -> None:
    async with site("tgt", 2, shim, tmp_path) as host:
        await host.serve(Policy.ROUND_ROBIN)
        async with under_load(host, 10, keep):
            for count in range(rounds(8)):
                host.proxies[count % 2].reset()
                await asyncio.sleep(0.5)
            await in_order(host, 3)


# --- ordering -------------------------------------------------------------------------------------------------


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="that the cache was lost is told to the check after the login, which does not pass it on",
)
async def test_e68_flush_fails_after_a_target_with_a_write_cache_was_started_again(
    shim: Path, tmp_path: Path, keep: Keep
) -> None:
    """What it had acknowledged and not flushed may be gone: no flush may say that it is there."""
    async with site("tgt", 2, shim, tmp_path) as host:
        await host.serve(Policy.ROUND_ROBIN)
        load = Load(host.socket, seed=68, depth=DEPTH, mix=Mix(blocks=512, rate=1000, flushes=0.05, fua=0))
        await load.start()
        await asyncio.sleep(0.3)
        await asyncio.to_thread(host.target.kill9)
        await asyncio.to_thread(host.target.restart)
        await in_order(host, 4)
        flushed = load.report.flushes - load.report.errors
        await asyncio.sleep(0.5)
        report = await load.finish()
        keep(report)
        assert report.violations == []
        assert report.errors
        assert all(error.startswith("command 3 ") for error in report.first_errors), "nothing but flushes fails"
        assert report.flushes - report.errors == flushed, "none succeeds any more"


# --- agent and engine -----------------------------------------------------------------------------------------


async def test_f71_engine_that_is_killed(shim: Path, tmp_path: Path, keep: Keep) -> None:
    """The client connects again and sends again what was not answered; the successor fences before it serves."""
    async with site("tgt", 2, shim, tmp_path) as host:
        await host.serve(Policy.ROUND_ROBIN)
        async with under_load(host, 71, keep, patience=30) as load:
            for count in range(1, rounds(3) + 1):
                await host.kill_engine()
                await host.serve(Policy.ROUND_ROBIN)
                await host.until(lambda _, n=count: load.pipe.connections == n + 1)
                await in_order(host)
                await asyncio.sleep(0.5)
        assert load.report.replayed
        assert "was killed" in host.engine.log.read_text()


@asynccontextmanager
async def declared(host: Site, folder: Path) -> AsyncIterator[list[AgentProcess]]:
    """Have an agent bring the host to its declared state; those that are added to the list end with it."""
    await host.engine.ready()
    agents = [_agent(host, folder)]
    try:
        agent = agents[0]
        await agent.ready()
        document = {
            "initiator": {"name": HOST},
            "targets": [{"name": host.names[0], "portals": [proxy.portal for proxy in host.proxies]}],
            "volumes": [{"name": "v", "target": host.names[0], "lun": host.lun >> 48, "policy": "round_robin"}],
        }
        report = await asyncio.to_thread(agent.client.post, "/v1/apply", {"document": document}, 30.0)
        assert report["status"] == "in_sync", report
        yield agents
    finally:
        for agent in agents:
            if agent.process.poll() is None:
                await agent.kill()


def _agent(host: Site, folder: Path) -> AgentProcess:
    return AgentProcess(folder, "--engine-socket", str(host.engine.socket))


async def test_f71_engine_that_is_killed_is_brought_back_by_the_agent(
    shim: Path, tmp_path: Path, keep: Keep
) -> None:
    """Whatever starts the engine again, only the agent tells it what there shall be."""
    async with site("tgt", 2, shim, tmp_path) as host, declared(host, tmp_path):
        async with under_load(host, 171, keep, patience=30) as load:
            for count in range(1, rounds(2) + 1):
                await host.kill_engine()
                await host.engine.ready()
                await host.until(lambda s, n=count: load.pipe.connections == n + 1 and bool(s.volumes))
                await in_order(host)
                await asyncio.sleep(0.5)


async def test_f72_agent_that_is_killed_is_not_noticed(shim: Path, tmp_path: Path, keep: Keep) -> None:
    async with site("tgt", 2, shim, tmp_path) as host, declared(host, tmp_path) as agents:
        async with under_load(host, 72, keep) as load:
            for _ in range(rounds(2)):
                await agents[-1].kill()
                await asyncio.sleep(0.3)
                agents.append(_agent(host, tmp_path))
                await agents[-1].ready()
                await agents[-1].status_when(lambda status: status["in_sync"])
        state = await host.control.observe()
        assert [s.logins for s in state.sessions] == [1, 1]
        assert load.report.connections == 1
        assert state.volumes[0].counters["retries"] == 0
