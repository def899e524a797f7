# SPDX-License-Identifier: GPL-3.0-or-later
"""A target that a coroutine speaks for, PDU by PDU: for what a working target would never do.

async def handler(peer: ScriptedConnection) -> None:
request = await peer.receive()
peer.send(peer.answer(request, flags=0x87, text={"Bogus": "1"}))

async with ScriptedTarget(handler) as target:
...  # let an initiator log in at target.address
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

from blockfleet_testtarget.codec import NO_LUN, NO_TAG, TRANSIT, Op, Pdu, target_header
from blockfleet_testtarget.config import format_address
from blockfleet_testtarget.keys import format_text, parse_text
from blockfleet_testtarget.stream import PduStream

SEGMENT_LIMIT = (1 << 24) - 1
_RESPONSES = {
    Op.LOGIN_REQUEST: Op.LOGIN_RESPONSE,
    Op.TEXT_REQUEST: Op.TEXT_RESPONSE,
    Op.LOGOUT_REQUEST: Op.LOGOUT_RESPONSE,
    Op.TASK_REQUEST: Op.TASK_RESPONSE,
    Op.SCSI_COMMAND: Op.SCSI_RESPONSE,
    Op.NOP_OUT: Op.NOP_IN,
}


_WITH_LUN = frozenset({Op.LOGIN_RESPONSE, Op.TEXT_RESPONSE, Op.NOP_IN})  # ISID and TSIH, for the first
_WITH_TAG = frozenset({Op.TEXT_RESPONSE, Op.NOP_IN})


class PeerGoneError(Exception):
    """The initiator closed the connection while the script waited for a PDU."""


class ScriptedConnection(PduStream):
    """A connection in the hands of a script.

    `statsn`, `expcmdsn` and `maxcmdsn` are what `answer` puts in; the script may set them to
    anything. Digests are as `header_digest` and `data_digest` say, from the next PDU on.
    """

    def __init__(self, target: ScriptedTarget) -> None:
        super().__init__()
        self.own_segment = SEGMENT_LIMIT
        self.target = target
        self.statsn = 1
        self.expcmdsn = 0
        self.maxcmdsn = 0
        self.received: list[Pdu] = []
        self.violations: list[str] = []
        self._queue: asyncio.Queue[Pdu | None] = asyncio.Queue()

    def opened(self) -> None:
        self.target.connection_opened(self)

    def ended(self) -> None:
        self._queue.put_nowait(None)

    def pdu_received(self, pdu: Pdu, *, wrong_data: bool) -> None:
        if wrong_data:
            self.violation("data digest is wrong")
        kept = pdu.detach()
        self.received.append(kept)
        self._queue.put_nowait(kept)

    def violation(self, text: str) -> None:
        self.violations.append(text)

    async def receive(self, timeout: float = 5.0) -> Pdu:
        """Return the next PDU; raises TimeoutError, or PeerGoneError when the initiator has gone."""
        pdu = await asyncio.wait_for(self._queue.get(), timeout)
        if pdu is None:
            self._queue.put_nowait(None)
            raise PeerGoneError(self.cause)
        return pdu

    async def closed(self, timeout: float = 5.0) -> None:
        """Return when the initiator has closed the connection, whatever it sends before."""
        try:
            while True:
                await self.receive(timeout)
        except PeerGoneError:
            return

    def send(self, item: Pdu | bytes) -> None:
        """Send a PDU (padding and digests are added) or raw bytes."""
        if isinstance(item, bytes):
            self.emit_bytes(item)
        else:
            self.emit(item)

    def answer(
        self,
        request: Pdu,
        *,
        flags: int = 0x80,
        text: Mapping[str, str] | None = None,
        data: bytes = b"",
        **fields: int,
    ) -> Pdu:
        """Build the usual answer to a request, with a StatSN of its own; `fields` replaces header fields."""
        opcode = _RESPONSES[Op(request.opcode)]
        if text is not None:
            data = format_text(list(text.items()))
        header = target_header(
            opcode,
            flags=flags,
            length=len(data),
            lun=request.lun if opcode in _WITH_LUN else NO_LUN,
            itt=request.itt,
            ttt=NO_TAG if opcode in _WITH_TAG else 0,
            statsn=self.statsn,
            window=(self.expcmdsn, self.maxcmdsn),
        )
        self.statsn = (self.statsn + 1) & 0xFFFFFFFF
        return Pdu(header, data).replace(**fields)

    async def accept_login(
        self, answers: Mapping[str, str] | None = None, tsih: int = 1, window: int = 32
    ) -> dict[str, str]:
        """Go through a login without authentication and return the initiator's keys.

        Each operational key in `answers` is answered as it says when it comes; others are not
        answered, so that their defaults hold.
        """
        keys: dict[str, str] = {}
        while True:
            request = await self.receive()
            self.expcmdsn, self.maxcmdsn = request.cmdsn, (request.cmdsn + window - 1) & 0xFFFFFFFF
            offered = dict(parse_text(bytes(request.data)))
            first = not keys
            keys.update(offered)
            text = {name: value for name, value in (answers or {}).items() if name in offered}
            if "AuthMethod" in offered:
                text["AuthMethod"] = "None"
            if first and "TargetName" in keys:
                text["TargetPortalGroupTag"] = "1"
            stages = request.flags & (TRANSIT | 0x0F)
            last = bool(request.flags & TRANSIT) and request.next_stage == 3
            self.send(self.answer(request, flags=stages, text=text, tsih=tsih if last else request.tsih))
            if last:
                return keys


Handler = Callable[[ScriptedConnection], Awaitable[None]]


class ScriptedTarget:
    """Listens on one portal and runs a handler for every connection, which is closed when it returns.

    When the context ends, an error of a handler is raised; handlers that still wait are cancelled.
    """

    def __init__(self, handler: Handler, host: str = "127.0.0.1") -> None:
        self.handler = handler
        self.host = host
        self.port = 0
        self.connections: list[ScriptedConnection] = []
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Future[None]] = []

    @property
    def address(self) -> str:
        """HOST:PORT as an initiator writes it."""
        return format_address(self.host, self.port)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ScriptedConnection(self), self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.reset("script ended")
        for task in self._tasks:
            if not task.done():
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, PeerGoneError):
                    raise result

    def connection_opened(self, connection: ScriptedConnection) -> None:
        """Start the handler of a new connection."""
        self.connections.append(connection)
        self._tasks.append(asyncio.ensure_future(self._run(connection)))

    async def _run(self, connection: ScriptedConnection) -> None:
        try:
            await self.handler(connection)
        finally:
            connection.close("script ended")
