# SPDX-License-Identifier: GPL-3.0-or-later
"""Code points and fixed sizes of the protocol (RFC 3720 chapter 10; RFC 7143 and 7144 where a name says so)."""

from __future__ import annotations

import enum

BHS_LENGTH = 48
"""Bytes of a Basic Header Segment (RFC 3720 10.2.1)."""

RESERVED_TAG = 0xFFFFFFFF
"""Initiator Task Tag or Target Transfer Tag that names nothing (RFC 3720 10.2.1.8, 10.18)."""

DEFAULT_MRDSL = 8192
"""MaxRecvDataSegmentLength of a side that declares none, and of both sides during login (RFC 3720 12.12)."""

MAXIMUM_DATA_SEGMENT = (1 << 24) - 1
"""The 24-bit limit of DataSegmentLength (RFC 3720 10.2.1.6)."""

VERSION = 0x00
"""The only version of the protocol (RFC 3720 10.12.4)."""

OPCODE_MASK = 0x3F
IMMEDIATE_BIT = 0x40
"""I bit of byte 0: deliver without regard to CmdSN order (RFC 3720 10.2.1.1)."""

FINAL_BIT = 0x80
"""F bit of byte 1, in every PDU that has one (RFC 3720 10.2.1.3)."""


class Opcode(enum.IntEnum):
    """PDU types (RFC 3720 10.2.1.2): below 0x20 from the initiator, from there on from the target."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    SCSI_DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    SCSI_DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


class CommandFlag(enum.IntFlag):
    """Byte 1 of a SCSI Command; the low three bits are the task attribute (RFC 3720 10.3.1)."""

    FINAL = 0x80
    READ = 0x40
    WRITE = 0x20


TASK_ATTRIBUTE_MASK = 0x07


class ResponseFlag(enum.IntFlag):
    """Byte 1 of a SCSI Response (RFC 3720 10.4.1)."""

    FINAL = 0x80
    BIDIRECTIONAL_OVERFLOW = 0x10
    BIDIRECTIONAL_UNDERFLOW = 0x08
    OVERFLOW = 0x04
    UNDERFLOW = 0x02


class DataInFlag(enum.IntFlag):
    """Byte 1 of a SCSI Data-In (RFC 3720 10.7)."""

    FINAL = 0x80
    ACKNOWLEDGE = 0x40
    OVERFLOW = 0x04
    UNDERFLOW = 0x02
    STATUS = 0x01


class TextFlag(enum.IntFlag):
    """Byte 1 of a Text Request or Response (RFC 3720 10.10, 10.11)."""

    FINAL = 0x80
    CONTINUE = 0x40


class LoginFlag(enum.IntFlag):
    """Byte 1 of a Login Request or Response, beside the stages (RFC 3720 10.12)."""

    TRANSIT = 0x80
    CONTINUE = 0x40


class LoginStage(enum.IntEnum):
    """CSG and NSG (RFC 3720 10.12.3); 2 is reserved."""

    SECURITY_NEGOTIATION = 0
    OPERATIONAL_NEGOTIATION = 1
    FULL_FEATURE_PHASE = 3


class LoginStatusClass(enum.IntEnum):
    """High byte of a login status (RFC 3720 10.13.5)."""

    SUCCESS = 0
    REDIRECTION = 1
    INITIATOR_ERROR = 2
    TARGET_ERROR = 3


class LoginStatus(enum.IntEnum):
    """Status-Class and Status-Detail of a Login Response as one number (RFC 3720 10.13.5)."""

    SUCCESS = 0x0000
    TARGET_MOVED_TEMPORARILY = 0x0101
    TARGET_MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    TARGET_REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


class ServiceResponse(enum.IntEnum):
    """Response of a SCSI Response (RFC 3720 10.4.3); 0x80 and above are the vendor's."""

    COMMAND_COMPLETED = 0x00
    TARGET_FAILURE = 0x01


class TaskFunction(enum.IntEnum):
    """Task management functions (RFC 3720 10.5.1; from 9 on RFC 7144 4.1, at iSCSIProtocolLevel 2)."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8
    QUERY_TASK = 9
    QUERY_TASK_SET = 10
    I_T_NEXUS_RESET = 11
    QUERY_ASYNCHRONOUS_EVENT = 12


QUERY_FUNCTIONS = frozenset(
    {TaskFunction.QUERY_TASK, TaskFunction.QUERY_TASK_SET, TaskFunction.QUERY_ASYNCHRONOUS_EVENT}
)
"""Functions that ask and change nothing."""

RFC_7144_FUNCTIONS = QUERY_FUNCTIONS | {TaskFunction.I_T_NEXUS_RESET}
"""Functions that need :data:`RFC_7144_LEVEL`."""

RFC_7144_LEVEL = 2
"""The iSCSIProtocolLevel of RFC 7144."""


class TaskResponse(enum.IntEnum):
    """Answers to a task management function (RFC 3720 10.6.1; 7 from RFC 7144 4.2)."""

    FUNCTION_COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGNMENT_NOT_SUPPORTED = 4
    FUNCTION_NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    FUNCTION_SUCCEEDED = 7
    FUNCTION_REJECTED = 255


class RejectReason(enum.IntEnum):
    """Why a target sent a Reject (RFC 3720 10.17.1)."""

    RESERVED = 0x01
    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A
    NEGOTIATION_RESET = 0x0B
    WAITING_FOR_LOGOUT = 0x0C


class AsyncEventCode(enum.IntEnum):
    """AsyncEvent of an Asynchronous Message (RFC 3720 10.9.1; 5 from RFC 7143 11.9.1)."""

    SCSI_EVENT = 0
    LOGOUT_REQUEST = 1
    CONNECTION_DROP = 2
    SESSION_DROP = 3
    NEGOTIATION_REQUEST = 4
    TASK_TERMINATION = 5
    VENDOR_SPECIFIC = 255


class LogoutReason(enum.IntEnum):
    """Why the initiator logs out (RFC 3720 10.14.1)."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


class LogoutResponseCode(enum.IntEnum):
    """Answers to a Logout Request (RFC 3720 10.15.1)."""

    SUCCESS = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


class SnackType(enum.IntEnum):
    """What a SNACK asks for (RFC 3720 10.16.1)."""

    DATA_R2T = 0
    STATUS = 1
    DATA_ACK = 2
    R_DATA = 3


class AhsType(enum.IntEnum):
    """Kinds of Additional Header Segment (RFC 3720 10.2.2.1)."""

    EXTENDED_CDB = 1
    BIDIRECTIONAL_READ_LENGTH = 2
