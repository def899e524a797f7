# SPDX-License-Identifier: GPL-3.0-or-later
"""SCSI tasks at recovery level 1 and 2: lost data is asked for again, sent data and status are kept."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import (
    FINAL,
    NO_LUN,
    NO_TAG,
    READ,
    STATUS,
    Op,
    Pdu,
    later,
    target_header,
    with_window,
)
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.spans import Spans
from blockfleet_testtarget.tasks import WITH_STATUS, ProtocolError, Task, Transfer

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.scsi.unit import Result
    from blockfleet_testtarget.session import Session

RECOVERY_LIMIT = 16  # recovery R2Ts of one task; then it ends with CHECK CONDITION
ACKNOWLEDGE = 0x40  # the A bit of a Data-In


class RecoverableTask(Task):
    """A task whose data and status survive digest errors, and at level 2 the loss of its connection.

    `acked` is the data acknowledgement reference number: the first DataSN not acknowledged
    (10.5.6), `acked_offset` where its data begins. `sent` holds the Data-In PDUs from there on.
    """

    __slots__ = (
        "ack_tags",
        "acked",
        "acked_offset",
        "dead",
        "forgotten",
        "given_up",
        "have",
        "heard",
        "kept",
        "length",
        "missing",
        "recoveries",
        "repeated",
        "result",
        "running",
        "segment",
        "sent",
        "snack_tag",
        "snack_tags",
        "statsn",
        "timer",
        "unfulfilled",
    )

    def __init__(self, session: Session, connection: Connection, pdu: Pdu) -> None:
        super().__init__(session, connection, pdu)
        self.have = Spans()
        self.missing: deque[tuple[int, int]] = deque()
        self.recoveries = 0
        self.dead: set[int] = set()  # Target Transfer Tags whose data was asked for again
        self.repeated: set[int] = set()  # R2Ts that were sent twice
        self.given_up = False  # unsolicited data is no longer waited for
        self.unfulfilled: int | None = None  # lowest R2TSN whose data had not come when the connection was lost
        self.heard = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.running = False
        self.result: Result | None = None
        self.kept = 0  # bytes of read data that count as kept
        self.length = 0  # of the read data that the initiator takes
        self.forgotten = False
        self.sent: dict[int, tuple[bytes, memoryview]] = {}
        self.ack_tags: list[int] = []
        self.acked = self.acked_offset = self.segment = 0
        self.statsn: int | None = None
        self.snack_tag = 0
        self.snack_tags: set[int] = set()
        if self.unsolicited:
            self._await_data()

    # ---- data from the initiator

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        super().store(offset, data)
        self.have.add(offset, offset + len(data))

    def unsolicited_data(self, pdu: Pdu, *, lost: bool = False) -> None:
        if not self.given_up:
            super().unsolicited_data(pdu, lost=lost)

    def solicited_data(self, transfer: Transfer, pdu: Pdu, *, lost: bool = False) -> None:
        end = pdu.buffer_offset + len(pdu.data)
        if pdu.buffer_offset < transfer.start or end > transfer.end:
            raise ProtocolError("data outside of what the R2T asked for")
        self._take(pdu, transfer.datasn, transfer.next, lost=lost)
        transfer.datasn = pdu.datasn + 1
        transfer.next = end
        if pdu.final:
            self._end_transfer(transfer)
            self.proceed()

    def _take(self, pdu: Pdu, datasn: int, offset: int, *, lost: bool) -> None:
        # ExpDataSN advances over what was lost, since a recovery R2T will bring it (6.3).
        self.heard = asyncio.get_running_loop().time()
        in_order = bool(self.session.values["DataPDUInOrder"])
        if pdu.datasn != datasn or (in_order and pdu.buffer_offset != offset):
            text = f"DataSN {pdu.datasn} at offset {pdu.buffer_offset} where {datasn} at {offset} is due"
            if later(pdu.datasn, datasn) and (pdu.buffer_offset > offset or not in_order):
                self.session.endpoint.note(f"data lost: {text}")
            else:
                self.connection.violation(text)
        if lost:
            self.received = max(self.received, pdu.buffer_offset + len(pdu.data))
        elif self.outcome is None:
            self.store(pdu.buffer_offset, pdu.data)

    def _end_transfer(self, transfer: Transfer) -> None:
        del self.transfers[transfer.ttt]
        del self.session.transfers[transfer.ttt]
        self.missing.extend(self.have.holes(transfer.start, min(transfer.end, self.wanted)))

    # ---- asking for it, and again

    def proceed(self) -> None:
        if self.suspended and self.outcome is None and not self.aborted:
            return
        if not (self.unsolicited or self.done or self.aborted) and self.outcome is None:
            if not self.requested:
                self.missing.extend(self.have.holes(0, min(self.received, self.wanted)))
                self.requested = self.received
            self._ask_missing()
        super().proceed()

    def _ask_missing(self) -> None:
        # Only between sequences, so that MaxOutstandingR2T holds for recovery R2Ts as well.
        limit, burst = self.session.values["MaxOutstandingR2T"], self.session.values["MaxBurstLength"]
        while self.missing and len(self.transfers) < limit:
            self.recoveries += 1
            if self.recoveries > RECOVERY_LIMIT or self.session.endpoint.gives_up(self):
                self.missing.clear()
                self.spoil(conditions.CRC_ERROR)
                return
            start, end = self.missing.popleft()
            if end - start > burst:
                self.missing.appendleft((start + burst, end))
                end = start + burst
            self.session.endpoint.note(f"recovery R2T for {end - start} bytes at {start} of task {self.itt:#x}")
            self._ask(start, end)

    def send_r2t(self, transfer: Transfer) -> None:
        super().send_r2t(transfer)
        self._await_data()

    def _await_data(self) -> None:
        loop = asyncio.get_running_loop()
        self.heard = loop.time()
        if self.timer is None:
            self.timer = loop.call_later(self.session.endpoint.config.sequence_timeout, self._check_data)

    def _check_data(self) -> None:
        """Sequence reception timeout (6.1.4.1): what is still open is lost, unless data came lately."""
        self.timer = None
        if self.done or not (self.transfers or self.unsolicited):
            return
        loop = asyncio.get_running_loop()
        left = self.heard + self.session.endpoint.config.sequence_timeout - loop.time()
        if left > 0.001:
            self.timer = loop.call_later(left, self._check_data)
            return
        self.session.endpoint.note(f"data of task {self.itt:#x} is overdue")
        if self.unsolicited:
            self.unsolicited = False
            self.given_up = True
        for transfer in list(self.transfers.values()):
            if not transfer.datasn and transfer.r2tsn not in self.repeated:
                self.repeated.add(transfer.r2tsn)
                self.send_r2t(transfer)  # the R2T itself may be lost; duplicates are dropped (6.8)
            else:
                self.dead.add(transfer.ttt)
                self._end_transfer(transfer)
        if self.transfers:
            self._await_data()
        if self.started:
            self.proceed()

    # ---- execution

    def run(self) -> None:
        self.running = True
        super().run()

    def finish(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.dead and not self.done:
            self.session.ended.append(self.itt)
        super().finish()

    # ---- answers

    def respond(self, result: Result) -> None:
        if self.done:
            return
        self.finish()
        if self.aborted:
            return
        self.result = result
        self.kept = len(result.data)
        self.length = min(self.kept, self.expected)
        if self.session.retention is not None:
            self.session.retention.keep(self)
        if not self.suspended:
            self._transmit(result)

    def _transmit(self, result: Result) -> None:
        if result.data and self.flags & READ and self.expected and result.status in WITH_STATUS:
            self._send_data(result)
        else:
            self._send_response(result, len(result.data))

    def _send_data(self, result: Result) -> None:
        connection, session = self.connection, self.session
        data = memoryview(result.data)[: self.expected]
        length, burst = len(data), session.values["MaxBurstLength"]
        self.segment = connection.peer_segment
        self.datasn, offset = self.acked, self.acked_offset
        in_data = session.endpoint.config.status_in_data and not self.snack_tag and offset < length
        self.sent = {}
        while offset < length:
            end = min(offset + self.segment, (offset // burst + 1) * burst, length)
            piece = data[offset:end]
            last = end == length
            header = self._data_header(result, offset, len(piece), last=last, status=last and in_data)
            self.sent[self.datasn] = (header, piece)
            if last and in_data:
                connection.send_status(header, piece, self)
            else:
                connection.send(header, piece)
            self.datasn += 1
            offset = end
        if not in_data:
            self._send_response(result, len(result.data))

    def _data_header(self, result: Result, offset: int, length: int, *, last: bool, status: bool) -> bytes:
        session, end = self.session, offset + length
        flags, ttt, lun, statsn, residual = 0, NO_TAG, NO_LUN, 0, 0
        if last or end % session.values["MaxBurstLength"] == 0:
            flags = FINAL
            ask = session.endpoint.config.data_ack
            if ask == "bursts" or (last and ask == "last"):
                flags |= ACKNOWLEDGE
                ttt, lun = self._ack_tag(), self.lun_field
        if status:
            more, residual = self.residual(len(result.data))
            flags |= STATUS | more
            statsn = self.statsn = self.connection.take_statsn()
        return target_header(
            Op.DATA_IN,
            flags=flags,
            byte3=result.status if status else 0,
            length=length,
            lun=lun,
            itt=self.itt,
            ttt=ttt,
            statsn=statsn,
            window=self.connection.window(),
            word36=self.datasn,
            word40=offset,
            word44=residual,
        )

    def _ack_tag(self) -> int:
        tag = self.session.new_tag()
        if self.session.retention is not None:
            self.session.retention.tags[tag] = (self, self.datasn + 1)
            self.ack_tags.append(tag)
        return tag

    def _send_response(self, result: Result, length: int) -> None:
        connection = self.connection
        if self.statsn is None:
            self.statsn = connection.take_statsn()
        connection.send_status(*self.response(result, length, self.statsn, self.snack_tag), self)

    # ---- sending again

    def acknowledge_data(self, datasn: int) -> None:
        """Count the Data-In PDUs before a DataSN as received; it is not above the next to be sent."""
        if not later(datasn, self.acked):
            return
        if datasn in self.sent:
            self.acked_offset = int.from_bytes(self.sent[datasn][0][40:44], "big")
        else:
            self.acked_offset = self.length
        for number in range(self.acked, datasn):
            self.sent.pop(number, None)
        self.acked = datasn

    def resend_data(self, first: int, end: int) -> None:
        """Send Data-In PDUs again, as they were but for the window."""
        window = self.connection.window()
        for number in range(first, end):
            header, piece = self.sent[number]
            self.connection.send(with_window(header, window), piece)

    def resegment(self, snack_tag: int) -> None:
        """Send all unacknowledged data anew, and a response with the tag (10.16.3)."""
        self.snack_tag = snack_tag
        self.snack_tags.add(snack_tag)
        if self.result is not None:
            self._transmit(self.result)

    def forget_data(self) -> None:
        """Let go of the read data; a SNACK for it will be rejected."""
        if self.result is not None and self.result.data:
            self.forgotten = True
            self.kept = 0
            self.sent = {}
            self.result = type(self.result)(self.result.status, b"", self.result.sense)

    # ---- allegiance

    @property
    def suspended(self) -> bool:
        """Whether the connection that the task belongs to is gone."""
        return not self.connection.operational

    def suspend(self) -> None:
        """The connection was lost: nothing more comes on it, neither data nor an answer to an R2T."""
        transfers = list(self.transfers.values())
        if self.unfulfilled is None:
            self.unfulfilled = min([transfer.r2tsn for transfer in transfers], default=self.r2tsn)
        for transfer in transfers:
            self.dead.add(transfer.ttt)
            self._end_transfer(transfer)
        self.given_up = self.given_up or self.unsolicited
        self.unsolicited = False
        if self.started:
            self.proceed()

    def resume(self, connection: Connection, expdatasn: int) -> None:
        """Go on at another connection: TASK REASSIGN (6.2.2, 10.5.6)."""
        self.connection = connection
        self.statsn = None
        self.snack_tag = 0
        if self.result is not None:
            if (expdatasn and later(self.acked, expdatasn)) or later(expdatasn, self.datasn):
                connection.violation(f"ExpDataSN {expdatasn} is not within {self.acked} to {self.datasn}")
            else:
                self.acknowledge_data(expdatasn)
            if self.forgotten:
                self.result, self.forgotten = self.execute(), False
            self._transmit(self.result)
        elif self.started and not self.running:
            self._restart(expdatasn)

    def conclude(self, connection: Connection) -> None:
        """Send the status again, without the data, at the connection that aborts the task."""
        if self.statsn is not None:
            self.resume(connection, self.datasn)
        elif self.session.retention is not None:
            self.session.retention.release(self)

    def _restart(self, expdatasn: int) -> None:
        # Data that has come stays; the rest is asked for anew, first R2TSN as acknowledged.
        lowest = self.r2tsn if self.unfulfilled is None else self.unfulfilled
        self.r2tsn = expdatasn if lowest < expdatasn <= self.r2tsn else lowest
        self.unfulfilled = None
        holes = self.have.holes(0, self.wanted)
        tail = holes.pop() if holes and holes[-1][1] == self.wanted else (self.wanted, self.wanted)
        self.requested = self.received = tail[0]
        self.missing = deque(holes)
        self.recoveries = 0
        self.proceed()
