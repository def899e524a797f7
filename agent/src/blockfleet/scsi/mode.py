# SPDX-License-Identifier: GPL-3.0-or-later
"""MODE SENSE parameter data: write protection, DPOFUA and the caching page (SPC-4 7.5, SBC-3 6.4.5)."""

from __future__ import annotations

from dataclasses import dataclass

from blockfleet.scsi.cdb import MODE_CACHING_PAGE

MAXIMUM_PAGES = 64
"""Mode pages of one answer that are looked through."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What MODE SENSE tells of a disk."""

    write_protected: bool
    dpofua: bool
    """READ and WRITE take the FUA and DPO bits."""
    write_cache: bool | None
    """WCE of the caching page; ``None`` where the page is not there."""


def _write_cache(pages: bytes) -> bool | None:
    at = 0
    for _ in range(MAXIMUM_PAGES):
        if at + 3 > len(pages):
            return None
        sub_page = pages[at] & 0x40
        if pages[at] & 0x3F == MODE_CACHING_PAGE and not sub_page:
            return bool(pages[at + 2] & 0x04)
        length = 4 + int.from_bytes(pages[at + 2 : at + 4], "big") if sub_page else 2 + pages[at + 1]
        at += length
    return None


def _mode(device_specific: int, data: bytes, header: int, total: int, descriptors: int) -> Mode:
    return Mode(
        write_protected=bool(device_specific & 0x80),
        dpofua=bool(device_specific & 0x10),
        write_cache=_write_cache(data[header + descriptors : total]),
    )


def parse_6(data: bytes) -> Mode | None:
    """Parse what MODE SENSE(6) returned; ``None`` when the header is not there."""
    if len(data) < 4:
        return None
    return _mode(data[2], data, 4, data[0] + 1, data[3])


def parse_10(data: bytes) -> Mode | None:
    """Parse what MODE SENSE(10) returned; ``None`` when the header is not there."""
    if len(data) < 8:
        return None
    total = int.from_bytes(data[0:2], "big") + 2
    return _mode(data[3], data, 8, total, int.from_bytes(data[6:8], "big"))
