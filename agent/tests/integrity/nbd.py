# SPDX-License-Identifier: GPL-3.0-or-later
"""An NBD client with many requests in flight that survives its server, as the kernel's does.

When the connection ends it connects again, for as long as it is patient, and sends what was not answered once
more, in the same order (nbd with ``dead_conn_timeout``).  Written from doc/proto.md with constants of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

READ, WRITE, DISC, FLUSH = range(4)
FUA = 1
ENOTCONN = 107

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_OPTION_REPLY = struct.Struct(">QIII")
_GO = 7
_CONNECT_PAUSE = 0.02
_HANDSHAKE_TIMEOUT = 5.0


class Request:
    """One request; ``done`` is called with it once ``error`` (0 for success) and ``data`` are known."""

    __slots__ = ("begun", "command", "context", "data", "done", "error", "flags", "length", "offset", "sent")

    def __init__(
        self,
        command: int,
        done: Callable[[Request], None],
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        flags: int = 0,
        context: object = None,
    ) -> None:
        self.command = command
        self.done = done
        self.offset = offset
        self.length = length or len(data)
        self.data = data
        self.flags = flags
        self.context = context
        self.error = 0
        self.begun = 0.0
        self.sent = 0
        """How often it was sent."""


class NbdPipe:
    """Requests to one export; ``patience`` is how many seconds it tries to connect again, 0 for never."""

    def __init__(self, socket: Path, patience: float = 0.0) -> None:
        self._socket = socket
        self._patience = patience
        self._writer: asyncio.StreamWriter | None = None
        self._pending: dict[int, Request] = {}
        self._cookie = 0
        self._task: asyncio.Task[None] | None = None
        self.size = 0
        self.connections = 0
        self.replayed = 0

    async def open(self) -> None:
        """Connect; raises OSError where that fails."""
        reader = await self._connect()
        self._task = asyncio.create_task(self._run(reader))

    async def close(self) -> None:
        """End the connection; what is not answered never will be."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    @property
    def outstanding(self) -> int:
        return len(self._pending)

    def submit(self, request: Request) -> None:
        """Send a request, now or when there is a connection again."""
        self._cookie += 1
        request.begun = asyncio.get_running_loop().time()
        self._pending[self._cookie] = request
        self._send(self._cookie, request)

    async def ask(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> Request:
        """Send a request and wait for its answer."""
        answer: asyncio.Future[Request] = asyncio.get_running_loop().create_future()
        self.submit(Request(command, answer.set_result, offset, length, data, flags))
        return await answer

    def _send(self, cookie: int, request: Request) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        request.sent += 1
        payload = request.data if request.command == WRITE else b""
        self._writer.write(
            _REQUEST.pack(0x25609513, request.flags, request.command, cookie, request.offset, request.length)
            + payload
        )

    async def _connect(self) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT):
                self.size = await _handshake(reader, writer)
        except BaseException:
            writer.close()
            raise
        self._writer = writer
        self.connections += 1
        for cookie, request in self._pending.items():
            self.replayed += request.sent > 0
            self._send(cookie, request)
        return reader

    async def _run(self, reader: asyncio.StreamReader) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                while True:
                    await self._receive(reader)
            assert self._writer is not None
            self._writer.close()
            self._writer = None
            found = await self._connect_again()
            if found is None:
                break
            reader = found
        pending, self._pending = self._pending, {}
        for request in pending.values():
            request.error = ENOTCONN
            request.done(request)

    async def _connect_again(self) -> asyncio.StreamReader | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while loop.time() < deadline:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                return await self._connect()
            await asyncio.sleep(_CONNECT_PAUSE)
        return None

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        magic, error, cookie = _REPLY.unpack(await reader.readexactly(_REPLY.size))
        assert magic == 0x67446698, f"not a simple reply: {magic:#x}"
        request = self._pending[cookie]
        if request.command == READ and not error:
            request.data = await reader.readexactly(request.length)
        del self._pending[cookie]
        request.error = error
        request.done(request)


async def _handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Enter transmission without structured replies; returns the export's size."""
    greeting = await reader.readexactly(18)
    assert greeting[:16] == b"NBDMAGICIHAVEOPT", greeting
    writer.write(b"\0\0\0\x03" + b"IHAVEOPT" + struct.pack(">IIIH", _GO, 6, 0, 0))
    size = 0
    while True:
        _magic, option, kind, length = _OPTION_REPLY.unpack(await reader.readexactly(_OPTION_REPLY.size))
        data = await reader.readexactly(length)
        assert option == _GO
        if kind == 1:
            return size
        assert kind == 3, f"GO was answered {kind:#x}"
        if data[:2] == b"\0\0":
            size = struct.unpack_from(">Q", data, 2)[0]
