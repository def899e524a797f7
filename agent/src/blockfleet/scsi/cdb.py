# SPDX-License-Identifier: GPL-3.0-or-later
"""Command descriptor blocks: builders for what this initiator sends (SPC-4 clause 6, SBC-3 clause 5).

Logical block addresses and lengths are in logical blocks, allocation lengths in bytes.  Values that do not
fit their field raise :class:`struct.error`: the caller chooses the form that is wide enough.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence


class Opcode(enum.IntEnum):
    """Operation codes, byte 0 of a CDB."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    FORMAT_UNIT = 0x04
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SENSE_6 = 0x1A
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    PRE_FETCH_10 = 0x34
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    LOG_SENSE = 0x4D
    XDWRITEREAD_10 = 0x53
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    EXTENDED_COPY = 0x83
    RECEIVE_COPY_RESULTS = 0x84
    READ_16 = 0x88
    COMPARE_AND_WRITE = 0x89
    WRITE_16 = 0x8A
    ORWRITE_16 = 0x8B
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    PRE_FETCH_16 = 0x90
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    WRITE_ATOMIC_16 = 0x9C
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    MAINTENANCE_OUT = 0xA4
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    WRITE_AND_VERIFY_12 = 0xAE
    VERIFY_12 = 0xAF


FUA = 0x08
"""Force unit access: READ and WRITE flags (SBC-3 5.8); valid where MODE SENSE shows DPOFUA."""
DPO = 0x10
"""Disable page out: a hint not to keep the blocks in the cache."""
WRITE_SAME_UNMAP = 0x08
"""WRITE SAME may deallocate instead of writing (SBC-3 5.46)."""

READ_CAPACITY_16_ACTION = 0x10
REPORT_TARGET_PORT_GROUPS_ACTION = 0x0A
RTPG_EXTENDED_HEADER = 0x20
"""Parameter data format bits of RTPG: ask for the header with the implicit transition time."""

MODE_ALL_PAGES = 0x3F
MODE_CACHING_PAGE = 0x08

UNMAP_DESCRIPTOR_LIMIT = 4095
"""Descriptors that the 16-bit parameter list length has room for."""

pack_10 = struct.Struct(">BBIBHB").pack
"""Block commands of 10 bytes: opcode, flags, LBA, group, blocks, control.  Bound for the hot path."""
pack_16 = struct.Struct(">BBQIBB").pack
"""Block commands of 16 bytes: opcode, flags, LBA, blocks, group, control.  Bound for the hot path."""

_INQUIRY = struct.Struct(">BBBHB")
_MODE_SENSE_6 = struct.Struct(">BBBBBB")
_MODE_SENSE_10 = struct.Struct(">BBBB3xHB")
_LONG_ALLOCATION = struct.Struct(">BBxxxxIxB")
_REPORT_LUNS = struct.Struct(">BxB3xIxB")
_SERVICE_IN_16 = struct.Struct(">BBQIBB")
_UNMAP_HEADER = struct.Struct(">HHxxxx")
_UNMAP_DESCRIPTOR = struct.Struct(">QIxxxx")


def test_unit_ready() -> bytes:
    """TEST UNIT READY (SPC-4 6.37): also the cheapest way to collect a unit attention."""
    return bytes(6)


def inquiry(allocation: int = 96) -> bytes:
    """INQUIRY for standard data (SPC-4 6.4.2); ``allocation`` of 36 or more."""
    return _INQUIRY.pack(Opcode.INQUIRY, 0, 0, allocation, 0)


def inquiry_vpd(page: int, allocation: int = 0xFF) -> bytes:
    """INQUIRY with EVPD for one vital product data page (SPC-4 6.4.4)."""
    return _INQUIRY.pack(Opcode.INQUIRY, 1, page, allocation, 0)


def report_luns(allocation: int, select_report: int = 0) -> bytes:
    """REPORT LUNS (SPC-4 6.33); ``select_report`` 0 leaves out well known LUNs, 1 has only those, 2 all."""
    return _REPORT_LUNS.pack(Opcode.REPORT_LUNS, select_report, allocation, 0)


def read_capacity_10() -> bytes:
    """READ CAPACITY(10) (SBC-3 5.15); the answer has 8 bytes."""
    return pack_10(Opcode.READ_CAPACITY_10, 0, 0, 0, 0, 0)


def read_capacity_16(allocation: int = 32) -> bytes:
    """READ CAPACITY(16) (SBC-3 5.16)."""
    return _SERVICE_IN_16.pack(Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16_ACTION, 0, allocation, 0, 0)


def mode_sense_6(page: int, allocation: int = 0xFF, *, block_descriptors: bool = False) -> bytes:
    """MODE SENSE(6) for the current values of ``page`` (SPC-4 6.11)."""
    return _MODE_SENSE_6.pack(Opcode.MODE_SENSE_6, 0 if block_descriptors else 0x08, page, 0, allocation, 0)


def mode_sense_10(page: int, allocation: int = 0xFF, *, block_descriptors: bool = False) -> bytes:
    """MODE SENSE(10) for the current values of ``page`` (SPC-4 6.12)."""
    return _MODE_SENSE_10.pack(Opcode.MODE_SENSE_10, 0 if block_descriptors else 0x08, page, 0, allocation, 0)


def read_10(lba: int, blocks: int, flags: int = 0) -> bytes:
    """READ(10) (SBC-3 5.11): 32-bit address, up to 65535 blocks, ``flags`` of FUA and DPO."""
    return pack_10(Opcode.READ_10, flags, lba, 0, blocks, 0)


def read_16(lba: int, blocks: int, flags: int = 0) -> bytes:
    """READ(16) (SBC-3 5.13)."""
    return pack_16(Opcode.READ_16, flags, lba, blocks, 0, 0)


def write_10(lba: int, blocks: int, flags: int = 0) -> bytes:
    """WRITE(10) (SBC-3 5.35)."""
    return pack_10(Opcode.WRITE_10, flags, lba, 0, blocks, 0)


def write_16(lba: int, blocks: int, flags: int = 0) -> bytes:
    """WRITE(16) (SBC-3 5.37)."""
    return pack_16(Opcode.WRITE_16, flags, lba, blocks, 0, 0)


def synchronize_cache_10(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE(10) (SBC-3 5.24); 0 blocks means up to the end of the medium."""
    return pack_10(Opcode.SYNCHRONIZE_CACHE_10, 0, lba, 0, blocks, 0)


def synchronize_cache_16(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE(16) (SBC-3 5.25); 0 blocks means up to the end of the medium."""
    return pack_16(Opcode.SYNCHRONIZE_CACHE_16, 0, lba, blocks, 0, 0)


def write_same_16(lba: int, blocks: int, *, unmap: bool = False) -> bytes:
    """WRITE SAME(16) (SBC-3 5.46): the one block of data out is written ``blocks`` times.

    0 blocks would mean up to the end of the medium, so the caller never passes it.
    """
    return pack_16(Opcode.WRITE_SAME_16, WRITE_SAME_UNMAP if unmap else 0, lba, blocks, 0, 0)


def unmap(ranges: Sequence[tuple[int, int]]) -> tuple[bytes, bytes]:
    """UNMAP and its parameter list (SBC-3 5.28) for (LBA, blocks) ranges, at most UNMAP_DESCRIPTOR_LIMIT."""
    descriptors = b"".join(_UNMAP_DESCRIPTOR.pack(lba, blocks) for lba, blocks in ranges)
    parameters = _UNMAP_HEADER.pack(len(descriptors) + 6, len(descriptors)) + descriptors
    return pack_10(Opcode.UNMAP, 0, 0, 0, len(parameters), 0), parameters


def report_target_port_groups(allocation: int, *, extended: bool = False) -> bytes:
    """REPORT TARGET PORT GROUPS (SPC-4 6.36), with the extended header where the target knows it."""
    action = REPORT_TARGET_PORT_GROUPS_ACTION | (RTPG_EXTENDED_HEADER if extended else 0)
    return _LONG_ALLOCATION.pack(Opcode.MAINTENANCE_IN, action, allocation, 0)
