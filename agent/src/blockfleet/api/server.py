# SPDX-License-Identifier: GPL-3.0-or-later
"""Unix sockets with their permissions from the first moment, and the HTTP server behind each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from blockfleet.api.access import Gate
from blockfleet.api.connection import IDLE_DEADLINE, MAXIMUM_HEAD, connection_type
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

BACKLOG = 64

STOP_DEADLINE = 3
"""Seconds that requests may take to end once the agent stops."""

_PROBE_TIMEOUT = 1.0


def listen(path: Path, gate: Gate) -> socket.socket:
    """Listen on a Unix socket: mode 0600, or 0660 with the gate's group.

    A dead socket at ``path`` is replaced.  Raises :class:`BlockfleetError`: ``STATE_LOCKED`` where a live
    agent answers there, ``SERVICE_NOT_RUNNING`` where the path cannot be used.
    """
    try:
        _remove_dead(path)
        return _bound(path, gate)
    except OSError as error:
        raise BlockfleetError(
            Isdsc.SERVICE_NOT_RUNNING,
            f"cannot listen on {path}: {error.strerror or error}",
            remedy="make the folder, or name another with --runtime-dir",
        ) from None


def _bound(path: Path, gate: Gate) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if gate.group is not None:
            os.chown(path, -1, gate.group)
            path.chmod(0o660)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_dead(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(None, "it exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise BlockfleetError(
        Isdsc.STATE_LOCKED,
        f"cannot listen on {path}: another agent answers there",
        remedy="stop it, or give each its own --runtime-dir",
    )


class ApiServer(uvicorn.Server):
    """Serves one application on one listening socket, whose gate judges every peer."""

    def __init__(self, app: FastAPI, listener: socket.socket, gate: Gate) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_type(gate),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=IDLE_DEADLINE,
                timeout_graceful_shutdown=STOP_DEADLINE,
                h11_max_incomplete_event_size=MAXIMUM_HEAD,
                backlog=BACKLOG,
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._app = app
        self._listener = listener
        self._stopped = asyncio.Event()

    async def run_until_stopped(self) -> None:
        """Serve until :meth:`stop`, then let requests end, ``STOP_DEADLINE`` seconds at most."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Stop taking connections and end streams; safe to call again."""
        self._app.state.stopping.set()
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Wait for :meth:`stop` instead of looking ten times a second."""
        await self.on_tick(0)
        await self._stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process that runs the server."""
        yield
