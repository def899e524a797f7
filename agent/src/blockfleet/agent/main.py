# SPDX-License-Identifier: GPL-3.0-or-later
"""``blockfleetd``: the control-plane process.

It may be stopped, killed and replaced at any time: the engine and all I/O go on, and the next agent adopts them.
"""

from __future__ import annotations

import argparse
import grp
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from blockfleet import __version__
from blockfleet.agent.service import Settings, run
from blockfleet.engine.logs import configure_logging
from blockfleet.engine.process import forbid_dumps
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit status.

    0 when it was told to stop, 75 (EX_TEMPFAIL) when another agent has the state folder or the sockets, 1 for
    what else kept it from running.
    """
    options = _parser().parse_args(arguments)
    configure_logging(options.log_level)
    for noisy in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.umask(0o077)
    forbid_dumps()
    try:
        run(
            Settings(
                state_dir=options.state_dir,
                runtime_dir=options.runtime_dir,
                engine_socket=options.engine_socket or options.runtime_dir / "engine.sock",
                group=_group(options.group),
                repair=options.repair,
            )
        )
    except BlockfleetError as error:
        _log.error("%s", error)
        return os.EX_TEMPFAIL if error.code is Isdsc.STATE_LOCKED else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockfleetd", description="The agent of Blockfleet: plans, applies and keeps a host's iSCSI storage."
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(os.environ.get("BLOCKFLEET_STATE", "/var/lib/blockfleet")),
        help="where the desired state and the secrets are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        default=Path(os.environ.get("BLOCKFLEET_RUNTIME", "/run/blockfleet")),
        help="where the API sockets agent.sock and read.sock are made (default: %(default)s)",
    )
    parser.add_argument(
        "--engine-socket",
        type=Path,
        help="the engine's control socket (default: engine.sock in the runtime folder)",
    )
    parser.add_argument("--group", metavar="NAME", help="group that may look through read.sock (default: none)")
    parser.add_argument(
        "--repair",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put drift right as it is found, or only tell of it",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least severe lines on standard error (default: %(default)s)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _group(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise BlockfleetError(
            Isdsc.INVALID_PARAMETER,
            f"cannot open the reading socket to the group {name[:80]!r}: there is no such group",
            remedy="make it (systemd-sysusers), or leave --group out",
            field="--group",
        ) from None


if __name__ == "__main__":
    sys.exit(main())
