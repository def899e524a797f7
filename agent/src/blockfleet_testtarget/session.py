# SPDX-License-Identifier: GPL-3.0-or-later
"""A session: I_T nexus, command order and window, task set, and the connections that carry it."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from blockfleet_testtarget.cleanup import Cleanup
from blockfleet_testtarget.codec import MASK32, Op, Pdu, later
from blockfleet_testtarget.recovery import RecoverableTask
from blockfleet_testtarget.retention import Retention
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.nexus import Nexus
from blockfleet_testtarget.tasks import ProtocolError, Task, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.node import TargetNode
    from blockfleet_testtarget.target import TestTarget


ENDED_LIMIT = 256  # tags of ended tasks whose data may still arrive


class Session:
    """Session state (RFC 3720 3.2.2, 3.4). `node` is None for a discovery session.

    Commands wait in `waiting` until every command with a lower CmdSN has arrived, whichever
    connection brings it. `tasks` is by Initiator Task Tag, `transfers` by Target Transfer Tag.
    `level` is the error recovery level; `retention` is there from level 1 on, `cleanup` at level 2.
    `managing` are the tags of task management functions under way.
    """

    def __init__(
        self, endpoint: TestTarget, node: TargetNode | None, nexus: Nexus, tsih: int, values: dict[str, int]
    ) -> None:
        self.endpoint = endpoint
        self.node = node
        self.nexus = nexus
        self.tsih = tsih
        self.values = values
        self.connections: dict[int, Connection] = {}
        self.tasks: dict[int, Task] = {}
        self.transfers: dict[int, Transfer] = {}
        self.waiting: dict[int, tuple[Connection | None, Callable[[], None]]] = {}
        self.ended: deque[int] = deque(maxlen=ENDED_LIMIT)
        self.level = values["ErrorRecoveryLevel"]
        self.task_type: type[Task] = RecoverableTask if self.level else Task
        self.retention = Retention(endpoint.config.keep_bytes) if self.level else None
        self.cleanup = Cleanup(self) if self.level == 2 else None
        self.logout_times: tuple[int, int] | None = None
        self.managing: set[int] = set()
        self.expcmdsn = 0
        self.window = endpoint.config.command_window
        self.frozen = False
        self.closed = False
        self._max_sent = 0
        self._next_tag = 0

    @property
    def luns(self) -> list[int]:
        return self.node.lun_list if self.node is not None else []

    def begin(self, cmdsn: int) -> None:
        """Take the initial CmdSN of the leading login and let every unit know the nexus."""
        self.expcmdsn = cmdsn
        self._max_sent = (cmdsn + self.window - 1) & MASK32
        attention = conditions.POWER_ON if self.endpoint.config.login_attention else None
        if self.node is not None:
            for unit in self.node.luns.values():
                unit.attach(self.nexus, attention)

    def new_tag(self) -> int:
        """Return a Target Transfer Tag that is not in use."""
        self._next_tag = (self._next_tag + 1) & 0x7FFFFFFF
        return self._next_tag

    # ---- numbering

    def max_cmdsn(self) -> int:
        """Return MaxCmdSN: the window less the tasks that fill it; it never goes back."""
        if not self.frozen:
            limit = (self.expcmdsn + self.window - len(self.tasks) - 1) & MASK32
            if later(limit, self._max_sent):
                self._max_sent = limit
        return self._max_sent

    def receive(self, connection: Connection, pdu: Pdu) -> None:
        """Take a request that carries a CmdSN: deliver it now, keep it for its turn, or ignore it."""
        if pdu.immediate:
            connection.deliver(pdu)
            return
        cmdsn = pdu.cmdsn
        if later(self.expcmdsn, cmdsn) or later(cmdsn, self._max_sent) or cmdsn in self.waiting:
            self._ignore(connection, pdu)
            return
        if cmdsn == self.expcmdsn:
            self.expcmdsn = (cmdsn + 1) & MASK32
            try:
                connection.deliver(pdu)
            except ProtocolError as error:
                if self.level and error.reason is not None:
                    self.expcmdsn = cmdsn  # a rejected command leaves a gap (6.3)
                raise
            self._catch_up()
            return
        if pdu.opcode == Op.SCSI_COMMAND:
            task = connection.make_task(pdu)
            if len(pdu.data):
                task.store(0, pdu.data)
            self.waiting[cmdsn] = (connection, task.start)
        else:
            self.waiting[cmdsn] = (connection, partial(connection.deliver_late, pdu.detach()))

    def _ignore(self, connection: Connection, pdu: Pdu) -> None:
        cmdsn = pdu.cmdsn
        if self.level and self._is_retry(pdu):
            self.endpoint.note(f"retry of CmdSN {cmdsn} on connection {connection.number} ignored")
            return
        connection.violation(f"CmdSN {cmdsn} is outside {self.expcmdsn} to {self._max_sent} or a duplicate")

    def _is_retry(self, pdu: Pdu) -> bool:
        # "Testing for the execution state (represented by identifying the Initiator Task Tag)" (3.2.2.1)
        task = self.find_task(pdu.itt)
        if task is not None:
            return task.cmdsn == pdu.cmdsn and task.cdb == pdu.cdb
        if pdu.cmdsn in self.waiting or self.is_other_task(pdu.itt):
            return True
        logs = [connection.log for connection in self.connections.values()]
        return any(log is not None and log.answers(pdu.itt) for log in logs)

    def skip(self, cmdsn: int) -> None:
        """Count a CmdSN as received though its command never came."""
        if cmdsn not in self.waiting:
            self.waiting[cmdsn] = (None, lambda: None)
        self._catch_up()

    def _catch_up(self) -> None:
        while self.expcmdsn in self.waiting:
            _, action = self.waiting.pop(self.expcmdsn)
            self.expcmdsn = (self.expcmdsn + 1) & MASK32
            action()

    # ---- tasks

    def add_task(self, task: Task) -> None:
        """Put a task into the task set."""
        self.tasks[task.itt] = task

    def task_done(self, task: Task) -> None:
        """Take a task out of the task set."""
        if self.tasks.get(task.itt) is task:
            del self.tasks[task.itt]
        callbacks, task.on_drained = task.on_drained, []
        for callback in callbacks:
            callback()

    def find_task(self, itt: int) -> Task | None:
        """Return the task with a tag: one in progress, or one that is kept until it is acknowledged."""
        task = self.tasks.get(itt)
        if task is None and self.retention is not None:
            return self.retention.tasks.get(itt)
        return task

    def is_other_task(self, itt: int) -> bool:
        """Whether a tag is that of a task management function or a text exchange under way."""
        return itt in self.managing or any(each.text.is_open(itt) for each in self.connections.values())

    def tasks_of(self, lun: int | None = None) -> list[Task]:
        """Return the tasks of one LUN, or all."""
        return [task for task in self.tasks.values() if lun is None or task.lun == lun]

    # ---- connections

    def add_connection(self, connection: Connection) -> None:
        """Let a logged-in connection carry the session."""
        self.connections[connection.cid] = connection

    def remove_connection(self, connection: Connection) -> None:
        """Let a connection no longer carry the session."""
        if self.connections.get(connection.cid) is connection:
            del self.connections[connection.cid]

    def connection_of(self, cid: int) -> Connection | None:
        """Return the connection with a CID: one that is there, or one that waits for its logout."""
        connection = self.connections.get(cid)
        if connection is None and self.cleanup is not None:
            departure = self.cleanup.find(cid)
            return departure.connection if departure is not None else None
        return connection

    def connection_lost(self, connection: Connection) -> None:
        """A connection is gone. Below recovery level 2 its tasks end, and the session with the last one."""
        if self.closed:
            return
        self.remove_connection(connection)
        if connection.removed:
            pass
        elif self.cleanup is not None:
            self.cleanup.failed(connection)
        else:
            self.end_tasks_of(connection)
        self.close_if_empty("last connection lost")

    def close_if_empty(self, cause: str) -> None:
        """End the session when it has no connection and waits for none."""
        if not self.connections and (self.cleanup is None or not self.cleanup.departures):
            self.close(cause=cause)

    def replace_connection(self, connection: Connection, expstatsn: int) -> None:
        """A login brings a CID anew: the connection that had it is logged out implicitly (5.3.4, 10.14).

        `expstatsn` is what the first Login Request says of the old connection (10.12.9).
        """
        old = self.connection_of(connection.cid)
        if old is None:
            return
        self.remove_connection(old)
        if self.cleanup is None:
            old.removed = True
            self.end_tasks_of(old)
        else:
            departure = self.cleanup.of(old)
            if departure is not None and self.cleanup.early(departure):
                connection.violation(f"login with CID {old.cid} before Time2Wait has passed")
            if not later(expstatsn, old.statsn):
                old.acknowledge(expstatsn)
            self.cleanup.log_out(old, old.announced or self.default_times, wait_again=False)
        old.close("connection reinstated")

    @property
    def default_times(self) -> tuple[int, int]:
        """DefaultTime2Wait and DefaultTime2Retain, in seconds."""
        return self.values["DefaultTime2Wait"], self.values["DefaultTime2Retain"]

    def suspend_tasks(self, connection: Connection) -> None:
        """Stop the transfers of the tasks that are allegiant to a connection."""
        for task in self.tasks_of_connection(connection):
            if isinstance(task, RecoverableTask):
                task.suspend()

    def tasks_of_connection(self, connection: Connection) -> list[Task]:
        """Return the tasks in progress that are allegiant to a connection."""
        return [task for task in self.tasks.values() if task.connection is connection]

    def discard_waiting(self, connection: Connection) -> None:
        """Forget what a connection brought that was not delivered; its CmdSNs are gaps again."""
        for cmdsn in [sn for sn, (owner, _) in self.waiting.items() if owner is connection]:
            del self.waiting[cmdsn]
        for task in self.tasks_of_connection(connection):
            if not task.started:
                self._terminate(task)

    def end_tasks_of(self, connection: Connection) -> None:
        """End the tasks that are allegiant to a connection, without an answer."""
        self.discard_waiting(connection)
        self.end_tasks(self.tasks_of_connection(connection))
        if self.retention is not None:
            for kept in [task for task in self.retention.tasks.values() if task.connection is connection]:
                self.retention.release(kept)

    def end_tasks(self, tasks: list[Task]) -> None:
        """End tasks without an answer; the initiator is told by 47/7F if the session lives on (6.5)."""
        for lun in {task.lun for task in tasks}:
            unit = self.node.luns.get(lun) if self.node is not None else None
            if unit is not None:
                unit.attention_for(self.nexus, conditions.CLEARED_BY_ISCSI)
        for task in tasks:
            self._terminate(task)

    def _terminate(self, task: Task) -> None:
        task.aborted = True
        task.finish()

    def close(self, *, cause: str = "") -> None:
        """End the session: tasks, connections, and what units hold for the nexus."""
        if self.closed:
            return
        self.closed = True
        for task in list(self.tasks.values()):
            self._terminate(task)
        self.waiting.clear()
        if self.cleanup is not None:
            self.cleanup.close()
        for connection in list(self.connections.values()):
            connection.close(cause or "session closed")
        self.connections.clear()
        if self.node is not None:
            for unit in self.endpoint.units.values():
                unit.detach(self.nexus)
        self.endpoint.session_closed(self)
