# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent put together: state, engine client, reconciler and the two API sockets, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from blockfleet import __version__
from blockfleet.agent.degraded import WatchOnly
from blockfleet.api.access import Access, Gate
from blockfleet.api.app import create_app
from blockfleet.api.control import Control
from blockfleet.api.metrics import Metrics
from blockfleet.api.server import ApiServer, listen
from blockfleet.engine.client import EngineClient
from blockfleet.engine.notify import keep_alive, notify
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.reconcile.reconciler import Reconciler
from blockfleet.store.state import StateStore

SOCKETS = {Access.CHANGE: "agent.sock", Access.READ: "read.sock"}

_SERVING = "API"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line decides."""

    state_dir: Path
    runtime_dir: Path
    engine_socket: Path
    group: int | None
    """Group that may read; None: nobody but root and the agent's own user."""
    repair: bool
    """Whether drift is put right as it is found, or only told."""


@dataclass(frozen=True, slots=True)
class _Door:
    """One socket of the API."""

    path: Path
    gate: Gate
    listener: socket.socket


def run(settings: Settings) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises :class:`BlockfleetError`: STATE_LOCKED where another agent has the state folder or the sockets, and
    what keeps the sockets from being made.  A state folder that cannot be used does not raise: the agent then
    only watches.
    """
    failure: BlockfleetError | None = None
    store: StateStore | None = None
    try:
        store = StateStore.open(settings.state_dir)
    except BlockfleetError as error:
        if error.code is Isdsc.STATE_LOCKED:
            raise
        failure = error
        _log.error("degraded: %s", error)
    with contextlib.ExitStack() as stack:
        if store is not None:
            stack.callback(store.close)
            if store.degraded:
                _log.error("degraded: %s", store.degraded)
        doors = _open_doors(settings, stack)
        asyncio.run(_serve(settings, store, failure, doors))


def _open_doors(settings: Settings, stack: contextlib.ExitStack) -> list[_Door]:
    try:
        if not settings.runtime_dir.is_dir():
            settings.runtime_dir.mkdir(parents=True)
            # Whoever may use a socket must get to it; the sockets have permissions of their own.
            settings.runtime_dir.chmod(0o755)
    except OSError as error:
        raise BlockfleetError(
            Isdsc.SERVICE_NOT_RUNNING,
            f"cannot use the runtime folder {settings.runtime_dir}: {error.strerror}",
            remedy="name a folder that this user may write to with --runtime-dir",
        ) from None
    doors = []
    for access, name in SOCKETS.items():
        path = settings.runtime_dir / name
        gate = Gate(access, settings.group if access is Access.READ else None)
        listener = listen(path, gate)
        stack.callback(path.unlink, missing_ok=True)
        stack.callback(listener.close)
        doors.append(_Door(path, gate, listener))
    return doors


async def _serve(
    settings: Settings, store: StateStore | None, failure: BlockfleetError | None, doors: list[_Door]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = EngineClient(settings.engine_socket)
    control: Control
    work: list[asyncio.Task[None]] = []
    if store is not None:
        reconciler = Reconciler(store, engine, repair=settings.repair)
        control = reconciler
        work.append(loop.create_task(reconciler.run(), name="reconciler"))
    else:
        assert failure is not None
        control = WatchOnly(engine, failure)
    metrics = Metrics()
    servers = [ApiServer(create_app(control, engine, d.gate, metrics=metrics), d.listener, d.gate) for d in doors]
    watchdog = loop.create_task(keep_alive())
    work += [loop.create_task(s.run_until_stopped(), name=_SERVING) for s in servers]
    _log.info(
        "ready: version %s, process %d, sockets %s", __version__, os.getpid(), ", ".join(str(d.path) for d in doors)
    )
    notify("READY=1", "STATUS=degraded" if store is None or store.degraded else "STATUS=running")
    try:
        await _until_stopped(stop, work)
    finally:
        notify("STOPPING=1")
        _log.info("stopping; the engine and its sessions go on")
        await _end(servers, work, watchdog)
        await engine.close()


async def _until_stopped(stop: asyncio.Event, work: list[asyncio.Task[None]]) -> None:
    """Wait for the order to stop, or for a part that ends by itself, which is a defect and is raised."""
    told = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([told, *work], return_when=asyncio.FIRST_COMPLETED)
    if told in done:
        return
    told.cancel()
    for task in work:
        if task in done:
            task.result()
            raise BlockfleetError(Isdsc.NON_SPECIFIC_ERROR, f"the {task.get_name()} of the agent ended by itself")


async def _end(servers: list[ApiServer], work: list[asyncio.Task[None]], watchdog: asyncio.Task[None]) -> None:
    """Let requests end within the servers' own deadline, then stop the rest."""
    for server in servers:
        server.stop()
    serving = [task for task in work if task.get_name() == _SERVING]
    await asyncio.wait(serving)
    running = [task for task in (*work, watchdog) if not task.done()]
    for task in running:
        task.cancel()
    for task, outcome in zip(running, await asyncio.gather(*running, return_exceptions=True), strict=True):
        if isinstance(outcome, Exception):
            _log.error("%s did not stop cleanly: %s", task.get_name(), outcome)
