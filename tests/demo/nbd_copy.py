# SPDX-License-Identifier: GPL-3.0-or-later
"""A small NBD client: writes data to a volume's socket and reads them back (fixed newstyle, simple replies)."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20
"""Bytes of one request."""

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3


class NbdClient:
    """One connection to an NBD export on a Unix socket."""

    def __init__(self, path: Path, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        greeting = self._receive(18)
        if greeting[:16] != b"NBDMAGICIHAVEOPT":
            raise OSError(f"{path} is no NBD server")
        self._socket.sendall(struct.pack(">I", 3))
        name = export.encode()
        self._socket.sendall(struct.pack(">QII", 0x49484156454F5054, 1, len(name)) + name)
        self.size, _flags = struct.unpack(">QH", self._receive(10))

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._socket.recv(length - len(data))
            if not piece:
                raise OSError("the NBD server closed the connection")
            data += piece
        return bytes(data)

    def _ask(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        self._socket.sendall(_REQUEST.pack(0x25609513, 0, command, offset, offset, length) + data)
        magic, error, _cookie = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != 0x67446698 or error:
            raise OSError(error, f"NBD request {command} at {offset} failed")

    def write(self, offset: int, data: bytes) -> None:
        """Write data; raises OSError."""
        self._ask(_WRITE, offset, len(data), data)

    def read(self, offset: int, length: int) -> bytes:
        """Read data; raises OSError."""
        self._ask(_READ, offset, length)
        return self._receive(length)

    def flush(self) -> None:
        """Make what was written durable."""
        self._ask(_FLUSH, 0, 0)

    def close(self) -> None:
        """Take leave."""
        self._socket.sendall(_REQUEST.pack(0x25609513, 0, _DISCONNECT, 0, 0, 0))
        self._socket.close()


def round_trip(path: Path, export: str, length: int) -> tuple[str, str]:
    """Write ``length`` random bytes, read them back over a second connection, and return both SHA-256 sums."""
    written, read = hashlib.sha256(), hashlib.sha256()
    client = NbdClient(path, export)
    for offset in _chunks(length):
        data = os.urandom(CHUNK)
        written.update(data)
        client.write(offset, data)
    client.flush()
    client.close()
    client = NbdClient(path, export)
    for offset in _chunks(length):
        read.update(client.read(offset, CHUNK))
    client.close()
    return written.hexdigest(), read.hexdigest()


def _chunks(length: int) -> Iterator[int]:
    return iter(range(0, length, CHUNK))
