# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a plan: what is asked of the engine, in which order.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from blockfleet.engine.interface import InitiatorSpec
from blockfleet.model.plan import Action
from blockfleet.reconcile.wanted import WantedSession, WantedVolume


class Operation(enum.Enum):
    """What is asked of the engine."""

    WITHDRAW = enum.auto()
    CLOSE = enum.auto()
    CONFIGURE = enum.auto()
    OPEN = enum.auto()
    UPDATE = enum.auto()
    """New credentials or options for the next login of a session."""
    RELOGIN = enum.auto()
    """The same, and log in anew at once."""
    PUBLISH = enum.auto()
    REPUBLISH = enum.auto()
    """Withdraw, then publish: what a volume is cannot change while it is served."""


ORDER = {operation: index for index, operation in enumerate(Operation)}
"""Steps run in this order: what goes first, then who we are, then paths, then what needs paths."""

LOGGING_IN = frozenset({Operation.OPEN, Operation.RELOGIN})


@dataclass(frozen=True, slots=True)
class Step:
    """One request to the engine, and the action that people see it as.

    Several steps may belong to one action, which then is on one of them.
    """

    operation: Operation
    key: str
    """Session key or volume name; empty for CONFIGURE."""
    action: Action | None
    session: WantedSession | None = None
    volume: WantedVolume | None = None
    identity: str = ""
    """Of the volume to publish; empty while it is not known before a login."""
    initiator: InitiatorSpec | None = None
    refused: bool = False

    @property
    def will_log_in(self) -> bool:
        """Whether the step leads to a login."""
        return self.operation in LOGGING_IN and not self.refused
