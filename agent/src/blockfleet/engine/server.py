# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves the :class:`~blockfleet.engine.interface.Engine` calls on the control socket.

Only processes of the engine's own user and root are heard, by the credentials that the kernel vouches for
(SO_PEERCRED), before a byte of theirs is parsed.  What a client can make the engine hold is bounded by the
constants below.  No session or volume depends on a client being connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from pathlib import Path

from pydantic import TypeAdapter

from blockfleet.engine import protocol
from blockfleet.engine.interface import Engine
from blockfleet.engine.protocol import METHODS, SUBSCRIPTIONS, HelloReply, Request, Subscription
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

MAXIMUM_CLIENTS = 32
MAXIMUM_CALLS = 16
"""Calls of one client that run at the same time; further lines wait in its socket."""
HELLO_TIMEOUT = 5.0
"""Seconds in which a client must have sent its hello."""
LINE_TIMEOUT = 30.0
"""Seconds in which a client must take an answer."""

_UCRED = struct.Struct("=iII")
_HELLO_REPLY: TypeAdapter[HelloReply] = TypeAdapter(HelloReply)
_NOTHING: TypeAdapter[None] = TypeAdapter(None)

_log = logging.getLogger(__name__)


class ControlServer:
    """The listening end of the control socket at ``path`` (mode 0600)."""

    def __init__(self, engine: Engine, path: Path, *, instance: str, version: str) -> None:
        self._engine = engine
        self._path = path
        self._instance = instance
        self._version = version
        self._server: asyncio.AbstractServer | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; the caller holds the lock of the runtime directory, so that an old socket is a dead one."""
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._accept, str(self._path), limit=protocol.MAXIMUM_REQUEST
            )
        finally:
            os.umask(mask)

    async def stop(self) -> None:
        """Stop listening and end every client's connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._clients):
            task.cancel()
        if self._clients:
            await asyncio.wait(tuple(self._clients))
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        refusal = self._refusal(writer)
        if refusal is not None:
            _log.warning("control connection refused: %s", refusal)
            writer.write(protocol.encode_error(protocol.WHOLE_CONNECTION, refusal))
            writer.close()
            return
        self._clients.add(task)
        try:
            await _Client(self._engine, reader, writer, self._hello()).serve()
        except asyncio.CancelledError:
            # The task belongs to this server alone, which cancels it in stop(); it ends here.
            _log.debug("control connection ended by the engine's stop")
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    def _refusal(self, writer: asyncio.StreamWriter) -> BlockfleetError | None:
        peer = writer.get_extra_info("socket")
        _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            return BlockfleetError(
                Isdsc.NOT_PERMITTED,
                f"user {uid} may not control this engine",
                remedy=f"connect as root or as user {os.geteuid()}",
            )
        if len(self._clients) >= MAXIMUM_CLIENTS:
            return BlockfleetError(
                Isdsc.OUT_OF_RESOURCES,
                f"the engine already has {MAXIMUM_CLIENTS} control connections",
                remedy="close some",
            )
        return None

    def _hello(self) -> HelloReply:
        return HelloReply(
            protocol=protocol.PROTOCOL_VERSION, instance=self._instance, version=self._version, pid=os.getpid()
        )


class _Client:
    """One control connection."""

    def __init__(
        self, engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: HelloReply
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._hello = hello
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(MAXIMUM_CALLS)
        self._subscribed = False

    async def serve(self) -> None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                await self._greet()
            while (line := await self._line()) is not None:
                request = protocol.decode_request(line)
                await self._begin(request)
        except BlockfleetError as error:
            _log.warning("control connection closed: %s", error)
            with contextlib.suppress(OSError, TimeoutError):
                await self._send(protocol.encode_error(protocol.WHOLE_CONNECTION, error))
        except (OSError, TimeoutError) as error:
            _log.info("control connection lost: %s", str(error) or type(error).__name__)
        finally:
            calls = tuple(self._calls.values())
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _line(self) -> bytes | None:
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            raise BlockfleetError(
                Isdsc.PROTOCOL_ERROR,
                f"a request is longer than {protocol.MAXIMUM_REQUEST} bytes",
                remedy="ask for less at once",
            ) from None

    async def _greet(self) -> None:
        line = await self._line()
        if line is None:
            raise ConnectionResetError("closed before its hello")
        request = protocol.decode_request(line)
        if request.method != protocol.HELLO:
            raise BlockfleetError(Isdsc.PROTOCOL_ERROR, "the first request must be hello")
        params = protocol.validate_params(protocol.HelloParams, request.params)
        if protocol.PROTOCOL_VERSION not in params.protocols:
            raise BlockfleetError(
                Isdsc.VERSION_MISMATCH,
                f"the engine speaks version {protocol.PROTOCOL_VERSION} of the control protocol, the client"
                f" {', '.join(map(str, params.protocols))}",
                remedy="use an agent and an engine of the same version",
            )
        await self._send(protocol.encode_result(request.id, _HELLO_REPLY, self._hello))

    async def _begin(self, request: Request) -> None:
        if request.id == protocol.WHOLE_CONNECTION or request.id in self._calls:
            raise BlockfleetError(Isdsc.PROTOCOL_ERROR, f"id {request.id} is in use")
        await self._room.acquire()
        self._calls[request.id] = asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            subscription = SUBSCRIPTIONS.get(request.method)
            if subscription is not None:
                await self._stream(request, subscription)
            else:
                await self._send(await self._call(request))
        except BlockfleetError as error:
            await self._send_or_close(protocol.encode_error(request.id, error))
        except (OSError, TimeoutError):
            # The client does not take its answers; its connection ends, the engine goes on.
            self._writer.transport.abort()
        finally:
            del self._calls[request.id]
            self._room.release()

    async def _call(self, request: Request) -> bytes:
        method = METHODS.get(request.method)
        if method is None:
            raise BlockfleetError(
                Isdsc.REQUEST_NOT_SUPPORTED,
                f"the engine has no method {request.method!r}",
                remedy="use an agent and an engine of the same version",
            )
        params = protocol.validate_params(method.params, request.params)
        try:
            result = await method.call(self._engine, params)
        except BlockfleetError:
            raise
        except Exception as error:
            _log.exception("fault in %s", request.method)
            raise BlockfleetError(
                Isdsc.INITIATOR_ERROR,
                f"{request.method} failed inside the engine ({type(error).__name__})",
                remedy="report it with the engine's log",
            ) from error
        return protocol.encode_result(request.id, method, result)

    async def _stream(self, request: Request, subscription: Subscription) -> None:
        params = protocol.validate_params(subscription.params, request.params)
        if self._subscribed:
            raise BlockfleetError(Isdsc.INVALID_PARAMETER, "a connection has one subscription at most")
        self._subscribed = True
        await self._send(protocol.encode_result(request.id, _NOTHING, None))
        async with contextlib.aclosing(subscription.call(self._engine, params)) as parts:
            async for part in parts:
                await self._send(subscription.encode(request.id, part))

    async def _send_or_close(self, line: bytes) -> None:
        try:
            await self._send(line)
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    async def _send(self, line: bytes) -> None:
        self._writer.write(line)
        async with asyncio.timeout(LINE_TIMEOUT):
            await self._writer.drain()
