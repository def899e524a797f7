# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest

from blockfleet.engine.client import EngineClient
from blockfleet.engine.server import ControlServer


def _sibling(name: str) -> ModuleType:
    """Load a module beside this one (the tests are no package)."""
    full = f"blockfleet_tests_engine_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


scripted = _sibling("scripted")


@pytest.fixture
def engine():
    return scripted.ScriptedEngine()


@pytest.fixture
async def server(engine, tmp_path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(engine, tmp_path / "engine.sock", instance="inst", version="9")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server, tmp_path: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient(tmp_path / "engine.sock")
    yield client
    await client.close()
