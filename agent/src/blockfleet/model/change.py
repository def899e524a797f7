# SPDX-License-Identifier: GPL-3.0-or-later
"""A request to change the desired state: what a module, the command line or a drop-in file sends."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from blockfleet.model.desired import PortalText, TargetName, VolumeName

CHANGE_VERSION = 1
"""Newest version of the change request that this agent reads."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Absent(_Part):
    """What must not be declared any more.  Removing what is not there is no change."""

    discovery_portals: tuple[PortalText, ...] = ()
    static_targets: tuple[TargetName, ...] = ()
    target_portals: dict[TargetName, Literal["all"] | tuple[PortalText, ...]] = {}
    """Logins to end: some portals of a target, or ``all``.  ``lifetime`` and ``min_paths`` speak of logins and go
    with the last one, roles of paths with their portal; credentials, login options and policy stay."""
    targets: tuple[TargetName, ...] = ()
    """Targets to forget whole, with sessions, credentials and policy."""
    chap: tuple[TargetName | Literal["discovery"], ...] = ()
    policies: tuple[TargetName | Literal["default"], ...] = ()
    """Policies with all that belongs to them: fail-back and the roles of paths."""
    volumes: tuple[VolumeName, ...] = ()


class Options(_Part):
    """How the change is to be carried out."""

    allow_disruption: bool = False
    """Permit what interrupts a user: ending a session whose volume is in use, a re-login."""
    relogin: Literal["next_login", "now"] = "next_login"
    """When new credentials or login options reach sessions that are logged in; ``now`` needs allow_disruption
    where a volume is in use."""
    wait_timeout: float = Field(default=30.0, ge=0, le=3600)
    """Seconds that apply waits for the host to reach the new state before it reports what is missing."""


class Change(_Part):
    """What shall be declared from now on.

    ``merge`` lays ``document`` over the desired state; ``replace`` makes it the desired state.

    ``document`` has the shape of :class:`~blockfleet.model.desired.Document` with every part optional.  In a
    merge, lists of named things (portals, targets, volumes) merge by name, objects merge field by field, the
    fields that are given win and ``null`` takes a field away.  A target's ``portals`` are such a list: what the
    change names is added, and ``all`` covers every portal.  A static target's ``portals`` are a plain field.
    ``exclusive`` names lists that the change owns whole, so that entries it does not name are removed.
    Removal by ``absent`` comes after the merge.

    A secret that is sent back as it was read (``{"set": true, ...}``) stays what it is.
    """

    version: Literal[1] = 1
    mode: Literal["merge", "replace"] = "merge"
    document: dict[str, Any] = {}
    absent: Absent = Absent()
    exclusive: tuple[
        Literal["discovery.portals", "discovery.static", "targets", "targets.portals", "volumes"], ...
    ] = ()
    options: Options = Options()
