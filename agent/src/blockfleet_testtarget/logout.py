# SPDX-License-Identifier: GPL-3.0-or-later
"""Logout of a session, of a connection, and of a connection for recovery (RFC 3720 10.14, 10.15)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import Op, Pdu, target_header

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.session import Session


class Reason(enum.IntEnum):
    """Reason codes of a request (10.14.1)."""

    SESSION = 0
    CONNECTION = 1
    RECOVERY = 2


class Answer(enum.IntEnum):
    """Responses (10.15.1)."""

    CLOSED = 0
    NO_CID = 1
    NO_RECOVERY = 2
    FAILED = 3


def reason_of(pdu: Pdu) -> int:
    """Return the reason code of a Logout Request."""
    return pdu.flags & 0x7F


def respond(connection: Connection, itt: int, answer: int, times: tuple[int, int]) -> None:
    """Send a Logout Response with Time2Wait and Time2Retain in seconds."""
    header = target_header(
        Op.LOGOUT_RESPONSE,
        byte2=answer,
        itt=itt,
        statsn=connection.take_statsn(),
        word40=times[0] << 16 | times[1],
        window=connection.window(),
    )
    connection.send_status(header)


def acknowledge(connection: Connection, session: Session, pdu: Pdu) -> None:
    """Take the ExpStatSN of a Logout Request: it is that of the connection to be closed (10.14.4)."""
    owner = connection
    if reason_of(pdu) != Reason.SESSION and pdu.cid != connection.cid:
        owner = session.connection_of(pdu.cid) or connection
    owner.acknowledge(pdu.expstatsn)


def log_out(connection: Connection, session: Session, pdu: Pdu) -> None:
    """Carry out a Logout Request and answer it."""
    times, session.logout_times = session.logout_times or session.default_times, None
    reason = reason_of(pdu)
    if reason == Reason.SESSION:
        session.end_tasks(list(session.tasks.values()))
        respond(connection, pdu.itt, Answer.CLOSED, times)
        for other in list(session.connections.values()):
            other.close("logged out" if other is connection else "logged out on another connection")
        session.close()
        return
    victim = session.connection_of(pdu.cid)
    departure = session.cleanup.of(victim) if session.cleanup is not None and victim is not None else None
    if departure is not None and session.cleanup is not None and session.cleanup.early(departure):
        connection.violation(f"Logout of CID {pdu.cid} before Time2Wait has passed")
    if reason != Reason.CONNECTION and (reason != Reason.RECOVERY or session.cleanup is None):
        respond(connection, pdu.itt, Answer.NO_RECOVERY, times)
    elif victim is None:
        respond(connection, pdu.itt, Answer.NO_CID, times)
    elif reason == Reason.CONNECTION:
        _close(connection, session, victim, pdu.itt, times)
    else:
        _remove(connection, session, victim, pdu.itt, times)


def _close(connection: Connection, session: Session, victim: Connection, itt: int, times: tuple[int, int]) -> None:
    victim.removed = True
    session.end_tasks_of(victim)
    respond(connection, itt, Answer.CLOSED, times)
    if session.cleanup is not None:
        departure = session.cleanup.of(victim)
        if departure is not None:
            session.cleanup.forget(departure)
    session.remove_connection(victim)
    victim.close("logged out" if victim is connection else "logged out on another connection")
    session.close_if_empty("logged out")


def _remove(connection: Connection, session: Session, victim: Connection, itt: int, times: tuple[int, int]) -> None:
    respond(connection, itt, Answer.CLOSED, times)
    session.remove_connection(victim)
    if session.cleanup is not None:
        session.cleanup.log_out(victim, times, wait_again=True)
    victim.close("logged out for recovery")
