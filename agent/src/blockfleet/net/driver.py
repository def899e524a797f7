# SPDX-License-Identifier: GPL-3.0-or-later
"""One session on asyncio: its transports, one timer for all of them, and who is told of its events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from blockfleet.iscsi.events import (
    ConnectionClosed,
    ConnectionDropped,
    ConnectionLost,
    Event,
    LoggedIn,
    LoggedOut,
    LoginFailed,
)
from blockfleet.iscsi.login import LoginResult
from blockfleet.iscsi.session import Session

if TYPE_CHECKING:
    from blockfleet.net.transport import SessionTransport


class SessionDriver:
    """Drives one :class:`~blockfleet.iscsi.session.Session`.

    ``on_event`` is called for each event that is neither a login's nor the session's end, in order, after the
    entry point that caused it.  ``over`` is done when the session has ended, after its commands were completed;
    after a logout, not before its connections are closed.
    """

    def __init__(self, session: Session, on_event: Callable[[Event], None]) -> None:
        self.session = session
        self.result: LoginResult | None = None
        """Of the leading login."""
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[ConnectionLost | LoggedOut] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._transports: dict[int, SessionTransport] = {}
        self._logins: dict[int, Callable[[Event], None]] = {}
        self._leaving: set[SessionTransport] = set()
        self._logged_out: LoggedOut | None = None

    def carry(self, cid: int, transport: SessionTransport, on_login: Callable[[Event], None]) -> None:
        """Take the transport of a connection that logs in; ``on_login`` is told what becomes of the login."""
        self._transports[cid] = transport
        self._logins[cid] = on_login

    def login_over(self, cid: int) -> None:
        """Tell nobody of this login any more."""
        self._logins.pop(cid, None)

    def now(self) -> float:
        """Tell the session what time it is, for what comes without bytes."""
        self.session.now = self._loop.time()
        return self.session.now

    def drain(self) -> None:
        """Pass on what a call into the session has caused, and set the timer."""
        events = self.session.events
        while events:
            self._pass_on(events.popleft())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.session.next_deadline()
        if deadline != float("inf"):
            self._timer = self._loop.call_at(deadline, self._tick)

    def gone(self, transport: SessionTransport) -> None:
        """Note that a transport is closed."""
        self._leaving.discard(transport)
        self._settle()

    def abort(self) -> None:
        """Reset all connections: nothing that is still unsent here may reach the target any more."""
        for transport in (*self._transports.values(), *self._leaving):
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self.session.advance(self._loop.time())
        self.drain()

    def _pass_on(self, event: Event) -> None:
        if isinstance(event, LoggedIn | LoginFailed):
            if isinstance(event, LoginFailed):
                self._transports.pop(event.cid).abort()
            elif self.result is None:
                self.result = event.result
            self._tell_login(event.cid, event)
        elif isinstance(event, ConnectionLost | LoggedOut):
            self._ended(event)
        else:
            if isinstance(event, ConnectionDropped):
                self._transports.pop(event.cid).abort()
            elif isinstance(event, ConnectionClosed):
                self._leave(self._transports.pop(event.cid))
            self._on_event(event)

    def _ended(self, event: ConnectionLost | LoggedOut) -> None:
        if isinstance(event, ConnectionLost) and not self.session.over:
            transport = self._transports.pop(event.cid, None)
            if transport is not None:
                transport.abort()
            self._tell_login(event.cid, event)
            return
        transports, self._transports = self._transports, {}
        for transport in transports.values():
            if isinstance(event, LoggedOut):
                self._leave(transport)
            else:
                transport.abort()
        for cid in list(self._logins):
            self._tell_login(cid, event)
        if isinstance(event, LoggedOut):
            self._logged_out = event
            self._settle()
        elif not self.over.done():
            self.over.set_result(event)

    def _leave(self, transport: SessionTransport) -> None:
        if transport.leave():
            self._leaving.add(transport)

    def _settle(self) -> None:
        if self._logged_out is not None and not self._leaving and not self.over.done():
            self.over.set_result(self._logged_out)

    def _tell_login(self, cid: int, event: Event) -> None:
        told = self._logins.pop(cid, None)
        if told is not None:
            told(event)
