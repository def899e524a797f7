# SPDX-License-Identifier: GPL-3.0-or-later
"""Key=value text, whole and in pieces (RFC 3720 5.1, 5.2)."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.iscsi.text import (
    MAXIMUM_PAIR,
    PairStream,
    TextError,
    TextJoiner,
    decode_pair,
    decode_text,
    encode_text,
    split_text,
)

KEY = st.builds(
    lambda head, tail: head + tail,
    st.sampled_from(string.ascii_uppercase),
    st.text(string.ascii_letters + string.digits + ".-+@_#", max_size=62),
)
VALUE = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=60)
PAIRS = st.lists(st.tuples(KEY, VALUE), min_size=1, max_size=12)


def test_KEY_01_every_pair_ends_with_one_null() -> None:
    pairs = [("InitiatorName", "iqn.1999-07.com.os:hostid.77"), ("SessionType", "Discovery")]
    assert encode_text(pairs) == b"InitiatorName=iqn.1999-07.com.os:hostid.77\0SessionType=Discovery\0"


def test_value_may_be_empty_and_may_have_equals_signs() -> None:
    assert decode_text(b"SendTargets=\0X-a=b=c=\0") == [("SendTargets", ""), ("X-a", "b=c=")]


def test_no_text_is_no_pair() -> None:
    assert decode_text(b"") == []


def test_repeated_keys_are_kept_for_the_negotiation_to_judge() -> None:
    assert decode_text(b"TargetAddress=a,1\0TargetAddress=b,2\0") == [
        ("TargetAddress", "a,1"),
        ("TargetAddress", "b,2"),
    ]


@pytest.mark.parametrize("padding", [1, 2, 3])
def test_padding_that_was_counted_as_data_is_forgiven(padding: int) -> None:
    assert decode_text(b"A=1\0" + bytes(padding)) == [("A", "1")]


MALFORMED = [
    pytest.param(b"HeaderDigest\0", id="KEY-04-no-equals"),
    pytest.param(b"=None\0", id="KEY-04-empty-key"),
    pytest.param(b"HeaderDigest=None", id="KEY-04-no-final-null"),
    pytest.param(b"A=1\0B=2", id="KEY-04-no-final-null-after-a-pair"),
    pytest.param(b"A=1\0\0B=2\0", id="KEY-04-empty-pair-between"),
    pytest.param(b"A=1" + bytes(8), id="KEY-04-storm-of-nulls"),
    pytest.param(b"A=1\n\0", id="KEY-04-line-feed"),
    pytest.param(b"A=\x1b[31m\0", id="KEY-04-escape-sequence"),
    pytest.param(b"A=\x7f\0", id="KEY-04-delete"),
    pytest.param("A=\u0085\0".encode(), id="KEY-04-C1-control"),
    pytest.param(b"A B=1\0", id="KEY-04-space-in-key"),
    pytest.param(b"1A=1\0", id="KEY-04-key-begins-with-digit"),
    pytest.param(b"K\xc3\xa4y=1\0", id="KEY-04-key-beyond-ASCII"),
    pytest.param(b"A=\xff\xfe\0", id="KEY-04-not-UTF-8"),
    pytest.param(b"A=\xc0\x80\0", id="KEY-04-overlong-null"),
    pytest.param(b"K" * 64 + b"=1\0", id="KEY-02-key-of-64-bytes"),
    pytest.param(b"A=" + b"x" * 8193 + b"\0", id="KEY-02-value-beyond-every-limit"),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_text_is_refused(data: bytes) -> None:
    with pytest.raises(TextError):
        decode_text(data)


def test_KEY_02_key_of_63_bytes_is_taken() -> None:
    assert decode_text(b"K" * 63 + b"=1\0") == [("K" * 63, "1")]


@pytest.mark.parametrize(
    "pair",
    [("", "1"), ("Key Name", "1"), ("A", "a\0b"), ("A", "line\nbreak"), ("K" * 64, "1"), ("A", "x" * 8193)],
)
def test_text_that_must_not_be_sent_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(TextError):
        encode_text([pair])


@given(PAIRS)
def test_what_is_sent_is_read_back(pairs: list[tuple[str, str]]) -> None:
    assert decode_text(encode_text(pairs)) == pairs


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_text_or_a_text_error(data: bytes) -> None:
    try:
        pairs = decode_text(data)
    except TextError:
        return
    assert encode_text(pairs) == data.rstrip(b"\0") + b"\0" * bool(pairs)


@given(PAIRS, st.integers(1, 50))
def test_LGN_41_text_is_split_into_parts_of_at_most_the_limit(pairs: list[tuple[str, str]], limit: int) -> None:
    data = encode_text(pairs)
    parts = split_text(data, limit)
    assert b"".join(parts) == data
    assert all(1 <= len(part) <= limit for part in parts)


def test_no_text_is_one_empty_part() -> None:
    assert split_text(b"", 8192) == [b""]


@given(PAIRS, st.lists(st.integers(1, 20), max_size=40))
def test_text_cut_anywhere_is_joined_to_the_same_pairs(pairs: list[tuple[str, str]], cuts: list[int]) -> None:
    data = encode_text(pairs)
    joiner = TextJoiner()
    for cut in cuts:
        if not data[cut:]:
            break
        assert joiner.add(data[:cut], more=True) is None
        assert joiner.partial
        data = data[cut:]
    assert joiner.add(data, more=False) == pairs
    assert not joiner.partial


def test_KEY_02_joiner_takes_64_KiB_of_text_and_not_a_byte_more() -> None:
    part = b"X-a=" + b"x" * 4091 + b"\0"
    joiner = TextJoiner()
    for _ in range(16):
        assert joiner.add(part, more=False) is not None
    with pytest.raises(TextError, match="65536"):
        joiner.add(b"A=1\0", more=False)


def test_ROB_03_key_that_never_ends_is_bounded() -> None:
    joiner = TextJoiner()
    for _ in range(8):
        assert joiner.add(b"x" * 8192, more=True) is None
    with pytest.raises(TextError, match="65536"):
        joiner.add(b"x", more=True)


def test_ROB_03_empty_parts_are_bounded() -> None:
    joiner = TextJoiner()
    for _ in range(255):
        assert joiner.add(b"", more=True) is None
    with pytest.raises(TextError, match="256 parts"):
        joiner.add(b"", more=True)


@given(PAIRS, st.integers(1, 30))
def test_stream_cut_anywhere_yields_the_same_pairs(pairs: list[tuple[str, str]], size: int) -> None:
    stream = PairStream()
    found: list[bytes] = []
    for part in split_text(encode_text(pairs), size):
        found += stream.feed(part)
    stream.finish()
    assert [decode_pair(raw) for raw in found] == pairs


def test_stream_holds_no_more_than_one_pair() -> None:
    stream = PairStream()
    stream.feed(b"x" * MAXIMUM_PAIR)
    with pytest.raises(TextError, match="longer"):
        stream.feed(b"x")


def test_stream_that_ends_inside_a_pair_is_an_error() -> None:
    stream = PairStream()
    stream.feed(b"TargetName=iqn.2026-11.com.exam")
    with pytest.raises(TextError, match="zero byte"):
        stream.finish()
