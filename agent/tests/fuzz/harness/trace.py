# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace: a copy of both directions cut into PDUs, masked, described and written as a capture file.

The capture is read again here, block by block and packet by packet, and must hold the stream that went in.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from tests.fuzz.harness import wire
from tests.fuzz.harness.base import CANARY, Harness
from tests.fuzz.source import Source

from blockfleet.cli.tracefile import TraceFile
from blockfleet.engine.interface import TraceSpec
from blockfleet.engine.trace import Trace
from blockfleet.iscsi.describe import describe
from blockfleet.iscsi.masking import LoginMask
from blockfleet.iscsi.splitter import PduSplitter
from blockfleet.net.tap import Link, Passed

TARGET = "iqn.2026-11.com.example:disk"
LOGIN_REQUEST = 0x03
_LOGIN = (LOGIN_REQUEST, wire.LOGIN_RESPONSE)
_CONTINUE = 0x40
_WORDS = (
    b"CHAP_R=",
    CANARY.encode(),
    b"\0",
    b"CHAP_",
    b"R=",
    b"CHAP_N=host\0",
    b"CHAP_C=0x12\0",
    b"=",
    b"C",
    b"X=",
)
_ENDS = ((("192.0.2.1", 40000), ("192.0.2.2", 3260)), (("fe80::1%eth0", 40000), ("fe80::2%eth0", 860)))
_SYN = 0x02
_LONGEST = 1 << 15
MAXIMUM_STREAM = 1 << 17
"""Bytes of one direction, but for its last PDU."""


def _stream(source: Source, header_digest: bool, data_digest: bool) -> bytes:
    """Build one direction: logins, PDUs with digests that fit, damage and raw bytes."""
    stream = bytearray()
    login = True
    while source.left and len(stream) < MAXIMUM_STREAM:
        kind = source.number()
        if kind >= 0xE0:
            stream += source.take(kind - 0xDF)
            continue
        text = b"".join(source.choose(_WORDS) for _ in range(kind & 7))
        login = login and bool(kind & 8)
        opcode = source.choose(_LOGIN) if login else source.number()
        data = text if kind & 0x10 else b"\x5a" * (source.number() * source.choose((1, 1, 1, 127)))
        bhs = wire.header(opcode, source.choose((0, _CONTINUE, 0x87, source.number())), source.number())
        bhs[8:48] = source.take(kind >> 5).ljust(40, b"\x5a")
        digests = (False, False) if login else (header_digest, data_digest)
        pdu = wire.frame(bhs, data, *digests)
        if kind & 0xC0 == 0xC0:
            pdu[source.number() % len(pdu)] ^= 1 + (kind & 0x1F)
        stream += pdu
    return bytes(stream)


def _cut(source: Source, stream: bytes, digests: tuple[bool, bool]) -> Iterator[bytes]:
    """Yield PDUs as they become whole, then the rest."""
    splitter = PduSplitter()
    chunk = max(source.choose((1 << 16, 48, 1000, 1)), len(stream) // 256)
    for at in range(0, len(stream), chunk):
        splitter.feed(stream[at : at + chunk])
        yield from splitter.take(*digests, _LONGEST)
    rest = splitter.rest()
    if rest:
        yield rest


def _text(pdu: bytes) -> slice:
    begin = 48 + 4 * pdu[4]
    return slice(begin, begin + int.from_bytes(pdu[5:8], "big"))


def _masked(texts: list[bytes]) -> bytes:
    """Mask pairs that go through several PDUs by looking at all of them at once."""
    pairs = b"".join(texts).split(b"\0")
    return b"\0".join(
        b"CHAP_R=" + b"*" * (len(pair) - 7) if pair.startswith(b"CHAP_R=") else pair for pair in pairs
    )


def _check_mask(pdus: list[bytes]) -> None:
    mask = LoginMask()
    run: list[tuple[bytes, bytes]] = []
    for pdu in pdus:
        shown = mask(pdu)
        assert len(shown) == len(pdu)
        if len(pdu) < 48 or pdu[0] & 0x3F not in _LOGIN:
            assert shown == pdu
            continue
        place = _text(pdu)
        assert (shown[: place.start], shown[place.stop :]) == (pdu[: place.start], pdu[place.stop :])
        run.append((pdu[place], shown[place]))
        if not pdu[1] & _CONTINUE:
            assert b"".join(text for _, text in run) == _masked([text for text, _ in run]), (
                "a mask that is not right"
            )
            run.clear()


def _check_words(pdu: bytes) -> None:
    words = describe(pdu)
    assert words.name.isprintable()
    assert all(isinstance(value, int) or value.isprintable() for value in words.fields.values()), words
    assert sum(len(str(value)) for value in words.fields.values()) < 1000


def _written(source: Source, directions: dict[bool, list[bytes]]) -> bytes:
    """Put the PDUs of both directions through a trace into a file."""
    trace = Trace(TraceSpec(target=TARGET, with_chap=True))
    out = io.BytesIO()
    file = TraceFile(out, TARGET)
    local, remote = source.choose(_ENDS)
    link = Link(7, local, remote, 1_000_000)
    trace.opened(link, "key", ())
    seen = 0
    for inbound, pdus in directions.items():
        for pdu in pdus:
            seen += 1
            trace.passed(link, Passed(1_000_000 + seen, inbound, pdu))
            if seen % 7 == 0:
                file.write(trace._batch())
    trace.closed(link, 2_000_000, source.flag())
    trace.end()
    while not (batch := trace._batch()).ended:
        file.write(batch)
    file.write(batch)
    assert batch.dropped == 0
    file.finish(seen, batch.dropped, 2_000_000)
    assert trace._held_bytes == 0
    return out.getvalue()


def _packets(capture: bytes) -> Iterator[bytes]:
    """Read the enhanced packet blocks of a pcapng file of either byte order (the pcapng specification, 4.3)."""
    order = "little" if capture[8:12] == b"\x4d\x3c\x2b\x1a" else "big"
    at = 0
    while at < len(capture):
        kind, length = (int.from_bytes(capture[at + n : at + n + 4], order) for n in (0, 4))
        assert length >= 12
        assert length % 4 == 0
        assert int.from_bytes(capture[at + length - 4 : at + length], order) == length, "a block that is not whole"
        if kind == 6:
            size = int.from_bytes(capture[at + 20 : at + 24], order)
            yield capture[at + 28 : at + 28 + size]
        at += length


def _payloads(capture: bytes) -> dict[int, bytearray]:
    """Put the TCP payloads together by the port that they come from; a SYN says where its numbers begin."""
    streams: dict[int, bytearray] = {}
    first: dict[int, int] = {}
    for packet in _packets(capture):
        network = 4 * (packet[0] & 0xF) if packet[0] >> 4 == 4 else 40
        tcp = packet[network:]
        port, number = int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[4:8], "big")
        if tcp[13] & _SYN:
            first[port], streams[port] = number + 1, bytearray()
        payload = tcp[4 * (tcp[12] >> 4) :]
        if payload:
            follows = first[port] + len(streams[port]) & 0xFFFFFFFF
            assert number == follows, "a sequence number that does not follow"
            streams[port] += payload
    return streams


def test_one_input(data: bytes) -> None:
    """Trace the two directions that the bytes describe."""
    source = Source(data)
    bits = source.number()
    digests = (bool(bits & 1), bool(bits & 2))
    outbound = Source(source.take(source.number(2) % 2048))
    streams = {False: _stream(outbound, *digests), True: _stream(source, *digests)}
    directions = {}
    for inbound, stream in streams.items():
        pdus = list(_cut(outbound, stream, digests))
        assert b"".join(pdus) == stream, "bytes are lost"
        _check_mask(pdus)
        for pdu in pdus:
            _check_words(pdu)
        directions[inbound] = pdus
    sent = _payloads(_written(outbound, directions))
    assert [bytes(stream) for stream in sent.values()] == [streams[False], streams[True]]


HARNESS = Harness("trace", "traces of a session's PDUs", test_one_input, maximum_length=2048, tokens=_WORDS)
