# SPDX-License-Identifier: GPL-3.0-or-later
"""What a nexus sends and takes in these tests is traced, and the trace judged by tshark."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.peers.suite_trace import add_verdicts, suite_trace, traced

__all__ = ["suite_trace", "traced"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the trace of each module be judged at its end."""
    add_verdicts(items, Path(__file__).parent, without=frozenset({"test_proxy.py"}))
