# SPDX-License-Identifier: GPL-3.0-or-later
"""Status codes, sense data, and the conditions that this target raises (SAM-5, SPC-4 annex D)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass


class Status(enum.IntEnum):
    """SCSI status (SAM-5 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class Key(enum.IntEnum):
    """Sense keys (SPC-4 table 53)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


@dataclass(frozen=True, slots=True)
class Sense:
    """A sense key with its additional sense code and qualifier.

    `information` is the INFORMATION field; `field` the byte of the CDB (or of the parameter list,
    when `in_data`) that is at fault.
    """

    key: int
    asc: int
    ascq: int
    information: int | None = None
    field: int | None = None
    in_data: bool = False

    def fixed(self) -> bytes:
        """Return fixed format sense data of 18 bytes (SPC-4 4.5.3)."""
        fits = self.information is not None and self.information <= 0xFFFFFFFF
        valid = 0x80 if fits else 0
        specific = b"\0\0\0"
        if self.field is not None:
            specific = struct.pack(">BH", 0x80 if self.in_data else 0xC0, self.field)
        return struct.pack(
            ">BBBIB4xBBB3s",
            0x70 | valid,
            0,
            self.key,
            self.information or 0 if fits else 0,
            10,
            self.asc,
            self.ascq,
            0,
            specific,
        )


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}")
        self.sense = sense


def illegal_field(field: int) -> CheckCondition:
    """INVALID FIELD IN CDB, naming the byte."""
    return CheckCondition(Sense(Key.ILLEGAL_REQUEST, 0x24, 0x00, field=field))


def illegal_parameter(field: int) -> CheckCondition:
    """INVALID FIELD IN PARAMETER LIST, naming the byte."""
    return CheckCondition(Sense(Key.ILLEGAL_REQUEST, 0x26, 0x00, field=field, in_data=True))


NO_SENSE = Sense(Key.NO_SENSE, 0x00, 0x00)
UNKNOWN_OPCODE = Sense(Key.ILLEGAL_REQUEST, 0x20, 0x00, field=0)
OUT_OF_RANGE = Sense(Key.ILLEGAL_REQUEST, 0x21, 0x00)
NO_SUCH_LUN = Sense(Key.ILLEGAL_REQUEST, 0x25, 0x00)
PARAMETER_LENGTH = Sense(Key.ILLEGAL_REQUEST, 0x1A, 0x00)
NO_SAVED_PAGES = Sense(Key.ILLEGAL_REQUEST, 0x39, 0x00)
WRITE_PROTECTED = Sense(Key.DATA_PROTECT, 0x27, 0x00)
MEDIUM_ABSENT = Sense(Key.NOT_READY, 0x3A, 0x00)
STOPPED = Sense(Key.NOT_READY, 0x04, 0x02)

POWER_ON = Sense(Key.UNIT_ATTENTION, 0x29, 0x00)
BUS_RESET = Sense(Key.UNIT_ATTENTION, 0x29, 0x02)
UNIT_RESET = Sense(Key.UNIT_ATTENTION, 0x29, 0x03)
NEXUS_LOSS = Sense(Key.UNIT_ATTENTION, 0x29, 0x07)
MODE_CHANGED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x01)
RESERVATIONS_PREEMPTED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x03)
RESERVATIONS_RELEASED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x04)
REGISTRATIONS_PREEMPTED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x05)
ACCESS_STATE_CHANGED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x06)
TRANSITION_FAILED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x07)
CAPACITY_CHANGED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x09)
CLEARED_BY_OTHER = Sense(Key.UNIT_ATTENTION, 0x2F, 0x00)
IDENTITY_CHANGED = Sense(Key.UNIT_ATTENTION, 0x3F, 0x05)
INQUIRY_CHANGED = Sense(Key.UNIT_ATTENTION, 0x3F, 0x03)
LUNS_CHANGED = Sense(Key.UNIT_ATTENTION, 0x3F, 0x0E)
CLEARED_BY_ISCSI = Sense(Key.UNIT_ATTENTION, 0x47, 0x7F)

UNEXPECTED_DATA = Sense(Key.ABORTED_COMMAND, 0x0C, 0x0C)
WRONG_AMOUNT = Sense(Key.ABORTED_COMMAND, 0x0C, 0x0D)
CRC_ERROR = Sense(Key.ABORTED_COMMAND, 0x47, 0x05)
SNACK_REJECTED = Sense(Key.ABORTED_COMMAND, 0x11, 0x13)
