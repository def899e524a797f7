# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt to log in at one portal, from the TCP connection to the full feature phase."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from blockfleet.iscsi.chap import ChallengeMemory, ChapCredentials
from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.events import ConnectionLost, Event, LoggedIn, LoggedOut, LoginFailed, LossKind
from blockfleet.iscsi.login import LoginMachine, LoginParameters, LoginResult, SessionType
from blockfleet.iscsi.login_failure import LoginFailure
from blockfleet.iscsi.parameters import DISCOVERY_OFFER, SessionOffer
from blockfleet.iscsi.session import Patience, Session
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.net.addresses import connect
from blockfleet.net.transport import SessionTransport

LEADING_CID = 0
"""CID of the first connection of a session."""

_CHALLENGES = ChallengeMemory()
"""Of all logins of this process: a challenge reflected from one connection to another is recognised."""

_DIGEST_KEYS = {"none": "None", "crc32c": "CRC32C"}


@dataclass(frozen=True, slots=True)
class LoginIntent:
    """Who logs in, to what, and how; ``target`` None makes a discovery session.  Times are in seconds."""

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

    def offer(self) -> SessionOffer:
        """Return what is offered in negotiation."""
        if self.target is None:
            return DISCOVERY_OFFER
        return SessionOffer(
            header_digest=tuple(_DIGEST_KEYS[name] for name in self.header_digest),
            data_digest=tuple(_DIGEST_KEYS[name] for name in self.data_digest),
            protocol_level=self.protocol_level,
            task_reporting=self.task_reporting,
        )


@dataclass(frozen=True, slots=True)
class Dialled:
    """A session in full feature phase; ``over`` is done when it ends, after its commands were completed."""

    session: Session
    transport: SessionTransport
    result: LoginResult
    over: asyncio.Future[ConnectionLost | LoggedOut]


async def dial_with_fallback(
    portal: Portal,
    intent: LoginIntent,
    random_bytes: Callable[[int], bytes],
    on_event: Callable[[Event], None],
    on_contact: Callable[[], None] = lambda: None,
) -> Dialled | LoginFailure:
    """Do as :func:`dial`; where the target stumbles over a list of CHAP algorithms, try the last one alone.

    The last one is the weakest that the credentials allow: the target gets nothing that was not offered before.
    """
    outcome = await dial(portal, intent, random_bytes, on_event, on_contact)
    if isinstance(outcome, LoginFailure) and outcome.retry_single_algorithm and intent.credentials is not None:
        single = replace(intent, credentials=intent.credentials.with_last_algorithm())
        outcome = await dial(portal, single, random_bytes, on_event, on_contact)
    return outcome


async def dial(
    portal: Portal,
    intent: LoginIntent,
    random_bytes: Callable[[int], bytes],
    on_event: Callable[[Event], None],
    on_contact: Callable[[], None] = lambda: None,
) -> Dialled | LoginFailure:
    """Connect and log in within ``intent.timeout`` seconds.

    Returns the target's refusal as a value; raises :class:`BlockfleetError` where there is no answer to it: not
    reachable, timed out, closed, not an iSCSI target.  ``on_event`` gets the events of the session that follow,
    ``on_contact`` is called when the TCP connection is up.
    """
    dialling = _Dialling(portal, intent, random_bytes, on_event)
    try:
        async with asyncio.timeout(intent.timeout):
            await connect(portal, lambda: dialling.transport)
            on_contact()
            outcome = await dialling.outcome
    except TimeoutError:
        raise dialling.timed_out() from None
    finally:
        dialling.settle()
    return outcome


class _Dialling:
    """The events of a session from its first byte on, and where they go."""

    def __init__(
        self,
        portal: Portal,
        intent: LoginIntent,
        random_bytes: Callable[[int], bytes],
        on_event: Callable[[Event], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._portal = portal
        self._on_event = on_event
        self._timeout = intent.timeout
        self.purpose = "discover targets" if intent.target is None else f"log in to {intent.target}"
        self.outcome: asyncio.Future[Dialled | LoginFailure] = loop.create_future()
        self._over: asyncio.Future[ConnectionLost | LoggedOut] = loop.create_future()
        now = loop.time()
        cmd_sn = int.from_bytes(random_bytes(4), "big")
        self._session = Session(intent.patience, now, cmd_sn)
        self.transport = SessionTransport(self._session, self._event)
        machine = LoginMachine(
            LoginParameters(
                initiator_name=intent.initiator_name,
                initiator_alias=intent.initiator_alias,
                target_name=intent.target,
                session_type=SessionType.DISCOVERY if intent.target is None else SessionType.NORMAL,
                isid=intent.isid,
                tsih=0,
                cid=LEADING_CID,
                cmd_sn=cmd_sn,
                offer=intent.offer(),
                credentials=intent.credentials,
            ),
            random_bytes,
            _CHALLENGES,
        )
        connection = Connection(self._session, LEADING_CID, machine, self.transport.wake, now + intent.timeout)
        self._session.add_connection(connection)
        self.transport.attach(connection)
        connection.connecting()

    def _event(self, event: Event) -> None:
        if isinstance(event, LoggedIn):
            if not self.outcome.done():
                self.outcome.set_result(Dialled(self._session, self.transport, event.result, self._over))
        elif isinstance(event, LoginFailed):
            self.transport.abort()
            if not self.outcome.done():
                self.outcome.set_result(event.failure)
        elif isinstance(event, ConnectionLost | LoggedOut):
            self._ended(event)
        else:
            self._on_event(event)

    def _ended(self, event: ConnectionLost | LoggedOut) -> None:
        if isinstance(event, LoggedOut):
            self.transport.close()
        else:
            self.transport.abort()
        if not self.outcome.done() and isinstance(event, ConnectionLost) and event.kind is LossKind.LOGIN_TIMEOUT:
            self.outcome.set_exception(self.timed_out())
        elif not self.outcome.done():
            kind = event.kind if isinstance(event, ConnectionLost) else LossKind.LOGOUT
            detail = event.detail if isinstance(event, ConnectionLost) else kind.value
            self.outcome.set_exception(
                BlockfleetError(
                    Isdsc.PROTOCOL_ERROR if kind is LossKind.PROTOCOL else Isdsc.CONNECTION_FAILED,
                    f"cannot {self.purpose} at {self._portal}: {detail}",
                    remedy="check that an iSCSI target serves this portal",
                )
            )
        if not self._over.done():
            self._over.set_result(event)

    def timed_out(self) -> BlockfleetError:
        """Return the error for a login that took too long."""
        return BlockfleetError(
            Isdsc.CONNECTION_FAILED,
            f"cannot {self.purpose} at {self._portal}: no answer within {self._timeout:g} s",
            remedy="check that the portal is reachable and that an iSCSI target serves it",
        )

    def settle(self) -> None:
        """Leave nothing behind an attempt that did not succeed."""
        outcome = self.outcome
        if not outcome.done():
            outcome.cancel()
        elif not outcome.cancelled() and outcome.exception() is None and isinstance(outcome.result(), Dialled):
            return
        self.transport.abort()
