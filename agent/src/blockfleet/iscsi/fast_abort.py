# SPDX-License-Identifier: GPL-3.0-or-later
"""TaskReporting=FastAbort: what an initiator does for functions that end many tasks (RFC 7143 4.2.3.4, 11.9.1).

After such a function was sent no Data-Out follows for the tasks that it affects.  Should the target refuse the
function, what was asked for meanwhile is sent after all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import QUERY_FUNCTIONS
from blockfleet.iscsi.keys import FAST_ABORT
from blockfleet.iscsi.pdu import NopOut

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.session import Session
    from blockfleet.iscsi.task import Task, TaskRequest

Transfer = tuple[int, int, int]
"""Target Transfer Tag, offset and length of an R2T."""


def agreed(connection: Connection) -> bool:
    """Whether the session runs with FastAbort."""
    return connection.negotiated.task_reporting == FAST_ABORT


def silence(session: Session, request: TaskRequest, tasks: list[Task]) -> None:
    """Serve none of ``tasks`` until the function is answered."""
    if request.function in QUERY_FUNCTIONS:
        return
    for task in tasks:
        if task.tag not in session.silenced:
            session.silenced[task.tag] = []
            request.silenced.append(task.tag)


def serve(connection: Connection, task: Task, transfer: Transfer) -> None:
    """Take an R2T while some tasks are silenced; bounded by MaxOutstandingR2T."""
    withheld = connection.session.silenced.get(task.tag)
    if withheld is None:
        connection.send_burst(task, *transfer)
    elif len(withheld) < connection.negotiated.max_outstanding_r2t:
        withheld.append(transfer)
    else:
        connection.protocol_error(f"more R2Ts of tag {task.tag:#010x} than MaxOutstandingR2T allows")


def over(session: Session, request: TaskRequest) -> None:
    """Serve again what the function has left alive."""
    for tag in request.silenced:
        withheld = session.silenced.pop(tag, [])
        task = session.tasks.get(tag)
        if task is not None:
            for transfer in withheld:
                task.connection.send_burst(task, *transfer)


def forget(session: Session) -> None:
    """Drop what is kept of tasks that have ended."""
    for tag in [tag for tag in session.silenced if tag not in session.tasks]:
        del session.silenced[tag]


def tasks_terminated(connection: Connection, lun: int) -> None:
    """Obey asynchronous event 5: the target ends all tasks of a logical unit, for another initiator perhaps.

    They are served no more, the event is acknowledged at once, and the tasks are asked for one by one at the
    next look at the deadlines: the target may send no response for them.
    """
    session = connection.session
    for task in session.tasks.values():
        if task.command.lun == lun and task.connection is connection:
            session.silenced.setdefault(task.tag, [])
            task.deadline = session.now
    answer = NopOut(immediate=True, lun=lun, cmd_sn=session.cmd_sn, exp_stat_sn=connection.exp_stat_sn)
    connection.send(answer.encode())
