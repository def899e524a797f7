# SPDX-License-Identifier: GPL-3.0-or-later
"""CDB layouts (SPC-4 clause 6, SBC-3 clause 5), what commands touch, LUN structures (SAM-5 4.7)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.scsi import cdb, effect, lun
from blockfleet.scsi.effect import Effect

# libiscsi and qemu sent these; taken from their traffic.
PEER_CDBS = [
    (cdb.test_unit_ready(), "000000000000"),
    (cdb.inquiry(0x42), "120000004200"),
    (cdb.inquiry_vpd(0x83, 0x4C), "120183004c00"),
    (cdb.inquiry_vpd(0xB0, 0x40), "1201b0004000"),
    (cdb.report_luns(0x10), "a00000000000000000100000"),
    (cdb.mode_sense_6(0x3F, 0xFF), "1a083f00ff00"),
    (cdb.read_capacity_10(), "25000000000000000000"),
    (cdb.read_capacity_16(32), "9e100000000000000000000000200000"),
    (cdb.synchronize_cache_10(), "35000000000000000000"),
]


@pytest.mark.parametrize(("built", "expected"), PEER_CDBS, ids=[e[:4] for _, e in PEER_CDBS])
def test_cdb_is_what_another_initiator_sends(built: bytes, expected: str) -> None:
    assert built == bytes.fromhex(expected)


STANDARD_CDBS = [
    ("SBC-3 table 42 READ(10)", cdb.read_10(0x01020304, 0x0506, cdb.FUA), "28080102030400050600"),
    (
        "SBC-3 table 46 READ(16)",
        cdb.read_16(0x0102030405060708, 0x090A0B0C, cdb.DPO),
        "8810010203040506070809 0a0b0c0000",
    ),
    ("SBC-3 WRITE(10) FUA+DPO", cdb.write_10(1, 2, cdb.FUA | cdb.DPO), "2a180000000100000200"),
    ("SBC-3 WRITE(16)", cdb.write_16(1 << 32, 1), "8a000000000100000000000000010000"),
    ("SBC-3 SYNCHRONIZE CACHE(16)", cdb.synchronize_cache_16(7, 9), "91000000000000000007000000090000"),
    ("SBC-3 WRITE SAME(16) UNMAP", cdb.write_same_16(5, 6, unmap=True), "93080000000000000005000000060000"),
    ("SPC-4 MODE SENSE(10) DBD", cdb.mode_sense_10(8, 0x1234), "5a080800000000123400"),
    ("SPC-4 REPORT LUNS select 2", cdb.report_luns(0x4008, 2), "a00002000000000040080000"),
    ("SPC-4 RTPG", cdb.report_target_port_groups(0x1000), "a30a00000000000010000000"),
    ("SPC-4 RTPG extended", cdb.report_target_port_groups(0x1000, extended=True), "a32a00000000000010000000"),
]


@pytest.mark.parametrize(
    ("built", "expected"), [(b, e) for _, b, e in STANDARD_CDBS], ids=[n for n, _, _ in STANDARD_CDBS]
)
def test_cdb_layout(built: bytes, expected: str) -> None:
    assert built == bytes.fromhex(expected)


def test_unmap_parameter_list_of_two_ranges() -> None:
    built, parameters = cdb.unmap([(0x10, 8), (1 << 40, 0xFFFFFFFF)])
    assert built == bytes.fromhex("42000000000000002800")
    assert parameters == bytes.fromhex(
        "0026 0020 000000000000000000000010 00000008 000000000000010000000000 ffffffff 00000000"
    )


def test_a_field_that_does_not_fit_is_refused_and_not_cut() -> None:
    with pytest.raises(struct.error):
        cdb.read_10(1 << 32, 1)
    with pytest.raises(struct.error):
        cdb.write_10(0, 65536)


EFFECTS = [
    (cdb.read_10(5, 3), None, Effect.NONE, (5, 8)),
    (cdb.read_16(1 << 33, 3), None, Effect.NONE, (1 << 33, (1 << 33) + 3)),
    (cdb.write_10(5, 3), None, Effect.OVERWRITE, (5, 8)),
    (cdb.write_16(5, 3), None, Effect.OVERWRITE, (5, 8)),
    (bytes.fromhex("0a1000050000"), None, Effect.OVERWRITE, (0x100005, 0x100005 + 256)),
    (bytes.fromhex("aa0000000005000000030000"), None, Effect.OVERWRITE, (5, 8)),
    (cdb.write_same_16(5, 3), None, Effect.OVERWRITE, (5, 8)),
    (cdb.write_same_16(5, 0), None, Effect.OVERWRITE, (5, 1 << 64)),
    (*cdb.unmap([(100, 4), (50, 2), (0, 0)]), Effect.OVERWRITE, (50, 104)),
    (*cdb.unmap([]), Effect.OVERWRITE, (0, 0)),
    (cdb.synchronize_cache_10(), None, Effect.NONE, (0, 0)),
    (cdb.test_unit_ready(), None, Effect.NONE, (0, 0)),
    (bytes.fromhex("89000000000000000007000000010000"), None, Effect.OTHER, (7, 8)),
    (bytes([0x5F]) + bytes(9), None, Effect.OTHER, (0, 0)),
    (bytes([0x83]) + bytes(15), None, Effect.OTHER, (0, 1 << 64)),
    (bytes([0xC7]) + bytes(9), None, Effect.OTHER, (0, 1 << 64)),
]


@pytest.mark.parametrize(
    ("command", "data_out", "expected", "extent"), EFFECTS, ids=[f"{c.hex()[:24]}" for c, *_ in EFFECTS]
)
def test_effect_and_extent(command: bytes, data_out: bytes | None, expected: Effect, extent: object) -> None:
    assert effect.effect_of(command) is expected
    assert effect.extent_of(command, data_out) == extent


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=64))
def test_any_cdb_has_an_effect_and_an_extent(command: bytes, data_out: bytes) -> None:
    assert effect.effect_of(command) in Effect
    start, end = effect.extent_of(command, data_out)
    assert 0 <= start <= end or start == 1 << 64


LUNS = [
    (0, 0x0000_0000_0000_0000, lun.Form.PERIPHERAL),
    (1, 0x0001_0000_0000_0000, lun.Form.PERIPHERAL),
    (255, 0x00FF_0000_0000_0000, lun.Form.PERIPHERAL),
    (256, 0x4100_0000_0000_0000, lun.Form.FLAT),
    (16383, 0x7FFF_0000_0000_0000, lun.Form.FLAT),
    (16384, 0xD200_4000_0000_0000, lun.Form.EXTENDED),
    (0xFFFFFF, 0xD2FF_FFFF_0000_0000, lun.Form.EXTENDED),
]


@pytest.mark.parametrize(("number", "structure", "form"), LUNS)
def test_lun_structure(number: int, structure: int, form: lun.Form) -> None:
    assert lun.encode(number) == structure
    assert lun.decode(structure) == lun.Lun(form, number)
    assert lun.describe(structure) == f"LUN {number}"


@pytest.mark.parametrize(
    ("structure", "form"),
    [
        (0xC101 << 48, lun.Form.WELL_KNOWN),
        (0x0102_0000_0000_0000, lun.Form.PERIPHERAL),
        (0x8001_0000_0000_0000, lun.Form.LOGICAL_UNIT),
        (0x0001_0001_0000_0000, lun.Form.PERIPHERAL),
        (0xE200_0000_0001_0000, lun.Form.OTHER),
    ],
)
def test_lun_without_a_plain_number_shows_whole(structure: int, form: lun.Form) -> None:
    assert lun.decode(structure) == lun.Lun(form, None)
    assert lun.describe(structure) == f"LUN {structure:#018x}"


@pytest.mark.parametrize("number", [-1, 1 << 24])
def test_a_number_that_no_lun_has_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="LUN"):
        lun.encode(number)


@given(st.integers(0, (1 << 24) - 1))
def test_lun_round_trip(number: int) -> None:
    assert lun.decode(lun.encode(number)).number == number


def test_report_luns_of_tgt() -> None:
    data = bytes.fromhex("0000001800000000000000000000000000010000000000000002000000000000")
    assert [lun.decode(n).number for n in lun.parse_report_luns(data)] == [0, 1, 2]


def test_report_luns_cut_short_gives_what_is_whole() -> None:
    data = bytes.fromhex("0000001800000000000100000000000000020000")
    assert lun.parse_report_luns(data) == (1 << 48,)
    assert lun.parse_report_luns(b"\0\0\0") == ()


def test_report_luns_is_bounded_and_without_repeats() -> None:
    entries = b"".join(struct.pack(">Q", n << 32) for n in range(lun.MAXIMUM_LUNS + 10))
    data = struct.pack(">I4x", len(entries)) + entries
    assert len(lun.parse_report_luns(data)) == lun.MAXIMUM_LUNS
    twice = struct.pack(">I4xQQ", 16, 7, 7)
    assert lun.parse_report_luns(twice) == (7,)
