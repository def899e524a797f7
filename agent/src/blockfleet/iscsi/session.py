# SPDX-License-Identifier: GPL-3.0-or-later
"""One session: command numbering, tasks, task management, keepalive and what a lost connection means.

Time comes in as ``now`` (seconds, monotonic); :meth:`Session.next_deadline` tells when :meth:`Session.advance`
wants to be called.  Commands end by their own callback; everything else that happens is in
:attr:`Session.events`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from blockfleet.iscsi import fast_abort, timers
from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.constants import (
    FINAL_BIT,
    QUERY_FUNCTIONS,
    RESERVED_TAG,
    CommandFlag,
    LogoutReason,
    Opcode,
    TaskFunction,
    TaskResponse,
)
from blockfleet.iscsi.events import ConnectionLost, Event
from blockfleet.iscsi.layout import SCSI_COMMAND
from blockfleet.iscsi.login import LoginResult
from blockfleet.iscsi.pdu import LogoutRequest as LogoutPdu
from blockfleet.iscsi.pdu import NopOut, ScsiCommandPdu, TaskManagementRequest
from blockfleet.iscsi.pdu import TextRequest as TextPdu
from blockfleet.iscsi.serial import HALF, MASK, after, within
from blockfleet.iscsi.states import SESSION_TRANSITIONS, ConnectionEvent, SessionEvent, SessionPhase, StateMachine
from blockfleet.iscsi.task import (
    Control,
    Counters,
    LogoutRequest,
    Ping,
    Task,
    TaskRequest,
    TextRequest,
)
from blockfleet.scsi.command import Outcome, ScsiCommand

MAXIMUM_PENDING = 8192
"""Commands that wait for the command window; one more is refused."""

_COMMAND = int(Opcode.SCSI_COMMAND)
_F = int(CommandFlag.FINAL)
_R = int(CommandFlag.READ)
_W = int(CommandFlag.WRITE)
_CDB_IN_BHS = 16

_LUN_FUNCTIONS = frozenset(
    {TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET}
)
_SESSION_FUNCTIONS = frozenset(
    {TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET, TaskFunction.I_T_NEXUS_RESET}
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a session waits, in seconds, before it does something about silence."""

    noop_interval: float = 5.0
    """Silence before a ping; 0 turns pings off."""
    noop_timeout: float = 5.0
    abort: float = 15.0
    """For the answer to a task management function."""
    logout: float = 5.0
    text: float = 10.0
    target_reset: bool = False
    """Whether a stuck command may cost the whole target a reset before the session: it hits other hosts too."""


class Session:
    """A session of one connection; :attr:`connections` is where further ones will be.

    ``cmd_sn`` is the CmdSN of the leading login and of the first command after it (RFC 3720 10.12.8).
    """

    def __init__(self, patience: Patience, now: float, cmd_sn: int) -> None:
        self.patience = patience
        self.now = now
        self.states = StateMachine(SESSION_TRANSITIONS, SessionPhase.FREE)
        self.connections: dict[int, Connection] = {}
        self.events: deque[Event] = deque()
        self.counters = Counters()
        self.tasks: dict[int, Task] = {}
        self.control: dict[int, Control] = {}
        self.pending: deque[Task] = deque()
        self.cmd_sn = cmd_sn
        self.exp_cmd_sn = cmd_sn
        self.max_cmd_sn = cmd_sn
        self.silenced: dict[int, list[fast_abort.Transfer]] = {}
        """Tags of writes that are not served for the time being, with what was asked of them."""
        self.information = bytes(3)
        """Additional Response Information of the function that was answered last (RFC 7144 4.2)."""
        self.tsih = 0
        self._next_tag = 1
        self.live: Connection | None = None
        """The connection in full feature phase."""
        self._leading: Connection | None = None
        """The same while new requests may go to it: not once a logout has begun."""
        self.next_scan = now

    # -- life

    def add_connection(self, connection: Connection) -> None:
        """Take a connection that is about to log in."""
        self.connections[connection.cid] = connection

    def connection_logged_in(self, connection: Connection, result: LoginResult) -> None:
        """Start the full feature phase with the numbers of the final Login Response."""
        if self.states.on(SessionEvent.CONNECTION_LOGGED_IN):
            self._leading = self.live = connection
            self.tsih = result.tsih
            self.exp_cmd_sn = result.exp_cmd_sn
            self.max_cmd_sn = result.max_cmd_sn

    def connection_lost(self, event: ConnectionLost) -> None:
        """Settle what the connection carried: at ERL 0 its loss is the session's (RFC 3720 6.1.4.4)."""
        self._leading = self.live = None
        self.states.on(SessionEvent.FAILED)
        self._end_everything(event.detail)
        self.events.append(event)

    def closed(self) -> None:
        """End the session in good order, after a Logout Response."""
        self._leading = self.live = None
        if self.states.on(SessionEvent.CLOSED):
            self._end_everything("logged out")

    def _end_everything(self, why: str) -> None:
        tasks, pending, control = list(self.tasks.values()), list(self.pending), list(self.control.values())
        for collection in (self.tasks, self.pending, self.control):
            collection.clear()
        for task in tasks:
            task.connection.in_flight -= 1
            self._end(task, Outcome.UNKNOWN, why)
        for task in pending:
            self._end(task, Outcome.NOT_SENT, why)
        for request in control:
            if isinstance(request, TaskRequest):
                request.on_done(None)
            elif isinstance(request, TextRequest):
                request.on_done(why)

    @staticmethod
    def _end(task: Task, outcome: Outcome, why: str) -> None:
        command = task.command
        command.outcome = outcome
        command.error = why
        command.on_done(command)

    # -- commands

    def execute(self, command: ScsiCommand, now: float) -> None:
        """Send a command, or hold it until the command window opens."""
        leading = self._leading
        if leading is None or len(self.pending) >= MAXIMUM_PENDING:
            command.outcome = Outcome.REFUSED
            command.error = "the session is not logged in" if leading is None else "too many commands wait"
            command.on_done(command)
            return
        task = Task(command, now + command.timeout if command.timeout else 0.0)
        if self.pending or leading.paused or (self.max_cmd_sn - self.cmd_sn) & MASK >= HALF:
            self.pending.append(task)
        else:
            self._send(leading, task)

    def send_pending(self) -> None:
        """Send held commands as far as the window and the transport let it."""
        pending = self.pending
        leading = self._leading
        while pending and leading is not None and not leading.paused:
            if (self.max_cmd_sn - self.cmd_sn) & MASK >= HALF:
                return
            self._send(leading, pending.popleft())
            leading = self._leading

    def _send(self, connection: Connection, task: Task) -> None:
        command = task.command
        tag = self._next_tag
        while tag in self.tasks or tag in self.control or tag == RESERVED_TAG:
            tag = tag + 1 & MASK
        self._next_tag = tag + 1 & MASK
        task.tag = tag
        task.cmd_sn = self.cmd_sn
        self.cmd_sn = task.cmd_sn + 1 & MASK
        self.tasks[tag] = task
        self.counters.commands += 1
        task.connection = connection
        connection.commands += 1
        connection.in_flight += 1
        if command.data_out is not None:
            self.counters.bytes_out += len(command.data_out)
        self.issue(connection, task)

    def issue(self, connection: Connection, task: Task) -> None:
        """Put a numbered command on the wire, for the first time or as a retry (RFC 3720 6.2.1)."""
        command = task.command
        tag = task.tag
        cmd_sn = task.cmd_sn
        data_out = command.data_out
        if len(command.cdb) > _CDB_IN_BHS or (data_out is not None and command.data_in is not None):
            self._send_general(connection, task)
        elif data_out is None:
            data_in = command.data_in
            size = 0 if data_in is None else len(data_in)
            flags = _F | _R | command.attribute if size else _F | command.attribute
            connection.send(
                SCSI_COMMAND.pack(
                    _COMMAND, flags, 0, command.lun, tag, size, cmd_sn, connection.exp_stat_sn, command.cdb
                )
            )
        else:
            size = len(data_out)
            immediate, unsolicited = self._unsolicited(connection, size)
            flags = _W | command.attribute if unsolicited else _F | _W | command.attribute
            header = SCSI_COMMAND.pack(
                _COMMAND, flags, immediate, command.lun, tag, size, cmd_sn, connection.exp_stat_sn, command.cdb
            )
            connection.send(header, data_out[:immediate] if immediate else b"")
            if unsolicited:
                connection.send_burst(task, RESERVED_TAG, immediate, unsolicited)

    @staticmethod
    def _unsolicited(connection: Connection, size: int) -> tuple[int, int]:
        """Return how many bytes go with the command and how many follow it without R2T (RFC 3720 12.10-12.14)."""
        negotiated = connection.negotiated
        burst = min(size, negotiated.first_burst_length)
        immediate = 0
        if negotiated.immediate_data:
            immediate = min(burst, negotiated.target_max_recv_data_segment_length)
        return immediate, 0 if negotiated.initial_r2t else burst - immediate

    def _send_general(self, connection: Connection, task: Task) -> None:
        """Send what does not fit the plain header: a long CDB, or both directions (RFC 3720 10.2.2)."""
        command = task.command
        size_out = 0 if command.data_out is None else len(command.data_out)
        size_in = 0 if command.data_in is None else len(command.data_in)
        immediate, unsolicited = self._unsolicited(connection, size_out)
        flags = command.attribute | (_R if size_in else 0) | (_W if size_out else 0)
        pdu = ScsiCommandPdu(
            initiator_task_tag=task.tag,
            flags=flags if unsolicited else flags | _F,
            lun=command.lun,
            expected_length=size_out or size_in,
            cmd_sn=task.cmd_sn,
            exp_stat_sn=connection.exp_stat_sn,
            cdb=command.cdb,
            bidirectional_read_length=size_in if size_out and size_in else None,
            data_length=immediate,
        )
        connection.send(pdu.encode(), command.data_out[:immediate] if command.data_out and immediate else b"")
        if unsolicited:
            connection.send_burst(task, RESERVED_TAG, immediate, unsolicited)

    def _forget(self, task: Task) -> None:
        del self.tasks[task.tag]
        task.connection.in_flight -= 1

    def complete(self, task: Task) -> None:
        """End a task whose status has come."""
        self._forget(task)
        command = task.command
        data_in = command.data_in
        if data_in is not None:
            received = task.received
            self.counters.bytes_in += received
            command.data_in_count = received
            missing = max(command.residual, 0) if command.data_out is None else task.read_residual
            if not command.status and received + missing < len(data_in):
                command.outcome = Outcome.ABORTED
                command.error = f"the target sent {received} of {len(data_in)} bytes and reported no residual"
                command.on_done(command)
                return
        command.outcome = Outcome.COMPLETE
        command.on_done(command)

    def target_failure(self, task: Task, response: int) -> None:
        """End a task that the target gave up: nothing is said of how far it came (RFC 3720 10.4.3, SAM-3 5.1)."""
        self._forget(task)
        self._end(task, Outcome.UNKNOWN, f"target failure (response {response:#04x})")

    def abort_reported(self, task: Task, why: str) -> None:
        """End a task of which the target has said that it does not run any more."""
        self._forget(task)
        self._end(task, Outcome.ABORTED, why)

    def expire_pending(self, task: Task) -> None:
        """End a command that waited too long for the window."""
        self.pending.remove(task)
        self._end(task, Outcome.NOT_SENT, "the command window did not open in time")

    def update_window(self, exp_cmd_sn: int, max_cmd_sn: int) -> bool:
        """Take ExpCmdSN and MaxCmdSN by the rules of RFC 3720 3.2.2.1; False where they end the session."""
        if after(exp_cmd_sn - 1 & MASK, max_cmd_sn):
            return True
        if after(exp_cmd_sn, self.exp_cmd_sn):
            if not within(self.exp_cmd_sn, exp_cmd_sn, self.cmd_sn):
                if self.live is not None:
                    self.live.protocol_error(f"ExpCmdSN {exp_cmd_sn:#010x} is beyond CmdSN {self.cmd_sn:#010x}")
                return False
            self.exp_cmd_sn = exp_cmd_sn
        if after(max_cmd_sn, self.max_cmd_sn):
            self.max_cmd_sn = max_cmd_sn
        return True

    # -- everything but commands

    def _register(self, request: Control) -> int:
        tag = self._next_tag
        while tag in self.tasks or tag in self.control or tag == RESERVED_TAG:
            tag = tag + 1 & MASK
        self._next_tag = tag + 1 & MASK
        self.control[tag] = request
        return tag

    def manage_task(
        self,
        function: TaskFunction,
        lun: int,
        now: float,
        on_done: Callable[[TaskResponse | None], None],
        *,
        task: Task | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send a task management function (RFC 3720 10.5); ``task`` is the one that ABORT or QUERY TASK names."""
        connection = self._leading
        if connection is None:
            on_done(None)
            return
        wait = self.patience.abort if timeout is None else timeout
        request = TaskRequest(function, lun, self.cmd_sn, now + wait, on_done, wait, task)
        tag = self._register(request)
        pdu = TaskManagementRequest(
            immediate=True,
            initiator_task_tag=tag,
            function=function,
            lun=0 if function in _SESSION_FUNCTIONS else lun,
            referenced_task_tag=RESERVED_TAG if task is None else task.tag,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=connection.exp_stat_sn,
            ref_cmd_sn=0 if task is None else task.cmd_sn,
        )
        connection.send(pdu.encode())
        if fast_abort.agreed(connection) and task is None:
            fast_abort.silence(self, request, self._affected(request))

    def manage_again(self, request: TaskRequest) -> None:
        """Ask anew for a function that the target had no room for (RFC 3720 10.17.1, reason 6)."""
        fast_abort.over(self, request)
        self.manage_task(
            request.function, request.lun, self.now, request.on_done, task=request.task, timeout=request.patience
        )

    def task_managed(self, request: TaskRequest, response: TaskResponse) -> None:
        """Settle the tasks that a finished function has ended, then tell who asked."""
        settled = {TaskResponse.FUNCTION_COMPLETE}
        if request.function is TaskFunction.ABORT_TASK:
            # A task that does not exist any more cannot run: any status of it came before (StatSN order).
            settled.add(TaskResponse.TASK_DOES_NOT_EXIST)
        if response in settled and request.function not in QUERY_FUNCTIONS:
            for task in self._affected(request):
                self.abort_reported(task, f"ended by {request.function.name}")
        fast_abort.over(self, request)
        request.on_done(response)

    def _affected(self, request: TaskRequest) -> list[Task]:
        if request.task is not None:
            return [request.task] if self.tasks.get(request.task.tag) is request.task else []
        if request.function in _LUN_FUNCTIONS:
            luns: int | None = request.lun
        elif request.function in _SESSION_FUNCTIONS:
            luns = None
        else:
            return []
        return [
            task
            for task in self.tasks.values()
            if luns in (None, task.command.lun) and after(request.cmd_sn, task.cmd_sn)
        ]

    def ping(self, now: float) -> None:
        """Ask the target for a sign of life (RFC 3720 10.18)."""
        connection = self._leading
        if connection is not None:
            tag = self._register(Ping(now))
            self.counters.pings += 1
            pdu = NopOut(
                immediate=True, initiator_task_tag=tag, cmd_sn=self.cmd_sn, exp_stat_sn=connection.exp_stat_sn
            )
            connection.send(pdu.encode())

    def plug(self, connection: Connection, cmd_sn: int) -> None:
        """Fill the gap that a rejected command left in the command order (RFC 3720 6.3)."""
        tag = self._register(Ping(self.now))
        pdu = NopOut(initiator_task_tag=tag, cmd_sn=cmd_sn, exp_stat_sn=connection.exp_stat_sn)
        connection.send(pdu.encode())

    def send_text(
        self, text: bytes, now: float, on_data: Callable[[bytes], None], on_done: Callable[[str], None]
    ) -> None:
        """Send a Text Request of one PDU and collect the whole answer (RFC 3720 10.10); one at a time."""
        connection = self._leading
        if connection is None or any(isinstance(r, TextRequest) for r in self.control.values()):
            on_done("the session is not logged in" if connection is None else "another text exchange runs")
            return
        tag = self._register(TextRequest(now + self.patience.text, on_data, on_done))
        self.continue_text(connection, tag, RESERVED_TAG, 0, text)

    def continue_text(self, connection: Connection, tag: int, transfer_tag: int, lun: int, text: bytes) -> None:
        """Send one Text Request PDU of an exchange."""
        pdu = TextPdu(
            immediate=True,
            flags=FINAL_BIT,
            initiator_task_tag=tag,
            target_transfer_tag=transfer_tag,
            lun=lun,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=connection.exp_stat_sn,
            data_length=len(text),
        )
        connection.send(pdu.encode(), text)

    def logout(self, now: float, reason: LogoutReason = LogoutReason.CLOSE_SESSION) -> None:
        """Ask the target to close the session (RFC 3720 10.14); the event that follows is ConnectionLost."""
        connection = self._leading
        if connection is None:
            return
        self._leading = None
        pending, self.pending = self.pending, deque()
        for task in pending:
            self._end(task, Outcome.NOT_SENT, "logging out")
        tag = self._register(LogoutRequest(now + self.patience.logout))
        pdu = LogoutPdu(
            immediate=True,
            initiator_task_tag=tag,
            reason=reason,
            cid=connection.cid if reason is not LogoutReason.CLOSE_SESSION else 0,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=connection.exp_stat_sn,
        )
        connection.send(pdu.encode())
        connection.states.on(ConnectionEvent.LOGOUT)

    # -- time

    def next_deadline(self) -> float:
        """Return when :meth:`advance` wants to be called next."""
        return timers.next_deadline(self)

    def advance(self, now: float) -> None:
        """Let time pass: pings, time-outs, the steps of ending a stuck command."""
        self.now = now
        timers.advance(self, now)
