# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the blocks of a logical unit live: memory or a file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Protocol

_NORESERVE = 0x4000  # Linux MAP_NORESERVE; the mmap module names it from 3.12 on
_ZEROS = bytes(1 << 20)


class Backing(Protocol):
    """Bytes by offset. Offsets and lengths are checked by the caller."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; what was never written reads as zeros."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, freeing its space where that can be."""

    def flush(self) -> None:
        """Make everything written durable."""

    def resize(self, size: int) -> None:
        """Change the size; what is added reads as zeros."""

    def close(self) -> None:
        """Let go of it."""


class RamBacking:
    """Sparse memory: pages that were never written cost nothing, so sizes may be huge."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = self._new_map(size)

    @staticmethod
    def _new_map(size: int) -> mmap.mmap:
        return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._map[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        end = offset + length
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if first >= last:
            self._map[offset:end] = bytes(length)
            return
        self._map[offset:first] = bytes(first - offset)
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._map[last:end] = bytes(end - last)

    def flush(self) -> None:
        """Memory is as durable as it gets."""

    def resize(self, size: int) -> None:
        self._map.resize(max(size, 1))
        self.size = size

    def close(self) -> None:
        self._map.close()


class FileBacking:
    """A file, sparse where the file system lets it be."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._fd).st_size
        if size > self.size:
            self.resize(size)

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        return data + bytes(length - len(data)) if len(data) < length else data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written

    def zero(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            piece = min(len(_ZEROS), end - offset)
            self.write(offset, memoryview(_ZEROS)[:piece])
            offset += piece

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def resize(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self.size = size

    def close(self) -> None:
        os.close(self._fd)
