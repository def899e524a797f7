# SPDX-License-Identifier: GPL-3.0-or-later
"""R2T PDUs: what the target asks for of a write (RFC 3720 10.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import RESERVED_TAG
from blockfleet.iscsi.layout import R2T
from blockfleet.iscsi.reordering import irregular_r2t

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.fast_abort import Transfer
    from blockfleet.iscsi.task import Task


def r2t(connection: Connection, buffer: bytearray | bytes, at: int, _data: memoryview | None) -> None:
    """Take an R2T: serve it when it is the next one."""
    (*_, lun, tag, transfer_tag, stat_sn, exp_cmd_sn, max_cmd_sn, r2t_sn, offset, length) = R2T.unpack_from(
        buffer, at
    )
    task = connection.tasks.get(tag)
    session = connection.session
    if not session.update_window(exp_cmd_sn, max_cmd_sn):
        return
    recovery = connection.recovery
    if recovery is not None:
        if stat_sn != connection.exp_stat_sn:
            recovery.statuses.shown(stat_sn)
        if task is None:
            session.counters.repeats += 1
            return
    if task is None or task.command.data_out is None:
        connection.protocol_error(f"R2T for tag {tag:#010x}, which writes nothing")
        return
    transfer = (transfer_tag, offset, length)
    fault = _fault(connection, task, task.command.data_out, lun, transfer)
    if fault:
        connection.protocol_error(f"R2T of tag {tag:#010x} {fault}")
        return
    if r2t_sn != task.data_sn or task.sequence is not None:
        irregular_r2t(connection, task, r2t_sn, transfer)
    else:
        task.data_sn = r2t_sn + 1
        connection.serve_r2t(task, transfer)
    if session.pending:
        session.send_pending()


def _fault(connection: Connection, task: Task, data_out: memoryview, lun: int, transfer: Transfer) -> str:
    """Return what is wrong with the fields of an R2T, empty for nothing."""
    transfer_tag, offset, length = transfer
    negotiated = connection.negotiated
    if transfer_tag == RESERVED_TAG:
        return "with the reserved Target Transfer Tag"
    if lun != task.command.lun:
        return f"for LUN {lun:#018x}, which is another one"
    if not 0 < length <= negotiated.max_burst_length:
        return f"for {length} bytes where MaxBurstLength is {negotiated.max_burst_length}"
    if offset + length > len(data_out):
        return f"for {offset}..{offset + length} of {len(data_out)} bytes"
    if task.asked + length > len(data_out) and not task.may_send_again(length):
        return "for data that were asked for before"
    return ""
