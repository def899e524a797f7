# SPDX-License-Identifier: GPL-3.0-or-later
"""Property tests without a deadline: how long an example takes depends on what else the machine does."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", deadline=None, database=None)
settings.load_profile("steady")
