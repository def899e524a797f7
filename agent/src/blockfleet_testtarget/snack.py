# SPDX-License-Identifier: GPL-3.0-or-later
"""SNACK Requests (RFC 3720 10.16): data, R2Ts and status again, and acknowledgements of data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import MASK32, NO_TAG, Pdu, RejectReason, SnackKind, later, with_window
from blockfleet_testtarget.recovery import RecoverableTask
from blockfleet_testtarget.scsi.sense import SNACK_REJECTED
from blockfleet_testtarget.tasks import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.session import Session


def snack_kind(pdu: Pdu) -> int:
    """Return the type of a SNACK."""
    return pdu.flags & 0x0F


def serve(connection: Connection, session: Session, pdu: Pdu) -> None:
    """Serve a SNACK; raises ProtocolError, whose reason is that of the Reject."""
    handler = _HANDLERS.get(snack_kind(pdu))
    if handler is None:
        raise ProtocolError(f"SNACK of type {snack_kind(pdu)}", RejectReason.INVALID_FIELD)
    handler(connection, session, pdu)


def refuse(connection: Connection, session: Session, pdu: Pdu, reason: int) -> None:
    """Reject a SNACK without serving it. A task that has no status yet ends with 0B/11/13 (6.7)."""
    connection.reject(pdu, reason)
    task = session.find_task(pdu.itt)
    if isinstance(task, RecoverableTask) and task.result is None and not task.running:
        task.spoil(SNACK_REJECTED)
        task.proceed()


def _task_of(connection: Connection, session: Session, pdu: Pdu) -> RecoverableTask:
    task = session.find_task(pdu.itt)
    if not isinstance(task, RecoverableTask):
        raise ProtocolError(f"SNACK for task {pdu.itt:#x}, which is not there", RejectReason.PROTOCOL_ERROR)
    if task.connection is not connection:
        raise ProtocolError("SNACK on a connection that the task does not belong to", RejectReason.PROTOCOL_ERROR)
    return task


def _data(connection: Connection, session: Session, pdu: Pdu) -> None:
    task = _task_of(connection, session, pdu)
    if pdu.ttt != NO_TAG:
        raise ProtocolError("Data SNACK with a Target Transfer Tag", RejectReason.INVALID_FIELD)
    if task.datasn or task.result is not None:
        _data_again(connection, session, pdu, task)
    else:
        _r2ts_again(task, *pdu.run)


def _data_again(connection: Connection, session: Session, pdu: Pdu, task: RecoverableTask) -> None:
    first, length = pdu.run
    if not first and not length:
        first = task.acked
    end = first + length if length else task.datasn
    if not task.acked <= first < end <= task.datasn:
        cause = f"SNACK for DataSN {first} and {length} more where {task.acked} to {task.datasn - 1} are due"
        raise ProtocolError(cause, RejectReason.PROTOCOL_ERROR, task.datasn)
    if task.segment != connection.peer_segment:
        raise ProtocolError(
            "Data SNACK where MaxRecvDataSegmentLength has changed", RejectReason.PROTOCOL_ERROR, task.datasn
        )
    if task.forgotten:
        refuse(connection, session, pdu, RejectReason.SNACK)
        return
    task.resend_data(first, end)


def _r2ts_again(task: RecoverableTask, first: int, length: int) -> None:
    open_ones = {transfer.r2tsn: transfer for transfer in task.transfers.values()}
    if not first and not length:
        wanted = sorted(open_ones)
    else:
        wanted = list(range(first, min(first + length if length else task.r2tsn, task.r2tsn + 1)))
        if not wanted or any(number not in open_ones for number in wanted):
            cause = f"SNACK for R2TSN {first} and {length} more where {sorted(open_ones)} are outstanding"
            raise ProtocolError(cause, RejectReason.PROTOCOL_ERROR, task.r2tsn)
    for number in wanted:
        task.send_r2t(open_ones[number])


def _status(connection: Connection, session: Session, pdu: Pdu) -> None:
    del session
    if connection.log is None:
        return
    if pdu.itt != NO_TAG or pdu.ttt != NO_TAG:
        raise ProtocolError("Status SNACK with a tag", RejectReason.INVALID_FIELD)
    wanted = list(connection.log.sent) if pdu.run == (0, 0) else _run_of_status(connection, *pdu.run)
    if any(number not in connection.log.sent for number in wanted):
        connection.reject(pdu, RejectReason.SNACK)
        return
    for number in wanted:
        status = connection.log.sent[number]
        connection.send(with_window(status.bhs, connection.window()), status.data)


def _run_of_status(connection: Connection, first: int, length: int) -> list[int]:
    end = (first + length) & MASK32 if length else connection.statsn
    if later(connection.acknowledged, first) or later(end, connection.statsn) or not later(end, first):
        cause = (
            f"SNACK for StatSN {first} and {length} more, {connection.acknowledged} to {connection.statsn} are due"
        )
        raise ProtocolError(cause, RejectReason.PROTOCOL_ERROR)
    return [(first + step) & MASK32 for step in range((end - first) & MASK32)]


def _data_ack(connection: Connection, session: Session, pdu: Pdu) -> None:
    if session.retention is None:
        return
    first, length = pdu.run
    if pdu.itt != NO_TAG or length:
        raise ProtocolError("DataACK with an Initiator Task Tag or a RunLength", RejectReason.INVALID_FIELD)
    task, lowest = session.retention.tags.get(pdu.ttt, (None, 0))
    if task is None or task.connection is not connection:
        raise ProtocolError(f"DataACK for tag {pdu.ttt:#x}", RejectReason.INVALID_DATA_ACK)
    if pdu.lun != task.lun_field:
        raise ProtocolError("DataACK with the LUN of another task", RejectReason.INVALID_FIELD)
    if not lowest <= first <= task.datasn:
        cause = f"DataACK up to {first} where {lowest} to {task.datasn} are possible"
        raise ProtocolError(cause, RejectReason.INVALID_DATA_ACK)
    del session.retention.tags[pdu.ttt]
    task.acknowledge_data(first)


def _r_data(connection: Connection, session: Session, pdu: Pdu) -> None:
    task = _task_of(connection, session, pdu)
    if pdu.run != (0, 0):
        raise ProtocolError("R-Data SNACK with a run", RejectReason.INVALID_FIELD)
    if pdu.ttt in (0, NO_TAG) or pdu.ttt in task.snack_tags:
        raise ProtocolError(f"SNACK Tag {pdu.ttt:#x} is reserved or was used", RejectReason.INVALID_FIELD)
    if task.forgotten:
        refuse(connection, session, pdu, RejectReason.SNACK)
        return
    task.resegment(pdu.ttt)


_HANDLERS: dict[int, Callable[[Connection, Session, Pdu], None]] = {
    SnackKind.DATA: _data,
    SnackKind.STATUS: _status,
    SnackKind.DATA_ACK: _data_ack,
    SnackKind.R_DATA: _r_data,
}
