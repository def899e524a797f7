# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine process does: its sessions, its volumes and its events, behind the Engine protocol."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Iterable
from pathlib import Path

from blockfleet.discovery.sendtargets import discover
from blockfleet.engine.event_log import EventLog
from blockfleet.engine.interface import (
    DiscoveredPortal,
    DiscoverySpec,
    EngineEvent,
    EngineState,
    InitiatorSpec,
    SessionSpec,
    SessionState,
    TraceBatch,
    TraceSpec,
    VolumeSpec,
    VolumeState,
)
from blockfleet.engine.parameters import chap_credentials, iscsi_name, parse_portal
from blockfleet.engine.session import NexusFactory, Session
from blockfleet.engine.trace import Traces
from blockfleet.engine.volume import Volume
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.net.nexus import Nexus

MAXIMUM_SESSIONS = 1024
MAXIMUM_VOLUMES = 1024

_log = logging.getLogger(__name__)


class DataPlane:
    """An :class:`~blockfleet.engine.interface.Engine` that moves data in this process.

    ``directory`` is where the volumes' sockets are; ``instance`` names this run of the engine; ``unclean`` says
    that the one before it was killed, so that units are fenced before their first use.
    """

    def __init__(
        self,
        directory: Path,
        *,
        instance: str,
        version: str,
        unclean: bool = False,
        make_nexus: NexusFactory = Nexus,
    ) -> None:
        self._directory = directory
        self._instance = instance
        self._version = version
        self._unclean = unclean
        self._make_nexus = make_nexus
        self._initiator: InitiatorSpec | None = None
        self._sessions: dict[str, Session] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._volumes: dict[str, Volume] = {}
        self._volume_lock = asyncio.Lock()
        self._withdrawals: set[asyncio.Task[None]] = set()
        self._events = EventLog()
        self._traces = Traces()

    # --- state -------------------------------------------------------------------------------------------

    async def observe(self) -> EngineState:
        """Return the present state, sessions and volumes in the order of their names."""
        return EngineState(
            instance=self._instance,
            version=self._version,
            pid=os.getpid(),
            initiator=self._initiator,
            sessions=tuple(self._sessions[key].state() for key in sorted(self._sessions)),
            volumes=tuple(self._volumes[name].state() for name in sorted(self._volumes)),
        )

    def events(self, after: int = 0) -> AsyncGenerator[EngineEvent, None]:
        """Yield kept events above ``after``, then new ones."""
        return self._events.follow(after)

    def trace(self, spec: TraceSpec) -> AsyncGenerator[TraceBatch, None]:
        """Yield the PDUs of a target's sessions."""
        return self._traces.run(spec, tuple(self._sessions.values()))

    # --- initiator and discovery -------------------------------------------------------------------------

    async def configure(self, initiator: InitiatorSpec) -> None:
        """Set the initiator's name and alias; refused (``SESSION_BUSY``) while sessions use another name."""
        name = iscsi_name(initiator.name, "name")
        if self._sessions and self._initiator is not None and name != self._initiator.name:
            raise BlockfleetError(
                Isdsc.SESSION_BUSY,
                f"the initiator name cannot become {name}: {len(self._sessions)} sessions run as"
                f" {self._initiator.name}",
                remedy="log them out first",
                field="name",
            )
        self._initiator = initiator.model_copy(update={"name": name})

    async def discover(self, spec: DiscoverySpec) -> tuple[DiscoveredPortal, ...]:
        """Ask a portal for its targets."""
        found = await discover(
            self._configured().name,
            parse_portal(spec.portal, "portal"),
            chap_credentials(spec.credentials),
            isid=_discovery_isid(),
            timeout=spec.timeout,
        )
        return tuple(
            DiscoveredPortal(target=entry.target, portal=str(entry.portal), tag=entry.tag) for entry in found
        )

    def _configured(self) -> InitiatorSpec:
        if self._initiator is None:
            raise BlockfleetError(
                Isdsc.INITIATOR_NODE_NOT_FOUND,
                "the engine has no initiator name",
                remedy="configure it first",
            )
        return self._initiator

    # --- sessions ----------------------------------------------------------------------------------------

    async def open_session(self, spec: SessionSpec) -> SessionState:
        """Start a session, or take new credentials and options for one that runs."""
        session = self._sessions.get(spec.key)
        if session is None:
            session = self._new_session(spec)
        else:
            self._check_same_path(session, spec)
            session.update(spec)
        for volume in self._volumes.values():
            volume.session_changed(session)
        return session.state()

    def _new_session(self, spec: SessionSpec) -> Session:
        initiator = self._configured()
        if len(self._sessions) >= MAXIMUM_SESSIONS:
            raise BlockfleetError(
                Isdsc.TOO_MANY_SESSIONS,
                f"the engine already has {MAXIMUM_SESSIONS} sessions",
                remedy="close some",
            )
        for other in self._sessions.values():
            if other.spec.target == spec.target and other.spec.isid.lower() == spec.isid.lower():
                raise BlockfleetError(
                    Isdsc.SESSION_ALREADY_EXISTS,
                    f"session {other.spec.key} already uses ISID {spec.isid}: each would end the other"
                    " (RFC 3720 5.3.5)",
                    remedy="give each path an ISID of its own",
                    field="isid",
                )
        session = Session(spec, initiator, self._events, self, self._make_nexus)
        self._sessions[spec.key] = session
        self._traces.session_opened(session)
        session.start()
        return session

    def _check_same_path(self, session: Session, spec: SessionSpec) -> None:
        if spec.key in self._closing:
            raise BlockfleetError(
                Isdsc.SESSION_BUSY, f"session {spec.key} is being closed", remedy="try again when it is gone"
            )
        for field in ("target", "portal", "isid"):
            if getattr(spec, field) != getattr(session.spec, field):
                raise BlockfleetError(
                    Isdsc.INVALID_PARAMETER,
                    f"{field} of session {spec.key} cannot change while it exists",
                    remedy="close it and open it again",
                    field=field,
                )

    async def relogin(self, key: str) -> None:
        """Let the paths through a session fall idle, log it out and in again."""
        session = self._session(key)
        await self.session_leaving(session)
        await session.relogin()

    async def rescan(self, key: str) -> SessionState:
        """Ask a session for its logical units again and wait for the answer."""
        session = self._session(key)
        await session.rescan()
        return session.state()

    async def close_session(self, key: str) -> None:
        """Take its paths from all volumes, log out, forget.  Once begun it goes on without its caller."""
        session = self._sessions.get(key)
        if session is None:
            return
        if key not in self._closing:
            self._closing[key] = asyncio.get_running_loop().create_task(self._close(session))
        await asyncio.shield(self._closing[key])

    async def _close(self, session: Session) -> None:
        try:
            await self.session_leaving(session)
            for volume in self._volumes.values():
                volume.session_closed(session)
            await session.close()
        finally:
            self._traces.session_closed(session)
            del self._sessions[session.spec.key]
            del self._closing[session.spec.key]

    def _session(self, key: str) -> Session:
        session = self._sessions.get(key)
        if session is None:
            raise BlockfleetError(
                Isdsc.INVALID_SESSION_ID,
                f"there is no session {key[:300]}",
                remedy="open it first",
                field="key",
            )
        return session

    def session_logged_in(self, session: Session) -> None:
        """Let every volume check its paths through the session."""
        for volume in self._volumes.values():
            volume.session_logged_in(session)

    def session_scanned(self, session: Session) -> None:
        """Let every volume take its units."""
        for volume in self._volumes.values():
            volume.session_scanned(session)

    def session_lost(self, session: Session) -> None:
        """Let every volume stop using the session."""
        for volume in self._volumes.values():
            volume.session_lost(session)

    async def session_leaving(self, session: Session) -> None:
        """Let every volume's paths through the session fall idle."""
        await asyncio.gather(*(volume.session_leaving(session) for volume in self._volumes.values()))

    # --- volumes -----------------------------------------------------------------------------------------

    async def publish(self, spec: VolumeSpec) -> VolumeState:
        """Serve a volume, or change the policy or the targets of one that is served.

        A volume whose unit no session shows yet is accepted; its socket appears with its first path.
        """
        spec = spec.model_copy(update={"targets": tuple(iscsi_name(name, "targets") for name in spec.targets)})
        async with self._volume_lock:
            volume = self._volumes.get(spec.name)
            if volume is None:
                volume = self._new_volume(spec)
            else:
                volume.update(spec)
            for session in tuple(self._sessions.values()):
                if session.current:
                    volume.session_scanned(session)
            await volume.settled()
        return volume.state()

    def _new_volume(self, spec: VolumeSpec) -> Volume:
        if len(self._volumes) >= MAXIMUM_VOLUMES:
            raise BlockfleetError(
                Isdsc.OUT_OF_RESOURCES,
                f"the engine already serves {MAXIMUM_VOLUMES} volumes",
                remedy="withdraw some",
            )
        for other in self._volumes.values():
            if other.spec.identity == spec.identity:
                raise BlockfleetError(
                    Isdsc.VOLUME_ALREADY_PERSISTENTLY_BOUND,
                    f"logical unit {spec.identity} is already served as volume {other.spec.name}",
                    remedy=f"withdraw {other.spec.name} first",
                    field="identity",
                )
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        volume = Volume(
            spec, self._directory, self._events, lambda: tuple(self._sessions.values()), unclean=self._unclean
        )
        self._volumes[spec.name] = volume
        return volume

    async def withdraw(self, name: str) -> None:
        """Stop serving a volume; one that is not served is no error.  Once begun it goes on without its caller."""
        task = asyncio.get_running_loop().create_task(self._withdraw(name))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)
        await asyncio.shield(task)

    async def _withdraw(self, name: str) -> None:
        async with self._volume_lock:
            volume = self._volumes.get(name)
            if volume is not None:
                # It is told of its sessions to the end: what is in flight may need a path that comes back.
                await volume.close()
                del self._volumes[name]

    async def close(self) -> None:
        """End all volumes, then log out of all sessions."""
        async with self._volume_lock:
            await _all(volume.close() for volume in self._volumes.values())
            self._volumes.clear()
        await _all(self.close_session(key) for key in tuple(self._sessions))


async def _all(steps: Iterable[Awaitable[None]]) -> None:
    """Run all steps to their ends and log what went wrong with each: the others are not held up."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, Exception):
            _log.error("while closing: %s", result, exc_info=result)


def _discovery_isid() -> bytes:
    """Return a random ISID (type 10b, RFC 3720 10.12.5): discovery must not end the host's own sessions."""
    return b"\x80" + secrets.token_bytes(5)
