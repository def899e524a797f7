# SPDX-License-Identifier: GPL-3.0-or-later
"""A test target in a thread of its own, for callers that are not asyncio or must not share its loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from blockfleet_testtarget.config import Config
from blockfleet_testtarget.faults import Fault
from blockfleet_testtarget.target import TestTarget

Value = TypeVar("Value")
CALL_TIMEOUT = 30.0


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop loop where it is installed, one of asyncio otherwise."""
    try:
        import uvloop  # noqa: PLC0415 - faster, but nothing depends on it
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class ThreadedTestTarget:
    """`with ThreadedTestTarget(config) as target:` runs a TestTarget in a thread.

    Use `call` for whatever touches the target inside; `arm`, `disarm` and `addresses` are shorthands.
    """

    def __init__(self, config: Config) -> None:
        self.target = TestTarget(config)
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._run, name="testtarget", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._await(self.target.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._await(self.target.stop())
        self._end()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT)
        self._loop.close()

    def _await(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT)

    def call(self, function: Callable[[TestTarget], Value]) -> Value:
        """Run a function on the target in its loop and return what it returns (or raise what it raises)."""

        async def work() -> Value:
            return function(self.target)

        value: Value = self._await(work())
        return value

    def arm(self, fault: Fault) -> Fault:
        """Arm a fault."""
        return self.call(lambda target: target.arm(fault))

    def disarm(self, fault: Fault | None = None) -> None:
        """Disarm one fault, or all."""
        self.call(lambda target: target.disarm(fault))

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of every portal."""
        return [portal.address for portal in self.target.portals]
