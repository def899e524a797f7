# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection's TCP transport on asyncio: bytes, and one write per loop turn."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

from blockfleet.iscsi.connection import Connection
from blockfleet.net.driver import SessionDriver
from blockfleet.net.tap import Recorder, Tap, Tapped

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST and drops what the kernel still holds for sending."""

SEND_BUFFER_HIGH = 8 * 1024 * 1024
"""Bytes of unsent output from which new commands are held back."""

CLOSING_PATIENCE = 1.0
"""Seconds after a logout in which a target may close its side first."""

MAXIMUM_JOINED = 16 * 1024
"""Segments up to this size are joined with their neighbours before a write: a copy costs less than an iovec."""


class SessionTransport(Tapped):
    """Carries one :class:`~blockfleet.iscsi.connection.Connection` of the session that ``driver`` drives.

    ``recorder`` is who taps it for traces.
    """

    def __init__(self, driver: SessionDriver, recorder: Recorder | None = None) -> None:
        self._driver = driver
        self._session = driver.session
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._flush_scheduled = False
        self._connection: Connection | None = None
        self._recorder = recorder
        self._tap: Tap | None = None
        self._closing: asyncio.TimerHandle | None = None

    def attach(self, connection: Connection) -> None:
        """Take the connection that this transport carries; before the transport is connected."""
        self._connection = connection
        # One call less for each read from the socket.
        self.get_buffer = connection.get_buffer  # type: ignore[assignment]

    # -- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the login."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=SEND_BUFFER_HIGH)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self._connection is not None
        if self._recorder is not None:
            self._tap = self._recorder.tap(self._connection, self._transport, self)
        self._connection.connected(self._loop.time())
        self._driver.drain()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return where the next bytes go; replaced by the connection's own method in :meth:`attach`."""
        raise AssertionError("no connection attached")

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received, then send what it led to."""
        connection = self._connection
        assert connection is not None
        self._flush_scheduled = True
        connection.received(nbytes, self._loop.time())
        self._flush()
        if self._session.events:
            self._driver.drain()

    def pause_writing(self) -> None:
        """Hold new commands back: the send buffer is full."""
        assert self._connection is not None
        self._connection.pause(True)

    def resume_writing(self) -> None:
        """Let commands go again."""
        assert self._connection is not None
        self._connection.pause(False)

    def eof_received(self) -> bool:
        """Close our half too: a target that sends no more cannot answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle what was in flight."""
        assert self._connection is not None
        self._driver.now()
        self._connection.closed(f"connection lost: {exc}" if exc else "connection closed by the target")
        self._driver.drain()
        if self._tap is not None:
            self._tap.gone()
        self._transport = None
        if self._closing is not None:
            self._closing.cancel()
        self._driver.gone(self)

    # -- what the driver and the tap call

    def write_to(self, transport: asyncio.Transport) -> None:
        """Send through ``transport`` from now on: the tap's, or the connection's own."""
        self._transport = transport

    def wake(self) -> None:
        """Send the connection's output at the end of this loop turn."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def abort(self) -> None:
        """Reset the TCP connection: nothing that is still unsent here may reach the target any more."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()

    def leave(self) -> bool:
        """Close the TCP connection after a logout, once the target has closed its side; False where it is closed.

        That order is RFC 3720 10.14's, and the target's FIN is the sign that it is done with the connection.
        """
        if self._transport is None:
            return False
        self._closing = self._loop.call_later(CLOSING_PATIENCE, self._transport.close)
        return True

    # -- inside

    def _flush(self) -> None:
        self._flush_scheduled = False
        connection = self._connection
        assert connection is not None
        segments = connection.take_output()
        transport = self._transport
        if not segments or transport is None or transport.is_closing():
            return
        if len(segments) == 1:
            transport.write(segments[0])
        else:
            transport.writelines(_coalesce(segments))


def _coalesce(segments: list[bytes | bytearray | memoryview]) -> list[bytes | bytearray | memoryview]:
    """Join runs of small segments; large ones stay as they are, uncopied."""
    joined: list[bytes | bytearray | memoryview] = []
    run: list[bytes | bytearray | memoryview] = []
    for segment in segments:
        if len(segment) <= MAXIMUM_JOINED:
            run.append(segment)
        else:
            if run:
                joined.append(run[0] if len(run) == 1 else b"".join(run))
                run = []
            joined.append(segment)
    if run:
        joined.append(run[0] if len(run) == 1 else b"".join(run))
    return joined
