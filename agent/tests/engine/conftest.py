# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engine.scripted import ScriptedEngine

from blockfleet.engine.client import EngineClient
from blockfleet.engine.server import ControlServer
from blockfleet.model.errors import BlockfleetError


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
async def server(engine, tmp_path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(engine, tmp_path / "engine.sock", instance="inst", version="9")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server, tmp_path: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient(tmp_path / "engine.sock")
    yield client
    await client.close()


class EngineProcess:
    """A real engine on a runtime directory of its own."""

    def __init__(self, runtime: Path, *flags: str) -> None:
        self.runtime = runtime
        self.told = False
        self.log = runtime.parent / f"{runtime.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "blockfleet.engine.main", "--runtime-dir", str(runtime), *flags],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    @property
    def socket(self) -> Path:
        return self.runtime / "engine.sock"

    async def ready(self, seconds: float = 20.0) -> None:
        """Wait until the control socket answers."""
        client = EngineClient(self.socket)
        async with asyncio.timeout(seconds):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    await client.observe()
                except BlockfleetError:
                    await asyncio.sleep(0.02)
                else:
                    break
        await client.close()

    def terminate(self, seconds: float = 30.0) -> int:
        """Send SIGTERM, once however often it is called, and return the exit status."""
        if self.process.poll() is None and not self.told:
            self.told = True
            self.process.terminate()
        return self.process.wait(seconds)


@pytest.fixture
async def engine_process(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    running = EngineProcess(tmp_path / "run")
    try:
        await running.ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(10)


@pytest.fixture
async def engine_client(engine_process: EngineProcess) -> AsyncIterator[EngineClient]:
    client = EngineClient(engine_process.socket)
    yield client
    await client.close()
