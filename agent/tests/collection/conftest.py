# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the collection's tests: playbooks, and something that answers them."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collection import fake_agent as fake
from tests.collection.host import AgentHost
from tests.collection.playbook import Playbook, collections_path


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="bf-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def agent(runtime_dir: Path) -> Iterator[fake.FakeAgent]:
    """A fake agent that is told what to answer."""
    with fake.running(runtime_dir / "agent.sock") as running:
        yield running


@pytest.fixture
def playbook(tmp_path: Path, runtime_dir: Path) -> Playbook:
    return Playbook(tmp_path, runtime_dir / "agent.sock")


@pytest.fixture(scope="session")
def plugins() -> Path:
    """Make ``ansible_collections.blockfleet.iscsi`` importable in this process."""
    path = collections_path()
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return path


@pytest.fixture
def agent_host(runtime_dir: Path, tmp_path: Path) -> Iterator[AgentHost]:
    """An engine and an agent that run, with nothing declared."""
    host = AgentHost(runtime_dir / "run", runtime_dir / "state", tmp_path)
    try:
        host.start()
        yield host
    finally:
        host.stop()


@pytest.fixture
def host_playbook(tmp_path: Path, agent_host: AgentHost) -> Playbook:
    """Runs plays against the agent of ``agent_host``."""
    return Playbook(tmp_path, agent_host.socket)
