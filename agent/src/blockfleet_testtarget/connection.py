# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection: login, status numbers, and the requests of the full feature phase."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from blockfleet_testtarget import codec, logout, snack, task_management
from blockfleet_testtarget.codec import (
    FINAL,
    HEADER_LENGTH,
    MASK32,
    NO_TAG,
    WRITE,
    AsyncEvent,
    Op,
    Pdu,
    RejectReason,
    later,
    target_header,
)
from blockfleet_testtarget.keys import SEGMENT_DEFAULT
from blockfleet_testtarget.login import Login
from blockfleet_testtarget.recovery import RecoverableTask
from blockfleet_testtarget.retention import StatusLog
from blockfleet_testtarget.scsi.inquiry import lun_field
from blockfleet_testtarget.stream import PduStream
from blockfleet_testtarget.tasks import ProtocolError, Task
from blockfleet_testtarget.text import TextExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockfleet_testtarget.scsi.sense import Sense
    from blockfleet_testtarget.session import Session
    from blockfleet_testtarget.target import Portal, TestTarget


STATSN_STEP = 0x10000
_LOGOUT = Op.LOGOUT_REQUEST.value  # a plain number, for every PDU is compared with it


class Connection(PduStream):
    """A connection of the target side, from the login to the logout.

    `violations` lists what the initiator did against the RFC, also where the target goes on. `log`
    keeps the numbered responses at recovery level 1 and 2; `removed` says that no task belongs to
    the connection any more; `announced` is Time2Wait and Time2Retain of an Asynchronous Message.
    """

    def __init__(self, endpoint: TestTarget, portal: Portal) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.portal = portal
        self.number = endpoint.next_connection_number()
        self.session: Session | None = None
        self.login: Login | None = Login(self)
        self.cid = -1  # until the first Login Request
        self.initiator_name = ""
        self.target_name = ""
        self.statsn = endpoint.config.first_statsn
        self.acknowledged = self.statsn
        self.peer_segment = SEGMENT_DEFAULT
        self.log: StatusLog | None = None
        self.removed = False
        self.announced: tuple[int, int] | None = None
        self.text = TextExchange(self)
        self.violations: list[str] = []
        self.pings: dict[int, float] = {}
        self._acks: list[tuple[int, Callable[[], None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.initiator_name or '?'} cid={self.cid}>"

    # ---- transport

    def opened(self) -> None:
        self._limit_login()
        self.endpoint.connection_opened(self)

    def _limit_login(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.endpoint.config.login_timeout, self._login_overdue)

    def ended(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.endpoint.connection_closed(self)
        if self.session is not None:
            self.session.connection_lost(self)
        acks, self._acks = self._acks, []
        for _, callback in acks:
            callback()

    def _login_overdue(self) -> None:
        if self.frozen:
            self._limit_login()
        elif self.login is not None:
            self.close("login took too long")

    @property
    def local_host(self) -> str:
        """The address at which the initiator reached us."""
        if self._transport is None:
            return self.portal.host
        return str(self._transport.get_extra_info("sockname")[0])

    # ---- receiving

    def pdu_received(self, pdu: Pdu, *, wrong_data: bool) -> None:
        endpoint = self.endpoint
        if endpoint.watched:
            endpoint.record(self, pdu)
            if endpoint.intercept(self, pdu):
                return
        try:
            if wrong_data:
                self.digest_error("data digest is wrong")
                self.data_lost(pdu)
            elif self.login is not None:
                self.login.receive(pdu)
            else:
                self._full_feature(pdu)
        except ProtocolError as error:
            self._refuse(pdu, error)

    def _refuse(self, pdu: Pdu, error: ProtocolError) -> None:
        self.violation(str(error))
        if error.reason is None:
            self.close(str(error))
        else:
            self.reject(pdu, error.reason, error.number)

    def digest_error(self, text: str) -> None:
        # Where digest errors are recovered from, they are what networks do.
        if self.session is not None and self.session.level:
            self.endpoint.note(f"connection {self.number}: {text}")
        else:
            self.violation(text)

    def data_lost(self, pdu: Pdu) -> None:
        """Drop a PDU with a wrong data digest: its task asks again or ends, others are as if not sent (6.7)."""
        self.reject(pdu, RejectReason.DATA_DIGEST)
        if pdu.opcode == Op.DATA_OUT and self.session is not None:
            self._data_out(self.session, pdu, lost=True)

    def violation(self, text: str) -> None:
        self.violations.append(text)
        self.endpoint.violations.append(f"connection {self.number}: {text}")

    # ---- sending

    def number_apart(self) -> None:
        """Begin with a StatSN that no other connection of the session is near: each counts its own (3.2.2.2)."""
        self.statsn = (self.statsn + STATSN_STEP * self.number) & MASK32
        self.acknowledged = self.statsn

    def take_statsn(self) -> int:
        """Return the StatSN of the next response and advance it."""
        number = self.statsn
        self.statsn = (number + 1) & MASK32
        return number

    def send(self, bhs: bytes, data: bytes | memoryview = b"") -> None:
        """Queue a PDU; it leaves at the end of the loop's turn, through the faults that are armed."""
        if self.endpoint.bending:
            for pdu in self.endpoint.bend(self, Pdu(bhs, data)):
                self.emit(pdu)
        else:
            self.queue(bhs, data)

    def send_status(self, bhs: bytes, data: bytes | memoryview = b"", task: RecoverableTask | None = None) -> None:
        """Send a numbered response, which is kept until acknowledged where the recovery level wants it."""
        if self.log is not None:
            self.log.keep(bhs, data, task)
        self.send(bhs, data)

    def tell_window(self) -> None:
        """Send a NOP-In that carries the present window and wants no answer."""
        self.send(target_header(Op.NOP_IN, ttt=NO_TAG, statsn=self.statsn, window=self.window()))

    def window(self) -> tuple[int, int]:
        """Return ExpCmdSN and MaxCmdSN for a header."""
        if self.session is None:
            return 0, 0
        return self.session.expcmdsn, self.session.max_cmdsn()

    def reject(self, pdu: Pdu, reason: int, number: int = 0) -> None:
        """Send a Reject with the header of a PDU (10.17), and a DataSN or R2TSN where it is one to a SNACK."""
        header = target_header(
            Op.REJECT,
            byte2=reason,
            length=HEADER_LENGTH,
            statsn=self.take_statsn(),
            window=self.window(),
            word36=number,
        )
        self.send_status(header, pdu.bhs)

    def ping(self, lun: bytes = codec.NO_LUN) -> int:
        """Send a NOP-In that wants an answer; return its tag."""
        tag = self.session.new_tag() if self.session is not None else 1
        self.pings[tag] = asyncio.get_running_loop().time()
        self.send(target_header(Op.NOP_IN, lun=lun, ttt=tag, statsn=self.statsn, window=self.window()))
        return tag

    def send_async(
        self,
        event: int,
        parameters: tuple[int, int, int] = (0, 0, 0),
        sense: Sense | None = None,
        *,
        vcode: int = 0,
        lun: int = 0,
    ) -> None:
        """Send an Asynchronous Message (10.9)."""
        data = b""
        if event == AsyncEvent.SCSI and sense is not None:
            fixed = sense.fixed()
            data = struct.pack(">H", len(fixed)) + fixed
        header = target_header(
            Op.ASYNC,
            length=len(data),
            lun=lun_field(lun) if event == AsyncEvent.SCSI else codec.NO_LUN,
            statsn=self.take_statsn(),
            word36=event << 24 | vcode << 16 | parameters[0],
            word40=parameters[1] << 16 | parameters[2],
            window=self.window(),
        )
        self.send_status(header, data)
        if self.session is not None and event in (AsyncEvent.DROP_CONNECTION, AsyncEvent.DROP_SESSION):
            for other in self.session.connections.values():
                if event == AsyncEvent.DROP_SESSION or other.cid == parameters[0]:
                    other.announced = (parameters[1], parameters[2])

    # ---- full feature phase

    def enter_full_feature(self, session: Session, segment: int) -> None:
        """The login is complete: digests hold from the next PDU on, in both directions."""
        self.login = None
        if self._timer is not None:
            self._timer.cancel()
        self.session = session
        self.own_segment = segment
        if session.retention is not None:
            self.log = StatusLog(session.retention)
            self.skips_headers = True

    @property
    def operational(self) -> bool:
        """Whether tasks can go on here: in full feature phase, and neither gone nor logged out."""
        return self.session is not None and self.writable and not self.removed

    def when_acknowledged(self, callback: Callable[[], None]) -> None:
        """Call back when all status sent so far is acknowledged, asking for it by a NOP-In."""
        if not later(self.statsn, self.acknowledged):
            callback()
            return
        self._acks.append((self.statsn, callback))
        self.ping()

    def acknowledge(self, expstatsn: int) -> None:
        """Take an ExpStatSN: what was sent before it has come."""
        if later(expstatsn, self.statsn):
            self.violation(f"ExpStatSN {expstatsn} acknowledges what was not sent ({self.statsn} is next)")
            return
        if later(expstatsn, self.acknowledged):
            self.acknowledged = expstatsn
            if self.log is not None:
                self.log.acknowledge(expstatsn)
        if self._acks:
            due = [callback for statsn, callback in self._acks if not later(statsn, self.acknowledged)]
            self._acks = [entry for entry in self._acks if later(entry[0], self.acknowledged)]
            for callback in due:
                callback()

    def _full_feature(self, pdu: Pdu) -> None:
        session = self.session
        if session is None:
            raise ProtocolError("PDU outside of a session")
        opcode = pdu.opcode
        if opcode == _LOGOUT:
            logout.acknowledge(self, session, pdu)
        else:
            self.acknowledge(pdu.expstatsn)
        if opcode == Op.DATA_OUT:
            self._data_out(session, pdu)
        elif opcode in _NUMBERED:
            if session.node is None and opcode not in _IN_DISCOVERY:
                raise ProtocolError("request not allowed in a discovery session", RejectReason.PROTOCOL_ERROR)
            session.receive(self, pdu)
        elif opcode == Op.SNACK:
            if not session.level:
                raise ProtocolError("SNACK at recovery level 0", RejectReason.SNACK)
            snack.serve(self, session, pdu)
        else:
            raise ProtocolError(f"opcode {opcode:#04x}", RejectReason.NOT_SUPPORTED)

    def deliver(self, pdu: Pdu) -> None:
        """Act on a request whose turn has come."""
        _NUMBERED[pdu.opcode](self, pdu)

    def deliver_late(self, pdu: Pdu) -> None:
        """Act on a request that waited, in its own name."""
        try:
            self.deliver(pdu)
        except ProtocolError as error:
            self._refuse(pdu, error)

    def _data_out(self, session: Session, pdu: Pdu, *, lost: bool = False) -> None:
        if pdu.ttt == NO_TAG:
            task = session.tasks.get(pdu.itt)
            if task is not None and task.connection is self:
                task.unsolicited_data(pdu, lost=lost)
            elif not self._stray(pdu):
                raise ProtocolError("Data-Out for no task", RejectReason.INVALID_FIELD)
            return
        transfer = session.transfers.get(pdu.ttt)
        if transfer is None:
            if not self._stray(pdu):
                raise ProtocolError(f"Data-Out for tag {pdu.ttt:#x}", RejectReason.INVALID_FIELD)
            return
        if transfer.task.connection is not self:
            raise ProtocolError("Data-Out on another connection than its command", RejectReason.INVALID_FIELD)
        if transfer.task.itt != pdu.itt:
            raise ProtocolError("Data-Out with the tags of two tasks", RejectReason.INVALID_FIELD)
        transfer.task.solicited_data(transfer, pdu, lost=lost)

    def _stray(self, pdu: Pdu) -> bool:
        # Data of a task that was aborted, reset or answered early may still be on its way.
        if self.session is None:
            return False
        task = self.session.find_task(pdu.itt)
        known = isinstance(task, RecoverableTask) and (pdu.ttt in task.dead or task.given_up)
        return known or pdu.itt in self.session.ended

    def _scsi_command(self, pdu: Pdu) -> None:
        self.make_task(pdu).start(pdu.data)

    def make_task(self, pdu: Pdu) -> Task:
        """Check a SCSI Command and put its task into the task set; raises ProtocolError."""
        session = self.session
        if session is None:
            raise ProtocolError("SCSI Command outside of a session")
        if pdu.itt in session.tasks:
            raise ProtocolError("Initiator Task Tag is in use", RejectReason.TASK_IN_PROGRESS)
        flags, length = pdu.flags, len(pdu.data)
        if length and not session.values["ImmediateData"]:
            raise ProtocolError("immediate data where ImmediateData=No")
        if flags & WRITE:
            if not flags & FINAL and session.values["InitialR2T"]:
                raise ProtocolError("F=0 in a write where InitialR2T=Yes")
            if length > min(session.values["FirstBurstLength"], pdu.expected_length):
                raise ProtocolError("more immediate data than FirstBurstLength or the expected length")
        elif not flags & FINAL:
            raise ProtocolError("F and W are both 0", RejectReason.INVALID_FIELD)
        task = session.task_type(session, self, pdu)
        session.add_task(task)
        return task

    def _nop_out(self, pdu: Pdu) -> None:
        if pdu.ttt != NO_TAG:
            self.pings.pop(pdu.ttt, None)
        if pdu.itt == NO_TAG:
            if not pdu.immediate:
                self.violation("NOP-Out without a tag must be immediate")
            return
        data = bytes(pdu.data[: self.peer_segment])
        header = target_header(
            Op.NOP_IN,
            length=len(data),
            lun=pdu.lun,
            itt=pdu.itt,
            ttt=NO_TAG,
            statsn=self.take_statsn(),
            window=self.window(),
        )
        self.send_status(header, data)

    def _task_request(self, pdu: Pdu) -> None:
        if self.session is not None:
            task_management.carry_out(self, self.session, pdu)

    def _text_request(self, pdu: Pdu) -> None:
        self.text.receive(pdu)

    def _logout(self, pdu: Pdu) -> None:
        if self.session is not None:
            logout.log_out(self, self.session, pdu)


_NUMBERED: dict[int, Callable[[Connection, Pdu], None]] = {
    Op.NOP_OUT: Connection._nop_out,  # noqa: SLF001 - the table of this class
    Op.SCSI_COMMAND: Connection._scsi_command,  # noqa: SLF001
    Op.TASK_REQUEST: Connection._task_request,  # noqa: SLF001
    Op.TEXT_REQUEST: Connection._text_request,  # noqa: SLF001
    Op.LOGOUT_REQUEST: Connection._logout,  # noqa: SLF001
}
_IN_DISCOVERY = frozenset({Op.NOP_OUT, Op.TEXT_REQUEST, Op.LOGOUT_REQUEST})
