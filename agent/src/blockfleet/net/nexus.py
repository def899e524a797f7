# SPDX-License-Identifier: GPL-3.0-or-later
"""A nexus: one session to one target through one portal, kept up until it is stopped.

It connects, logs in, follows redirects, runs SCSI commands, and after a loss comes back by session
reinstatement: the same ISID with TSIH 0 (RFC 3720 5.3.5).  What happens is told to a :class:`NexusListener`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from blockfleet.balance.policy import LoadBalancePolicy
from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.iscsi.constants import RFC_7144_FUNCTIONS, RFC_7144_LEVEL, TaskFunction, TaskResponse
from blockfleet.iscsi.events import (
    AsyncNotice,
    ConnectionLost,
    Event,
    LoggedOut,
    LogoutAsked,
    QuirkMet,
)
from blockfleet.iscsi.login import LoginResult
from blockfleet.iscsi.login_failure import FailureKind, LoginFailure, login_error
from blockfleet.iscsi.parameters import Negotiated
from blockfleet.iscsi.reconnect import BackOff
from blockfleet.iscsi.session import Patience, Session
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.load_balance import DEFAULT_CONNECTION_POLICY, MAXIMUM_CONNECTIONS
from blockfleet.model.portal import Portal
from blockfleet.net.addresses import redirect_allowed, resolve
from blockfleet.net.connections import (
    ConnectionSet,
    ConnectionSpec,
    ConnectionStatus,
)
from blockfleet.net.driver import SessionDriver
from blockfleet.net.login import Dialled, Joining, LoginIntent, dial_with_fallback
from blockfleet.net.tap import Recorder
from blockfleet.scsi.command import Outcome, ScsiCommand

MAXIMUM_REDIRECTS = 5
"""Redirects in a row that one login follows."""

REDIRECTS = frozenset({FailureKind.REDIRECT_PERMANENT, FailureKind.REDIRECT_TEMPORARY})


_log = logging.getLogger(__name__)

CONTINUATION = 5.0
"""Seconds that commands wait for a session without a connection to be continued, where its level is not declared:
another path may have them."""

LOGOUT_MARGIN = 0.5
"""Seconds of the time that a target gives for a logout which are kept for the logout itself."""


class NexusPhase(enum.StrEnum):
    """Where a nexus is in its life."""

    CONNECTING = "connecting"
    LOGGED_IN = "logged_in"
    RECOVERING = "recovering"
    FAILED = "failed"
    """Refused for what the login said; tried again rarely."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class NexusParameters:
    """Who logs in where, and with what; the times are in seconds.

    ``portal``, ``weight`` and ``standby`` are the leading connection's, ``connections`` are further ones.
    ``error_recovery_level`` (0 to 2) is what is offered, None the highest that is safe; the target may lower it.
    """

    initiator_name: str
    initiator_alias: str
    target: str
    portal: Portal
    isid: bytes
    credentials: ChapCredentials | None = None
    header_digest: tuple[str, ...] = ("none", "crc32c")
    data_digest: tuple[str, ...] = ("none", "crc32c")
    login_timeout: float = 10.0
    noop_interval: float = 5.0
    noop_timeout: float = 5.0
    error_recovery_level: int | None = None
    weight: int = 0
    standby: bool = False
    connections: tuple[ConnectionSpec, ...] = ()
    connection_policy: LoadBalancePolicy = DEFAULT_CONNECTION_POLICY
    protocol_level: int | None = None
    """iSCSIProtocolLevel to offer (RFC 7143 13.24); None leaves it to the target to ask for one."""
    task_reporting: tuple[str, ...] | None = None
    """TaskReporting to offer (RFC 7143 13.23), the preferred value first; None as above."""
    data_pdu_in_order: bool = True
    """False lets the target send the Data-In of a sequence in any order (RFC 3720 12.18)."""
    data_sequence_in_order: bool = True
    """False lets the target choose the order of sequences, also of those it asks for (RFC 3720 12.19)."""

    @property
    def maximum_connections(self) -> int:
        """MaxConnections as it is offered: 1, or room for additions where several are wanted (RFC 3720 12.2)."""
        return MAXIMUM_CONNECTIONS if self.connections else 1

    @property
    def all_connections(self) -> tuple[ConnectionSpec, ...]:
        """All wanted connections, the leading one first."""
        return (ConnectionSpec(self.portal, self.weight, self.standby), *self.connections)

    def taking(self, wanted: NexusParameters) -> NexusParameters:
        """Return these parameters with what of ``wanted`` comes into force without a new login."""
        connections = wanted.connections if self.maximum_connections > 1 else ()
        return replace(
            self,
            login_timeout=wanted.login_timeout,
            weight=wanted.weight,
            standby=wanted.standby,
            connections=connections,
            connection_policy=wanted.connection_policy,
        )


class NexusListener(Protocol):
    """Who is told what happens to a nexus; the calls come from the event loop and must return soon."""

    def nexus_logged_in(self, nexus: Nexus) -> None:
        """Tell of every login, the first and those by reinstatement."""

    def nexus_lost(self, nexus: Nexus, error: BlockfleetError) -> None:
        """Tell that a session is lost; its commands were completed, UNKNOWN or NOT_SENT, just before."""

    def nexus_login_failed(self, nexus: Nexus, error: BlockfleetError, will_retry: bool) -> None:
        """Tell that an attempt to log in failed; ``will_retry`` is False where only a change will help."""

    async def nexus_leaving(self, nexus: Nexus) -> None:
        """Stop using a nexus that the target wants logged out; return when nothing is in flight on it."""

    def nexus_async_event(self, nexus: Nexus, code: int, lun: int, sense: bytes) -> None:
        """Tell of an asynchronous message: a SCSI event (0) or the vendor's (255)."""


class Nexus:
    """A session that keeps itself up; a :class:`~blockfleet.scsi.command.ScsiExecutor` while it is logged in."""

    def __init__(
        self,
        parameters: NexusParameters,
        listener: NexusListener,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.parameters = parameters
        self.attempted = parameters
        """What the last login was tried with: :meth:`set_parameters` during a login counts from the next one."""
        self.phase = NexusPhase.CLOSED
        self.error: BlockfleetError | None = None
        self.logins = 0
        self.result: LoginResult | None = None
        self.lost_at = 0.0
        """Loop time at which the last session's socket was reset; a time fence counts from here."""
        self.contacted_at = 0.0
        """Loop time at which the portal last took a TCP connection."""
        self.recorder = Recorder()
        """Where traces of this nexus's connections are read."""
        self._listener = listener
        self._random_bytes = random_bytes
        self._loop = asyncio.get_running_loop()
        self._session: Session | None = None
        self._driver: SessionDriver | None = None
        self._connections: ConnectionSet | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._moved_to: Portal | None = None
        self._refused = False
        self._stopping = False
        self._leaving: asyncio.Task[None] | None = None
        self._totals: dict[str, int] = {}
        self._quirks: set[QuirkMet] = set()
        self._jitter = random.Random(int.from_bytes(random_bytes(8), "big"))  # noqa: S311 - spreads retries, no secret
        self._back_off = BackOff(self._jitter.random)

    # -- life

    def start(self) -> None:
        """Begin to connect, and keep coming back until :meth:`stop`."""
        if self._task is None:
            self.phase = NexusPhase.CONNECTING
            self._task = asyncio.create_task(self._run(), name=f"nexus {self.parameters.target}")

    async def stop(self) -> None:
        """Log out (bounded in time), close, and stay closed; commands in flight end UNKNOWN."""
        self._stopping = True
        if self._leaving is not None:
            self._leaving.cancel()
        await self._log_out()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.phase = NexusPhase.CLOSED

    def set_parameters(self, parameters: NexusParameters) -> None:
        """Use ``parameters`` from the next login on; a nexus that waits to try again tries at once.

        What is said of connections and of the policy over them holds for the present session too, under load.
        Raises :class:`BlockfleetError` (CANT_REMOVE_LAST_CONNECTION), and changes nothing, where no connection
        that is logged in would be left of it.
        """
        if parameters == self.parameters:
            return
        live = self.attempted.taking(parameters)
        if self._connections is not None:
            self._connections.check(live.all_connections)
        self.parameters = parameters
        self._moved_to = None
        self._changed.set()
        if self._connections is not None:
            self._connections.apply(live.all_connections, live.connection_policy)

    def remove_connection(self, cid: int) -> None:
        """Remove a further connection from the session, under load, and from the parameters.

        Raises :class:`BlockfleetError`: INVALID_CONNECTION_ID, CANT_REMOVE_LAST_CONNECTION, or
        CANNOT_REMOVE_LEADING_CONNECTION, which is the one to the nexus's own portal.
        """
        connections = self._connections
        place = None if connections is None else connections.place(cid)
        if connections is None or place is None:
            raise BlockfleetError(
                Isdsc.INVALID_CONNECTION_ID,
                f"the session to {self.parameters.target} has no connection {cid} to remove",
                remedy="see the session's connections for their identifiers",
            )
        wanted = list(self.attempted.taking(self.parameters).connections)
        if place and len(connections.logged_in) > 1:
            del wanted[place - 1]
            connections.remove(place)
            self.set_parameters(replace(self.parameters, connections=tuple(wanted)))
            return
        raise BlockfleetError(
            Isdsc.CANNOT_REMOVE_LEADING_CONNECTION if wanted and not place else Isdsc.CANT_REMOVE_LAST_CONNECTION,
            f"cannot remove connection {cid} of the session to {self.parameters.target}:"
            f" it is the {'leading' if wanted and not place else 'last'} one",
            remedy="log the session out to end it with all of its connections",
        )

    async def relogin(self) -> None:
        """Log out and in again with the present parameters; returns after the logout."""
        self._changed.set()
        await self._log_out()

    async def _log_out(self) -> None:
        driver = self._driver
        if driver is None or driver.over.done():
            return
        if self._connections is not None:
            await self._connections.close()
        if driver.session.live is None:
            driver.session.recovery.abandon("the session is to be logged out, and has no connection")
        else:
            driver.session.logout(driver.now())
        driver.drain()
        await asyncio.wait([driver.over], timeout=driver.session.patience.logout + 1)

    # -- what it can be asked for

    def execute(self, command: ScsiCommand) -> None:
        """Run a command; REFUSED at once while not logged in."""
        session = self._session
        if session is None:
            command.outcome = Outcome.REFUSED
            command.error = "the session is not logged in"
            command.on_done(command)
        else:
            session.execute(command, self._loop.time())

    async def lun_reset(self, lun: int, timeout: float = 30.0) -> TaskResponse:
        """Reset a logical unit; when it answers FUNCTION_COMPLETE nothing older runs there (RFC 3720 10.5.1).

        Raises :class:`BlockfleetError` when no answer came.
        """
        return (await self.manage(TaskFunction.LOGICAL_UNIT_RESET, lun, timeout))[0]

    async def target_warm_reset(self, timeout: float = 30.0) -> TaskResponse:
        """Reset all logical units of the target; as :meth:`lun_reset`."""
        return (await self.manage(TaskFunction.TARGET_WARM_RESET, 0, timeout))[0]

    async def abort(self, command: ScsiCommand, timeout: float = 15.0) -> TaskResponse:
        """Abort one command, which then completes ABORTED; TASK_DOES_NOT_EXIST where it is not in flight."""
        session = self._session
        task = None
        if session is not None:
            task = next((t for t in session.tasks.values() if t.command is command), None)
        if session is None or task is None:
            return TaskResponse.TASK_DOES_NOT_EXIST
        return (await self.manage(TaskFunction.ABORT_TASK, command.lun, timeout, command))[0]

    async def manage(
        self, function: TaskFunction, lun: int, timeout: float, command: ScsiCommand | None = None
    ) -> tuple[TaskResponse, bytes]:
        """Run a task management function; return its response and the additional information (RFC 7144 4.2).

        ``command`` is the one that ABORT TASK and QUERY TASK name.  Raises :class:`BlockfleetError` when no answer
        came, or for a function of RFC 7144 where the target has not agreed to its protocol level.
        """
        session = self._session
        name = function.name.replace("_", " ")
        agreed = self.negotiated
        if function in RFC_7144_FUNCTIONS and (agreed is None or agreed.protocol_level < RFC_7144_LEVEL):
            raise BlockfleetError(
                Isdsc.SCSI_REQUEST_FAILED,
                f"cannot ask {self.parameters.target} for {name}: iSCSIProtocolLevel {RFC_7144_LEVEL} was not"
                " agreed on",
                remedy="the target has to support RFC 7144, and the login to offer it",
            )
        answer: asyncio.Future[tuple[TaskResponse, bytes] | None] = self._loop.create_future()
        if session is not None:
            answering = session

            def answered(response: TaskResponse | None) -> None:
                if not answer.done():
                    answer.set_result(None if response is None else (response, answering.information))

            task = next((t for t in session.tasks.values() if t.command is command), None) if command else None
            session.manage_task(function, lun, self._loop.time(), answered, task=task, timeout=timeout)
            response = await answer
            if response is not None:
                return response
        raise BlockfleetError(
            Isdsc.SCSI_REQUEST_FAILED,
            f"no answer to {name} from {self.parameters.target} at {self.parameters.portal}",
            remedy="check the session's state",
        )

    @property
    def connections(self) -> tuple[ConnectionStatus, ...]:
        """The connections of the present session, wanted ones in their order, then those that leave."""
        return self._connections.statuses if self._connections is not None else ()

    @property
    def tsih(self) -> int:
        """The target's handle of the present session; 0 without one."""
        return self._session.tsih if self._session is not None else 0

    @property
    def negotiated(self) -> Negotiated | None:
        """What the last login has agreed on."""
        return self.result.negotiated if self.result is not None else None

    @property
    def portal_group_tag(self) -> int | None:
        """The portal group that the last login reached."""
        return self.result.tag if self.result is not None else None

    @property
    def counters(self) -> dict[str, int]:
        """What has been counted since the start, over all sessions."""
        present = self._session.totals() if self._session is not None else {}
        return {name: self._totals.get(name, 0) + present.get(name, 0) for name in self._totals | present}

    # -- coming back

    async def _run(self) -> None:
        while not self._stopping:
            self._changed.clear()
            try:
                await self._log_in()
            except BlockfleetError as error:
                await self._pause(self._login_failed(error))
                continue
            assert self._driver is not None
            ended = await self._driver.over
            connections, self._connections = self._connections, None
            wait = self._ended(ended)
            if connections is not None:
                await connections.close()
            await asyncio.sleep(wait)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than until new parameters come."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _log_in(self) -> None:
        """Make one attempt; raises :class:`BlockfleetError`."""
        parameters = self.attempted = self.parameters
        portal = self._moved_to or parameters.portal
        for _ in range(MAXIMUM_REDIRECTS + 1):
            failure = await self._attempt(parameters, portal)
            if failure is None:
                return
            if failure.kind not in REDIRECTS or failure.redirect is None:
                self._refused = not failure.retry
                raise login_error(failure, parameters.target, portal)
            moved_to = failure.redirect[0]
            if not all(redirect_allowed(portal, address) for address in await resolve(moved_to)):
                raise BlockfleetError(
                    Isdsc.INITIATOR_ERROR,
                    f"cannot log in to {parameters.target} at {portal}: redirected to {moved_to}",
                    remedy="the target must not redirect to a loopback, multicast or unspecified address",
                )
            if failure.kind is FailureKind.REDIRECT_PERMANENT:
                self._moved_to = moved_to
            portal = moved_to
        raise BlockfleetError(
            Isdsc.TARGET_MOVED_TEMPORARILY,
            f"cannot log in to {parameters.target} at {parameters.portal}: over {MAXIMUM_REDIRECTS} redirects",
            remedy="check the target's redirection",
        )

    async def _attempt(self, parameters: NexusParameters, portal: Portal) -> LoginFailure | None:
        """Log in at one portal; None for success, or what the target answered."""
        outcome = await dial_with_fallback(
            portal, self._intent(parameters), self._random_bytes, self._session_event, on_contact=self._contacted
        )
        if isinstance(outcome, LoginFailure):
            return outcome
        self._driver = outcome.driver
        self._session = outcome.session
        self.result = outcome.result
        self.logins += 1
        self.phase = NexusPhase.LOGGED_IN
        self.error = None
        self._refused = False
        self._back_off.succeeded()
        self._connections = ConnectionSet(outcome, parameters.target, self._join, self._jitter.random)
        live = parameters.taking(self.parameters)
        self._connections.apply(live.all_connections, live.connection_policy)
        self._listener.nexus_logged_in(self)
        return None

    def _intent(self, parameters: NexusParameters) -> LoginIntent:
        return LoginIntent(
            initiator_name=parameters.initiator_name,
            initiator_alias=parameters.initiator_alias,
            target=parameters.target,
            isid=parameters.isid,
            credentials=parameters.credentials,
            header_digest=parameters.header_digest,
            data_digest=parameters.data_digest,
            protocol_level=parameters.protocol_level,
            task_reporting=parameters.task_reporting,
            data_pdu_in_order=parameters.data_pdu_in_order,
            data_sequence_in_order=parameters.data_sequence_in_order,
            timeout=parameters.login_timeout,
            patience=Patience(
                noop_interval=parameters.noop_interval,
                noop_timeout=parameters.noop_timeout,
                continuation=CONTINUATION if parameters.error_recovery_level is None else float("inf"),
            ),
            error_recovery_level=parameters.error_recovery_level,
            maximum_connections=parameters.maximum_connections,
            recorder=self.recorder,
        )

    async def _join(self, portal: Portal, joining: Joining, within: float) -> Dialled | LoginFailure:
        """Log in a further connection, or one that was lost, with what the session was logged in with."""
        intent = self._intent(self.attempted)
        intent = replace(intent, timeout=min(intent.timeout, within))
        outcome = await dial_with_fallback(
            portal, intent, self._random_bytes, self._session_event, on_contact=self._contacted, joining=joining
        )
        if isinstance(outcome, Dialled) and self.phase is NexusPhase.RECOVERING:
            self.phase = NexusPhase.LOGGED_IN
            self.error = None
        return outcome

    def _login_failed(self, error: BlockfleetError) -> float:
        """Note a failed attempt and return the seconds until the next one."""
        self.error = error
        self._moved_to = None
        refused, self._refused = self._refused, False
        if refused:
            self.phase = NexusPhase.FAILED
        elif self.phase is NexusPhase.FAILED:
            self.phase = NexusPhase.CONNECTING
        self._listener.nexus_login_failed(self, error, not refused)
        return self._back_off.refused() if refused else self._back_off.failed()

    def _ended(self, ended: ConnectionLost | LoggedOut) -> float:
        """Note the end of a session and return the seconds to wait before the next login."""
        session = self._session
        assert session is not None
        for name, value in session.totals().items():
            self._totals[name] = self._totals.get(name, 0) + value
        self.lost_at = self._loop.time()
        self._session = None
        self._driver = None
        self.phase = NexusPhase.RECOVERING
        self.error = self._lost("logged out" if isinstance(ended, LoggedOut) else ended.detail)
        self._listener.nexus_lost(self, self.error)
        obeyed, self._leaving = self._leaving is not None, None
        if isinstance(ended, LoggedOut):
            return float(self.result.negotiated.default_time2wait) if obeyed and self.result else 0.0
        return ended.wait

    def _lost(self, why: str) -> BlockfleetError:
        return BlockfleetError(
            Isdsc.TRANSPORT_ERROR,
            f"lost the session to {self.parameters.target} at {self.parameters.portal}: {why}",
            remedy="it comes back by itself when the target answers",
        )

    def _contacted(self) -> None:
        self.contacted_at = self._loop.time()

    def _session_event(self, event: Event) -> None:
        """Take what a logged-in session tells."""
        if isinstance(event, AsyncNotice):
            self._listener.nexus_async_event(self, event.code, event.lun, event.sense)
        elif isinstance(event, LogoutAsked):
            self._logout_asked(event)
        elif isinstance(event, QuirkMet):
            if event not in self._quirks:
                self._quirks.add(event)
                _log.info("%s is taken for %s: %s", self.parameters.target, event.kind, event.detail)
        elif self._connections is not None:
            self._connections.take(event)
            if self._connections.is_down and self.phase is NexusPhase.LOGGED_IN:
                self.phase = NexusPhase.RECOVERING
                self.error = self._lost("all of its connections were lost; it can be continued for some time")

    def _logout_asked(self, event: LogoutAsked) -> None:
        """Obey the target: one connection of several, or the session (RFC 3720 10.9.1, event 1)."""
        within = max(event.seconds - LOGOUT_MARGIN, 0)
        if self._connections is not None and self._connections.leave(event.cid, within):
            return
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._obey(within))

    async def _obey(self, seconds: float) -> None:
        """Log out as the target asked, in time, and without a command in flight if that can be had."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._listener.nexus_leaving(self)
        await self._log_out()
