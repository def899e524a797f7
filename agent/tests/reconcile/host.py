# SPDX-License-Identifier: GPL-3.0-or-later
"""A host under test: an agent over a simulated engine, in simulated time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.reconcile.simulated_engine import SimulatedEngine

from blockfleet.model.loading import load_change
from blockfleet.model.plan import Plan, Report
from blockfleet.reconcile.core import Timing
from blockfleet.reconcile.reconciler import Reconciler
from blockfleet.store.state import StateStore

TARGET = "iqn.2026-11.com.example:db"
P1, P2 = "192.0.2.10:3260", "[2001:db8::10]:3260"
IDENTITY = "naa.6000000000000001"


class Time:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Host:
    """A host: its engine, its state folder, and the agent that can be restarted."""

    def __init__(self, engine: SimulatedEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.time = Time()
        self.start()

    def start(self, *, boot_id: str = "boot-1", repair: bool = True) -> None:
        self.store = StateStore.open(self.folder, boot_id=boot_id, wall=lambda: 1_790_000_000.0)
        timing = Timing(self.time.clock, self.time.sleep, lambda: 1_790_000_000.0)
        self.agent = Reconciler(self.store, self.engine, repair=repair, timing=timing)

    def restart_agent(self, *, boot_id: str = "boot-1", repair: bool = True) -> None:
        self.store.close()
        self.start(boot_id=boot_id, repair=repair)

    async def plan(self, **change: Any) -> Plan:
        return await self.agent.plan(load_change(change))

    async def apply(self, **change: Any) -> Report:
        return await self.agent.apply(load_change(change))


def login(*portals: str, name: str = TARGET, **fields: Any) -> dict[str, Any]:
    """Return the document that asks for logins."""
    return {"targets": [{"name": name, "portals": list(portals), **fields}]}
