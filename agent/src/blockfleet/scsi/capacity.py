# SPDX-License-Identifier: GPL-3.0-or-later
"""READ CAPACITY(10) and (16) parameter data (SBC-3 5.15.2 and 5.16.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

TOO_BIG_FOR_10 = 0xFFFFFFFF
"""Last block address by which READ CAPACITY(10) says: ask with (16)."""

MINIMUM_BLOCK = 512
MAXIMUM_BLOCK = 1 << 16

_SHORT = struct.Struct(">II")
_LONG = struct.Struct(">QIBBH")


@dataclass(frozen=True, slots=True)
class Capacity:
    """Size and layout of a medium."""

    blocks: int
    block_size: int
    physical_exponent: int = 0
    """Two to this power logical blocks make a physical one."""
    lowest_aligned: int = 0
    """First block that begins a physical one."""
    provisioned: bool = False
    """LBPME: blocks can be deallocated."""
    reads_zeroes: bool = False
    """LBPRZ: deallocated blocks read as zeroes."""
    protection: int = 0
    """0 none, else the protection type 1 to 3."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.blocks * self.block_size

    @property
    def is_usable(self) -> bool:
        """Whether the block size is a power of two that a block device can have."""
        size = self.block_size
        return MINIMUM_BLOCK <= size <= MAXIMUM_BLOCK and not size & (size - 1)


def parse_10(data: bytes) -> Capacity | None:
    """Parse the 8-byte form; ``None`` when it is short or says that the medium is too big for it."""
    if len(data) < _SHORT.size:
        return None
    last, block_size = _SHORT.unpack_from(data)
    return None if last == TOO_BIG_FOR_10 else Capacity(last + 1, block_size)


def parse_16(data: bytes) -> Capacity | None:
    """Parse the 32-byte form; what a short answer leaves out is zero, ``None`` below 12 bytes."""
    if len(data) < 12:
        return None
    last, block_size, protection, exponents, alignment = _LONG.unpack_from(data.ljust(_LONG.size, b"\0"))
    return Capacity(
        blocks=last + 1,
        block_size=block_size,
        physical_exponent=exponents & 0x0F,
        lowest_aligned=alignment & 0x3FFF,
        provisioned=bool(alignment & 0x8000),
        reads_zeroes=bool(alignment & 0x4000),
        protection=((protection >> 1) & 7) + 1 if protection & 1 else 0,
    )
