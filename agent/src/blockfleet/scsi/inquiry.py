# SPDX-License-Identifier: GPL-3.0-or-later
"""Standard INQUIRY data (SPC-4 6.4.2)."""

from __future__ import annotations

from dataclasses import dataclass

MINIMUM = 36
"""Bytes of standard data that hold every field read here."""

DISK = 0x00
SIMPLIFIED_DISK = 0x0E
"""Reduced block command set (RBC): no disk for us."""
HOST_MANAGED_ZONED = 0x14
NO_DEVICE = 0x1F
CONNECTED = 0

TEXT_REPLACEMENT = "?"

_MANAGEMENT_PRODUCTS = (
    ("DGC", "LUNZ"),
    ("", "Universal Xport"),
    ("EMC", "LUNZ"),
)
"""(vendor or any, product): units that answer as disks but only carry an array's management commands."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What a logical unit says it is."""

    qualifier: int
    """0: a device is there; 1: none now; 3: never one."""
    device_type: int
    removable: bool
    version: int
    target_port_groups: int
    """TPGS: 0 no ALUA, bit 0 implicit, bit 1 explicit."""
    vendor: str
    product: str
    revision: str

    @property
    def is_present(self) -> bool:
        """Whether there is a logical unit behind this LUN at all."""
        return self.qualifier == CONNECTED and self.device_type != NO_DEVICE

    @property
    def is_management(self) -> bool:
        """Whether this is a known management unit: not to be used as a disk whatever its type says."""
        return any(
            vendor in ("", self.vendor) and product == self.product for vendor, product in _MANAGEMENT_PRODUCTS
        )


def printable(data: bytes) -> str:
    """Return an ASCII field without its padding; what is not printable shows as ``?``."""
    text = "".join(chr(byte) if 0x20 <= byte <= 0x7E else TEXT_REPLACEMENT for byte in data.rstrip(b"\0 "))
    return text.strip()


def parse(data: bytes) -> Inquiry | None:
    """Parse standard data; ``None`` when not even the first five bytes are there."""
    if len(data) < 5:
        return None
    padded = data.ljust(MINIMUM, b"\0")
    return Inquiry(
        qualifier=padded[0] >> 5,
        device_type=padded[0] & 0x1F,
        removable=bool(padded[1] & 0x80),
        version=padded[2],
        target_port_groups=(padded[5] >> 4) & 3,
        vendor=printable(padded[8:16]),
        product=printable(padded[16:32]),
        revision=printable(padded[32:36]),
    )
