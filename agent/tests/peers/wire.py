# SPDX-License-Identifier: GPL-3.0-or-later
"""What targets in this process send and receive, noted at their own end of each TCP connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from blockfleet_testtarget.stream import PduStream

LOGIN_REQUEST = 0x03
Ends = tuple[tuple[str, int], tuple[str, int]]
"""Address and port of the noting end, then of the other."""


@dataclass
class Noted:
    """The bytes of one connection."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


class Wire:
    """Notes every connection of asyncio's streams and of the test target once it is installed."""

    def __init__(self) -> None:
        self.connections: dict[Ends, Noted] = {}
        self._of: dict[object, Noted] = {}

    @property
    def logins(self) -> set[Ends]:
        """The connections on which a target took a login, but for those that a proxy made."""
        return {
            ends
            for ends, noted in self.connections.items()
            if noted.received and noted.received[0] & 0x3F == LOGIN_REQUEST and ends[::-1] not in self.connections
        }

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Note what passes until ``patch`` is undone."""
        for kind in (asyncio.StreamReaderProtocol, PduStream):
            patch.setattr(kind, "connection_made", self._noting(kind.connection_made))
        heard, updated = asyncio.StreamReaderProtocol.data_received, PduStream.buffer_updated

        def data_received(protocol: asyncio.StreamReaderProtocol, data: bytes) -> None:
            self._receive(protocol, data)
            heard(protocol, data)

        def buffer_updated(stream: PduStream, nbytes: int) -> None:
            self._receive(stream, stream._view[stream._end : stream._end + nbytes])
            updated(stream, nbytes)

        patch.setattr(asyncio.StreamReaderProtocol, "data_received", data_received)
        patch.setattr(PduStream, "buffer_updated", buffer_updated)

    def _noting(self, made: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def connection_made(protocol: asyncio.BaseProtocol, transport: asyncio.Transport) -> None:
            ends = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
            if not all(isinstance(end, tuple) for end in ends):
                made(protocol, transport)
                return
            local, remote = ends
            noted = self.connections[local[:2], remote[:2]] = self._of[protocol] = Noted()
            made(protocol, _Transport(transport, noted))

        return connection_made

    def _receive(self, protocol: object, data: bytes | memoryview) -> None:
        noted = self._of.get(protocol)
        if noted is not None:
            noted.received += data


class _Transport:
    """A transport whose writes are noted; all else is the transport's."""

    def __init__(self, transport: asyncio.Transport, noted: Noted) -> None:
        self._transport = transport
        self._noted = noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._noted.sent += data
        self._transport.write(data)

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        whole = [bytes(part) for part in parts]
        self._noted.sent += b"".join(whole)
        self._transport.writelines(whole)
