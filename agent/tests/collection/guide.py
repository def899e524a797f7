# SPDX-License-Identifier: GPL-3.0-or-later
"""The plays that the guide to the collection shows."""

from __future__ import annotations

import re
from typing import Any

import yaml
from tests.collection.playbook import ROOT

GUIDE = ROOT / "docs/collection.md"


def documented(heading: str, places: dict[str, str]) -> list[dict[str, Any]]:
    """Return the tasks of the first play under a heading of the guide, its addresses replaced by ``places``."""
    section = GUIDE.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert found is not None
    text = found[1]
    for shown, real in places.items():
        assert shown in text
        text = text.replace(shown, real)
    (play,) = yaml.safe_load(text)
    tasks: list[dict[str, Any]] = play["tasks"]
    return tasks
