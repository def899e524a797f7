# SPDX-License-Identifier: GPL-3.0-or-later
"""One target with two portals and one disk, and a host beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.reconcile.host import IDENTITY, P1, P2, TARGET, Host
from tests.reconcile.simulated_engine import SimulatedEngine, SimulatedTarget, disk


@pytest.fixture
def target() -> SimulatedTarget:
    return SimulatedTarget(TARGET, {P1: 1, P2: 2}, (disk(0, IDENTITY),))


@pytest.fixture
def host(target: SimulatedTarget, tmp_path: Path) -> Iterator[Host]:
    host = Host(SimulatedEngine(target), tmp_path / "state")
    yield host
    host.store.close()
