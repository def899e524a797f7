# SPDX-License-Identifier: GPL-3.0-or-later
"""MODE SENSE and MODE SELECT, 6 and 10 (SPC-4 6.9 to 6.12; SBC-3 6.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.call import Call
from blockfleet_testtarget.scsi.sense import CheckCondition, illegal_field, illegal_parameter
from blockfleet_testtarget.scsi.unit import LogicalUnit, Result

CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)
ALL_PAGES = 0x3F
WRITE_PROTECT, DPO_FUA = 0x80, 0x10
WCE = 0x04


def _caching(unit: LogicalUnit, control: int) -> bytes:
    if control == CHANGEABLE:
        return bytes([0x08, 18, WCE]).ljust(20, b"\0")
    return bytes([0x08, 18, WCE if unit.medium.write_cache else 0]).ljust(20, b"\0")


def _control(_: LogicalUnit, control: int) -> bytes:
    if control == CHANGEABLE:
        return bytes([0x0A, 10]).ljust(12, b"\0")
    # QUEUE ALGORITHM MODIFIER 1: unrestricted reordering; BUSY TIMEOUT unlimited.
    return bytes([0x0A, 10, 0, 0x10, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0])


def _informational(_: LogicalUnit, control: int) -> bytes:
    if control == CHANGEABLE:
        return bytes([0x1C, 10]).ljust(12, b"\0")
    return bytes([0x1C, 10, 0x08]).ljust(12, b"\0")  # DEXCPT


PAGES: dict[int, Callable[[LogicalUnit, int], bytes]] = {
    0x08: _caching,
    0x0A: _control,
    0x1C: _informational,
}


def _pages(call: Call) -> bytes:
    control, code, subpage = call.cdb[2] >> 6, call.cdb[2] & 0x3F, call.cdb[3]
    if control == SAVED:
        raise CheckCondition(conditions.NO_SAVED_PAGES)
    if subpage not in (0, 0xFF):
        raise illegal_field(3)
    if code == ALL_PAGES:
        return b"".join(page(call.unit, control) for _, page in sorted(PAGES.items()))
    if code not in PAGES or subpage:
        raise illegal_field(2)
    return PAGES[code](call.unit, control)


def _device_parameter(unit: LogicalUnit) -> int:
    return DPO_FUA | (WRITE_PROTECT if unit.medium.read_only else 0)


def _descriptor(call: Call, *, long: bool) -> bytes:
    if call.cdb[1] & 0x08:  # DBD
        return b""
    unit = call.unit
    if long:
        return struct.pack(">QII", unit.blocks, 0, unit.medium.block_size)
    return struct.pack(">II", min(unit.blocks, 0xFFFFFFFF), unit.medium.block_size)


def mode_sense_6(call: Call) -> Result:
    """MODE SENSE (6)."""
    pages, descriptor = _pages(call), _descriptor(call, long=False)
    body = descriptor + pages
    head = struct.pack(">BBBB", 3 + len(body), 0, _device_parameter(call.unit), len(descriptor))
    return Result(data=(head + body)[: call.cdb[4]])


def mode_sense_10(call: Call) -> Result:
    """MODE SENSE (10)."""
    long = bool(call.cdb[1] & 0x10)
    pages, descriptor = _pages(call), _descriptor(call, long=long)
    body = descriptor + pages
    head = struct.pack(">HBBBBH", 6 + len(body), 0, _device_parameter(call.unit), int(long), 0, len(descriptor))
    return Result(data=(head + body)[: struct.unpack_from(">H", call.cdb, 7)[0]])


def mode_select_6(call: Call) -> Result:
    """MODE SELECT (6)."""
    return _select(call, head=4, descriptor=call.data[3] if len(call.data) > 3 else 0)


def mode_select_10(call: Call) -> Result:
    """MODE SELECT (10)."""
    data = bytes(call.data)
    return _select(call, head=8, descriptor=struct.unpack_from(">H", data, 6)[0] if len(data) > 7 else 0)


def _select(call: Call, *, head: int, descriptor: int) -> Result:
    data = bytes(call.data)
    if not data:
        return Result()
    if not call.cdb[1] & 0x10 or call.cdb[1] & 0x01:  # PF is needed, SP is not there
        raise illegal_field(1)
    offset = head + descriptor
    if offset > len(data):
        raise CheckCondition(conditions.PARAMETER_LENGTH)
    wanted: list[bytes] = []
    while offset < len(data):
        page = PAGES.get(data[offset] & 0x3F)
        if page is None or data[offset] & 0x40:
            raise illegal_parameter(offset)
        current = page(call.unit, CURRENT)
        content = data[offset : offset + len(current)]
        if len(content) != len(current) or content[1] != current[1]:
            raise CheckCondition(conditions.PARAMETER_LENGTH)
        mask = page(call.unit, CHANGEABLE)
        for index in range(2, len(current)):
            if (content[index] ^ current[index]) & ~mask[index]:
                raise illegal_parameter(offset + index)
        wanted.append(content)
        offset += len(current)
    for content in wanted:
        _apply(call, content)
    return Result()


def _apply(call: Call, content: bytes) -> None:
    if content[0] & 0x3F != 0x08:
        return
    enabled = bool(content[2] & WCE)
    if enabled != call.unit.medium.write_cache:
        call.unit.backing.flush()
        call.unit.medium.write_cache = enabled
        call.unit.attention(conditions.MODE_CHANGED, but=call.nexus)
