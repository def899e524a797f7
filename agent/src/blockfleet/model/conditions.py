# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditions: what is true of a portal, a target, a volume or the host, since when, and why."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class ConditionType(enum.StrEnum):
    """What a condition is about."""

    DISCOVERED = "Discovered"
    """Portal: it answered SendTargets.  Target: some discovery, or a static entry, shows it."""
    LOGGED_IN = "LoggedIn"
    """Every session that is wanted is in full feature phase."""
    DEVICES_PRESENT = "DevicesPresent"
    """Every volume declared on the target is served."""
    PATHS_HEALTHY = "PathsHealthy"
    """The volume has all the paths that its target's sessions could give it, and all work."""
    PERSISTENT = "Persistent"
    """What is declared survives a restart of the host."""
    VERIFIED = "Verified"
    """The logical unit that is served is the one that the volume is bound to."""
    IN_SYNC = "InSync"
    """Nothing is left to do."""


class Truth(enum.StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"

    @classmethod
    def of(cls, value: bool | None) -> Truth:
        """Translate a boolean; ``None`` is unknown."""
        return cls.UNKNOWN if value is None else cls.TRUE if value else cls.FALSE


class Condition(BaseModel):
    """One condition; ``reason`` is for programs and stable, ``message`` for people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: ConditionType
    status: Truth
    reason: str
    """One word in CamelCase."""
    message: str = ""
    since: str = ""
    """When ``status`` last changed: ISO 8601, UTC."""
    observed_generation: int = 0
    """Generation of the desired state that this was judged against."""


class ConditionClock:
    """Remembers when each condition last changed its status, so that looking again does not move ``since``."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, ConditionType], tuple[Truth, str]] = {}

    def stamp(self, subject: str, conditions: Iterable[Condition], now: str) -> tuple[Condition, ...]:
        """Return the conditions with ``since`` filled in; ``now`` is the present time in ISO 8601."""
        stamped = []
        for condition in conditions:
            key = (subject, condition.type)
            known = self._since.get(key)
            if known is None or known[0] is not condition.status:
                known = self._since[key] = (condition.status, now)
            stamped.append(condition.model_copy(update={"since": known[1]}))
        return tuple(stamped)

    def forget_all_but(self, subjects: Iterable[str]) -> None:
        """Drop what is remembered of subjects that are gone, so that memory stays bounded by the host."""
        keep = set(subjects)
        self._since = {key: value for key, value in self._since.items() if key[0] in keep}
