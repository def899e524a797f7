# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of every PDU, byte by byte as RFC 3720 chapter 10 draws it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.iscsi import layout
from blockfleet.iscsi.pdu import (
    PDU_CLASSES,
    R2T,
    AsyncMessage,
    DataIn,
    DataOut,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    PduError,
    Reject,
    ScsiCommandPdu,
    ScsiResponsePdu,
    SnackRequest,
    TaskManagementRequest,
    TaskManagementResponse,
    TextRequest,
    TextResponse,
    decode_ahs,
    decode_pdu,
    login_flags,
    split_sense,
)

LUN = 0x0102030405060708
ITT, TTT = 0xA1A2A3A4, 0xB1B2B3B4
NUMBERS = {"stat_sn": 0xC1C2C3C4, "exp_cmd_sn": 0xC5C6C7C8, "max_cmd_sn": 0xC9CACBCC}
LUN_AT_8 = "0102030405060708"
NO_LUN = "0000000000000000"
STAT_TO_MAX = "c1c2c3c4c5c6c7c8c9cacbcc"

# The expected bytes are put together by hand from the figures: bytes 0-3, lengths, 8-15, 16-19, ...
VECTORS = [
    pytest.param(
        ScsiCommandPdu(
            flags=0xA1,
            lun=LUN,
            initiator_task_tag=ITT,
            expected_length=0x11121314,
            cmd_sn=0x21222324,
            exp_stat_sn=0x31323334,
            cdb=bytes(range(0x40, 0x50)),
            data=b"12345",
        ),
        "01a10000 00000005" + LUN_AT_8 + "a1a2a3a4 11121314 21222324 31323334 404142434445464748494a4b4c4d4e4f",
        id="10.3-scsi-command",
    ),
    pytest.param(
        ScsiResponsePdu(
            flags=0x12,
            response=0x01,
            status=0x02,
            initiator_task_tag=ITT,
            snack_tag=0x51525354,
            exp_data_sn=0x61626364,
            bidirectional_residual=0x71727374,
            residual=0x81828384,
            **NUMBERS,
        ),
        "21920102 00000000" + NO_LUN + "a1a2a3a4 51525354" + STAT_TO_MAX + "61626364 71727374 81828384",
        id="10.4-scsi-response",
    ),
    pytest.param(
        TaskManagementRequest(
            immediate=True,
            function=8,
            lun=LUN,
            initiator_task_tag=ITT,
            referenced_task_tag=0x91929394,
            cmd_sn=0x21222324,
            exp_stat_sn=0x31323334,
            ref_cmd_sn=0x41424344,
            exp_data_sn=0x51525354,
        ),
        "42880000 00000000" + LUN_AT_8 + "a1a2a3a4 91929394 21222324 31323334 41424344 51525354" + NO_LUN,
        id="10.5-task-management-request",
    ),
    pytest.param(
        TaskManagementResponse(response=0xFF, initiator_task_tag=ITT, **NUMBERS),
        "2280ff00 00000000" + NO_LUN + "a1a2a3a4 00000000" + STAT_TO_MAX + "00" * 12,
        id="10.6-task-management-response",
    ),
    pytest.param(
        DataOut(
            flags=0x80,
            lun=LUN,
            initiator_task_tag=ITT,
            target_transfer_tag=TTT,
            exp_stat_sn=0x31323334,
            data_sn=7,
            offset=0x00020000,
            data_length=0x010203,
        ),
        "05800000 00010203" + LUN_AT_8 + "a1a2a3a4 b1b2b3b4 00000000 31323334 00000000 00000007 00020000 00000000",
        id="10.7-data-out",
    ),
    pytest.param(
        DataIn(
            flags=0xC3,
            status=0x04,
            lun=LUN,
            initiator_task_tag=ITT,
            target_transfer_tag=TTT,
            data_sn=9,
            offset=0x00030000,
            residual=0x00000200,
            data_length=512,
            **NUMBERS,
        ),
        "25c30004 00000200" + LUN_AT_8 + "a1a2a3a4 b1b2b3b4" + STAT_TO_MAX + "00000009 00030000 00000200",
        id="10.7-data-in",
    ),
    pytest.param(
        R2T(
            lun=LUN,
            initiator_task_tag=ITT,
            target_transfer_tag=TTT,
            r2t_sn=3,
            offset=0x00040000,
            desired_length=0x00001000,
            **NUMBERS,
        ),
        "31800000 00000000" + LUN_AT_8 + "a1a2a3a4 b1b2b3b4" + STAT_TO_MAX + "00000003 00040000 00001000",
        id="10.8-r2t",
    ),
    pytest.param(
        AsyncMessage(
            lun=LUN, event=2, vendor_code=0xEE, parameter1=0x0102, parameter2=5, parameter3=0x0E10, **NUMBERS
        ),
        "32800000 00000000" + LUN_AT_8 + "ffffffff 00000000" + STAT_TO_MAX + "02ee0102 00050e10 00000000",
        id="10.9-async-message",
    ),
    pytest.param(
        TextRequest(
            flags=0x80,
            lun=LUN,
            initiator_task_tag=ITT,
            target_transfer_tag=TTT,
            cmd_sn=0x21222324,
            exp_stat_sn=0x31323334,
            data=b"SendTargets=All\0",
        ),
        "04800000 00000010" + LUN_AT_8 + "a1a2a3a4 b1b2b3b4 21222324 31323334" + "00" * 16,
        id="10.10-text-request",
    ),
    pytest.param(
        TextResponse(flags=0x40, lun=LUN, initiator_task_tag=ITT, target_transfer_tag=TTT, **NUMBERS),
        "24400000 00000000" + LUN_AT_8 + "a1a2a3a4 b1b2b3b4" + STAT_TO_MAX + "00" * 12,
        id="10.11-text-response",
    ),
    pytest.param(
        LoginRequest(
            flags=login_flags(1, 3, transit=True),
            isid=bytes.fromhex("800123456789"),
            tsih=0xD1D2,
            initiator_task_tag=ITT,
            cid=0xE1E2,
            cmd_sn=0x21222324,
            exp_stat_sn=0x31323334,
        ),
        "43870000 00000000 800123456789 d1d2 a1a2a3a4 e1e20000 21222324 31323334" + "00" * 16,
        id="10.12-login-request",
    ),
    pytest.param(
        LoginResponse(
            flags=login_flags(0, more=True),
            version_max=1,
            version_active=2,
            isid=bytes.fromhex("800123456789"),
            tsih=0xD1D2,
            initiator_task_tag=ITT,
            status=0x0201,
            **NUMBERS,
        ),
        "23400102 00000000 800123456789 d1d2 a1a2a3a4 00000000" + STAT_TO_MAX + "02010000" + "00" * 8,
        id="10.13-login-response",
    ),
    pytest.param(
        LogoutRequest(
            immediate=True,
            reason=2,
            initiator_task_tag=ITT,
            cid=0xE1E2,
            cmd_sn=0x21222324,
            exp_stat_sn=0x31323334,
        ),
        "46820000 00000000" + NO_LUN + "a1a2a3a4 e1e20000 21222324 31323334" + "00" * 16,
        id="10.14-logout-request",
    ),
    pytest.param(
        LogoutResponse(response=3, initiator_task_tag=ITT, time2wait=0x0102, time2retain=0x0304, **NUMBERS),
        "26800300 00000000" + NO_LUN + "a1a2a3a4 00000000" + STAT_TO_MAX + "00000000 01020304 00000000",
        id="10.15-logout-response",
    ),
    pytest.param(
        SnackRequest(
            type=2,
            lun=LUN,
            target_transfer_tag=TTT,
            exp_stat_sn=0x31323334,
            beg_run=0x41424344,
            run_length=0x51525354,
        ),
        "10820000 00000000" + LUN_AT_8 + "ffffffff b1b2b3b4 00000000 31323334 00000000 00000000 41424344 51525354",
        id="10.16-snack",
    ),
    pytest.param(
        Reject(reason=0x09, data_sn=0x61626364, data=bytes(48), **NUMBERS),
        "3f800900 00000030" + NO_LUN + "ffffffff 00000000" + STAT_TO_MAX + "61626364" + NO_LUN,
        id="10.17-reject",
    ),
    pytest.param(
        NopOut(
            immediate=True,
            lun=LUN,
            target_transfer_tag=TTT,
            cmd_sn=0x21222324,
            exp_stat_sn=0x31323334,
        ),
        "40800000 00000000" + LUN_AT_8 + "ffffffff b1b2b3b4 21222324 31323334" + "00" * 16,
        id="10.18-nop-out",
    ),
    pytest.param(
        NopIn(lun=LUN, initiator_task_tag=ITT, data=b"ping", **NUMBERS),
        "20800000 00000004" + LUN_AT_8 + "a1a2a3a4 ffffffff" + STAT_TO_MAX + "00" * 12,
        id="10.19-nop-in",
    ),
]


@pytest.mark.parametrize(("pdu", "wire"), VECTORS)
def test_header_is_as_the_figure_draws_it(pdu: Pdu, wire: str) -> None:
    assert pdu.encode() == bytes.fromhex(wire)


@pytest.mark.parametrize(("pdu", "wire"), VECTORS)
def test_figure_is_read_back(pdu: Pdu, wire: str) -> None:
    assert decode_pdu(bytes.fromhex(wire), data=pdu.data) == pdu


def test_every_opcode_of_10_2_1_2_has_a_class() -> None:
    initiator = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10}
    target = {0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F}
    assert set(PDU_CLASSES) == initiator | target
    assert {op for op, cls in PDU_CLASSES.items() if cls.LAYOUT.size != 48} == set()


@pytest.mark.parametrize("opcode", [0x07, 0x0F, 0x1C, 0x27, 0x30, 0x33, 0x3C, 0x3E])
def test_reserved_and_vendor_opcodes_are_no_pdu(opcode: int) -> None:
    with pytest.raises(PduError, match=f"{opcode:#04x}"):
        decode_pdu(bytes([opcode]) + bytes(47))


@pytest.mark.parametrize(("pdu", "wire"), VECTORS)
def test_reserved_bits_of_the_flags_are_ignored(pdu: Pdu, wire: str) -> None:
    bhs = bytearray.fromhex(wire)
    bhs[1] ^= 0xFF & ~type(pdu).FLAGS_MASK
    assert decode_pdu(bytes(bhs), data=pdu.data) == pdu


def test_header_of_another_pdu_is_refused() -> None:
    with pytest.raises(PduError, match="0x20 is not LOGIN_RESPONSE"):
        LoginResponse.decode(NopIn().encode())


def test_task_attribute_is_the_low_bits_of_the_flags() -> None:
    assert ScsiCommandPdu(flags=0xE3).attribute == 3


def test_reserved_bit_7_of_byte_0_is_ignored() -> None:
    assert decode_pdu(bytes([0x80 | 0x20, 0x80]) + bytes(46)) == decode_pdu(bytes([0x20, 0x80]) + bytes(46))


def test_data_segment_is_padded_to_a_word_and_its_length_is_not() -> None:
    wire = TextRequest(data=b"A=1\0B").to_wire()
    assert wire[5:8] == bytes([0, 0, 5])
    assert wire[48:] == b"A=1\0B\0\0\0"


def test_extended_cdb_and_bidirectional_read_length_go_into_ahs() -> None:
    pdu = ScsiCommandPdu(flags=0xE1, cdb=bytes(range(32)), bidirectional_read_length=0x01020304)
    header = pdu.encode()
    # 10.2.2.3: AHSLength is CDBLength-15, type 1, byte 3 reserved; 10.2.2.4: length 5, type 2.
    assert header[4] == 7
    assert header[32:48] == bytes(range(16))
    assert header[48:68] == bytes.fromhex("00110100") + bytes(range(16, 32))
    assert header[68:] == bytes.fromhex("0005020001020304")
    assert decode_pdu(header[:48], header[48:]) == pdu


def test_extended_cdb_of_17_bytes_is_padded() -> None:
    header = ScsiCommandPdu(cdb=bytes(range(1, 18))).encode()
    assert header[48:] == bytes.fromhex("0002010011000000")
    assert decode_pdu(header[:48], header[48:]).cdb == bytes(range(1, 18))


@pytest.mark.parametrize(
    "ahs",
    [
        pytest.param("00000100", id="length-0"),
        pytest.param("0009010000000000", id="overrun"),
        pytest.param("ffff010000000000", id="overrun-far"),
        pytest.param("0005030000000000", id="reserved-type"),
        pytest.param("00050200000000000005020000000000", id="repeated"),
        pytest.param("0005", id="cut-short"),
    ],
)
def test_broken_ahs_is_refused(ahs: str) -> None:
    with pytest.raises(PduError):
        decode_ahs(bytes.fromhex(ahs))


def test_bidirectional_read_length_of_wrong_size_is_refused() -> None:
    bhs = bytearray(ScsiCommandPdu().encode())
    bhs[4] = 2
    with pytest.raises(PduError, match="5 bytes"):
        decode_pdu(bytes(bhs), bytes.fromhex("0004020001020300"))


def test_response_with_ahs_is_refused() -> None:
    bhs = bytes([0x21, 0x80, 0, 0, 1]) + bytes(43)
    with pytest.raises(PduError):
        decode_pdu(bhs, bytes(4))


@pytest.mark.parametrize(
    ("bhs", "ahs", "data"),
    [
        pytest.param(b"", b"", b"", id="empty"),
        pytest.param(bytes(47), b"", b"", id="47-bytes"),
        pytest.param(bytes(49), b"", b"", id="49-bytes"),
        pytest.param(bytes(4) + bytes([1]) + bytes(43), b"", b"", id="AHS-missing"),
        pytest.param(bytes(48), bytes(4), b"", id="AHS-unannounced"),
        pytest.param(bytes(7) + bytes([3]) + bytes(40), b"", b"1234", id="data-of-other-length"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(bhs: bytes, ahs: bytes, data: bytes) -> None:
    with pytest.raises(PduError):
        decode_pdu(bhs, ahs, data)


@pytest.mark.parametrize(
    "pdu",
    [
        pytest.param(NopOut(cmd_sn=1 << 32), id="33-bit-CmdSN"),
        pytest.param(NopOut(cmd_sn=-1), id="negative"),
        pytest.param(LogoutRequest(cid=1 << 16), id="17-bit-CID"),
        pytest.param(DataOut(data_length=1 << 24), id="25-bit-length"),
        pytest.param(ScsiCommandPdu(cdb=b""), id="no-CDB"),
        pytest.param(ScsiCommandPdu(cdb=bytes(261)), id="CDB-too-long"),
    ],
)
def test_values_that_do_not_fit_their_field_are_refused(pdu: Pdu) -> None:
    with pytest.raises(PduError):
        pdu.encode()


@pytest.mark.parametrize(
    ("data", "sense", "rest"),
    [
        pytest.param("", "", "", id="none"),
        pytest.param("00", "", "", id="one-byte"),
        pytest.param("0000", "", "", id="empty"),
        pytest.param("0003 700005 ffee", "700005", "ffee", id="with-response-data"),
        pytest.param("ffff 7000", "7000", "", id="ROB-03-SenseLength-65535"),
    ],
)
def test_sense_data_are_cut_to_the_segment(data: str, sense: str, rest: str) -> None:
    assert split_sense(bytes.fromhex(data)) == (bytes.fromhex(sense), bytes.fromhex(rest))


@given(st.binary(min_size=0, max_size=64), st.binary(max_size=16), st.binary(max_size=8))
def test_bytes_of_any_kind_decode_or_raise_pdu_error(bhs: bytes, ahs: bytes, data: bytes) -> None:
    try:
        decode_pdu(bhs, ahs, data)
    except PduError:
        pass
    else:
        assert len(bhs) == 48


@given(st.sampled_from(sorted(PDU_CLASSES)), st.binary(min_size=47, max_size=47))
def test_what_was_decoded_encodes_to_the_same_again(opcode: int, rest: bytes) -> None:
    bhs = bytearray(bytes([opcode]) + rest)
    bhs[4:8] = bytes(4)
    first = decode_pdu(bytes(bhs))
    assert decode_pdu(first.encode()) == first


@given(st.integers(0, (1 << 24) - 1), st.integers(0, 255))
def test_lengths_word_is_taken_apart_as_it_was_put_together(data: int, words: int) -> None:
    assert layout.split_lengths(layout.lengths(data, words * 4)) == (words * 4, data)


@given(st.integers(0, 1 << 24))
def test_padding_fills_to_the_next_word(length: int) -> None:
    assert length + len(layout.padding(length)) == layout.padded_length(length)
    assert layout.padded_length(length) % 4 == 0
    assert len(layout.padding(length)) < 4
