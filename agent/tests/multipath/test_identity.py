# SPDX-License-Identifier: GPL-3.0-or-later
"""Which logical unit may become a path of a volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from blockfleet.block.profile import UnitProfile
from blockfleet.model.isdsc import Isdsc
from blockfleet.multipath.identity import VolumeIdentity, refusal

STRONG = UnitProfile(
    lun=1 << 48,
    device_type=0,
    identity="naa.6001405a1b2c3d4e5f60718293a4b5c6",
    identity_is_weak=False,
    blocks=131072,
    block_size=512,
)
WEAK = replace(STRONG, identity="naa.60000000000000000e00000000010001", identity_is_weak=True)
HERE, THERE = "iqn.2026-11.example:a", "iqn.2026-11.example:b"


def volume(profile: UnitProfile, **fields: Any) -> VolumeIdentity:
    return VolumeIdentity(
        **{"identity": profile.identity, "target": HERE, "blocks": 131072, "block_size": 512, **fields}
    )


def test_the_same_unit_joins_from_any_target() -> None:
    assert refusal(volume(STRONG), STRONG, HERE) is None
    assert refusal(volume(STRONG), STRONG, THERE) is None


def test_the_first_path_gives_the_size() -> None:
    assert refusal(volume(STRONG, blocks=0, block_size=0), STRONG, HERE) is None


def test_a_weak_identity_joins_within_its_target_only() -> None:
    assert refusal(volume(WEAK), WEAK, HERE) is None
    error = refusal(volume(WEAK), WEAK, THERE)
    assert error is not None
    assert "not unique" in str(error)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"identity": "naa.6001405ffffffffffffffffffffffff0"}, "shows naa.6001405fff"),
        ({"identity": ""}, "no identity"),
        ({"block_size": 4096}, "4096 bytes"),
        ({"blocks": 131073}, "131073 blocks"),
        ({"device_type": 5}, "device type 5"),
        ({"is_management": True}, "no disk"),
    ],
)
def test_anything_else_is_refused_and_the_reason_named(changes: dict[str, Any], word: str) -> None:
    error = refusal(volume(STRONG), replace(STRONG, **changes), HERE)
    assert error is not None
    assert error.code is Isdsc.IDENTITY_MISMATCH
    assert word in str(error)
    assert error.remedy
