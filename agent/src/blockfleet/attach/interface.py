# SPDX-License-Identifier: GPL-3.0-or-later
"""The one shape of every way to attach a volume."""

from __future__ import annotations

from typing import Protocol

from blockfleet.engine.interface import VolumeState


class Attacher(Protocol):
    """Makes something a user can open of a volume that the engine serves.

    Calls may be repeated: attaching what is attached and detaching what is not are no errors.  They raise
    :class:`~blockfleet.model.errors.BlockfleetError`; a volume that cannot be attached stays served.
    """

    async def attach(self, volume: VolumeState) -> None:
        """Attach a volume that is served, or follow a change of its size."""

    async def detach(self, name: str) -> None:
        """Undo it, before the volume is withdrawn."""

    def device(self, volume: VolumeState) -> str:
        """Return the path that a user opens; empty while there is none."""
