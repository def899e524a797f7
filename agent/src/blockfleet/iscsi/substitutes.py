# SPDX-License-Identifier: GPL-3.0-or-later
"""SCSI Responses in place of other PDUs: what some targets answer to a Status SNACK (RFC 3720 10.16.1).

A target of that kind (``blockfleet.iscsi.quirks``) knows the tag that had a StatSN and not the PDU.  It reports
GOOD for a command that it has rejected and never begun, and for requests that are no SCSI commands at all.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from blockfleet.iscsi.events import QuirkMet
from blockfleet.iscsi.serial import after
from blockfleet.iscsi.status_order import HeldResponse
from blockfleet.iscsi.task import Ping, TaskRequest

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.recovery import Recovery


def met(connection: Connection, tag: int, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> bool:
    """Whether a SCSI Response was the substitute of another PDU; then it has been dealt with.

    It is one if it has a StatSN that was asked for, and a tag that is no task's, or that of a task which the
    target, by its ExpCmdSN, has not taken yet.  A command that was sent again because nothing was heard is in
    doubt until a Reject or its substitute has come.
    """
    session, recovery = connection.session, connection.recovery
    if recovery is None or not recovery.statuses.asked_for(stat_sn):
        return False
    task = session.tasks.get(tag)
    if task is not None and after(exp_cmd_sn, task.cmd_sn) and not session.unacknowledged.in_doubt(task):
        return False
    if session.update_window(exp_cmd_sn, max_cmd_sn):
        what = "a SCSI Response that it sends anew stands for another PDU"
        session.events.append(QuirkMet(connection.cid, session.quirks.kind, what))
        if stat_sn == connection.exp_stat_sn:
            _take(connection, recovery, tag, stat_sn)
        else:
            take = partial(_take, connection, recovery, tag, stat_sn)
            recovery.statuses.hold(stat_sn, HeldResponse(take))
    return True


def _take(connection: Connection, recovery: Recovery, tag: int, stat_sn: int) -> None:
    """Acknowledge the PDU that was lost, and do again what its loss has left open."""
    if not connection.take_status(stat_sn):
        return
    session = connection.session
    request = session.control.get(tag)
    task = session.tasks.get(tag)
    if isinstance(request, Ping):
        del session.control[tag]
        recovery.ping_answered(request)
        if request.on_answer is not None:
            request.on_answer()
    elif isinstance(request, TaskRequest):
        request.again_at = session.now
    elif task is not None and not session.unacknowledged.rejected(session, task):
        session.abort_reported(task, "rejected by the target")
        session.plug(connection, task.cmd_sn)
