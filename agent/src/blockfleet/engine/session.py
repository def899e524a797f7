# SPDX-License-Identifier: GPL-3.0-or-later
"""One session that shall exist: its nexus, and the logical units that it shows after each login."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from blockfleet.block.probe import scan
from blockfleet.block.profile import UnitProfile
from blockfleet.engine.connections import connection_states
from blockfleet.engine.event_log import EventLog
from blockfleet.engine.interface import (
    Fault,
    InitiatorSpec,
    LogicalUnit,
    SessionPhase,
    SessionSpec,
    SessionState,
)
from blockfleet.engine.parameters import needs_new_login, nexus_parameters
from blockfleet.engine.units import fault_of, logical_unit
from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.events import EventNumber
from blockfleet.model.isdsc import Isdsc
from blockfleet.net.nexus import Nexus, NexusListener, NexusParameters, NexusPhase

SCAN_RETRY = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a failed scan of the logical units is tried again; the last one repeats."""

SCAN_PATIENCE = 45.0
"""Seconds that a caller of :meth:`Session.rescan` waits."""

SCSI_ASYNC_EVENT = 0
"""AsyncEvent code of a SCSI asynchronous event, reported with sense data (RFC 3720 10.9.1)."""

NexusFactory = Callable[[NexusParameters, NexusListener], Nexus]

_PHASES = {
    NexusPhase.CONNECTING: SessionPhase.CONNECTING,
    NexusPhase.LOGGED_IN: SessionPhase.LOGGED_IN,
    NexusPhase.RECOVERING: SessionPhase.RECOVERING,
    NexusPhase.FAILED: SessionPhase.FAILED,
    NexusPhase.CLOSED: SessionPhase.CLOSING,
}

_LOGIN_EVENTS = {
    Isdsc.CONNECTION_FAILED: EventNumber.CONNECT_FAILED,
    Isdsc.DNS_NAME_UNRESOLVED: EventNumber.CONNECT_FAILED,
    Isdsc.PROTOCOL_ERROR: EventNumber.LOGIN_RESPONSE_INVALID,
}
"""Which of the guide's events a failed login is; LOGIN_FAILED for all others."""


class _Arrival:
    """Waits for one login."""

    def __init__(self) -> None:
        self.arrived: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def nexus_logged_in(self, nexus: Nexus) -> None:  # noqa: ARG002
        self._settle(True)

    def nexus_lost(self, nexus: Nexus, error: BlockfleetError) -> None:  # noqa: ARG002
        self._settle(False)

    def nexus_login_failed(self, nexus: Nexus, error: BlockfleetError, will_retry: bool) -> None:  # noqa: ARG002
        self._settle(False)

    def nexus_async_event(self, nexus: Nexus, code: int, lun: int, sense: bytes) -> None:
        """The login was all that was wanted."""

    async def nexus_leaving(self, nexus: Nexus) -> None:
        """Nothing uses it."""

    def _settle(self, there: bool) -> None:
        if not self.arrived.done():
            self.arrived.set_result(there)


class SessionWatcher(Protocol):
    """Who wants to know what a session shows: the volumes."""

    def session_logged_in(self, session: Session) -> None:
        """A new login: who is behind each LUN has to be checked again."""

    def session_scanned(self, session: Session) -> None:
        """The units are those of this login, or were asked for again on it."""

    def session_lost(self, session: Session) -> None:
        """Nothing can be sent until the next scan; commands in flight have been completed."""

    async def session_leaving(self, session: Session) -> None:
        """The session is about to log out: return when its paths are idle."""


class Session:
    """Keeps one :class:`SessionSpec` alive.

    ``generation`` counts logins: what was learned of a unit holds only while it has not changed.
    """

    def __init__(
        self,
        spec: SessionSpec,
        initiator: InitiatorSpec,
        events: EventLog,
        watcher: SessionWatcher,
        make_nexus: NexusFactory = Nexus,
    ) -> None:
        self.spec = spec
        self._initiator = initiator
        self._events = events
        self._watcher = watcher
        self._in_use: NexusParameters | None = None
        """What the present login was made with."""
        self._told = ""
        self.generation = 0
        self.profiles: tuple[UnitProfile, ...] = ()
        self._scanned_generation = -1
        self._scan_error: BlockfleetError | None = None
        self._scan: asyncio.Task[None] | None = None
        self._scan_ended = asyncio.Event()
        self._scan_asked = 0
        self._scan_answered = 0
        self._closing = False
        self._login_event = asyncio.Event()
        self._make_nexus = make_nexus
        self.nexus = make_nexus(nexus_parameters(spec, initiator), self)

    def start(self) -> None:
        """Begin to log in; the session then comes back by itself until :meth:`close`."""
        self._events.record(EventNumber.SESSION_OPENED, self.spec.key)
        self.nexus.start()

    def update(self, spec: SessionSpec) -> None:
        """Take new credentials and options for the next login, and new connections at once.

        Raises :class:`BlockfleetError`, and changes nothing, for what cannot be or would end the session.
        """
        if spec == self.spec:
            return
        self.nexus.set_parameters(nexus_parameters(spec, self._initiator))
        if spec.credentials != self.spec.credentials:
            self._events.record(EventNumber.CREDENTIALS_CHANGED, spec.key)
        self.spec = spec
        self._told = ""

    async def relogin(self) -> None:
        """Log out and in again; returns when the logout is done and the login begun."""
        await self.nexus.relogin()

    async def close(self) -> None:
        """Log out, bounded, and end."""
        self._closing = True
        self._cancel_scan()
        was_in = self.logged_in
        await self.nexus.stop()
        if was_in:
            self._events.record(EventNumber.LOGGED_OUT, self.spec.key)
        self._events.record(EventNumber.SESSION_CLOSED, self.spec.key)

    async def wait_for_login(self, after: int, timeout: float) -> bool:
        """Wait until logged in with a generation above ``after``; false when ``timeout`` seconds passed."""
        try:
            async with asyncio.timeout(timeout):
                while self.generation <= after or not self.logged_in:
                    await self._login_event.wait()
        except TimeoutError:
            return False
        return True

    async def lun_reset(self, lun: int, timeout: float) -> TaskResponse:
        """Reset a logical unit and return the answer; raises :class:`BlockfleetError` without one."""
        return await self.nexus.lun_reset(lun, timeout)

    async def reinstate_through(self, other: Session) -> bool:
        """Log in with this session's ISID through another session's portal, and out again.

        The target ends what it still has of this session, whatever the network keeps of it, if both portals are
        of one group (RFC 3720 5.3.5, 9.1.1).
        """
        listener = _Arrival()
        parameters = replace(self.nexus.parameters, portal=other.nexus.parameters.portal)
        nexus = self._make_nexus(parameters, listener)
        nexus.recorder = self.nexus.recorder
        nexus.start()
        try:
            async with asyncio.timeout(parameters.login_timeout):
                return await listener.arrived
        except TimeoutError:
            return False
        finally:
            await nexus.stop()

    @property
    def contacted_at(self) -> float:
        """Loop time at which the portal last took a TCP connection: the target was alive then."""
        return self.nexus.contacted_at

    @property
    def logged_in(self) -> bool:
        """Whether commands can be sent."""
        return self.nexus.phase is NexusPhase.LOGGED_IN

    @property
    def current(self) -> bool:
        """Whether ``profiles`` were learned on the present login."""
        return self.logged_in and self._scanned_generation == self.generation

    def state(self) -> SessionState:
        """Describe the session."""
        nexus = self.nexus
        logged_in = self.logged_in
        return SessionState(
            key=self.spec.key,
            target=self.spec.target,
            portal=self.spec.portal,
            phase=SessionPhase.CLOSING if self._closing else _PHASES[nexus.phase],
            isid=self.spec.isid,
            tsih=nexus.tsih if logged_in else 0,
            tag=nexus.portal_group_tag,
            credentials_fingerprint=self.spec.credentials.fingerprint if self.spec.credentials else "",
            options=self.spec.options,
            connection_set=self.spec.connection_set,
            connections=connection_states(nexus.connections, self.spec.connection_set.policy),
            relogin_pending=logged_in
            and self._in_use is not None
            and needs_new_login(self._in_use, nexus.parameters),
            negotiated=nexus.negotiated.as_text() if logged_in and nexus.negotiated else {},
            logins=nexus.logins,
            units=self.units,
            fault=self._fault(),
            counters=dict(nexus.counters),
        )

    @property
    def units(self) -> tuple[LogicalUnit, ...]:
        """The logical units of the last scan."""
        return tuple(logical_unit(profile) for profile in self.profiles)

    def _fault(self) -> Fault | None:
        error = self._scan_error if self.logged_in else self.nexus.error
        return fault_of(error) if error is not None else None

    # --- scanning ----------------------------------------------------------------------------------------

    async def rescan(self) -> None:
        """Ask for the logical units anew and wait for the answer, :data:`SCAN_PATIENCE` seconds at most.

        Raises the error of the scan, ``SERVICE_UNAVAILABLE`` while the session is not logged in, and
        ``SERVICE_DID_NOT_RESPOND`` when there is no answer.
        """
        self.request_scan()
        wanted = self._scan_asked
        try:
            async with asyncio.timeout(SCAN_PATIENCE):
                while self._scan_answered < wanted:
                    self._require_login()
                    await self._scan_ended.wait()
        except TimeoutError:
            raise BlockfleetError(
                Isdsc.SERVICE_DID_NOT_RESPOND,
                f"session {self.spec.key} did not show its logical units within {SCAN_PATIENCE:g} s",
                remedy="look at the target",
            ) from None
        self._require_login()
        if self._scan_error is not None:
            raise self._scan_error

    def request_scan(self) -> None:
        """Ask for the logical units anew; requests during a scan are answered by one scan after it."""
        if not self.logged_in or self._closing:
            return
        self._scan_asked += 1
        if self._scan is None:
            self._scan = asyncio.get_running_loop().create_task(self._run_scans())

    def _require_login(self) -> None:
        if not self.logged_in or self._closing:
            raise BlockfleetError(
                Isdsc.SERVICE_UNAVAILABLE,
                f"session {self.spec.key} is not logged in",
                remedy="wait until it is; it is scanned after each login",
            )

    async def _run_scans(self) -> None:
        failures = 0
        while self._scan_answered < self._scan_asked:
            asked = self._scan_asked
            error = await self._scan_once()
            self._scan_error = error
            self._scan_answered = asked
            self._announce_scan()
            if error is not None:
                await asyncio.sleep(SCAN_RETRY[min(failures, len(SCAN_RETRY) - 1)])
                failures += 1
                self._scan_asked += 1
        self._scan = None

    async def _scan_once(self) -> BlockfleetError | None:
        try:
            profiles = tuple(await scan(self.nexus))
        except BlockfleetError as error:
            return error
        if self._scanned_generation >= 0 and profiles != self.profiles:
            self._events.record(EventNumber.UNITS_CHANGED, self.spec.key, f"{len(profiles)} logical units")
        self.profiles = profiles
        self._scanned_generation = self.generation
        self._watcher.session_scanned(self)
        return None

    def _cancel_scan(self) -> None:
        """End the scan of a login that is over."""
        if self._scan is not None:
            self._scan.cancel()
            self._scan = None
        self._scan_error = None
        self._announce_scan()

    def _announce_scan(self) -> None:
        self._scan_ended.set()
        self._scan_ended = asyncio.Event()

    # --- what the nexus tells ----------------------------------------------------------------------------

    def nexus_logged_in(self, nexus: Nexus) -> None:
        """Begin a new generation: units are asked for again before anything uses the path."""
        first = nexus.logins <= 1
        self.generation += 1
        self._in_use = nexus.attempted
        self._told = ""
        self._login_event.set()
        self._login_event = asyncio.Event()
        self._events.record(
            EventNumber.LOGGED_IN if first else EventNumber.RECONNECTED,
            self.spec.key,
            details={"logins": str(nexus.logins), "tsih": str(nexus.tsih)},
        )
        self._cancel_scan()
        self._watcher.session_logged_in(self)
        self.request_scan()

    def nexus_lost(self, nexus: Nexus, error: BlockfleetError) -> None:  # noqa: ARG002
        """Pass on that the path is down."""
        self._cancel_scan()
        if not self._closing:
            self._events.record(EventNumber.CONNECTION_LOST, self.spec.key, str(error))
        self._watcher.session_lost(self)

    def nexus_login_failed(self, nexus: Nexus, error: BlockfleetError, will_retry: bool) -> None:  # noqa: ARG002
        """Record why, once for each different reason."""
        told = str(error)
        if told == self._told:
            return
        self._told = told
        self._events.record(
            _LOGIN_EVENTS.get(error.code, EventNumber.LOGIN_FAILED),
            self.spec.key,
            told,
            {"code": str(error.code), "will_retry": "yes" if will_retry else "no"},
        )

    async def nexus_leaving(self, nexus: Nexus) -> None:  # noqa: ARG002
        """Let the volumes move to other paths before the target's request is granted."""
        await self._watcher.session_leaving(self)

    def nexus_async_event(self, nexus: Nexus, code: int, lun: int, sense: bytes) -> None:  # noqa: ARG002
        """Look again at the units after a SCSI event; the others are acted on by the nexus or say nothing."""
        if code == SCSI_ASYNC_EVENT:
            self.request_scan()
