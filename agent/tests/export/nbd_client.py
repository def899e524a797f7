# SPDX-License-Identifier: GPL-3.0-or-later
"""An NBD client of bytes and sockets, written from doc/proto.md with constants of its own."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108


def option(number: int, data: bytes = b"") -> bytes:
    """Encode an option."""
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def go(name: str = "", *infos: int, number: int = 7) -> bytes:
    """Encode GO (or INFO, number 6)."""
    raw = name.encode()
    data = struct.pack(">I", len(raw)) + raw + struct.pack(f">H{len(infos)}H", len(infos), *infos)
    return option(number, data)


def request(
    command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
) -> bytes:
    """Encode a request."""
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data


def option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Decode replies to options: (option, type, data)."""
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


@dataclass
class Reply:
    """What a request was answered with."""

    cookie: int
    error: int = 0
    data: bytes = b""
    offset: int | None = None
    structured: bool = False


class NbdClient:
    """A connection; ``size`` and ``flags`` are what the server said; ``opened`` are all that there are."""

    opened: ClassVar[list[NbdClient]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.opened.append(self)
        self.size = 0
        self.flags = 0
        self.structured = False
        self._cookie = 0x1122334400000000

    @classmethod
    async def dial(cls, path: Path) -> NbdClient:
        """Connect, read the greeting and answer with the client's flags."""
        client = cls(*await asyncio.open_unix_connection(str(path)))
        assert await client.reader.readexactly(16) == b"NBDMAGICIHAVEOPT"
        assert await client.reader.readexactly(2) == b"\x00\x03"
        client.writer.write(b"\x00\x00\x00\x03")
        return client

    @classmethod
    async def open(cls, path: Path, *, structured: bool = True) -> NbdClient:
        """Connect and enter transmission."""
        client = await cls.dial(path)
        if structured:
            client.writer.write(option(8))
            assert await client.option_reply() == (8, 1, b"")
            client.structured = True
        client.writer.write(go())
        while True:
            number, kind, data = await client.option_reply()
            assert number == 7
            if kind == 1:
                return client
            assert kind == 3
            if data[:2] == b"\x00\x00":
                client.size, client.flags = struct.unpack(">QH", data[2:])

    async def option_reply(self) -> tuple[int, int, bytes]:
        """Read one reply to an option."""
        head = await self.reader.readexactly(20)
        return option_replies(head + await self.reader.readexactly(struct.unpack(">I", head[16:])[0]))[0]

    def send(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> int:
        """Send a request; return its cookie."""
        self._cookie += 1
        self.writer.write(request(command, self._cookie, offset, length or len(data), flags, data))
        return self._cookie

    async def reply(self, lengths: dict[int, int] | None = None) -> Reply:
        """Read one reply; simple ones carry data if ``lengths`` has their cookie and they succeeded."""
        magic = (await self.reader.readexactly(4)).hex()
        if magic == "67446698":
            error, cookie = struct.unpack(">IQ", await self.reader.readexactly(12))
            wanted = (lengths or {}).get(cookie, 0)
            assert not (self.structured and wanted), "a simple reply to a READ"
            return Reply(cookie, error, await self.reader.readexactly(0 if error else wanted))
        assert magic == "668e33ef"
        assert self.structured
        flags, kind, cookie, length = struct.unpack(">HHQI", await self.reader.readexactly(16))
        payload = await self.reader.readexactly(length)
        assert flags == 1, "one chunk a reply"
        if kind == 1:
            return Reply(cookie, 0, payload[8:], struct.unpack(">Q", payload[:8])[0], structured=True)
        assert kind == 0x8001
        error, text = struct.unpack(">IH", payload[:6])
        assert text == len(payload) - 6
        assert error
        return Reply(cookie, error, structured=True)

    async def ask(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> Reply:
        """Send one request and read its reply."""
        cookie = self.send(command, offset, length, flags, data)
        reply = await self.reply({cookie: length} if command == READ else None)
        assert reply.cookie == cookie
        return reply

    async def at_end(self) -> bool:
        """Wait for the server to close; False if it sends something first."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    @classmethod
    async def close_all(cls) -> None:
        """Drop the connections that a test left open."""
        while cls.opened:
            await cls.opened.pop().close()

    async def close(self) -> None:
        """Drop the connection."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return
