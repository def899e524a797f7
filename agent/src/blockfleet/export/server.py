# SPDX-License-Identifier: GPL-3.0-or-later
"""The NBD server of one volume: a Unix socket, its handshakes and its connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from pathlib import Path

from blockfleet.block.device import BlockDevice
from blockfleet.export.admission import Tally
from blockfleet.export.connection import Connection
from blockfleet.export.greeter import HandshakeConnection
from blockfleet.export.handshake import Handshake
from blockfleet.export.wire import describe
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

MAXIMUM_CLIENTS = 16
"""Connections to one export, those in their handshake included; one more is closed at once."""
DRAIN_TIMEOUT = 10.0
"""Seconds that requests in flight have to finish when an export stops."""

_BACKLOG = 64
_SOCKET_UMASK = 0o177

_log = logging.getLogger(__name__)


class NbdExport:
    """Serves ``device`` to NBD clients as the export ``name`` (also under the empty name) on a Unix socket.

    All connections end in the one device, so a flush on any covers all of them.  What a client is told of size and
    limits is what the device has when the client connects.
    """

    def __init__(self, name: str, device: BlockDevice, socket_path: Path) -> None:
        self.name = name
        self.socket_path = socket_path
        self._device = device
        self._server: asyncio.AbstractServer | None = None
        self._identity: tuple[int, int] | None = None
        self._handshakes: set[HandshakeConnection] = set()
        self._connections: set[Connection] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tally = Tally()
        self._accepted = self._refused = self._violations = 0

    async def start(self) -> None:
        """Create the socket, for this user only, and serve; a stale socket is replaced.

        Raises :class:`BlockfleetError` when the path is taken by something else or cannot be made.
        """
        _remove_stale(self.socket_path)
        listener = _listen(self.socket_path)
        status = self.socket_path.stat()
        self._identity = (status.st_dev, status.st_ino)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._greet, sock=listener, backlog=_BACKLOG)

    async def stop(self, drain_timeout: float = DRAIN_TIMEOUT) -> None:
        """Stop serving: requests in flight are answered, new ones get ESHUTDOWN, then connections are closed.

        What is not answered after ``drain_timeout`` seconds is cut off.  Stopping twice is no error.
        """
        if self._server is not None:
            self._server.close()
            self._server = None
            self._remove_socket()
        for handshake in tuple(self._handshakes):
            handshake.abort()
        for connection in tuple(self._connections):
            connection.shut_down()
        try:
            async with asyncio.timeout(drain_timeout):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("export %s: cutting off %d clients with requests in flight", self.name, self.clients)
            for connection in tuple(self._connections):
                connection.abort()
            await self._idle.wait()

    @property
    def clients(self) -> int:
        """How many clients are connected and through their handshake."""
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """How many requests are taken and not answered, over all clients."""
        return sum(connection.in_flight for connection in self._connections)

    @property
    def counters(self) -> dict[str, int]:
        """What happened since the export was made; none of these ever goes down."""
        return {
            "connections": self._accepted,
            "connections_refused": self._refused,
            "protocol_violations": self._violations,
        } | self._tally.as_dict()

    # --- what connections tell -----------------------------------------------------------------------------

    def _greet(self) -> HandshakeConnection:
        return HandshakeConnection(
            describe(self.name, self._device.geometry),
            on_connected=self._admit,
            on_ready=self._promote,
            on_lost=self._handshake_lost,
        )

    def _admit(self, greeter: HandshakeConnection) -> bool:
        if self._server is None or len(self._handshakes) + len(self._connections) >= MAXIMUM_CLIENTS:
            self._refused += 1
            return False
        self._handshakes.add(greeter)
        self._idle.clear()
        return True

    def _handshake_lost(self, greeter: HandshakeConnection, cause: str) -> None:
        self._handshakes.discard(greeter)
        self._note(cause)

    def _promote(self, greeter: HandshakeConnection, done: Handshake) -> Connection:
        """Turn a finished handshake into a connection."""
        self._handshakes.discard(greeter)
        connection = Connection(
            self._device,
            done.flags,
            done.export.maximum_payload,
            structured=done.structured,
            tally=self._tally,
            on_lost=self._connection_lost,
        )
        self._connections.add(connection)
        self._accepted += 1
        return connection

    def _connection_lost(self, connection: Connection, cause: str) -> None:
        self._connections.discard(connection)
        self._note(cause)

    def _note(self, violation: str) -> None:
        if violation:
            self._violations += 1
            _log.warning("export %s: a client was disconnected: %s", self.name, violation)
        if not self._handshakes and not self._connections:
            self._idle.set()

    def _remove_socket(self) -> None:
        """Remove the socket unless somebody has put another one in its place."""
        try:
            status = self.socket_path.lstat()
        except FileNotFoundError:
            return
        if (status.st_dev, status.st_ino) == self._identity:
            self.socket_path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; refuse anything else that is in the way."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _cannot_serve(path, "something that is no socket is in its place", "remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        code = probe.connect_ex(str(path))
    if code != errno.ECONNREFUSED:
        raise _cannot_serve(
            path, "somebody serves it", "stop that process or choose another folder", Isdsc.STATE_LOCKED
        )
    path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    """Bind a socket that was never open to anybody else."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(_SOCKET_UMASK)
    try:
        listener.bind(str(path))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _cannot_serve(path, error.strerror or str(error), "check the runtime folder") from error
    finally:
        os.umask(mask)
    return listener


def _cannot_serve(path: Path, why: str, remedy: str, code: Isdsc = Isdsc.INITIATOR_ERROR) -> BlockfleetError:
    return BlockfleetError(code, f"cannot serve {path}: {why}", remedy=remedy)
