# SPDX-License-Identifier: GPL-3.0-or-later
"""INQUIRY, VPD, capacity, mode and ALUA parameter data: as tgt 1.0.85 sent them, and by the standards' tables."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.scsi import alua, capacity, designation, inquiry, mode, vpd
from blockfleet.scsi.alua import AccessState
from blockfleet.scsi.vpd import Designator

TGT_CONTROLLER = bytes.fromhex(
    "0c0005123d0000024945542020202020436f6e74726f6c6c657220202020202030303031" + "00" * 22 + "04c009600300"
)
TGT_DISK = bytes.fromhex(
    "000005123d00000249455420202020205649525455414c2d4449534b2020202030303031" + "00" * 22 + "04c009600300"
)
TGT_PAGES = bytes.fromhex("00000006008083b0b1b2")
TGT_SERIAL = bytes.fromhex("00800024" + "20" * 30 + "626561663131")
TGT_NAMED_SERIAL = bytes.fromhex("00800024" + "20" * 32 + "534e3432")
TGT_IDENTIFICATION = bytes.fromhex(
    "00830048"
    "02010024"
    "49455420202020203030303130303031" + "00" * 20 + "01030008"
    "3000000100000001"
    "01030010"
    "60000000000000000e00000000010001"
)
TGT_NAMED_IDENTIFICATION = bytes.fromhex(
    "00830048"
    "02010024"
    "61636d6530303031" + "00" * 28 + "01030008"
    "3000000100000002"
    "01030010"
    "60000000000000000000"
    "0000ac0e0001"
)
TGT_LIMITS = bytes.fromhex("00b0003c0080" + "00" * 58)
TGT_THIN_LIMITS = bytes.fromhex("00b0003c0080" + "00" * 14 + "ffffffffffffffff" + "00" * 36)
TGT_THIN = bytes.fromhex("00b2000400e40200")
TGT_MODE = bytes.fromhex(
    "610010000000020e8080000a0000000000000000000008121400ffff0000ffffffff80140000000000000a0a0210000000"
    "00000002004a01001c0400000000000000000000000000000000000000000000000000001c0a08000000000000000000"
)
TGT_CAPACITY_10 = bytes.fromhex("0001ffff00000200")
TGT_CAPACITY_16 = bytes.fromhex("000000000002ffff000002000003c000" + "00" * 16)


def test_inquiry_of_a_disk() -> None:
    parsed = inquiry.parse(TGT_DISK)
    assert parsed is not None
    assert (parsed.vendor, parsed.product, parsed.revision) == ("IET", "VIRTUAL-DISK", "0001")
    assert (parsed.device_type, parsed.is_present, parsed.is_management) == (0, True, False)
    assert (parsed.version, parsed.target_port_groups) == (5, 0)


def test_inquiry_of_tgts_controller_is_no_disk() -> None:
    parsed = inquiry.parse(TGT_CONTROLLER)
    assert parsed is not None
    assert parsed.device_type == 0x0C


@pytest.mark.parametrize(
    ("vendor", "product", "management"),
    [
        (b"DGC     ", b"LUNZ            ", True),
        (b"DELL    ", b"Universal Xport ", True),
        (b"DGC     ", b"VRAID           ", False),
        (b"ACME    ", b"LUNZ            ", False),
    ],
)
def test_management_units_are_known(vendor: bytes, product: bytes, management: bool) -> None:
    parsed = inquiry.parse(bytes(8) + vendor + product + b"0001")
    assert parsed is not None
    assert parsed.is_management is management


@pytest.mark.parametrize(
    ("first", "tpgs", "present", "groups"),
    [(0x00, 0x30, True, 3), (0x20, 0x10, False, 1), (0x7F, 0x00, False, 0), (0x1F, 0x20, False, 2)],
)
def test_qualifier_type_and_tpgs(first: int, tpgs: int, present: bool, groups: int) -> None:
    parsed = inquiry.parse(bytes([first, 0, 6, 2, 31, tpgs]) + bytes(30))
    assert parsed is not None
    assert (parsed.is_present, parsed.target_port_groups) == (present, groups)


def test_inquiry_text_cannot_carry_control_characters() -> None:
    parsed = inquiry.parse(bytes(8) + b"EV\x1b[2J\n\xff" + b"x" * 16 + b"1\0\0\0")
    assert parsed is not None
    assert parsed.vendor == "EV?[2J??"


def test_short_inquiry() -> None:
    assert inquiry.parse(b"\0\0\0\0") is None
    short = inquiry.parse(b"\0\0\5\2\0")
    assert short is not None
    assert short.vendor == ""


def test_vpd_00_and_80_of_tgt() -> None:
    assert vpd.supported_pages(TGT_PAGES) == {0, 0x80, 0x83, 0xB0, 0xB1, 0xB2}
    assert vpd.serial_number(TGT_SERIAL) == "beaf11"
    assert vpd.serial_number(TGT_NAMED_SERIAL) == "SN42"


def test_a_page_that_was_not_asked_for_is_empty() -> None:
    assert vpd.payload(TGT_PAGES, vpd.UNIT_SERIAL_NUMBER) == b""
    assert vpd.designators(TGT_THIN) == ()


def test_vpd_83_of_tgts_default_unit_is_weak() -> None:
    """tgt numbers its units alike on every host."""
    found = vpd.designators(TGT_IDENTIFICATION)
    assert [d.type for d in found] == [1, 3, 3]
    identity = designation.strongest(found)
    assert identity == "naa.60000000000000000e00000000010001"
    assert designation.is_weak(identity)


def test_vpd_83_of_a_named_tgt_unit_is_its_name() -> None:
    identity = designation.strongest(vpd.designators(TGT_NAMED_IDENTIFICATION))
    assert identity == "t10.acme0001"
    assert not designation.is_weak(identity)


IDENTITIES = [
    (3, bytes.fromhex("6001405a1b2c3d4e5f60718293a4b5c6"), "naa.6001405a1b2c3d4e5f60718293a4b5c6", False),
    (3, bytes.fromhex("5000c50012345678"), "naa.5000c50012345678", False),
    (3, bytes.fromhex("3000000100000001"), "naa.3000000100000001", True),
    (3, bytes.fromhex("6001405a1b2c3d4e"), "", True),
    (2, bytes.fromhex("0011223344556677"), "eui.0011223344556677", False),
    (2, bytes(8), "eui.0000000000000000", True),
    (2, bytes(7), "", True),
    (10, bytes.fromhex("10000123456789abcdef0123456789abcdef"), "uuid.01234567-89ab-cdef-0123-456789abcdef", False),
    (8, b"iqn.2026-11.example:lu7\0\0\0", "scsi-name.iqn.2026-11.example:lu7", False),
    (1, b"IET     00010001\0\0\0\0", "t10.IET_____00010001", True),
    (1, b"ACME    disk_7 %", "t10.ACME____disk%5f7_%25", False),
    (1, b"ACME    \xff\n", "t10.ACME____%ff%0a", False),
    (0, b"vendor specific", "", True),
    (4, b"\0\0\0\1", "", True),
]


@pytest.mark.parametrize(("kind", "value", "expected", "weak"), IDENTITIES)
def test_identity_text(kind: int, value: bytes, expected: str, weak: bool) -> None:
    assert designation.text(Designator(0, kind, 1, value)) == expected
    assert designation.is_weak(expected) is weak


def test_identity_prefers_unique_then_naa_then_eui() -> None:
    naa6 = Designator(0, 3, 1, bytes.fromhex("6001405a1b2c3d4e5f60718293a4b5c6"))
    naa5 = Designator(0, 3, 1, bytes.fromhex("5000c50012345678"))
    eui = Designator(0, 2, 1, bytes.fromhex("0011223344556677"))
    local = Designator(0, 3, 1, bytes.fromhex("3000000100000001"))
    port = Designator(1, 3, 1, bytes.fromhex("5000c500ffffffff"))
    assert designation.strongest([port, eui, naa5, naa6]).startswith("naa.6001405")
    assert designation.strongest([port, local, eui]) == "eui.0011223344556677"
    assert designation.strongest([port]) == ""


def test_identity_fits_the_document_or_is_not_used() -> None:
    assert designation.text(Designator(0, 1, 2, b"\x01" * 100)) == ""


def test_port_designators() -> None:
    found = (Designator(1, 4, 1, b"\0\0\0\3"), Designator(1, 5, 1, b"\0\0\1\2"))
    assert vpd.relative_target_port(found) == 3
    assert vpd.target_port_group(found) == 0x102
    assert vpd.target_port_group(()) is None


def test_designators_that_are_not_whole_are_left_out() -> None:
    assert len(vpd.designators(TGT_IDENTIFICATION[:-1])) == 2
    assert vpd.designators(bytes.fromhex("00830004010300ff")) == ()


def test_block_limits_of_tgt() -> None:
    assert vpd.block_limits(TGT_LIMITS) == vpd.BlockLimits()
    thin = vpd.block_limits(TGT_THIN_LIMITS)
    assert (thin.maximum_unmap_blocks, thin.maximum_unmap_descriptors) == (0xFFFFFFFF, 0xFFFFFFFF)


def test_block_limits_by_sbc_3_table_205() -> None:
    page = struct.pack(">BBHBBHIIIIIIIQ20x", 0, 0xB0, 0x3C, 0, 1, 16, 2048, 128, 64, 4096, 32, 8, 0x80000004, 99999)
    assert vpd.block_limits(page) == vpd.BlockLimits(16, 2048, 128, 4096, 32, 8, 4, 99999)
    assert vpd.block_limits(page[:16]) == vpd.BlockLimits(16, 2048, 128)
    unaligned = page[:32] + b"\0\0\0\4" + page[36:]
    assert vpd.block_limits(unaligned).unmap_alignment == 0


@pytest.mark.parametrize(("rate", "turns"), [(0, False), (1, False), (7200, True)])
def test_block_device_characteristics(rate: int, turns: bool) -> None:
    assert vpd.is_rotational(struct.pack(">BBHH", 0, 0xB1, 0x3C, rate) + bytes(58)) is turns


def test_provisioning_of_tgt() -> None:
    assert vpd.provisioning(TGT_THIN) == vpd.Provisioning(True, True, True)
    assert vpd.provisioning(bytes.fromhex("00b2000400000000")) == vpd.Provisioning()


def test_capacity_10() -> None:
    assert capacity.parse_10(TGT_CAPACITY_10) == capacity.Capacity(131072, 512)
    assert capacity.parse_10(bytes.fromhex("ffffffff00000200")) is None
    assert capacity.parse_10(b"\0" * 7) is None


def test_capacity_16() -> None:
    parsed = capacity.parse_16(TGT_CAPACITY_16)
    assert parsed == capacity.Capacity(0x30000, 512, 3, 0, True, True, 0)
    assert parsed.size == 96 << 20
    protected = capacity.parse_16(bytes.fromhex("00000000000000ff0000100003000005" + "00" * 16))
    assert protected == capacity.Capacity(256, 4096, 0, 5, False, False, 2)
    assert capacity.parse_16(bytes(11)) is None


@pytest.mark.parametrize(
    ("size", "usable"), [(512, True), (4096, True), (520, False), (0, False), (1 << 17, False)]
)
def test_usable_block_sizes(size: int, usable: bool) -> None:
    assert capacity.Capacity(8, size).is_usable is usable


def test_mode_of_tgt() -> None:
    assert mode.parse_6(TGT_MODE) == mode.Mode(write_protected=False, dpofua=True, write_cache=True)


def test_mode_10_behind_a_block_descriptor_and_a_sub_page() -> None:
    pages = bytes([0x5A, 0x01, 0x00, 0x02, 0xAA, 0xBB]) + bytes([0x08, 0x12, 0x00]) + bytes(17)
    data = struct.pack(">HBBHH", 6 + 8 + len(pages), 0, 0x80, 0, 8) + bytes(8) + pages
    assert mode.parse_10(data) == mode.Mode(write_protected=True, dpofua=False, write_cache=False)


def test_mode_without_a_caching_page_does_not_know() -> None:
    assert mode.parse_6(bytes([3, 0, 0x10, 0])) == mode.Mode(False, True, None)
    assert mode.parse_6(b"\3\0\0") is None
    assert mode.parse_10(b"\3\0\0") is None


GROUPS = struct.pack(">BBHBBBBHHHH", 0x80, 0x8F, 1, 0, 2, 0, 2, 0, 1, 0, 2) + struct.pack(
    ">BBHBBBBHH", 0x02, 0x8F, 513, 0, 1, 0, 1, 0, 9
)


def test_rtpg_by_spc_4_table_285() -> None:
    parsed = alua.parse(struct.pack(">I", len(GROUPS)) + GROUPS)
    assert parsed.groups == (
        alua.PortGroup(1, AccessState.ACTIVE_OPTIMIZED, True, 0x8F, 2, (1, 2)),
        alua.PortGroup(513, AccessState.STANDBY, False, 0x8F, 1, (9,)),
    )
    assert parsed.transition == alua.DEFAULT_TRANSITION
    assert parsed.of(513) is parsed.groups[1]
    assert parsed.of(7) is None


def test_rtpg_extended_header() -> None:
    parsed = alua.parse(struct.pack(">IBB2x", len(GROUPS) + 4, 0x10, 25) + GROUPS)
    assert parsed.transition == 25.0
    assert [g.number for g in parsed.groups] == [1, 513]


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, AccessState.ACTIVE_OPTIMIZED),
        (1, AccessState.ACTIVE_NON_OPTIMIZED),
        (2, AccessState.STANDBY),
        (3, AccessState.UNAVAILABLE),
        (4, AccessState.BLOCK_DEPENDENT),
        (0xE, AccessState.OFFLINE),
        (0xF, AccessState.TRANSITIONING),
        (9, AccessState.UNAVAILABLE),
    ],
)
def test_access_states(code: int, state: AccessState) -> None:
    data = struct.pack(">IBBHBBBB", 8, code, 0, 1, 0, 0, 0, 0)
    assert alua.parse(data).groups[0].state is state


@given(st.binary(max_size=300))
def test_no_parameter_data_makes_a_parser_raise(data: bytes) -> None:
    inquiry.parse(data)
    for page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2):
        forged = bytes([0, page]) + data
        vpd.supported_pages(forged)
        vpd.serial_number(forged)
        designation.strongest(vpd.designators(forged))
        vpd.block_limits(forged)
        vpd.is_rotational(forged)
        vpd.provisioning(forged)
    capacity.parse_10(data)
    capacity.parse_16(data)
    mode.parse_6(data)
    mode.parse_10(data)
    alua.parse(data)
