# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the collection importable where neither ansible-test nor an installation does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path


def pytest_configure() -> None:
    try:
        found = importlib.util.find_spec("ansible_collections.blockfleet.iscsi")
    except ModuleNotFoundError:
        found = None
    if found is None:
        link = Path(__file__).parents[1] / "collection/link"
        done = subprocess.run([str(link)], stdout=subprocess.PIPE, text=True, check=True)
        sys.path.insert(0, done.stdout.strip())
