# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that read and write blocks (SBC-3 chapter 5)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.call import Call
from blockfleet_testtarget.scsi.sense import CheckCondition, Key, Sense, illegal_field, illegal_parameter
from blockfleet_testtarget.scsi.unit import LogicalUnit, Result

FUA = 0x08
PROTECT = 0xE0
NDOB, UNMAP, ANCHOR = 0x01, 0x08, 0x10
BYTE_CHECK = 0x06

Extent = Callable[[bytes], tuple[int, int]]
_EXTENT_10 = struct.Struct(">2xIxH")
_EXTENT_12 = struct.Struct(">2xII")
_EXTENT_16 = struct.Struct(">2xQI")


def extent_6(cdb: bytes) -> tuple[int, int]:
    """LBA and blocks of a 6-byte CDB, where 0 stands for 256 blocks."""
    return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256


def extent_10(cdb: bytes) -> tuple[int, int]:
    """LBA and blocks of a 10-byte CDB."""
    lba, count = _EXTENT_10.unpack_from(cdb)
    return lba, count


def extent_12(cdb: bytes) -> tuple[int, int]:
    """LBA and blocks of a 12-byte CDB."""
    lba, count = _EXTENT_12.unpack_from(cdb)
    return lba, count


def extent_16(cdb: bytes) -> tuple[int, int]:
    """LBA and blocks of a 16-byte CDB."""
    lba, count = _EXTENT_16.unpack_from(cdb)
    return lba, count


def extent_compare(cdb: bytes) -> tuple[int, int]:
    """LBA and blocks of COMPARE AND WRITE."""
    return int.from_bytes(cdb[2:10], "big"), cdb[13]


EXTENTS: dict[int, Extent] = {6: extent_6, 10: extent_10, 12: extent_12, 16: extent_16}


def check_extent(unit: LogicalUnit, lba: int, count: int) -> None:
    """Raise CheckCondition unless the blocks exist and are not too many for one command."""
    if unit.stopped:
        raise CheckCondition(conditions.STOPPED)
    if lba + count > unit.blocks or lba >= unit.blocks:
        raise CheckCondition(conditions.OUT_OF_RANGE)


def check_transfer(unit: LogicalUnit, lba: int, count: int) -> None:
    """Like check_extent, and refuse more than MAXIMUM TRANSFER LENGTH."""
    check_extent(unit, lba, count)
    if count > unit.medium.max_transfer:
        raise illegal_field(2)


def check_writable(unit: LogicalUnit) -> None:
    """Raise CheckCondition on a write-protected unit."""
    if unit.medium.read_only:
        raise CheckCondition(conditions.WRITE_PROTECTED)


def read(extent: Extent) -> Callable[[Call], Result]:
    """READ of one CDB length."""
    checks_flags = extent is not extent_6

    def run(call: Call) -> Result:
        unit = call.unit
        lba, count = extent(call.cdb)
        if checks_flags and call.cdb[1] & PROTECT:
            raise illegal_field(1)
        check_transfer(unit, lba, count)
        size = unit.medium.block_size
        return Result(data=unit.backing.read(lba * size, count * size))

    return run


def write_length(extent: Extent) -> Callable[[Call], int]:
    """Bytes of Data-Out that a WRITE of one CDB length needs; raises CheckCondition."""
    checks_flags = extent is not extent_6

    def length(call: Call) -> int:
        lba, count = extent(call.cdb)
        if checks_flags and call.cdb[1] & PROTECT:
            raise illegal_field(1)
        check_transfer(call.unit, lba, count)
        check_writable(call.unit)
        return count * call.unit.medium.block_size

    return length


def write(extent: Extent) -> Callable[[Call], Result]:
    """WRITE of one CDB length, and WRITE AND VERIFY. Only whole blocks of the data are stored."""
    checks_flags = extent is not extent_6

    def run(call: Call) -> Result:
        unit = call.unit
        size = unit.medium.block_size
        whole = len(call.data) // size * size
        if whole:
            unit.backing.write(extent(call.cdb)[0] * size, call.data[:whole])
        if not unit.medium.write_cache or (checks_flags and call.cdb[1] & FUA):
            unit.backing.flush()
        return Result()

    return run


def or_write(extent: Extent) -> Callable[[Call], Result]:
    """ORWRITE: store the bitwise OR of what is there and what came (SBC-3 5.7)."""

    def run(call: Call) -> Result:
        size = call.unit.medium.block_size
        whole = len(call.data) // size * size
        stored = call.unit.backing.read(extent(call.cdb)[0] * size, whole)
        both = int.from_bytes(stored, "big") | int.from_bytes(call.data[:whole], "big")
        call.data = both.to_bytes(whole, "big")
        return store(call)

    store = write(extent)
    return run


def verify_length(extent: Extent) -> Callable[[Call], int]:
    """Bytes of Data-Out of a VERIFY: as BYTCHK says."""

    def length(call: Call) -> int:
        lba, count = extent(call.cdb)
        check = call.cdb[1] & BYTE_CHECK
        if call.cdb[1] & PROTECT or check == 0x04:
            raise illegal_field(1)
        check_transfer(call.unit, lba, count)
        blocks = {0x00: 0, 0x02: count, 0x06: min(count, 1)}[check]
        return blocks * call.unit.medium.block_size

    return length


def verify(extent: Extent) -> Callable[[Call], Result]:
    """VERIFY, comparing with Data-Out where BYTCHK asks for it."""

    def run(call: Call) -> Result:
        unit = call.unit
        lba, count = extent(call.cdb)
        size = unit.medium.block_size
        if not call.data or not count:
            return Result()
        wanted = bytes(call.data)
        if call.cdb[1] & BYTE_CHECK == 0x06:
            wanted *= count
        compare(unit.backing.read(lba * size, len(wanted)), wanted)
        return Result()

    return run


def compare(stored: bytes, wanted: bytes) -> None:
    """Raise CheckCondition MISCOMPARE with the offset of the first difference."""
    if stored == wanted:
        return
    offset = next(index for index, (a, b) in enumerate(zip(stored, wanted, strict=False)) if a != b)
    raise CheckCondition(Sense(Key.MISCOMPARE, 0x1D, 0x00, information=offset))


def synchronize(extent: Extent) -> Callable[[Call], Result]:
    """SYNCHRONIZE CACHE; the whole medium is flushed whatever the range."""

    def run(call: Call) -> Result:
        lba, count = extent(call.cdb)
        if lba > call.unit.blocks or lba + count > call.unit.blocks:
            raise CheckCondition(conditions.OUT_OF_RANGE)
        call.unit.backing.flush()
        return Result()

    return run


def prefetch(extent: Extent) -> Callable[[Call], Result]:
    """PRE-FETCH: there is no cache to fill, so the range is checked and CONDITION MET given."""

    def run(call: Call) -> Result:
        check_extent(call.unit, *extent(call.cdb))
        return Result(status=conditions.Status.CONDITION_MET)

    return run


def compare_length(call: Call) -> int:
    """Bytes of Data-Out of COMPARE AND WRITE: what to compare, then what to write."""
    lba, count = extent_compare(call.cdb)
    if call.cdb[1] & PROTECT:
        raise illegal_field(1)
    if count > call.unit.medium.max_compare:
        raise illegal_field(13)
    check_extent(call.unit, lba, count)
    check_writable(call.unit)
    return 2 * count * call.unit.medium.block_size


def compare_and_write(call: Call) -> Result:
    """COMPARE AND WRITE (SBC-3 5.2)."""
    lba, count = extent_compare(call.cdb)
    unit, half = call.unit, count * call.unit.medium.block_size
    data = bytes(call.data)
    offset = lba * unit.medium.block_size
    compare(unit.backing.read(offset, half), data[:half])
    unit.backing.write(offset, data[half:])
    return Result()


def write_same_length(extent: Extent) -> Callable[[Call], int]:
    """Bytes of Data-Out of WRITE SAME: one block, or none with NDOB."""

    def length(call: Call) -> int:
        unit, flags = call.unit, call.cdb[1]
        lba, count = extent(call.cdb)
        long = extent is extent_16
        if flags & (PROTECT | ANCHOR) or (flags & UNMAP and not unit.medium.thin):
            raise illegal_field(1)
        if not long and flags & NDOB:
            raise illegal_field(1)
        if not count or count > unit.medium.max_write_same:
            raise illegal_field(10 if long else 7)
        check_extent(unit, lba, count)
        check_writable(unit)
        return 0 if flags & NDOB else unit.medium.block_size

    return length


def write_same(extent: Extent) -> Callable[[Call], Result]:
    """WRITE SAME: a block of zeros frees the range on a thin unit when UNMAP is set."""

    def run(call: Call) -> Result:
        unit = call.unit
        lba, count = extent(call.cdb)
        size = unit.medium.block_size
        block = bytes(call.data)
        if not any(block):
            unit.backing.zero(lba * size, count * size)
            return Result()
        piece = block * min(count, 256)
        done = 0
        while done < count:
            blocks = min(256, count - done)
            unit.backing.write((lba + done) * size, memoryview(piece)[: blocks * size])
            done += blocks
        return Result()

    return run


def unmap_length(call: Call) -> int:
    """Bytes of Data-Out of UNMAP."""
    if call.cdb[1] & 0x01:  # ANCHOR
        raise illegal_field(1)
    check_writable(call.unit)
    length: int = struct.unpack_from(">H", call.cdb, 7)[0]
    return length


def unmap(call: Call) -> Result:
    """UNMAP (SBC-3 5.28): nothing is changed unless every descriptor is in order."""
    unit, data = call.unit, bytes(call.data)
    if not data:
        return Result()
    if len(data) < 8:
        raise CheckCondition(conditions.PARAMETER_LENGTH)
    length = min(struct.unpack_from(">H", data, 2)[0], len(data) - 8) // 16 * 16
    extents = [struct.unpack_from(">QI", data, 8 + offset) for offset in range(0, length, 16)]
    if len(extents) > 256 or sum(count for _, count in extents) > unit.medium.max_unmap:
        raise illegal_parameter(2)
    for lba, count in extents:
        if lba + count > unit.blocks:
            raise CheckCondition(conditions.OUT_OF_RANGE)
    for lba, count in extents:
        if count:
            unit.backing.zero(lba * unit.medium.block_size, count * unit.medium.block_size)
    return Result()


def read_capacity_10(call: Call) -> Result:
    """READ CAPACITY (10)."""
    if not call.cdb[8] & 1 and any(call.cdb[2:6]):
        raise illegal_field(2)
    last = min(call.unit.blocks - 1, 0xFFFFFFFF)
    return Result(data=struct.pack(">II", last, call.unit.medium.block_size))


def read_capacity_16(call: Call) -> Result:
    """READ CAPACITY (16)."""
    medium = call.unit.medium
    thin = 0xC000 if medium.thin else 0  # LBPME, LBPRZ
    data = struct.pack(">QIBBH", call.unit.blocks - 1, medium.block_size, 0, medium.physical_exponent, thin)
    length = struct.unpack_from(">I", call.cdb, 10)[0]
    return Result(data=data.ljust(32, b"\0")[:length])
