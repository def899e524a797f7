# SPDX-License-Identifier: GPL-3.0-or-later
"""PDUs that carry SCSI commands, their data and task management (RFC 3720 10.3 to 10.8)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blockfleet.iscsi import layout
from blockfleet.iscsi.constants import FINAL_BIT, RESERVED_TAG, TASK_ATTRIBUTE_MASK, AhsType, Opcode
from blockfleet.iscsi.pdu_codec import Pdu, PduError, decode_ahs, encode_ahs

MAXIMUM_CDB = 260
"""Bytes of the longest CDB (SPC-3 4.3.3); 16 of them stand in the BHS, the others in an AHS."""

_CDB_IN_BHS = 16
_READ_LENGTH = struct.Struct(">I")


@dataclass(slots=True, kw_only=True)
class ScsiCommandPdu(Pdu):
    """SCSI Command (RFC 3720 10.3); a CDB shorter than 16 bytes comes back padded with zeros."""

    OPCODE = Opcode.SCSI_COMMAND
    LAYOUT = layout.SCSI_COMMAND
    FIELDS = (
        "flags",
        "lengths",
        "lun",
        "initiator_task_tag",
        "expected_length",
        "cmd_sn",
        "exp_stat_sn",
        "cdb",
    )
    FLAGS_MASK = 0xE7
    FLAGS_FIXED = 0
    IS_REQUEST = True

    immediate: bool = False
    flags: int = 0
    lun: int = 0
    expected_length: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    cdb: bytes = bytes(_CDB_IN_BHS)
    bidirectional_read_length: int | None = None

    @property
    def attribute(self) -> int:
        """Task attribute code (RFC 3720 10.3.1)."""
        return self.flags & TASK_ATTRIBUTE_MASK

    def _field(self, name: str) -> object:
        return self.cdb[:_CDB_IN_BHS] if name == "cdb" else getattr(self, name)

    def _encode_ahs(self) -> bytes:
        if not 1 <= len(self.cdb) <= MAXIMUM_CDB:
            raise PduError(f"a CDB has 1 to {MAXIMUM_CDB} bytes, not {len(self.cdb)}")
        segments = b""
        if len(self.cdb) > _CDB_IN_BHS:
            segments += encode_ahs(AhsType.EXTENDED_CDB, self.cdb[_CDB_IN_BHS:])
        if self.bidirectional_read_length is not None:
            length = _READ_LENGTH.pack(self.bidirectional_read_length)
            segments += encode_ahs(AhsType.BIDIRECTIONAL_READ_LENGTH, length)
        return segments

    @classmethod
    def _decode_ahs(cls, ahs: bytes, fields: dict[str, object]) -> None:
        seen = dict(decode_ahs(ahs))
        if AhsType.EXTENDED_CDB in seen:
            cdb = fields["cdb"]
            assert isinstance(cdb, bytes)
            fields["cdb"] = cdb + seen[AhsType.EXTENDED_CDB]
        if AhsType.BIDIRECTIONAL_READ_LENGTH in seen:
            length = seen[AhsType.BIDIRECTIONAL_READ_LENGTH]
            if len(length) != _READ_LENGTH.size:
                raise PduError("a bidirectional read length AHS has 5 bytes (RFC 3720 10.2.2.4)")
            fields["bidirectional_read_length"] = _READ_LENGTH.unpack(length)[0]


@dataclass(slots=True, kw_only=True)
class ScsiResponsePdu(Pdu):
    """SCSI Response (RFC 3720 10.4)."""

    OPCODE = Opcode.SCSI_RESPONSE
    LAYOUT = layout.SCSI_RESPONSE
    FIELDS = (
        "flags",
        "response",
        "status",
        "lengths",
        "initiator_task_tag",
        "snack_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
        "exp_data_sn",
        "bidirectional_residual",
        "residual",
    )
    FLAGS_MASK = 0x1E

    flags: int = 0
    response: int = 0
    status: int = 0
    snack_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    exp_data_sn: int = 0
    bidirectional_residual: int = 0
    residual: int = 0


@dataclass(slots=True, kw_only=True)
class TaskManagementRequest(Pdu):
    """Task Management Function Request (RFC 3720 10.5)."""

    OPCODE = Opcode.TASK_MANAGEMENT_REQUEST
    LAYOUT = layout.TASK_MANAGEMENT_REQUEST
    FIELDS = (
        "function",
        "lengths",
        "lun",
        "initiator_task_tag",
        "referenced_task_tag",
        "cmd_sn",
        "exp_stat_sn",
        "ref_cmd_sn",
        "exp_data_sn",
    )
    IS_REQUEST = True

    immediate: bool = False
    function: int = 0
    lun: int = 0
    referenced_task_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    ref_cmd_sn: int = 0
    exp_data_sn: int = 0


@dataclass(slots=True, kw_only=True)
class TaskManagementResponse(Pdu):
    """Task Management Function Response (RFC 3720 10.6, RFC 7144 4.2)."""

    OPCODE = Opcode.TASK_MANAGEMENT_RESPONSE
    LAYOUT = layout.TASK_MANAGEMENT_RESPONSE
    FIELDS = (
        "",
        "response",
        "lengths",
        "information",
        "initiator_task_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
    )

    response: int = 0
    information: bytes = bytes(3)
    """Additional Response Information, at iSCSIProtocolLevel 2 and after a query."""
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


@dataclass(slots=True, kw_only=True)
class DataOut(Pdu):
    """SCSI Data-Out (RFC 3720 10.7)."""

    OPCODE = Opcode.SCSI_DATA_OUT
    LAYOUT = layout.DATA_OUT
    FIELDS = (
        "flags",
        "lengths",
        "lun",
        "initiator_task_tag",
        "target_transfer_tag",
        "exp_stat_sn",
        "data_sn",
        "offset",
    )
    FLAGS_MASK = FINAL_BIT
    FLAGS_FIXED = 0

    flags: int = 0
    lun: int = 0
    target_transfer_tag: int = RESERVED_TAG
    exp_stat_sn: int = 0
    data_sn: int = 0
    offset: int = 0


@dataclass(slots=True, kw_only=True)
class DataIn(Pdu):
    """SCSI Data-In (RFC 3720 10.7)."""

    OPCODE = Opcode.SCSI_DATA_IN
    LAYOUT = layout.DATA_IN
    FIELDS = (
        "flags",
        "status",
        "lengths",
        "lun",
        "initiator_task_tag",
        "target_transfer_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
        "data_sn",
        "offset",
        "residual",
    )
    FLAGS_MASK = 0xC7
    FLAGS_FIXED = 0

    flags: int = 0
    status: int = 0
    lun: int = 0
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0
    offset: int = 0
    residual: int = 0


@dataclass(slots=True, kw_only=True)
class R2T(Pdu):
    """Ready To Transfer (RFC 3720 10.8)."""

    OPCODE = Opcode.R2T
    LAYOUT = layout.R2T
    FIELDS = (
        "",
        "lengths",
        "lun",
        "initiator_task_tag",
        "target_transfer_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
        "r2t_sn",
        "offset",
        "desired_length",
    )

    lun: int = 0
    target_transfer_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    r2t_sn: int = 0
    offset: int = 0
    desired_length: int = 0
