# SPDX-License-Identifier: GPL-3.0-or-later
"""The command against an agent's real sockets, served from a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.api.recording import RecordingControl, StillEngine

from blockfleet.api.access import Access, Gate
from blockfleet.api.app import create_app
from blockfleet.api.server import ApiServer, listen
from blockfleet.cli.main import run


@dataclass
class Agent:
    """A served agent: its folder, and the control plane behind it."""

    runtime: Path
    control: RecordingControl
    engine: StillEngine


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    found = Agent(tmp_path, RecordingControl(), StillEngine())
    gate = Gate(Access.CHANGE)
    listener = listen(tmp_path / "agent.sock", gate)
    server = ApiServer(create_app(found.control, found.engine, gate), listener, gate)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.run_until_stopped(),))
    thread.start()
    yield found
    loop.call_soon_threadsafe(server.stop)
    thread.join()
    loop.close()


@dataclass
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process against the folder of :func:`agent`."""

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run(["--runtime-dir", str(tmp_path), *arguments])
        return Outcome(code, *capsys.readouterr())

    return call
