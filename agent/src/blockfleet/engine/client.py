# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's end of the control socket: an :class:`~blockfleet.engine.interface.Engine` in another process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from blockfleet.engine import protocol
from blockfleet.engine.interface import (
    DiscoveredPortal,
    DiscoverySpec,
    EngineEvent,
    EngineState,
    InitiatorSpec,
    SessionSpec,
    SessionState,
    TraceBatch,
    TraceSpec,
    VolumeSpec,
    VolumeState,
)
from blockfleet.engine.protocol import METHODS, Answer, HelloReply
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

CONNECT_TIMEOUT = 5.0
"""Seconds for connecting and the handshake."""

_HELLO_REPLY: TypeAdapter[HelloReply] = TypeAdapter(HelloReply)


class EngineClient:
    """Speaks to the engine behind ``socket_path``; connects when first used and again after a loss.

    Every call raises :class:`BlockfleetError`: ``ENGINE_NOT_RUNNING`` when nobody listens or the engine goes
    away in the middle of the call (whose effect is then unknown: observe), ``SERVICE_DID_NOT_RESPOND`` when it
    does not answer in time, and whatever the engine answers.
    """

    def __init__(self, socket_path: Path | str) -> None:
        self._path = Path(socket_path)
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        """End the connection; the engine and all its sessions go on."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def observe(self) -> EngineState:
        """Return the engine's present state."""
        state: EngineState = await self._call("observe", protocol.NoParams())
        return state

    async def configure(self, initiator: InitiatorSpec) -> None:
        """Set the initiator's name and alias."""
        await self._call("configure", initiator)

    async def discover(self, spec: DiscoverySpec) -> tuple[DiscoveredPortal, ...]:
        """Run one SendTargets discovery."""
        found: tuple[DiscoveredPortal, ...] = await self._call("discover", spec, extra=spec.timeout)
        return found

    async def open_session(self, spec: SessionSpec) -> SessionState:
        """Start a session, or give one its newest credentials and options."""
        state: SessionState = await self._call("open_session", spec)
        return state

    async def relogin(self, key: str) -> None:
        """Log a session out and in again."""
        await self._call("relogin", protocol.KeyParams(key=key))

    async def close_session(self, key: str) -> None:
        """Log out and forget."""
        await self._call("close_session", protocol.KeyParams(key=key))

    async def rescan(self, key: str) -> SessionState:
        """Ask a session for its logical units again."""
        state: SessionState = await self._call("rescan", protocol.KeyParams(key=key))
        return state

    async def publish(self, spec: VolumeSpec) -> VolumeState:
        """Serve a volume, or change its policy."""
        state: VolumeState = await self._call("publish", spec)
        return state

    async def withdraw(self, name: str) -> None:
        """Stop serving a volume."""
        await self._call("withdraw", protocol.NameParams(name=name))

    async def events(self, after: int = 0) -> AsyncGenerator[EngineEvent, None]:
        """Yield events over a connection of their own; raises ``ENGINE_NOT_RUNNING`` when the engine goes."""
        async with self._subscribed(protocol.EVENTS, protocol.EventsParams(after=after)) as answers:
            async for answer in answers:
                if answer.event is not None:
                    yield answer.event

    async def trace(self, spec: TraceSpec) -> AsyncGenerator[TraceBatch, None]:
        """Yield a trace over a connection of its own; raises ``ENGINE_NOT_RUNNING`` when the engine goes."""
        async with self._subscribed(protocol.TRACE, spec) as answers:
            async for answer in answers:
                if answer.trace is not None:
                    yield answer.trace
                    if answer.trace.ended:
                        return

    @contextlib.asynccontextmanager
    async def _subscribed(self, name: str, params: BaseModel) -> AsyncIterator[AsyncIterator[Answer]]:
        connection = await _Connection.open(self._path)
        try:
            async with contextlib.aclosing(connection.subscribe(name, params)) as answers:
                yield answers
        finally:
            await connection.close()

    async def _call(self, name: str, params: BaseModel, *, extra: float = 0.0) -> Any:
        method = METHODS[name]
        connection = await self._connected()
        result = await connection.call(name, params, method.patience + extra)
        return protocol.decode_result(method.reply, result)

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is None or not self._connection.alive:
                if self._connection is not None:
                    await self._connection.close()
                    self._connection = None
                self._connection = await _Connection.open(self._path)
            return self._connection


class _Connection:
    """One connection after its handshake; answers are matched to calls by id."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._receiver: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path) -> _Connection:
        """Connect and shake hands."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(str(path), limit=protocol.MAXIMUM_REPLY)
                connection = cls(path, reader, writer)
                try:
                    await connection._greet()
                except BaseException:
                    writer.transport.abort()
                    raise
        except TimeoutError:
            raise _not_running(path, "it does not answer") from None
        except OSError as error:
            raise _not_running(path, error.strerror or str(error)) from None
        return connection

    @property
    def alive(self) -> bool:
        """Whether calls can still be sent."""
        return self._receiver is None or not self._receiver.done()

    async def close(self) -> None:
        """Drop the connection."""
        if self._receiver is not None:
            self._receiver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._receiver
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, name: str, params: BaseModel, patience: float) -> Any:
        """Send a request and wait for its answer, ``patience`` seconds at most."""
        if self._receiver is None:
            self._receiver = asyncio.get_running_loop().create_task(self._receive())
        self._last_id += 1
        request_id = self._last_id
        line = protocol.encode_request(request_id, name, params)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = waiter
        try:
            async with asyncio.timeout(patience):
                self._writer.write(line)
                await self._writer.drain()
                return await waiter
        except TimeoutError:
            raise BlockfleetError(
                Isdsc.SERVICE_DID_NOT_RESPOND,
                f"the engine behind {self._path} did not answer {name} within {patience:g} s",
                remedy="look at the engine's log",
            ) from None
        except OSError as error:
            raise _not_running(self._path, error.strerror or str(error)) from None
        finally:
            del self._waiting[request_id]

    async def subscribe(self, name: str, params: BaseModel) -> AsyncGenerator[Answer, None]:
        """Yield the answers of this connection, which serves for nothing else; raises the first error."""
        try:
            self._writer.write(protocol.encode_request(1, name, params))
            await self._writer.drain()
            while True:
                yield _checked(await self._answer())
        except OSError as error:
            raise _not_running(self._path, error.strerror or str(error)) from None

    async def _greet(self) -> None:
        hello = protocol.HelloParams(protocols=(protocol.PROTOCOL_VERSION,))
        self._writer.write(protocol.encode_request(protocol.WHOLE_CONNECTION, protocol.HELLO, hello))
        protocol.decode_result(_HELLO_REPLY, _checked(await self._answer()).result)

    async def _answer(self) -> Answer:
        """Read one answer; raises ConnectionResetError at the end of the stream."""
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("the engine closed the connection") from None
        except asyncio.LimitOverrunError:
            raise BlockfleetError(
                Isdsc.PROTOCOL_ERROR, f"an answer is longer than {protocol.MAXIMUM_REPLY} bytes"
            ) from None
        return protocol.decode_answer(line)

    async def _receive(self) -> None:
        error: BlockfleetError
        try:
            while True:
                answer = await self._answer()
                if answer.id == protocol.WHOLE_CONNECTION:
                    _checked(answer)
                waiter = self._waiting.get(answer.id)
                if waiter is None or waiter.done():
                    continue  # the answer to a call that nobody waits for any more
                if answer.error is not None:
                    waiter.set_exception(answer.error)
                else:
                    waiter.set_result(answer.result)
        except OSError as cause:
            error = _not_running(self._path, cause.strerror or str(cause))
        except BlockfleetError as cause:
            error = cause
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(error)
        self._writer.transport.abort()


def _checked(answer: Answer) -> Answer:
    if answer.error is not None:
        raise answer.error
    return answer


def _not_running(path: Path, why: str) -> BlockfleetError:
    return BlockfleetError(
        Isdsc.ENGINE_NOT_RUNNING,
        f"cannot reach the engine at {path}: {why}",
        remedy="start blockfleet-engine (systemctl start blockfleet-engine)",
    )
