# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about a command that did not simply succeed: one table from (status, sense) to a disposition.

The principle is Linux's ``blk_path_error()``: a condition of the medium, of the request or of a reservation is
the same on every path and goes up at once; a condition of a port moves I/O to another; congestion waits where
it is; a unit attention says that something changed, is consumed, acted on and the command repeated.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass, replace

from blockfleet.scsi import sense as sense_data
from blockfleet.scsi.sense import Sense, SenseKey
from blockfleet.scsi.status import Status, status_name


class Action(enum.Enum):
    """What becomes of the command."""

    DONE = "done"
    """It did what it should."""
    FAIL = "fail"
    """It goes up with ``error``: another path or another time would not change the answer."""
    RETRY = "retry"
    """It may be sent again at once, a bounded number of times; it may have run in part."""
    BACK_OFF = "back off"
    """It did not run; it is sent again later, with growing pauses, within the command's budget."""
    ATTENTION = "attention"
    """It did not run; what the unit attention says is acted on, then it is sent again."""
    NOT_READY = "not ready"
    """It did not run: this target port does not serve the unit now; another may, and this one may later."""
    LOST = "lost"
    """It did not run: no unit is behind this LUN any more, until an identity check says otherwise."""


class Attention(enum.Flag):
    """What has to be looked at again."""

    NONE = 0
    IDENTITY = enum.auto()
    """Before the next I/O on this path: is it still the same unit?"""
    CAPACITY = enum.auto()
    ALUA = enum.auto()
    LUNS = enum.auto()
    """The target's list of logical units."""
    MODE = enum.auto()
    """Write cache, write protection."""
    RESERVATIONS = enum.auto()
    CACHE = enum.auto()
    """A volatile write cache may have lost what was acknowledged but not flushed."""
    SPACE = enum.auto()
    """A thin provisioning threshold: space runs out."""


@dataclass(frozen=True, slots=True)
class Disposition:
    """A row of the table, with the words for it."""

    action: Action
    error: int = errno.EIO
    """Errno when the command goes up after all; 0 for DONE."""
    attention: Attention = Attention.NONE
    cause: str = ""


_DONE = Disposition(Action.DONE, 0)
_FAIL = Disposition(Action.FAIL)
_RETRY = Disposition(Action.RETRY)
_BACK_OFF = Disposition(Action.BACK_OFF)
_NOT_READY = Disposition(Action.NOT_READY, attention=Attention.ALUA)
_DENIED = Disposition(Action.FAIL, errno.EPERM)
_NO_SPACE = Disposition(Action.FAIL, errno.ENOSPC)
_UNSUPPORTED = Disposition(Action.FAIL, errno.EOPNOTSUPP)


def _attention(attention: Attention) -> Disposition:
    return Disposition(Action.ATTENTION, attention=attention)


_RESET = Attention.IDENTITY | Attention.CAPACITY | Attention.RESERVATIONS
_CHANGED = Attention.IDENTITY | Attention.LUNS

BY_STATUS: dict[int, Disposition] = {
    Status.GOOD: _DONE,
    Status.CONDITION_MET: _DONE,
    Status.INTERMEDIATE: _DONE,
    Status.INTERMEDIATE_CONDITION_MET: _DONE,
    Status.BUSY: _BACK_OFF,
    Status.TASK_SET_FULL: _BACK_OFF,
    Status.ACA_ACTIVE: _BACK_OFF,
    Status.RESERVATION_CONFLICT: Disposition(Action.FAIL, attention=Attention.RESERVATIONS),
    Status.COMMAND_TERMINATED: _RETRY,
    Status.TASK_ABORTED: _RETRY,
}
"""Statuses without sense data; what is not here fails."""

Row = tuple[SenseKey, int | None, int | None]

BY_SENSE: dict[Row, Disposition] = {
    (SenseKey.NO_SENSE, None, None): _DONE,
    (SenseKey.RECOVERED_ERROR, None, None): _DONE,
    (SenseKey.RECOVERED_ERROR, 0x38, 0x07): Disposition(Action.DONE, 0, Attention.SPACE),
    (SenseKey.COMPLETED, None, None): _DONE,
    (SenseKey.NOT_READY, None, None): _FAIL,
    (SenseKey.NOT_READY, 0x04, 0x00): _BACK_OFF,
    (SenseKey.NOT_READY, 0x04, 0x01): _BACK_OFF,
    (SenseKey.NOT_READY, 0x04, 0x07): _BACK_OFF,
    (SenseKey.NOT_READY, 0x04, 0x0A): _NOT_READY,
    (SenseKey.NOT_READY, 0x04, 0x0B): _NOT_READY,
    (SenseKey.NOT_READY, 0x04, 0x0C): _NOT_READY,
    (SenseKey.NOT_READY, 0x04, 0x12): _NOT_READY,
    (SenseKey.NOT_READY, 0x04, 0x14): _BACK_OFF,
    (SenseKey.MEDIUM_ERROR, None, None): _FAIL,
    (SenseKey.HARDWARE_ERROR, None, None): _FAIL,
    (SenseKey.ILLEGAL_REQUEST, None, None): _FAIL,
    (SenseKey.ILLEGAL_REQUEST, 0x20, 0x00): _UNSUPPORTED,
    (SenseKey.ILLEGAL_REQUEST, 0x21, 0x00): Disposition(Action.FAIL, attention=Attention.CAPACITY),
    (SenseKey.ILLEGAL_REQUEST, 0x25, None): Disposition(Action.LOST, attention=_CHANGED),
    (SenseKey.UNIT_ATTENTION, None, None): _attention(Attention.NONE),
    (SenseKey.UNIT_ATTENTION, 0x28, None): _attention(Attention.IDENTITY | Attention.CAPACITY),
    (SenseKey.UNIT_ATTENTION, 0x29, None): _attention(_RESET),
    (SenseKey.UNIT_ATTENTION, 0x29, 0x00): _attention(_RESET | Attention.CACHE),
    (SenseKey.UNIT_ATTENTION, 0x29, 0x01): _attention(_RESET | Attention.CACHE),
    (SenseKey.UNIT_ATTENTION, 0x29, 0x04): _attention(_RESET | Attention.CACHE),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x00): _attention(Attention.MODE),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x01): _attention(Attention.MODE),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x03): _attention(Attention.RESERVATIONS),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x04): _attention(Attention.RESERVATIONS),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x05): _attention(Attention.RESERVATIONS),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x06): _attention(Attention.ALUA),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x07): _attention(Attention.ALUA),
    (SenseKey.UNIT_ATTENTION, 0x2A, 0x09): _attention(Attention.CAPACITY),
    (SenseKey.UNIT_ATTENTION, 0x38, 0x07): _attention(Attention.SPACE),
    (SenseKey.UNIT_ATTENTION, 0x3F, None): _attention(_CHANGED),
    (SenseKey.UNIT_ATTENTION, 0x3F, 0x01): _attention(Attention.MODE),
    (SenseKey.DATA_PROTECT, None, None): _DENIED,
    (SenseKey.DATA_PROTECT, 0x27, 0x07): Disposition(Action.FAIL, errno.ENOSPC, Attention.SPACE),
    (SenseKey.BLANK_CHECK, None, None): _FAIL,
    (SenseKey.VENDOR_SPECIFIC, None, None): _FAIL,
    (SenseKey.COPY_ABORTED, None, None): _FAIL,
    (SenseKey.ABORTED_COMMAND, None, None): _RETRY,
    (SenseKey.RESERVED, None, None): _FAIL,
    (SenseKey.VOLUME_OVERFLOW, None, None): _NO_SPACE,
    (SenseKey.MISCOMPARE, None, None): _FAIL,
}
"""CHECK CONDITION by key, code and qualifier; ``None`` stands for any, the most specific row counts."""

DEFERRED = Disposition(Action.ATTENTION, attention=Attention.CACHE)
"""A deferred error: this command did not run, and an earlier acknowledged one failed (SPC-4 4.5.7)."""

_GOOD = replace(_DONE, cause=status_name(Status.GOOD))


def _row(sense: Sense) -> Disposition:
    if sense.deferred:
        return DEFERRED
    key, code, qualifier = sense.key, sense.code, sense.qualifier
    return BY_SENSE.get((key, code, qualifier)) or BY_SENSE.get((key, code, None)) or BY_SENSE[key, None, None]


def classify(status: int, sense: bytes) -> Disposition:
    """Return what to do about a command that ended with ``status`` and ``sense`` data.

    CHECK CONDITION without sense data that can be read is retried: nothing else would bring the sense back.
    """
    if status == Status.GOOD:
        return _GOOD
    if status != Status.CHECK_CONDITION:
        return replace(BY_STATUS.get(status, _FAIL), cause=status_name(status))
    parsed = sense_data.parse(sense)
    if parsed is None:
        return replace(_RETRY, cause="CHECK CONDITION without sense data")
    return replace(_row(parsed), cause=sense_data.describe(parsed))
