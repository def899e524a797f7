# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents as processes of their own, over an engine that lives in the test and so outlives them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.reconcile.simulated_engine import SimulatedEngine

from blockfleet.cli.client import AgentClient
from blockfleet.engine.server import ControlServer
from blockfleet.model.errors import BlockfleetError


class AgentProcess:
    """One ``blockfleetd`` on folders of its own."""

    def __init__(self, folder: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.runtime = folder / "run"
        self.state = folder / "state"
        self.log = folder / "agent.log"
        command = [
            sys.executable, "-m", "blockfleet.agent.main",
            "--runtime-dir", str(self.runtime), "--state-dir", str(self.state),
            "--engine-socket", str(folder / "engine.sock"), *flags,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, **(environment or {})}
            )

    @property
    def client(self) -> AgentClient:
        return AgentClient(self.runtime)

    async def ready(self) -> None:
        """Wait until the API answers."""
        async with asyncio.timeout(30):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    await asyncio.to_thread(self.client.get, "/v1/version")
                except BlockfleetError:
                    await asyncio.sleep(0.05)
                else:
                    return

    async def status_when(self, condition: Callable[[dict], bool]) -> dict:
        """Return the host's status once it satisfies the condition."""
        status: dict = {}
        async with asyncio.timeout(30):
            while not condition(status := await asyncio.to_thread(self.client.get, "/v1/status")):
                await asyncio.sleep(0.05)
        return status

    async def ended(self, seconds: float = 20.0) -> int:
        return await asyncio.to_thread(self.process.wait, seconds)

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.ended()

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Start agents on the test's folder; what still runs at the end is ended."""
    started: list[AgentProcess] = []

    def begin(*flags: str, environment: dict[str, str] | None = None) -> AgentProcess:
        started.append(AgentProcess(tmp_path, *flags, environment=environment))
        return started[-1]

    yield begin
    for agent in started:
        if agent.process.poll() is None:
            agent.process.kill()
        agent.process.wait(20)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SimulatedEngine]:
    simulated = SimulatedEngine()
    server = ControlServer(simulated, tmp_path / "engine.sock", instance="e1", version="0.1.0")
    await server.start()
    yield simulated
    await server.stop()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of sd_notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        yield channel
