# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the session tests."""

from __future__ import annotations

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
