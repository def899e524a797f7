# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from blockfleet_testtarget.config import Config, read_config
from blockfleet_testtarget.target import TestTarget


def _sibling(name: str) -> ModuleType:
    """Load a module beside this one (the tests are no package)."""
    full = f"blockfleet_tests_testtarget_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


initiator = _sibling("initiator")


@pytest.fixture
def wire() -> ModuleType:
    """The module of the plain initiator: its constants and CDB builders."""
    return initiator


def one_disk(**changes: Any) -> Config:
    document: dict[str, Any] = {
        "portals": ["127.0.0.1:0"],
        "units": {"disk": {"size": "8M"}},
        "targets": [{"name": initiator.TARGET, "luns": {0: "disk"}}],
        "login_attention": False,
    }
    unit = changes.pop("unit", {})
    target = changes.pop("target", {})
    document["units"]["disk"].update(unit)
    document["targets"][0].update(target)
    document.update(changes)
    return read_config(document)


@pytest.fixture
def config_of() -> Callable[..., Config]:
    """One target with one 8 MiB disk; keyword arguments change device, `target` and `unit`."""
    return one_disk


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[TestTarget]]]:
    """Start targets that end with the test."""
    async with AsyncExitStack() as stack:

        async def begin(**changes: Any) -> TestTarget:
            return await stack.enter_async_context(TestTarget(one_disk(**changes)))

        yield begin


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Connect plain initiators to a portal of a target; they end with the test."""
    opened: list[Any] = []

    async def begin(target: TestTarget, portal: int = 0, **options: Any) -> Any:
        one = initiator.Initiator(**options)
        await one.connect(target.portals[portal].host, target.portals[portal].port)
        opened.append(one)
        return one

    yield begin
    for one in opened:
        await one.close()


@pytest.fixture
async def session(connect: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Connect and log in with the given keys."""

    async def begin(target: TestTarget, portal: int = 0, **keys: Any) -> Any:
        options = {name: keys.pop(name) for name in ("name", "isid", "numbers") if name in keys}
        cid, tsih = keys.pop("cid", 0), keys.pop("tsih", 0)
        one = await connect(target, portal, **options)
        one.cid, one.tsih = cid, tsih
        one.login_answer = await one.login(**keys)
        return one

    return begin


@pytest.fixture
async def join(session: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Add a connection to the session of another one."""

    async def begin(target: TestTarget, one: Any, cid: int = 1, **keys: Any) -> Any:
        shared = {"isid": one.isid, "tsih": one.tsih, "numbers": one.numbers}
        return await session(target, cid=cid, **shared, **keys)

    return begin
