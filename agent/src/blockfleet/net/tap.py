# SPDX-License-Identifier: GPL-3.0-or-later
"""Taps on the TCP connections of a nexus: what a trace is made of.

A tap stands between asyncio's transport and the :class:`~blockfleet.net.transport.SessionTransport`, towards each
as the other, and copies the PDUs that pass.  It is there during every login, whose PDUs it keeps because they say
what follows, and steps aside in full feature phase while nobody reads: then the connection is as it would be
without.

Wireshark does not believe the login about data digests; it looks at the first PDU with data that is whole in one
segment.  So where they are in use the first such PDU, which is of the scan that follows each login, is kept too.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.constants import OPCODE_MASK, LoginStage, Opcode
from blockfleet.iscsi.layout import LENGTHS, LENGTHS_OFFSET, LOGIN_RESPONSE, split_lengths
from blockfleet.iscsi.splitter import LOGIN_OPCODES, PduSplitter

MAXIMUM_LOGIN_BYTES = 64 * 1024
"""Bytes of login PDUs that are kept of a connection; the newest, where a login has more."""

MAXIMUM_SAMPLE = 16 * 1024
"""Bytes of the first PDU with data, for it to be kept with the login."""

OUTBOUND, INBOUND = False, True

_TRANSIT_TO_FULL_FEATURE = 0x80 | LoginStage.FULL_FEATURE_PHASE
_STAGES = 0x83
"""T bit and NSG of a login PDU's byte 1 (RFC 3720 10.13)."""

_numbers = itertools.count(1)


def wall_clock() -> int:
    """Return microseconds since the epoch."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Link:
    """A TCP connection; ``number`` is its own in this process, ``opened`` is in microseconds since the epoch."""

    number: int
    local: tuple[str, int]
    remote: tuple[str, int]
    opened: int


@dataclass(frozen=True, slots=True)
class Passed:
    """A PDU that passed, with its digests; ``time`` is in microseconds since the epoch."""

    time: int
    inbound: bool
    pdu: bytes


class TraceSink(Protocol):
    """Who reads; the calls come from the event loop between two PDUs and must return at once."""

    def link_opened(self, link: Link, login: Iterable[Passed]) -> None:
        """Take a connection, with what is kept of its login if that was before this call."""

    def link_passed(self, link: Link, passed: Passed) -> None:
        """Take a PDU; the last one of a connection may be cut off."""

    def link_closed(self, link: Link, time: int, reset: bool) -> None:
        """Take the end of a connection."""


class Recorder:
    """The taps of one nexus, and who reads them."""

    def __init__(self) -> None:
        self.sinks: tuple[TraceSink, ...] = ()
        self._taps: set[Tap] = set()

    def tap(self, connection: Connection, transport: asyncio.Transport, protocol: Tapped) -> Tap:
        """Tap a connection that has just come up, before anything is sent or received on it."""
        tap = Tap(self, connection, transport, protocol)
        self._taps.add(tap)
        for sink in self.sinks:
            sink.link_opened(tap.link, ())
        tap.step_between()
        return tap

    def attach(self, sink: TraceSink) -> None:
        """Let ``sink`` read every connection from now on."""
        self.sinks = (*self.sinks, sink)
        for tap in sorted(self._taps, key=lambda tap: tap.link.number):
            tap.read_by(sink)

    def detach(self, sink: TraceSink) -> None:
        """Let ``sink`` read no more; taps that nobody reads step aside."""
        self.sinks = tuple(other for other in self.sinks if other is not sink)
        for tap in self._taps:
            tap.step_aside()

    def remove(self, tap: Tap) -> None:
        """Forget a tap whose connection has ended."""
        self._taps.discard(tap)


class Tapped(asyncio.BufferedProtocol, ABC):
    """The protocol that a tap stands before."""

    @abstractmethod
    def write_to(self, transport: asyncio.Transport) -> None:
        """Send through ``transport`` from now on: the tap's, or the connection's own."""


class Tap(asyncio.BufferedProtocol):
    """One connection's tap: a protocol to the transport, and a transport to the protocol.

    What the protocol asks of its transport, and is not a matter of a trace, goes to the transport as it is.
    """

    def __init__(
        self, recorder: Recorder, connection: Connection, transport: asyncio.Transport, protocol: Tapped
    ) -> None:
        self._recorder = recorder
        self._connection = connection
        self._transport = transport
        self._protocol = protocol
        self.link = Link(
            next(_numbers),
            transport.get_extra_info("sockname")[:2],
            transport.get_extra_info("peername")[:2],
            wall_clock(),
        )
        self._between = False
        self._login: deque[Passed] = deque()
        self._login_bytes = 0
        self._full_feature = False
        self._sampled = False
        self._reset = False
        self._view = memoryview(b"")
        self._received: list[tuple[int, bytes]] = []
        self._splitters = (PduSplitter(), PduSplitter())

    def __getattr__(self, name: str) -> Any:
        """Return what the transport has (asyncio.Transport)."""
        return getattr(self._transport, name)

    # -- coming and going

    def read_by(self, sink: TraceSink) -> None:
        """Tell a new sink of the connection and its login, and be between if that is not so yet."""
        sink.link_opened(self.link, tuple(self._login))
        if not self._between:
            self._splitters = (PduSplitter(), PduSplitter())
            # What is sent is always whole PDUs; what is received may have come in part.
            self._splitters[INBOUND].feed(self._connection.begun())
            self.step_between()

    def step_between(self) -> None:
        """Let everything pass through here."""
        self._between = True
        self._transport.set_protocol(self)
        self._protocol.write_to(cast("asyncio.Transport", self))

    def step_aside(self) -> None:
        """Leave transport and protocol to each other, unless somebody reads or what is kept is not complete yet."""
        known = self._sampled or (self._full_feature and not self._connection.data_digest)
        if known and self._between and not self._recorder.sinks:
            self._between = False
            self._transport.set_protocol(self._protocol)
            self._protocol.write_to(self._transport)

    def gone(self) -> None:
        """Note that the connection has ended; the protocol calls this whether the tap is between or not."""
        self._recorder.remove(self)
        now = wall_clock()
        for inbound in (OUTBOUND, INBOUND):
            self._split(inbound, now)
            rest = self._splitters[inbound].rest() if self._between else b""
            if rest:
                self._tell(Passed(now, inbound, rest))
        for sink in self._recorder.sinks:
            sink.link_closed(self.link, now, self._reset)

    # -- towards the transport: asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        self._view = view = cast("memoryview", self._protocol.get_buffer(sizehint))
        return view

    def buffer_updated(self, nbytes: int) -> None:
        """Copy what was received and pass it on; it is cut into PDUs when it is known how the login ended."""
        self._received.append((wall_clock(), bytes(self._view[:nbytes])))
        self._protocol.buffer_updated(nbytes)
        self._take_received()
        self.step_aside()

    def pause_writing(self) -> None:
        """Pass on that the send buffer is full."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that there is room again."""
        self._protocol.resume_writing()

    def eof_received(self) -> bool | None:
        """Pass on that the target sends no more."""
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on the end; the protocol tells :meth:`gone`."""
        self._reset = self._reset or exc is not None
        self._protocol.connection_lost(exc)

    # -- towards the protocol: asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Copy what is sent and pass it on."""
        self._take_received()
        self._sent((data,))
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Copy what is sent and pass it on."""
        segments = tuple(list_of_data)
        self._take_received()
        self._sent(segments)
        self._transport.writelines(segments)

    def abort(self) -> None:
        """Pass on that the connection is reset."""
        self._reset = True
        self._transport.abort()

    # -- what passed

    def _sent(self, segments: Iterable[bytes | bytearray | memoryview]) -> None:
        splitter = self._splitters[OUTBOUND]
        for segment in segments:
            splitter.feed(segment)
        self._split(OUTBOUND, wall_clock())

    def _take_received(self) -> None:
        """Cut what was received, after the connection has taken it: its digests are then those of these bytes."""
        received = self._received
        if received:
            self._received = []
            for moment, data in received:
                self._splitters[INBOUND].feed(data)
                self._split(INBOUND, moment)

    def _split(self, inbound: bool, moment: int) -> None:
        connection = self._connection
        longest = connection.negotiated.max_recv_data_segment_length
        for pdu in self._splitters[inbound].take(connection.header_digest, connection.data_digest, longest):
            passed = Passed(moment, inbound, pdu)
            if not self._sampled:
                self._keep(passed)
            self._tell(passed)

    def _keep(self, passed: Passed) -> None:
        if passed.pdu[0] & OPCODE_MASK not in LOGIN_OPCODES:
            self._sample(passed)
            return
        self._login.append(passed)
        self._login_bytes += len(passed.pdu)
        while self._login_bytes > MAXIMUM_LOGIN_BYTES and len(self._login) > 1:
            self._login_bytes -= len(self._login.popleft().pdu)
        if passed.pdu[0] & OPCODE_MASK == Opcode.LOGIN_RESPONSE:
            _, stages, *_, status = LOGIN_RESPONSE.unpack_from(passed.pdu)
            self._full_feature = not status and stages & _STAGES == _TRANSIT_TO_FULL_FEATURE

    def _sample(self, passed: Passed) -> None:
        lengths = LENGTHS.unpack_from(passed.pdu, LENGTHS_OFFSET)[0]
        if self._connection.data_digest and split_lengths(lengths)[1]:
            self._sampled = True
            if len(passed.pdu) <= MAXIMUM_SAMPLE:
                self._login.append(passed)

    def _tell(self, passed: Passed) -> None:
        for sink in self._recorder.sinks:
            sink.link_passed(self.link, passed)
