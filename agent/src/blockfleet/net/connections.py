# SPDX-License-Identifier: GPL-3.0-or-later
"""The connections of one session: which are wanted, and what is there to see of each."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from blockfleet.balance.policy import LoadBalancePolicy
from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.events import (
    ConnectionClosed,
    ConnectionDropped,
    ConnectionFreed,
    Event,
    ReinstatementWanted,
)
from blockfleet.iscsi.login_failure import FailureKind, LoginFailure, login_error
from blockfleet.iscsi.reconnect import BackOff
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.net.driver import SessionDriver
from blockfleet.net.login import Dialled, Joining

SHARED_ATTEMPT = 3.0
"""Seconds for one login that is to continue a session, while there is another portal to try in turn."""


class ConnectionPhase(enum.StrEnum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    LOGGED_IN = "logged_in"
    RECOVERING = "recovering"
    """Lost; its tasks go on elsewhere, or here after it is back."""
    LEAVING = "leaving"
    """Takes no new commands; logged out when those that it has are done."""
    FAILED = "failed"
    """The last login of it failed; tried again later."""


@dataclass(frozen=True, slots=True)
class ConnectionSpec:
    """A further connection of a session, besides the leading one.

    ``weight`` and ``standby`` matter to the load balance policies that look at them.  Two connections may go to the
    same portal.
    """

    portal: Portal
    weight: int = 0
    standby: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection as it is; ``bytes_in`` and ``bytes_out`` count the data of SCSI commands.

    ``cid`` is None before the first login of a further connection; ``error`` is why it is not logged in.
    """

    cid: int | None
    portal: Portal
    phase: ConnectionPhase
    weight: int
    standby: bool
    commands: int
    in_flight: int
    bytes_in: int
    bytes_out: int
    error: str = ""


Join = Callable[[Portal, Joining, float], Awaitable[Dialled | LoginFailure]]
"""Logs a connection in at a portal within so many seconds; raises :class:`BlockfleetError` without an answer."""


class _Slot:
    """One wanted connection: what it is to be, and what is there."""

    def __init__(self, spec: ConnectionSpec, back_off: BackOff) -> None:
        self.spec = spec
        self.phase = ConnectionPhase.CONNECTING
        self.error = ""
        self.cid: int | None = None
        self.connection: Connection | None = None
        self.wanted = True
        self.back_off = back_off
        self.login: asyncio.Task[None] | None = None
        self._before = (0, 0, 0)
        """Commands and bytes of the connections that were here before."""

    def occupy(self, connection: Connection) -> None:
        """Take a connection that has logged in."""
        self._before = self._totals()
        self.connection = connection
        self.cid = connection.cid
        self.phase = ConnectionPhase.LOGGED_IN
        self.error = ""
        self.back_off.succeeded()

    def _totals(self) -> tuple[int, int, int]:
        commands, bytes_in, bytes_out = self._before
        connection = self.connection
        if connection is None:
            return self._before
        return (
            commands + connection.commands,
            bytes_in + connection.bytes_in,
            bytes_out + connection.bytes_out,
        )

    def status(self) -> ConnectionStatus:
        """Return what there is to see."""
        commands, bytes_in, bytes_out = self._totals()
        return ConnectionStatus(
            self.cid,
            self.spec.portal,
            self.phase,
            self.spec.weight,
            self.spec.standby,
            commands,
            0 if self.connection is None else self.connection.in_flight,
            bytes_in,
            bytes_out,
            self.error,
        )


class ConnectionSet:
    """Keeps the connections of one session as they are wanted, from its leading login until it is over.

    It adds and removes connections under load, and logs lost ones in again.  A login that fails does not touch the
    session; it is tried again with growing pauses.
    """

    def __init__(self, leading: Dialled, target: str, join: Join, random: Callable[[], float]) -> None:
        self._driver: SessionDriver = leading.driver
        self._session = leading.session
        self._maximum = leading.result.negotiated.max_connections
        self._time2wait = leading.result.negotiated.default_time2wait
        self._target = target
        self._join = join
        self._random = random
        self._leading = leading.connection
        self._slots: list[_Slot] = []
        self._removed: list[_Slot] = []
        self._closed = False

    @property
    def statuses(self) -> tuple[ConnectionStatus, ...]:
        """All connections, wanted ones in their order, then those that leave."""
        return tuple(slot.status() for slot in (*self._slots, *self._removed))

    @property
    def is_down(self) -> bool:
        """Whether no connection is left, while the session may still be continued."""
        return self._session.live is None and not self._session.over

    @property
    def logged_in(self) -> list[_Slot]:
        """The wanted connections that are logged in."""
        return [slot for slot in self._slots if slot.phase is ConnectionPhase.LOGGED_IN]

    # -- what is wanted

    def place(self, cid: int) -> int | None:
        """Return which of the wanted connections has a CID, 0 for the leading one."""
        return next((place for place, slot in enumerate(self._slots) if slot.cid == cid), None)

    def remove(self, place: int) -> None:
        """Want one connection no more."""
        self._remove(self._slots.pop(place))

    def check(self, specs: Sequence[ConnectionSpec]) -> None:
        """Raise CANT_REMOVE_LAST_CONNECTION where nothing that is logged in would be left of the session."""
        kept = [slot for slot in self._match(specs) if slot is not None]
        logged_in = self.logged_in
        if logged_in and not any(slot in kept for slot in logged_in):
            raise BlockfleetError(
                Isdsc.CANT_REMOVE_LAST_CONNECTION,
                f"cannot remove the last connection of the session to {self._target} at {logged_in[0].spec.portal}",
                remedy="wait until another connection is logged in, or log the session out",
            )

    def apply(self, specs: Sequence[ConnectionSpec], policy: LoadBalancePolicy) -> None:
        """Make it so: ``specs`` are all wanted connections, the leading one first."""
        matched = self._match(specs)
        before, self._slots = self._slots, []
        for spec, slot in zip(specs, matched, strict=True):
            if slot is None:
                slot = _Slot(spec, BackOff(self._random))  # noqa: PLW2901
                if not before and not self._slots:
                    slot.occupy(self._leading)
            slot.spec = spec
            self._slots.append(slot)
        for rank, slot in enumerate(self._slots):
            if slot.connection is not None:
                connection, spec = slot.connection, slot.spec
                connection.rank, connection.weight, connection.standby = rank, spec.weight, spec.standby
        for slot in before:
            if slot not in self._slots:
                self._remove(slot)
        self._session.set_policy(policy)
        self._session.update_lanes()
        self._session.send_pending()
        self._fill()
        self._driver.drain()

    def _match(self, specs: Sequence[ConnectionSpec]) -> list[_Slot | None]:
        """Return the slot that each spec goes on with: one to the same portal."""
        free = list(self._slots)
        matched: list[_Slot | None] = []
        for spec in specs:
            slot = next((one for one in free if one.spec.portal == spec.portal), None)
            if slot is not None:
                free.remove(slot)
            matched.append(slot)
        return matched

    def _fill(self) -> None:
        """Begin the logins that are wanted and allowed (RFC 3720 12.2)."""
        for place, slot in enumerate(self._slots):
            if slot.connection is not None or slot.login is not None:
                continue
            if place < self._maximum:
                slot.login = asyncio.create_task(self._add(slot, 0.0))
            else:
                slot.phase = ConnectionPhase.FAILED
                slot.error = f"the target allows {self._maximum} connections in a session"

    def _remove(self, slot: _Slot) -> None:
        slot.wanted = False
        if slot.login is not None:
            slot.login.cancel()
            slot.login = None
        if slot.cid is not None and slot.connection is not None:
            slot.phase = ConnectionPhase.LEAVING
            self._removed.append(slot)
            self._session.remove_connection(slot.cid, self._driver.now())

    def leave(self, cid: int, within: float) -> bool:
        """Log out one connection that the target wants closed; False where it is the only one."""
        staying = [one for one in self._session.connections.values() if one.takes_requests and not one.leave_by]
        slot = self._slot(cid)
        if slot is None or not any(one.cid != cid for one in staying):
            return False
        slot.phase = ConnectionPhase.LEAVING
        self._session.remove_connection(cid, self._driver.now(), within)
        self._driver.drain()
        return True

    async def close(self) -> None:
        """Begin no more logins, and leave none half done: the session is over, or is to be logged out."""
        self._closed = True
        logins = [slot.login for slot in (*self._slots, *self._removed) if slot.login is not None]
        for login in logins:
            login.cancel()
        await asyncio.gather(*logins, return_exceptions=True)

    # -- what happens

    def _slot(self, cid: int) -> _Slot | None:
        return next((slot for slot in (*self._slots, *self._removed) if slot.cid == cid), None)

    def take(self, event: Event) -> None:
        """Take an event of the session that is about one connection."""
        slot = self._slot(event.cid) if hasattr(event, "cid") else None
        if slot is None:
            return
        if isinstance(event, ConnectionDropped):
            slot.phase = ConnectionPhase.RECOVERING
            slot.error = event.detail
        elif isinstance(event, ReinstatementWanted):
            slot.login = asyncio.create_task(self._reinstate(slot, event))
        elif isinstance(event, ConnectionFreed | ConnectionClosed):
            slot.cid = None
            if self._closed or self._session.over:
                slot.phase = ConnectionPhase.LEAVING
            elif slot in self._removed:
                self._removed.remove(slot)
                self._fill()
            elif slot.wanted:
                wait = self._time2wait if isinstance(event, ConnectionClosed) else 0.0
                slot.phase = ConnectionPhase.CONNECTING
                slot.login = asyncio.create_task(self._add(slot, wait))

    def _joining(self, slot: _Slot, cid: int, exp_stat_sn: int = 0) -> Joining:
        rank = self._slots.index(slot) if slot in self._slots else len(self._slots)
        return Joining(self._driver, cid, exp_stat_sn, rank, slot.spec.weight, slot.spec.standby)

    def _free_cid(self) -> int:
        taken = {slot.cid for slot in (*self._slots, *self._removed)} | set(self._session.connections)
        return next(cid for cid in range(len(taken) + 1) if cid not in taken)

    async def _add(self, slot: _Slot, wait: float) -> None:
        """Log a connection in, however often it takes."""
        while True:
            await asyncio.sleep(wait)
            cid = slot.cid = self._free_cid()
            outcome = await self._attempt(slot, self._joining(slot, cid))
            if outcome is None:
                slot.login = None
                return
            slot.cid = None
            slot.phase = ConnectionPhase.FAILED
            refused = isinstance(outcome, LoginFailure) and not outcome.retry
            if isinstance(outcome, LoginFailure) and outcome.kind is FailureKind.NO_SESSION:
                # If that is true of the whole session, its other connections will show it now.
                self._session.ping(self._driver.now())
                self._driver.drain()
            wait = slot.back_off.refused() if refused else slot.back_off.failed()

    async def _attempt(
        self, slot: _Slot, joining: Joining, within: float = float("inf")
    ) -> LoginFailure | BlockfleetError | None:
        """Make one attempt; None for success."""
        portal = slot.spec.portal
        try:
            outcome = await self._join(portal, joining, within)
        except BlockfleetError as error:
            slot.error = str(error)
            return error
        if isinstance(outcome, LoginFailure):
            slot.error = str(login_error(outcome, self._target, portal))
            return outcome
        slot.occupy(outcome.connection)
        return None

    async def _reinstate(self, slot: _Slot, event: ReinstatementWanted) -> None:
        """Continue the session, which has no connection left, with one attempt; the session asks for the next."""
        within = event.within
        if sum(one.phase is ConnectionPhase.RECOVERING for one in self._slots) > 1:
            within = min(within, SHARED_ATTEMPT)
        outcome = await self._attempt(slot, self._joining(slot, event.cid, event.exp_stat_sn), within)
        slot.login = None
        if outcome is None:
            return
        self._driver.now()
        if isinstance(outcome, LoginFailure) and not outcome.retry:
            self._session.recovery.abandon(f"the session could not be continued: {slot.error}")
        else:
            self._session.recovery.reinstatement_failed(event.cid)
        self._driver.drain()
