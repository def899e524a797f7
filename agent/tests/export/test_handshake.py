# SPDX-License-Identifier: GPL-3.0-or-later
"""The handshake as doc/proto.md words it, without a socket."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.export.nbd_client import go, option, option_replies

from blockfleet.block.device import Geometry
from blockfleet.export.handshake import MAXIMUM_HANDSHAKE, MAXIMUM_OPTIONS, Handshake, HandshakePhase
from blockfleet.export.wire import describe

SIZE = 3 * 4096 + 512
GEOMETRY = Geometry(SIZE, 512, 8192, 1 << 21, can_trim=True, can_write_zeroes=False, rotational=True)
# HAS_FLAGS | SEND_FLUSH | SEND_FUA | ROTATIONAL | SEND_TRIM | CAN_MULTI_CONN
FLAGS = 0b1_0011_1101
ACK, SERVER, INFO = 1, 2, 3
UNSUP, INVALID, UNKNOWN, TOO_BIG = (0x80000000 + n for n in (1, 3, 6, 9))
BOTH = b"\x00\x00\x00\x03"


def fresh(client_flags: bytes = BOTH) -> Handshake:
    handshake = Handshake(describe("vol1", GEOMETRY))
    assert handshake.receive(client_flags) == b""
    return handshake


def ask(handshake: Handshake, data: bytes) -> list[tuple[int, int, bytes]]:
    return option_replies(handshake.receive(data))


def kinds(replies: list[tuple[int, int, bytes]]) -> list[int]:
    return [kind for _, kind, _ in replies]


def test_server_greets_with_both_magics_and_fixed_newstyle_and_no_zeroes():
    assert Handshake(describe("v", GEOMETRY)).greeting == b"NBDMAGICIHAVEOPT\x00\x03"


@pytest.mark.parametrize("flags", [b"\x00\x00\x00\x04", b"\x80\x00\x00\x03"], ids=["bit-2", "bit-31"])
def test_unknown_client_flag_closes(flags):
    assert fresh(flags).phase is HandshakePhase.CLOSED


@pytest.mark.parametrize(("flags", "padding"), [(b"\x00\x00\x00\x01", 124), (BOTH, 0)], ids=["zeroes", "no-zeroes"])
@pytest.mark.parametrize("name", [b"", b"vol1"], ids=["default", "named"])
def test_export_name_answers_size_flags_and_padding(flags, padding, name):
    handshake = fresh(flags)
    assert handshake.receive(option(1, name)) == struct.pack(">QH", SIZE, FLAGS) + bytes(padding)
    assert handshake.phase is HandshakePhase.TRANSMISSION
    assert not handshake.structured


def test_export_name_of_another_export_closes():
    handshake = fresh()
    assert handshake.receive(option(1, b"vol2")) == b""
    assert handshake.phase is HandshakePhase.CLOSED


def test_client_without_fixed_newstyle_has_only_export_name():
    assert fresh(bytes(4)).receive(option(1)) == struct.pack(">QH", SIZE, FLAGS) + bytes(124)
    other = fresh(bytes(4))
    assert other.receive(option(3)) == b""
    assert other.phase is HandshakePhase.CLOSED


def test_go_without_requests_answers_info_export_then_ack_and_never_padding():
    handshake = fresh(b"\x00\x00\x00\x01")
    assert ask(handshake, go("vol1")) == [(7, INFO, struct.pack(">HQH", 0, SIZE, FLAGS)), (7, ACK, b"")]
    assert handshake.phase is HandshakePhase.TRANSMISSION


def test_info_answers_the_same_as_go_and_stays_in_the_handshake():
    handshake = fresh()
    informed = ask(handshake, go("", 3, 1, 0x7777, number=6))
    assert handshake.phase is HandshakePhase.OPTIONS
    gone = ask(handshake, go("", 3, 1, 0x7777))
    assert [(kind, data) for _, kind, data in informed] == [(kind, data) for _, kind, data in gone]
    assert (INFO, struct.pack(">HIII", 3, 512, 8192, 1 << 21)) in [(kind, data) for _, kind, data in gone]
    assert (INFO, b"\x00\x01vol1") in [(kind, data) for _, kind, data in gone]


@pytest.mark.parametrize("number", [6, 7], ids=["INFO", "GO"])
def test_unknown_export_is_err_unknown_and_the_client_may_go_on(number):
    handshake = fresh()
    assert kinds(ask(handshake, go("vol10", number=number))) == [UNKNOWN]
    assert kinds(ask(handshake, go("vol1"))) == [INFO, ACK]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00\x00\x00",
        b"\x00\x00\x00\x05vol1\x00\x00",
        b"\xff\xff\xff\xff\x00\x00",
        b"\x00\x00\x00\x00\x00\x02\x00\x03",
        b"\x00\x00\x00\x00\x00\x00\x00\x03",
        struct.pack(">I", 4097) + bytes(4097) + b"\x00\x00",
    ],
    ids=["empty", "short", "name-past-end", "huge-name", "fewer-kinds", "more-kinds", "name-over-4096"],
)
@pytest.mark.parametrize("number", [6, 7], ids=["INFO", "GO"])
def test_malformed_go_is_err_invalid(number, data):
    handshake = fresh()
    assert kinds(ask(handshake, option(number, data))) == [INVALID]
    assert handshake.phase is HandshakePhase.OPTIONS


def test_structured_reply_is_acked_and_turns_on_send_df():
    handshake = fresh()
    assert ask(handshake, option(8)) == [(8, ACK, b"")]
    ((_, _, info), _) = ask(handshake, go())
    assert struct.unpack(">HQH", info) == (0, SIZE, FLAGS | 1 << 7)
    assert handshake.structured


@pytest.mark.parametrize("number", [3, 8], ids=["LIST", "STRUCTURED_REPLY"])
def test_data_where_none_may_be_is_err_invalid(number):
    handshake = fresh()
    assert kinds(ask(handshake, option(number, b"x"))) == [INVALID]
    assert not handshake.structured


def test_list_names_the_export():
    assert ask(fresh(), option(3)) == [(3, SERVER, b"\x00\x00\x00\x04vol1"), (3, ACK, b"")]


@pytest.mark.parametrize("number", [4, 5, 9, 10, 11, 0, 0xFFFFFFFF])
def test_what_is_not_offered_is_err_unsup_with_its_number(number):
    replies = ask(fresh(), option(number, b"\x00\x00\x00\x00\x00\x00\x00\x00"))
    assert [(replies[0][0], replies[0][1])] == [(number, UNSUP)]


@pytest.mark.parametrize("data", [b"", b"ignored"], ids=["bare", "with-data"])
def test_abort_is_acked_then_closes(data):
    handshake = fresh()
    assert ask(handshake, option(2, data)) == [(2, ACK, b"")]
    assert handshake.phase is HandshakePhase.CLOSED
    assert handshake.cause == ""


def test_option_too_long_to_keep_is_skipped_and_answered_too_big():
    handshake = fresh()
    assert kinds(ask(handshake, option(7, bytes(20000)) + option(3))) == [TOO_BIG, SERVER, ACK]


def test_bad_option_magic_closes():
    handshake = fresh()
    handshake.receive(b"IHAVEOPS" + bytes(8))
    assert handshake.phase is HandshakePhase.CLOSED
    assert "magic" in handshake.cause


def test_too_many_options_close():
    handshake = fresh()
    for _ in range(MAXIMUM_OPTIONS):
        assert kinds(ask(handshake, option(77))) == [UNSUP]
    assert handshake.receive(option(77)) == b""
    assert handshake.phase is HandshakePhase.CLOSED


def test_option_that_claims_four_gigabytes_is_cut_off_at_the_limit():
    handshake = fresh()
    handshake.receive(b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF))
    sent = 0
    while handshake.phase is HandshakePhase.OPTIONS:
        handshake.receive(bytes(1000))
        sent += 1000
    assert sent <= MAXIMUM_HANDSHAKE + 1000
    assert handshake.phase is HandshakePhase.CLOSED


CONVERSATION = (
    BOTH + option(8) + option(3) + option(99, b"abc") + option(7, bytes(9000)) + go("vol1", 3, 1) + b"rest"
)


def test_conversation_split_at_every_byte_has_the_same_answers():
    whole = Handshake(describe("vol1", GEOMETRY))
    expected = whole.receive(CONVERSATION)
    assert kinds(option_replies(expected)) == [ACK, SERVER, ACK, UNSUP, TOO_BIG, INFO, INFO, INFO, ACK]
    for cut in range(1, len(CONVERSATION)):
        split = Handshake(describe("vol1", GEOMETRY))
        assert split.receive(CONVERSATION[:cut]) + split.receive(CONVERSATION[cut:]) == expected
        assert split.leftover == whole.leftover == b"rest"


@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_never_raises_and_never_grows(data, step):
    handshake = fresh()
    for start in range(0, len(data), step):
        handshake.receive(data[start : start + step])
    assert handshake.phase in HandshakePhase


@pytest.mark.parametrize(
    ("geometry", "sizes"),
    [
        (Geometry(1 << 30, 4096, 0, 1 << 30), (4096, 4096, 1 << 25)),
        (Geometry(1 << 30, 512, 3 * 4096, 65536), (512, 8192, 65536)),
        (Geometry(1 << 30, 512, 512, 256), (512, 512, 512)),
    ],
    ids=["no-preference", "not-a-power-of-two", "transfer-below-block"],
)
def test_block_sizes_keep_the_rules_of_size_constraints(geometry, sizes):
    export = describe("v", geometry)
    assert (export.minimum_block, export.preferred_block, export.maximum_payload) == sizes


ABILITIES = ("read_only", "can_flush", "can_fua", "rotational", "can_trim", "can_write_zeroes")


@pytest.mark.parametrize(("bit", "field"), list(enumerate(ABILITIES, start=1)))
def test_each_ability_is_its_own_transmission_flag(field, bit):
    base = dict.fromkeys(ABILITIES, False)
    export = describe("v", Geometry(1 << 20, 512, 4096, 1 << 20, **(base | {field: True})))
    assert export.flags == 1 | 1 << 8 | 1 << bit
