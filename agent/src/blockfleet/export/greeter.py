# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that has yet to choose the export: a transport under a handshake and a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from blockfleet.export.connection import Connection
from blockfleet.export.handshake import Handshake, HandshakePhase
from blockfleet.export.wire import ExportDescription

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a client has from connecting to the end of its handshake."""

_RECEIVE = 1 << 13


class HandshakeConnection(asyncio.BufferedProtocol):
    """Runs one handshake, then hands the transport to the :class:`Connection` that ``on_ready`` makes.

    ``on_connected`` says whether the client is admitted at all; one that was and goes before its handshake is done
    is told to ``on_lost`` with the cause, which is empty unless it broke the protocol.
    """

    __slots__ = ("_buffer", "_deadline", "_handshake", "_on_connected", "_on_lost", "_on_ready", "_transport")

    def __init__(
        self,
        export: ExportDescription,
        *,
        on_connected: Callable[[HandshakeConnection], bool],
        on_ready: Callable[[HandshakeConnection, Handshake], Connection],
        on_lost: Callable[[HandshakeConnection, str], None],
    ) -> None:
        self._handshake = Handshake(export)
        self._on_connected = on_connected
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._buffer = bytearray(_RECEIVE)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client, or turn it away."""
        stream = cast("asyncio.Transport", transport)
        if not self._on_connected(self):
            stream.abort()
            return
        self._transport = stream
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT, self.abort)
        stream.write(self._handshake.greeting)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Say where the next bytes go."""
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with the handshake."""
        transport = self._transport
        if transport is None:
            return
        handshake = self._handshake
        reply = handshake.receive(bytes(memoryview(self._buffer)[:nbytes]))
        if reply:
            transport.write(reply)
        if handshake.phase is HandshakePhase.CLOSED:
            transport.close()
        elif handshake.phase is HandshakePhase.TRANSMISSION:
            self._transport = None
            self._cancel_deadline()
            connection = self._on_ready(self, handshake)
            transport.set_protocol(connection)
            connection.begin(transport, handshake.leftover)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that the client is gone."""
        del exc
        if self._transport is not None:
            self._transport = None
            self._cancel_deadline()
            self._on_lost(self, self._handshake.cause)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
