# SPDX-License-Identifier: GPL-3.0-or-later
"""From a byte stream to PDUs, with as little copying as the stream allows.

The transport asks :meth:`PduReader.get_buffer` where the next bytes shall go and tells with
:meth:`PduReader.received` how many came.  A large Data-In payload goes from the socket straight into the buffer
of the command that it answers; everything else passes through one staging buffer whose size is bounded by the
MaxRecvDataSegmentLength that this side declared.
"""

from __future__ import annotations

import enum
from typing import Protocol

from blockfleet.iscsi.constants import BHS_LENGTH, OPCODE_MASK, Opcode
from blockfleet.iscsi.digest import DIGEST_LENGTH, digest_of, matches
from blockfleet.iscsi.layout import LENGTHS, LENGTHS_OFFSET
from blockfleet.iscsi.resync import HEADER_ON_WIRE, Search, following, repaired

STAGING = 64 * 1024
"""Bytes of the staging buffer; it grows once to hold the longest PDU that is not a Data-In."""

DIRECT_THRESHOLD = 8 * 1024
"""Missing payload bytes from which on a Data-In is received in place rather than through staging."""

_DATA_IN = int(Opcode.SCSI_DATA_IN)


class FramingError(enum.Enum):
    """Why the stream cannot be read on as PDUs."""

    SEGMENT_TOO_LONG = "data segment longer than MaxRecvDataSegmentLength"
    HEADER_DIGEST = "header digest error"
    DATA_DIGEST = "data digest error"


class PduSink(Protocol):
    """Who takes the PDUs."""

    def pdu(
        self, opcode: int, buffer: bytearray | bytes, at: int, ahs_length: int, data: memoryview | None
    ) -> None:
        """Take a PDU whose BHS (and AHS) starts at ``buffer[at]``; ``data`` is only valid during the call.

        ``data`` is None where the segment is empty, or was received in place.
        """

    def data_in_place(self, buffer: bytearray | bytes, at: int, length: int) -> memoryview | None:
        """Return where the payload of this Data-In goes, or None to take it through staging."""

    def framing_error(self, error: FramingError) -> None:
        """Take an error after which the stream cannot be read on."""

    def header_damaged(self, waiting: bool) -> None:
        """Note that a header has a digest error; ``waiting`` where more must come before the next one is found."""

    def resynchronized(self) -> None:
        """Note that the PDU after a damaged header was found."""

    def data_damaged(self, opcode: int, buffer: bytearray | bytes, at: int) -> None:
        """Take the good header of a PDU whose data have a digest error and are discarded."""


class PduReader:
    """Reads one connection's stream.

    ``header_digest`` and ``data_digest`` are set when the full feature phase begins (RFC 3720 12.1);
    ``maximum_segment`` is this side's MaxRecvDataSegmentLength.  With ``recovers`` (error recovery level 1 and
    above) a digest error costs only its PDU where that is possible; ``searching`` says that the PDU after a
    damaged header is being looked for.
    """

    __slots__ = (
        "_buffer",
        "_direct",
        "_end",
        "_header",
        "_placed",
        "_sink",
        "_start",
        "_stopped",
        "_view",
        "data_digest",
        "header_digest",
        "maximum_segment",
        "recovers",
        "searching",
    )

    def __init__(self, sink: PduSink, maximum_segment: int) -> None:
        self._sink = sink
        self._buffer = bytearray(STAGING)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._direct: memoryview | None = None
        self._placed: memoryview | None = None
        self._header = b""
        self._stopped = False
        self.header_digest = False
        self.data_digest = False
        self.maximum_segment = maximum_segment
        self.recovers = False
        self.searching = False

    def stop(self) -> None:
        """Ignore whatever comes from here on."""
        self._stopped = True
        self._direct = None

    def get_buffer(self, _size_hint: int = -1) -> memoryview:
        """Return where the next bytes from the transport go; never empty."""
        if self._direct is not None:
            return self._direct
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer) or self._start > STAGING // 2:
            self._compact(len(self._buffer))
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Take the ``count`` bytes that were put into the buffer given last."""
        if self._stopped:
            return
        direct = self._direct
        if direct is None:
            self._end += count
            self._parse()
        elif count < len(direct):
            self._direct = direct[count:]
        else:
            self._direct = None
            self._parse()

    def begun(self) -> bytes:
        """Return what has been received of the PDU that is not whole yet, for a trace that begins now."""
        staged = self._view[self._start : self._end]
        placed = self._placed
        if placed is None:
            return bytes(staged)
        missing = 0 if self._direct is None else len(self._direct)
        return b"".join((self._header, placed[: len(placed) - missing], staged))

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes that were received elsewhere (tests, replays)."""
        source = memoryview(data)
        while source and not self._stopped:
            target = self.get_buffer()
            count = min(len(target), len(source))
            target[:count] = source[:count]
            source = source[count:]
            self.received(count)

    def _parse(self) -> None:
        if self._placed is not None and not self._finish_placed(self._placed):
            return
        while not self._stopped:
            buffer = self._buffer
            # The sink may have changed digests: login ends between two PDUs.
            header_tail = DIGEST_LENGTH if self.header_digest else 0
            at = self._start
            available = self._end - at
            if available < BHS_LENGTH:
                return
            lengths = LENGTHS.unpack_from(buffer, at + LENGTHS_OFFSET)[0]
            ahs_length = lengths >> 24 << 2
            header_length = BHS_LENGTH + ahs_length
            if ahs_length and self.recovers and header_tail and self._ahs_refuted(at, available):
                if not self._next_found(at):
                    return
                continue
            if available < header_length + header_tail:
                # Garbage that announces a long header must not be waited for.
                if not header_tail and lengths & 0xFFFFFF > self.maximum_segment:
                    self._fail(FramingError.SEGMENT_TOO_LONG)
                return
            if header_tail and not self._header_intact(at, header_length):
                if not self._next_found(at):
                    return
                continue
            length = lengths & 0xFFFFFF
            if not length:
                self._start = at + header_length + header_tail
                self._sink.pdu(buffer[at] & OPCODE_MASK, buffer, at, ahs_length, None)
            elif not self._segment(at, ahs_length, at + header_length + header_tail, length):
                return

    def _header_intact(self, at: int, header_length: int) -> bool:
        view = self._view
        end = at + header_length
        return matches(view[at:end], view[end : end + DIGEST_LENGTH])

    def _ahs_refuted(self, at: int, available: int) -> bool:
        """Whether TotalAHSLength is what is damaged: then the bytes that it announces need not come."""
        if available < HEADER_ON_WIRE:
            return False
        bhs = repaired(bytes(self._view[at : at + HEADER_ON_WIRE]))
        return bhs is not None and not bhs[LENGTHS_OFFSET]

    def _next_found(self, at: int) -> bool:
        """Go on at the PDU after the one whose header at ``at`` is damaged; False while that is not there."""
        # The lengths in a damaged header cannot be trusted (RFC 3720 6.7).
        if not self.recovers:
            return self._fail(FramingError.HEADER_DIGEST)
        verdict, where = following(
            self._view, at, self._end, maximum_segment=self.maximum_segment, data_digest=self.data_digest
        )
        if verdict is Search.NONE:
            return self._fail(FramingError.HEADER_DIGEST)
        waiting = verdict is Search.MORE
        if waiting and where - at > len(self._buffer):
            self._compact(where - at)
        elif not waiting:
            self._start = where
        noted, self.searching = self.searching, waiting
        if not noted:
            self._sink.header_damaged(waiting)
        if not waiting:
            self._sink.resynchronized()
        return not waiting

    def _segment(self, at: int, ahs_length: int, begin: int, length: int) -> bool:
        """Take the PDU at ``at`` whose data segment starts at ``begin``; False where more bytes are needed."""
        buffer = self._buffer
        if length > self.maximum_segment:
            return self._fail(FramingError.SEGMENT_TOO_LONG)
        padded = (length + 3) & ~3
        tail = padded + DIGEST_LENGTH if self.data_digest else padded
        have = self._end - begin
        opcode = buffer[at] & OPCODE_MASK
        if have < tail:
            if opcode == _DATA_IN and length - have >= DIRECT_THRESHOLD:
                return self._begin_direct(at, begin, length, have)
            if begin - at + tail > len(buffer):
                self._compact(begin - at + tail)
            return False
        view = self._view
        self._start = begin + tail
        if self.data_digest:
            end = begin + padded
            if not matches(view[begin:end], view[end : end + DIGEST_LENGTH]):
                return self._data_damaged(opcode, buffer, at)
        self._sink.pdu(opcode, buffer, at, ahs_length, view[begin : begin + length])
        return True

    def _begin_direct(self, at: int, begin: int, length: int, have: int) -> bool:
        destination = self._sink.data_in_place(self._buffer, at, length)
        if self._stopped:
            return False
        if destination is None:
            padded = (length + 3 & ~3) + DIGEST_LENGTH
            if begin - at + padded > len(self._buffer):
                self._compact(begin - at + padded)
            return False
        destination[:have] = self._view[begin : begin + have]
        self._header = bytes(self._view[at:begin])
        self._start = self._end = 0
        self._placed = destination
        self._direct = destination[have:]
        return False

    def _finish_placed(self, data: memoryview) -> bool:
        """Go on after a payload that was received in place: its padding and digest come through staging."""
        pad = -len(data) & 3
        tail = pad + DIGEST_LENGTH if self.data_digest else pad
        if self._end - self._start < tail:
            return False
        header = self._header
        at = self._start
        self._start = at + tail
        self._placed = None
        if self.data_digest:
            received = self._view[at + pad : at + tail]
            if digest_of((data, self._view[at : at + pad])) != received:
                return self._data_damaged(_DATA_IN, header, 0)
        self._sink.pdu(_DATA_IN, header, 0, LENGTHS.unpack_from(header, LENGTHS_OFFSET)[0] >> 24 << 2, None)
        return True

    def _data_damaged(self, opcode: int, buffer: bytearray | bytes, at: int) -> bool:
        if not self.recovers:
            return self._fail(FramingError.DATA_DIGEST)
        self._sink.data_damaged(opcode, buffer, at)
        return not self._stopped

    def _fail(self, error: FramingError) -> bool:
        self.stop()
        self._sink.framing_error(error)
        return False

    def _compact(self, needed: int) -> None:
        """Move what is unread to the start of a staging buffer of at least ``needed`` bytes."""
        unread = self._buffer[self._start : self._end]
        if needed > len(self._buffer):
            self._buffer = bytearray(needed)
            self._view = memoryview(self._buffer)
        self._buffer[: len(unread)] = unread
        self._start = 0
        self._end = len(unread)
