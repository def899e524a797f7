# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a logical unit that a session shows may become a path of a volume."""

from __future__ import annotations

from dataclasses import dataclass

from blockfleet.block.profile import UnitProfile
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.scsi.lun import describe


@dataclass(frozen=True, slots=True)
class VolumeIdentity:
    """What every path of a volume must show.

    ``target`` is the target that the first path was found at: units whose identity is known not to be unique
    merge only within it.  ``blocks`` and ``block_size`` are those of the paths that are there already, 0 for
    none yet.
    """

    identity: str
    target: str
    blocks: int = 0
    block_size: int = 0


def _refused(profile: UnitProfile, target: str, why: str, remedy: str) -> BlockfleetError:
    return BlockfleetError(
        Isdsc.IDENTITY_MISMATCH,
        f"{describe(profile.lun)} of {target} cannot become a path: {why}",
        remedy=remedy,
    )


def refusal(volume: VolumeIdentity, profile: UnitProfile, target: str) -> BlockfleetError | None:
    """Return why ``profile``, seen at ``target``, must not join ``volume``; ``None`` when it may."""
    if not profile.identity or profile.identity != volume.identity:
        shown = profile.identity or "no identity"
        return _refused(
            profile, target, f"it shows {shown}, the volume is {volume.identity}", "check the target's LUN mapping"
        )
    if not profile.is_disk:
        why = str(profile.fault) if profile.fault else f"it is no disk (device type {profile.device_type})"
        return _refused(profile, target, why, "check the logical unit on the target")
    if profile.identity_is_weak and target != volume.target:
        return _refused(
            profile,
            target,
            f"{profile.identity} is not unique, other targets show it for other units,"
            f" and the volume is at {volume.target}",
            "give the unit an identity of its own on the target",
        )
    if volume.block_size and profile.block_size != volume.block_size:
        return _refused(
            profile,
            target,
            f"its blocks have {profile.block_size} bytes, the volume's {volume.block_size}",
            "check the logical unit on the target",
        )
    if volume.blocks and profile.blocks != volume.blocks:
        return _refused(
            profile,
            target,
            f"it has {profile.blocks} blocks, the volume {volume.blocks}",
            "rescan when all portals show the same size",
        )
    return None
