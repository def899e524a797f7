# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session does when time passes: login limit, keepalive, stuck commands, late answers.

Command deadlines are looked at once in :data:`SCAN_INTERVAL` and not kept in a heap: a command costs nothing
here while it is in time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from blockfleet.iscsi import confirmation, fast_abort, logout, task_management
from blockfleet.iscsi.constants import TaskFunction, TaskResponse
from blockfleet.iscsi.events import LossKind
from blockfleet.iscsi.states import ConnectionState
from blockfleet.iscsi.task import AbortStage, LogoutRequest, Ping, Task, TaskRequest, TextRequest

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.session import Session

SCAN_INTERVAL = 0.5
"""Seconds between two looks at the deadlines; a time-out is noticed at most so much late."""

_LOGGING_IN = (ConnectionState.XPT_WAIT, ConnectionState.IN_LOGIN)

_NEXT_FUNCTION = {
    AbortStage.NONE: (AbortStage.ABORT_TASK, TaskFunction.ABORT_TASK),
    AbortStage.ABORT_TASK: (AbortStage.LUN_RESET, TaskFunction.LOGICAL_UNIT_RESET),
    AbortStage.LUN_RESET: (AbortStage.TARGET_WARM_RESET, TaskFunction.TARGET_WARM_RESET),
}
"""The ladder for a command that does not finish (RFC 3720 6.9); above it the session is dropped."""


def next_deadline(session: Session) -> float:
    """Return the time of the next thing to do; infinity when nothing is under way."""
    if session.over:
        return float("inf")
    deadline = session.recovery.next_deadline()
    in_use = session.recovery.holds
    for connection in session.connections.values():
        if connection.states.state in _LOGGING_IN:
            deadline = min(deadline, connection.login_deadline)
        elif connection.takes_data:
            in_use = True
            deadline = min(deadline, _ping_due(session, connection))
    return min(deadline, session.next_scan) if in_use else deadline


def _ping_due(session: Session, connection: Connection) -> float:
    patience = session.patience
    if not patience.noop_interval or not connection.takes_requests:
        return float("inf")
    ping = _outstanding_ping(session, connection)
    if ping is None:
        return connection.last_heard + patience.noop_interval
    # Where PDUs may be lost one by one, a ping gets a second one within the time of the first.
    share = 1 if connection.recovery is None else 2
    return max(ping.sent, connection.last_heard) + patience.noop_timeout / share


def _outstanding_ping(session: Session, connection: Connection) -> Ping | None:
    pings = (request for request in session.control.values() if isinstance(request, Ping))
    return next((ping for ping in pings if ping.connection is connection), None)


def advance(session: Session, now: float) -> None:
    """Do whatever is due at ``now``."""
    for connection in list(session.connections.values()):
        if session.over:
            return
        if connection.states.state in _LOGGING_IN and now >= connection.login_deadline:
            connection.lose(LossKind.LOGIN_TIMEOUT, "login was not finished in time")
        elif now >= _ping_due(session, connection):
            _keep_alive(session, connection, now)
    session.recovery.advance(now)
    if now >= session.next_scan and not session.over:
        session.next_scan = now + SCAN_INTERVAL
        _scan_recovery(session, now)
        logout.remove_when_drained(session, now)
        _scan_requests(session, now)
        _scan_tasks(session, now)
        for connection in session.connections.values():
            if connection.takes_requests:
                confirmation.scan(session, connection, now)
        fast_abort.forget(session)


def _scan_recovery(session: Session, now: float) -> None:
    for connection in list(session.connections.values()):
        if connection.recovery is not None and connection.takes_data:
            connection.recovery.scan(now)
    live = session.live
    if live is not None and live.recovery is not None:
        session.unacknowledged.scan(session, now)


def _keep_alive(session: Session, connection: Connection, now: float) -> None:
    ping, recovery = _outstanding_ping(session, connection), connection.recovery
    if ping is None:
        session.ping(now, connection)
    elif recovery is not None and recovery.ping_lost():
        recovery.ping_answered(ping)
        session.ping(now, connection)
    else:
        silence = now - connection.last_heard
        connection.lose(LossKind.KEEPALIVE, f"no answer to a ping, {silence:.1f} s of silence")


def _scan_requests(session: Session, now: float) -> None:
    for tag, request in list(session.control.items()):
        # The end of one may have been that of others.
        if session.control.get(tag) is not request:
            continue
        if isinstance(request, TaskRequest) and 0 < request.again_at <= now < request.deadline:
            del session.control[tag]
            task_management.ask_again(session, request)
            continue
        if isinstance(request, Ping) or now < request.deadline:
            continue
        del session.control[tag]
        if isinstance(request, LogoutRequest):
            logout.unanswered(session, request, "no answer to Logout Request")
            if session.over:
                return
        elif isinstance(request, TextRequest):
            request.on_done("no answer to Text Request")
        elif isinstance(request, TaskRequest):
            fast_abort.over(session, request)
            request.on_done(None)


def _scan_tasks(session: Session, now: float) -> None:
    for task in [t for t in session.pending if t.deadline and now >= t.deadline]:
        session.expire_pending(task)
    for task in [t for t in session.tasks.values() if t.deadline and now >= t.deadline]:
        if session.tasks.get(task.tag) is not task or session.recovery.cares_for(task):
            continue
        session.counters.timeouts += 1
        step = _NEXT_FUNCTION.get(task.abort_stage)
        if step is not None and step[0] is AbortStage.TARGET_WARM_RESET and not session.patience.target_reset:
            step = None
        if step is None:
            cdb = task.command.cdb.hex()
            task.connection.lose(LossKind.STUCK_TASK, f"command {cdb} neither finished nor was aborted")
            return
        task.abort_stage, function = step
        task.deadline = now + session.patience.abort
        session.manage_task(
            function,
            task.command.lun,
            now,
            partial(_answered, session, task),
            task=task if function is TaskFunction.ABORT_TASK else None,
        )


def _answered(session: Session, task: Task, response: TaskResponse | None) -> None:
    """Climb the ladder at the next scan where a function was answered and did not end the task."""
    if response is not None:
        task.deadline = session.now
