# SPDX-License-Identifier: GPL-3.0-or-later
"""The running target: portals, nodes, sessions, armed faults, and the record of what came in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from blockfleet_testtarget.config import Config, PortalConfig, UnitConfig, format_address
from blockfleet_testtarget.connection import Connection
from blockfleet_testtarget.node import TargetNode, build_unit
from blockfleet_testtarget.scsi.sense import LUNS_CHANGED

if TYPE_CHECKING:
    from blockfleet_testtarget.codec import Pdu
    from blockfleet_testtarget.faults import Fault
    from blockfleet_testtarget.scsi.unit import LogicalUnit, Result
    from blockfleet_testtarget.session import Session
    from blockfleet_testtarget.tasks import Task

NOTE_LIMIT = 10000

OnPdu = Callable[[Connection, "Pdu"], "list[Pdu | bytes] | None"]


@dataclass(slots=True)
class Portal:
    """A bound portal: `host` and `port` are those it listens on."""

    index: int
    config: PortalConfig
    server: asyncio.Server
    host: str
    port: int

    @property
    def group(self) -> int:
        return self.config.group

    @property
    def address(self) -> str:
        """HOST:PORT as an initiator writes it."""
        return format_address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Received:
    """One PDU that came in, with the connection that brought it."""

    connection: Connection
    pdu: Pdu


class TestTarget:
    """A target with everything in its Config; `async with TestTarget(config) as target:` runs it.

    It lives in one event loop; only `ThreadedTestTarget` may be used from elsewhere. `sessions` are
    those logged in, `connections` those open, `violations` what initiators did against the RFC,
    `notes` what happened in words, `received` the PDUs that came in (bounded by the Config).
    """

    __test__ = False  # its name begins like that of a test class

    def __init__(self, config: Config) -> None:
        config.check()
        self.config = config
        self.portals: list[Portal] = []
        self.units: dict[str, LogicalUnit] = {name: build_unit(name, unit) for name, unit in config.units.items()}
        self.nodes: dict[str, TargetNode] = {}
        ports = 1
        for target in config.targets:
            node = TargetNode(target, config, self.units, ports)
            self.nodes[node.name] = node
            ports += len(node.ports)
        self.sessions: list[Session] = []
        self.connections: list[Connection] = []
        self.connections_seen = 0
        self.faults: list[Fault] = []
        self.hooks: list[OnPdu] = []
        self.send_hooks: list[OnPdu] = []
        self.violations: deque[str] = deque(maxlen=NOTE_LIMIT)
        self.notes: deque[str] = deque(maxlen=NOTE_LIMIT)
        self.received: deque[Received] = deque()
        self.watched = config.record_pdus > 0
        self.bending = False
        self.stopped = False
        self._idle = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._record_bytes = 0
        self._tsih = 0

    # ---- life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Bind every portal; raises OSError when one cannot be bound."""
        loop = asyncio.get_running_loop()
        try:
            for index, config in enumerate(self.config.portals):
                await self._open_portal(loop, index, config)
        except OSError:
            await self.stop()
            raise

    async def _open_portal(self, loop: asyncio.AbstractEventLoop, index: int, config: PortalConfig) -> None:
        def connected() -> Connection:
            return Connection(self, self.portals[index])

        server = await loop.create_server(connected, config.host, config.port, backlog=512)
        name = server.sockets[0].getsockname()
        self.portals.append(Portal(index, config, server, config.host, name[1]))

    async def stop(self) -> None:
        """Close portals and connections and let go of the units; raises what background work met."""
        background = await asyncio.gather(*self._background, return_exceptions=True)
        self.stopped = True
        for portal in self.portals:
            portal.server.close()
        for connection in list(self.connections):
            connection.reset("target stopped")
        for portal in self.portals:
            await portal.server.wait_closed()
        if self.connections:
            self._idle.clear()
            await self._idle.wait()
        for session in list(self.sessions):
            session.close(cause="target stopped")
        for unit in self.units.values():
            unit.backing.close()
        for error in background:
            if isinstance(error, BaseException):
                raise error

    async def close_portal(self, index: int) -> None:
        """Stop to listen on a portal and reset its connections, as when its host dies."""
        portal = self.portals[index]
        portal.server.close()
        for connection in list(self.connections):
            if connection.portal is portal:
                connection.reset("portal closed")
        await portal.server.wait_closed()

    async def reopen_portal(self, index: int) -> None:
        """Listen again on a portal that was closed, at the same address and port."""
        portal = self.portals[index]

        def connected() -> Connection:
            return Connection(self, portal)

        loop = asyncio.get_running_loop()
        portal.server = await loop.create_server(connected, portal.host, portal.port, backlog=512)

    # ---- bookkeeping of connections and sessions

    def next_connection_number(self) -> int:
        """Number connections from 1 in the order in which they came."""
        self.connections_seen += 1
        return self.connections_seen

    def connection_opened(self, connection: Connection) -> None:
        """See a connection begin."""
        self.connections.append(connection)
        for fault in self.faults:
            if fault.accepting(connection):
                break
        self.prune()

    def connection_closed(self, connection: Connection) -> None:
        """See a connection end."""
        self.connections.remove(connection)
        if not self.connections:
            self._idle.set()
        self.note(f"connection {connection.number} ended: {connection.cause}")

    def session_closed(self, session: Session) -> None:
        """See a session end."""
        if session in self.sessions:
            self.sessions.remove(session)

    def new_tsih(self) -> int:
        """Return a TSIH that no session has."""
        used = {session.tsih for session in self.sessions}
        while True:
            self._tsih = self._tsih % 0xFFFF + 1
            if self._tsih not in used:
                return self._tsih

    def find_session(self, tsih: int) -> Session | None:
        """Return the session with a TSIH."""
        return next((session for session in self.sessions if session.tsih == tsih), None)

    def tasks_of(self, unit: LogicalUnit) -> list[Task]:
        """Return the tasks of every session at a unit."""
        return [
            task
            for session in self.sessions
            for task in session.tasks.values()
            if session.node is not None and session.node.luns.get(task.lun) is unit
        ]

    def may_see(self, node: TargetNode, initiator: str) -> bool:
        """Whether an initiator has access to a target."""
        return not node.initiators or initiator in node.initiators

    def addresses(self, node: TargetNode, connection: Connection) -> list[str]:
        """Return the TargetAddress values of a target, as seen from a connection."""
        found = []
        for portal in self.portals:
            if portal.group not in node.ports or not portal.server.is_serving():
                continue
            address = portal.config.advertise or portal.address
            if portal.host in ("0.0.0.0", "::", "") and not portal.config.advertise:  # noqa: S104 - compared
                address = format_address(connection.local_host, portal.port)
            found.append(f"{address},{portal.group}")
        return found

    def add_unit(self, name: str, config: UnitConfig) -> LogicalUnit:
        """Make one more unit, to be put behind a LUN later."""
        self.units[name] = build_unit(name, config)
        return self.units[name]

    def set_lun(self, node: TargetNode, lun: int, unit: LogicalUnit | None, *, tell: bool = True) -> None:
        """Put another unit (or none) behind a LUN; nexuses are told by 3F/0E unless silent."""
        node.luns.pop(lun, None)
        if unit is not None:
            node.reach(unit)
            node.luns = dict(sorted({**node.luns, lun: unit}.items()))
        for session in self.sessions:
            if session.node is not node:
                continue
            if unit is not None:
                unit.attach(session.nexus, None)
            for shown in node.luns.values() if tell else ():
                shown.attention_for(session.nexus, LUNS_CHANGED)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something in the background; it is waited for when the target stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def note(self, text: str) -> None:
        """Keep a line on what happened."""
        self.notes.append(text)

    # ---- faults, hooks and the record

    def arm(self, fault: Fault) -> Fault:
        """Arm a fault; one that acts at once has done so when this returns."""
        if fault.armed(self):
            self.faults.append(fault)
        self._watch()
        return fault

    def disarm(self, fault: Fault | None = None) -> None:
        """Disarm one fault, or all."""
        for armed in [fault] if fault is not None else list(self.faults):
            if armed in self.faults:
                self.faults.remove(armed)
                armed.disarmed(self)
        self._watch()

    def prune(self) -> None:
        """Drop the faults that have struck as often as they should."""
        for fault in [fault for fault in self.faults if fault.spent]:
            self.faults.remove(fault)
            fault.disarmed(self)
        self._watch()

    def _watch(self) -> None:
        self.watched = bool(self.faults or self.hooks or self.config.record_pdus)
        self.bending = bool(self.faults or self.send_hooks)

    def on_pdu(self, hook: OnPdu) -> None:
        """Let a hook see every received PDU.

        It returns None to let the target handle the PDU, or what to send instead: PDUs (digests and
        padding are added) or raw bytes (sent as they are); an empty list swallows the PDU.
        """
        self.hooks.append(hook)
        self._watch()

    def on_send(self, hook: OnPdu) -> None:
        """Let a hook see every PDU before it is sent, and replace it likewise."""
        self.send_hooks.append(hook)
        self._watch()

    def record(self, connection: Connection, pdu: Pdu) -> None:
        """Keep a copy of a received PDU, within the limits of the Config."""
        if not self.config.record_pdus:
            return
        self.received.append(Received(connection, pdu.detach()))
        self._record_bytes += len(pdu.data)
        while len(self.received) > self.config.record_pdus or self._record_bytes > self.config.record_bytes:
            self._record_bytes -= len(self.received.popleft().pdu.data)

    def intercept(self, connection: Connection, pdu: Pdu) -> bool:
        """Show a received PDU to hooks and faults; return whether one of them dealt with it."""
        for hook in self.hooks:
            answer = hook(connection, pdu)
            if answer is not None:
                for item in answer:
                    if isinstance(item, bytes):
                        connection.emit_bytes(item)
                    else:
                        connection.emit(item)
                return True
        if not self.faults:
            return False
        taken = any(fault.receiving(connection, pdu) for fault in list(self.faults))
        self.prune()
        return taken

    def result_instead(self, task: Task) -> Result | None:
        """Return the result that an armed fault wants a task to have, or None."""
        for fault in self.faults:
            result = fault.starting(task)
            if result is not None:
                self.prune()
                return result
        return None

    def gives_up(self, task: Task) -> bool:
        """Whether an armed fault wants data of a task that was lost not to be asked for again."""
        for fault in self.faults:
            if fault.recovering(task):
                self.prune()
                return True
        return False

    def taken_over(self, task: Task) -> bool:
        """Whether an armed fault took over a task that was about to run."""
        for fault in self.faults:
            if fault.executing(task):
                self.prune()
                return True
        return False

    def bend(self, connection: Connection, pdu: Pdu) -> list[Pdu]:
        """Pass a PDU that is about to be sent through the armed faults."""
        pdus = [pdu]
        for hook in self.send_hooks:
            answer = hook(connection, pdu)
            if answer is not None:
                pdus = [item for item in answer if not isinstance(item, bytes)]
                for item in answer:
                    if isinstance(item, bytes):
                        connection.emit_bytes(item)
        for fault in list(self.faults):
            bent: list[Pdu] = []
            for item in pdus:
                replaced = fault.sending(connection, item)
                bent += [item] if replaced is None else replaced
            pdus = bent
        self.prune()
        return pdus
