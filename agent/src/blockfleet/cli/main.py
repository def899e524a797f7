# SPDX-License-Identifier: GPL-3.0-or-later
"""Entry point of the command ``blockfleet``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from blockfleet.cli import changing, connections, looking, paths, tracing
from blockfleet.cli.exits import Exit
from blockfleet.cli.terminal import Environment, Terminal
from blockfleet.model.errors import BlockfleetError

_HELP = """\
Declared iSCSI storage of this host.

Say what the host shall have, see what would change, apply it, and see that it stays so.

Exit codes: 0 in sync, 1 error, 2 changes pending or drift, 3 applied but not verified, 4 partial.
"""

VERBS: tuple[Callable[..., None], ...] = (
    looking.status,
    changing.plan,
    changing.apply,
    looking.drift,
    changing.discover,
    changing.login,
    changing.logout,
    changing.rescan,
    looking.volumes,
    looking.sessions,
    looking.desired,
    looking.events,
    tracing.trace,
    changing.validate,
    looking.version,
)

GROUPS: dict[str, tuple[str, tuple[Callable[..., None], ...]]] = {
    "connections": (
        "Change the connections of the sessions to a target while they are in use.",
        connections.VERBS,
    ),
    "paths": ("Say how volumes spread I/O over their paths, and see how these stand.", paths.VERBS),
}
"""Verbs of two words: the first, what its help says, and the second ones."""

_HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_BROKEN_PIPE = 141
"""What a shell shows for a command that SIGPIPE ended: 128 + 13."""

_INTERRUPTED = 130
"""And for one that SIGINT ended: 128 + 2."""


def _prepare(
    context: typer.Context,
    runtime_dir: Annotated[
        Path,
        typer.Option(
            "--runtime-dir",
            envvar="BLOCKFLEET_RUNTIME",
            metavar="FOLDER",
            show_envvar=True,
            help="Folder of the agent's sockets.",
        ),
    ] = Path("/run/blockfleet"),
) -> None:
    context.obj = Environment(Terminal(), runtime_dir)


def build() -> typer.Typer:
    """Return the command with all its verbs."""
    app = typer.Typer(
        name="blockfleet",
        help=_HELP,
        rich_markup_mode=None,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=_HELP_SETTINGS,
    )
    app.callback()(_prepare)
    for verb in VERBS:
        app.command(verb.__name__)(verb)
    for name, (purpose, verbs) in GROUPS.items():
        group = typer.Typer(
            help=purpose, no_args_is_help=True, rich_markup_mode=None, context_settings=_HELP_SETTINGS
        )
        for verb in verbs:
            group.command(verb.__name__, context_settings=_HELP_SETTINGS)(verb)
        app.add_typer(group, name=name)
    return app


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every error becomes one line on standard error."""
    terminal = Terminal()
    try:
        code = build()(arguments, prog_name="blockfleet", standalone_mode=False)
    except BlockfleetError as error:
        if "--json" in arguments:
            body = {"code": int(error.code), "name": str(error.code), "message": str(error)}
            terminal.show_json({"error": {**body, "field": error.field, "remedy": error.remedy}})
        terminal.complain(str(error))
        return Exit.ERROR
    except TyperException as error:
        terminal.complain(f"{error}; see 'blockfleet --help'")
        return Exit.ERROR
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return _BROKEN_PIPE
    return int(code or 0)


def main() -> None:
    """Run the command line of the process."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
