# SPDX-License-Identifier: GPL-3.0-or-later
"""The control plane of a host whose state folder cannot be used: it watches, and leaves everything alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from blockfleet.api.control import Observer
from blockfleet.engine.interface import EngineEvent, EngineState, VolumeState
from blockfleet.model.change import Change
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.plan import (
    DesiredView,
    DiscoveryReport,
    EngineView,
    HostStatus,
    InitiatorView,
    Plan,
    Problem,
    Report,
    TargetStatus,
    VolumeStatus,
)


class WatchOnly:
    """Shows what the engine runs; whatever needs the state is refused with ``reason``."""

    def __init__(self, engine: Observer, reason: BlockfleetError) -> None:
        self._engine = engine
        self._reason = reason

    async def status(self) -> HostStatus:
        """Show sessions and volumes as nobody's, because nobody can tell who declared them."""
        try:
            state = await self._engine.observe()
        except BlockfleetError as error:
            return self._status(EngineState(instance="", version=""), Problem.of(error), reachable=False)
        return self._status(state, reachable=True)

    def _status(self, state: EngineState, *problems: Problem, reachable: bool) -> HostStatus:
        initiator = state.initiator
        names = dict.fromkeys(session.target for session in state.sessions)
        return HostStatus(
            generation=0,
            in_sync=False,
            initiator=InitiatorView(name=initiator.name, alias=initiator.alias) if initiator else InitiatorView(),
            engine=EngineView(reachable=reachable, instance=state.instance, version=state.version, pid=state.pid),
            targets=tuple(_target(name, state) for name in names),
            volumes=tuple(_volume(volume) for volume in state.volumes),
            problems=(Problem.of(self._reason), *problems),
            degraded=str(self._reason),
        )

    async def events(self, after: int, limit: int) -> Sequence[EngineEvent]:  # noqa: ARG002  the log is in the state
        """Return nothing: the event log is in the state that cannot be used."""
        return ()

    async def plan(self, change: Change | None) -> Plan:
        """Refuse."""
        self._refuse(change)

    async def apply(self, change: Change | None) -> Report:
        """Refuse."""
        self._refuse(change)

    async def drift(self) -> Plan:
        """Refuse."""
        self._refuse()

    async def discover(self, portals: Sequence[str] | None) -> DiscoveryReport:
        """Refuse."""
        self._refuse(portals)

    async def rescan(self, target: str | None) -> HostStatus:
        """Refuse."""
        self._refuse(target)

    async def desired_view(self) -> DesiredView:
        """Refuse."""
        self._refuse()

    def _refuse(self, *_asked: object) -> NoReturn:
        raise self._reason


def _target(name: str, state: EngineState) -> TargetStatus:
    sessions = tuple(s.model_dump(mode="json") for s in state.sessions if s.target == name)
    return TargetStatus(name=name, declared=False, policy="", lifetime="", min_paths=0, sessions=sessions)


def _volume(volume: VolumeState) -> VolumeStatus:
    return VolumeStatus(
        name=volume.name,
        declared=False,
        identity=volume.identity,
        size=volume.size,
        block_size=volume.block_size,
        policy=volume.policy.value,
        read_only=volume.read_only,
        phase=volume.phase,
        socket=volume.socket,
        device=volume.socket,
        clients=volume.clients,
        paths=tuple(path.model_dump(mode="json") for path in volume.paths),
    )
