# SPDX-License-Identifier: GPL-3.0-or-later
"""What a PDU says, field by field, for people and programs that read a trace."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blockfleet.iscsi import layout
from blockfleet.iscsi.constants import (
    BHS_LENGTH,
    OPCODE_MASK,
    AsyncEventCode,
    LoginFlag,
    LoginStage,
    LoginStatus,
    LogoutReason,
    LogoutResponseCode,
    Opcode,
    RejectReason,
    SnackType,
    TaskFunction,
    TaskResponse,
)
from blockfleet.iscsi.layout import split_lengths
from blockfleet.scsi import cdb, lun

Value = int | str

_NAMES = {
    "itt": "ITT",
    "ttt": "TTT",
    "lun": "LUN",
    "cmd_sn": "CmdSN",
    "exp_stat_sn": "ExpStatSN",
    "stat_sn": "StatSN",
    "exp_cmd_sn": "ExpCmdSN",
    "max_cmd_sn": "MaxCmdSN",
    "data_sn": "DataSN",
    "exp_data_sn": "ExpDataSN",
    "r2t_sn": "R2TSN",
    "offset": "BufferOffset",
    "desired_length": "DesiredLength",
    "expected_length": "EDTL",
    "residual": "Residual",
    "referenced_tag": "RefTag",
    "ref_cmd_sn": "RefCmdSN",
    "isid": "ISID",
    "tsih": "TSIH",
    "cid": "CID",
    "status": "Status",
    "response": "Response",
    "reason": "Reason",
    "function": "Function",
    "event": "Event",
    "type": "Type",
    "beg_run": "BegRun",
    "run_length": "RunLength",
    "time2wait": "Time2Wait",
    "time2retain": "Time2Retain",
}
"""How RFC 3720 chapter 10 calls the fields; one that is not here is not shown."""

_TAGS = frozenset({"itt", "ttt", "referenced_tag"})


@dataclass(frozen=True, slots=True)
class _Form:
    """How one type of PDU is read: what it is called, its layout and the names of its fields."""

    name: str
    layout: struct.Struct
    fields: tuple[str, ...]


def _form(name: str, form: struct.Struct, fields: str) -> _Form:
    return _Form(name, form, tuple(fields.split()))


_STATE = "stat_sn exp_cmd_sn max_cmd_sn"

_FORMS: Mapping[int, _Form] = {
    Opcode.NOP_OUT: _form("NOP-Out", layout.NOP_OUT, "opcode flags lengths lun itt ttt cmd_sn exp_stat_sn"),
    Opcode.SCSI_COMMAND: _form(
        "SCSI Command",
        layout.SCSI_COMMAND,
        "opcode flags lengths lun itt expected_length cmd_sn exp_stat_sn cdb",
    ),
    Opcode.TASK_MANAGEMENT_REQUEST: _form(
        "Task Management Request",
        layout.TASK_MANAGEMENT_REQUEST,
        "opcode function lengths lun itt referenced_tag cmd_sn exp_stat_sn ref_cmd_sn exp_data_sn",
    ),
    Opcode.LOGIN_REQUEST: _form(
        "Login Request",
        layout.LOGIN_REQUEST,
        "opcode stage version_max version_min lengths isid tsih itt cid cmd_sn exp_stat_sn",
    ),
    Opcode.TEXT_REQUEST: _form(
        "Text Request", layout.TEXT_REQUEST, "opcode flags lengths lun itt ttt cmd_sn exp_stat_sn"
    ),
    Opcode.SCSI_DATA_OUT: _form(
        "SCSI Data-Out", layout.DATA_OUT, "opcode flags lengths lun itt ttt exp_stat_sn data_sn offset"
    ),
    Opcode.LOGOUT_REQUEST: _form(
        "Logout Request", layout.LOGOUT_REQUEST, "opcode reason lengths itt cid cmd_sn exp_stat_sn"
    ),
    Opcode.SNACK_REQUEST: _form(
        "SNACK Request",
        layout.SNACK_REQUEST,
        "opcode type lengths lun itt ttt exp_stat_sn beg_run run_length",
    ),
    Opcode.NOP_IN: _form("NOP-In", layout.NOP_IN, f"opcode flags lengths lun itt ttt {_STATE}"),
    Opcode.SCSI_RESPONSE: _form(
        "SCSI Response",
        layout.SCSI_RESPONSE,
        f"opcode flags response status lengths itt snack_tag {_STATE} exp_data_sn read_residual residual",
    ),
    Opcode.TASK_MANAGEMENT_RESPONSE: _form(
        "Task Management Response",
        layout.TASK_MANAGEMENT_RESPONSE,
        f"opcode flags response lengths information itt {_STATE}",
    ),
    Opcode.LOGIN_RESPONSE: _form(
        "Login Response",
        layout.LOGIN_RESPONSE,
        f"opcode stage version_max version_active lengths isid tsih itt {_STATE} status",
    ),
    Opcode.TEXT_RESPONSE: _form(
        "Text Response", layout.TEXT_RESPONSE, f"opcode flags lengths lun itt ttt {_STATE}"
    ),
    Opcode.SCSI_DATA_IN: _form(
        "SCSI Data-In",
        layout.DATA_IN,
        f"opcode flags status lengths lun itt ttt {_STATE} data_sn offset residual",
    ),
    Opcode.LOGOUT_RESPONSE: _form(
        "Logout Response",
        layout.LOGOUT_RESPONSE,
        f"opcode flags response lengths itt {_STATE} time2wait time2retain",
    ),
    Opcode.R2T: _form("R2T", layout.R2T, f"opcode flags lengths lun itt ttt {_STATE} r2t_sn offset desired_length"),
    Opcode.ASYNC_MESSAGE: _form(
        "Asynchronous Message", layout.ASYNC_MESSAGE, f"opcode flags lengths lun itt {_STATE} event vcode p1 p2 p3"
    ),
    Opcode.REJECT: _form("Reject", layout.REJECT, f"opcode flags reason lengths itt {_STATE} data_sn"),
}

_CODES: Mapping[tuple[int, str], Callable[[int], int]] = {
    (Opcode.TASK_MANAGEMENT_REQUEST, "function"): lambda value: TaskFunction(value & 0x7F),
    (Opcode.TASK_MANAGEMENT_RESPONSE, "response"): TaskResponse,
    (Opcode.LOGIN_RESPONSE, "status"): LoginStatus,
    (Opcode.LOGOUT_REQUEST, "reason"): lambda value: LogoutReason(value & 0x7F),
    (Opcode.LOGOUT_RESPONSE, "response"): LogoutResponseCode,
    (Opcode.SNACK_REQUEST, "type"): lambda value: SnackType(value & 0x0F),
    (Opcode.ASYNC_MESSAGE, "event"): AsyncEventCode,
    (Opcode.REJECT, "reason"): RejectReason,
}
"""Fields whose values have names."""


@dataclass(frozen=True, slots=True)
class Description:
    """A PDU in words: its type, its fields by their RFC names, and the lengths of what follows the header."""

    opcode: int
    name: str
    fields: dict[str, Value]
    data_length: int
    ahs_length: int


def describe(pdu: bytes) -> Description:
    """Describe a PDU by its header; one shorter than a header, or of an unknown type, has a name that says so."""
    if len(pdu) < BHS_LENGTH:
        return Description(-1, f"part of a PDU ({len(pdu)} bytes)", {}, 0, 0)
    opcode = pdu[0] & OPCODE_MASK
    ahs_length, data_length = split_lengths(layout.LENGTHS.unpack_from(pdu, layout.LENGTHS_OFFSET)[0])
    form = _FORMS.get(opcode)
    if form is None:
        return Description(opcode, f"opcode {opcode:#04x}", {}, data_length, ahs_length)
    fields: dict[str, Value] = {}
    for name, value in zip(form.fields, form.layout.unpack_from(pdu), strict=True):
        if name == "cdb":
            fields["CDB"] = cdb_name(value)
        elif name == "stage":
            fields["Stage"] = _stage(value)
        elif name in _NAMES:
            fields[_NAMES[name]] = _shown(opcode, name, value)
    return Description(opcode, form.name, fields, data_length, ahs_length)


def cdb_name(block: bytes) -> str:
    """Return what a CDB asks for, as T10 writes it: ``READ(10)``; the operation code where it has no name here."""
    try:
        words = cdb.Opcode(block[0]).name.split("_")
    except ValueError:
        return f"operation code {block[0]:#04x}"
    size = f"({words.pop()})" if words[-1].isdigit() else ""
    return " ".join(words) + size


def _shown(opcode: int, name: str, value: int | bytes) -> Value:
    if isinstance(value, bytes):
        return value.hex()
    if name == "lun":
        number = lun.decode(value).number
        return f"{value:#018x}" if number is None else number
    if name in _TAGS:
        return f"{value:#010x}"
    codes = _CODES.get((opcode, name))
    if codes is not None:
        try:
            return _words(codes(value))
        except ValueError:
            return f"{value:#x}"
    return value


def _words(code: int) -> str:
    name: str = getattr(code, "name", str(code))
    return name.lower().replace("_", " ")


def _stage(flags: int) -> str:
    """Write the stages of a login PDU (RFC 3720 10.12.1 to 10.12.3): ``security>operational``."""
    present, following = _stage_name(flags >> 2 & 3), _stage_name(flags & 3)
    text = f"{present}>{following}" if flags & LoginFlag.TRANSIT else present
    return f"{text}, continued" if flags & LoginFlag.CONTINUE else text


def _stage_name(number: int) -> str:
    try:
        return LoginStage(number).name.partition("_")[0].lower()
    except ValueError:
        return f"reserved {number}"
