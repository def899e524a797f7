# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt to log in at one portal, from the TCP connection to the full feature phase."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from blockfleet.iscsi.chap import ChallengeMemory, ChapCredentials
from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.events import ConnectionLost, Event, LoggedIn, LoggedOut, LoginFailed, LossKind
from blockfleet.iscsi.login import LoginMachine, LoginParameters, LoginResult, SessionType
from blockfleet.iscsi.login_failure import FailureKind, LoginFailure
from blockfleet.iscsi.parameters import DISCOVERY_OFFER, SessionOffer
from blockfleet.iscsi.quirks import HIGHEST_RECOVERY_LEVEL
from blockfleet.iscsi.session import Patience, Session
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.net.addresses import connect
from blockfleet.net.driver import SessionDriver
from blockfleet.net.tap import Recorder
from blockfleet.net.transport import SessionTransport

_log = logging.getLogger(__name__)

LEADING_CID = 0
"""CID of the first connection of a session."""

_CHALLENGES = ChallengeMemory()
"""Of all logins of this process: a challenge reflected from one connection to another is recognised."""

_DIGEST_KEYS = {"none": "None", "crc32c": "CRC32C"}


@dataclass(frozen=True, slots=True)
class LoginIntent:
    """Who logs in, to what, and how; ``target`` None makes a discovery session.  Times are in seconds.

    ``error_recovery_level`` None offers the highest that is safe with the target.
    """

    initiator_name: str
    initiator_alias: str
    target: str | None
    isid: bytes
    credentials: ChapCredentials | None
    timeout: float
    patience: Patience
    header_digest: tuple[str, ...] = ("none",)
    data_digest: tuple[str, ...] = ("none",)
    protocol_level: int | None = None
    task_reporting: tuple[str, ...] | None = None
    error_recovery_level: int | None = None
    maximum_connections: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    recorder: Recorder | None = None
    """Who taps the connection for traces."""

    def offer(self) -> SessionOffer:
        """Return what is offered in negotiation."""
        if self.target is None:
            return DISCOVERY_OFFER
        level = self.error_recovery_level
        return SessionOffer(
            header_digest=tuple(_DIGEST_KEYS[name] for name in self.header_digest),
            data_digest=tuple(_DIGEST_KEYS[name] for name in self.data_digest),
            protocol_level=self.protocol_level,
            task_reporting=self.task_reporting,
            error_recovery_level=HIGHEST_RECOVERY_LEVEL if level is None else level,
            max_connections=self.maximum_connections,
            data_pdu_in_order=self.data_pdu_in_order,
            data_sequence_in_order=self.data_sequence_in_order,
        )


@dataclass(frozen=True, slots=True)
class Joining:
    """A login that adds a connection to a session, or brings a lost one back (RFC 3720 5.3.4).

    ``exp_stat_sn`` acknowledges what the lost one had received; ``rank``, ``weight`` and ``standby`` are for the
    load balance policy.
    """

    driver: SessionDriver
    cid: int
    exp_stat_sn: int = 0
    rank: int = 0
    weight: int = 0
    standby: bool = False


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection in full feature phase, and who drives its session."""

    driver: SessionDriver
    connection: Connection
    result: LoginResult

    @property
    def session(self) -> Session:
        """The session that the connection is of."""
        return self.driver.session


async def dial_with_fallback(
    portal: Portal,
    intent: LoginIntent,
    random_bytes: Callable[[int], bytes],
    on_event: Callable[[Event], None],
    *,
    on_contact: Callable[[], None] = lambda: None,
    joining: Joining | None = None,
) -> Dialled | LoginFailure:
    """Do as :func:`dial`; where the target stumbles over an offer, try again with a lesser one.

    Of a list of CHAP algorithms that is the last one alone, which is the weakest that the credentials allow: the
    target gets nothing that was not offered before.  Of ErrorRecoveryLevel it is a lower one.
    """
    while True:
        outcome = await dial(portal, intent, random_bytes, on_event, on_contact=on_contact, joining=joining)
        lesser = _lesser(intent, outcome) if isinstance(outcome, LoginFailure) else None
        if lesser is None:
            return outcome
        _log.warning("cannot log in to %s at %s: %s; trying again with %s", intent.target, portal, *lesser[1:])
        intent = lesser[0]


def _lesser(intent: LoginIntent, failure: LoginFailure) -> tuple[LoginIntent, str, str] | None:
    """Return what to try after a failure, with why and what is less about it; None where nothing is."""
    why = f"{failure.message} ({failure.status:04x})" if failure.status else failure.message
    if failure.retry_at_level is not None:
        level = failure.retry_at_level
        return replace(intent, error_recovery_level=level), why, f"ErrorRecoveryLevel {level}"
    if failure.retry_single_algorithm and intent.credentials is not None:
        single = replace(intent, credentials=intent.credentials.with_last_algorithm())
        return single, why, "a single CHAP algorithm"
    return None


async def dial(
    portal: Portal,
    intent: LoginIntent,
    random_bytes: Callable[[int], bytes],
    on_event: Callable[[Event], None],
    *,
    on_contact: Callable[[], None] = lambda: None,
    joining: Joining | None = None,
) -> Dialled | LoginFailure:
    """Connect and log in within ``intent.timeout`` seconds.

    Returns the target's refusal as a value; raises :class:`BlockfleetError` where there is no answer to it: not
    reachable, timed out, closed, not an iSCSI target.  ``on_event`` gets the events of the session that follow,
    ``on_contact`` is called when the TCP connection is up.  Without ``joining`` the login leads a new session.
    """
    dialling = _Dialling(portal, intent, random_bytes, on_event, joining)
    try:
        async with asyncio.timeout(intent.timeout):
            await connect(portal, dialling.begin)
            on_contact()
            outcome = await dialling.outcome
    except TimeoutError:
        if not dialling.succeeded:
            raise dialling.timed_out() from None
        outcome = dialling.outcome.result()
    finally:
        dialling.settle()
    return outcome


class _Dialling:
    """One login from its first byte on, and what becomes of it."""

    def __init__(
        self,
        portal: Portal,
        intent: LoginIntent,
        random_bytes: Callable[[int], bytes],
        on_event: Callable[[Event], None],
        joining: Joining | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._portal = portal
        self._intent = intent
        self._random_bytes = random_bytes
        self._joining = joining
        purpose = "discover targets" if intent.target is None else f"log in to {intent.target}"
        self.purpose = f"add a connection to {intent.target}" if joining is not None else purpose
        self.outcome: asyncio.Future[Dialled | LoginFailure] = self._loop.create_future()
        if joining is None:
            session = Session(intent.patience, self._loop.time(), int.from_bytes(random_bytes(4), "big"))
            self._driver = SessionDriver(session, on_event)
            self._cid = LEADING_CID
        else:
            self._driver = joining.driver
            self._cid = joining.cid
        self._machine: LoginMachine | None = None
        self._connection: Connection | None = None
        self._transport: SessionTransport | None = None

    def begin(self) -> SessionTransport:
        """Make what carries the login, now that there is a TCP connection: CmdSN is that of this moment."""
        session, now = self._driver.session, self._loop.time()
        transport = SessionTransport(self._driver, self._intent.recorder)
        machine = self._machine = LoginMachine(self._parameters(), self._random_bytes, _CHALLENGES)
        connection = Connection(session, self._cid, machine, transport.wake, now + self._intent.timeout)
        joining = self._joining
        if joining is not None:
            connection.rank, connection.weight, connection.standby = joining.rank, joining.weight, joining.standby
        self._transport, self._connection = transport, connection
        self._driver.carry(self._cid, transport, self._event)
        session.add_connection(connection)
        transport.attach(connection)
        connection.connecting()
        return transport

    def _parameters(self) -> LoginParameters:
        intent, session, joining = self._intent, self._driver.session, self._joining
        parameters = LoginParameters(
            initiator_name=intent.initiator_name,
            initiator_alias=intent.initiator_alias,
            target_name=intent.target,
            session_type=SessionType.DISCOVERY if intent.target is None else SessionType.NORMAL,
            isid=intent.isid,
            cid=self._cid,
            cmd_sn=session.cmd_sn,
            offer=intent.offer(),
            level_declared=intent.error_recovery_level is not None,
            credentials=intent.credentials,
        )
        if joining is None:
            return parameters
        leading = self._driver.result
        assert leading is not None
        return replace(
            parameters,
            leading=False,
            tsih=session.tsih,
            session=leading.negotiated,
            exp_stat_sn=joining.exp_stat_sn,
            expected_tag=leading.tag,
        )

    def _event(self, event: Event) -> None:
        if self.outcome.done():
            return
        if isinstance(event, LoggedIn):
            assert self._connection is not None
            self.outcome.set_result(Dialled(self._driver, self._connection, event.result))
        elif isinstance(event, LoginFailed):
            self.outcome.set_result(event.failure)
        elif isinstance(event, ConnectionLost | LoggedOut):
            level = None if self._machine is None else self._machine.lower_level
            if level is not None and isinstance(event, ConnectionLost) and event.kind is LossKind.TRANSPORT:
                self.outcome.set_result(LoginFailure(FailureKind.CLOSED, event.detail, retry_at_level=level))
            else:
                self.outcome.set_exception(self._ended(event))

    def _ended(self, event: ConnectionLost | LoggedOut) -> BlockfleetError:
        if isinstance(event, ConnectionLost) and event.kind is LossKind.LOGIN_TIMEOUT:
            return self.timed_out()
        kind = event.kind if isinstance(event, ConnectionLost) else LossKind.LOGOUT
        detail = event.detail if isinstance(event, ConnectionLost) else kind.value
        return BlockfleetError(
            Isdsc.PROTOCOL_ERROR if kind is LossKind.PROTOCOL else Isdsc.CONNECTION_FAILED,
            f"cannot {self.purpose} at {self._portal}: {detail}",
            remedy="check that an iSCSI target serves this portal",
        )

    def timed_out(self) -> BlockfleetError:
        """Return the error for a login that took too long."""
        return BlockfleetError(
            Isdsc.CONNECTION_FAILED,
            f"cannot {self.purpose} at {self._portal}: no answer within {self._intent.timeout:g} s",
            remedy="check that the portal is reachable and that an iSCSI target serves it",
        )

    @property
    def succeeded(self) -> bool:
        """Whether the connection is in full feature phase."""
        outcome = self.outcome
        if not outcome.done() or outcome.cancelled() or outcome.exception() is not None:
            return False
        return isinstance(outcome.result(), Dialled)

    def settle(self) -> None:
        """Leave nothing behind an attempt that did not succeed."""
        self._driver.login_over(self._cid)
        if self.succeeded:
            return
        self.outcome.cancel()
        if self._connection is not None and not self._driver.session.over:
            self._driver.now()
            self._connection.closed("login was given up")
            self._driver.drain()
        if self._transport is not None:
            self._transport.abort()
