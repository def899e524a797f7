# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a host from its desired state, and which of it concerns whom.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from blockfleet.model.change import Absent, Change
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.names import InvalidName, normalise
from blockfleet.model.plan import Problem
from blockfleet.model.portal import InvalidPortal, Portal


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, what it concerns, and what may be hoped for.

    ``is_path``: one path is missing, which ``min_paths`` may excuse.  ``tried``: it was tried at least once and
    failed.  ``final``: waiting will not mend it.
    """

    problem: Problem
    target: str = ""
    portal: str = ""
    volume: str = ""
    is_path: bool = False
    tried: bool = False
    final: bool = False

    def as_path(self, *, tried: bool) -> Finding:
        """Return the same finding as one about a single path."""
        return replace(self, is_path=True, tried=tried)


def finding(
    code: Isdsc,
    message: str,
    subject: str,
    *,
    remedy: str = "",
    target: str = "",
    portal: str = "",
    volume: str = "",
    final: bool = False,
) -> Finding:
    """Make a finding that says what, why and what to do."""
    problem = Problem.of(BlockfleetError(code, message, remedy=remedy), subject)
    return Finding(problem, target=target, portal=portal, volume=volume, final=final)


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose problems a request wants to hear of: of everything, or of the things that the change names."""

    everything: bool = True
    targets: frozenset[str] = frozenset()
    portals: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()

    def covers(self, found: Finding) -> bool:
        """Say whether a finding concerns what is in scope."""
        return (
            self.everything
            or (found.target in self.targets and bool(found.target))
            or (found.portal in self.portals and not found.target and bool(found.portal))
            or (found.volume in self.volumes and bool(found.volume))
        )

    def covers_target(self, name: str) -> bool:
        """Say whether a target is in scope."""
        return self.everything or name in self.targets

    def of(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Return the findings in scope."""
        return tuple(found for found in findings if self.covers(found))


def scope_of(change: Change | None, volume_targets: dict[str, str]) -> Scope:
    """Return the scope of a change; ``volume_targets`` gives the target of each volume declared after it.

    Without a change, with a whole document, or with one that names nothing, everything is in scope.
    """
    if change is None or change.mode == "replace":
        return Scope()
    document, absent = change.document, change.absent
    if not document and absent == Absent():
        return Scope()
    discovery = document.get("discovery") or {}
    static = _names(discovery.get("static"), "target")
    volumes = {str(entry["name"]) for entry in _entries(document.get("volumes")) if "name" in entry}
    volumes.update(absent.volumes)
    targets = _names(document.get("targets"), "name") | static
    targets.update(absent.static_targets, absent.targets, absent.target_portals)
    targets.update(name for name in (*absent.chap, *absent.policies) if name not in ("discovery", "default"))
    targets.update(volume_targets[name] for name in volumes if name in volume_targets)
    portals = {portal for entry in _entries(discovery.get("portals")) if (portal := _portal(entry.get("portal")))}
    portals.update(absent.discovery_portals)
    return Scope(False, frozenset(targets), frozenset(portals), frozenset(volumes))


def _entries(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list | tuple) else []


def _names(value: Any, field: str) -> set[str]:
    names = set()
    for entry in _entries(value):
        try:
            names.add(normalise(str(entry.get(field, ""))))
        except InvalidName:  # the merge has refused it, or will
            continue
    return names


def _portal(value: Any) -> str:
    try:
        return str(Portal.parse(str(value)))
    except InvalidPortal:  # the merge has refused it, or will
        return ""
