# SPDX-License-Identifier: GPL-3.0-or-later
"""What a multipath device tells its owner, and asks of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from blockfleet.multipath.path import Path, PathPhase
from blockfleet.scsi.condition import Attention


class DevicePhase(enum.StrEnum):
    """State of a whole device; the values are those that the engine's waist shows."""

    ONLINE = "online"
    """Every path is there."""
    DEGRADED = "degraded"
    """I/O goes on, but a path is missing."""
    QUEUEING = "queueing"
    """No path: I/O waits, for a limited time."""
    FAILED = "failed"
    """No path for too long: I/O fails until one is back."""


class EventKind(enum.StrEnum):
    """What an event is about, and what its receiver has to do."""

    FENCE = "fence"
    """Make sure that no write that was sent on ``path`` can still run, then call ``fence_done``."""
    RECHECK = "recheck"
    """Look at ``attention`` again through ``path``.  With IDENTITY the path carries no I/O until ``path_up``."""
    PATH = "path"
    """``path`` changed from ``before`` to its present phase."""
    PHASE = "phase"
    """The device changed to ``phase``."""
    DEADLINE = "deadline"
    """The next deadline is earlier than the last one told of: ask ``deadline()``."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; fields that its kind does not name are ``None``."""

    kind: EventKind
    path: Path | None = None
    attention: Attention = Attention.NONE
    before: PathPhase | None = None
    phase: DevicePhase | None = None
    cause: str = ""
