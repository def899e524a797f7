# SPDX-License-Identifier: GPL-3.0-or-later
"""A BlockDevice in memory: the twin of a disk, with a cache that can be lost and completions that can wait."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import replace

from blockfleet.block.device import BlockRequest, Geometry, Operation


class MemoryDisk:
    """Keeps its data in ``data``; what a flush or FUA has made durable is also in ``stable`` when ``cached``.

    ``hold`` keeps requests until ``release`` is called, ``fail_with`` answers the next ones with that errno.
    ``log`` lists (operation, offset, length, fua, may_unmap) when ``keep_log``.
    """

    def __init__(self, geometry: Geometry, *, cached: bool = False, keep_log: bool = False) -> None:
        self._geometry = geometry
        self.data = bytearray(geometry.size)
        self.stable = bytearray(geometry.size) if cached else None
        self.hold = False
        self.held: deque[BlockRequest] = deque()
        self.fail_with = 0
        self.log: list[tuple[Operation, int, int, bool, bool]] | None = [] if keep_log else None

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    def resize(self, size: int) -> None:
        """Grow or shrink."""
        self._geometry = replace(self._geometry, size=size)
        for image in (self.data, self.stable):
            if image is not None:
                del image[size:]
                image.extend(bytes(size - len(image)))

    def submit(self, request: BlockRequest) -> None:
        if self.hold:
            self.held.append(request)
        else:
            self._run(request)

    def release(self, count: int | None = None, *, newest_first: bool = False) -> None:
        """Run requests that were held."""
        for _ in range(len(self.held) if count is None else count):
            self._run(self.held.pop() if newest_first else self.held.popleft())

    def lose_power(self) -> None:
        """Forget what was not made durable."""
        assert self.stable is not None
        self.data[:] = self.stable

    def _run(self, request: BlockRequest) -> None:
        if self.log is not None:
            entry = (Operation(request.operation), request.offset, request.length, request.fua, request.may_unmap)
            self.log.append(entry)
        request.error = self.fail_with or self._error(request)
        if not request.error:
            self._apply(request)
        request.on_done(request)

    def _error(self, request: BlockRequest) -> int:
        block, size = self._geometry.block_size, self._geometry.size
        if request.offset % block or request.length % block:
            return errno.EINVAL
        if request.offset + request.length > size:
            writes = request.operation in (Operation.WRITE, Operation.WRITE_ZEROES)
            return errno.ENOSPC if writes else errno.EINVAL
        if self._geometry.read_only and request.operation not in (Operation.READ, Operation.FLUSH):
            return errno.EPERM
        return 0

    def _apply(self, request: BlockRequest) -> None:
        start, end = request.offset, request.offset + request.length
        operation = request.operation
        if operation == Operation.READ:
            assert request.buffer is not None
            with memoryview(self.data) as view:
                request.buffer[:] = view[start:end]
            return
        if operation == Operation.WRITE:
            assert request.buffer is not None
            self.data[start:end] = request.buffer
        elif operation == Operation.WRITE_ZEROES:
            self.data[start:end] = bytes(request.length)
        if self.stable is None:
            return
        if operation == Operation.FLUSH:
            self.stable[:] = self.data
        elif request.fua:
            self.stable[start:end] = self.data[start:end]
