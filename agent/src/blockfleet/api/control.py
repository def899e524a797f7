# SPDX-License-Identifier: GPL-3.0-or-later
"""What the routes ask of the control plane: the reconciler, or what stands in for it on a degraded host."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from blockfleet.engine.interface import EngineEvent, EngineState, TraceBatch, TraceSpec
from blockfleet.model.change import Change
from blockfleet.model.plan import DesiredView, DiscoveryReport, HostStatus, Plan, Report


class Control(Protocol):
    """Every call raises :class:`~blockfleet.model.errors.BlockfleetError` and leaves nothing half done."""

    async def plan(self, change: Change | None) -> Plan:
        """Say what a change would do; ``None``: what would bring the host to its desired state."""

    async def apply(self, change: Change | None) -> Report:
        """Carry a change out, look again, and report."""

    async def drift(self) -> Plan:
        """Return the corrective part of ``plan(None)``."""

    async def status(self) -> HostStatus:
        """Look at the host."""

    async def discover(self, portals: Sequence[str] | None) -> DiscoveryReport:
        """Ask portals for their targets; ``None``: the declared ones."""

    async def rescan(self, target: str | None) -> HostStatus:
        """Ask a target's sessions, or all, for their logical units again."""

    async def events(self, after: int, limit: int) -> Sequence[EngineEvent]:
        """Return kept events with a sequence above ``after``, oldest first, at most ``limit``."""

    async def desired_view(self) -> DesiredView:
        """Return the desired state, secrets masked."""


class Observer(Protocol):
    """The part of an engine that the API shows as it is."""

    async def observe(self) -> EngineState:
        """Return the engine's present state."""

    def trace(self, spec: TraceSpec) -> AsyncGenerator[TraceBatch, None]:
        """Yield the PDUs of a target's sessions."""
