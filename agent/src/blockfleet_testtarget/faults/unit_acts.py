# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes at once in logical units and in what stands behind LUNs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockfleet_testtarget.config import parse_size
from blockfleet_testtarget.faults.base import Fault, FaultError, register
from blockfleet_testtarget.faults.commands import parse_sense
from blockfleet_testtarget.scsi.alua import Access

if TYPE_CHECKING:
    from blockfleet_testtarget.node import TargetNode
    from blockfleet_testtarget.scsi.unit import LogicalUnit
    from blockfleet_testtarget.target import TestTarget


def find_unit(endpoint: TestTarget, name: str) -> LogicalUnit:
    """Return the unit of a name, or the only one for the empty name; raises FaultError."""
    if not name and len(endpoint.units) == 1:
        return next(iter(endpoint.units.values()))
    if name not in endpoint.units:
        raise FaultError(f"there is no unit {name!r} (known: {', '.join(endpoint.units)})")
    return endpoint.units[name]


def find_node(endpoint: TestTarget, name: str) -> TargetNode:
    """Return the target of a name, or the only one for the empty name; raises FaultError."""
    if not name and len(endpoint.nodes) == 1:
        return next(iter(endpoint.nodes.values()))
    if name not in endpoint.nodes:
        raise FaultError(f"there is no target {name!r} (known: {', '.join(endpoint.nodes)})")
    return endpoint.nodes[name]


@dataclass(slots=True, kw_only=True)
class UnitAct(Fault):
    """Base of changes of one unit: `unit` is its name (empty: the only one)."""

    unit: str = ""

    def armed(self, endpoint: TestTarget) -> bool:
        self.change(find_unit(endpoint, self.unit))
        self.struck += 1
        return False

    def change(self, unit: LogicalUnit) -> None:
        """Change it."""


@register
@dataclass(slots=True, kw_only=True)
class SetSize(UnitAct):
    """Change the capacity: `size` as in the configuration; UA 2A/09."""

    name: ClassVar[str] = "set_size"
    size: str = "64M"

    def change(self, unit: LogicalUnit) -> None:
        unit.resize(parse_size(self.size))


@register
@dataclass(slots=True, kw_only=True)
class SetIdentity(UnitAct):
    """Change the NAA identity, with UA 3F/05 unless `silent`."""

    name: ClassVar[str] = "set_identity"
    naa: str = ""
    silent: bool = False

    def change(self, unit: LogicalUnit) -> None:
        try:
            naa = bytes.fromhex(self.naa)
        except ValueError:
            naa = b""
        if len(naa) not in (8, 16):
            raise FaultError(f"{self.naa!r} is not 16 or 32 hex digits")
        unit.set_identity(naa, tell=not self.silent)


@register
@dataclass(slots=True, kw_only=True)
class SetWriteCache(UnitAct):
    """Change WCE; UA 2A/01."""

    name: ClassVar[str] = "set_write_cache"
    enabled: bool = False

    def change(self, unit: LogicalUnit) -> None:
        unit.set_write_cache(self.enabled)


@register
@dataclass(slots=True, kw_only=True)
class SetReadOnly(UnitAct):
    """Change write protection; nobody is told."""

    name: ClassVar[str] = "set_read_only"
    enabled: bool = True

    def change(self, unit: LogicalUnit) -> None:
        unit.medium.read_only = self.enabled


@register
@dataclass(slots=True, kw_only=True)
class UnitAttention(UnitAct):
    """Establish a unit attention for every nexus, `count` times over."""

    name: ClassVar[str] = "unit_attention"
    sense: str = "06/29/00"
    count: int = 1

    def change(self, unit: LogicalUnit) -> None:
        condition = parse_sense(self.sense)
        for queue in unit.attentions.values():
            queue.extend([condition] * self.count)


@register
@dataclass(slots=True, kw_only=True)
class SetAccess(UnitAct):
    """Change the ALUA state of a target port group: a name such as standby; UA 2A/06."""

    name: ClassVar[str] = "set_access"
    group: int = 1
    state: str = "non_optimized"

    def change(self, unit: LogicalUnit) -> None:
        try:
            state = Access[self.state.upper()]
        except KeyError:
            known = ", ".join(access.name.lower() for access in Access)
            raise FaultError(f"{self.state!r} is no access state (known: {known})") from None
        if self.group not in unit.access.states:
            raise FaultError(f"unit {unit.name} has no target port group {self.group}")
        unit.set_access(self.group, state)


@register
@dataclass(slots=True, kw_only=True)
class SwapLun(Fault):
    """Put another unit behind a LUN of a target (none, when `unit` is empty); UA 3F/0E unless `silent`."""

    name: ClassVar[str] = "swap_lun"
    lun: int = 0
    unit: str = ""
    silent: bool = False

    def armed(self, endpoint: TestTarget) -> bool:
        node = find_node(endpoint, self.target)
        unit = find_unit(endpoint, self.unit) if self.unit else None
        endpoint.set_lun(node, self.lun, unit, tell=not self.silent)
        self.struck += 1
        return False
