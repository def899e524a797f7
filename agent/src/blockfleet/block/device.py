# SPDX-License-Identifier: GPL-3.0-or-later
"""The waist between what serves a block device (NBD) and what is one (a disk over SCSI)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Operation(enum.IntEnum):
    """What a block request asks for."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    TRIM = 3
    WRITE_ZEROES = 4


class BlockRequest:
    """One request to a block device.

    ``buffer`` receives the data of a READ and holds those of a WRITE; it belongs to the device until
    ``on_done`` is called, which happens exactly once, possibly before ``submit`` returns.  ``error`` is then
    0 or a positive errno: EPERM, EIO, EINVAL, ENOSPC, EOPNOTSUPP or ESHUTDOWN.
    ``fua``: durable before it is done.  ``may_unmap``: WRITE_ZEROES may deallocate.
    """

    __slots__ = (
        "buffer",
        "context",
        "error",
        "fua",
        "length",
        "may_unmap",
        "offset",
        "on_done",
        "operation",
        "pending",
    )

    def __init__(
        self,
        operation: int,
        offset: int,
        length: int,
        on_done: Callable[[BlockRequest], None],
        *,
        buffer: memoryview | None = None,
        fua: bool = False,
        may_unmap: bool = False,
        context: object = None,
    ) -> None:
        self.operation = operation
        self.offset = offset
        self.length = length
        self.on_done = on_done
        self.buffer = buffer
        self.fua = fua
        self.may_unmap = may_unmap
        self.context = context
        self.error = 0
        self.pending = 0
        """For the device's own use: how many commands of a split request are still out."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size and limits of a block device, in bytes."""

    size: int
    block_size: int
    """Logical block size: every offset and length is a multiple of it."""
    preferred_block_size: int
    maximum_transfer: int
    """The longest READ or WRITE that is taken in one request; the device splits further by itself."""
    read_only: bool = False
    can_flush: bool = True
    can_fua: bool = True
    can_trim: bool = False
    can_write_zeroes: bool = False
    rotational: bool = False


class BlockDevice(Protocol):
    """What an NBD export serves."""

    @property
    def geometry(self) -> Geometry:
        """Current size and limits."""

    def submit(self, request: BlockRequest) -> None:
        """Take a request; bad offsets and lengths complete it with EINVAL (ENOSPC for writes past the end)."""
