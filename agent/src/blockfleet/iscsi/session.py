# SPDX-License-Identifier: GPL-3.0-or-later
"""One session: command numbering over its connections, tasks, keepalive and what a lost connection means.

Time comes in as ``now`` (seconds, monotonic); :meth:`Session.next_deadline` tells when :meth:`Session.advance`
wants to be called.  Commands end by their own callback; everything else that happens is in
:attr:`Session.events`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from blockfleet.balance.policy import SELECTORS, LoadBalancePolicy, Selector
from blockfleet.iscsi import fast_abort, logout, quirks, task_management, timers
from blockfleet.iscsi.command_out import issue
from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.connection_recovery import ConnectionRecovery
from blockfleet.iscsi.constants import (
    FINAL_BIT,
    RESERVED_TAG,
    TaskFunction,
    TaskResponse,
)
from blockfleet.iscsi.events import ConnectionLost, Event, LoggedOut, QuirkMet
from blockfleet.iscsi.login import LoginResult
from blockfleet.iscsi.pdu import NopOut
from blockfleet.iscsi.pdu import TextRequest as TextPdu
from blockfleet.iscsi.retry import Unacknowledged
from blockfleet.iscsi.serial import HALF, MASK
from blockfleet.iscsi.states import (
    SESSION_TRANSITIONS,
    ConnectionEvent,
    ConnectionState,
    SessionEvent,
    SessionPhase,
    StateMachine,
)
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

MAXIMUM_PINGS = 2
"""Pings that a connection waits for; the answer to an older one is still a sign of life."""

MAXIMUM_PENDING = 8192
"""Commands that wait for the command window; one more is refused."""


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
    drain: float = 10.0
    """For the tasks of a connection that is to leave the session."""
    recovery: float = 2.0
    """Without progress before something is taken for lost, at error recovery level 1 and above."""
    continuation: float = float("inf")
    """Of a session without a connection, after Time2Wait, within Time2Retain: its commands wait as long."""
    resync: float = 3.0
    """For finding the next PDU after a damaged header."""
    target_reset: bool = False
    """Whether a stuck command may cost the whole target a reset before the session: it hits other hosts too."""


class Session:
    """A session: the connections share one order of commands and one window (RFC 3720 3.2.2.1).

    ``cmd_sn`` is the CmdSN of the leading login and of the first command after it (RFC 3720 10.12.8).
    """

    def __init__(self, patience: Patience, now: float, cmd_sn: int) -> None:
        self.patience = patience
        self.now = now
        self.states = StateMachine(SESSION_TRANSITIONS, SessionPhase.FREE)
        self.connections: dict[int, Connection] = {}
        """Those that log in, are in full feature phase or log out, by CID; a lost one is the recovery's."""
        self.recovery = ConnectionRecovery(self)
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
        self.quirks = quirks.NONE
        self._next_tag = 1
        self.live: Connection | None = None
        """The most preferred connection that takes requests."""
        self._leading: Connection | None = None
        """The connection that takes every new command, where there is just one that does."""
        self._policy = LoadBalancePolicy.ROUND_ROBIN
        self._selector: Selector[Connection] = SELECTORS[self._policy]()
        self._lanes: list[Connection] = []
        self._closing = False
        self.departing: set[Connection] = set()
        """Connections that are logged out and whose transports are not closed yet."""
        self.over = False
        """Whether it has ended, in good order or not."""
        self.next_scan = now
        self.unacknowledged = Unacknowledged()

    # -- life

    def add_connection(self, connection: Connection) -> None:
        """Take a connection that is about to log in."""
        self.connections[connection.cid] = connection
        self.recovery.logging_in(connection.cid)

    def connection_logged_in(self, connection: Connection, result: LoginResult) -> None:
        """Start the full feature phase of a connection, or of the session, with the final Login Response."""
        if self.states.on(SessionEvent.CONNECTION_LOGGED_IN):
            self.tsih = result.tsih
            self.quirks = quirks.quirks_of(result.target_alias)
            if result.quirk:
                self.events.append(QuirkMet(connection.cid, self.quirks.kind, result.quirk))
            self.exp_cmd_sn = result.exp_cmd_sn
            self.max_cmd_sn = result.max_cmd_sn
            self.update_lanes()
        else:
            self.states.on(SessionEvent.CONTINUED)
            self.update_lanes()
            if not self.update_window(result.exp_cmd_sn, result.max_cmd_sn):
                return
            self.recovery.logged_in(connection)
        self.send_pending()

    def login_ended(self, connection: Connection) -> None:
        """Forget a connection that did not get in."""
        if self.connections.get(connection.cid) is connection:
            del self.connections[connection.cid]
        self.recovery.reinstatement_failed(connection.cid)

    def connection_lost(self, connection: Connection, event: ConnectionLost) -> None:
        """Recover what the connection carried, or end: below level 2 its loss is the session's (6.1.4.4)."""
        if self.over or self.connections.get(connection.cid) is not connection:
            return
        if self._closing or not self.recovery.take(connection, event):
            self.fail(event)

    def forget_connection(self, connection: Connection) -> None:
        """Take a connection out of the session; its tasks stay."""
        del self.connections[connection.cid]
        self.counters.commands += connection.commands
        self.counters.bytes_in += connection.bytes_in
        self.counters.bytes_out += connection.bytes_out
        self.update_lanes()
        lost = [(tag, request) for tag, request in self.control.items() if request.connection is connection]
        functions: list[TaskRequest] = []
        for tag, request in lost:
            del self.control[tag]
            if isinstance(request, TaskRequest):
                functions.append(request)
            elif isinstance(request, TextRequest):
                request.on_done("the connection was lost")
            elif isinstance(request, LogoutRequest):
                logout.unanswered(self, request, "the connection was lost")
            elif request.on_answer is not None:
                request.on_answer()
        self.recovery.requests_lost(functions)

    def fail(self, event: ConnectionLost) -> None:
        """End the session, all of its connections and all that they carried (RFC 3720 6.1.4.4)."""
        if not self.over:
            self._end(SessionEvent.FAILED, ConnectionEvent.LOST, event.detail)
            self.events.append(event)

    def closed(self, connection: Connection) -> None:
        """End the session in good order: its Logout Request was answered on ``connection``."""
        if not self.over:
            connection.stop(ConnectionEvent.LOGGED_OUT)
            self._end(SessionEvent.CLOSED, ConnectionEvent.SESSION_CLOSED, "logged out")
            self.events.append(LoggedOut(connection.cid))

    def _end(self, event: SessionEvent, of_connections: ConnectionEvent, why: str) -> None:
        self.over = True
        self.states.on(event)
        for connection in self.connections.values():
            connection.stop(of_connections)
        self.update_lanes()
        self.recovery.clear()
        self._end_everything(why)

    def _end_everything(self, why: str) -> None:
        tasks, pending, control = list(self.tasks.values()), list(self.pending), list(self.control.values())
        for collection in (self.tasks, self.pending, self.control):
            collection.clear()
        for task in tasks:
            task.connection.in_flight -= 1
            self._end_task(task, Outcome.UNKNOWN, why)
        for task in pending:
            self._end_task(task, Outcome.NOT_SENT, why)
        for request in control:
            if isinstance(request, TaskRequest):
                request.on_done(None)
            elif isinstance(request, TextRequest):
                request.on_done(why)
            elif isinstance(request, Ping) and request.on_answer is not None:
                request.on_answer()

    # -- lanes

    def set_policy(self, policy: LoadBalancePolicy) -> None:
        """Spread commands in another way from now on."""
        if policy is not self._policy:
            self._policy = policy
            self._selector = SELECTORS[policy]()
            self.update_lanes()
            self.send_pending()

    def update_lanes(self) -> None:
        """Work out which connections take new commands, after anything about one has changed."""
        able = sorted((one for one in self.connections.values() if one.takes_requests), key=lambda one: one.rank)
        staying = [one for one in able if not one.leave_by]
        # A connection that the target wants logged out takes nothing new while there is another (10.9.1, event 1).
        lanes = [one for one in staying if one.states.state is ConnectionState.LOGGED_IN] or staying
        self.live = next(iter(lanes or able), None)
        self._lanes = [] if self._closing or self.over else lanes
        self._selector.update(self._lanes)
        active = [one for one in self._lanes if self._selector.is_active(one)]
        self._leading = active[0] if len(active) == 1 else None

    def next_lane(self) -> Connection | None:
        """Return where a task goes that must go somewhere: a lane with room, or any connection."""
        return self._leading or self._selector.select() or self.live

    def remove_connection(self, cid: int, now: float, within: float = float("inf")) -> None:
        """Give a connection no more commands, and log it out when its tasks are done (RFC 3720 10.14, reason 1).

        It is logged out in any case after ``within`` seconds, or what the session has patience for.
        """
        connection = self.connections.get(cid)
        if connection is not None and connection.takes_requests and not connection.leave_by:
            connection.leave_by = now + min(self.patience.drain, within)
            self.update_lanes()
            self.next_scan = now
            self.send_pending()

    @staticmethod
    def _end_task(task: Task, outcome: Outcome, why: str) -> None:
        command = task.command
        command.outcome = outcome
        command.error = why
        command.on_done(command)

    # -- commands

    def execute(self, command: ScsiCommand, now: float) -> None:
        """Send a command, or hold it until the command window opens."""
        leading = self._leading
        if leading is None or len(self.pending) >= MAXIMUM_PENDING:
            self._spread(command, now)
            return
        task = Task(command, now + command.timeout if command.timeout else 0.0)
        if self.pending or leading.paused or (self.max_cmd_sn - self.cmd_sn) & MASK >= HALF:
            self.pending.append(task)
        else:
            self._send(leading, task)

    def _spread(self, command: ScsiCommand, now: float) -> None:
        """Do as :meth:`execute` where the policy has a choice, or where there is nothing to send on."""
        no_lane = not self._lanes and (self._closing or self.over or not self.recovery.holds)
        if no_lane or len(self.pending) >= MAXIMUM_PENDING:
            command.outcome = Outcome.REFUSED
            command.error = "the session is not logged in" if no_lane else "too many commands wait"
            command.on_done(command)
            return
        task = Task(command, now + command.timeout if command.timeout else 0.0)
        lane = None
        if not self.pending and (self.max_cmd_sn - self.cmd_sn) & MASK < HALF:
            lane = self._selector.select()
        if lane is None:
            self.pending.append(task)
        else:
            self._send(lane, task)

    def send_pending(self) -> None:
        """Send held commands as far as the window and the transports let it."""
        pending = self.pending
        while pending:
            if (self.max_cmd_sn - self.cmd_sn) & MASK >= HALF:
                return
            lane = self._leading
            if lane is None:
                lane = self._selector.select()
            if lane is None or lane.paused:
                return
            self._send(lane, pending.popleft())

    def _send(self, connection: Connection, task: Task) -> None:
        tag = self._next_tag
        tasks = self.tasks
        while tag in tasks or tag in self.control or tag == RESERVED_TAG:
            tag = tag + 1 & MASK
        self._next_tag = tag + 1 & MASK
        task.tag = tag
        task.cmd_sn = cmd_sn = self.cmd_sn
        self.cmd_sn = cmd_sn + 1 & MASK
        tasks[tag] = task
        task.connection = connection
        connection.commands += 1
        connection.in_flight += 1
        data_out = task.command.data_out
        if data_out is not None:
            connection.bytes_out += len(data_out)
        issue(connection, task)

    def runs(self, task: Task) -> bool:
        """Whether a task has not ended yet."""
        return self.tasks.get(task.tag) is task

    def _forget(self, task: Task) -> None:
        del self.tasks[task.tag]
        task.connection.in_flight -= 1

    def complete(self, task: Task) -> None:
        """End a task whose status has come."""
        del self.tasks[task.tag]
        connection = task.connection
        connection.in_flight -= 1
        command = task.command
        data_in = command.data_in
        if data_in is not None:
            received = task.received
            connection.bytes_in += received
            command.data_in_count = received
            if received < len(data_in) and not command.status:
                missing = max(command.residual, 0) if command.data_out is None else task.read_residual
                if received + missing < len(data_in):
                    command.outcome = Outcome.ABORTED
                    command.error = f"the target sent {received} of {len(data_in)} bytes and reported no residual"
                    command.on_done(command)
                    return
        command.outcome = Outcome.COMPLETE
        command.on_done(command)

    def target_failure(self, task: Task, response: int) -> None:
        """End a task that the target gave up: nothing is said of how far it came (RFC 3720 10.4.3, SAM-3 5.1)."""
        self._forget(task)
        self._end_task(task, Outcome.UNKNOWN, f"target failure (response {response:#04x})")

    def give_up(self, task: Task, why: str) -> None:
        """End a task of which nothing more will be heard."""
        self._forget(task)
        self._end_task(task, Outcome.UNKNOWN, why)

    def move(self, task: Task, connection: Connection) -> None:
        """Change the allegiance of a task: what came out of order on the old connection comes again."""
        task.sequence = None
        task.connection.in_flight -= 1
        task.connection = connection
        connection.in_flight += 1

    def abort_reported(self, task: Task, why: str) -> None:
        """End a task of which the target has said that it does not run any more."""
        self._forget(task)
        self._end_task(task, Outcome.ABORTED, why)

    def expire_pending(self, task: Task) -> None:
        """End a command that waited too long for the window."""
        self.pending.remove(task)
        self._end_task(task, Outcome.NOT_SENT, "the command window did not open in time")

    def update_window(self, exp_cmd_sn: int, max_cmd_sn: int) -> bool:
        """Take ExpCmdSN and MaxCmdSN by the rules of RFC 3720 3.2.2.1; False where they end the session."""
        # Serial numbers are compared in place here, as serial.after() does it: this is run for every response.
        if 0 < exp_cmd_sn - 1 - max_cmd_sn & MASK < HALF:
            return True
        forward = exp_cmd_sn - self.exp_cmd_sn & MASK
        if 0 < forward < HALF:
            if forward > self.cmd_sn - self.exp_cmd_sn & MASK:
                if self.live is not None:
                    self.live.protocol_error(f"ExpCmdSN {exp_cmd_sn:#010x} is beyond CmdSN {self.cmd_sn:#010x}")
                return False
            self.exp_cmd_sn = exp_cmd_sn
        if 0 < max_cmd_sn - self.max_cmd_sn & MASK < HALF:
            self.max_cmd_sn = max_cmd_sn
        return True

    # -- everything but commands

    def register(self, request: Control) -> int:
        """Give a request its Initiator Task Tag."""
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
        task_management.ask(self, function, lun, now, on_done, task=task, timeout=timeout)

    def ping(
        self, now: float, connection: Connection | None = None, on_answer: Callable[[], None] | None = None
    ) -> None:
        """Ask the target for a sign of life, on one connection or on any (RFC 3720 10.18)."""
        connection = connection or self.live
        if connection is not None:
            self._forget_ping(connection)
            tag = self.register(Ping(now, connection, on_answer=on_answer))
            self.counters.pings += 1
            pdu = NopOut(
                immediate=True, initiator_task_tag=tag, cmd_sn=self.cmd_sn, exp_stat_sn=connection.exp_stat_sn
            )
            connection.send(pdu.encode())

    def _forget_ping(self, connection: Connection) -> None:
        """Make room for another ping, if several have no answer and nobody waits for the first of them."""
        pings = [
            tag
            for tag, request in self.control.items()
            if isinstance(request, Ping) and request.connection is connection and request.is_forgettable
        ]
        if len(pings) >= MAXIMUM_PINGS:
            del self.control[pings[0]]

    def plug(self, connection: Connection, cmd_sn: int) -> None:
        """Fill the gap that a rejected command left in the command order (RFC 3720 6.3)."""
        tag = self.register(Ping(self.now, connection, cmd_sn))
        pdu = NopOut(initiator_task_tag=tag, cmd_sn=cmd_sn, exp_stat_sn=connection.exp_stat_sn)
        connection.send(pdu.encode())

    def send_text(
        self,
        text: bytes,
        now: float,
        on_data: Callable[[bytes], None],
        on_done: Callable[[str], None],
        connection: Connection | None = None,
    ) -> None:
        """Send a Text Request of one PDU and collect the whole answer (RFC 3720 10.10).

        One at a time on a connection, which is any where none is named.
        """
        connection = connection or self.live
        if connection is None or not connection.takes_requests:
            on_done("the session is not logged in")
        elif any(isinstance(r, TextRequest) and r.connection is connection for r in self.control.values()):
            on_done("another text exchange runs")
        else:
            tag = self.register(TextRequest(now + self.patience.text, connection, on_data, on_done))
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

    def logout(self, now: float) -> None:
        """Ask the target to close the session (RFC 3720 10.14); LoggedOut or ConnectionLost follows."""
        if self.live is None or self._closing:
            return
        self._closing = True
        self.update_lanes()
        pending, self.pending = self.pending, deque()
        for task in pending:
            self._end_task(task, Outcome.NOT_SENT, "logging out")
        logout.close_session(self, now)

    def departed(self, connection: Connection) -> None:
        """Note that the transport of a connection that was logged out is closed."""
        self.departing.discard(connection)
        if self._closing and not self.over:
            logout.departed(self, self.now)

    def totals(self) -> dict[str, int]:
        """Return all counters by name, those of the connections added up."""
        totals = self.counters.as_dict()
        for connection in self.connections.values():
            totals["commands"] += connection.commands
            totals["bytes_in"] += connection.bytes_in
            totals["bytes_out"] += connection.bytes_out
        return totals

    # -- time

    def next_deadline(self) -> float:
        """Return when :meth:`advance` wants to be called next."""
        return timers.next_deadline(self)

    def advance(self, now: float) -> None:
        """Let time pass: pings, time-outs, the steps of ending a stuck command."""
        self.now = now
        timers.advance(self, now)
