# SPDX-License-Identifier: GPL-3.0-or-later
"""SCSI Response PDUs, and the residual counts of all that carry status (RFC 3720 10.4, 10.7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi import substitutes
from blockfleet.iscsi.constants import ResponseFlag, ServiceResponse
from blockfleet.iscsi.layout import SCSI_RESPONSE
from blockfleet.iscsi.serial import MASK

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.task import Task

_TARGET_FAILURE = int(ServiceResponse.TARGET_FAILURE)
_VENDOR_RESPONSES = 0x80
_BIDIRECTIONAL_UNDERFLOW = int(ResponseFlag.BIDIRECTIONAL_UNDERFLOW)
_UNDERFLOW = int(ResponseFlag.UNDERFLOW)
BOTH_RESIDUALS = int(ResponseFlag.OVERFLOW | ResponseFlag.UNDERFLOW)
_BOTH_BIDI_RESIDUALS = int(ResponseFlag.BIDIRECTIONAL_OVERFLOW | ResponseFlag.BIDIRECTIONAL_UNDERFLOW)
_ANY_RESIDUAL = BOTH_RESIDUALS | _BOTH_BIDI_RESIDUALS


def scsi_response(
    connection: Connection, buffer: bytearray | bytes, at: int, data: memoryview | None, *, released: bool = False
) -> None:
    """Take a SCSI Response; ``released`` when its turn was waited for."""
    fields = SCSI_RESPONSE.unpack_from(buffer, at)
    _, flags, response, status, _, tag, _, stat_sn, exp_cmd_sn, max_cmd_sn, exp_data_sn, unread, residual = fields
    session = connection.session
    task = connection.tasks.get(tag)
    recovery = connection.recovery
    if recovery is not None and not released:
        anew = session.quirks.answers_snack_by_response
        if anew and substitutes.met(connection, tag, stat_sn, exp_cmd_sn, max_cmd_sn):
            return
        incomplete = task is not None and (exp_data_sn > task.data_sn or task.sequence is not None)
        if incomplete or stat_sn != connection.exp_stat_sn:
            recovery.hold_response(buffer, at, data)
            return
    if stat_sn == connection.exp_stat_sn:
        connection.exp_stat_sn = stat_sn + 1 & MASK
    elif not connection.take_status(stat_sn):
        return
    if not session.update_window(exp_cmd_sn, max_cmd_sn):
        return
    if task is None:
        connection.protocol_error(f"SCSI Response for tag {tag:#010x}, which is no task")
        return
    command = task.command
    if exp_data_sn > task.data_sn and not response and command.data_in is not None and recovery is None:
        connection.protocol_error(f"ExpDataSN {exp_data_sn} of tag {tag:#010x} where {task.data_sn} PDUs came")
        return
    if (response or flags & _ANY_RESIDUAL) and not _is_completion(
        connection, task, flags, response, (unread, residual)
    ):
        return
    command.status = status
    if data is not None and len(data) > 2:
        # The length inside the segment is the peer's word: it is held to the segment (RFC 3720 10.4.7).
        command.sense = bytes(data[2 : 2 + int.from_bytes(data[:2], "big")])
    session.complete(task)
    if session.pending:
        session.send_pending()


def _is_completion(connection: Connection, task: Task, flags: int, response: int, counts: tuple[int, int]) -> bool:
    """Take what most responses do not have; False where the task has no status, or the connection is lost."""
    unread, residual = counts
    if flags & BOTH_RESIDUALS == BOTH_RESIDUALS or flags & _BOTH_BIDI_RESIDUALS == _BOTH_BIDI_RESIDUALS:
        connection.protocol_error("SCSI Response with overflow and underflow together")
        return False
    if _TARGET_FAILURE < response < _VENDOR_RESPONSES:
        connection.protocol_error(f"SCSI Response with the reserved response {response:#04x}")
        return False
    if response:
        connection.session.target_failure(task, response)
        connection.session.send_pending()
        return False
    if flags & _BIDIRECTIONAL_UNDERFLOW:
        task.read_residual = unread
    return not flags & BOTH_RESIDUALS or take_residual(connection, task, flags, residual)


def take_residual(connection: Connection, task: Task, flags: int, residual: int) -> bool:
    """Note how much was left over or was too much; False where that cannot be (RFC 3720 10.4.1, 10.4.5).

    One of the flags is set; they are the same in a SCSI Response and in a Data-In.
    """
    command = task.command
    if flags & _UNDERFLOW and residual > len(command.data_out or command.data_in or b""):
        connection.protocol_error(f"residual {residual} of tag {task.tag:#010x} is more than was expected")
        return False
    command.residual = residual if flags & _UNDERFLOW else -residual
    return True
