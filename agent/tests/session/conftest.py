# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the session tests."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.session.scripted_target import Make, ScriptedTarget


@pytest.fixture
def target() -> ScriptedTarget:
    """A session logged in with the RFC's defaults on the target's side."""
    return ScriptedTarget()


@pytest.fixture
def make() -> Make:
    """Make a session with particular answers of the target."""
    return ScriptedTarget


MAXIMUM_CPU = 20.0
"""Seconds of CPU that a case may take, with every allocation traced."""


@dataclass
class Bounds:
    """What a case may use; ``peak`` is in bytes: buffers of a connection and of commands, nothing a peer counts."""

    peak: int = 4 << 20


@pytest.fixture
def bounded() -> Iterator[Bounds]:
    """Hold a case to a bound on memory and on time."""
    bounds = Bounds()
    tracemalloc.start()
    begin = time.process_time()
    yield bounds
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < bounds.peak, f"{peak} bytes at the most"
    assert seconds < MAXIMUM_CPU
