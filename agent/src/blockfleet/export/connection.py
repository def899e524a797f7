# SPDX-License-Identifier: GPL-3.0-or-later
"""One NBD client in the transmission phase: the hot path between a Unix socket and a block device.

Requests are parsed where they were received.  The payload of a WRITE that is not there whole is received straight
into the request's own buffer; the data of a READ are placed by the device behind the reply's header, so that a
reply leaves as one buffer that was never copied.  Completions only append; what they left is handed to the
transport once a loop turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from blockfleet.block.device import BlockDevice, BlockRequest, Operation
from blockfleet.export.admission import Admission, Tally
from blockfleet.export.reply_pool import POOLED, ReplyPool
from blockfleet.export.wire import (
    CHUNK_DONE,
    COOKIE,
    MAXIMUM_PAYLOAD,
    READ_CHUNK,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    CommandFlag,
    TransmissionFlag,
    error_chunk,
    nbd_error,
    simple_reply,
)

MAXIMUM_REQUESTS = 128
"""Requests of one connection that are in the device or answered but not yet handed to the transport."""
MAXIMUM_BYTES = 1 << 26
"""Bytes of payload of those requests; one request more is taken while they are below."""
MAXIMUM_UNSENT = 1 << 22
"""Bytes of replies in the transport above which no further request is taken."""
RECEIVE_BUFFER = 1 << 16
"""Bytes of requests that are received at once."""

_HEADER = REQUEST.size
_READ = int(Operation.READ)
_WRITE = int(Operation.WRITE)
_CMD_READ = int(Command.READ)
_CMD_WRITE = int(Command.WRITE)
_FUA = int(CommandFlag.FUA)
_OFFSET_DATA = int(Chunk.OFFSET_DATA)
_OPERATIONS = {
    int(Command.FLUSH): Operation.FLUSH,
    int(Command.TRIM): Operation.TRIM,
    int(Command.WRITE_ZEROES): Operation.WRITE_ZEROES,
}


class Connection(asyncio.BufferedProtocol):
    """A client that has been told ``flags`` and ``maximum_payload``.

    ``on_lost`` is called once when the connection is gone, with the client's fault if it had one: the device may
    still be at work on what it was given, and whatever it answers then is dropped.
    """

    __slots__ = (
        "_acknowledgements",
        "_admission",
        "_buffer",
        "_bytes",
        "_cause",
        "_closing",
        "_discard",
        "_end",
        "_flush_soon",
        "_in_flight",
        "_loop",
        "_on_lost",
        "_on_other",
        "_on_read",
        "_on_write",
        "_parsing",
        "_payload",
        "_payload_request",
        "_pool",
        "_reading",
        "_replies",
        "_reply_header",
        "_shutting_down",
        "_stalled",
        "_start",
        "_structured",
        "_submit",
        "_tally",
        "_transport",
        "_unsent",
        "_view",
    )

    def __init__(
        self,
        device: BlockDevice,
        flags: TransmissionFlag,
        maximum_payload: int,
        *,
        structured: bool,
        tally: Tally,
        on_lost: Callable[[Connection, str], None],
    ) -> None:
        self._submit = device.submit
        self._admission = Admission(flags, maximum_payload)
        self._structured = structured
        self._reply_header = READ_CHUNK.size if structured else SIMPLE_REPLY.size
        self._tally = tally
        self._on_lost = on_lost
        self._on_read = self._read_done
        self._on_write = self._write_done
        self._on_other = self._other_done
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._payload: memoryview | None = None
        self._payload_request: BlockRequest | None = None
        self._discard = 0
        self._in_flight = 0
        self._bytes = 0
        self._replies: list[bytearray | bytes] = []
        self._acknowledgements: list[bytes] = []
        self._flush_soon = False
        self._parsing = False
        self._stalled = False
        self._reading = True
        self._unsent = False
        self._closing = False
        self._shutting_down = False
        self._cause = ""
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop
        self._pool: ReplyPool

    # --- transport ---------------------------------------------------------------------------------------

    def begin(self, transport: asyncio.Transport, leftover: bytes) -> None:
        """Take over a transport whose handshake is done, and the bytes that came behind it."""
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._pool = ReplyPool(transport)
        transport.set_write_buffer_limits(high=MAXIMUM_UNSENT)
        self._view[: len(leftover)] = leftover
        if leftover:
            self.buffer_updated(len(leftover))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the transport; completions that are still to come find nobody."""
        del exc
        self._transport = None
        self._replies.clear()
        self._acknowledgements.clear()
        self._payload = self._payload_request = None
        self._on_lost(self, self._cause)

    def pause_writing(self) -> None:
        """Take no further request: the client does not read its replies."""
        self._unsent = True
        self._pause_reading()

    def resume_writing(self) -> None:
        """Go on where requests were left."""
        self._unsent = False
        if not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self._flush)

    def shut_down(self) -> None:
        """Answer new requests with ESHUTDOWN and close once those in the device are answered."""
        self._shutting_down = True
        self._admission.shut_down()
        self._close_when_idle()

    def abort(self) -> None:
        """Close at once; replies that were not sent are lost."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def in_flight(self) -> int:
        """How many requests are taken and not answered."""
        return self._in_flight

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes go: into the WRITE that waits for them, else into the receive buffer."""
        del sizehint
        if self._payload is not None:
            return self._payload
        return self._view[self._end :] if self._end else self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        payload = self._payload
        if payload is None:
            self._end += nbytes
            self._parse()
            return
        if nbytes < len(payload):
            self._payload = payload[nbytes:]
            return
        request = self._payload_request
        self._payload = self._payload_request = None
        if request is not None:
            self._parsing = True
            self._start_write(request)
            self._parsing = False
            if self._replies or self._acknowledgements:
                self._flush()

    # --- requests ----------------------------------------------------------------------------------------

    def _parse(self) -> None:
        """Take every whole request that was received, as far as the limits allow, and send what is answered."""
        self._parsing = True
        while not self._closing:
            self._parse_received()
            if not (self._replies or self._acknowledgements):
                break
            self._flush()
            if not self._stalled:
                break
        self._parsing = False
        if self._stalled:
            self._pause_reading()

    def _parse_received(self) -> None:
        buffer, position, end = self._buffer, self._start, self._end
        unpack = REQUEST.unpack_from
        self._stalled = False
        if self._discard:
            count = min(self._discard, end - position)
            self._discard -= count
            position += count
        while end - position >= _HEADER:
            if self._in_flight >= MAXIMUM_REQUESTS or self._bytes >= MAXIMUM_BYTES or self._unsent:
                self._stalled = True
                break
            magic, flags, command, cookie, offset, length = unpack(buffer, position)
            position += _HEADER
            if magic != REQUEST_MAGIC:
                self._violation("bad request magic")
                return
            if command == _CMD_READ:
                self._take_read(flags, cookie, offset, length)
            elif command == _CMD_WRITE:
                position = self._take_write(flags, cookie, offset, length, position)
            else:
                self._take_other(flags, command, cookie, offset, length)
            if self._closing:
                return
        if position == end:
            self._start = self._end = 0
        elif self._stalled:
            self._start = position
        else:
            rest = end - position
            buffer[:rest] = buffer[position:end]
            self._start, self._end = 0, rest

    def _take_read(self, flags: int, cookie: bytes, offset: int, length: int) -> None:
        admission = self._admission
        if flags & admission.read_forbidden or not 0 < length <= admission.read_limit:
            self._refuse(cookie, admission.refusal(_CMD_READ, flags, offset, length))
            return
        header = self._reply_header
        reply = bytearray(header + length) if length < POOLED else self._pool.take(header + length)
        # The header is that of a success; a failure replaces the whole reply.
        if self._structured:
            READ_CHUNK.pack_into(
                reply, 0, STRUCTURED_REPLY_MAGIC, CHUNK_DONE, _OFFSET_DATA, cookie, 8 + length, offset
            )
        else:
            SIMPLE_REPLY.pack_into(reply, 0, SIMPLE_REPLY_MAGIC, 0, cookie)
        self._in_flight += 1
        self._bytes += header + length
        self._tally.reads += 1
        self._tally.read_bytes += length
        self._submit(
            BlockRequest(_READ, offset, length, self._on_read, buffer=memoryview(reply)[header:], context=reply)
        )

    def _take_write(self, flags: int, cookie: bytes, offset: int, length: int, position: int) -> int:
        """Take a WRITE whose header ended at ``position``; return where the next request begins."""
        available = self._end - position
        admission = self._admission
        if flags & admission.write_forbidden or not 0 < length <= admission.write_limit:
            self._refuse(cookie, admission.refusal(_CMD_WRITE, flags, offset, length))
            if length > MAXIMUM_PAYLOAD:
                self._violation("a payload over the limit")
                return position
            skipped = min(length, available)
            self._discard = length - skipped
            return position + skipped
        reply = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        fua = flags & _FUA != 0
        if available >= length:
            after = position + length
            payload = memoryview(self._buffer[position:after])
            self._start_write(
                BlockRequest(_WRITE, offset, length, self._on_write, buffer=payload, fua=fua, context=reply)
            )
            return after
        payload = memoryview(bytearray(length))
        payload[:available] = self._view[position : self._end]
        self._payload = payload[available:]
        self._payload_request = BlockRequest(
            _WRITE, offset, length, self._on_write, buffer=payload, fua=fua, context=reply
        )
        return self._end

    def _start_write(self, request: BlockRequest) -> None:
        self._in_flight += 1
        self._bytes += request.length
        self._tally.writes += 1
        self._tally.written_bytes += request.length
        self._submit(request)

    def _take_other(self, flags: int, command: int, cookie: bytes, offset: int, length: int) -> None:
        if command == Command.DISC:
            self._closing = True
            self._pause_reading()
            self._close_when_idle()
            return
        error = self._admission.refusal(command, flags, offset, length)
        if error:
            self._refuse(cookie, error)
            return
        self._tally.count(command)
        self._in_flight += 1
        self._submit(
            BlockRequest(
                _OPERATIONS[command],
                offset,
                length,
                self._on_other,
                fua=bool(flags & CommandFlag.FUA),
                may_unmap=not flags & CommandFlag.NO_HOLE,
                context=simple_reply(cookie),
            )
        )

    # --- replies -----------------------------------------------------------------------------------------

    def _read_done(self, request: BlockRequest) -> None:
        reply: bytearray = request.context  # type: ignore[assignment]
        if request.error:
            self._bytes -= len(reply)
            self._fail(bytes(reply[COOKIE]), request.error)
            return
        self._replies.append(reply)
        if not self._flush_soon and not self._parsing:
            self._flush_soon = True
            self._loop.call_soon(self._flush)

    def _write_done(self, request: BlockRequest) -> None:
        self._bytes -= request.length
        self._other_done(request)

    def _other_done(self, request: BlockRequest) -> None:
        reply: bytes = request.context  # type: ignore[assignment]
        if request.error:
            self._fail(reply[COOKIE], request.error)
            return
        self._acknowledgements.append(reply)
        if not self._flush_soon and not self._parsing:
            self._flush_soon = True
            self._loop.call_soon(self._flush)

    def _refuse(self, cookie: bytes, error: int) -> None:
        self._in_flight += 1
        self._fail(cookie, error)

    def _fail(self, cookie: bytes, error: int) -> None:
        self._tally.errors += 1
        number = nbd_error(error)
        self._acknowledgements.append(
            error_chunk(cookie, number) if self._structured else simple_reply(cookie, number)
        )
        if not self._flush_soon and not self._parsing:
            self._flush_soon = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand all replies to the transport, then go on with requests that had to wait."""
        self._flush_soon = False
        replies, acknowledgements = self._replies, self._acknowledgements
        self._replies, self._acknowledgements = [], []
        self._in_flight -= len(replies) + len(acknowledgements)
        transport = self._transport
        if transport is None:
            return
        if replies:
            self._bytes -= self._pool.hand_over(replies)
        if acknowledgements:
            small = b"".join(acknowledgements)
            self._pool.hand_over_other(len(small))
            replies.append(small)
        if replies:
            transport.writelines(replies)
        if self._closing or self._shutting_down:
            self._close_when_idle()
        elif not self._parsing and not self._unsent:
            if self._stalled:
                self._parse()
            if not self._stalled and not self._reading and not self._closing:
                self._reading = True
                transport.resume_reading()

    def _pause_reading(self) -> None:
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _close_when_idle(self) -> None:
        """Close once the last request is answered."""
        if self._in_flight == 0 and self._transport is not None:
            self._transport.close()

    def _violation(self, cause: str) -> None:
        """Close because the client broke the protocol; what is already answered is still sent."""
        self._cause = cause
        self._closing = True
        if self._replies or self._acknowledgements:
            self._flush()
        if self._transport is not None:
            self._transport.close()
