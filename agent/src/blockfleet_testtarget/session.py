# SPDX-License-Identifier: GPL-3.0-or-later
"""A session: I_T nexus, command order and window, task set, and the connections that carry it."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import MASK32, Op, Pdu, later
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.nexus import Nexus
from blockfleet_testtarget.tasks import Task, Transfer

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
            connection.violation(f"CmdSN {cmdsn} is outside {self.expcmdsn} to {self._max_sent} or a duplicate")
            return
        if cmdsn == self.expcmdsn:
            self.expcmdsn = (cmdsn + 1) & MASK32
            connection.deliver(pdu)
            self._catch_up()
            return
        if pdu.opcode == Op.SCSI_COMMAND:
            task = connection.make_task(pdu)
            if len(pdu.data):
                task.store(0, pdu.data)
            self.waiting[cmdsn] = (connection, task.start)
        else:
            self.waiting[cmdsn] = (connection, partial(connection.deliver, pdu.detach()))

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

    def tasks_of(self, lun: int | None = None) -> list[Task]:
        """Return the tasks of one LUN, or all."""
        return [task for task in self.tasks.values() if lun is None or task.lun == lun]

    # ---- connections

    def add_connection(self, connection: Connection) -> None:
        """Let a logged-in connection carry the session."""
        self.connections[connection.cid] = connection

    def connection_lost(self, connection: Connection) -> None:
        """A connection is gone. At recovery level 0 its tasks end, and the session with the last one."""
        if self.closed:
            return
        if self.connections.get(connection.cid) is connection:
            del self.connections[connection.cid]
        self.end_tasks_of(connection)
        if not self.connections:
            self.close()

    def end_tasks_of(self, connection: Connection) -> None:
        """End the tasks that are allegiant to a connection, without an answer."""
        for task in list(self.tasks.values()):
            if task.connection is connection:
                self._terminate(task)
        for cmdsn in [sn for sn, (owner, _) in self.waiting.items() if owner is connection]:
            del self.waiting[cmdsn]

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
        for connection in list(self.connections.values()):
            connection.close(cause or "session closed")
        self.connections.clear()
        if self.node is not None:
            for unit in self.endpoint.units.values():
                unit.detach(self.nexus)
        self.endpoint.session_closed(self)
