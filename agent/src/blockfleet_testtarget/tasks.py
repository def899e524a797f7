# SPDX-License-Identifier: GPL-3.0-or-later
"""SCSI tasks: from the command PDU over its data to the response (RFC 3720 3.2.4, 10.3 to 10.8)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import (
    FINAL,
    NO_LUN,
    NO_TAG,
    OVERFLOW,
    READ,
    STATUS,
    UNDERFLOW,
    WRITE,
    Op,
    Pdu,
    RejectReason,
    target_header,
)
from blockfleet_testtarget.scsi import device
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.call import Call
from blockfleet_testtarget.scsi.inquiry import lun_number
from blockfleet_testtarget.scsi.reservation import Conflict
from blockfleet_testtarget.scsi.sense import CheckCondition, Sense, Status
from blockfleet_testtarget.scsi.unit import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.session import Session

_DATA_IN = struct.Struct(">BBBBI8sIIIIIIII")
WITH_STATUS = frozenset({Status.GOOD, Status.CONDITION_MET})


class ProtocolError(Exception):
    """The initiator broke the protocol; `reason` is that of a Reject, or None to drop the connection.

    `number` is the next DataSN or R2TSN of the task that a SNACK is about (10.17.2).
    """

    def __init__(self, cause: str, reason: int | None = None, number: int = 0) -> None:
        super().__init__(cause)
        self.reason = reason
        self.number = number


class Transfer:
    """One R2T that waits for its data."""

    __slots__ = ("datasn", "end", "next", "r2tsn", "start", "task", "ttt")

    def __init__(self, task: Task, ttt: int, start: int, end: int) -> None:
        self.task = task
        self.ttt = ttt
        self.r2tsn = task.r2tsn
        self.start = start
        self.next = start
        self.end = end
        self.datasn = 0


class Task:
    """One SCSI command. It belongs to its session and is allegiant to one connection.

    States: waiting for its turn (CmdSN), for unsolicited data, for solicited data, running, done.
    `aborted` tasks finish their data transfer but run nothing and answer nothing.
    """

    __slots__ = (
        "aborted",
        "buffer",
        "call",
        "cdb",
        "cmdsn",
        "command",
        "connection",
        "datasn",
        "done",
        "early",
        "expected",
        "flags",
        "immediate",
        "itt",
        "lun",
        "lun_field",
        "needed",
        "on_drained",
        "outcome",
        "r2tsn",
        "received",
        "requested",
        "session",
        "started",
        "transfers",
        "unsolicited",
        "unsolicited_datasn",
        "wanted",
    )

    def __init__(self, session: Session, connection: Connection, pdu: Pdu) -> None:
        self.session = session
        self.connection = connection
        self.itt = pdu.itt
        self.cmdsn = pdu.cmdsn
        self.flags = pdu.flags
        self.immediate = pdu.immediate
        self.expected = pdu.expected_length
        self.cdb = pdu.cdb
        self.lun_field = pdu.lun
        self.lun = lun_number(self.lun_field)
        self.buffer: bytearray | None = None
        self.early: list[tuple[int, bytes]] = []
        self.received = 0
        self.requested = 0
        self.needed = 0
        self.wanted = 0
        self.unsolicited = bool(self.flags & WRITE) and not self.flags & FINAL
        self.unsolicited_datasn = 0
        self.transfers: dict[int, Transfer] = {}
        self.r2tsn = 0
        self.datasn = 0
        self.call: Call | None = None
        self.command: device.Command | None = None
        self.outcome: Result | None = None
        self.started = False
        self.aborted = False
        self.done = False
        self.on_drained: list[Callable[[], None]] = []

    # ---- data from the initiator

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Keep a piece of Data-Out; what is beyond the wanted length is dropped."""
        if not self.started:
            self.early.append((offset, bytes(data)))
        elif self.buffer is not None and offset < self.wanted:
            end = min(offset + len(data), self.wanted)
            self.buffer[offset:end] = data[: end - offset]
        self.received = max(self.received, offset + len(data))

    def unsolicited_data(self, pdu: Pdu, *, lost: bool = False) -> None:
        """Take an unsolicited Data-Out PDU, `lost` when its digest was wrong; raises ProtocolError."""
        if not self.unsolicited:
            raise ProtocolError("unsolicited Data-Out after the final one", RejectReason.PROTOCOL_ERROR)
        end = pdu.buffer_offset + len(pdu.data)
        if end > min(self.session.values["FirstBurstLength"], self.expected):
            raise ProtocolError("more unsolicited data than FirstBurstLength or the expected length")
        self._take(pdu, self.unsolicited_datasn, self.received, lost=lost)
        self.unsolicited_datasn = pdu.datasn + 1
        if pdu.final:
            self.unsolicited = False
            if self.started:
                self.proceed()

    def solicited_data(self, transfer: Transfer, pdu: Pdu, *, lost: bool = False) -> None:
        """Take a Data-Out PDU that answers an R2T, `lost` when its digest was wrong; raises ProtocolError."""
        self._take(pdu, transfer.datasn, transfer.next, lost=lost)
        transfer.datasn = pdu.datasn + 1
        transfer.next = pdu.buffer_offset + len(pdu.data)
        if transfer.next > transfer.end:
            raise ProtocolError("more data than the R2T asked for")
        if not pdu.final:
            if transfer.next == transfer.end and self.outcome is None:
                raise ProtocolError("the last Data-Out of an R2T has no F bit")
            return
        if transfer.next < transfer.end and not self.aborted and self.outcome is None:
            raise ProtocolError("F bit before the R2T was served")
        del self.transfers[transfer.ttt]
        del self.session.transfers[transfer.ttt]
        self.proceed()

    def _take(self, pdu: Pdu, datasn: int, offset: int, *, lost: bool) -> None:
        # A gap means that a PDU was lost: at recovery level 0 the task then ends with CHECK
        # CONDITION, once the rest of the data is there (6.7, 6.8).
        gap = ""
        if pdu.datasn != datasn:
            gap = f"DataSN {pdu.datasn} where {datasn} is due"
        elif pdu.buffer_offset != offset:
            gap = f"Data-Out at offset {pdu.buffer_offset} where {offset} is due"
        if gap and self.outcome is None:
            self.connection.violation(gap)
        if gap or lost:
            self.spoil(conditions.CRC_ERROR)
        elif self.outcome is None:
            self.store(pdu.buffer_offset, pdu.data)

    def spoil(self, sense: Sense) -> None:
        """Let the task end with CHECK CONDITION when its data transfer is over."""
        if self.outcome is None:
            self.outcome = device.failure(CheckCondition(sense))

    # ---- execution

    def start(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Begin to execute: the command's turn has come. `data` is the immediate data."""
        session = self.session
        self.started = True
        needed = 0
        unit = session.node.luns.get(self.lun) if session.node is not None else None
        if self.outcome is None:
            self.outcome = session.endpoint.result_instead(self)
        if self.outcome is not None:
            pass
        elif unit is None:
            self.outcome = device.absent(self.cdb, session.luns)
        else:
            out_size = self.expected if self.flags & WRITE else 0
            call = Call(self.cdb, unit, session.nexus, session.luns, out_size)
            try:
                self.command = device.find(self.cdb)
                needed = device.admit(call, self.command)
                self.call = call
            except (CheckCondition, Conflict) as error:
                self.outcome = device.failure(error)
        self.needed = needed
        self.wanted = min(needed, self.expected) if self.flags & WRITE else 0
        self._begin_data(data)

    def _begin_data(self, data: bytes | bytearray | memoryview) -> None:
        complete = not self.unsolicited and not self.early
        if self.call is not None and complete and len(data) >= self.wanted:
            self.call.data = data[: self.wanted]
            self.received = len(data)
            self.run()
            return
        if self.wanted:
            self.buffer = bytearray(self.wanted)
        pieces, self.early = self.early, []
        if data:
            self.store(0, data)
        for offset, piece in pieces:
            self.store(offset, piece)
        self.proceed()

    def proceed(self) -> None:
        """Ask for the data that has not come, or run when all is there."""
        if self.unsolicited or self.done:
            return
        if self.aborted or self.outcome is not None:
            if not self.transfers:
                self.run()
            return
        if not self.requested:
            self.requested = self.received
        limit = self.session.values["MaxOutstandingR2T"]
        burst = self.session.values["MaxBurstLength"]
        while self.requested < self.wanted and len(self.transfers) < limit:
            end = min(self.requested + burst, self.wanted)
            self._ask(self.requested, end)
            self.requested = end
        if not self.transfers:
            if self.call is not None and self.buffer is not None:
                self.call.data = self.buffer
            self.run()

    def _ask(self, start: int, end: int) -> None:
        session = self.session
        transfer = Transfer(self, session.new_tag(), start, end)
        self.transfers[transfer.ttt] = transfer
        session.transfers[transfer.ttt] = transfer
        self.r2tsn += 1
        self.send_r2t(transfer)

    def send_r2t(self, transfer: Transfer) -> None:
        """Send the R2T of a transfer."""
        connection = self.connection
        header = target_header(
            Op.R2T,
            lun=self.lun_field,
            itt=self.itt,
            ttt=transfer.ttt,
            statsn=connection.statsn,
            window=connection.window(),
            word36=transfer.r2tsn,
            word40=transfer.start,
            word44=transfer.end - transfer.start,
        )
        connection.send(header)

    def run(self) -> None:
        """Execute the command, unless a fault takes it over, and answer."""
        if self.aborted:
            self.finish()
            return
        if not self.session.endpoint.taken_over(self):
            self.respond(self.execute())

    def keep_data(self) -> None:
        """Make the data outlive the PDU that brought it, for a run that comes later."""
        if self.call is not None:
            self.call.data = bytes(self.call.data)

    def execute(self) -> Result:
        """Run the command against the logical unit and return its result, without answering."""
        if self.outcome is not None or self.call is None or self.command is None:
            return self.outcome or device.failure(CheckCondition(conditions.UNKNOWN_OPCODE))
        return device.execute(self.call, self.command)

    def abort(self) -> None:
        """Terminate without an answer; data already asked for is taken and dropped."""
        self.aborted = True
        if not self.started or (not self.transfers and not self.unsolicited):
            self.finish()

    def finish(self) -> None:
        """Leave the session's task set."""
        if self.done:
            return
        self.done = True
        if self.unsolicited or self.transfers:
            self.session.ended.append(self.itt)
        for ttt in self.transfers:
            self.session.transfers.pop(ttt, None)
        self.transfers = {}
        self.session.task_done(self)

    # ---- answers

    def respond(self, result: Result) -> None:
        """Send data and status, and end the task. Nothing happens when it was aborted meanwhile."""
        if self.done:
            return
        if self.aborted:
            self.finish()
            return
        self.finish()
        if not self.connection.writable:
            return
        if result.data and self.flags & READ and self.expected and result.status in WITH_STATUS:
            self._send_data(result)
        else:
            self._send_response(result, len(result.data))

    def residual(self, length: int) -> tuple[int, int]:
        """Return the U or O flag, and the residual count, when `length` bytes were there to move."""
        if length < self.expected:
            return UNDERFLOW, self.expected - length
        if length > self.expected:
            return OVERFLOW, length - self.expected
        return 0, 0

    def _send_data(self, result: Result) -> None:
        connection, session = self.connection, self.session
        total = len(result.data)
        data = memoryview(result.data)[: self.expected]
        length = len(data)
        segment, burst = connection.peer_segment, session.values["MaxBurstLength"]
        in_data = session.endpoint.config.status_in_data
        offset, expcmdsn, maxcmdsn = 0, session.expcmdsn, session.max_cmdsn()
        while offset < length:
            end = min(offset + segment, (offset // burst + 1) * burst, length)
            flags = FINAL if end == length or end % burst == 0 else 0
            statsn = residual = status = 0
            if end == length and in_data:
                more, residual = self.residual(total)
                flags |= STATUS | more
                status = result.status
                statsn = connection.take_statsn()
            header = _DATA_IN.pack(
                Op.DATA_IN,
                flags,
                0,
                status,
                end - offset,
                NO_LUN,
                self.itt,
                NO_TAG,
                statsn,
                expcmdsn,
                maxcmdsn,
                self.datasn,
                offset,
                residual,
            )
            connection.send(header, data[offset:end])
            self.datasn += 1
            offset = end
        if not in_data:
            self._send_response(result, total)

    def _send_response(self, result: Result, length: int) -> None:
        connection = self.connection
        connection.send(*self.response(result, length, connection.take_statsn()))

    def response(self, result: Result, length: int, statsn: int, snack_tag: int = 0) -> tuple[bytes, bytes]:
        """Return the header and the data of the SCSI Response (10.4)."""
        data = b""
        if result.sense is not None:
            sense = result.sense.fixed()
            data = struct.pack(">H", len(sense)) + sense
        if result.status not in WITH_STATUS:
            moved = 0
        elif self.command is not None and self.command.out is not None:
            moved = self.needed
        else:
            moved = length
        flags, residual = self.residual(moved)
        header = target_header(
            Op.SCSI_RESPONSE,
            flags=FINAL | flags,
            byte3=result.status,
            length=len(data),
            itt=self.itt,
            ttt=snack_tag,
            statsn=statsn,
            window=self.connection.window(),
            word36=self.datasn + self.r2tsn if self.datasn else 0,
            word44=residual,
        )
        return header, data
