# SPDX-License-Identifier: GPL-3.0-or-later
"""The Data-In and R2T PDUs of one task that came out of order (RFC 3720 3.2.2.3, 6.8).

Most tasks never have an :class:`InputSequence`: it is made at the first PDU that is not the expected one and goes
when everything before the last one has come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockfleet.iscsi.spans import Spans

if TYPE_CHECKING:
    from blockfleet.iscsi.fast_abort import Transfer
    from blockfleet.iscsi.task import Task

MAXIMUM_AHEAD = 1 << 20
"""How far a DataSN or R2TSN may be ahead of the expected one."""

MAXIMUM_WAITING = 64
"""R2Ts of one task that wait for an earlier one; MaxOutstandingR2T does not count those that the target gave up."""

MAXIMUM_POSTPONED = 64
"""Acknowledgements of data that wait for a hole to be filled; of more, the oldest are left out."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A DataACK that the target has asked for by the A bit of the Data-In with this DataSN (RFC 3720 10.7.2)."""

    data_sn: int
    transfer_tag: int
    lun: int


class InputSequence:
    """What has come of a task's numbered input beyond the contiguous part.

    ``top`` is the lowest number of which nothing is known yet: what is missing below it has been asked for,
    last at ``asked_at`` (seconds) and ``tries`` times since something of it came.  ``refused`` says that the
    target will not send it again.
    """

    __slots__ = ("_bytes", "_count", "_numbers", "_r2ts", "acks", "asked_at", "refused", "top", "tries")

    def __init__(self, task: Task) -> None:
        self.top = task.data_sn
        self.asked_at = 0.0
        self.tries = 0
        self.refused = False
        self.acks: list[Acknowledgement] = []
        self._numbers = Spans()
        self._bytes = Spans()
        self._bytes.add(0, task.received)
        self._count = task.received
        self._r2ts: dict[int, Transfer] = {}

    def has(self, task: Task, number: int) -> bool:
        """Whether the PDU of this number came before."""
        return number < task.data_sn or self._numbers.has(number)

    def take_bytes(self, start: int, end: int) -> bool:
        """Note that these bytes are there; False where some were before, or there are too many pieces."""
        if not self._bytes.add(start, end):
            return False
        self._count += end - start
        return True

    def take(self, task: Task, number: int, r2t: Transfer | None = None) -> bool:
        """Note that this PDU, which was not there before, has come; False where there are too many pieces."""
        if not self._numbers.add(number, number + 1):
            return False
        if r2t is not None:
            self._r2ts[number] = r2t
        if number < self.top:
            self.tries = 0
        else:
            self.top = number + 1
        task.data_sn = self._numbers.reach(task.data_sn)
        task.received = self._bytes.reach(0)
        return True

    def due_r2ts(self, task: Task) -> list[Transfer]:
        """Return, in order and once, the R2Ts before which none is missing."""
        due = sorted(number for number in self._r2ts if number < task.data_sn)
        return [self._r2ts.pop(number) for number in due]

    @property
    def waiting_r2ts(self) -> int:
        """How many R2Ts wait for an earlier one."""
        return len(self._r2ts)

    def due_acks(self, task: Task) -> list[Acknowledgement]:
        """Return, once, the acknowledgements before which no data are missing."""
        due = [ack for ack in self.acks if ack.data_sn < task.data_sn]
        self.acks = [ack for ack in self.acks if ack.data_sn >= task.data_sn][-MAXIMUM_POSTPONED:]
        return due

    def missing(self, task: Task) -> list[tuple[int, int]]:
        """Return the runs of numbers that have not come, as half-open intervals."""
        return self._numbers.holes(task.data_sn, self.top)

    def skip(self, task: Task) -> None:
        """Give the first run of missing numbers up: what asked by them will ask anew."""
        for first, end in self.missing(task)[:1]:
            self._numbers.add(first, end)
        task.data_sn = self._numbers.reach(task.data_sn)

    def settled(self, task: Task) -> bool:
        """Whether all that came is contiguous again."""
        return task.data_sn >= self.top and task.received == self._count and not self._r2ts
