# SPDX-License-Identifier: GPL-3.0-or-later
"""INQUIRY with its vital product data pages, and REPORT LUNS (SPC-4 6.6, 6.33, 7.8; SBC-3 6.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from blockfleet_testtarget.scsi.call import Call
from blockfleet_testtarget.scsi.sense import illegal_field
from blockfleet_testtarget.scsi.unit import Result

VERSIONS = (0x00A0, 0x0960, 0x0460, 0x04C0)  # SAM-5, iSCSI, SPC-4, SBC-3
ABSENT = 0x7F  # peripheral qualifier 3, type 1Fh
CODE_BINARY, CODE_ASCII, CODE_UTF8 = 1, 2, 3
OF_UNIT, OF_PORT, OF_TARGET = 0x00, 0x10, 0x20
ISCSI = 0x50  # protocol identifier 5 in the upper half of byte 0
WELL_KNOWN_REPORT_LUNS = 0xC101000000000000


def _text(value: str, length: int) -> bytes:
    return value.encode("ascii", "replace")[:length].ljust(length)


def standard(call: Call) -> bytes:
    """Return standard INQUIRY data of 96 bytes."""
    identity = call.unit.identity
    tpgs = 0x30
    head = struct.pack(">BBBBBBBB", 0, 0, 6, 0x12, 96 - 5, tpgs, 0, 0x02)
    names = _text(identity.vendor, 8) + _text(identity.product, 16) + _text(identity.revision, 4)
    versions = b"".join(struct.pack(">H", code) for code in VERSIONS)
    return (head + names + bytes(22) + versions).ljust(96, b"\0")


def absent_unit(cdb: bytes) -> bytes:
    """Return INQUIRY data of a LUN that has no logical unit; raises CheckCondition."""
    if cdb[1] & 1:
        raise illegal_field(1)
    head = struct.pack(">BBBBBBBB", ABSENT, 0, 6, 0x12, 96 - 5, 0, 0, 0x02)
    return (head + b" " * 28).ljust(96, b"\0")


def inquiry(call: Call) -> Result:
    """INQUIRY."""
    evpd, code, length = call.cdb[1] & 1, call.cdb[2], struct.unpack_from(">H", call.cdb, 3)[0]
    if not evpd:
        if code:
            raise illegal_field(2)
        return Result(data=standard(call)[:length])
    page = PAGES.get(code)
    if page is None:
        raise illegal_field(2)
    body = page(call)
    return Result(data=(struct.pack(">BBH", 0, code, len(body)) + body)[:length])


def _supported(_: Call) -> bytes:
    return bytes(sorted(PAGES))


def _serial(call: Call) -> bytes:
    return call.unit.identity.serial.encode("ascii", "replace")


def _designator(code_set: int, kind: int, value: bytes, association: int) -> bytes:
    first = code_set | (ISCSI if association != OF_UNIT else 0)
    piv = 0x80 if association != OF_UNIT else 0
    return struct.pack(">BBBB", first, piv | association | kind, 0, len(value)) + value


def _identification(call: Call) -> bytes:
    unit, port = call.unit, call.nexus.port
    identity = unit.identity
    vendor = _text(identity.vendor, 8) + identity.serial.encode("ascii", "replace")
    name = port.name.encode() + b"\0"
    target = port.target.encode() + b"\0"
    return b"".join(
        (
            _designator(CODE_BINARY, 3, identity.naa, OF_UNIT),
            _designator(CODE_ASCII, 1, vendor, OF_UNIT),
            _designator(CODE_BINARY, 4, struct.pack(">HH", 0, port.relative_id), OF_PORT),
            _designator(CODE_BINARY, 5, struct.pack(">HH", 0, port.access_group), OF_PORT),
            _designator(CODE_UTF8, 8, name + bytes(-len(name) & 3), OF_PORT),
            _designator(CODE_UTF8, 8, target + bytes(-len(target) & 3), OF_TARGET),
        )
    )


def _block_limits(call: Call) -> bytes:
    medium = call.unit.medium
    thin = medium.thin
    return struct.pack(
        ">BBHIIIIIIIQ",
        0x01,  # WSNZ: WRITE SAME of zero blocks is refused
        medium.max_compare,
        1 << medium.physical_exponent,
        medium.max_transfer,
        min(medium.max_transfer, 2048),
        0,
        medium.max_unmap if thin else 0,
        256 if thin else 0,
        1 << medium.physical_exponent if thin else 0,
        0x80000000 if thin else 0,  # alignment valid, 0
        medium.max_write_same,
    ).ljust(60, b"\0")


def _characteristics(_: Call) -> bytes:
    return struct.pack(">HBB", 1, 0, 5).ljust(60, b"\0")  # does not rotate, 2.5 inch... nominal form factor


def _provisioning(call: Call) -> bytes:
    if not call.unit.medium.thin:
        return struct.pack(">BBBB", 0, 0, 0, 0)
    return struct.pack(">BBBB", 0, 0xE4, 2, 0)  # LBPU, LBPWS, LBPWS10, LBPRZ; thin


PAGES: dict[int, Callable[[Call], bytes]] = {
    0x00: _supported,
    0x80: _serial,
    0x83: _identification,
    0xB0: _block_limits,
    0xB1: _characteristics,
    0xB2: _provisioning,
}


def lun_field(lun: int) -> bytes:
    """Return a LUN as its eight bytes: peripheral addressing below 256, flat below 16384 (SAM-5 4.7)."""
    if lun < 256:
        return struct.pack(">H6x", lun)
    if lun < 16384:
        return struct.pack(">H6x", 0x4000 | lun)
    return struct.pack(">BBH4x", 0xD2, 0, lun & 0xFFFF) if lun < 65536 else struct.pack(">Q", lun)


def lun_number(field: bytes) -> int:
    """Return the number in a LUN field; what is no single-level address comes back as all 64 bits."""
    method = field[0] >> 6
    if method in (0, 1) and not any(field[2:]):
        return int.from_bytes(field[:2], "big") & 0x3FFF
    if field[0] == 0xD2 and not any(field[4:]):
        return int.from_bytes(field[1:4], "big")
    return int.from_bytes(field, "big")


def report_luns(cdb: bytes, luns: list[int]) -> Result:
    """REPORT LUNS; the same whatever LUN it is sent to."""
    select, length = cdb[2], struct.unpack_from(">I", cdb, 6)[0]
    if length < 16:
        raise illegal_field(6)
    if select == 1:
        luns = []
    elif select not in (0, 2):
        raise illegal_field(2)
    fields = b"".join(lun_field(lun) for lun in luns)
    return Result(data=(struct.pack(">I4x", len(fields)) + fields)[:length])
