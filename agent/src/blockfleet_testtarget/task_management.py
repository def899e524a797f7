# SPDX-License-Identifier: GPL-3.0-or-later
"""Task management functions (RFC 3720 10.5, 10.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import Pdu, later
from blockfleet_testtarget.reassign import reassign
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.inquiry import lun_number
from blockfleet_testtarget.task_responses import Answer, Function, respond

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.scsi.unit import LogicalUnit
    from blockfleet_testtarget.session import Session
    from blockfleet_testtarget.tasks import Task


NEEDS_LUN = frozenset({Function.ABORT_TASK_SET, Function.CLEAR_TASK_SET, Function.LOGICAL_UNIT_RESET})


def carry_out(connection: Connection, session: Session, pdu: Pdu) -> None:
    """Execute a task management request and answer it, perhaps later."""
    function = pdu.flags & 0x7F
    lun = lun_number(pdu.lun)
    if function in NEEDS_LUN and lun not in session.luns:
        respond(connection, pdu.itt, Answer.NO_LUN)
        return
    action = _ACTIONS.get(function)
    if action is None:
        respond(connection, pdu.itt, Answer.NOT_SUPPORTED)
        return
    action(connection, session, pdu, lun)


def _abort_task(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    del lun
    task = session.tasks.get(pdu.ttt)
    if task is not None:
        if task.connection is not connection and task.connection.operational:
            connection.violation("ABORT TASK on another connection than that of the task")
        task.aborted = True
        task.finish()
        respond(connection, pdu.itt, Answer.COMPLETE)
        return
    ended = session.retention.tasks.get(pdu.ttt) if session.retention is not None else None
    if ended is not None and ended.suspended:
        ended.conclude(connection)  # its status comes first (10.5.1)
        respond(connection, pdu.itt, Answer.COMPLETE)
        return
    # The command may have been lost: its CmdSN then counts as received (10.6.1 b).
    reference = pdu.refcmdsn
    if not later(session.expcmdsn, reference) and later(pdu.cmdsn, reference):
        session.skip(reference)
        respond(connection, pdu.itt, Answer.COMPLETE)
    else:
        respond(connection, pdu.itt, Answer.NO_TASK)


def _abort_set(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    _end_tasks(connection, pdu.itt, session.tasks_of(lun))


def _clear_set(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    unit = _unit(session, lun)
    tasks = session.endpoint.tasks_of(unit)
    for other in {task.session for task in tasks} - {session}:
        unit.attention_for(other.nexus, conditions.CLEARED_BY_OTHER)
    _end_tasks(connection, pdu.itt, tasks)


def _end_tasks(connection: Connection, itt: int, tasks: list[Task]) -> None:
    # 10.6.2: all tags answered first, then all status acknowledged, then the response.
    session = connection.session
    remaining = len(tasks)
    unconfirmed = 0

    def confirmed() -> None:
        nonlocal unconfirmed
        unconfirmed -= 1
        if not unconfirmed and session is not None:
            session.managing.discard(itt)
            respond(connection, itt, Answer.COMPLETE)

    def confirm() -> None:
        nonlocal unconfirmed
        connections = list(session.connections.values()) if session is not None else []
        unconfirmed = len(connections)
        for each in connections:
            each.when_acknowledged(confirmed)

    def drained() -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            confirm()

    if session is not None:
        session.managing.add(itt)
    if not tasks:
        confirm()
    for task in tasks:
        task.on_drained.append(drained)
        task.abort()


def _unit_reset(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    unit = _unit(session, lun)
    _kill_all(session, unit)
    unit.reset(conditions.UNIT_RESET)
    respond(connection, pdu.itt, Answer.COMPLETE)


def _warm_reset(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    del lun
    _reset_all(session, conditions.BUS_RESET)
    respond(connection, pdu.itt, Answer.COMPLETE)


def _cold_reset(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    del lun
    _reset_all(session, conditions.POWER_ON)
    respond(connection, pdu.itt, Answer.COMPLETE)
    for other in list(session.endpoint.sessions):
        if other.node is session.node:
            other.close(cause="target cold reset")


def _reset_all(session: Session, attention: conditions.Sense) -> None:
    if session.node is None:
        return
    for unit in session.node.luns.values():
        _kill_all(session, unit)
        unit.reset(attention)


def _kill_all(session: Session, unit: LogicalUnit) -> None:
    endpoint = session.endpoint
    for task in endpoint.tasks_of(unit):
        task.aborted = True
        task.finish()
    # What ended while it had no connection must not be answered after the reset either (10.5.1).
    for other in endpoint.sessions:
        if other.retention is not None and other.node is not None:
            lost = [task for task in other.retention.tasks.values() if task.suspended]
            for task in lost:
                if other.node.luns.get(task.lun) is unit:
                    other.retention.release(task)


def _unit(session: Session, lun: int) -> LogicalUnit:
    if session.node is None:
        raise LookupError("a discovery session has no units")
    return session.node.luns[lun]


_ACTIONS: dict[int, Callable[[Connection, Session, Pdu, int], None]] = {
    Function.ABORT_TASK: _abort_task,
    Function.ABORT_TASK_SET: _abort_set,
    Function.CLEAR_TASK_SET: _clear_set,
    Function.LOGICAL_UNIT_RESET: _unit_reset,
    Function.TARGET_WARM_RESET: _warm_reset,
    Function.TARGET_COLD_RESET: _cold_reset,
    Function.TASK_REASSIGN: reassign,
}
