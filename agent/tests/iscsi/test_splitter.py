# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of a stream, cut where RFC 3720 10.2 says that PDUs end."""

from __future__ import annotations

import struct

import crc32c
import pytest

from blockfleet.iscsi.framing import FramingError, PduReader
from blockfleet.iscsi.splitter import PduSplitter

DATA_DIGEST = b"DDIG"
LONGEST = 65536


def pdu(opcode: int, data: bytes = b"", ahs: bytes = b"") -> bytes:
    """A PDU without digests, padded to a word."""
    head = bytes((opcode, 0x80, 0, 0, len(ahs) // 4)) + len(data).to_bytes(3, "big")
    return head.ljust(48, b"\0") + ahs + data + bytes(-len(data) % 4)


def with_digests(whole: bytes, ahs: int, *, header: bool, data: bool) -> bytes:
    begin = 48 + ahs
    body = whole[begin:]
    return (
        whole[:begin]
        + struct.pack("<I", crc32c.crc32c(whole[:begin])) * header
        + body
        + DATA_DIGEST * (data and bool(body))
    )


@pytest.mark.parametrize("step", [1, 47, 48, 49, 1000])
@pytest.mark.parametrize(("header", "data"), [(False, False), (True, False), (False, True), (True, True)])
def test_each_pdu_comes_out_with_its_digests_however_it_arrives(step: int, header: bool, data: bool) -> None:
    wanted = [
        with_digests(pdu(0x21), 0, header=header, data=data),
        with_digests(pdu(0x01, b"12345", bytes(8)), 8, header=header, data=data),
        with_digests(pdu(0x25, b"x" * 512), 0, header=header, data=data),
    ]
    stream = b"".join(wanted)
    splitter, found = PduSplitter(), []
    for start in range(0, len(stream), step):
        splitter.feed(stream[start : start + step])
        found += splitter.take(header, data, LONGEST)
    assert found == wanted
    assert splitter.rest() == b""


@pytest.mark.parametrize("opcode", [0x03, 0x43, 0x23])
def test_login_pdus_have_no_digests_though_what_follows_in_the_same_bytes_has(opcode: int) -> None:
    login = pdu(opcode, b"HeaderDigest=CRC32C\0")
    following = with_digests(pdu(0x20), 0, header=True, data=True)
    splitter = PduSplitter()
    splitter.feed(login + following)
    assert list(splitter.take(True, True, LONGEST)) == [login, following]


@pytest.mark.parametrize("byte", [0, 5, 6, 16, 48])
def test_err_a_pdu_with_a_damaged_header_ends_where_the_next_good_one_begins(byte: int) -> None:
    """One byte of the header or of its digest is wrong, that of a length among them."""
    before = with_digests(pdu(0x20), 0, header=True, data=True)
    damaged = bytearray(with_digests(pdu(0x25, b"x" * 5000), 0, header=True, data=True))
    damaged[byte] ^= 0x23
    after = [with_digests(pdu(0x21), 0, header=True, data=True)] * 2
    splitter, found = PduSplitter(), []
    stream = before + damaged + b"".join(after)
    for start in range(0, len(stream), 700):
        splitter.feed(stream[start : start + 700])
        found += splitter.take(True, True, LONGEST)
    assert found == [before, bytes(damaged), *after]


def test_the_rest_is_what_is_no_whole_pdu() -> None:
    splitter = PduSplitter()
    splitter.feed(pdu(0x21) + pdu(0x25, b"abcd")[:50])
    assert len(list(splitter.take(False, False, LONGEST))) == 1
    assert splitter.rest() == pdu(0x25, b"abcd")[:50]
    assert splitter.rest() == b""


class _Sink:
    """Takes Data-In payloads in place."""

    def __init__(self, room: int) -> None:
        self.place = bytearray(room)
        self.taken = 0

    def pdu(self, opcode: int, buffer: object, at: int, ahs_length: int, data: memoryview | None) -> None:
        self.taken += 1

    def data_in_place(self, buffer: object, at: int, length: int) -> memoryview | None:
        return memoryview(self.place)[:length]

    def framing_error(self, error: FramingError) -> None:
        raise AssertionError(error)


@pytest.mark.parametrize("received", [0, 1, 48, 60, 9000, 20000, 20047, 20048, 20049])
def test_what_a_reader_has_begun_is_what_the_stream_held_of_it(received: int) -> None:
    """20001 bytes are received in place; their padding and what precedes them pass through staging."""
    before, large = pdu(0x21), pdu(0x25, bytes(i % 251 for i in range(20001)))
    sink = _Sink(20001)
    reader = PduReader(sink, 65536)
    reader.feed(before)
    reader.feed(large[:received])
    assert reader.begun() == large[:received]
    reader.feed(large[received:])
    assert (reader.begun(), sink.taken) == (b"", 2)
