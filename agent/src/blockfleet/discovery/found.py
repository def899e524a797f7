# SPDX-License-Identifier: GPL-3.0-or-later
"""What any kind of discovery yields: targets at portals, each once, in a stable order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal

MAXIMUM_FOUND = 16384
"""Targets times portals that one discovery may yield."""


@dataclass(frozen=True, slots=True)
class FoundPortal:
    """A target's normalised name, one of its portals, and the portal group tag where it is known."""

    target: str
    portal: Portal
    tag: int | None = None

    @property
    def order(self) -> tuple[str, Portal, int]:
        """Sort key: by target, portal and tag, an unknown tag first."""
        return self.target, self.portal, -1 if self.tag is None else self.tag


def collect(found: Iterable[FoundPortal], source: str) -> tuple[FoundPortal, ...]:
    """Return ``found`` sorted, each pair of target and portal once; a known tag wins over an unknown one.

    Raises :class:`BlockfleetError` (``OUT_OF_RESOURCES``) beyond :data:`MAXIMUM_FOUND`, naming ``source``: a part
    of an answer must not look like the whole.
    """
    unique: dict[tuple[str, Portal], FoundPortal] = {}
    for entry in found:
        key = (entry.target, entry.portal)
        known = unique.get(key)
        if known is None or known.tag is None:
            unique[key] = entry
        if len(unique) > MAXIMUM_FOUND:
            raise BlockfleetError(
                Isdsc.OUT_OF_RESOURCES,
                f"{source} shows more than {MAXIMUM_FOUND} portals of targets",
                remedy="let the target show this host only what it may use, or list targets in discovery.static",
            )
    return tuple(sorted(unique.values(), key=lambda entry: entry.order))
