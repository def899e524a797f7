# SPDX-License-Identifier: GPL-3.0-or-later
"""The block-register oracle: each block of a volume is a register whose value says which write it came from.

A block carries magic, volume, LBA, writer, version, flush epoch and a CRC-32C of all of it.  The load tells the
oracle what it is about to write, what was acknowledged, and what it has read.  A register may show the last
version that was acknowledged or read before the read began, or any later one that was submitted before the
read ended; **an older one never again**.  That is linearizability of each register, for writes to one block
that do not run side by side, which the load sees to; it finds what a checksum cannot: an old, valid block that
comes back ("ghost write").

After a power failure (:meth:`Oracle.power_failed`) the bound is the last version that was acknowledged before
an acknowledged flush began, or that was written with FUA.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

import crc32c

BLOCK = 4096
MAGIC = b"BLOCKREG"
_HEADER = struct.Struct(">8s16sQIQQI")
"""Magic, volume, LBA, writer, version, flush epoch, CRC-32C of the block with this field zero."""
_CRC_AT = _HEADER.size - 4
_NO_CRC = bytes(4)
_MARK = struct.Struct(">8s16sQIQ")
_FILL = random.Random(0x4F5241434C45).randbytes(2 * BLOCK)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a block says of itself."""

    lba: int
    writer: int
    version: int
    epoch: int


def encode(volume: bytes, stamp: Stamp) -> bytes:
    """Return the block that carries ``stamp``; ``volume`` has 16 bytes."""
    fill = (stamp.version * 64 + stamp.lba * 8) % BLOCK
    block = bytearray(_HEADER.pack(MAGIC, volume, stamp.lba, stamp.writer, stamp.version, stamp.epoch, 0))
    block += _FILL[fill : fill + BLOCK - _HEADER.size]
    struct.pack_into(">I", block, _CRC_AT, crc32c.crc32c(block))
    return bytes(block)


def mark(volume: bytes, lba: int, writer: int, version: int) -> bytes:
    """Return the bytes that begin this version of this block, and no other."""
    return _MARK.pack(MAGIC, volume, lba, writer, version)


def decode(volume: bytes, block: bytes) -> Stamp | str:
    """Return what a block says of itself, or what is wrong with it; a block of zeroes is version 0 of LBA 0."""
    magic, owner, lba, writer, version, epoch, crc = _HEADER.unpack_from(block)
    if magic != MAGIC:
        return Stamp(0, 0, 0, 0) if not any(block) else f"no register: begins with {block[:16].hex()}"
    if crc != crc32c.crc32c(block[_CRC_AT + 4 :], crc32c.crc32c(_NO_CRC, crc32c.crc32c(block[:_CRC_AT]))):
        return f"torn or damaged: header says version {version} of LBA {lba}"
    if owner != volume:
        return f"a block of another volume: {owner.hex()}"
    return Stamp(lba, writer, version, epoch)


class Glance(NamedTuple):
    """What is known of a block when a read of it begins."""

    floor: int
    """The oldest version that it may show."""
    settled: int
    """The newest version, if every one is acknowledged; -1 while a write may be running."""


@dataclass(slots=True)
class Register:
    """What is known of one block."""

    submitted: int = 0
    acknowledged: int = 0
    floor: int = 0
    """The newest version that was acknowledged or read."""
    durable: int = 0
    """The newest version that has to outlive a power failure."""


@dataclass
class Oracle:
    """Judges what a volume shows.  ``journal`` is given one line for each thing noted; see :meth:`replay`."""

    volume: bytes
    writer: int = 1
    journal: TextIO | None = None
    epoch: int = 1
    """Of the writes that are submitted now: grows with each flush that begins."""
    violations: list[str] = field(default_factory=list)
    mixed: int = 0
    """Reads that ran beside a write and saw a part of it: no unit promises that they do not."""
    _registers: dict[int, Register] = field(default_factory=dict)
    _dirty: set[int] = field(default_factory=set)
    """Blocks with versions acknowledged since the last flush began."""
    _flushing: dict[int, dict[int, int]] = field(default_factory=dict)
    """By epoch of the flush: what it makes durable once it is acknowledged."""

    def __post_init__(self) -> None:
        assert len(self.volume) == 16

    def register(self, lba: int) -> Register:
        """Return what is known of a block."""
        return self._registers.setdefault(lba, Register())

    @property
    def blocks(self) -> list[int]:
        """The blocks that were ever written, in order."""
        return sorted(self._registers)

    # --- writes and flushes ------------------------------------------------------------------------------

    def intend(self, lba: int) -> bytes:
        """Note that the next version of a block is about to be submitted and return it.

        The write before it on the same block must have been acknowledged, or have failed.
        """
        register = self.register(lba)
        register.submitted += 1
        self._note("intent", lba, register.submitted)
        return encode(self.volume, Stamp(lba, self.writer, register.submitted, self.epoch))

    def acknowledged(self, lba: int, version: int, *, durable: bool = False) -> None:
        """Note that a version was acknowledged, by a write with FUA where ``durable``."""
        register = self.register(lba)
        register.acknowledged = version
        register.floor = max(register.floor, version)
        self._dirty.add(lba)
        if durable:
            register.durable = max(register.durable, version)
        self._note("fua" if durable else "ack", lba, version)

    def failed(self, lba: int, version: int) -> None:
        """Note that a write was answered with an error: it may show for ever, or never."""
        self._note("error", lba, version)

    def flush_begins(self) -> int:
        """Note that a flush is about to be submitted; returns its epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        self._flushing[epoch] = {lba: self._registers[lba].acknowledged for lba in self._dirty}
        self._dirty = set()
        self._note("flush", epoch)
        return epoch

    def flushed(self, epoch: int) -> None:
        """Note that a flush was acknowledged."""
        for lba, version in self._flushing.pop(epoch).items():
            register = self._registers[lba]
            register.durable = max(register.durable, version)
        self._note("flushed", epoch)

    def flush_failed(self, epoch: int) -> None:
        """Note that a flush failed: what it covered is still to be flushed."""
        self._dirty |= set(self._flushing.pop(epoch))
        self._note("unflushed", epoch)

    def power_failed(self) -> None:
        """Note that every volatile cache was lost: only what was flushed or written with FUA has to be there."""
        for register in self._registers.values():
            register.floor = register.durable
        self._dirty.clear()
        self._flushing.clear()
        self._note("power")

    # --- reads -------------------------------------------------------------------------------------------

    def glance(self, lba: int) -> Glance:
        """Return what a read of a block that begins now is judged by."""
        register = self._registers.get(lba)
        if register is None:
            return Glance(0, 0)
        settled = register.submitted if register.acknowledged == register.submitted else -1
        return Glance(register.floor, settled)

    def check(self, lba: int, before: Glance, block: bytes) -> None:
        """Judge a block that was read; ``before`` is what :meth:`glance` said when the read began."""
        stamp = decode(self.volume, block)
        register = self.register(lba)
        if isinstance(stamp, str):
            if before.settled == register.submitted:
                self._violated(lba, stamp)
            else:
                self.mixed += 1
            return
        floor = before.floor
        version = stamp.version
        if version and (stamp.lba, stamp.writer) != (lba, self.writer):
            self._violated(lba, f"shows version {version} of LBA {stamp.lba} by writer {stamp.writer}")
        elif version < floor:
            self._violated(lba, f"shows version {version} after version {floor} was acknowledged or read")
        elif version > register.submitted:
            self._violated(lba, f"shows version {version}, {register.submitted} is the newest that was written")
        else:
            register.floor = max(register.floor, version)
            self._note("read", lba, version)

    def _violated(self, lba: int, what: str) -> None:
        self.violations.append(f"LBA {lba}: {what}")

    # --- journal -----------------------------------------------------------------------------------------

    def _note(self, what: str, *numbers: int) -> None:
        if self.journal is not None:
            self.journal.write(" ".join((what, *map(str, numbers))) + "\n")

    def replay(self, journal: Iterable[str]) -> None:
        """Take over what another oracle for the same volume and writer has noted."""
        for line in journal:
            what, *rest = line.split()
            numbers = [int(number) for number in rest]
            match what:
                case "intent":
                    self.intend(numbers[0])
                case "ack" | "fua":
                    self.acknowledged(*numbers, durable=what == "fua")
                case "error":
                    self.failed(*numbers)
                case "read":
                    register = self.register(numbers[0])
                    register.floor = max(register.floor, numbers[1])
                case "flush":
                    self.flush_begins()
                case "flushed":
                    self.flushed(*numbers)
                case "unflushed":
                    self.flush_failed(*numbers)
                case "power":
                    self.power_failed()
                case _:
                    raise ValueError(f"not a line of a journal: {line!r}")
