# SPDX-License-Identifier: GPL-3.0-or-later
"""A control plane and an engine that give what they are told to and keep what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockfleet.engine.interface import EngineEvent, EngineState, SessionState, TraceBatch, TraceSpec
from blockfleet.model.change import Change
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.plan import (
    Action,
    DesiredView,
    DiscoveryReport,
    EngineView,
    HostStatus,
    InitiatorView,
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


PLAN = Plan(changed=True, generation=6, actions=(LOGIN,), summary=Summary.of((LOGIN,)))
REPORT = Report(
    changed=True,
    generation=7,
    actions=(LOGIN,),
    summary=Summary.of((LOGIN,)),
    applied=True,
    verified=True,
    status=ReportStatus.IN_SYNC,
    waited=0.25,
)
STATUS = HostStatus(
    generation=7,
    in_sync=True,
    initiator=InitiatorView(name="iqn.2026-11.com.example:host1", alias="web 1"),
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
                    "key": f"{TARGET}@192.0.2.10:3260",
                    "target": TARGET,
                    "portal": "192.0.2.10:3260",
                    "phase": "logged_in",
                    "isid": "800000000001",
                    "tsih": 5,
                    "logins": 3,
                    "negotiated": {"HeaderDigest": "CRC32C", "DataDigest": "None"},
                    "units": [{"lun": 0}],
                    "counters": {"commands": 9},
                    "fault": None,
                },
                {
                    "key": f"{TARGET}@192.0.2.11:3260",
                    "target": TARGET,
                    "portal": "192.0.2.11:3260",
                    "phase": "recovering",
                    "isid": "800000000002",
                    "tsih": 0,
                    "logins": 1,
                    "negotiated": {},
                    "units": [],
                    "counters": {},
                    "fault": {"code": 1, "name": "ISDSC_CONNECTION_FAILED", "message": "connection refused"},
                },
            ),
        ),
    ),
    volumes=(
        VolumeStatus(
            name="db01",
            declared=True,
            target=TARGET,
            lun=0,
            identity="naa.6000000000000001",
            size=1 << 30,
            block_size=512,
            policy="round_robin",
            phase="degraded",
            socket="/run/blockfleet/engine/volumes/db01.sock",
            device="/run/blockfleet/engine/volumes/db01.sock",
            clients=1,
            paths=({"session": "a", "phase": "active"}, {"session": "b", "phase": "failed"}),
        ),
    ),
)


@dataclass
class RecordingControl:
    """Gives ``answers``, or usual ones, and keeps what it was asked."""

    asked: list[tuple[str, object]] = field(default_factory=list)
    answers: dict[str, object] = field(default_factory=dict)
    failure: Exception | None = None
    kept: list[EngineEvent] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    hold: asyncio.Event | None = None

    async def _answer(self, what: str, argument: object, usual: object) -> Any:
        self.asked.append((what, argument))
        self.entered.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        return self.answers.get(what, usual)

    async def plan(self, change: Change | None) -> Plan:
        return await self._answer("plan", change, PLAN)

    async def apply(self, change: Change | None) -> Report:
        return await self._answer("apply", change, REPORT)

    async def drift(self) -> Plan:
        return await self._answer("drift", None, PLAN)

    async def status(self) -> HostStatus:
        return await self._answer("status", None, STATUS)

    async def discover(self, portals: Sequence[str] | None) -> DiscoveryReport:
        return await self._answer("discover", portals, DiscoveryReport())

    async def rescan(self, target: str | None) -> HostStatus:
        return await self._answer("rescan", target, STATUS)

    async def events(self, after: int, limit: int) -> Sequence[EngineEvent]:
        kept = [event for event in self.kept if event.sequence > after][:limit]
        return await self._answer("events", (after, limit), kept)

    async def desired_view(self) -> DesiredView:
        return await self._answer("desired", None, DesiredView(generation=7, document={"version": 1}))


@dataclass
class StillEngine:
    """An engine with one session, or none that answers."""

    failure: BlockfleetError | None = None
    batches: tuple[TraceBatch, ...] = (TraceBatch(), TraceBatch(dropped=3, dropped_bytes=144, ended=True))
    traced: list[TraceSpec] = field(default_factory=list)
    traces_open: int = 0
    hold: asyncio.Event | None = None
    """Awaited before the last batch of a trace."""

    async def trace(self, spec: TraceSpec) -> AsyncGenerator[TraceBatch, None]:
        if self.failure is not None:
            raise self.failure
        self.traced.append(spec)
        self.traces_open += 1
        try:
            for batch in self.batches:
                if batch.ended and self.hold is not None:
                    await self.hold.wait()
                yield batch
        finally:
            self.traces_open -= 1

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
