# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a logical unit: the result of a probe and the input of a disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockfleet.model.errors import BlockfleetError
from blockfleet.scsi import lun as lun_structure
from blockfleet.scsi.alua import AccessState
from blockfleet.scsi.inquiry import DISK
from blockfleet.scsi.vpd import BlockLimits, Provisioning


@dataclass(frozen=True, slots=True)
class UnitProfile:
    """A logical unit as one session shows it."""

    lun: int
    """The 64-bit LUN structure."""
    device_type: int
    vendor: str = ""
    product: str = ""
    revision: str = ""
    serial: str = ""
    identity: str = ""
    """Strongest VPD 83h designator of the logical unit; empty where it shows none."""
    identity_is_weak: bool = True
    """The identity is known not to be unique (or there is none): units merge only within one target."""
    is_management: bool = False
    """An array's management unit: never a disk, whatever its type says."""
    blocks: int = 0
    block_size: int = 0
    """Bytes of a logical block; 0 for what is no disk, or could not be asked."""
    physical_block_size: int = 0
    protection: int = 0
    read_only: bool = False
    write_cache: bool | None = None
    """Whether acknowledged writes may be in a volatile cache; ``None`` where the unit does not say."""
    dpofua: bool = False
    """READ and WRITE take the FUA bit."""
    thin: bool = False
    """LBPME: blocks can be deallocated."""
    limits: BlockLimits = field(default_factory=BlockLimits)
    provisioning: Provisioning = field(default_factory=Provisioning)
    rotational: bool = False
    target_port_groups: int = 0
    """TPGS: 0 where access is symmetric."""
    port_group: int | None = None
    relative_port: int | None = None
    access: AccessState = AccessState.ACTIVE_OPTIMIZED
    preferred: bool = False
    fault: BlockfleetError | None = None
    """Why the unit cannot be used, where it cannot."""

    @property
    def number(self) -> int | None:
        """Plain logical unit number, ``None`` where the structure has none."""
        return lun_structure.decode(self.lun).number

    @property
    def size(self) -> int:
        """Bytes."""
        return self.blocks * self.block_size

    @property
    def is_disk(self) -> bool:
        """Whether this can be served as a volume."""
        return self.device_type == DISK and not self.is_management and self.fault is None and self.block_size > 0
