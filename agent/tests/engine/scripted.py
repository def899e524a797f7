# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine that answers from a script and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from blockfleet.engine.event_log import EventLog
from blockfleet.engine.interface import (
    DiscoveredPortal,
    DiscoverySpec,
    EngineEvent,
    EngineState,
    InitiatorSpec,
    SessionPhase,
    SessionSpec,
    SessionState,
    VolumeSpec,
    VolumeState,
)


class ScriptedEngine:
    """``fail`` is raised by every call; ``gate`` holds ``discover`` until it is set."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []
        self.fail: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.found: tuple[DiscoveredPortal, ...] = ()
        self.log = EventLog(clock=lambda: 1000.0, capacity=64)

    def _note(self, call: str, argument: object) -> None:
        self.asked.append((call, argument))
        if self.fail is not None:
            raise self.fail

    async def observe(self) -> EngineState:
        self._note("observe", None)
        return EngineState(instance="scripted", version="9", pid=7)

    async def configure(self, initiator: InitiatorSpec) -> None:
        self._note("configure", initiator)

    async def discover(self, spec: DiscoverySpec) -> tuple[DiscoveredPortal, ...]:
        self._note("discover", spec)
        await self.gate.wait()
        return self.found

    async def open_session(self, spec: SessionSpec) -> SessionState:
        self._note("open_session", spec)
        return SessionState(
            key=spec.key,
            target=spec.target,
            portal=spec.portal,
            phase=SessionPhase.CONNECTING,
            isid=spec.isid,
            credentials_fingerprint=spec.credentials.fingerprint if spec.credentials else "",
        )

    async def relogin(self, key: str) -> None:
        self._note("relogin", key)

    async def close_session(self, key: str) -> None:
        self._note("close_session", key)

    async def rescan(self, key: str) -> SessionState:
        self._note("rescan", key)
        return SessionState(
            key=key, target="iqn.2026-11.com.example:t", portal="192.0.2.1:3260", phase="logged_in", isid="0" * 12
        )

    async def publish(self, spec: VolumeSpec) -> VolumeState:
        self._note("publish", spec)
        return VolumeState(
            name=spec.name,
            identity=spec.identity,
            policy=spec.policy,
            failback=spec.failback,
            path_settings=spec.path_settings,
        )

    async def withdraw(self, name: str) -> None:
        self._note("withdraw", name)

    def events(self, after: int = 0) -> AsyncIterator[EngineEvent]:
        return self.log.follow(after)
