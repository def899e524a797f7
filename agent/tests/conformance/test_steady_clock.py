# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock by which the time limits of requirements are measured."""

from __future__ import annotations

import asyncio
import time

from tests.conformance.steady_clock import SteadyLoop


async def test_time_in_which_the_thread_does_not_run_is_not_counted() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteadyLoop)
    began = loop.time()
    time.sleep(0.3)
    assert loop.time() - began < 0.2


async def test_a_timer_that_is_due_only_after_such_a_pause_waits_for_its_whole_time() -> None:
    order = []
    loop = asyncio.get_running_loop()
    loop.call_later(0.2, order.append, "late")
    loop.call_later(0.1, order.append, "early")
    time.sleep(0.3)
    await asyncio.sleep(0.05)
    assert order == []
    await asyncio.sleep(0.25)
    assert order == ["early", "late"]


async def test_processor_time_is_counted() -> None:
    loop = asyncio.get_running_loop()
    began, cpu = loop.time(), time.thread_time()
    while time.thread_time() - cpu < 0.1:
        pass
    assert loop.time() - began >= 0.1


async def test_waiting_is_counted_and_never_too_much() -> None:
    loop = asyncio.get_running_loop()
    began, real = loop.time(), time.monotonic()
    await asyncio.sleep(0.1)
    assert 0.1 <= loop.time() - began <= time.monotonic() - real + 0.001
