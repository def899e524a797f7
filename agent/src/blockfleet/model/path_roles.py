# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles of paths follow the portals: those of a portal that is taken from a target go with it.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Plain = dict[str, Any]


def drop_roles_of_gone_portals(document: Plain, before: Plain, portal_key: Callable[[Any], str]) -> None:
    """Take out of ``document`` the declared roles of portals that ``before`` lists for a target and it does not.

    Roles that differ from those before were declared by the change itself, and are left as they are, right or
    wrong.  ``document`` may be unchecked yet; ``portal_key`` returns what portals are the same by.
    """
    targets = {target["name"]: target for target in before["targets"]}
    volumes = {volume["name"]: volume for volume in before["volumes"]}
    for target in _objects(document.get("targets")):
        old = _entry(targets, target)
        portals = target.get("portals")
        if not isinstance(old.get("portals"), list) or not isinstance(portals, list | tuple):
            continue
        gone = set(old["portals"]).difference(map(portal_key, portals))
        _drop(target, old, gone)
        for volume in _objects(document.get("volumes")):
            if volume.get("target") == target["name"]:
                _drop(volume, _entry(volumes, volume), gone)


def _entry(named: dict[str, Plain], unchecked: Plain) -> Plain:
    name = unchecked.get("name")
    return named.get(name, {}) if isinstance(name, str) else {}


def _objects(value: Any) -> Iterator[Plain]:
    return (entry for entry in value if isinstance(entry, dict)) if isinstance(value, list | tuple) else iter(())


def _drop(holder: Plain, before: Plain, gone: set[str]) -> None:
    roles = holder.get("paths")
    if not roles or roles != before.get("paths"):
        return
    left = [role for role in roles if role["portal"] not in gone]
    if left:
        holder["paths"] = left
    else:
        del holder["paths"]
