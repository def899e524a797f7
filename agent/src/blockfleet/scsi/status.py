# SPDX-License-Identifier: GPL-3.0-or-later
"""Status codes that a device server ends a command with (SAM-5 5.3.1)."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """One byte of a SCSI Response PDU; codes that are not here are reserved."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    INTERMEDIATE = 0x10
    INTERMEDIATE_CONDITION_MET = 0x14
    RESERVATION_CONFLICT = 0x18
    COMMAND_TERMINATED = 0x22
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


_NAMES = {status.value: status.name.replace("_", " ") for status in Status}


def status_name(status: int) -> str:
    """Return the standard's name of a status code, or its number where it has none."""
    return _NAMES.get(status, f"status {status:#04x}")
