# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical unit in memory that answers CDBs byte by byte, and requests to a disk over it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from blockfleet.block.device import BlockRequest, Operation
from blockfleet.block.disk import ScsiDisk
from blockfleet.block.profile import UnitProfile
from blockfleet.scsi.command import Outcome, ScsiCommand
from blockfleet.scsi.vpd import BlockLimits, Provisioning

BLOCK = 512


class MemoryUnit:
    """Executes block commands on a bytearray, by the standard's layouts and not by our builders."""

    def __init__(self, blocks: int = 4096) -> None:
        self.medium = bytearray(b"\xa5" * (blocks * BLOCK))
        self.cdbs: list[bytes] = []
        self.commands: list[ScsiCommand] = []
        self.faults: dict[int, list[Callable[[ScsiCommand], None]]] = {}
        self.hold = False

    def execute(self, command: ScsiCommand) -> None:
        self.cdbs.append(command.cdb)
        self.commands.append(command)
        if not self.hold:
            self.run(command)

    def run(self, command: ScsiCommand) -> None:
        faults = self.faults.get(command.cdb[0])
        if faults:
            faults.pop(0)(command)
        else:
            self._run(command)
            command.outcome = Outcome.COMPLETE
        command.on_done(command)

    def opcodes(self) -> list[int]:
        return [cdb[0] for cdb in self.cdbs]

    def fail(self, opcode: int, numbers: str, times: int = 1) -> None:
        key, code, qualifier = bytes.fromhex(numbers.replace("/", ""))

        def answer(command: ScsiCommand) -> None:
            command.outcome = Outcome.COMPLETE
            command.status = 2
            command.sense = bytes([0x72, key, code, qualifier, 0, 0, 0, 0])

        self.faults.setdefault(opcode, []).extend([answer] * times)

    def end(self, opcode: int, **fields: Any) -> None:
        def answer(command: ScsiCommand) -> None:
            for name, value in fields.items():
                setattr(command, name, value)

        self.faults.setdefault(opcode, []).append(answer)

    def _run(self, command: ScsiCommand) -> None:
        cdb = command.cdb
        if cdb[0] in (0x28, 0x2A):
            lba, blocks = struct.unpack_from(">I", cdb, 2)[0], struct.unpack_from(">H", cdb, 7)[0]
        elif cdb[0] in (0x88, 0x8A, 0x93):
            lba, blocks = struct.unpack_from(">QI", cdb, 2)
        else:
            lba = blocks = 0
        start, end = lba * BLOCK, (lba + blocks) * BLOCK
        if cdb[0] in (0x28, 0x88):
            assert command.data_in is not None
            assert len(command.data_in) == end - start
            if end <= len(self.medium):
                command.data_in[:] = self.medium[start:end]
            command.data_in_count = end - start
        elif cdb[0] in (0x2A, 0x8A):
            assert command.data_out is not None
            assert len(command.data_out) == end - start
            if end <= len(self.medium):
                self.medium[start:end] = command.data_out
        elif cdb[0] == 0x93:
            assert command.data_out is not None
            assert len(command.data_out) == BLOCK
            self.medium[start:end] = bytes(command.data_out) * blocks
        elif cdb[0] == 0x42:
            assert command.data_out is not None
            for at in range(8, len(command.data_out), 16):
                lba, blocks = struct.unpack_from(">QI", command.data_out, at)
                self.medium[lba * BLOCK : (lba + blocks) * BLOCK] = bytes(blocks * BLOCK)


PROFILE = UnitProfile(
    lun=3 << 48,
    device_type=0,
    blocks=4096,
    block_size=BLOCK,
    physical_block_size=4096,
    write_cache=True,
    dpofua=True,
    thin=True,
    limits=BlockLimits(
        maximum_transfer=64, maximum_unmap_blocks=100, maximum_unmap_descriptors=4, maximum_write_same=128
    ),
    provisioning=Provisioning(unmap=True, write_same_unmap=True, reads_zeroes=True),
)


class Bench:
    """A disk over a memory unit, and what became of the requests to it."""

    def __init__(self) -> None:
        self.unit = MemoryUnit()
        self.done: list[BlockRequest] = []
        self.profile = PROFILE
        self.disk: ScsiDisk

    def build(self, *, read_only: bool = False, **changes: Any) -> Bench:
        self.profile = replace(PROFILE, **changes)
        self.disk = ScsiDisk(self.unit, self.profile.lun, self.profile, read_only=read_only)
        return self

    def submit(
        self, operation: int, offset: int = 0, length: int = 0, data: bytes | None = None, **flags: bool
    ) -> BlockRequest:
        buffer = None
        if operation == Operation.READ:
            buffer = memoryview(bytearray(max(length, 0)))
        elif data is not None:
            buffer, length = memoryview(data), len(data)
        request = BlockRequest(operation, offset, length, self.done.append, buffer=buffer, **flags)
        self.disk.submit(request)
        return request


@pytest.fixture
def bench() -> Bench:
    return Bench()
