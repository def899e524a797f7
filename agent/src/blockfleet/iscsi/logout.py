# SPDX-License-Identifier: GPL-3.0-or-later
"""Logging out: the session, one connection, or a lost connection for recovery (RFC 3720 10.14, 10.15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import LogoutReason, LogoutResponseCode
from blockfleet.iscsi.events import ConnectionClosed, LossKind, QuirkMet
from blockfleet.iscsi.pdu import LogoutRequest as LogoutPdu
from blockfleet.iscsi.pdu import LogoutResponse
from blockfleet.iscsi.states import ConnectionEvent, ConnectionState
from blockfleet.iscsi.task import LogoutRequest

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.session import Session


def send(session: Session, via: Connection, reason: LogoutReason, subject: Connection, now: float) -> None:
    """Send a Logout Request on ``via`` that ends ``subject``, which may be the same, or the session with all."""
    request = LogoutRequest(now + session.patience.logout, via, reason, subject.cid)
    pdu = LogoutPdu(
        immediate=True,
        initiator_task_tag=session.register(request),
        reason=reason,
        cid=0 if reason is LogoutReason.CLOSE_SESSION else subject.cid,
        cmd_sn=session.cmd_sn,
        # That of the connection to be closed, whichever carries the request (RFC 3720 10.14.4).
        exp_stat_sn=subject.exp_stat_sn,
    )
    via.send(pdu.encode())


def close_session(session: Session, now: float) -> None:
    """Log out the session by the connection preferred (RFC 3720 5.3.5)."""
    last = session.live
    if last is None:
        return
    if session.quirks.connections_leave_first:
        others = [one for one in session.connections.values() if one is not last and one.takes_requests]
        for connection in others:
            connection.states.on(ConnectionEvent.LOGOUT)
            send(session, connection, LogoutReason.CLOSE_CONNECTION, connection, now)
        if _others_leave(session):
            what = "connections are logged out before their session"
            session.events.append(QuirkMet(last.cid, session.quirks.kind, what))
            return
    _close_with(session, last, now)


def _close_with(session: Session, last: Connection, now: float) -> None:
    last.states.on(ConnectionEvent.LOGOUT)
    send(session, last, LogoutReason.CLOSE_SESSION, last, now)
    session.update_lanes()


def departed(session: Session, now: float) -> None:
    """Log out the session once the connections that have to go first are gone."""
    if session.live is not None and session.quirks.connections_leave_first and not _others_leave(session):
        _close_with(session, session.live, now)


def _others_leave(session: Session) -> bool:
    leaving = (one.states.state is ConnectionState.IN_LOGOUT for one in session.connections.values())
    return bool(session.departing) or any(leaving)


def remove_when_drained(session: Session, now: float) -> None:
    """Log out the connections that are to leave once their tasks are done, or have had their time."""
    for connection in list(session.connections.values()):
        due = connection.leave_by
        if due and connection.takes_requests and (not connection.in_flight or now >= due):
            connection.states.on(ConnectionEvent.LOGOUT)
            send(session, connection, LogoutReason.CLOSE_CONNECTION, connection, now)
            session.update_lanes()


def answered(connection: Connection, request: LogoutRequest, pdu: LogoutResponse) -> None:
    """Do what a Logout Response says (RFC 3720 10.15.1)."""
    session = connection.session
    code = pdu.response
    if request.reason is LogoutReason.REMOVE_FOR_RECOVERY:
        session.recovery.logout_answered(request.cid, code, float(pdu.time2wait), float(pdu.time2retain))
    elif code != LogoutResponseCode.SUCCESS:
        wait, retain = (
            (None, None) if code == LogoutResponseCode.CID_NOT_FOUND else (pdu.time2wait, pdu.time2retain)
        )
        connection.lose(LossKind.LOGOUT, f"logout answered with {code}", wait, retain)
    elif request.reason is LogoutReason.CLOSE_SESSION or _is_last(session, connection):
        session.closed(connection)
    elif connection.stop(ConnectionEvent.LOGGED_OUT):
        session.departing.add(connection)
        session.forget_connection(connection)
        session.recovery.terminated(connection)
        session.events.append(ConnectionClosed(connection.cid))


def _is_last(session: Session, connection: Connection) -> bool:
    """Whether the target has no session any more once it has closed this connection (RFC 3720 10.14.1)."""
    others = (one for one in session.connections.values() if one is not connection)
    return not session.recovery.holds and not any(one.takes_data for one in others)


def unanswered(session: Session, request: LogoutRequest, why: str) -> None:
    """Go on without the answer to a Logout Request."""
    if request.reason is LogoutReason.REMOVE_FOR_RECOVERY:
        session.recovery.logout_failed(request.cid)
    else:
        request.connection.lose(LossKind.LOGOUT, why)
