# SPDX-License-Identifier: GPL-3.0-or-later
"""Buffers of large READ replies, used again once the transport has sent them.

A fresh buffer of a megabyte costs its zeroing and, because the allocator gives such memory back to the system, its
page faults: together more than all else that is done for the request.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

POOLED = 1 << 16
"""Length in bytes from which on a reply's buffer is worth keeping."""
MAXIMUM_IDLE = 1 << 24
"""Bytes that one pool keeps idle or watches in the transport; beyond that it forgets what it has."""


class _WriteBuffer(Protocol):
    def get_write_buffer_size(self) -> int: ...


class ReplyPool:
    """The pool of one connection.

    A buffer is the taker's until ``hand_over`` says that it went to the transport, and the pool's again when the
    transport has sent all bytes up to its end.  Which bytes those are is known without asking about each: they
    leave in order, so what was sent is what was handed over less what the transport still holds.
    """

    __slots__ = ("_handed", "_idle", "_kept", "_sending", "_transport")

    def __init__(self, transport: _WriteBuffer) -> None:
        self._transport = transport
        self._handed = 0
        self._sending: deque[tuple[int, bytearray]] = deque()
        self._idle: dict[int, list[bytearray]] = {}
        self._kept = 0

    def take(self, length: int) -> bytearray:
        """Return a buffer of exactly this length with any content."""
        if self._sending:
            self._reclaim()
        idle = self._idle.get(length)
        if idle:
            self._kept -= length
            return idle.pop()
        return bytearray(length)

    def hand_over(self, replies: list[bytearray | bytes]) -> int:
        """Note, before a write, the buffers that the transport is given; return how many bytes they are."""
        start = position = self._handed
        for reply in replies:
            length = len(reply)
            position += length
            if length >= POOLED and isinstance(reply, bytearray):
                if self._kept + length > MAXIMUM_IDLE:
                    self._forget()
                self._kept += length
                self._sending.append((position, reply))
        self._handed = position
        return position - start

    def hand_over_other(self, count: int) -> None:
        """Note that so many bytes go to the transport that are none of the pool's."""
        self._handed += count

    @property
    def kept(self) -> int:
        """Bytes that are idle or on their way through the transport."""
        return self._kept

    def _reclaim(self) -> None:
        sent = self._handed - self._transport.get_write_buffer_size()
        sending = self._sending
        while sending and sending[0][0] <= sent:
            reply = sending.popleft()[1]
            self._idle.setdefault(len(reply), []).append(reply)

    def _forget(self) -> None:
        self._sending.clear()
        self._idle.clear()
        self._kept = 0
