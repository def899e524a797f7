# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream after a damaged PDU (RFC 3720 6.7): what follows is found, the user's data are never taken for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.iscsi.framing import FramingError, PduReader

SEGMENT = 20_000
OPCODES = (0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F)
LOGIN_RESPONSE, SCSI_COMMAND = 0x23, 0x01


def crc(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, "little")


def pdu(opcode: int, fields: bytes, data: bytes, data_digest: bool) -> bytes:
    """One PDU of a target as it travels with header digests."""
    header = bytes([opcode, 0x80, 0, 0, 0]) + len(data).to_bytes(3, "big") + fields.ljust(40, b"\0")
    padded = data + bytes(-len(data) % 4)
    return header + crc(header) + padded + (crc(padded) if data and data_digest else b"")


@dataclass
class Sink:
    """Keeps what a reader finds; Data-In is received in place where ``in_place``."""

    in_place: bool = False
    found: list[tuple[bytes, bytes]] = field(default_factory=list)
    errors: list[FramingError] = field(default_factory=list)
    damaged_headers: int = 0
    damaged_data: list[bytes] = field(default_factory=list)
    resyncs: int = 0
    placed: bytearray = field(default_factory=bytearray)

    def pdu(
        self, opcode: int, buffer: bytearray | bytes, at: int, ahs_length: int, data: memoryview | None
    ) -> None:
        header = bytes(buffer[at : at + 48])
        assert header[0] == opcode
        content = bytes(data) if data is not None else bytes(self.placed) if header[5:8] != b"\0\0\0" else b""
        self.found.append((header, content))

    def data_in_place(self, buffer: bytearray | bytes, at: int, length: int) -> memoryview | None:
        if not self.in_place:
            return None
        self.placed = bytearray(length)
        return memoryview(self.placed)

    def framing_error(self, error: FramingError) -> None:
        self.errors.append(error)

    def header_damaged(self, waiting: bool) -> None:
        self.damaged_headers += 1

    def resynchronized(self) -> None:
        self.resyncs += 1

    def data_damaged(self, opcode: int, buffer: bytearray | bytes, at: int) -> None:
        self.damaged_data.append(bytes(buffer[at : at + 48]))


def read(
    stream: bytes, chunks: list[int], *, data_digest: bool, in_place: bool = False, recovers: bool = True
) -> Sink:
    """Let a reader have a stream in pieces of these sizes, repeated; 0 is all that fits."""
    sink = Sink(in_place)
    reader = PduReader(sink, SEGMENT)
    reader.header_digest, reader.data_digest, reader.recovers = True, data_digest, recovers
    number = 0
    while stream and not sink.errors:
        buffer = reader.get_buffer()
        assert len(buffer)
        count = min(len(buffer), len(stream), chunks[number % len(chunks)] or len(stream))
        number += 1
        buffer[:count] = stream[:count]
        stream = stream[count:]
        reader.received(count)
    return sink


lengths = st.one_of(st.just(0), st.integers(1, 64), st.sampled_from([8191, 8196, SEGMENT]))
pdus = st.tuples(st.sampled_from(OPCODES), st.binary(max_size=40), lengths, st.integers(0, 255))
chunkings = st.lists(st.one_of(st.integers(1, 90), st.sampled_from([0, 500, 9000])), min_size=1, max_size=6)


def built(parts: list[tuple[int, bytes, int, int]], data_digest: bool) -> list[bytes]:
    return [pdu(op, fields, bytes([fill]) * length, data_digest) for op, fields, length, fill in parts]


def content(raw: bytes) -> tuple[bytes, bytes]:
    return raw[:48], raw[52 : 52 + int.from_bytes(raw[5:8], "big")]


@given(
    before=st.lists(pdus, max_size=2),
    victim=pdus,
    after=st.lists(pdus, min_size=1, max_size=3),
    place=st.integers(0, 51),
    bits=st.integers(1, 255),
    chunks=chunkings,
    data_digest=st.booleans(),
    in_place=st.booleans(),
)
def test_ERR1_02_one_damaged_byte_of_a_header_costs_that_pdu_alone(
    before: list[tuple[int, bytes, int, int]],
    victim: tuple[int, bytes, int, int],
    after: list[tuple[int, bytes, int, int]],
    place: int,
    bits: int,
    chunks: list[int],
    data_digest: bool,
    in_place: bool,
) -> None:
    first, (bad,), last = (built(parts, data_digest) for parts in (before, [victim], after))
    damaged = bytearray(bad)
    damaged[place] ^= bits
    sink = read(b"".join([*first, bytes(damaged), *last]), chunks, data_digest=data_digest, in_place=in_place)
    assert sink.found == [content(raw) for raw in [*first, *last]]
    assert (sink.errors, sink.damaged_headers, sink.resyncs) == ([], 1, 1)


@given(
    parts=st.lists(pdus, min_size=3, max_size=4),
    bits=st.integers(1, 255),
    place=st.integers(0, 51),
    chunks=chunkings,
)
def test_ERR1_02_damaged_headers_in_a_row_are_stepped_over(
    parts: list[tuple[int, bytes, int, int]], bits: int, place: int, chunks: list[int]
) -> None:
    raw = [bytearray(part) for part in built(parts, True)]
    for victim in raw[:-1]:
        victim[place] ^= bits
    sink = read(b"".join(raw), chunks, data_digest=True)
    assert sink.found == [content(bytes(raw[-1]))]
    assert (sink.errors, sink.resyncs) == ([], 1)


@given(
    parts=st.lists(pdus, min_size=2, max_size=4),
    places=st.sets(st.integers(8, 47), min_size=2, max_size=6),
    chunks=chunkings,
)
def test_ERR1_02_damage_that_spares_the_lengths_is_stepped_over_whatever_it_is(
    parts: list[tuple[int, bytes, int, int]], places: set[int], chunks: list[int]
) -> None:
    raw = [bytearray(part) for part in built(parts, True)]
    for place in places:
        raw[0][place] ^= 0x5A
    sink = read(b"".join(raw), chunks, data_digest=True)
    assert sink.found == [content(bytes(part)) for part in raw[1:]]


@pytest.mark.parametrize("chunk", [0, 1, 61])
def test_ERR1_02_the_image_of_a_pdu_in_the_data_is_not_taken_for_one(chunk: int) -> None:
    image = pdu(0x21, b"forged", b"", True)
    victim = bytearray(pdu(0x25, b"read", (image * 30)[:1228], True))
    # One byte of the length 0x4cc is damaged so that the PDU seems to end where the fifth image begins.
    victim[6] = 0
    assert bytes(victim[52 + 0xCC + 4 :]).startswith(image)
    last = pdu(0x20, b"ping", b"", True)
    assert read(bytes(victim) + last, [chunk], data_digest=True).found == [content(last)]
    two = bytearray(victim)
    two[5] ^= 0x40
    two[20] ^= 1
    lost = read(bytes(two) + last, [chunk], data_digest=True)
    assert (lost.found, lost.errors) == ([], [FramingError.HEADER_DIGEST]), "two bytes of lengths: no guess holds"


@pytest.mark.parametrize("opcode", [SCSI_COMMAND, LOGIN_RESPONSE, 0x1C])
def test_ERR1_02_what_a_target_does_not_send_is_no_place_to_go_on(opcode: int) -> None:
    victim = bytearray(pdu(0x21, b"", b"", True))
    victim[30] ^= 1
    sink = read(bytes(victim) + pdu(opcode, b"", b"", True), [0], data_digest=True)
    assert (sink.found, sink.errors) == ([], [FramingError.HEADER_DIGEST])


def test_ERR1_02_a_boundary_is_believed_only_with_a_good_header_at_it() -> None:
    victim = bytearray(pdu(0x25, b"", b"d" * 100, True))
    victim[20] ^= 0x81
    waiting = read(bytes(victim), [0], data_digest=True)
    assert (waiting.found, waiting.errors, waiting.damaged_headers, waiting.resyncs) == ([], [], 1, 0)
    assert read(bytes(victim) + bytes(52), [0], data_digest=True).errors == [FramingError.HEADER_DIGEST]


def test_ERR1_02_at_level_0_a_damaged_header_ends_the_stream() -> None:
    victim = bytearray(pdu(0x21, b"", b"", True))
    victim[30] ^= 1
    sink = read(bytes(victim) + pdu(0x20, b"", b"", True), [0], data_digest=True, recovers=False)
    assert (sink.found, sink.errors) == ([], [FramingError.HEADER_DIGEST])


@given(
    parts=st.lists(pdus, min_size=1, max_size=4), number=st.integers(0, 3), chunks=chunkings, in_place=st.booleans()
)
def test_ERR1_03_damaged_data_cost_that_pdu_alone_and_its_header_is_told(
    parts: list[tuple[int, bytes, int, int]], number: int, chunks: list[int], in_place: bool
) -> None:
    raw = [bytearray(part) for part in built(parts, True)]
    victim = raw[number % len(raw)]
    if len(victim) == 52:
        return
    victim[-5] ^= 0x10
    sink = read(b"".join(raw), chunks, data_digest=True, in_place=in_place)
    assert sink.found == [content(bytes(part)) for part in raw if part is not victim]
    assert sink.damaged_data == [bytes(victim[:48])]
    assert sink.errors == []
