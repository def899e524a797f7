# SPDX-License-Identifier: GPL-3.0-or-later
"""Both API sockets, served as the agent serves them, over a control plane that records what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from blockfleet.api.access import Access, Gate
from blockfleet.api.app import create_app
from blockfleet.api.metrics import Metrics
from blockfleet.api.server import ApiServer, listen
from blockfleet.engine.interface import EngineEvent, EngineState, SessionState
from blockfleet.model.change import Change
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.plan import (
    Action,
    DesiredView,
    DiscoveryReport,
    EngineView,
    HostStatus,
    Kind,
    Plan,
    PortalStatus,
    Report,
    ReportStatus,
    Summary,
    TargetStatus,
    Verb,
    VolumeStatus,
)

TARGET = "iqn.2026-11.com.example:db"
LOGIN = Action(
    verb=Verb.LOGIN,
    kind=Kind.SESSION,
    subject=f"{TARGET}@192.0.2.10:3260",
    text=f"+ session {TARGET} via 192.0.2.10:3260",
)


@dataclass
class RecordingControl:
    """A control plane of fixed answers that keeps what it was asked."""

    asked: list[tuple[str, object]] = field(default_factory=list)
    failure: Exception | None = None
    kept: list[EngineEvent] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    hold: asyncio.Event | None = None

    async def _note(self, what: str, argument: object = None) -> None:
        self.asked.append((what, argument))
        self.entered.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure

    async def plan(self, change: Change | None) -> Plan:
        await self._note("plan", change)
        return Plan(changed=True, generation=6, actions=(LOGIN,), summary=Summary.of((LOGIN,)))

    async def apply(self, change: Change | None) -> Report:
        await self._note("apply", change)
        return Report(
            changed=True,
            generation=7,
            actions=(LOGIN,),
            summary=Summary.of((LOGIN,)),
            applied=True,
            verified=True,
            status=ReportStatus.IN_SYNC,
            waited=0.25,
        )

    async def drift(self) -> Plan:
        await self._note("drift")
        return Plan(changed=True, generation=7, actions=(LOGIN,), summary=Summary.of((LOGIN,)))

    async def status(self) -> HostStatus:
        await self._note("status")
        return HostStatus(
            generation=7,
            in_sync=True,
            engine=EngineView(reachable=True, instance="e1", version="0.1.0", pid=77),
            portals=(PortalStatus(portal="192.0.2.10:3260"),),
            targets=(
                TargetStatus(
                    name=TARGET,
                    declared=True,
                    portals=("192.0.2.10:3260", "192.0.2.11:3260"),
                    policy="round_robin",
                    lifetime="persistent",
                    min_paths=2,
                    sessions=(
                        {
                            "portal": "192.0.2.10:3260",
                            "phase": "logged_in",
                            "logins": 3,
                            "counters": {"commands": 9},
                        },
                        {"portal": "192.0.2.11:3260", "phase": "recovering", "logins": 1, "counters": {}},
                    ),
                ),
            ),
            volumes=(
                VolumeStatus(
                    name="db01",
                    declared=True,
                    target=TARGET,
                    lun=0,
                    size=1 << 30,
                    phase="degraded",
                    clients=1,
                    paths=({"session": "a", "phase": "active"}, {"session": "b", "phase": "failed"}),
                ),
            ),
        )

    async def discover(self, portals: Sequence[str] | None) -> DiscoveryReport:
        await self._note("discover", portals)
        return DiscoveryReport()

    async def rescan(self, target: str | None) -> HostStatus:
        await self._note("rescan", target)
        return await self.status()

    async def events(self, after: int, limit: int) -> Sequence[EngineEvent]:
        await self._note("events", (after, limit))
        return [event for event in self.kept if event.sequence > after][:limit]

    async def desired_view(self) -> DesiredView:
        await self._note("desired")
        return DesiredView(generation=7, document={"version": 1})


@dataclass
class StillEngine:
    """An engine with one session, or none that answers."""

    failure: BlockfleetError | None = None

    async def observe(self) -> EngineState:
        if self.failure is not None:
            raise self.failure
        session = SessionState(
            key=f"{TARGET}@192.0.2.10:3260",
            target=TARGET,
            portal="192.0.2.10:3260",
            phase="logged_in",
            isid="800000000001",
            credentials_fingerprint="0011aabb",
        )
        return EngineState(instance="e1", version="0.1.0", pid=77, sessions=(session,))


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
