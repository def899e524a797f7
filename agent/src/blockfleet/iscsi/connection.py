# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection of a session: its stream, its login, StatSN, and the PDUs of the data path.

The transport shell gives it bytes (:meth:`Connection.get_buffer`, :meth:`Connection.received`) and takes bytes
(:meth:`Connection.take_output`).  Nothing that a peer sends raises: an error ends the connection by
:meth:`Connection.lose`, with a cause.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from blockfleet.iscsi import fast_abort
from blockfleet.iscsi.confirmation import Confirmation
from blockfleet.iscsi.constants import (
    DEFAULT_MRDSL,
    DataInFlag,
    Opcode,
)
from blockfleet.iscsi.control import handle_control
from blockfleet.iscsi.data_out import Segment, burst
from blockfleet.iscsi.digest import data_digest, digest
from blockfleet.iscsi.events import ConnectionLost, LoggedIn, LoginFailed, LossKind
from blockfleet.iscsi.framing import FramingError, PduReader
from blockfleet.iscsi.layout import DATA_IN, padding
from blockfleet.iscsi.login import LoginMachine
from blockfleet.iscsi.negotiation import NegotiationError, Negotiator, Phase
from blockfleet.iscsi.parameters import Negotiated, SessionOffer
from blockfleet.iscsi.pdu import PduError, decode_pdu
from blockfleet.iscsi.r2t import r2t
from blockfleet.iscsi.recovery import Recovery
from blockfleet.iscsi.reordering import irregular_data_in
from blockfleet.iscsi.response import BOTH_RESIDUALS, scsi_response, take_residual
from blockfleet.iscsi.sequence import Acknowledgement
from blockfleet.iscsi.serial import MASK, after
from blockfleet.iscsi.states import CONNECTION_TRANSITIONS, ConnectionEvent, ConnectionState, StateMachine
from blockfleet.iscsi.text import TextError, decode_text

if TYPE_CHECKING:
    from blockfleet.iscsi.session import Session
    from blockfleet.iscsi.task import Task

UNLIMITED = 1 << 31
"""Commands on one connection: the command window is what bounds them."""

_TAKES_REQUESTS = (ConnectionState.LOGGED_IN, ConnectionState.LOGOUT_REQUESTED)
_TAKES_DATA = (*_TAKES_REQUESTS, ConnectionState.IN_LOGOUT)

_STATUS = int(DataInFlag.STATUS)
_ACKNOWLEDGE = int(DataInFlag.ACKNOWLEDGE)
_STATUS_OR_ACKNOWLEDGE = _STATUS | _ACKNOWLEDGE
_FINAL = int(DataInFlag.FINAL)


class Connection:
    """A connection, identified by its CID within the session.

    ``wake`` is called when there is output after there was none; the shell then calls :meth:`take_output` at
    the end of its turn, so that what one turn produces leaves in one system call.

    It is a lane of the session's load balance policy; ``rank`` is its place in the order of preference.
    """

    def __init__(
        self, session: Session, cid: int, login: LoginMachine, wake: Callable[[], None], login_deadline: float
    ) -> None:
        self.session = session
        self.cid = cid
        self.wake = wake
        self.states = StateMachine(CONNECTION_TRANSITIONS, ConnectionState.FREE)
        self.login_deadline = login_deadline
        self.exp_stat_sn = 0
        self.commands = 0
        """SCSI commands that were first sent here."""
        self.in_flight = 0
        """Tasks that are allegiant to this connection."""
        self.limit = UNLIMITED
        self.weight = 0
        self.standby = False
        self.rank = cid
        self.bytes_in = 0
        self.bytes_out = 0
        self.leave_by = 0.0
        """When it is logged out, whatever is still on it; 0 while it is to stay."""
        self.last_heard = 0.0
        self.confirmation = Confirmation()
        self.negotiated = Negotiated()
        self.recovery: Recovery | None = None
        """What is done about lost and damaged PDUs; None at error recovery level 0."""
        self._login: LoginMachine | None = login
        self._reader = PduReader(self, self.negotiated.max_recv_data_segment_length)
        self._out: list[Segment] = []
        # What the hot path looks at for every PDU.
        self.tasks = session.tasks
        self.header_digest = False
        self.data_digest = False
        self.paused = False

    # -- the shell's side

    def connecting(self) -> None:
        """Note that the transport connect request was made."""
        self.states.on(ConnectionEvent.CONNECT)

    def connected(self, now: float) -> None:
        """Begin the login on a transport that is up."""
        self.last_heard = now
        login = self._login
        if login is not None and self.states.on(ConnectionEvent.CONNECTED):
            self._reader.maximum_segment = DEFAULT_MRDSL
            self._emit(login.start())

    @property
    def get_buffer(self) -> Callable[[int], memoryview]:
        """The function that returns where the next bytes from the transport go (it takes a size hint)."""
        return self._reader.get_buffer

    def received(self, count: int, now: float) -> None:
        """Take ``count`` bytes that the transport put into the buffer given last."""
        self.session.now = now
        self.last_heard = now
        self._reader.received(count)
        if self.recovery is not None and self.recovery.statuses:
            self.recovery.statuses.release()
            self.session.send_pending()

    def begun(self) -> bytes:
        """Return what has been received of the PDU that is not whole yet."""
        return self._reader.begun()

    def closed(self, detail: str) -> None:
        """Note that the transport is closed, whoever closed it."""
        self.lose(LossKind.TRANSPORT, detail)
        if self in self.session.departing:
            self.session.departed(self)

    def take_output(self) -> list[Segment]:
        """Return what is to be sent, in order, and forget it; the views stay valid until their commands end."""
        out = self._out
        self._out = []
        return out

    def pause(self, paused: bool) -> None:
        """Hold new commands back while the transport's send buffer is full, or let them go again."""
        self.paused = paused
        self.limit = 0 if paused else UNLIMITED
        if not paused:
            self.session.send_pending()

    @property
    def takes_requests(self) -> bool:
        """Whether requests may be sent: full feature phase, and no logout under way (RFC 3720 10.14)."""
        return self.states.state in _TAKES_REQUESTS

    @property
    def takes_data(self) -> bool:
        """Whether it is in full feature phase: its tasks may still end."""
        return self.states.state in _TAKES_DATA

    @property
    def searching(self) -> bool:
        """Whether the PDU after one with a damaged header is being looked for."""
        return self._reader.searching

    @property
    def queued_segments(self) -> int:
        """How many pieces of output wait to be taken."""
        return len(self._out)

    # -- sending

    def send(self, header: bytes, data: Segment = b"") -> None:
        """Queue one PDU in full feature phase, with the digests that were negotiated."""
        out = self._out
        if not out:
            self.wake()
        out.append(header)
        if self.header_digest:
            out.append(digest(header))
        if data:
            out.append(data)
            size = len(data)
            if size & 3:
                out.append(padding(size))
            if self.data_digest:
                out.append(data_digest(data))

    def send_burst(self, task: Task, transfer_tag: int, offset: int, length: int) -> None:
        """Queue ``length`` bytes of a write as one sequence of Data-Out PDUs."""
        command = task.command
        assert command.data_out is not None
        if not self._out:
            self.wake()
        burst(
            self._out,
            command.data_out,
            offset,
            length,
            lun=command.lun,
            task_tag=task.tag,
            transfer_tag=transfer_tag,
            exp_stat_sn=self.exp_stat_sn,
            maximum_segment=self.negotiated.target_max_recv_data_segment_length,
            header_digest=self.header_digest,
            with_data_digest=self.data_digest,
        )

    def _emit(self, pdus: list[bytes]) -> None:
        if pdus:
            if not self._out:
                self.wake()
            self._out.extend(pdus)

    # -- losing it

    def lose(self, kind: LossKind, detail: str, wait: float | None = None, retain: float | None = None) -> None:
        """End the connection; what it carried is settled by the session.  A second call changes nothing."""
        in_login = self.states.state in (ConnectionState.XPT_WAIT, ConnectionState.IN_LOGIN)
        if not self.stop(ConnectionEvent.LOST):
            return
        negotiated = self.negotiated
        event = ConnectionLost(
            self.cid,
            kind,
            detail,
            negotiated.default_time2wait if wait is None else wait,
            negotiated.default_time2retain if retain is None else retain,
        )
        if in_login:
            self.session.login_ended(self)
            self.session.events.append(event)
        else:
            self.session.connection_lost(self, event)

    def stop(self, event: ConnectionEvent) -> bool:
        """Take ``event``, which ends the connection, and send and receive no more."""
        ended = self.states.on(event)
        self._reader.stop()
        self._out = []
        return ended

    def take_declarations(self, text: bytes) -> None:
        """Take what the target declares anew in full feature phase; text that breaks a rule changes nothing."""
        negotiator = Negotiator(SessionOffer(), phase=Phase.FULL_FEATURE, session=self.negotiated)
        try:
            negotiator.receive(decode_text(text))
            self.negotiated = replace(
                self.negotiated,
                target_max_recv_data_segment_length=negotiator.finish().target_max_recv_data_segment_length,
            )
        except (TextError, NegotiationError):
            self.session.counters.rejects += 1

    def protocol_error(self, detail: str) -> None:
        """End the connection because the target broke the protocol."""
        self.lose(LossKind.PROTOCOL, detail)

    # -- receiving: PduSink

    def pdu(
        self, opcode: int, buffer: bytearray | bytes, at: int, ahs_length: int, data: memoryview | None
    ) -> None:
        """Take one PDU off the stream."""
        handler = _HANDLERS.get(opcode)
        if handler is not None and self._login is None:
            handler(self, buffer, at, data)
        elif self._login is not None:
            self._login_pdu(self._login, buffer, at, data)
        else:
            end = at + 48
            try:
                decoded = decode_pdu(
                    bytes(buffer[at:end]),
                    bytes(buffer[end : end + ahs_length]),
                    b"" if data is None else bytes(data),
                )
            except PduError as error:
                self.protocol_error(str(error))
                return
            handle_control(self, decoded)
            if self.session.pending:
                self.session.send_pending()

    def data_in_place(self, buffer: bytearray | bytes, at: int, length: int) -> memoryview | None:
        """Return the part of a read's buffer that a large Data-In payload is for."""
        if self._login is not None:
            return None
        _, _, _, _, _, tag, _, _, _, _, data_sn, offset, _ = DATA_IN.unpack_from(buffer, at)
        task = self.tasks.get(tag)
        # Whatever is wrong with it is found, and named, when the whole PDU is there.
        if task is None or task.command.data_in is None or data_sn != task.data_sn or task.sequence is not None:
            return None
        if offset != task.received or offset + length > len(task.command.data_in):
            return None
        return task.command.data_in[offset : offset + length]

    def framing_error(self, error: FramingError) -> None:
        """Take an error after which the stream cannot be read on (RFC 3720 6.6, 6.7)."""
        if error is FramingError.SEGMENT_TOO_LONG:
            self.protocol_error(error.value)
        else:
            self._count_digest_error(error is FramingError.HEADER_DIGEST)
            self.lose(LossKind.DIGEST, error.value)

    def header_damaged(self, waiting: bool) -> None:
        """Take a damaged header after which the stream can be read on, or may be when more has come."""
        self._count_digest_error(True)
        if self.recovery is not None:
            self.recovery.header_damaged(waiting)

    def resynchronized(self) -> None:
        """Count a PDU that was found after a damaged header."""
        self.session.counters.resyncs += 1

    def data_damaged(self, opcode: int, buffer: bytearray | bytes, at: int) -> None:
        """Take the header of a PDU whose data are damaged, and discarded."""
        self._count_digest_error(False)
        if self.recovery is not None:
            self.recovery.data_damaged(opcode, buffer, at)

    def _count_digest_error(self, in_header: bool) -> None:
        counters = self.session.counters
        counters.digest_errors += 1
        if in_header:
            counters.header_digest_errors += 1
        else:
            counters.data_digest_errors += 1

    def _login_pdu(self, login: LoginMachine, buffer: bytearray | bytes, at: int, data: memoryview | None) -> None:
        self._emit(login.receive(bytes(buffer[at : at + 48]), b"" if data is None else bytes(data)))
        if login.failure is not None:
            self.stop(ConnectionEvent.LOST)
            self.session.login_ended(self)
            self.session.events.append(LoginFailed(self.cid, login.failure))
        elif login.result is not None:
            result = login.result
            self._login = None
            self.negotiated = result.negotiated
            self.exp_stat_sn = self.confirmation.confirmed = result.exp_stat_sn
            self.header_digest = self._reader.header_digest = result.negotiated.header_digest
            self.data_digest = self._reader.data_digest = result.negotiated.data_digest
            self._reader.maximum_segment = result.negotiated.max_recv_data_segment_length
            if result.negotiated.error_recovery_level:
                self._reader.recovers = True
                self.recovery = Recovery(self)
            self.states.on(ConnectionEvent.LOGIN_ACCEPTED)
            self.session.connection_logged_in(self, result)
            self.session.events.append(LoggedIn(self.cid, result))

    def take_status(self, stat_sn: int) -> bool:
        """Count a numbered PDU; False to drop it: a repeat, or a gap that ends the connection at ERL 0."""
        if stat_sn == self.exp_stat_sn:
            self.exp_stat_sn = (stat_sn + 1) & MASK
            return True
        if after(self.exp_stat_sn, stat_sn):
            return False
        self.protocol_error(f"StatSN {stat_sn:#010x} where {self.exp_stat_sn:#010x} was expected")
        return False

    # -- the data path

    def data_in(self, buffer: bytearray | bytes, at: int, data: memoryview | None) -> None:
        """Take a SCSI Data-In (RFC 3720 10.7); what is not the next one of its task goes elsewhere."""
        (
            _,
            flags,
            status,
            lengths,
            lun,
            tag,
            transfer_tag,
            stat_sn,
            exp_cmd_sn,
            max_cmd_sn,
            data_sn,
            offset,
            residual,
        ) = DATA_IN.unpack_from(buffer, at)
        session = self.session
        task = self.tasks.get(tag)
        if task is None or data_sn != task.data_sn or task.sequence is not None:
            irregular_data_in(self, buffer, at, data)
            return
        target = task.command.data_in
        length = lengths & 0xFFFFFF
        end = offset + length
        if target is None or (length and (offset != task.received or end > len(target))):
            irregular_data_in(self, buffer, at, data)
            return
        if data is not None:
            target[offset:end] = data
        task.data_sn = data_sn + 1
        task.received += length
        moved = max_cmd_sn != session.max_cmd_sn or exp_cmd_sn != session.exp_cmd_sn
        if moved and not session.update_window(exp_cmd_sn, max_cmd_sn):
            return
        if flags & _STATUS_OR_ACKNOWLEDGE:
            if flags & _ACKNOWLEDGE and self.recovery is not None:
                self.recovery.acknowledge_data(task, Acknowledgement(data_sn, transfer_tag, lun))
            if flags & _STATUS:
                self.status_in_data(task, flags, status, stat_sn, residual)
        if session.pending:
            session.send_pending()

    def status_in_data(
        self, task: Task, flags: int, status: int, stat_sn: int, residual: int, *, released: bool = False
    ) -> None:
        """Take the status in a Data-In whose data are taken; ``released`` when its turn was waited for."""
        recovery = self.recovery
        if not flags & _FINAL or flags & BOTH_RESIDUALS == BOTH_RESIDUALS:
            self.protocol_error("Data-In with status but without F, or with both residual flags")
        elif recovery is not None and not released and (stat_sn != self.exp_stat_sn or task.sequence is not None):
            recovery.hold_status_in_data(task, flags, status, stat_sn, residual)
        elif stat_sn == self.exp_stat_sn:
            self.exp_stat_sn = stat_sn + 1 & MASK
            task.command.status = status
            if not flags & BOTH_RESIDUALS or take_residual(self, task, flags, residual):
                self.session.complete(task)
        else:
            self.take_status(stat_sn)

    def serve_r2t(self, task: Task, transfer: fast_abort.Transfer) -> None:
        """Send what an R2T asks for, whose turn it is."""
        session = self.session
        task.asked += transfer[2]
        session.counters.r2ts += 1
        if session.silenced:
            fast_abort.serve(self, task, transfer)
        else:
            self.send_burst(task, *transfer)


_HANDLERS: dict[int, Callable[[Connection, bytearray | bytes, int, memoryview | None], None]] = {
    Opcode.SCSI_DATA_IN: Connection.data_in,
    Opcode.SCSI_RESPONSE: scsi_response,
    Opcode.R2T: r2t,
}
"""Who takes the PDUs of the data path."""
