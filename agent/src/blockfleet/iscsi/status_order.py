# SPDX-License-Identifier: GPL-3.0-or-later
"""Responses in the order of their StatSN, whatever of them was lost (RFC 3720 3.2.2.2, 6.8), from level 1 on.

A response is processed, and so acknowledged, when all before it have been and the data that it tells of are
complete.  Until then it is held, and what is missing is asked for by SNACK.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import SnackType
from blockfleet.iscsi.events import LossKind
from blockfleet.iscsi.pdu import SnackRequest
from blockfleet.iscsi.serial import HALF, MASK, after
from blockfleet.scsi.status import Status

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.task import Task

MAXIMUM_AHEAD = 8192
"""How far a StatSN may be ahead of the expected one, and so how many responses are held."""

MAXIMUM_HELD_BYTES = 8 << 20
"""Bytes of the responses of one connection that are held."""

MAXIMUM_TRIES = 8
"""Requests for the same missing PDUs without any answer to them, before the connection is given up."""

MAXIMUM_RUNS = 64
"""Runs of missing responses that are asked for at once."""

PROTOCOL_SERVICE_CRC_ERROR = bytes.fromhex("70000b000000000a00000000470500000000")
"""Sense data in fixed format: ABORTED COMMAND, 47h/05h, protocol service CRC error (RFC 3720 10.4.7.2)."""


@dataclass(frozen=True, slots=True)
class HeldResponse:
    """A response that waits for its turn; ``take`` processes it.

    ``status`` is that of ``task``, the SCSI task that it ends (None for anything else), and ``exp_data_sn`` how
    many Data-In and R2T PDUs the task has had by its account.
    """

    take: Callable[[], object]
    size: int = 0
    task: Task | None = None
    status: int = 0
    exp_data_sn: int = 0


class StatusOrder:
    """The responses of one connection, at error recovery level 1 and above."""

    __slots__ = ("_asked_at", "_bytes", "_connection", "_expected", "_held", "_top", "_tries")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._held: dict[int, HeldResponse] = {}
        self._bytes = 0
        self._top = connection.exp_stat_sn
        self._expected = connection.exp_stat_sn
        self._asked_at = 0.0
        self._tries = 0

    def __bool__(self) -> bool:
        """Whether responses are held."""
        return bool(self._held)

    def holds_end_of(self, task: Task) -> bool:
        """Whether the response that ends a task is held."""
        return any(held.task is task for held in self._held.values())

    # -- what comes

    def hold(self, stat_sn: int, held: HeldResponse) -> None:
        """Hold a response that is not the expected one, or whose task has data missing; a repeat is dropped."""
        connection = self._connection
        expected = connection.exp_stat_sn
        ahead = stat_sn - expected & MASK
        if ahead >= HALF or stat_sn in self._held:
            connection.session.counters.repeats += 1
            return
        if ahead > MAXIMUM_AHEAD:
            connection.protocol_error(f"StatSN {stat_sn:#010x} where {expected:#010x} was expected")
            return
        self._bytes += held.size
        if self._bytes > MAXIMUM_HELD_BYTES:
            connection.protocol_error(f"more than {MAXIMUM_HELD_BYTES} bytes of responses wait for a missing one")
            return
        if after(self._known(), stat_sn):
            self._tries = 0
        self._held[stat_sn] = held
        self.shown(stat_sn)
        self._top = max(self._known(), stat_sn + 1 & MASK, key=lambda number: number - expected & MASK)

    def asked_for(self, stat_sn: int) -> bool:
        """Whether a response is missing: others that were sent after it are known."""
        expected = self._connection.exp_stat_sn
        return stat_sn - expected & MASK < (self._known() - expected & MASK) and stat_sn not in self._held

    def shown(self, stat_sn: int) -> None:
        """Learn that the next StatSN is this one: what is missing before it was lost (RFC 3720 10.8.3, 10.19.2)."""
        top = self._known()
        count = stat_sn - top & MASK
        if 0 < count <= MAXIMUM_AHEAD:
            self._top = stat_sn
            self._ask(top, count)

    def damaged(self, stat_sn: int) -> None:
        """Ask again for a response that came with damaged data."""
        top = self._known()
        if not after(top, stat_sn):
            self.shown(stat_sn + 1 & MASK)
        elif stat_sn not in self._held and not after(self._connection.exp_stat_sn, stat_sn):
            self._again([(stat_sn, 1)])

    def _known(self) -> int:
        """Return the lowest StatSN that nothing is known of."""
        expected = self._connection.exp_stat_sn
        return expected if after(expected, self._top) else self._top

    # -- what is due

    def release(self) -> None:
        """Process the held responses whose turn has come."""
        connection = self._connection
        held = self._held
        while held and connection.takes_data:
            stat_sn = connection.exp_stat_sn
            head = held.get(stat_sn)
            if head is None or not self._ready(head):
                return
            del held[stat_sn]
            self._bytes -= head.size
            self._process(stat_sn, head)
        if not connection.takes_data:
            held.clear()

    def _ready(self, head: HeldResponse) -> bool:
        task = head.task
        if task is None or task.command.data_in is None or not task.connection.session.runs(task):
            return True
        sequence = task.sequence
        if sequence is not None and (sequence.refused or task.data_sn < sequence.top):
            return sequence.refused
        return task.data_sn >= head.exp_data_sn

    def _process(self, stat_sn: int, head: HeldResponse) -> None:
        connection, task = self._connection, head.task
        if task is None or connection.session.runs(task):
            lost_data = task is not None and task.sequence is not None and task.sequence.refused
            if task is None or not lost_data or head.status:
                head.take()
                return
            # Its data cannot be had: whatever the target says, it did not succeed (RFC 3720 6.7).
            connection.take_status(stat_sn)
            task.received = 0
            task.command.status = Status.CHECK_CONDITION
            task.command.sense = PROTOCOL_SERVICE_CRC_ERROR
            connection.session.complete(task)
        else:
            connection.take_status(stat_sn)

    # -- asking

    def missing(self) -> list[tuple[int, int]]:
        """Return the runs of responses that were sent and have not come: first StatSN and count."""
        runs: list[tuple[int, int]] = []
        number, top = self._connection.exp_stat_sn, self._known()
        while number != top:
            if number in self._held:
                number = number + 1 & MASK
                continue
            first = number
            while number != top and number not in self._held:
                number = number + 1 & MASK
            runs.append((first, number - first & MASK))
        return runs

    def scan(self, now: float, patience: float) -> None:
        """Ask again for what was asked for ``patience`` seconds ago and has not come."""
        if now - self._asked_at >= patience and (runs := self.missing()):
            self._again(runs[:MAXIMUM_RUNS])

    def _again(self, runs: list[tuple[int, int]]) -> None:
        connection = self._connection
        if self._expected != connection.exp_stat_sn:
            self._expected = connection.exp_stat_sn
            self._tries = 0
        self._tries += 1
        if self._tries > MAXIMUM_TRIES:
            connection.lose(LossKind.DIGEST, f"response {runs[0][0]:#010x} was lost and does not come again")
            return
        for first, count in runs:
            self._ask(first, count)

    def _ask(self, first: int, count: int) -> None:
        connection = self._connection
        self._asked_at = connection.session.now
        if connection.paused:
            return
        connection.session.counters.status_snacks += 1
        snack = SnackRequest(
            type=SnackType.STATUS, exp_stat_sn=connection.exp_stat_sn, beg_run=first, run_length=count
        )
        connection.send(snack.encode())
