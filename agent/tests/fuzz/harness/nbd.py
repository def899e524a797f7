# SPDX-License-Identifier: GPL-3.0-or-later
"""An NBD client that is hostile: handshake and requests, on a loop and a transport that are made of lists."""

from __future__ import annotations

import asyncio
import struct
from asyncio import events
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from tests.export.memory_disk import MemoryDisk
from tests.fuzz.harness.base import Harness
from tests.fuzz.source import Source

from blockfleet.block.device import Geometry
from blockfleet.export.admission import Tally
from blockfleet.export.connection import MAXIMUM_BYTES, MAXIMUM_REQUESTS, MAXIMUM_UNSENT, Connection
from blockfleet.export.handshake import MAXIMUM_HANDSHAKE, Handshake, HandshakePhase
from blockfleet.export.wire import describe

# The figures of the protocol document, written down a second time.
OPTION_MAGIC = b"IHAVEOPT"
REQUEST = struct.Struct(">IHH8sQI")
SIMPLE = struct.Struct(">II8s")
CHUNK = struct.Struct(">IHH8sI")
READ, WRITE, DISC = 0, 1, 2
ENOUGH = 4 << 20
"""Bytes of replies after which a client stops."""
MAXIMUM_PIECES = 256
"""Pieces in which a client's bytes come."""
LEFTOVER = 8192
"""Bytes that can come behind a handshake: what its transport receives at once."""

_SIZE = 1 << 18
_GEOMETRIES = tuple(
    Geometry(_SIZE, block, 4096, limit, read_only=read_only, can_trim=full, can_write_zeroes=full, can_fua=full)
    for block, limit, read_only, full in ((512, 1 << 16, False, True), (4096, 1 << 15, True, False))
)
_LENGTHS = (0, 1, 512, 4096, 8192, 1 << 15, 1 << 16, (1 << 16) + 1, _SIZE, 1 << 25, (1 << 25) + 1, 0xFFFFFFFF)
_OFFSETS = (0, 1, 512, 4096, _SIZE - 512, _SIZE, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)


class Loop:
    """Stands for the event loop: callbacks wait until they are let run."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        self.ready.append((callback, arguments))

    def run(self) -> None:
        """Run what waits, and what that makes wait; it must come to an end."""
        for _ in range(10_000):
            if not self.ready:
                return
            callback, arguments = self.ready.popleft()
            callback(*arguments)
        raise AssertionError("the loop never comes to rest")


class Transport:
    """Takes what is written; ``full`` makes it look like one whose client does not read."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.unsent = 0
        self.full = False
        self.reading = True
        self.closed = False
        self.protocol: Connection | None = None
        self._paused = False

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == MAXIMUM_UNSENT

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def writelines(self, parts: list[bytes]) -> None:
        for part in parts:
            self.sent += part
            self.unsent += len(part) if self.full else 0
        if self.unsent > MAXIMUM_UNSENT and not self._paused and self.protocol is not None:
            self._paused = True
            self.protocol.pause_writing()

    def drain(self) -> None:
        """Let the client read everything."""
        self.full, self.unsent = False, 0
        if self._paused and self.protocol is not None:
            self._paused = False
            self.protocol.resume_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    abort = close


class Client:
    """Drives one connection and holds it to the protocol."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.device = MemoryDisk(source.choose(_GEOMETRIES))
        self.structured = source.flag()
        self.cookies: dict[bytes, set[int]] = {}
        """The lengths of the replies that each cookie may have."""
        self.lost = 0
        self.transport = Transport()
        self.loop = Loop()
        description = describe("vol", self.device.geometry)
        self.connection = Connection(
            self.device,
            description.flags,
            description.maximum_payload,
            structured=self.structured,
            tally=Tally(),
            on_lost=self._lost,
        )
        self.transport.protocol = self.connection

    def _lost(self, *_: object) -> None:
        self.lost += 1

    def run(self) -> None:
        events._set_running_loop(cast("asyncio.AbstractEventLoop", self.loop))
        try:
            self.connection.begin(cast("asyncio.Transport", self.transport), self._request()[:LEFTOVER])
            while self.source.left and not self.transport.closed and len(self.transport.sent) < ENOUGH:
                self.source.choose(_STEPS)(self)
                self._check_bounds()
            self._finish()
        finally:
            events._set_running_loop(None)

    # -- steps

    def request(self) -> None:
        self.feed(self._request())

    def _request(self) -> bytes:
        """One request, right in most of its fields, with the payload that it announces or less."""
        source = self.source
        odd = source.number()
        command = source.choose((READ, WRITE, READ, WRITE, 3, 4, 6, DISC if odd == 7 else 5, source.number(2)))
        flags = source.choose((0, 0, 0, 1, 2, 4, 8, 16, 0xFFFF))
        offset, length = source.choose(_OFFSETS), source.choose(_LENGTHS)
        cookie = source.take(2).rjust(8, b"c")
        magic = 0x25609513 if odd != 8 else source.number(4)
        payload = bytes(min(length, 1 << 16)) if command == WRITE else b""
        if odd & 0xF0 == 0xF0:
            payload = payload[: source.number(2)]
        self.cookies.setdefault(cookie, set()).add(length if command == READ else 0)
        return REQUEST.pack(magic, flags, command & 0xFFFF, cookie, offset, length) + payload

    def burst(self) -> None:
        """Send one request many times; long payloads only a few."""
        request = self._request()
        count = self.source.number() if len(request) < 600 else self.source.number() & 7
        self.feed(request * count)

    def raw(self) -> None:
        self.feed(self.source.take(self.source.number()))

    def feed(self, data: bytes) -> None:
        size = max(self.source.choose((1 << 20, 1 << 20, 1, 7, 28, 4096)), len(data) // MAXIMUM_PIECES)
        while data and not self.transport.closed and self.transport.reading:
            buffer = self.connection.get_buffer(-1)
            count = min(len(buffer), len(data), size)
            assert count, "an empty buffer to receive into"
            buffer[:count] = data[:count]
            data = data[count:]
            self.connection.buffer_updated(count)

    def turn(self) -> None:
        self.loop.run()

    def hold(self) -> None:
        self.device.hold = True

    def release(self) -> None:
        self.device.release(min(self.source.number(), len(self.device.held)), newest_first=self.source.flag())

    def fail(self) -> None:
        self.device.fail_with = self.source.choose((0, 5, 28, 95, 22, 999))

    def stop_reading(self) -> None:
        self.transport.full = True

    def read_all(self) -> None:
        self.transport.drain()

    def shut_down(self) -> None:
        if self.source.number() == 1:
            self.connection.shut_down()

    # -- what must hold

    def _check_bounds(self) -> None:
        connection = self.connection
        # What was received at once may be refused at once: each refusal is a request of 28 bytes in 64 KiB.
        assert 0 <= connection.in_flight <= MAXIMUM_REQUESTS + 1, connection.in_flight
        assert 0 <= connection._bytes <= MAXIMUM_BYTES + (1 << 25) + 64, connection._bytes

    def _finish(self) -> None:
        self.device.hold = False
        self.device.release()
        self.transport.drain()
        self.loop.run()
        assert not self.connection.in_flight, "a request was never answered"
        self.connection.connection_lost(None)
        self.loop.run()
        assert self.lost == 1
        _follow(bytes(self.transport.sent), self.cookies)


_STEPS: tuple[Callable[[Client], None], ...] = (
    Client.request,
    Client.request,
    Client.request,
    Client.burst,
    Client.turn,
    Client.hold,
    Client.release,
    Client.fail,
    Client.stop_reading,
    Client.read_all,
    Client.shut_down,
    Client.raw,
)


def _follow(stream: bytes, cookies: dict[bytes, set[int]]) -> None:
    """Follow the replies to their end: each whole, each of a kind and a length that its request allows.

    Only READs must be answered in chunks where those were agreed on.  Replies to bytes that were no request have
    cookies that nobody chose: behind them a simple reply cannot be followed.
    """
    at = 0
    while at < len(stream):
        if stream[at : at + 4] == b"\x66\x8e\x33\xef":
            _, flags, kind, cookie, length = CHUNK.unpack_from(stream, at)
            assert flags == 1
            assert kind in (1, 0x8001)
            at += CHUNK.size + length
            assert kind != 1 or cookie not in cookies or length - 8 in cookies[cookie]
            continue
        magic, error, cookie = SIMPLE.unpack_from(stream, at)
        assert magic == 0x67446698
        at += SIMPLE.size
        if cookie not in cookies or len(cookies[cookie]) != 1:
            return
        at += 0 if error else min(cookies[cookie])
    assert at == len(stream), "a reply is cut short"


def _handshake(source: Source) -> None:
    """Send options that are right in most of their fields."""
    handshake = Handshake(describe("vol", source.choose(_GEOMETRIES)))
    stream = source.choose((b"\0\0\0\1", b"\0\0\0\3", b"\0\0\0\0", source.take(4)))
    while source.left:
        kind = source.number()
        if kind >= 0xF0:
            stream += source.take(source.number())
            continue
        option = source.choose((7, 6, 1, 3, 2, 8, 9, 10, 5, source.number(4)))
        name = source.choose((b"vol", b"", b"other", b"v" * 5000))
        data = source.choose((len(name).to_bytes(4, "big") + name + b"\0\1\0\3", name, b"", source.take(kind)))
        length = source.choose((len(data), len(data), len(data), source.number(4), 1 << 31))
        stream += OPTION_MAGIC + option.to_bytes(4, "big") + length.to_bytes(4, "big") + data
    chunk = source.choose((8192, 1, 20))
    sent = 0
    for at in range(0, len(stream), chunk):
        sent += len(handshake.receive(stream[at : at + chunk]))
        if handshake.phase in (HandshakePhase.CLOSED, HandshakePhase.TRANSMISSION):
            break
    # No option of 16 bytes or more is worth more than its name back, six times at most.
    assert sent <= 256 * (1 + len(stream) // 16)
    assert len(handshake._received) <= MAXIMUM_HANDSHAKE + 8192
    assert handshake.phase is not HandshakePhase.TRANSMISSION or not handshake.cause


def _transmission(source: Source) -> None:
    Client(source).run()


_PARTS: tuple[Callable[[Source], Any], ...] = (_transmission, _handshake)


def test_one_input(data: bytes) -> None:
    """Let the first byte choose the phase."""
    source = Source(data)
    source.choose(_PARTS)(source)


HARNESS = Harness("nbd", "NBD handshake and requests", test_one_input, maximum_length=2048, tokens=(OPTION_MAGIC,))
