# SPDX-License-Identifier: GPL-3.0-or-later
"""TASK REASSIGN (RFC 3720 6.2.2, 10.5, 10.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet_testtarget.recovery import RecoverableTask
from blockfleet_testtarget.task_responses import Answer, respond

if TYPE_CHECKING:
    from blockfleet_testtarget.codec import Pdu
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.session import Session


def reassign(connection: Connection, session: Session, pdu: Pdu, lun: int) -> None:
    """Give a task to the connection that asks for it; the answer comes first, then what it still has to get."""
    del lun
    cleanup = session.cleanup
    if cleanup is None:
        respond(connection, pdu.itt, Answer.NO_REASSIGNMENT)
        return
    if not pdu.immediate:
        connection.violation("TASK REASSIGN that is not immediate")
    task = session.find_task(pdu.ttt)
    if not isinstance(task, RecoverableTask):
        answer = Answer.REJECTED if session.is_other_task(pdu.ttt) else Answer.NO_TASK
        respond(connection, pdu.itt, answer)
        return
    departure = cleanup.of(task.connection)
    if departure is None or not departure.logged_out:
        respond(connection, pdu.itt, Answer.STILL_ALLEGIANT)
        return
    if cleanup.early(departure):
        connection.violation(f"TASK REASSIGN of {task.itt:#x} before Time2Wait has passed")
    respond(connection, pdu.itt, Answer.COMPLETE)
    session.endpoint.note(f"task {task.itt:#x} reassigned to connection {connection.number}")
    task.resume(connection, pdu.datasn)
