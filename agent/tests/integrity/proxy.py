# SPDX-License-Identifier: GPL-3.0-or-later
"""A network between an initiator and a portal that resets, swallows, or keeps bytes and delivers them later."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.peers.process import split_portal

_CHUNK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
HELD_LIMIT = 64 << 20
"""Bytes that one connection may keep back."""


class Wire:
    """One connection through the proxy: the initiator's half and the target's half."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._client_reader, self._client = client
        self._server_reader, self._server = server
        self.holding = False
        self._held = bytearray()
        """What the initiator has sent and the target has not got."""
        self.target_closed = False
        self._tasks = [asyncio.create_task(self._upstream()), asyncio.create_task(self._downstream())]

    async def _upstream(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._client_reader.read(_CHUNK):
                if self.holding:
                    self._held += data
                    assert len(self._held) <= HELD_LIMIT
                else:
                    self._server.write(data)
                    await self._server.drain()
        if not self.holding:
            # an end that the target hears of; a network that holds bytes back holds this back too
            _reset(self._server)

    async def _downstream(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._server_reader.read(_CHUNK):
                if not self.holding:
                    self._client.write(data)
                    await self._client.drain()
        self.target_closed = True
        if not self.holding:
            _reset(self._client)

    @property
    def held(self) -> int:
        """Bytes on their way."""
        return len(self._held)

    async def deliver(self) -> bool:
        """Give the target what is on its way; tells whether there was still somebody to take it."""
        if self.target_closed:
            return False
        self._server.write(bytes(self._held))
        self._held.clear()
        with contextlib.suppress(OSError):
            await self._server.drain()
        return True

    def reset(self) -> None:
        """Send RST to both sides."""
        self.holding = False
        _reset(self._client)
        _reset(self._server)

    async def close(self) -> None:
        """End it."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        _reset(self._client)
        _reset(self._server)


class Proxy:
    """Passes connections on to ``portal`` and lets a test do to them what networks do."""

    def __init__(self, portal: str) -> None:
        self._upstream = split_portal(portal)
        self._server: asyncio.Server | None = None
        self._port = 0
        self.wires: list[Wire] = []
        self._held: list[Wire] = []
        self._black_hole = False
        self._lost: list[asyncio.StreamWriter] = []
        """Connections that were taken into a black hole."""

    @property
    def portal(self) -> str:
        """Where the initiator shall connect to."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen, at the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Take no new connection: they are refused until :meth:`start`."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def hold(self, *, new_ones: bool = False) -> list[Wire]:
        """Keep what the present connections send, both ways; with ``new_ones`` nothing gets through at all.

        Returns the connections, whose bytes :meth:`Wire.deliver` releases.
        """
        for wire in self.wires:
            wire.holding = True
        self._black_hole = new_ones
        held, self.wires = self.wires, []
        self._held += held
        return held

    def heal(self) -> None:
        """Let new connections through again."""
        self._black_hole = False
        for writer in self._lost:
            _reset(writer)
        self._lost.clear()

    def reset(self) -> int:
        """Reset the present connections; returns how many."""
        wires, self.wires = self.wires, []
        for wire in wires:
            wire.reset()
        return len(wires)

    async def close(self) -> None:
        """End everything."""
        await self.refuse()
        for wire in [*self.wires, *self._held]:
            await wire.close()
        self.heal()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._black_hole:
            self._lost.append(writer)
            return
        try:
            server = await asyncio.open_connection(*self._upstream)
        except OSError:
            _reset(writer)
            return
        self.wires.append(Wire((reader, writer), server))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST."""
    transport = writer.transport
    if not transport.is_closing():
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


@asynccontextmanager
async def proxied(*portals: str) -> AsyncIterator[list[Proxy]]:
    """Put a proxy in front of each portal."""
    proxies = [Proxy(portal) for portal in portals]
    for proxy in proxies:
        await proxy.start()
    try:
        yield proxies
    finally:
        for proxy in proxies:
            await proxy.close()
