# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of recovery itself: SNACK, recovery R2Ts, logout for recovery, TASK REASSIGN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockfleet_testtarget import logout, snack, task_responses
from blockfleet_testtarget.codec import AsyncEvent, Op, Pdu, RejectReason, SnackKind
from blockfleet_testtarget.faults.base import Fault, FaultError, register
from blockfleet_testtarget.task_responses import Answer, Function

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.target import TestTarget
    from blockfleet_testtarget.tasks import Task

_CODES_OF_LIO: dict[int, Answer] = {
    Answer.NO_TASK: Answer.COMPLETE,
    Answer.NO_LUN: Answer.NO_TASK,
    Answer.STILL_ALLEGIANT: Answer.NO_LUN,
    Answer.NO_REASSIGNMENT: Answer.NOT_SUPPORTED,
}
"""What LIO sends for an answer of 10.6.1: it looks it up among those of its SCSI layer.  All others are 255."""


@dataclass(slots=True, kw_only=True)
class SnackFault(Fault):
    """Base of faults that wait for SNACKs: `kind` is data, status, data_ack or r_data (empty: any)."""

    kind: str = ""

    def armed(self, endpoint: TestTarget) -> bool:
        del endpoint
        if self.kind and self.kind.upper() not in SnackKind.__members__:
            raise FaultError(f"{self.kind!r} is none of {', '.join(kind.name.lower() for kind in SnackKind)}")
        return True

    def chosen(self, connection: Connection, pdu: Pdu) -> bool:
        """Whether the fault strikes at this PDU."""
        if pdu.opcode != Op.SNACK or connection.session is None:
            return False
        if self.kind and snack.snack_kind(pdu) != SnackKind[self.kind.upper()]:
            return False
        return self.strikes(connection)


@register
@dataclass(slots=True, kw_only=True)
class IgnoreSnack(SnackFault):
    """Do not answer SNACKs, until disarmed."""

    name: ClassVar[str] = "ignore_snack"
    times: int = 0

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        return self.chosen(connection, pdu)


@register
@dataclass(slots=True, kw_only=True)
class RejectSnack(SnackFault):
    """Reject a SNACK; a task without a status then ends with 0B/11/13, one with a status stays as it is (6.7)."""

    name: ClassVar[str] = "reject_snack"
    reason: int = RejectReason.SNACK.value

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        session = connection.session
        if session is None or not self.chosen(connection, pdu):
            return False
        snack.refuse(connection, session, pdu, self.reason)
        return True


@register
@dataclass(slots=True, kw_only=True)
class NoRecoveryR2T(Fault):
    """Do not ask again for lost data: the task ends with 0B/47/05 when the rest has come (6.7 b)."""

    name: ClassVar[str] = "no_recovery_r2t"

    def recovering(self, task: Task) -> bool:
        return self.strikes(task.connection)


@register
@dataclass(slots=True, kw_only=True)
class AnswerReassign(Fault):
    """Answer a TASK REASSIGN with a code (10.6.1) and do nothing; 0 claims success and sends nothing more."""

    name: ClassVar[str] = "answer_reassign"
    code: int = 4

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        session = connection.session
        if session is None or pdu.opcode != Op.TASK_REQUEST or pdu.flags & 0x7F != Function.TASK_REASSIGN:
            return False
        if not self.strikes(connection):
            return False
        task_responses.respond(connection, pdu.itt, self.code)
        if not pdu.immediate:
            session.skip(pdu.cmdsn)
        return True


@register
@dataclass(slots=True, kw_only=True)
class MisreportReassign(Fault):
    """Reassign tasks as asked, and answer with a code of another table, as LIO does, until disarmed."""

    name: ClassVar[str] = "misreport_reassign"
    times: int = 0

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        if pdu.opcode != Op.TASK_RESPONSE or not self.strikes(connection):
            return None
        code = _CODES_OF_LIO.get(pdu.bhs[2], Answer.REJECTED)
        return [Pdu(pdu.bhs[:2] + bytes([code]) + pdu.bhs[3:])]


@register
@dataclass(slots=True, kw_only=True)
class HideLogoutTimes(Fault):
    """Say 0 for Time2Wait and Time2Retain in Logout Responses and keep to what was agreed on, until disarmed."""

    name: ClassVar[str] = "hide_logout_times"
    times: int = 0

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        if pdu.opcode != Op.LOGOUT_RESPONSE or not self.strikes(connection):
            return None
        return [Pdu(pdu.bhs[:40] + bytes(4) + pdu.bhs[44:])]


@register
@dataclass(slots=True, kw_only=True)
class AnswerLogout(Fault):
    """Answer a Logout Request with a code (10.15.1) and times in seconds.

    With code 0 the logout takes place, and the target keeps to the times; -1 leaves them as negotiated.
    Otherwise nothing is done.
    """

    name: ClassVar[str] = "answer_logout"
    code: int = 0
    wait: int = -1
    retain: int = -1

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        session = connection.session
        if session is None or pdu.opcode != Op.LOGOUT_REQUEST or not self.strikes(connection):
            return False
        wait, retain = session.default_times
        times = (wait if self.wait < 0 else self.wait, retain if self.retain < 0 else self.retain)
        if not self.code:
            session.logout_times = times
            return False
        logout.acknowledge(connection, session, pdu)
        if not pdu.immediate:
            session.skip(pdu.cmdsn)
        logout.respond(connection, pdu.itt, self.code, times)
        return True


@register
@dataclass(slots=True, kw_only=True)
class DropConnection(Fault):
    """Drop the connections with the CID at once, telling of it by an Asynchronous Message (10.9.1).

    The message has event 2 with `wait` and `retain` in seconds, to which the target keeps, and goes out
    on the lowest other connection of the session or, when there is none, on the one that is dropped.
    """

    name: ClassVar[str] = "drop_connection"
    wait: int = 0
    retain: int = 20
    reset: bool = True

    def armed(self, endpoint: TestTarget) -> bool:
        for connection in list(endpoint.connections):
            session = connection.session
            if session is None or not self.matches(connection):
                continue
            self.struck += 1
            others = [each for _, each in sorted(session.connections.items()) if each is not connection]
            teller = others[0] if others else connection
            teller.send_async(AsyncEvent.DROP_CONNECTION, (connection.cid, self.wait, self.retain))
            if self.reset and others:
                connection.reset("fault: drop_connection")
            else:
                connection.close("fault: drop_connection")
        return False
