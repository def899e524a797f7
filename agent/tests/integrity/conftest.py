# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integrity.delay_write import build
from tests.integrity.load import Report

KEPT = Path(__file__).parents[3] / "build" / "integrity"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes a target's backend slow."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[Report], None]:
    """Return a function that keeps a load's report for people to look at."""

    def write(report: Report) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        (KEPT / f"{request.node.name}.json").write_text(report.as_json() + "\n")

    return write
