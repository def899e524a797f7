# SPDX-License-Identifier: GPL-3.0-or-later
"""How often and how long a command is tried again."""

from __future__ import annotations

from blockfleet.multipath.fence import RangeLock
from blockfleet.scsi import sense as sense_data
from blockfleet.scsi.alua import AccessState
from blockfleet.scsi.command import Outcome, ScsiCommand
from blockfleet.scsi.effect import Effect, Extent, effect_of, extent_of

QUEUE_TIMEOUT = 120.0
"""Seconds that I/O waits for a path, or for a fence, before it fails."""
QUEUE_LIMIT = 4096
"""Commands that wait at a time; more are refused."""
RETRY_BUDGET = 60.0
"""Seconds that one command may spend on a busy target."""
ATTENTION_LIMIT = 128
"""Unit attentions that one command consumes."""
RETRY_LIMIT = 5
"""Repeats after ABORTED COMMAND, TASK ABORTED and an abort of our own."""
LOSS_LIMIT = 32
"""Sessions that may be lost under one command: it might be the command that kills them."""
BACK_OFF = (0.008, 0.032, 0.128, 0.512, 2.048, 8.192, 32.768)
"""Mean seconds between attempts while the target is busy."""
ACCESS_POLL = 1.0
"""Seconds until a port that does not serve the unit is tried again."""
RESET_GRACE = 30.0
"""Seconds after a fence during which a reset that a path reports is taken for the fence's own."""

_NOT_READY_STATES = {
    0x0A: AccessState.TRANSITIONING,
    0x0B: AccessState.STANDBY,
    0x0C: AccessState.UNAVAILABLE,
}


class Recovery:
    """What is remembered of a command that did not succeed at once; most commands never have one."""

    __slots__ = (
        "attentions",
        "busy_until",
        "effect",
        "extent",
        "lock",
        "losses",
        "ready_until",
        "retries",
        "waits",
    )

    def __init__(self, command: ScsiCommand) -> None:
        self.effect: Effect = effect_of(command.cdb)
        self.extent: Extent = extent_of(command.cdb, command.data_out)
        self.lock: RangeLock | None = None
        self.attentions = 0
        self.retries = 0
        self.losses = 0
        self.waits = 0
        self.busy_until: float | None = None
        """When the budget for a busy target is spent."""
        self.ready_until: float | None = None
        """When the patience with ports that do not serve the unit is at its end."""

    def pause(self, now: float, budget: float, random: float) -> float | None:
        """Return when to try a busy target again, ``None`` when the budget does not allow it.

        ``random`` is in [0, 1): pauses are spread over 50 to 150 percent of their mean.
        """
        if self.busy_until is None:
            self.busy_until = now + budget
        if self.waits >= len(BACK_OFF):
            return None
        at = now + BACK_OFF[self.waits] * (0.5 + random)
        self.waits += 1
        return at if at <= self.busy_until else None


def renew(command: ScsiCommand) -> None:
    """Make a command as if it had never been sent."""
    command.outcome = Outcome.PENDING
    command.status = 0
    command.sense = b""
    command.residual = 0
    command.data_in_count = 0
    command.error = ""


def access_after(sense: bytes, before: AccessState) -> AccessState:
    """Return the access state that NOT READY sense data tell of (02/04/0A to 0C), else the one ``before``."""
    parsed = sense_data.parse(sense)
    return before if parsed is None else _NOT_READY_STATES.get(parsed.qualifier, before)
