# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command tells the shell."""

from __future__ import annotations

import enum

from blockfleet.model.plan import ReportStatus


class Exit(enum.IntEnum):
    """Exit codes; scripts and CI rely on them."""

    IN_SYNC = 0
    ERROR = 1
    PENDING = 2
    """Changes are pending, or the host has drifted."""
    NOT_VERIFIED = 3
    """Applied, but the host did not become what was asked for in time."""
    PARTIAL = 4
    """Applied, and every target has its min_paths, but some paths are missing."""


OF_REPORT = {
    ReportStatus.IN_SYNC: Exit.IN_SYNC,
    ReportStatus.NOT_VERIFIED: Exit.NOT_VERIFIED,
    ReportStatus.PARTIAL: Exit.PARTIAL,
}
