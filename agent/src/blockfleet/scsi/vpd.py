# SPDX-License-Identifier: GPL-3.0-or-later
"""Vital product data pages 00, 80, 83, B0, B1 and B2 (SPC-4 7.8, SBC-3 6.5).

Every parser takes the page as received and reads what is there: a page that is short or not the one that was
asked for gives empty or zero fields, never an exception.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from blockfleet.scsi.inquiry import printable

SUPPORTED_PAGES = 0x00
UNIT_SERIAL_NUMBER = 0x80
DEVICE_IDENTIFICATION = 0x83
BLOCK_LIMITS = 0xB0
BLOCK_DEVICE_CHARACTERISTICS = 0xB1
LOGICAL_BLOCK_PROVISIONING = 0xB2

MAXIMUM_PAGE = 4096
"""Allocation length for pages of unknown size; more is not read."""
MAXIMUM_DESIGNATORS = 64

_HEADER = struct.Struct(">BBH")
_BLOCK_LIMITS = struct.Struct(">4xBBHIIIIIIIQ")


class Association(enum.IntEnum):
    """What a designator names."""

    LOGICAL_UNIT = 0
    TARGET_PORT = 1
    TARGET_DEVICE = 2


class DesignatorType(enum.IntEnum):
    """Designator types (SPC-4 table 602)."""

    VENDOR_SPECIFIC = 0
    T10_VENDOR_ID = 1
    EUI_64 = 2
    NAA = 3
    RELATIVE_TARGET_PORT = 4
    TARGET_PORT_GROUP = 5
    LOGICAL_UNIT_GROUP = 6
    MD5_LOGICAL_UNIT = 7
    SCSI_NAME_STRING = 8
    PROTOCOL_SPECIFIC_PORT = 9
    UUID = 10


@dataclass(frozen=True, slots=True)
class Designator:
    """One designation descriptor of page 83h."""

    association: int
    type: int
    code_set: int
    """1 binary, 2 ASCII, 3 UTF-8."""
    value: bytes


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """Page B0h; counts are logical blocks, 0 where the unit reports no limit."""

    optimal_granularity: int = 0
    maximum_transfer: int = 0
    optimal_transfer: int = 0
    maximum_unmap_blocks: int = 0
    maximum_unmap_descriptors: int = 0
    unmap_granularity: int = 0
    unmap_alignment: int = 0
    maximum_write_same: int = 0


@dataclass(frozen=True, slots=True)
class Provisioning:
    """Page B2h: which commands deallocate, and what deallocated blocks read as."""

    unmap: bool = False
    """LBPU: UNMAP is supported."""
    write_same_unmap: bool = False
    """LBPWS: WRITE SAME(16) with the UNMAP bit is supported."""
    reads_zeroes: bool = False
    """LBPRZ: deallocated blocks read as zeroes."""


def payload(data: bytes, page: int) -> bytes:
    """Return what follows the header of ``page``, or nothing when ``data`` is not that page."""
    if len(data) < _HEADER.size:
        return b""
    _, code, length = _HEADER.unpack_from(data)
    return data[_HEADER.size : _HEADER.size + length] if code == page else b""


def supported_pages(data: bytes) -> frozenset[int]:
    """Page 00h: the pages that the unit has."""
    return frozenset(payload(data, SUPPORTED_PAGES))


def serial_number(data: bytes) -> str:
    """Page 80h: the unit serial number as text."""
    return printable(payload(data, UNIT_SERIAL_NUMBER))


def designators(data: bytes) -> tuple[Designator, ...]:
    """Page 83h: the designators that are wholly there, at most MAXIMUM_DESIGNATORS."""
    body = payload(data, DEVICE_IDENTIFICATION)
    found: list[Designator] = []
    at = 0
    while at + 4 <= len(body) and len(found) < MAXIMUM_DESIGNATORS:
        end = at + 4 + body[at + 3]
        if end > len(body):
            break
        found.append(
            Designator(
                association=(body[at + 1] >> 4) & 3,
                type=body[at + 1] & 0x0F,
                code_set=body[at] & 0x0F,
                value=body[at + 4 : end],
            )
        )
        at = end
    return tuple(found)


def _port_number(found: tuple[Designator, ...], kind: DesignatorType) -> int | None:
    for designator in found:
        if designator.type == kind and len(designator.value) == 4:
            return int.from_bytes(designator.value[2:], "big")
    return None


def target_port_group(found: tuple[Designator, ...]) -> int | None:
    """Return the target port group of the port that the page was read through, where it says."""
    return _port_number(found, DesignatorType.TARGET_PORT_GROUP)


def relative_target_port(found: tuple[Designator, ...]) -> int | None:
    """Return the relative identifier of the port that the page was read through, where it says."""
    return _port_number(found, DesignatorType.RELATIVE_TARGET_PORT)


def block_limits(data: bytes) -> BlockLimits:
    """Page B0h; the short page of SBC-2 has the transfer limits only."""
    body = payload(data, BLOCK_LIMITS)
    if len(body) < 12:
        return BlockLimits()
    # the struct counts from the page's own byte 0
    fields = _BLOCK_LIMITS.unpack_from(bytes(4) + body.ljust(_BLOCK_LIMITS.size, b"\0"))
    (_, _, granularity, maximum, optimal, _, unmap_blocks, unmap_descriptors) = fields[:8]
    unmap_granularity, unmap_alignment, write_same = fields[8:]
    return BlockLimits(
        optimal_granularity=granularity,
        maximum_transfer=maximum,
        optimal_transfer=optimal,
        maximum_unmap_blocks=unmap_blocks,
        maximum_unmap_descriptors=unmap_descriptors,
        unmap_granularity=unmap_granularity,
        unmap_alignment=unmap_alignment & 0x7FFFFFFF if unmap_alignment & 0x80000000 else 0,
        maximum_write_same=write_same,
    )


def is_rotational(data: bytes) -> bool:
    """Page B1h: whether the medium turns; a rate of 0 (not reported) or 1 (solid state) does not say so."""
    body = payload(data, BLOCK_DEVICE_CHARACTERISTICS)
    return len(body) >= 2 and int.from_bytes(body[:2], "big") > 1


def provisioning(data: bytes) -> Provisioning:
    """Page B2h."""
    body = payload(data, LOGICAL_BLOCK_PROVISIONING)
    if len(body) < 2:
        return Provisioning()
    flags = body[1]
    return Provisioning(
        unmap=bool(flags & 0x80), write_same_unmap=bool(flags & 0x40), reads_zeroes=bool(flags & 0x1C)
    )
