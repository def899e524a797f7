# SPDX-License-Identifier: GPL-3.0-or-later
"""Logical units as the control protocol shows them."""

from __future__ import annotations

from blockfleet.block.profile import UnitProfile
from blockfleet.engine.interface import Fault, LogicalUnit
from blockfleet.model.errors import BlockfleetError


def fault_of(error: BlockfleetError) -> Fault:
    """Describe an error as it is shown in a state."""
    return Fault(code=int(error.code), name=str(error.code), message=str(error))


def logical_unit(profile: UnitProfile) -> LogicalUnit:
    """Describe a unit; one whose LUN structure has no plain number shows the structure itself."""
    number = profile.number
    return LogicalUnit(
        lun=profile.lun if number is None else number,
        device_type=profile.device_type,
        vendor=profile.vendor,
        product=profile.product,
        revision=profile.revision,
        serial=profile.serial,
        identity=profile.identity,
        identity_is_weak=profile.identity_is_weak,
        size=profile.size,
        block_size=profile.block_size,
        read_only=profile.read_only,
        fault=None if profile.fault is None else fault_of(profile.fault),
    )
