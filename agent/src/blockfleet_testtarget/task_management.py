# SPDX-License-Identifier: GPL-3.0-or-later
"""Task management functions (RFC 3720 10.5, 10.6)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import Op, Pdu, later, target_header
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.inquiry import lun_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.scsi.unit import LogicalUnit
    from blockfleet_testtarget.session import Session
    from blockfleet_testtarget.tasks import Task


class Function(enum.IntEnum):
    """Functions (10.5.1)."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class Answer(enum.IntEnum):
    """Responses (10.6.1)."""

    COMPLETE = 0
    NO_TASK = 1
    NO_LUN = 2
    STILL_ALLEGIANT = 3
    NO_REASSIGNMENT = 4
    NOT_SUPPORTED = 5
    NOT_AUTHORIZED = 6
    REJECTED = 255


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
        respond(connection, pdu.itt, _REFUSED.get(function, Answer.NOT_SUPPORTED))
        return
    action(connection, session, pdu, lun)


def respond(connection: Connection, itt: int, answer: int) -> None:
    """Send a task management response."""
    if not connection.writable:
        return
    header = target_header(
        Op.TASK_RESPONSE, byte2=answer, itt=itt, statsn=connection.take_statsn(), window=connection.window()
    )
    connection.send(header)


def _abort_task(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    del lun
    task = session.tasks.get(pdu.ttt)
    if task is not None:
        task.aborted = True
        task.finish()
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
    remaining = len(tasks)

    def confirmed() -> None:
        respond(connection, itt, Answer.COMPLETE)

    def drained() -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            connection.when_acknowledged(confirmed)

    if not tasks:
        connection.when_acknowledged(confirmed)
    for task in tasks:
        task.on_drained.append(drained)
        task.abort()


def _unit_reset(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    unit = _unit(session, lun)
    _kill(session.endpoint.tasks_of(unit))
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
        _kill(session.endpoint.tasks_of(unit))
        unit.reset(attention)


def _kill(tasks: list[Task]) -> None:
    for task in tasks:
        task.aborted = True
        task.finish()


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
}
_REFUSED: dict[int, Answer] = {Function.TASK_REASSIGN: Answer.NO_REASSIGNMENT}
