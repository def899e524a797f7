# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to a logical unit: a session and a LUN."""

from __future__ import annotations

import enum

from blockfleet.multipath.spread import ORDINARY, PathRole
from blockfleet.scsi.alua import AccessState
from blockfleet.scsi.command import ScsiExecutor

IN_FLIGHT_LIMIT = 128
"""Commands on one path at a time, unless the path is made with another limit."""

RECOVERY_STEP = 16
"""Good completions after which a path that was cut back takes one command more."""


class PathPhase(enum.StrEnum):
    """State of a path; the values are those that the engine's waist shows."""

    ACTIVE = "active"
    """I/O goes this way."""
    STANDBY = "standby"
    """It would work; the policy, the target's preference or a check under way keeps I/O off it."""
    FAILED = "failed"
    """The session is lost, or the path has not been checked yet."""
    FENCING = "fencing"
    """Writes of unknown outcome were on it; not used until they are fenced."""
    MISMATCH = "identity_mismatch"
    """Another unit is behind the LUN: no I/O, ever, until a check finds the right one."""


RANKS = {
    AccessState.ACTIVE_OPTIMIZED: 0,
    AccessState.ACTIVE_NON_OPTIMIZED: 1,
    AccessState.BLOCK_DEPENDENT: 1,
    AccessState.STANDBY: 2,
    AccessState.TRANSITIONING: 3,
    AccessState.UNAVAILABLE: 4,
    AccessState.OFFLINE: 4,
}
"""Which access states are tried before which; paths of the lowest rank that is there carry the I/O."""

INACCESSIBLE = (AccessState.TRANSITIONING, AccessState.UNAVAILABLE, AccessState.OFFLINE)


class Path:
    """A path and what is known of it.  Only its device changes it; ``executor`` is the session's nexus.

    ``session`` is the session's key, ``lun`` the 64-bit LUN structure on that session; ``weight``, ``standby`` and
    ``primary`` are its role.  Counters are plain integers that only grow.
    """

    __slots__ = (
        "access",
        "attentions",
        "busy",
        "checking",
        "completed",
        "displaced",
        "doubtful",
        "execute",
        "executor",
        "failed",
        "fence_at",
        "fence_attempts",
        "generation",
        "good_since_cut",
        "in_flight",
        "limit",
        "losses",
        "lun",
        "maximum",
        "mismatch",
        "not_ready",
        "phase",
        "preferred",
        "primary",
        "reset_until",
        "session",
        "standby",
        "unfenced",
        "up",
        "weight",
    )

    def __init__(
        self,
        executor: ScsiExecutor,
        lun: int,
        session: str,
        *,
        limit: int = IN_FLIGHT_LIMIT,
    ) -> None:
        self.executor = executor
        self.execute = executor.execute
        self.lun = lun
        self.session = session
        self.take_role(ORDINARY)
        self.maximum = limit
        self.limit = limit
        """Commands at a time right now: less than ``maximum`` while the target is congested."""
        self.phase = PathPhase.FAILED
        self.generation = 0
        """Counts what makes an identity check out of date."""
        self.access = AccessState.ACTIVE_OPTIMIZED
        self.preferred = False
        """The target prefers it (PREF bit, SPC-4 6.36)."""
        self.displaced = False
        """It carried I/O, or was ready to, and was lost; cleared when it carries I/O again."""
        self.up = False
        self.checking = False
        self.mismatch = False
        self.not_ready = False
        """The port just said that it does not serve the unit; not asked again before the next poll."""
        self.doubtful = False
        """It said so, and nothing has succeeded since."""
        self.reset_until = 0.0
        """Until then a reset that the unit reports is taken for our own."""
        self.unfenced = 0
        """Writes of unknown outcome that were on this path."""
        self.fence_at = 0.0
        self.fence_attempts = 0
        self.good_since_cut = 0
        self.in_flight = 0
        self.completed = 0
        self.failed = 0
        self.losses = 0
        self.busy = 0
        self.attentions = 0

    def take_role(self, role: PathRole) -> None:
        """Take what the administrator says of it."""
        self.weight = role.weight
        self.standby = role.standby
        self.primary = role.primary

    def cut_back(self) -> None:
        """Halve the commands at a time: the target is congested."""
        self.busy += 1
        self.limit = max(1, min(self.limit, self.in_flight + 1) // 2)
        self.good_since_cut = 0

    def grow(self) -> None:
        """Take a good completion; RECOVERY_STEP of them give back one command at a time."""
        if self.limit < self.maximum:
            self.good_since_cut += 1
            if self.good_since_cut >= RECOVERY_STEP:
                self.good_since_cut = 0
                self.limit += 1

    @property
    def usable(self) -> bool:
        """Whether I/O may go this way now."""
        return self.up and not (self.checking or self.mismatch or self.not_ready or self.unfenced)

    @property
    def rank(self) -> int:
        """Place of the path's access state among those to be preferred."""
        return RANKS[self.access]

    @property
    def counters(self) -> dict[str, int]:
        """Everything that is counted, and how much is in flight."""
        return {
            "issued": self.completed + self.failed + self.in_flight,
            "completed": self.completed,
            "failed": self.failed,
            "in_flight": self.in_flight,
            "limit": self.limit,
            "losses": self.losses,
            "busy": self.busy,
            "attentions": self.attentions,
            "unfenced": self.unfenced,
        }

    def __repr__(self) -> str:
        return f"Path({self.session!r}, lun={self.lun:#x}, {self.phase}, in_flight={self.in_flight})"
