# SPDX-License-Identifier: GPL-3.0-or-later
"""The plainest attachment: the NBD socket itself, for qemu, fio, nbdcopy and every other NBD client."""

from __future__ import annotations

from blockfleet.engine.interface import VolumeState


class SocketAttacher:
    """Leaves the socket as the engine made it; it needs no privilege and no kernel module."""

    async def attach(self, volume: VolumeState) -> None:
        """Do nothing: the engine's socket is the device."""

    async def detach(self, name: str) -> None:
        """Do nothing: the socket goes when the engine withdraws the volume."""

    def device(self, volume: VolumeState) -> str:
        """Return the path of the socket."""
        return volume.socket
