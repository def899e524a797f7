# SPDX-License-Identifier: GPL-3.0-or-later
"""Task management functions: where they are sent, and what is settled by their answers (RFC 3720 10.5, 10.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blockfleet.iscsi import fast_abort
from blockfleet.iscsi.constants import QUERY_FUNCTIONS, RESERVED_TAG, TaskFunction, TaskResponse
from blockfleet.iscsi.pdu import TaskManagementRequest
from blockfleet.iscsi.serial import after
from blockfleet.iscsi.task import Task, TaskRequest

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.session import Session

LUN_FUNCTIONS = frozenset(
    {TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET}
)
SESSION_FUNCTIONS = frozenset(
    {TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET, TaskFunction.I_T_NEXUS_RESET}
)

_NO_LUN = SESSION_FUNCTIONS | {TaskFunction.TASK_REASSIGN}
"""Functions whose LUN field is reserved (10.5.3)."""

_SETTLE_NOTHING = QUERY_FUNCTIONS | {TaskFunction.TASK_REASSIGN}
"""Functions that end no task."""


def ask(
    session: Session,
    function: TaskFunction,
    lun: int,
    now: float,
    on_done: Callable[[TaskResponse | None], None],
    *,
    task: Task | None = None,
    timeout: float | None = None,
) -> None:
    """Send a function; ``task`` is the one that ABORT TASK or QUERY TASK names.

    These go where it is allegiant, any other function anywhere (10.5.1).  None comes back where there
    is no connection to ask on, or no answer came.
    """
    connection = session.live if task is None else task.connection
    if connection is None or not connection.takes_requests:
        on_done(None)
        return
    wait = session.patience.abort if timeout is None else timeout
    request = TaskRequest(function, lun, session.cmd_sn, now + wait, on_done, connection, task)
    _send(session, request, 0 if function in _NO_LUN else lun, 0 if task is None else task.cmd_sn, 0)
    if task is None and fast_abort.agreed(connection):
        fast_abort.silence(session, request, _affected(session, request))


def reassign(
    session: Session,
    task: Task,
    connection: Connection,
    now: float,
    on_done: Callable[[TaskResponse | None], None],
    *,
    lun: int = 0,
    timeout: float | None = None,
) -> None:
    """Ask for a task to go on on ``connection``; ``lun`` is reserved, but there are targets that look at it.

    ExpDataSN acknowledges what a read has received so far (6.2.2, 10.5.6).
    """
    wait = session.patience.abort if timeout is None else timeout
    request = TaskRequest(TaskFunction.TASK_REASSIGN, lun, session.cmd_sn, now + wait, on_done, connection, task)
    _send(session, request, lun, 0, 0 if task.command.data_in is None else task.data_sn)


def _send(session: Session, request: TaskRequest, lun: int, ref_cmd_sn: int, exp_data_sn: int) -> None:
    task = request.task
    pdu = TaskManagementRequest(
        immediate=True,
        initiator_task_tag=session.register(request),
        function=request.function,
        lun=lun,
        referenced_task_tag=RESERVED_TAG if task is None else task.tag,
        cmd_sn=session.cmd_sn,
        exp_stat_sn=request.connection.exp_stat_sn,
        ref_cmd_sn=ref_cmd_sn,
        exp_data_sn=exp_data_sn,
    )
    request.connection.send(pdu.encode())


def ask_again(session: Session, request: TaskRequest) -> None:
    """Ask anew for a function that the target had no room for (10.17.1, reason 6), or whose connection is lost.

    Its time goes on: a target that never has room must not hold up who waits for the answer.
    """
    fast_abort.over(session, request)
    task, now, left = request.task, session.now, max(request.deadline - session.now, 0.0)
    if request.function is TaskFunction.TASK_REASSIGN and task is not None:
        reassign(session, task, request.connection, now, request.on_done, lun=request.lun, timeout=left)
    else:
        ask(session, request.function, request.lun, now, request.on_done, task=task, timeout=left)


def answered(session: Session, request: TaskRequest, response: TaskResponse) -> None:
    """Settle the tasks that a finished function has ended, then tell who asked.

    An answer overtakes what was sent before it on other connections: tasks there are settled when a ping that
    followed the answer has come back, so that no status of theirs is still on its way (10.5.1, 10.6.2).
    """
    settled = {TaskResponse.FUNCTION_COMPLETE}
    if request.function is TaskFunction.ABORT_TASK:
        # A task that does not exist any more cannot run: any status of it came before (StatSN order).
        settled.add(TaskResponse.TASK_DOES_NOT_EXIST)
    if response not in settled or request.function in _SETTLE_NOTHING:
        fast_abort.over(session, request)
        request.on_done(response)
        return
    others = {task.connection for task in _affected(session, request)} - {request.connection}
    elsewhere = [connection for connection in others if connection.takes_requests]
    if elsewhere:
        _Fence(session, request, response, elsewhere)
    else:
        _settle(session, request, response)


class _Fence:
    """An answer that waits until every other connection has delivered what was sent there before it."""

    def __init__(
        self, session: Session, request: TaskRequest, response: TaskResponse, others: list[Connection]
    ) -> None:
        self._session = session
        self._request = request
        self._response = response
        self._waits = len(others)
        for connection in sorted(others, key=lambda one: one.cid):
            session.ping(session.now, connection, self._passed)

    def _passed(self) -> None:
        self._waits -= 1
        if not self._waits:
            _settle(self._session, self._request, self._response)


def _settle(session: Session, request: TaskRequest, response: TaskResponse) -> None:
    for task in _affected(session, request):
        session.abort_reported(task, f"ended by {request.function.name}")
    fast_abort.over(session, request)
    request.on_done(response)


def _affected(session: Session, request: TaskRequest) -> list[Task]:
    if request.task is not None:
        return [request.task] if session.tasks.get(request.task.tag) is request.task else []
    if request.function in LUN_FUNCTIONS:
        luns: int | None = request.lun
    elif request.function in SESSION_FUNCTIONS:
        luns = None
    else:
        return []
    return [
        task
        for task in session.tasks.values()
        if luns in (None, task.command.lun) and after(request.cmd_sn, task.cmd_sn)
    ]
