# SPDX-License-Identifier: GPL-3.0-or-later
"""How I/O shall be spread over the paths of one device: the policy, and what each path is to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blockfleet.model.desired import Policy


@dataclass(frozen=True, slots=True)
class PathRole:
    """What the administrator says of one path."""

    weight: int = 0
    """The lightest path carries the I/O under ``weighted_path``."""
    standby: bool = False
    """Held in reserve under ``fail_over_only`` and ``round_robin_with_subset``."""
    primary: bool = False
    """The first choice among equals, before what the target prefers."""


ORDINARY = PathRole()
"""The role of a path that nothing was said of."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A policy, whether I/O returns to a path that was lost and is back, and roles by the keys of sessions."""

    policy: Policy = Policy.FAIL_OVER_ONLY
    failback: bool = True
    roles: Mapping[str, PathRole] = field(default_factory=dict)

    def role_of(self, session: str) -> PathRole:
        """Return the role of the path through a session."""
        return self.roles.get(session, ORDINARY)
