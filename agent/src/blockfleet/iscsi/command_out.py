# SPDX-License-Identifier: GPL-3.0-or-later
"""SCSI Command PDUs and the data that go with them unasked (RFC 3720 10.3, 12.10 to 12.14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import RESERVED_TAG, CommandFlag, Opcode
from blockfleet.iscsi.layout import SCSI_COMMAND
from blockfleet.iscsi.pdu import ScsiCommandPdu

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.task import Task

_COMMAND = int(Opcode.SCSI_COMMAND)
_F = int(CommandFlag.FINAL)
_R = int(CommandFlag.READ)
_W = int(CommandFlag.WRITE)
_CDB_IN_BHS = 16


def issue(connection: Connection, task: Task) -> None:
    """Put a numbered command on the wire, for the first time or as a retry (RFC 3720 6.2.1)."""
    command = task.command
    tag = task.tag
    cmd_sn = task.cmd_sn
    data_out = command.data_out
    if len(command.cdb) > _CDB_IN_BHS or (data_out is not None and command.data_in is not None):
        _send_general(connection, task)
    elif data_out is None:
        data_in = command.data_in
        size = 0 if data_in is None else len(data_in)
        flags = _F | _R | command.attribute if size else _F | command.attribute
        connection.send(
            SCSI_COMMAND.pack(
                _COMMAND, flags, 0, command.lun, tag, size, cmd_sn, connection.exp_stat_sn, command.cdb
            )
        )
    else:
        size = len(data_out)
        immediate, unsolicited = _unsolicited(connection, size)
        flags = _W | command.attribute if unsolicited else _F | _W | command.attribute
        header = SCSI_COMMAND.pack(
            _COMMAND, flags, immediate, command.lun, tag, size, cmd_sn, connection.exp_stat_sn, command.cdb
        )
        connection.send(header, data_out[:immediate] if immediate else b"")
        if unsolicited:
            connection.send_burst(task, RESERVED_TAG, immediate, unsolicited)


def _unsolicited(connection: Connection, size: int) -> tuple[int, int]:
    """Return how many bytes go with the command and how many follow it without R2T (RFC 3720 12.10-12.14)."""
    negotiated = connection.negotiated
    first_burst, segment = negotiated.first_burst_length, negotiated.target_max_recv_data_segment_length
    if negotiated.immediate_data and size <= first_burst and size <= segment:
        return size, 0
    burst = min(size, first_burst)
    immediate = min(burst, segment) if negotiated.immediate_data else 0
    return immediate, 0 if negotiated.initial_r2t else burst - immediate


def _send_general(connection: Connection, task: Task) -> None:
    """Send what does not fit the plain header: a long CDB, or both directions (RFC 3720 10.2.2)."""
    command = task.command
    size_out = 0 if command.data_out is None else len(command.data_out)
    size_in = 0 if command.data_in is None else len(command.data_in)
    immediate, unsolicited = _unsolicited(connection, size_out)
    flags = command.attribute | (_R if size_in else 0) | (_W if size_out else 0)
    pdu = ScsiCommandPdu(
        initiator_task_tag=task.tag,
        flags=flags if unsolicited else flags | _F,
        lun=command.lun,
        expected_length=size_out or size_in,
        cmd_sn=task.cmd_sn,
        exp_stat_sn=connection.exp_stat_sn,
        cdb=command.cdb,
        bidirectional_read_length=size_in if size_out and size_in else None,
        data_length=immediate,
    )
    connection.send(pdu.encode(), command.data_out[:immediate] if command.data_out and immediate else b"")
    if unsolicited:
        connection.send_burst(task, RESERVED_TAG, immediate, unsolicited)
