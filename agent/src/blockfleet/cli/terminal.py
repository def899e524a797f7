# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the command writes: answers to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from blockfleet.cli.client import AgentClient

FORMAT_VERSION = 1

PIPE_WIDTH = 1000
"""Columns where nobody's terminal sets a limit: lines and tables take what they need."""

PATIENCE = 1.0
"""Seconds before something that takes longer shows that it is at work."""


def _console(*, error: bool) -> Console:
    console = Console(stderr=error, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


@dataclass(slots=True)
class Terminal:
    """The two streams.  Colours are on a terminal only, and never where NO_COLOR is set (rich sees to it)."""

    out: Console = field(default_factory=lambda: _console(error=False))
    err: Console = field(default_factory=lambda: _console(error=True))

    def show(self, *parts: RenderableType) -> None:
        """Print for people; in a pipe without the spaces that fill a table's last column."""
        for part in parts:
            with self.out.capture() as captured:
                self.out.print(part, soft_wrap=isinstance(part, str | Text))
            text = captured.get()
            if not self.out.is_terminal:
                text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
            self.out.file.write(text)
        self.out.file.flush()

    def show_json(self, answer: dict[str, Any]) -> None:
        """Print for programs: one object with its ``format_version``, indented, keys in their order."""
        self.out.out(json.dumps({"format_version": FORMAT_VERSION, **answer}, indent=2), highlight=False)

    def show_line(self, answer: dict[str, Any]) -> None:
        """Print one object on one line, at once."""
        self.out.out(json.dumps(answer), highlight=False)

    def complain(self, message: str) -> None:
        """Print one line of error."""
        self.err.out(f"blockfleet: {' '.join(message.split())}", highlight=False)

    @contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Show a spinner beside ``text`` on standard error once the work takes longer than a second."""
        if not self.err.is_terminal:
            yield
            return
        spinner = self.err.status(text)
        timer = threading.Timer(PATIENCE, spinner.start)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            spinner.stop()


@dataclass(frozen=True, slots=True)
class Environment:
    """What every verb works with."""

    terminal: Terminal
    runtime: Path

    @property
    def agent(self) -> AgentClient:
        """Return a client of the agent."""
        return AgentClient(self.runtime)


def environment(context: typer.Context) -> Environment:
    """Return what the command's entry point has put together."""
    found = context.find_object(Environment)
    assert found is not None
    return found


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON with a format_version, for programs.")]
