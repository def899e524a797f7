# SPDX-License-Identifier: GPL-3.0-or-later
"""The SCSI side of the target, over the wire (SPC-4, SBC-3, SAM-5)."""

from __future__ import annotations

import struct

import pytest

NAA = "600140512345678900000000000000aa"
CHECK = 0x02


def inquiry(page=None, length=255):
    return struct.pack(">BBBHB", 0x12, 0 if page is None else 1, page or 0, length, 0)


def report_luns(length=256, select=0):
    return struct.pack(">BxB3xI2x", 0xA0, select, length)


def report_groups(length=256):
    return struct.pack(">BB4xI2x", 0xA3, 0x0A, length)


async def test_power_on_is_told_once_to_every_new_nexus(start, session):
    target = await start(login_attention=True)
    one = await session(target)
    assert (await one.run(inquiry(), read=255))[0] == 0
    status, _, answer = await one.run(bytes(6))
    assert (status, answer.sense) == (CHECK, (6, 0x29, 0x00))
    assert (await one.run(bytes(6)))[0] == 0


async def test_request_sense_takes_the_unit_attention(start, session):
    one = await session(await start(login_attention=True))
    _, data, _ = await one.run(bytes([0x03, 0, 0, 0, 18, 0]), read=18)
    assert (data[2] & 15, data[12], data[13]) == (6, 0x29, 0x00)
    assert (await one.run(bytes(6)))[0] == 0


async def test_standard_inquiry(start, session):
    one = await session(await start(unit={"vendor": "ACME", "product": "Disk of tests"}))
    _, data, _ = await one.run(inquiry(), read=255)
    assert data[0] == 0
    assert data[4] == len(data) - 5
    assert data[5] >> 4 & 3 == 3  # implicit and explicit ALUA
    assert data[8:32] == b"ACME    Disk of tests   "


async def test_identity_is_a_designator_of_the_unit(start, session):
    one = await session(await start(unit={"naa": NAA, "serial": "S123"}))
    _, data, _ = await one.run(inquiry(0x83), read=255)
    designators = {}
    offset = 4
    while offset < len(data):
        key = (data[offset + 1] >> 4 & 3, data[offset + 1] & 15)
        designators[key] = data[offset + 4 : offset + 4 + data[offset + 3]]
        offset += 4 + data[offset + 3]
    assert designators[0, 3].hex() == NAA
    assert designators[1, 4] == struct.pack(">HH", 0, 1)
    assert designators[1, 5] == struct.pack(">HH", 0, 1)
    assert designators[1, 8].rstrip(b"\0") == b"iqn.2026-11.com.example:disk,t,0x0001"
    _, data, _ = await one.run(inquiry(0x80), read=255)
    assert data[4:] == b"S123"


async def test_pages_are_listed(start, session):
    one = await session(await start())
    _, data, _ = await one.run(inquiry(0x00), read=255)
    assert list(data[4:]) == [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    status, _, answer = await one.run(inquiry(0x99), read=255)
    assert (status, answer.sense) == (CHECK, (5, 0x24, 0x00))


async def test_lun_0_may_be_absent(start, session):
    one = await session(await start(target={"luns": {1: "disk", 300: "disk"}}))
    _, data, _ = await one.run(report_luns(), read=256)
    assert data == struct.pack(">I4xH6xH6x", 16, 0x0001, 0x4000 | 300)
    _, data, _ = await one.run(inquiry(), read=255)
    assert data[0] == 0x7F
    status, _, answer = await one.run(bytes(6))
    assert (status, answer.sense) == (CHECK, (5, 0x25, 0x00))
    assert (await one.run(bytes(6), lun=1))[0] == 0
    assert (await one.run(bytes(6), lun=0x4000 | 300))[0] == 0


@pytest.mark.parametrize(
    ("unit", "shown"),
    [
        ({"size": "8M"}, (16383, 512, 0, 0xC0)),
        ({"size": "8M", "block_size": 4096, "thin": False}, (2047, 4096, 0, 0)),
        ({"size": "8M", "physical_exponent": 3}, (16383, 512, 3, 0xC0)),
        ({"size": "4T"}, (8589934591, 512, 0, 0xC0)),
    ],
    ids=["512", "4Kn", "512e", "4 TiB"],
)
async def test_capacity(start, session, unit, shown):
    one = await session(await start(unit=unit))
    _, data, _ = await one.run(struct.pack(">BB8xI2x", 0x9E, 0x10, 32), read=32)
    last, size = struct.unpack_from(">QI", data)
    assert (last, size, data[13], data[14]) == shown
    _, data, _ = await one.run(bytes([0x25]), read=8)
    assert struct.unpack(">II", data) == (min(shown[0], 0xFFFFFFFF), shown[1])


@pytest.mark.parametrize("cache", [True, False], ids=["WCE", "no WCE"])
@pytest.mark.parametrize("read_only", [True, False], ids=["WP", "no WP"])
async def test_mode_pages_show_cache_and_protection(start, session, cache, read_only):
    one = await session(await start(unit={"write_cache": cache, "read_only": read_only}))
    for cdb, page_at, device_at in (
        (bytes([0x1A, 0x08, 0x08, 0, 255]), 4, 2),
        (struct.pack(">BBBxxxxHB", 0x5A, 0x08, 0x08, 255, 0), 8, 3),
    ):
        _, data, _ = await one.run(cdb, read=255)
        assert bool(data[device_at] & 0x80) == read_only
        assert data[device_at] & 0x10
        assert data[page_at] == 0x08
        assert bool(data[page_at + 2] & 0x04) == cache


async def test_write_protected_unit_refuses_writes(start, session, wire):
    target = await start(unit={"read_only": True})
    one = await session(target)
    one.command(wire.write10(0, 1), write=512, data=b"x" * 512)
    answer = await one.status()
    assert answer.sense == (7, 0x27, 0x00)
    assert target.units["disk"].backing.read(0, 512) == bytes(512)


async def test_reservation_conflict(start, session, wire):
    target = await start()
    one = await session(target)
    other = await session(target, isid=bytes.fromhex("800000020000"))
    assert (await one.run(bytes([0x16])))[0] == 0
    assert (await other.run(bytes(6)))[0] == 0x18
    assert (await one.run(bytes([0x17])))[0] == 0
    assert (await other.run(bytes(6)))[0] == 0


async def test_access_states_of_a_unit_that_two_portal_groups_show(start, session):
    target = await start(portals=["127.0.0.1:0", {"group": 2}])
    one, two = await session(target), await session(target, portal=1)
    unit = target.units["disk"]
    from blockfleet_testtarget.scsi.alua import Access

    unit.set_access(2, Access.STANDBY)
    for each in (one, two):
        _, data, answer = await each.run(report_groups(), read=256)
        assert answer.sense == (6, 0x2A, 0x06)
    _, data, _ = await two.run(report_groups(), read=256)
    assert data == struct.pack(">I", 24) + b"".join(
        struct.pack(">BBHBBBBHH", state, 0xCF, group, 0, 0, 0, 1, 0, group) for state, group in ((0, 1), (2, 2))
    )
    assert (await one.run(bytes(6)))[0] == 0
    status, _, answer = await two.run(bytes(6))
    assert (status, answer.sense) == (CHECK, (2, 0x04, 0x0B))


async def test_set_target_port_groups(start, session):
    target = await start(portals=["127.0.0.1:0", {"group": 2}])
    one = await session(target)
    data = struct.pack(">4xBxH", 1, 2)
    one.command(struct.pack(">BB4xI2x", 0xA4, 0x0A, len(data)), write=len(data), data=data)
    assert (await one.status()).byte3 == 0
    assert (await one.run(report_groups(), read=256))[1][16:18] == b"\x01\xcf"


async def test_unmap_and_write_same_leave_zeros(start, session):
    target = await start()
    backing = target.units["disk"].backing
    backing.write(0, b"\xff" * 65536)
    one = await session(target)
    unmap = struct.pack(">HH4xQI4x", 22, 16, 1, 64)
    one.command(struct.pack(">B6xHx", 0x42, len(unmap)), write=len(unmap), data=unmap)
    assert (await one.status()).byte3 == 0
    assert backing.read(0, 65536) == b"\xff" * 512 + bytes(64 * 512) + b"\xff" * (65536 - 65 * 512)
    one.command(struct.pack(">BBQIxx", 0x93, 0x08, 120, 4), write=512, data=bytes(512))
    assert (await one.status()).byte3 == 0
    assert backing.read(119 * 512, 6 * 512) == b"\xff" * 512 + bytes(4 * 512) + b"\xff" * 512


async def test_compare_and_write(start, session):
    target = await start()
    one = await session(target)
    cdb = struct.pack(">BBQ3xB2x", 0x89, 0, 5, 1)
    one.command(cdb, write=1024, data=bytes(512) + b"new" + bytes(509))
    assert (await one.status()).byte3 == 0
    one.command(cdb, write=1024, data=b"nex" + bytes(509) + b"?" * 512)
    answer = await one.status()
    assert answer.sense == (0x0E, 0x1D, 0x00)
    assert struct.unpack_from(">I", answer.data, 2 + 3)[0] == 2
    assert target.units["disk"].backing.read(5 * 512, 3) == b"new"


async def test_file_unit_keeps_what_was_written(start, session, wire, tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    target = await start(unit={"kind": "file", "path": str(path), "size": 0})
    one = await session(target)
    one.command(wire.write10(1, 1, flags=0x08), write=512, data=b"kept" * 128)
    assert (await one.status()).byte3 == 0
    assert path.read_bytes()[512:1024] == b"kept" * 128
