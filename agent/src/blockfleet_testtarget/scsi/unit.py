# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical unit: identity, medium, and what it remembers of each I_T nexus."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from blockfleet_testtarget.backing import Backing
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.alua import Access, AccessGroups
from blockfleet_testtarget.scsi.nexus import Nexus
from blockfleet_testtarget.scsi.reservation import Reservations
from blockfleet_testtarget.scsi.sense import Sense, Status

ATTENTION_LIMIT = 64  # unit attentions kept for one nexus


@dataclass(slots=True)
class Identity:
    """What INQUIRY tells: `naa` is the designator's 8 or 16 bytes."""

    naa: bytes
    serial: str
    vendor: str = "TESTTGT"
    product: str = "Scripted disk"
    revision: str = "1"


@dataclass(slots=True)
class Medium:
    """Shape of the medium and limits of one command, in blocks of `block_size` bytes."""

    block_size: int = 512
    physical_exponent: int = 0
    write_cache: bool = True
    read_only: bool = False
    thin: bool = True
    max_transfer: int = 32768
    max_unmap: int = 1 << 20
    max_write_same: int = 32768
    max_compare: int = 255


class Result:
    """How a command ended: status, data for the initiator, sense."""

    __slots__ = ("data", "sense", "status")

    def __init__(self, status: int = Status.GOOD, data: bytes = b"", sense: Sense | None = None) -> None:
        self.status = status
        self.data = data
        self.sense = sense


class LogicalUnit:
    """One disk. Any number of targets and LUNs may show it; it stays the same logical unit."""

    def __init__(self, name: str, backing: Backing, identity: Identity, medium: Medium) -> None:
        self.name = name
        self.backing = backing
        self.identity = identity
        self.medium = medium
        self.access = AccessGroups()
        self.reservations = Reservations()
        self.legacy_holder: Nexus | None = None  # of RESERVE(6)
        self.stopped = False
        self.attentions: dict[Nexus, deque[Sense]] = {}

    @property
    def blocks(self) -> int:
        return self.backing.size // self.medium.block_size

    def attach(self, nexus: Nexus, attention: Sense | None) -> None:
        """Begin to serve a nexus, with a unit attention for it when one is given."""
        queue = self.attentions.setdefault(nexus, deque(maxlen=ATTENTION_LIMIT))
        if attention is not None:
            queue.append(attention)

    def detach(self, nexus: Nexus) -> None:
        """Forget a nexus that was lost, with what it held that does not persist."""
        self.attentions.pop(nexus, None)
        if self.legacy_holder == nexus:
            self.legacy_holder = None

    def attention(self, condition: Sense, *, but: Nexus | None = None) -> None:
        """Establish a unit attention for every nexus (but the one that caused it)."""
        for nexus, queue in self.attentions.items():
            if nexus != but and condition not in queue:
                queue.append(condition)

    def attention_for(self, nexus: Nexus, condition: Sense) -> None:
        """Establish a unit attention for one nexus."""
        queue = self.attentions.get(nexus)
        if queue is not None and condition not in queue:
            queue.append(condition)

    def take_attention(self, nexus: Nexus) -> Sense | None:
        """Return and clear the oldest unit attention of a nexus."""
        queue = self.attentions.get(nexus)
        return queue.popleft() if queue else None

    def reset(self, attention: Sense) -> None:
        """Logical unit reset: what does not persist is gone, every nexus is told."""
        self.legacy_holder = None
        self.stopped = False
        for queue in self.attentions.values():
            queue.clear()
        self.attention(attention)

    def set_access(self, group: int, state: Access, *, cause: Nexus | None = None) -> None:
        """Change the access state of a target port group; nexuses are told by 2A/06."""
        if group not in self.access.states:
            raise KeyError(f"unit {self.name} has no target port group {group}")
        if self.access.states[group] != state:
            self.access.states[group] = state
            self.attention(conditions.ACCESS_STATE_CHANGED, but=cause)

    def resize(self, size: int) -> None:
        """Change the capacity in bytes; nexuses are told by 2A/09."""
        self.backing.resize(size)
        self.attention(conditions.CAPACITY_CHANGED)

    def set_write_cache(self, enabled: bool) -> None:
        """Change WCE; nexuses are told by 2A/01."""
        self.medium.write_cache = enabled
        self.attention(conditions.MODE_CHANGED)

    def set_identity(self, naa: bytes, *, tell: bool = True) -> None:
        """Change the designator; nexuses are told by 3F/05 unless the change shall be silent."""
        self.identity.naa = naa
        if tell:
            self.attention(conditions.IDENTITY_CHANGED)
