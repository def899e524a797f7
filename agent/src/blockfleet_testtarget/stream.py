# SPDX-License-Identifier: GPL-3.0-or-later
"""PDUs over a TCP connection: segmentation, padding, digests, flow control, and slow or dead networks."""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import abstractmethod
from collections import deque
from typing import cast

from crc32c import crc32c

from blockfleet_testtarget.codec import DIGEST_LENGTH, HEADER_LENGTH, Pdu

_LENGTHS = struct.Struct(">I")
_DIGEST = struct.Struct("<I")
_PADS = (b"", b"\0\0\0", b"\0\0", b"\0")
HIGH_WATER = 4 << 20
RECEIVE_BUFFER = 256 << 10
LOGIN_SEGMENT_LIMIT = 16384


class PduStream(asyncio.BufferedProtocol):
    """The lower half of a connection. What goes wrong closes it, with the cause in `cause`.

    `own_segment` bounds received data segments; `header_digest` and `data_digest` say whether both
    directions carry them; `skips_headers` that a PDU with a wrong header digest is dropped where the
    next one can be found, and does not end the connection. `delay` (seconds) and `drip` (bytes,
    seconds) slow sending down.
    """

    def __init__(self) -> None:
        self.own_segment = LOGIN_SEGMENT_LIMIT
        self.header_digest = False
        self.data_digest = False
        self.skips_headers = False
        self.cause = ""
        self.frozen = False
        self.delay = 0.0
        self.drip: tuple[int, float] | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._doubtful = False
        self._out: list[bytes | memoryview] = []
        self._flush_due = False
        self._held: deque[tuple[float, bytes]] = deque()
        self._release_timer: asyncio.TimerHandle | None = None
        self._close_when_sent = False

    @abstractmethod
    def opened(self) -> None:
        """The connection is there."""

    @abstractmethod
    def ended(self) -> None:
        """The connection is gone; `cause` says why."""

    @abstractmethod
    def pdu_received(self, pdu: Pdu, *, wrong_data: bool) -> None:
        """A PDU came; its data is valid during the call, and corrupt when `wrong_data`."""

    @abstractmethod
    def violation(self, text: str) -> None:
        """The initiator did something that it must not do."""

    def digest_error(self, text: str) -> None:
        """A digest was wrong."""
        self.violation(text)

    # ---- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.opened()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.cause:
            self.cause = str(exc) if exc else "closed by the initiator"
        if self._release_timer is not None:
            self._release_timer.cancel()
        self.ended()

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self.frozen:
            self._transport.resume_reading()

    def freeze(self) -> None:
        """Neither read nor send, as when the network ends in a black hole."""
        self.frozen = True
        if self.writable and self._transport is not None:
            self._transport.pause_reading()

    def thaw(self) -> None:
        """Go on where `freeze` stopped: what came meanwhile is handled now."""
        if not self.frozen:
            return
        self.frozen = False
        self.resume_writing()
        self.flush()
        self.buffer_updated(0)

    @property
    def writable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and not self._close_when_sent

    def close(self, cause: str = "") -> None:
        """Send what is queued, then close."""
        if not self.cause:
            self.cause = cause
        self.flush()
        if self._held and not self.frozen:
            self._close_when_sent = True
        elif self._transport is not None:
            self._transport.close()

    def reset(self, cause: str = "reset") -> None:
        """Close by RST: what is queued is lost."""
        if not self.cause:
            self.cause = cause
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def half_close(self) -> None:
        """Send FIN and keep reading."""
        self.flush()
        if self._transport is not None:
            self._transport.write_eof()

    # ---- receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint  # the transport's guess; the buffer is ours
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._end < min(len(self._buffer) // 2, 65536):
            held = self._end - self._start
            self._view[:held] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, held
        return self._view[self._end :]

    def _make_room(self, total: int) -> None:
        if total <= len(self._buffer):
            return
        grown = bytearray(2 * total)
        held = self._end - self._start
        grown[:held] = self._view[self._start : self._end]
        self._buffer, self._view = grown, memoryview(grown)
        self._start, self._end = 0, held

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        while self._end - self._start >= HEADER_LENGTH and self.writable and not self.frozen:
            if not self._take_pdu():
                break
        self.flush()

    def _take_pdu(self) -> bool:
        start = self._start
        lengths = _LENGTHS.unpack_from(self._buffer, start + 4)[0]
        ahs_length, data_length = (lengths >> 24) * 4, lengths & 0xFFFFFF
        header_end = start + HEADER_LENGTH + ahs_length
        if self._doubtful and not self._confirmed(header_end):
            return False
        if data_length > self.own_segment:
            self.violation(f"data segment of {data_length} bytes where {self.own_segment} is the limit")
            self.close("data segment too long")
            return False
        data_start = header_end + (DIGEST_LENGTH if self.header_digest else 0)
        data_end = data_start + data_length
        padded_end = data_end + (-data_length & 3)
        end = padded_end + (DIGEST_LENGTH if self.data_digest and data_length else 0)
        if end > self._end:
            self._make_room(end - start)
            return False
        view = self._view
        if self.header_digest and _DIGEST.unpack_from(view, header_end)[0] != crc32c(view[start:header_end]):
            return self._bad_header(end)
        bhs = bytes(view[start : start + HEADER_LENGTH])
        ahs = bytes(view[start + HEADER_LENGTH : header_end]) if ahs_length else b""
        pdu = Pdu(bhs, view[data_start:data_end], ahs)
        wrong_data = bool(
            self.data_digest
            and data_length
            and _DIGEST.unpack_from(view, padded_end)[0] != crc32c(view[data_start:padded_end])
        )
        self._start = end
        self.pdu_received(pdu, wrong_data=wrong_data)
        return True

    def _bad_header(self, end: int) -> bool:
        self.digest_error("header digest is wrong")
        if not self.skips_headers:
            self.close("header digest error")
            return False
        self._doubtful = True
        self._start = end
        return True

    def _confirmed(self, header_end: int) -> bool:
        # The length of a bad header may be what is wrong in it, so that the place of the next PDU is
        # believed only when a good header is found there (6.7).
        if header_end + DIGEST_LENGTH > self._end:
            return False
        view = self._view
        if _DIGEST.unpack_from(view, header_end)[0] != crc32c(view[self._start : header_end]):
            self.close("header digest error, and no header follows")
            return False
        self._doubtful = False
        return True

    # ---- sending

    def emit(self, pdu: Pdu) -> None:
        """Queue a PDU as it is, around all faults."""
        self.queue(pdu.bhs + pdu.ahs, pdu.data)

    def emit_bytes(self, raw: bytes) -> None:
        """Queue raw bytes: no digest, no padding."""
        self._out.append(raw)
        self._schedule_flush()

    def encode(self, bhs: bytes, data: bytes | bytearray | memoryview) -> list[bytes | memoryview]:
        """Return a PDU as it travels on this connection: header, digests, data, padding."""
        parts: list[bytes | memoryview] = [bhs]
        if self.header_digest:
            parts.append(_DIGEST.pack(crc32c(bhs)))
        if data:
            pad = _PADS[len(data) & 3]
            parts.append(memoryview(data))
            if pad:
                parts.append(pad)
            if self.data_digest:
                parts.append(_DIGEST.pack(crc32c(pad, crc32c(data)) if pad else crc32c(data)))
        return parts

    def queue(self, bhs: bytes, data: bytes | bytearray | memoryview) -> None:
        """Queue a PDU for the end of the loop's turn."""
        if self.header_digest or data:
            self._out += self.encode(bhs, data)
        else:
            self._out.append(bhs)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Hand what is queued to the transport, now or after the delay that is set."""
        self._flush_due = False
        if not self._out or self.frozen:
            return
        parts, self._out = self._out, []
        if self._transport is None or self._transport.is_closing():
            return
        if self.delay or self._held or self.drip is not None:
            self._hold(b"".join(parts))
        else:
            self._transport.writelines(parts)

    def _hold(self, raw: bytes) -> None:
        loop = asyncio.get_running_loop()
        size, interval = self.drip or (len(raw), 0.0)
        due = loop.time() + self.delay
        if self._held:
            due = max(due, self._held[-1][0])
        for start in range(0, len(raw), size):
            self._held.append((due, raw[start : start + size]))
            due += interval
        if len(self._held) and self._release_timer is None:
            self._release_timer = loop.call_at(self._held[0][0], self._release)

    def _release(self) -> None:
        loop, transport = asyncio.get_running_loop(), self._transport
        self._release_timer = None
        if transport is None or transport.is_closing():
            self._held.clear()
            return
        while self._held and self._held[0][0] <= loop.time() + 0.001:
            transport.write(self._held.popleft()[1])
        if self._held:
            self._release_timer = loop.call_at(self._held[0][0], self._release)
        elif self._close_when_sent:
            transport.close()
