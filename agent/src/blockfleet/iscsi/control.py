# SPDX-License-Identifier: GPL-3.0-or-later
"""What a connection does with the PDUs that are not data path: one handler each, in one table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from blockfleet.iscsi import fast_abort, logout, task_management
from blockfleet.iscsi.constants import (
    BHS_LENGTH,
    FINAL_BIT,
    RESERVED_TAG,
    RFC_7144_LEVEL,
    AsyncEventCode,
    Opcode,
    RejectReason,
    TaskResponse,
    TextFlag,
)
from blockfleet.iscsi.events import AsyncNotice, LogoutAsked, LossKind
from blockfleet.iscsi.pdu import (
    AsyncMessage,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    PduError,
    Reject,
    TaskManagementResponse,
    TextResponse,
    decode_pdu,
    split_sense,
)
from blockfleet.iscsi.states import ConnectionEvent
from blockfleet.iscsi.task import LogoutRequest, Ping, TaskRequest, TextRequest
from blockfleet.iscsi.text import MAXIMUM_NEGOTIATION_TEXT

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.recovery import Recovery

MAXIMUM_TEXT_ROUNDS = 1_000_000
"""PDUs of one text exchange; its bytes are bounded by whoever collects them."""

MAXIMUM_QUEUED_ANSWERS = 64
"""NOP-Out answers that wait to be sent; pings of a target that floods and does not read go unanswered."""

NumberedPdu = NopIn | TaskManagementResponse | TextResponse | LogoutResponse | AsyncMessage | Reject
"""PDUs that carry StatSN and the command window."""

IMMEDIATE_RETRY = 0.25
"""Seconds before a function is sent again for which the target had no room among its immediate commands."""

_TOTAL_AHS_LENGTH = 4
"""Where a basic header segment tells how long its AHS is (RFC 3720 10.2.1.5)."""

_REASON_TEXT = {reason.value: reason.name.replace("_", " ").lower() for reason in RejectReason}


def _on_nop_in(connection: Connection, pdu: Pdu) -> None:
    assert isinstance(pdu, NopIn)
    session = connection.session
    if pdu.initiator_task_tag != RESERVED_TAG:
        # An answer to a ping that was never sent proves that the peer lives, and no more.
        request = session.control.get(pdu.initiator_task_tag)
        if isinstance(request, Ping):
            del session.control[pdu.initiator_task_tag]
            if connection.recovery is not None:
                connection.recovery.ping_answered(request)
            if request.on_answer is not None:
                request.on_answer()
        return
    if pdu.target_transfer_tag == RESERVED_TAG or connection.queued_segments > MAXIMUM_QUEUED_ANSWERS:
        return
    answer = NopOut(
        immediate=True,
        lun=pdu.lun,
        target_transfer_tag=pdu.target_transfer_tag,
        cmd_sn=session.cmd_sn,
        exp_stat_sn=connection.exp_stat_sn,
    )
    connection.send(answer.encode())


def _on_task_response(connection: Connection, pdu: Pdu) -> None:
    assert isinstance(pdu, TaskManagementResponse)
    session = connection.session
    request = session.control.get(pdu.initiator_task_tag)
    if not isinstance(request, TaskRequest):
        # Its time may have run out before the answer came.
        return
    try:
        response = TaskResponse(pdu.response)
    except ValueError:
        connection.protocol_error(f"task management response {pdu.response} is reserved")
        return
    if response is TaskResponse.FUNCTION_SUCCEEDED and connection.negotiated.protocol_level < RFC_7144_LEVEL:
        connection.protocol_error("task management response 7 is of an iSCSIProtocolLevel that was not agreed on")
        return
    del session.control[pdu.initiator_task_tag]
    session.information = pdu.information
    task_management.answered(session, request, response)


def _on_text_response(connection: Connection, pdu: Pdu) -> None:
    assert isinstance(pdu, TextResponse)
    session = connection.session
    request = session.control.get(pdu.initiator_task_tag)
    if not isinstance(request, TextRequest):
        return
    request.rounds += 1
    final = bool(pdu.flags & FINAL_BIT)
    if final and pdu.flags & TextFlag.CONTINUE:
        connection.protocol_error("Text Response with F and C together")
    elif not final and pdu.target_transfer_tag == RESERVED_TAG:
        connection.protocol_error("Text Response without F has no Target Transfer Tag")
    elif request.rounds > MAXIMUM_TEXT_ROUNDS:
        connection.protocol_error(f"text exchange of more than {MAXIMUM_TEXT_ROUNDS} PDUs")
    elif final:
        del session.control[pdu.initiator_task_tag]
        request.on_data(pdu.data)
        request.on_done("")
    else:
        request.deadline = session.now + session.patience.text
        request.on_data(pdu.data)
        session.continue_text(connection, pdu.initiator_task_tag, pdu.target_transfer_tag, pdu.lun, b"")


def _on_logout_response(connection: Connection, pdu: Pdu) -> None:
    assert isinstance(pdu, LogoutResponse)
    session = connection.session
    request = session.control.get(pdu.initiator_task_tag)
    if not isinstance(request, LogoutRequest):
        connection.protocol_error("Logout Response to no Logout Request")
        return
    del session.control[pdu.initiator_task_tag]
    logout.answered(connection, request, pdu)


def _on_async(connection: Connection, pdu: Pdu) -> None:
    assert isinstance(pdu, AsyncMessage)
    session = connection.session
    session.counters.async_messages += 1
    event = pdu.event
    if event in (AsyncEventCode.SCSI_EVENT, AsyncEventCode.VENDOR_SPECIFIC):
        sense, _ = split_sense(pdu.data) if event == AsyncEventCode.SCSI_EVENT else (b"", b"")
        session.events.append(AsyncNotice(event, pdu.vendor_code, pdu.lun, bytes(sense)))
    elif event == AsyncEventCode.LOGOUT_REQUEST:
        if connection.states.on(ConnectionEvent.LOGOUT_ASKED):
            session.events.append(LogoutAsked(connection.cid, pdu.parameter3))
            session.update_lanes()
    elif event in (AsyncEventCode.CONNECTION_DROP, AsyncEventCode.SESSION_DROP):
        _dropped(connection, pdu)
    elif event == AsyncEventCode.NEGOTIATION_REQUEST:
        _renegotiate(connection)
    elif event == AsyncEventCode.TASK_TERMINATION and fast_abort.agreed(connection):
        fast_abort.tasks_terminated(connection, pdu.lun)
    else:
        connection.protocol_error(f"asynchronous event {event} is reserved")


def _dropped(connection: Connection, pdu: AsyncMessage) -> None:
    """Lose the connections that the target drops: one, which need not be this one, or all."""
    session = connection.session
    wait, retain = float(pdu.parameter2), float(pdu.parameter3)
    for one in list(session.connections.values()):
        if one.takes_data and (pdu.event == AsyncEventCode.SESSION_DROP or one.cid == pdu.parameter1):
            one.lose(LossKind.DROPPED, f"asynchronous event {pdu.event}", wait, retain)
    if pdu.event == AsyncEventCode.CONNECTION_DROP and pdu.parameter1 not in session.connections:
        session.recovery.retimed(pdu.parameter1, wait, retain)


def _renegotiate(connection: Connection) -> None:
    """Ask the target what it wants changed; nothing changes unless the whole exchange succeeds (RFC 3720 5.4)."""
    text = bytearray()

    def collect(data: bytes) -> None:
        if len(text) + len(data) <= MAXIMUM_NEGOTIATION_TEXT:
            text.extend(data)

    def ended(error: str) -> None:
        if not error:
            connection.take_declarations(bytes(text))

    connection.session.send_text(b"", connection.session.now, collect, ended, connection)


def _on_reject(connection: Connection, pdu: Pdu) -> None:
    """End the request whose header the Reject carries (RFC 3720 6.3, 10.17)."""
    assert isinstance(pdu, Reject)
    session = connection.session
    session.counters.rejects += 1
    if pdu.reason not in _REASON_TEXT:
        connection.protocol_error(f"Reject with the reserved reason {pdu.reason:#04x}")
        return
    rejected = _rejected_header(pdu)
    if rejected is None:
        return
    why = f"rejected by the target: {_REASON_TEXT[pdu.reason]}"
    if rejected.OPCODE is Opcode.SCSI_COMMAND:
        task = session.tasks.get(rejected.initiator_task_tag)
        damaged = pdu.reason == RejectReason.DATA_DIGEST_ERROR and connection.recovery is not None
        if task is not None and damaged and session.unacknowledged.rejected(session, task):
            return
        if task is not None:
            session.abort_reported(task, why)
            session.plug(connection, task.cmd_sn)
        return
    request = session.control.get(rejected.initiator_task_tag)
    if isinstance(request, TaskRequest) and pdu.reason == RejectReason.IMMEDIATE_COMMAND_REJECT:
        request.again_at = session.now + IMMEDIATE_RETRY
    elif isinstance(request, TaskRequest):
        del session.control[rejected.initiator_task_tag]
        task_management.answered(session, request, TaskResponse.FUNCTION_REJECTED)
    elif isinstance(request, TextRequest):
        del session.control[rejected.initiator_task_tag]
        request.on_done(why)
    elif isinstance(request, LogoutRequest):
        del session.control[rejected.initiator_task_tag]
        logout.unanswered(session, request, why)


def _rejected_header(pdu: Reject) -> Pdu | None:
    """Return the header that a Reject carries; None for one that is no PDU and thus only diagnostic.

    Its AHS is left out: it tells nothing about which request that was, and some targets do not return it.
    """
    if len(pdu.data) < BHS_LENGTH:
        return None
    header = bytearray(pdu.data[:BHS_LENGTH])
    header[_TOTAL_AHS_LENGTH] = 0
    try:
        return decode_pdu(bytes(header))
    except PduError:
        return None


def _in_turn(connection: Connection, recovery: Recovery, pdu: NumberedPdu, shown_only: bool) -> bool:
    """Whether a PDU is the one that is due; others are held or dropped, and show what is missing."""
    if isinstance(pdu, Reject):
        rejected = _rejected_header(pdu)
        if rejected is not None and rejected.OPCODE is Opcode.SNACK_REQUEST:
            recovery.snack_rejected(pdu, rejected)
    if shown_only:
        recovery.statuses.shown(pdu.stat_sn)
    elif pdu.stat_sn != connection.exp_stat_sn:
        if connection.session.update_window(pdu.exp_cmd_sn, pdu.max_cmd_sn):
            recovery.hold_control(pdu.stat_sn, pdu, partial(_take, connection, pdu))
        return False
    return connection.takes_data


def handle_control(connection: Connection, pdu: Pdu) -> None:
    """Take a PDU that is not data path: count it, take its window, and do what it asks."""
    handler = CONTROL_HANDLERS.get(pdu.OPCODE)
    if handler is None or not isinstance(pdu, NumberedPdu):
        connection.protocol_error(f"opcode {pdu.OPCODE:#04x} is not for an initiator")
        return
    # A ping of the target's shows the next StatSN and does not use it (RFC 3720 10.19.2).
    shown_only = isinstance(pdu, NopIn) and pdu.initiator_task_tag == RESERVED_TAG
    recovery = connection.recovery
    if recovery is not None and not _in_turn(connection, recovery, pdu, shown_only):
        return
    if not shown_only:
        _take(connection, pdu)
    elif connection.session.update_window(pdu.exp_cmd_sn, pdu.max_cmd_sn):
        handler(connection, pdu)


def _take(connection: Connection, pdu: NumberedPdu) -> None:
    """Process a numbered PDU whose turn it is."""
    if connection.take_status(pdu.stat_sn) and connection.session.update_window(pdu.exp_cmd_sn, pdu.max_cmd_sn):
        CONTROL_HANDLERS[pdu.OPCODE](connection, pdu)


CONTROL_HANDLERS: dict[int, Callable[[Connection, Pdu], None]] = {
    Opcode.NOP_IN: _on_nop_in,
    Opcode.TASK_MANAGEMENT_RESPONSE: _on_task_response,
    Opcode.TEXT_RESPONSE: _on_text_response,
    Opcode.LOGOUT_RESPONSE: _on_logout_response,
    Opcode.ASYNC_MESSAGE: _on_async,
    Opcode.REJECT: _on_reject,
}
"""Opcode of a PDU from the target to what is done with it in full feature phase."""
