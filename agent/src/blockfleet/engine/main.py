# SPDX-License-Identifier: GPL-3.0-or-later
"""``blockfleet-engine``: the data-plane process.

It starts with nothing, keeps what it is told over its control socket, and needs nobody connected to go on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from blockfleet import __version__
from blockfleet.engine.data_plane import DataPlane
from blockfleet.engine.logs import configure_logging
from blockfleet.engine.notify import keep_alive, notify
from blockfleet.engine.process import RuntimeLock, forbid_dumps, raise_descriptor_limit
from blockfleet.engine.server import ControlServer
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

SOCKET_NAME = "engine.sock"
STOP_TIMEOUT = 20.0
"""Seconds for flushing out clients and logging out of all sessions when told to stop."""
EX_TEMPFAIL = os.EX_TEMPFAIL
"""Exit status (sysexits.h, 75) when another engine holds the runtime directory."""

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the engine until SIGTERM or SIGINT; returns the exit status."""
    options = _parser().parse_args(arguments)
    configure_logging(options.log_level)
    os.umask(0o077)
    try:
        lock = RuntimeLock.acquire(options.runtime_dir)
    except BlockfleetError as error:
        _log.error("%s", error)
        return EX_TEMPFAIL if error.code is Isdsc.STATE_LOCKED else 1
    if lock.unclean:
        _log.warning("the engine before this one was killed: its last writes are fenced before units are used")
    forbid_dumps()
    raise_descriptor_limit()
    with asyncio.Runner(loop_factory=_loop_factory(options.uvloop)) as runner:
        clean = runner.run(_serve(options.runtime_dir, unclean=lock.unclean))
    if clean:
        lock.release()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockfleet-engine", description="The data plane of Blockfleet: iSCSI sessions, paths and volumes."
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        default=Path("/run/blockfleet"),
        help="where the control socket, the volume sockets and the lock are (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least severe lines on standard error (default: %(default)s)",
    )
    parser.add_argument(
        "--no-uvloop", dest="uvloop", action="store_false", help="use the event loop of the standard library"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _loop_factory(wanted: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not wanted:
        return None
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        _log.info("uvloop is not installed: using the event loop of the standard library")
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(runtime: Path, *, unclean: bool) -> bool:
    """Serve until told to stop; tells whether every session was logged out in time."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    instance = secrets.token_hex(8)
    data_plane = DataPlane(runtime / "volumes", instance=instance, version=__version__, unclean=unclean)
    server = ControlServer(data_plane, runtime / SOCKET_NAME, instance=instance, version=__version__)
    await server.start()
    watchdog = loop.create_task(keep_alive())
    _log.info("ready: process %d, instance %s, control socket %s", os.getpid(), instance, runtime / SOCKET_NAME)
    notify("READY=1", f"STATUS=instance {instance}")
    await stop.wait()
    notify("STOPPING=1")
    _log.info("stopping")
    await server.stop()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await data_plane.close()
    except TimeoutError:
        _log.warning("not everything logged out within %.0f s", STOP_TIMEOUT)
        return False
    finally:
        watchdog.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watchdog
    return True


if __name__ == "__main__":
    sys.exit(main())
