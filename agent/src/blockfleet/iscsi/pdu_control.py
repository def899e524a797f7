# SPDX-License-Identifier: GPL-3.0-or-later
"""PDUs of login, text, logout, recovery and keeping alive (RFC 3720 10.9 to 10.19)."""

from __future__ import annotations

from dataclasses import dataclass

from blockfleet.iscsi import layout
from blockfleet.iscsi.constants import RESERVED_TAG, LoginFlag, Opcode, TextFlag
from blockfleet.iscsi.pdu_codec import Pdu


@dataclass(slots=True, kw_only=True)
class AsyncMessage(Pdu):
    """Asynchronous Message (RFC 3720 10.9); for its data see :func:`split_sense`."""

    OPCODE = Opcode.ASYNC_MESSAGE
    LAYOUT = layout.ASYNC_MESSAGE
    FIELDS = (
        "",
        "lengths",
        "lun",
        "initiator_task_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
        "event",
        "vendor_code",
        "parameter1",
        "parameter2",
        "parameter3",
    )

    lun: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    event: int = 0
    vendor_code: int = 0
    parameter1: int = 0
    parameter2: int = 0
    parameter3: int = 0


@dataclass(slots=True, kw_only=True)
class TextRequest(Pdu):
    """Text Request (RFC 3720 10.10)."""

    OPCODE = Opcode.TEXT_REQUEST
    LAYOUT = layout.TEXT_REQUEST
    FIELDS = (
        "flags",
        "lengths",
        "lun",
        "initiator_task_tag",
        "target_transfer_tag",
        "cmd_sn",
        "exp_stat_sn",
    )
    FLAGS_MASK = TextFlag.FINAL | TextFlag.CONTINUE
    FLAGS_FIXED = 0
    IS_REQUEST = True

    immediate: bool = False
    flags: int = 0
    lun: int = 0
    target_transfer_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@dataclass(slots=True, kw_only=True)
class TextResponse(Pdu):
    """Text Response (RFC 3720 10.11)."""

    OPCODE = Opcode.TEXT_RESPONSE
    LAYOUT = layout.TEXT_RESPONSE
    FIELDS = (
        "flags",
        "lengths",
        "lun",
        "initiator_task_tag",
        "target_transfer_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
    )
    FLAGS_MASK = TextFlag.FINAL | TextFlag.CONTINUE
    FLAGS_FIXED = 0

    flags: int = 0
    lun: int = 0
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


_LOGIN_FLAGS_MASK = LoginFlag.TRANSIT | LoginFlag.CONTINUE | 0x0F


def login_flags(current: int, following: int = 0, *, transit: bool = False, more: bool = False) -> int:
    """Return byte 1 of a Login PDU: CSG, NSG (0 unless T), T and C (RFC 3720 10.12)."""
    return (LoginFlag.TRANSIT | following if transit else 0) | (LoginFlag.CONTINUE if more else 0) | current << 2


@dataclass(slots=True, kw_only=True)
class _LoginPdu(Pdu):
    FLAGS_MASK = _LOGIN_FLAGS_MASK
    FLAGS_FIXED = 0

    flags: int = 0
    version_max: int = 0
    isid: bytes = bytes(6)
    tsih: int = 0

    @property
    def transit(self) -> bool:
        """T bit."""
        return bool(self.flags & LoginFlag.TRANSIT)

    @property
    def more(self) -> bool:
        """C bit."""
        return bool(self.flags & LoginFlag.CONTINUE)

    @property
    def current_stage(self) -> int:
        """CSG; 2 is reserved."""
        return self.flags >> 2 & 3

    @property
    def next_stage(self) -> int:
        """NSG, which means something only with the T bit; 2 is reserved."""
        return self.flags & 3


@dataclass(slots=True, kw_only=True)
class LoginRequest(_LoginPdu):
    """Login Request (RFC 3720 10.12), always immediate."""

    OPCODE = Opcode.LOGIN_REQUEST
    LAYOUT = layout.LOGIN_REQUEST
    FIELDS = (
        "flags",
        "version_max",
        "version_min",
        "lengths",
        "isid",
        "tsih",
        "initiator_task_tag",
        "cid",
        "cmd_sn",
        "exp_stat_sn",
    )
    IS_REQUEST = True

    immediate: bool = True
    version_min: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@dataclass(slots=True, kw_only=True)
class LoginResponse(_LoginPdu):
    """Login Response (RFC 3720 10.13); ``status`` is Status-Class and Status-Detail as one number."""

    OPCODE = Opcode.LOGIN_RESPONSE
    LAYOUT = layout.LOGIN_RESPONSE
    FIELDS = (
        "flags",
        "version_max",
        "version_active",
        "lengths",
        "isid",
        "tsih",
        "initiator_task_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
        "status",
    )

    version_active: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status: int = 0


@dataclass(slots=True, kw_only=True)
class LogoutRequest(Pdu):
    """Logout Request (RFC 3720 10.14)."""

    OPCODE = Opcode.LOGOUT_REQUEST
    LAYOUT = layout.LOGOUT_REQUEST
    FIELDS = ("reason", "lengths", "initiator_task_tag", "cid", "cmd_sn", "exp_stat_sn")
    IS_REQUEST = True

    immediate: bool = False
    reason: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@dataclass(slots=True, kw_only=True)
class LogoutResponse(Pdu):
    """Logout Response (RFC 3720 10.15); the times are in seconds."""

    OPCODE = Opcode.LOGOUT_RESPONSE
    LAYOUT = layout.LOGOUT_RESPONSE
    FIELDS = (
        "",
        "response",
        "lengths",
        "initiator_task_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
        "time2wait",
        "time2retain",
    )

    response: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    time2wait: int = 0
    time2retain: int = 0


@dataclass(slots=True, kw_only=True)
class SnackRequest(Pdu):
    """SNACK Request (RFC 3720 10.16); ``target_transfer_tag`` is the SNACK Tag of an R-Data SNACK."""

    OPCODE = Opcode.SNACK_REQUEST
    LAYOUT = layout.SNACK_REQUEST
    FIELDS = (
        "type",
        "lengths",
        "lun",
        "initiator_task_tag",
        "target_transfer_tag",
        "exp_stat_sn",
        "beg_run",
        "run_length",
    )
    FLAGS_MASK = 0x0F

    type: int = 0
    lun: int = 0
    target_transfer_tag: int = RESERVED_TAG
    exp_stat_sn: int = 0
    beg_run: int = 0
    run_length: int = 0


@dataclass(slots=True, kw_only=True)
class Reject(Pdu):
    """Reject (RFC 3720 10.17); its data start with the header of the PDU that was rejected."""

    OPCODE = Opcode.REJECT
    LAYOUT = layout.REJECT
    FIELDS = (
        "",
        "reason",
        "lengths",
        "initiator_task_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
        "data_sn",
    )

    reason: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0


@dataclass(slots=True, kw_only=True)
class NopOut(Pdu):
    """NOP-Out (RFC 3720 10.18)."""

    OPCODE = Opcode.NOP_OUT
    LAYOUT = layout.NOP_OUT
    FIELDS = ("", "lengths", "lun", "initiator_task_tag", "target_transfer_tag", "cmd_sn", "exp_stat_sn")
    IS_REQUEST = True

    immediate: bool = False
    lun: int = 0
    target_transfer_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@dataclass(slots=True, kw_only=True)
class NopIn(Pdu):
    """NOP-In (RFC 3720 10.19)."""

    OPCODE = Opcode.NOP_IN
    LAYOUT = layout.NOP_IN
    FIELDS = (
        "",
        "lengths",
        "lun",
        "initiator_task_tag",
        "target_transfer_tag",
        "stat_sn",
        "exp_cmd_sn",
        "max_cmd_sn",
    )

    lun: int = 0
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
