# SPDX-License-Identifier: GPL-3.0-or-later
"""Every PDU of RFC 3720 chapter 10 as an object, encoded to and decoded from bytes.

This is the general path; the hot path packs and unpacks the layouts of :mod:`blockfleet.iscsi.layout`, which
these classes use too.  Reserved fields are sent as zero and ignored on receipt.  Digests are no part of a PDU
object (:mod:`blockfleet.iscsi.digest`).
"""

from __future__ import annotations

from blockfleet.iscsi.constants import OPCODE_MASK
from blockfleet.iscsi.pdu_codec import (
    Pdu,
    PduError,
    decode_ahs,
    encode_ahs,
    split_sense,
)
from blockfleet.iscsi.pdu_control import (
    AsyncMessage,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Reject,
    SnackRequest,
    TextRequest,
    TextResponse,
    login_flags,
)
from blockfleet.iscsi.pdu_scsi import (
    R2T,
    DataIn,
    DataOut,
    ScsiCommandPdu,
    ScsiResponsePdu,
    TaskManagementRequest,
    TaskManagementResponse,
)

__all__ = [
    "PDU_CLASSES",
    "R2T",
    "AsyncMessage",
    "DataIn",
    "DataOut",
    "LoginRequest",
    "LoginResponse",
    "LogoutRequest",
    "LogoutResponse",
    "NopIn",
    "NopOut",
    "Pdu",
    "PduError",
    "Reject",
    "ScsiCommandPdu",
    "ScsiResponsePdu",
    "SnackRequest",
    "TaskManagementRequest",
    "TaskManagementResponse",
    "TextRequest",
    "TextResponse",
    "decode_ahs",
    "decode_pdu",
    "encode_ahs",
    "login_flags",
    "split_sense",
]

PDU_CLASSES: dict[int, type[Pdu]] = {
    cls.OPCODE: cls
    for cls in (
        NopOut,
        ScsiCommandPdu,
        TaskManagementRequest,
        LoginRequest,
        TextRequest,
        DataOut,
        LogoutRequest,
        SnackRequest,
        NopIn,
        ScsiResponsePdu,
        TaskManagementResponse,
        LoginResponse,
        TextResponse,
        DataIn,
        LogoutResponse,
        R2T,
        AsyncMessage,
        Reject,
    )
}
"""The class of each opcode (RFC 3720 10.2.1.2)."""


def decode_pdu(bhs: bytes, ahs: bytes = b"", data: bytes = b"") -> Pdu:
    """Decode a PDU of any kind; raises :class:`PduError`, and nothing else, for what is none."""
    if not bhs:
        raise PduError("no basic header segment")
    cls = PDU_CLASSES.get(bhs[0] & OPCODE_MASK)
    if cls is None:
        raise PduError(f"opcode {bhs[0] & OPCODE_MASK:#04x} is reserved or the vendor's")
    return cls.decode(bhs, ahs, data)
