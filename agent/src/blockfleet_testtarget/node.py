# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running target shows to initiators: nodes, their ports, and the units behind LUNs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blockfleet_testtarget.backing import Backing, FileBacking, RamBacking
from blockfleet_testtarget.chap import Chap
from blockfleet_testtarget.config import Config, TargetConfig, UnitConfig
from blockfleet_testtarget.keys import checked_wishes
from blockfleet_testtarget.scsi.alua import TargetPort
from blockfleet_testtarget.scsi.unit import Identity, LogicalUnit, Medium


def build_unit(name: str, config: UnitConfig) -> LogicalUnit:
    """Make a logical unit; one without an NAA identity gets a stable one from its name."""
    backing: Backing
    backing = RamBacking(config.size) if config.kind == "ram" else FileBacking(Path(config.path), config.size)
    digest = hashlib.sha256(name.encode()).hexdigest()
    naa = bytes.fromhex(config.naa or "6001" + digest[:28])
    identity = Identity(naa, config.serial or digest[:16], config.vendor, config.product)
    medium = Medium(
        block_size=config.block_size,
        physical_exponent=config.physical_exponent,
        write_cache=config.write_cache,
        read_only=config.read_only,
        thin=config.thin,
        max_transfer=config.max_transfer,
    )
    return LogicalUnit(name, backing, identity, medium)


class TargetNode:
    """One iSCSI target node: name, LUNs, credentials, and one target port for each portal group."""

    def __init__(
        self, config: TargetConfig, device: Config, units: dict[str, LogicalUnit], first_port: int
    ) -> None:
        self.name = config.name
        self.alias = config.alias
        self.luns: dict[int, LogicalUnit] = {lun: units[name] for lun, name in sorted(config.luns.items())}
        self.chap: Chap | None = config.chap
        self.initiators = set(config.initiators)
        self.wishes = checked_wishes({**device.keys, **config.keys})
        tags = config.portal_groups or sorted({portal.group for portal in device.portals})
        self.ports = {
            tag: TargetPort(config.name, tag, first_port + index, config.access_groups.get(tag, tag))
            for index, tag in enumerate(tags)
        }
        for unit in self.luns.values():
            self.reach(unit)

    @property
    def lun_list(self) -> list[int]:
        return list(self.luns)

    def reach(self, unit: LogicalUnit) -> None:
        """Let a unit know the ports through which it can be reached now."""
        for port in self.ports.values():
            unit.access.add(port)
