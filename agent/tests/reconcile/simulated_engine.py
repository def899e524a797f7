# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine without a network: scripted targets and faults behind the Engine protocol.

Logins take ``login_looks`` looks (calls of ``observe``), so that what happens between asking and being logged in
can be seen.  ``calls`` records what was asked, in order; looking is not recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from blockfleet.engine.interface import (
    ConnectionState,
    DiscoveredPortal,
    DiscoverySpec,
    EngineEvent,
    EngineState,
    Fault,
    InitiatorSpec,
    LogicalUnit,
    PathPhase,
    PathState,
    SessionPhase,
    SessionSpec,
    SessionState,
    VolumeSpec,
    VolumeState,
)
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc


def disk(lun: int, identity: str, *, weak: bool = False, device_type: int = 0) -> LogicalUnit:
    """Make a disk of 64 MiB."""
    return LogicalUnit(
        lun=lun,
        device_type=device_type,
        identity=identity,
        identity_is_weak=weak,
        size=64 << 20,
        block_size=512,
    )


@dataclass
class SimulatedTarget:
    """A target: its portals, logical units, and whom it lets in.

    ``faults`` gives a portal's misbehaviour: ``refused`` (no connection), ``black_hole`` (never answers),
    ``garbage`` (violates the protocol), ``not_found`` (login refused for good).  Connections in a session go up to
    ``max_connections``; ``connection_faults`` says why the further ones through a portal do not come.
    """

    name: str
    portals: dict[str, int] = field(default_factory=dict)
    units: tuple[LogicalUnit, ...] = ()
    secret: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    units_at: dict[str, tuple[LogicalUnit, ...]] = field(default_factory=dict)
    """What single portals show in place of ``units``."""
    max_connections: int = 1
    connection_faults: dict[str, str] = field(default_factory=dict)


_FAULTS = {
    "refused": (Isdsc.CONNECTION_FAILED, "connection refused", SessionPhase.CONNECTING),
    "black_hole": (Isdsc.SERVICE_DID_NOT_RESPOND, "no answer", SessionPhase.CONNECTING),
    "garbage": (Isdsc.PROTOCOL_ERROR, "not iSCSI", SessionPhase.CONNECTING),
    "not_found": (Isdsc.TARGET_NOT_FOUND, "there is no such target (0203)", SessionPhase.FAILED),
    "authentication": (Isdsc.AUTHENTICATION_FAILURE, "authentication failed (0201)", SessionPhase.FAILED),
}


@dataclass
class _Session:
    spec: SessionSpec
    looks: int
    phase: SessionPhase = SessionPhase.CONNECTING
    fault: Fault | None = None
    in_use: SessionSpec | None = None
    logins: int = 0


@dataclass
class _Volume:
    spec: VolumeSpec
    clients: int = 0


class SimulatedEngine:
    """See the module."""

    def __init__(self, *targets: SimulatedTarget, login_looks: int = 1) -> None:
        self.targets = {target.name: target for target in targets}
        self.login_looks = login_looks
        self.running = True
        self.instance = "first"
        self.calls: list[tuple[str, str]] = []
        self.initiator: InitiatorSpec | None = None
        self.sessions: dict[str, _Session] = {}
        self.volumes: dict[str, _Volume] = {}
        self.fail_next: dict[str, BlockfleetError] = {}
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue()

    # --- what a test does behind the agent's back --------------------------------------------------------

    def serve(self, name: str, portal: str, *, tag: int = 1) -> SimulatedTarget:
        """Let a target be reached at a portal, too; a target that is not there yet is made, without units."""
        target = self.targets.setdefault(name, SimulatedTarget(name))
        target.portals[portal] = tag
        return target

    def restart(self) -> None:
        """Start anew with nothing."""
        self.instance += "+"
        self.initiator = None
        self.sessions.clear()
        self.volumes.clear()

    def open_volume(self, name: str, clients: int = 1) -> None:
        """Let clients use a volume."""
        self.volumes[name].clients = clients

    def emit(self, event: EngineEvent) -> None:
        """Tell of an event."""
        self._events.put_nowait(event)

    @property
    def changes(self) -> list[tuple[str, str]]:
        """Return the calls that change something, without discovery."""
        return [call for call in self.calls if call[0] not in ("discover", "rescan")]

    # --- Engine ------------------------------------------------------------------------------------------

    async def observe(self) -> EngineState:
        self._alive()
        for session in self.sessions.values():
            self._advance(session)
        return EngineState(
            instance=self.instance,
            version="simulated",
            pid=1,
            initiator=self.initiator,
            sessions=tuple(self._session_state(self.sessions[key]) for key in sorted(self.sessions)),
            volumes=tuple(self._volume_state(self.volumes[name]) for name in sorted(self.volumes)),
        )

    async def configure(self, initiator: InitiatorSpec) -> None:
        self._call("configure", initiator.name)
        if self.initiator and self.sessions and initiator.name != self.initiator.name:
            raise BlockfleetError(Isdsc.SESSION_BUSY, "sessions run under another name")
        self.initiator = initiator

    async def discover(self, spec: DiscoverySpec) -> tuple[DiscoveredPortal, ...]:
        self._call("discover", spec.portal)
        if self.initiator is None:
            raise BlockfleetError(Isdsc.INITIATOR_NODE_NOT_FOUND, "the engine has no initiator name")
        answering = [t for t in self.targets.values() if spec.portal in t.portals]
        if not answering or any(t.faults.get(spec.portal) for t in answering):
            raise BlockfleetError(Isdsc.CONNECTION_FAILED, f"cannot discover at {spec.portal}: connection refused")
        return tuple(
            DiscoveredPortal(target=t.name, portal=portal, tag=tag)
            for t in answering
            for portal, tag in t.portals.items()
        )

    async def open_session(self, spec: SessionSpec) -> SessionState:
        self._call("open_session", spec.key)
        known = self.sessions.get(spec.key)
        if known is None:
            assert self.initiator is not None, "sessions need a name first"
            known = self.sessions[spec.key] = _Session(spec, self.login_looks)
        else:
            assert known.spec.isid == spec.isid, "a path keeps its ISID"
            known.spec = spec
        return self._session_state(known)

    async def relogin(self, key: str) -> None:
        self._call("relogin", key)
        session = self.sessions[key]
        session.phase, session.looks, session.fault = SessionPhase.CONNECTING, self.login_looks, None

    async def close_session(self, key: str) -> None:
        self._call("close_session", key)
        self.sessions.pop(key, None)

    async def rescan(self, key: str) -> SessionState:
        self._call("rescan", key)
        return self._session_state(self.sessions[key])

    async def publish(self, spec: VolumeSpec) -> VolumeState:
        self._call("publish", spec.name)
        known = self.volumes.get(spec.name)
        if known is None:
            known = self.volumes[spec.name] = _Volume(spec)
        else:
            assert known.spec.identity == spec.identity, "what a volume is cannot change while it is served"
            known.spec = spec
        return self._volume_state(known)

    async def withdraw(self, name: str) -> None:
        self._call("withdraw", name)
        self.volumes.pop(name, None)

    async def events(self, after: int = 0) -> AsyncIterator[EngineEvent]:
        while True:
            yield await self._events.get()

    # --- how it behaves ----------------------------------------------------------------------------------

    def _alive(self) -> None:
        if not self.running:
            raise BlockfleetError(Isdsc.ENGINE_NOT_RUNNING, "the engine does not run", remedy="start it")

    def _call(self, name: str, subject: str) -> None:
        self._alive()
        self.calls.append((name, subject))
        if name in self.fail_next:
            raise self.fail_next.pop(name)

    def _advance(self, session: _Session) -> None:
        spec = session.spec
        fault = self._fault_of(spec)
        if session.phase is SessionPhase.LOGGED_IN and fault not in ("refused", "black_hole"):
            return
        if session.phase is SessionPhase.FAILED:
            return
        if session.looks > 0:
            session.looks -= 1
            return
        if fault:
            code, message, phase = _FAULTS[fault]
            session.phase, session.fault = phase, Fault(code=int(code), name=str(code), message=message)
        else:
            session.phase, session.fault = SessionPhase.LOGGED_IN, None
            session.in_use = spec
            session.logins += 1

    def _fault_of(self, spec: SessionSpec) -> str:
        target = self.targets.get(spec.target)
        if target is None:
            return "not_found"
        if spec.portal not in target.portals:
            return "refused"
        secret = spec.credentials.secret.get_secret_value() if spec.credentials else ""
        if target.secret and target.secret != secret:
            return "authentication"
        return target.faults.get(spec.portal, "")

    def _session_state(self, session: _Session) -> SessionState:
        spec = session.spec
        logged_in = session.phase is SessionPhase.LOGGED_IN
        target = self.targets.get(spec.target)
        units = target.units_at.get(spec.portal, target.units) if logged_in and target else ()
        return SessionState(
            key=spec.key,
            target=spec.target,
            portal=spec.portal,
            phase=session.phase,
            isid=spec.isid,
            tsih=session.logins if logged_in else 0,
            credentials_fingerprint=spec.credentials.fingerprint if spec.credentials else "",
            options=spec.options,
            connection_set=spec.connection_set,
            connections=self._connections(session) if logged_in else (),
            negotiated={"MaxConnections": str(self._allowed(session))} if logged_in else {},
            relogin_pending=logged_in and self._pending(session),
            logins=session.logins,
            units=units,
            fault=session.fault,
        )

    def _pending(self, session: _Session) -> bool:
        used, wanted = session.in_use, session.spec
        assert used is not None
        if used.connection_set.further or not wanted.connection_set.further:
            used = used.model_copy(update={"connection_set": wanted.connection_set})
        return used != wanted

    def _allowed(self, session: _Session) -> int:
        target = self.targets[session.spec.target]
        assert session.in_use is not None
        return min(target.max_connections, 8 if session.in_use.connection_set.further else 1)

    def _connections(self, session: _Session) -> tuple[ConnectionState, ...]:
        spec, faults = session.spec, self.targets[session.spec.target].connection_faults
        portals = [spec.portal, *(c.portal or spec.portal for c in spec.connection_set.further)]
        return tuple(
            ConnectionState(cid=cid, portal=portal, phase="logged_in", active=True)
            if cid == 0 or portal not in faults
            else ConnectionState(portal=portal, phase="failed", error=faults[portal])
            for cid, portal in enumerate(portals[: self._allowed(session)])
        )

    def _volume_state(self, volume: _Volume) -> VolumeState:
        spec = volume.spec
        paths = tuple(
            PathState(session=state.key, lun=unit.lun, phase=PathPhase.ACTIVE)
            for state in map(self._session_state, self.sessions.values())
            if state.target in spec.targets
            for unit in state.units
            if unit.identity == spec.identity
        )
        return VolumeState(
            failback=spec.failback,
            path_settings=spec.path_settings,
            name=spec.name,
            identity=spec.identity,
            targets=spec.targets,
            size=64 << 20,
            block_size=512,
            policy=spec.policy,
            read_only=spec.read_only,
            phase="online" if paths else "failed",
            socket=f"/run/blockfleet/volumes/{spec.name}.sock",
            clients=volume.clients,
            paths=paths,
        )
