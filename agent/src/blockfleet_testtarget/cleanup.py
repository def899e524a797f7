# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that are gone while their tasks wait: recovery level 2 (RFC 3720 6.1.4.3, 6.4, 7.2, 10.14)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import AsyncEvent

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.session import Session

EARLY_TOLERANCE = 0.05  # seconds by which the clocks of the two sides may differ
DEPARTURE_LIMIT = 256  # connections of one session that wait at a time


class Departure:
    """A connection in CLEANUP_WAIT (7.2.1), or logged out for recovery while its tasks wait.

    `earliest` is when recovery may begin, in the loop's time.
    """

    __slots__ = ("connection", "earliest", "logged_out", "timer")

    def __init__(self, connection: Connection, earliest: float) -> None:
        self.connection = connection
        self.earliest = earliest
        self.logged_out = False
        self.timer: asyncio.TimerHandle | None = None


class Cleanup:
    """The departures of one session. It ends the session when the last of them times out."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.departures: list[Departure] = []

    def find(self, cid: int) -> Departure | None:
        """Return the departure that waits for the logout of a CID."""
        return next((one for one in self.departures if not one.logged_out and one.connection.cid == cid), None)

    def of(self, connection: Connection) -> Departure | None:
        """Return the departure of a connection."""
        return next((one for one in self.departures if one.connection is connection), None)

    def failed(self, connection: Connection) -> None:
        """A connection failed: it waits for a logout, its tasks for another connection (S8)."""
        connection.removed = True
        session = self.session
        wait, retain = connection.announced or session.default_times
        session.end_tasks([task for task in session.tasks_of_connection(connection) if task.immediate])
        departure = self._add(connection, wait)
        session.suspend_tasks(connection)
        self._expire_after(departure, wait, retain)
        if session.endpoint.config.announce_lost and connection.announced is None:
            others = [other for other in session.connections.values() if other.operational]
            for other in others[:1]:
                other.send_async(AsyncEvent.DROP_CONNECTION, (connection.cid, wait, retain))

    def log_out(self, connection: Connection, times: tuple[int, int], *, wait_again: bool) -> None:
        """Log a connection out for recovery: what is not delivered is discarded, its tasks wait.

        `times` are Time2Wait and Time2Retain, in seconds; with `wait_again` Time2Wait begins anew.
        """
        connection.removed = True
        session = self.session
        wait, retain = times
        departure = self.of(connection) or self._add(connection, 0)
        departure.logged_out = True
        if wait_again:
            departure.earliest = asyncio.get_running_loop().time() + wait
        session.discard_waiting(connection)
        session.suspend_tasks(connection)
        self._expire_after(departure, wait, retain)

    def early(self, departure: Departure) -> bool:
        """Whether recovery is attempted before Time2Wait has passed."""
        return asyncio.get_running_loop().time() < departure.earliest - EARLY_TOLERANCE

    def forget(self, departure: Departure) -> None:
        """Stop to wait: the connection is closed for good."""
        if departure.timer is not None:
            departure.timer.cancel()
        if departure in self.departures:
            self.departures.remove(departure)

    def close(self) -> None:
        """Stop to wait for any."""
        for departure in list(self.departures):
            self.forget(departure)

    def _add(self, connection: Connection, wait: float) -> Departure:
        departure = Departure(connection, asyncio.get_running_loop().time() + wait)
        self.departures.append(departure)
        if len(self.departures) > DEPARTURE_LIMIT:
            self._expire(self.departures[0])
        return departure

    def _expire_after(self, departure: Departure, wait: int, retain: int) -> None:
        if departure.timer is not None:
            departure.timer.cancel()
        if not retain:  # "the target has already discarded the connection state" (10.15.4)
            self._expire(departure)
            return
        departure.timer = asyncio.get_running_loop().call_later(wait + retain, self._expire, departure)

    def _expire(self, departure: Departure) -> None:
        self.forget(departure)
        session = self.session
        session.endpoint.note(f"state of connection {departure.connection.number} timed out")
        session.end_tasks_of(departure.connection)
        session.close_if_empty("session timed out")
