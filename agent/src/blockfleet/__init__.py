# SPDX-License-Identifier: GPL-3.0-or-later
"""Blockfleet: declared iSCSI storage for Linux hosts."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("blockfleet")
"""Version of the installed distribution."""
