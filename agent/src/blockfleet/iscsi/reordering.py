# SPDX-License-Identifier: GPL-3.0-or-later
"""Data-In and R2T PDUs that are not the next ones: gaps, repeats, any order (RFC 3720 6.8, 12.18, 12.19).

At error recovery level 0 only the offsets may be out of order, and only where that was negotiated; anything else
ends the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import DataInFlag
from blockfleet.iscsi.layout import DATA_IN
from blockfleet.iscsi.sequence import MAXIMUM_AHEAD, MAXIMUM_WAITING, Acknowledgement, InputSequence

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.fast_abort import Transfer
    from blockfleet.iscsi.task import Task

_STATUS = int(DataInFlag.STATUS)
_ACKNOWLEDGE = int(DataInFlag.ACKNOWLEDGE)


def irregular_data_in(connection: Connection, buffer: bytearray | bytes, at: int, data: memoryview | None) -> None:
    """Take a Data-In that is not simply the next one of its task; what it carries is in ``data``."""
    (_, flags, status, lengths, lun, tag, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, offset, residual) = (
        DATA_IN.unpack_from(buffer, at)
    )
    session, recovery = connection.session, connection.recovery
    task = session.tasks.get(tag)
    if task is None:
        if recovery is None:
            connection.protocol_error(f"Data-In for tag {tag:#010x}, which is no task")
        else:
            recovery.late_data_in(stat_sn if flags & _STATUS else None)
        return
    if task.reassigned and task.sequence is None and data_sn != task.data_sn:
        task.renumbered(data_sn, offset)
    sequence = task.sequence or InputSequence(task)
    if sequence.has(task, data_sn) and recovery is not None:
        session.counters.repeats += 1
    else:
        fault = _place(connection, task, sequence, (data_sn, offset, lengths & 0xFFFFFF), data)
        if fault:
            connection.protocol_error(fault)
            return
    if not session.update_window(exp_cmd_sn, max_cmd_sn):
        return
    if recovery is not None and flags & _ACKNOWLEDGE:
        sequence.acks.append(Acknowledgement(data_sn, ttt, lun))
    proceed(connection, task, sequence)
    if flags & _STATUS:
        connection.status_in_data(task, flags, status, stat_sn, residual)
    if session.pending:
        session.send_pending()


def _place(
    connection: Connection,
    task: Task,
    sequence: InputSequence,
    header: tuple[int, int, int],
    data: memoryview | None,
) -> str:
    """Put the data of a new Data-In (DataSN, offset, length) where they belong; return what is wrong with it."""
    data_sn, offset, length = header
    target = task.command.data_in
    who = f"tag {task.tag:#010x}"
    if target is None:
        return f"Data-In for {who}, which reads nothing"
    expected, top, recovery = task.data_sn, sequence.top, connection.recovery
    if data_sn != expected and (recovery is None or not expected < data_sn < expected + MAXIMUM_AHEAD):
        return f"DataSN {data_sn} of {who} where {expected} was expected"
    end = offset + length
    agreed = connection.negotiated
    in_order = agreed.data_pdu_in_order and agreed.data_sequence_in_order
    if length and (end > len(target) or (in_order and data_sn == expected and offset != task.received)):
        return f"Data-In at {offset}..{end} of {who}, which has {task.received} bytes"
    if not sequence.take_bytes(offset, end):
        return f"Data-In at {offset}..{end} of {who}, which has some of that"
    if not sequence.take(task, data_sn):
        return f"DataSN {data_sn} of {who}: too many are missing"
    if data is not None:
        target[offset:end] = data
    if recovery is not None:
        recovery.arrived(task, sequence, data_sn, top)
    return ""


def irregular_r2t(connection: Connection, task: Task, r2t_sn: int, r2t: Transfer) -> None:
    """Take an R2T that is not the next one of its task: drop a repeat, hold one that came early."""
    session, recovery = connection.session, connection.recovery
    if task.reassigned and task.sequence is None:
        task.renumbered(r2t_sn)
    sequence = task.sequence or InputSequence(task)
    expected, top = task.data_sn, sequence.top
    if recovery is None or r2t_sn >= expected + MAXIMUM_AHEAD:
        connection.protocol_error(f"R2T of tag {task.tag:#010x} number {r2t_sn} where {expected} was expected")
    elif sequence.has(task, r2t_sn):
        session.counters.repeats += 1
    elif r2t_sn != expected and sequence.waiting_r2ts >= MAXIMUM_WAITING:
        connection.protocol_error(
            f"more than {MAXIMUM_WAITING} R2Ts of tag {task.tag:#010x} wait for a missing one"
        )
    elif not sequence.take(task, r2t_sn, r2t):
        connection.protocol_error(f"R2T of tag {task.tag:#010x} number {r2t_sn}: too many are missing")
    else:
        recovery.arrived(task, sequence, r2t_sn, top)
        proceed(connection, task, sequence)


def proceed(connection: Connection, task: Task, sequence: InputSequence) -> None:
    """Do what waited for the contiguous part to grow, and let go of the sequence when nothing is missing."""
    for r2t in sequence.due_r2ts(task):
        connection.serve_r2t(task, r2t)
    if connection.recovery is not None:
        for ack in sequence.due_acks(task):
            connection.recovery.acknowledge_data(task, ack)
    task.sequence = None if sequence.settled(task) else sequence
