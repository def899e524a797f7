# SPDX-License-Identifier: GPL-3.0-or-later
"""Both API sockets, served as the agent serves them, over a control plane that records what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.api.recording import RecordingControl, StillEngine

from blockfleet.api.access import Access, Gate
from blockfleet.api.app import create_app
from blockfleet.api.metrics import Metrics
from blockfleet.api.server import ApiServer, listen


@dataclass
class Sockets:
    """The two sockets of a served API and what is behind them."""

    change: Path
    read: Path
    control: RecordingControl
    engine: StillEngine
    servers: list[ApiServer]

    def client(self, path: Path) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://agent", timeout=20
        )


@pytest.fixture
async def sockets(tmp_path: Path) -> AsyncIterator[Sockets]:
    control, engine, metrics = RecordingControl(), StillEngine(), Metrics()
    servers, tasks, paths = [], [], []
    for access in (Access.CHANGE, Access.READ):
        path = tmp_path / f"{access.value}.sock"
        gate = Gate(access)
        server = ApiServer(create_app(control, engine, gate, metrics=metrics), listen(path, gate), gate)
        servers.append(server)
        paths.append(path)
        tasks.append(asyncio.create_task(server.run_until_stopped()))
    yield Sockets(paths[0], paths[1], control, engine, servers)
    for server in servers:
        server.stop()
    await asyncio.gather(*tasks)


@pytest.fixture
async def api(sockets: Sockets) -> AsyncIterator[httpx.AsyncClient]:
    async with sockets.client(sockets.change) as client:
        yield client


@pytest.fixture
async def reader(sockets: Sockets) -> AsyncIterator[httpx.AsyncClient]:
    async with sockets.client(sockets.read) as client:
        yield client
