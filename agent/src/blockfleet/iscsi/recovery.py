# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery within a command and within a connection (RFC 3720 6.1.4.1, 6.1.4.2), from error recovery level 1 on.

A connection has a :class:`Recovery` only at these levels.  What is lost shows in a gap of numbers, in a digest
error or in silence; it is asked for by SNACK.  What cannot be had again ends its task, or the connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import RESERVED_TAG, Opcode, RejectReason, SnackType, TaskFunction
from blockfleet.iscsi.events import LossKind
from blockfleet.iscsi.layout import DATA_IN, NOP_IN, SCSI_RESPONSE
from blockfleet.iscsi.pdu import Pdu, Reject, SnackRequest
from blockfleet.iscsi.reordering import proceed
from blockfleet.iscsi.response import scsi_response
from blockfleet.iscsi.sequence import MAXIMUM_AHEAD, Acknowledgement, InputSequence
from blockfleet.iscsi.serial import after
from blockfleet.iscsi.status_order import MAXIMUM_TRIES, HeldResponse, StatusOrder
from blockfleet.iscsi.task import Ping, TextRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.task import Control, Task

LONGEST_SILENCE = 30.0
"""Seconds between two pings for a task that makes no progress; the first comes after ``Patience.recovery``."""

MAXIMUM_RUNS = 64
"""Runs of missing data that are asked for at once, for one task."""


@dataclass(slots=True)
class _Quiet:
    """A request without progress: how far it had come, and when the target is asked for news of it."""

    request: Task | Control
    mark: tuple[int, int]
    due: float
    step: float


class Recovery:
    """What one connection does about lost and damaged PDUs."""

    __slots__ = ("_connection", "_quiet", "_searching_since", "_silence", "statuses")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._quiet: dict[int, _Quiet] = {}
        self._searching_since = 0.0
        self._silence = -1.0
        self.statuses = StatusOrder(connection)

    # -- responses out of order

    def hold_response(self, buffer: bytearray | bytes, at: int, data: memoryview | None) -> None:
        """Hold a SCSI Response that is not the expected one, or comes before all data of its task."""
        connection = self._connection
        header = bytes(buffer[at : at + SCSI_RESPONSE.size])
        _, _, _, status, _, tag, _, stat_sn, exp_cmd_sn, max_cmd_sn, exp_data_sn, *_ = SCSI_RESPONSE.unpack(header)
        task = connection.session.tasks.get(tag)
        if not connection.session.update_window(exp_cmd_sn, max_cmd_sn):
            return
        copy = None if data is None else memoryview(bytes(data))
        held = HeldResponse(
            partial(scsi_response, connection, header, 0, copy, released=True),
            len(header) + (0 if copy is None else len(copy)),
            task,
            status,
            exp_data_sn,
        )
        self.statuses.hold(stat_sn, held)
        if task is not None and task.command.data_in is not None and connection.takes_data:
            self._expect_data(task, exp_data_sn)

    def hold_status_in_data(self, task: Task, flags: int, status: int, stat_sn: int, residual: int) -> None:
        """Hold the status of a Data-In whose data are taken."""
        take = partial(self._connection.status_in_data, task, flags, status, stat_sn, residual, released=True)
        self.statuses.hold(stat_sn, HeldResponse(take, DATA_IN.size, task, status))

    def hold_control(self, stat_sn: int, pdu: Pdu, take: partial[None]) -> None:
        """Hold a numbered PDU that ends no SCSI task."""
        self.statuses.hold(stat_sn, HeldResponse(take, len(pdu.data) + SCSI_RESPONSE.size))

    def late_data_in(self, stat_sn: int | None) -> None:
        """Drop a Data-In of a task that has ended; its StatSN, if it has one, must not stay open."""
        connection = self._connection
        connection.session.counters.repeats += 1
        if stat_sn is not None:
            self.statuses.hold(stat_sn, HeldResponse(partial(connection.take_status, stat_sn)))

    # -- data out of order

    def arrived(self, task: Task, sequence: InputSequence, number: int, top: int) -> None:
        """Ask for what is missing before a Data-In or R2T that is above ``top``."""
        task.sequence = sequence
        if number > top:
            self._ask(task, sequence, top, number - top)

    def _expect_data(self, task: Task, exp_data_sn: int) -> None:
        sequence = task.sequence or InputSequence(task)
        top = sequence.top
        if exp_data_sn <= top:
            return
        if exp_data_sn > task.data_sn + MAXIMUM_AHEAD:
            self._connection.protocol_error(f"ExpDataSN {exp_data_sn} of tag {task.tag:#010x}")
            return
        sequence.top = exp_data_sn
        task.sequence = sequence
        self._ask(task, sequence, top, exp_data_sn - top)

    def _again(self, task: Task, sequence: InputSequence, runs: list[tuple[int, int]]) -> None:
        """Ask again for ``runs`` of numbers, half-open; too often in vain ends the connection."""
        sequence.tries += 1
        if sequence.tries > MAXIMUM_TRIES:
            self._connection.lose(
                LossKind.DIGEST, f"data of command {task.command.cdb.hex()} were lost and do not come again"
            )
            return
        for first, end in runs[:MAXIMUM_RUNS]:
            self._ask(task, sequence, first, end - first)

    def _ask(self, task: Task, sequence: InputSequence, first: int, count: int) -> None:
        connection = self._connection
        session = connection.session
        sequence.asked_at = session.now
        if connection.paused or sequence.refused:
            return
        session.counters.data_snacks += 1
        to_end = session.quirks.last_data_in_not_nameable and first + count == sequence.top
        snack = SnackRequest(
            type=SnackType.DATA_R2T,
            lun=task.command.lun,
            initiator_task_tag=task.tag,
            exp_stat_sn=connection.exp_stat_sn,
            beg_run=first,
            run_length=0 if to_end and task.command.data_in is not None else count,
        )
        connection.send(snack.encode())

    def acknowledge_data(self, task: Task, ack: Acknowledgement) -> None:
        """Acknowledge the data that have come without a gap, as the target asked (RFC 3720 10.7.2, 10.16.2)."""
        connection = self._connection
        if connection.paused:
            return
        connection.session.counters.data_acks += 1
        snack = SnackRequest(
            type=SnackType.DATA_ACK,
            lun=ack.lun,
            target_transfer_tag=ack.transfer_tag,
            exp_stat_sn=connection.exp_stat_sn,
            beg_run=task.data_sn,
        )
        connection.send(snack.encode())

    # -- digest errors

    def header_damaged(self, waiting: bool) -> None:
        """Have something follow a damaged header, so that the place of the next one can be known."""
        session = self._connection.session
        self._searching_since = session.now
        if waiting:
            session.ping(session.now, self._connection)

    def data_damaged(self, opcode: int, buffer: bytearray | bytes, at: int) -> None:
        """Ask again for a PDU of which the header is good and the data are not (RFC 3720 6.7)."""
        if opcode == Opcode.SCSI_DATA_IN:
            (_, _, _, _, _, tag, _, _, _, _, data_sn, _, _) = DATA_IN.unpack_from(buffer, at)
            task = self._connection.session.tasks.get(tag)
            if task is not None and task.command.data_in is not None:
                self._data_in_damaged(task, data_sn)
            return
        # StatSN is at one place in all of them.
        _, _, _, _, tag, _, stat_sn, _, _ = NOP_IN.unpack_from(buffer, at)
        if opcode == Opcode.NOP_IN and tag == RESERVED_TAG:
            self.statuses.shown(stat_sn)
        else:
            self.statuses.damaged(stat_sn)

    def _data_in_damaged(self, task: Task, data_sn: int) -> None:
        sequence = task.sequence or InputSequence(task)
        top = sequence.top
        if sequence.has(task, data_sn):
            return
        task.sequence = sequence
        if data_sn < top:
            self._again(task, sequence, [(data_sn, data_sn + 1)])
        elif data_sn > task.data_sn + MAXIMUM_AHEAD:
            self._connection.protocol_error(f"DataSN {data_sn} of tag {task.tag:#010x}")
        else:
            sequence.top = data_sn + 1
            self._ask(task, sequence, top, data_sn + 1 - top)

    # -- refusals

    def snack_rejected(self, pdu: Reject, rejected: Pdu) -> None:
        """Give up what the target will not send again (RFC 3720 6.7, 10.17.1).

        That is done when the Reject comes, out of the order of StatSN: it may be behind what it is about.
        """
        assert isinstance(rejected, SnackRequest)
        if rejected.type == SnackType.STATUS:
            gap = [first for first, _ in self.statuses.missing()]
            if gap:
                self._connection.lose(
                    LossKind.DIGEST, f"response {gap[0]:#010x} was lost and the target does not send it again"
                )
            return
        task = self._connection.session.tasks.get(rejected.initiator_task_tag)
        sequence = None if task is None else task.sequence
        if rejected.type != SnackType.DATA_R2T or task is None or sequence is None or not sequence.missing(task):
            return
        if task.command.data_in is None:
            # The R2T was given up by the target; it asks for the same data by a later one.
            sequence.skip(task)
            proceed(self._connection, task, sequence)
            return
        sequence.refused = True
        if pdu.reason != RejectReason.SNACK_REJECT and not self.statuses.holds_end_of(task):
            session = self._connection.session
            session.manage_task(TaskFunction.ABORT_TASK, task.command.lun, session.now, lambda _: None, task=task)

    # -- silence

    def scan(self, now: float) -> None:
        """Look for what is overdue: a header after a damaged one, data, responses, any news of a request."""
        connection = self._connection
        session = connection.session
        patience = session.patience
        if connection.searching and now - self._searching_since >= patience.resync:
            connection.lose(LossKind.DIGEST, "header digest error, and no PDU was found after it")
            return
        self.statuses.scan(now, patience.recovery)
        for task in [t for t in session.tasks.values() if t.connection is connection and t.sequence is not None]:
            sequence = task.sequence
            if sequence is None or not connection.takes_data or now - sequence.asked_at < patience.recovery:
                continue
            runs = sequence.missing(task)
            if runs and not sequence.refused:
                self._again(task, sequence, runs)
        if connection.takes_data and self._overdue(now):
            session.ping(now, connection)

    def _overdue(self, now: float) -> bool:
        """Whether a request has made no progress for so long that its response may be lost."""
        before, self._quiet = self._quiet, {}
        overdue = False
        patience = self._connection.session.patience.recovery
        for tag, request, mark in self._requests():
            quiet = before.get(tag)
            if quiet is None or quiet.request is not request or quiet.mark != mark:
                quiet = _Quiet(request, mark, now + patience, patience)
            elif now >= quiet.due:
                quiet.step = min(quiet.step * 2, LONGEST_SILENCE)
                quiet.due = now + quiet.step
                overdue = True
            self._quiet[tag] = quiet
        return overdue

    def _requests(self) -> Iterator[tuple[int, Task | Control, tuple[int, int]]]:
        session = self._connection.session
        for tag, task in session.tasks.items():
            if task.connection is self._connection:
                yield tag, task, (task.data_sn, task.received)
        for tag, request in session.control.items():
            if request.connection is self._connection and not isinstance(request, Ping):
                yield tag, request, (request.rounds if isinstance(request, TextRequest) else 0, 0)

    def ping_lost(self) -> bool:
        """Whether the silence after a ping may be its own loss: so it is once, until something is heard."""
        heard = self._connection.last_heard
        first = heard != self._silence
        self._silence = heard
        return first

    def ping_answered(self, answered: Ping) -> None:
        """Forget the pings before one that was answered: they or their answers were lost."""
        session = self._connection.session
        for tag, ping in list(session.control.items()):
            if not isinstance(ping, Ping) or ping.connection is not self._connection or ping.sent > answered.sent:
                continue
            if ping.cmd_sn is None or after(session.exp_cmd_sn, ping.cmd_sn):
                del session.control[tag]
                if ping.on_answer is not None:
                    ping.on_answer()
