# SPDX-License-Identifier: GPL-3.0-or-later
"""A block device made of one logical unit behind a SCSI executor."""

from __future__ import annotations

import errno
from collections.abc import Callable

from blockfleet.block import limits as disk_limits
from blockfleet.block.device import BlockRequest, Geometry, Operation
from blockfleet.block.limits import Limits, limits_of, pieces, whole_units
from blockfleet.block.profile import UnitProfile
from blockfleet.scsi import cdb
from blockfleet.scsi import sense as sense_data
from blockfleet.scsi.cdb import Opcode, pack_10, pack_16
from blockfleet.scsi.command import Outcome, ScsiCommand, ScsiExecutor
from blockfleet.scsi.condition import classify
from blockfleet.scsi.sense import SenseKey
from blockfleet.scsi.status import Status

COMMAND_TIMEOUT = 30.0
"""Seconds for one attempt of a read or write."""
SLOW_COMMAND_TIMEOUT = 120.0
"""Seconds for SYNCHRONIZE CACHE, UNMAP and WRITE SAME: some arrays take their time."""

_ZEROES = memoryview(bytes(disk_limits.TRANSFER_LIMIT))
"""What zeroes are written from, where the unit has no WRITE SAME; shared by all disks."""

_COMPLETE = int(Outcome.COMPLETE)
_READ = int(Operation.READ)
_WRITE = int(Operation.WRITE)
_READ_10 = int(Opcode.READ_10)
_WRITE_10 = int(Opcode.WRITE_10)
_READ_16 = int(Opcode.READ_16)
_WRITE_16 = int(Opcode.WRITE_16)
_REDO = -1
"""In ``BlockRequest.error`` while a request is under way: the unit refused a WRITE SAME, so write the zeroes."""

_UNKNOWN_COMMAND = (0x20, 0x24, 0x26)
"""Additional sense codes by which a unit refuses a command, or a form of it, that it does not know."""


def _is_refusal(command: ScsiCommand) -> bool:
    sense = sense_data.parse(command.sense) if command.status == Status.CHECK_CONDITION else None
    return sense is not None and sense.key is SenseKey.ILLEGAL_REQUEST and sense.code in _UNKNOWN_COMMAND


class ScsiDisk:
    """A disk: block requests in, SCSI commands out, errors as errno.

    A request becomes one command where it fits the unit's limits, and is cut where it does not.  Retries and
    unit attentions are the executor's business: what comes back from it is final.

    **Write cache.**  FLUSH is SYNCHRONIZE CACHE unless the unit says that it has no volatile cache.  FUA is the
    FUA bit where the unit takes it, else the write is followed by SYNCHRONIZE CACHE of its range.
    :meth:`cache_lost` tells the disk that a volatile cache may have lost acknowledged writes: when there are
    any that were not flushed, FLUSH fails with EIO from then on, until :meth:`acknowledge_loss`.
    """

    __slots__ = (
        "_blocks",
        "_executor",
        "_flushed",
        "_geometry",
        "_handlers",
        "_limit_bytes",
        "_limits",
        "_lost",
        "_lun",
        "_mask",
        "_on_read",
        "_on_write",
        "_profile",
        "_read_only",
        "_shift",
        "_size",
        "_wide",
        "_write_flags",
        "_write_plain",
        "_write_same",
        "_written",
        "_zero_block",
    )

    def __init__(self, executor: ScsiExecutor, lun: int, profile: UnitProfile, read_only: bool = False) -> None:
        if not profile.block_size:
            raise ValueError(f"LUN {lun:#x} has no known block size: it is no disk")
        self._executor = executor
        self._lun = lun
        self._read_only = read_only
        self._shift = profile.block_size.bit_length() - 1
        self._mask = profile.block_size - 1
        self._zero_block = _ZEROES[: profile.block_size]
        self._write_same = True
        self._written = 0
        self._flushed = 0
        self._lost = False
        # bound once: a bound method made per command would be an allocation per command
        self._on_read = self._read_done
        self._on_write = self._write_done
        self._handlers: dict[int, Callable[[BlockRequest], None]] = {
            Operation.READ: self._read,
            Operation.WRITE: self._write,
            Operation.FLUSH: self._flush,
            Operation.TRIM: self._trim,
            Operation.WRITE_ZEROES: self._zero,
        }
        self.update(profile)

    def update(self, profile: UnitProfile) -> None:
        """Take a newer profile of the same unit: another size, cache mode or limits.

        Requests past a smaller size fail from now on.  Raises :class:`ValueError` for another block size.
        """
        if profile.block_size != 1 << self._shift:
            raise ValueError(f"block size changed from {1 << self._shift} to {profile.block_size}: another disk")
        self._profile = profile
        self._limits: Limits = limits_of(profile)
        self._blocks = profile.blocks
        self._size = profile.size
        self._wide = profile.blocks > 1 << 32
        self._limit_bytes = self._limits.transfer << self._shift
        read_only = self._read_only or profile.read_only
        # a write goes the short way when it needs neither a refusal nor a flush behind it
        self._write_plain = not read_only
        self._write_flags = cdb.FUA if profile.dpofua else 0
        self._geometry = Geometry(
            size=profile.size,
            block_size=profile.block_size,
            preferred_block_size=self._limits.preferred,
            maximum_transfer=disk_limits.REQUEST_LIMIT,
            read_only=read_only,
            can_trim=bool(self._limits.unmap) and not read_only,
            can_write_zeroes=not read_only,
            rotational=profile.rotational,
        )

    @property
    def geometry(self) -> Geometry:
        """Current size and limits."""
        return self._geometry

    @property
    def profile(self) -> UnitProfile:
        """The profile in force."""
        return self._profile

    @property
    def unflushed(self) -> bool:
        """Whether acknowledged writes may be in a volatile cache only."""
        return self._profile.write_cache is not False and self._written > self._flushed

    @property
    def loss_pending(self) -> bool:
        """Whether acknowledged writes may have been lost and FLUSH fails for it."""
        return self._lost

    def cache_lost(self) -> bool:
        """Take note that the unit lost power, or says that an acknowledged write failed.

        Returns whether that concerns anything: writes acknowledged and not flushed.
        """
        self._lost = self._lost or self.unflushed
        return self._lost

    def acknowledge_loss(self) -> None:
        """Let FLUSH succeed again: somebody has taken the loss into account."""
        self._lost = False
        self._flushed = self._written

    def submit(self, request: BlockRequest) -> None:
        """Take a request; see :class:`~blockfleet.block.device.BlockDevice`."""
        operation = request.operation
        offset = request.offset
        length = request.length
        buffer = request.buffer
        if (
            operation > _WRITE
            or (offset | length) & self._mask
            or offset < 0
            or not 0 < length <= self._limit_bytes
            or offset + length > self._size
            or buffer is None
            or len(buffer) != length
        ):
            self._submit_other(request)
            return
        shift = self._shift
        if operation == _READ:
            command = ScsiCommand(
                self._lun,
                pack_16(_READ_16, 0, offset >> shift, length >> shift, 0, 0)
                if self._wide
                else pack_10(_READ_10, 0, offset >> shift, 0, length >> shift, 0),
                self._on_read,
                data_in=buffer,
                context=request,
            )
        elif self._write_plain:
            flags = self._write_flags if request.fua else 0
            command = ScsiCommand(
                self._lun,
                pack_16(_WRITE_16, flags, offset >> shift, length >> shift, 0, 0)
                if self._wide
                else pack_10(_WRITE_10, flags, offset >> shift, 0, length >> shift, 0),
                self._on_write,
                data_out=buffer,
                context=request,
            )
        else:
            self._finish(request, errno.EPERM)
            return
        request.error = 0
        request.pending = 1
        self._executor.execute(command)

    def _read_done(self, command: ScsiCommand) -> None:
        request: BlockRequest = command.context  # type: ignore[assignment]
        if (
            command.outcome != _COMPLETE
            or command.status
            or command.residual
            or command.data_in_count != len(command.data_in)  # type: ignore[arg-type]
        ):
            self._note_error(request, command, len(command.data_in or b""))
        request.pending -= 1
        if not request.pending:
            request.on_done(request)

    def _write_done(self, command: ScsiCommand) -> None:
        request: BlockRequest = command.context  # type: ignore[assignment]
        if command.outcome != _COMPLETE or command.status or command.residual:
            self._note_error(request, command, 0)
        request.pending -= 1
        if not request.pending:
            if request.fua:
                self._written_fua(request)
                return
            if not request.error:
                self._written += 1
            request.on_done(request)

    def _note_error(self, request: BlockRequest, command: ScsiCommand, expected: int) -> None:
        """Put the errno for what became of ``command`` into ``request``, unless an earlier one is there."""
        if command.outcome == _COMPLETE:
            error = classify(command.status, command.sense).error
            if not error and (command.residual or command.data_in_count != expected):
                error = errno.EIO
        else:
            error = errno.EIO
        request.error = request.error or error

    @staticmethod
    def _finish(request: BlockRequest, error: int) -> None:
        request.error = error
        request.on_done(request)

    # what the short way above does not take

    def _submit_other(self, request: BlockRequest) -> None:
        handler = self._handlers.get(request.operation)
        if handler is None:
            self._finish(request, errno.EOPNOTSUPP)
            return
        if request.operation != Operation.FLUSH:
            error = self._refusal(request)
            if error:
                self._finish(request, error)
                return
            if not request.length:
                self._finish(request, 0)
                return
        request.error = 0
        request.pending = 0
        handler(request)

    def _refusal(self, request: BlockRequest) -> int:
        """Return the errno of a request that cannot be taken, 0 for one that can."""
        changes = request.operation != Operation.READ
        if changes and self._geometry.read_only:
            return errno.EPERM
        if request.offset < 0 or request.length < 0 or (request.offset | request.length) & self._mask:
            return errno.EINVAL
        if request.offset + request.length > self._size:
            fills = request.operation in (Operation.WRITE, Operation.WRITE_ZEROES)
            return errno.ENOSPC if fills else errno.EINVAL
        if request.operation <= _WRITE:
            if request.buffer is None or len(request.buffer) != request.length:
                return errno.EINVAL
            if request.length > disk_limits.REQUEST_LIMIT:
                return errno.EINVAL
        return 0

    def _blocks_of(self, request: BlockRequest) -> tuple[int, int]:
        return request.offset >> self._shift, request.length >> self._shift

    def _issue(self, commands: list[ScsiCommand], request: BlockRequest) -> None:
        """Send the commands of one request; all of them are counted before the first can complete."""
        request.pending = len(commands)
        for command in commands:
            self._executor.execute(command)

    def _transfer(self, opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
        if self._wide:
            return pack_16(_READ_16 if opcode == _READ_10 else _WRITE_16, flags, lba, count, 0, 0)
        return pack_10(opcode, flags, lba, 0, count, 0)

    def _read(self, request: BlockRequest) -> None:
        first, count = self._blocks_of(request)
        buffer = request.buffer
        assert buffer is not None
        shift = self._shift
        self._issue(
            [
                ScsiCommand(
                    self._lun,
                    self._transfer(_READ_10, lba, run),
                    self._on_read,
                    data_in=buffer[(lba - first) << shift : (lba - first + run) << shift],
                    context=request,
                )
                for lba, run in pieces(first, count, self._limits.transfer)
            ],
            request,
        )

    def _write(self, request: BlockRequest) -> None:
        assert request.buffer is not None
        self._write_pieces(request, request.buffer, self._write_flags if request.fua else 0)

    def _write_zeroes(self, request: BlockRequest) -> None:
        self._write_pieces(request, None, 0)

    def _write_pieces(self, request: BlockRequest, source: memoryview | None, flags: int) -> None:
        """Write the blocks of a request from ``source``, or zeroes where there is none."""
        request.error = 0
        first, count = self._blocks_of(request)
        shift = self._shift
        self._issue(
            [
                ScsiCommand(
                    self._lun,
                    self._transfer(_WRITE_10, lba, run, flags),
                    self._on_write,
                    data_out=_ZEROES[: run << shift]
                    if source is None
                    else source[(lba - first) << shift : (lba - first + run) << shift],
                    context=request,
                )
                for lba, run in pieces(first, count, self._limits.transfer)
            ],
            request,
        )

    def _written_fua(self, request: BlockRequest) -> None:
        """End a request that is to be durable, once its last command is done."""
        by_bit = self._write_flags and request.operation == Operation.WRITE
        if request.error or by_bit or self._profile.write_cache is False:
            request.on_done(request)
            return
        first, count = self._blocks_of(request)
        self._synchronize(request, first, count, self._range_synchronized)

    def _synchronize(
        self, request: BlockRequest, first: int, count: int, on_done: Callable[[ScsiCommand], None]
    ) -> None:
        # a range that the narrow form cannot count is flushed with all the rest
        if self._wide:
            flush = cdb.synchronize_cache_16(first, count)
        else:
            flush = cdb.synchronize_cache_10(*((first, count) if count <= disk_limits.COUNT_10 else (0, 0)))
        self._executor.execute(
            ScsiCommand(self._lun, flush, on_done, timeout=SLOW_COMMAND_TIMEOUT, context=request)
        )

    def _flush(self, request: BlockRequest) -> None:
        if self._lost:
            self._finish(request, errno.EIO)
        elif self._profile.write_cache is False:
            self._finish(request, 0)
        else:
            request.pending = self._written
            self._synchronize(request, 0, 0, self._flushed_all)

    def _flush_error(self, command: ScsiCommand) -> int:
        if command.outcome != _COMPLETE:
            return errno.EIO
        error = classify(command.status, command.sense).error
        if error == errno.EOPNOTSUPP:
            # no such command: then there is nothing to flush, unless the unit said that there is a cache
            return 0 if self._profile.write_cache is None else errno.EIO
        return error

    def _flushed_all(self, command: ScsiCommand) -> None:
        request: BlockRequest = command.context  # type: ignore[assignment]
        error = self._flush_error(command)
        if self._lost:
            error = errno.EIO
        elif not error:
            self._flushed = max(self._flushed, request.pending)
        request.pending = 0
        self._finish(request, error)

    def _range_synchronized(self, command: ScsiCommand) -> None:
        request: BlockRequest = command.context  # type: ignore[assignment]
        self._finish(request, self._flush_error(command))

    def _trim(self, request: BlockRequest) -> None:
        if not self._limits.unmap:
            self._finish(request, errno.EOPNOTSUPP)
            return
        first, count = whole_units(*self._blocks_of(request), self._limits)
        if not count:
            self._finish(request, 0)
            return
        self._issue(
            [self._unmap(request, lba, run) for lba, run in pieces(first, count, self._limits.unmap)], request
        )

    def _unmap(self, request: BlockRequest, lba: int, count: int) -> ScsiCommand:
        command, parameters = cdb.unmap([(lba, count)])
        return ScsiCommand(
            self._lun,
            command,
            self._unmapped,
            data_out=memoryview(parameters),
            timeout=SLOW_COMMAND_TIMEOUT,
            context=request,
        )

    def _unmapped(self, command: ScsiCommand) -> None:
        """Take an UNMAP's end: tgt reports a residual for parameter lists that it did read."""
        command.residual = 0
        self._write_done(command)

    def _zero(self, request: BlockRequest) -> None:
        if not self._write_same:
            self._write_zeroes(request)
            return
        provisioning = self._profile.provisioning
        unmap = request.may_unmap and provisioning.write_same_unmap and provisioning.reads_zeroes
        first, count = self._blocks_of(request)
        self._issue(
            [
                ScsiCommand(
                    self._lun,
                    cdb.write_same_16(lba, run, unmap=unmap and self._profile.thin),
                    self._same_done,
                    data_out=self._zero_block,
                    timeout=SLOW_COMMAND_TIMEOUT,
                    context=request,
                )
                for lba, run in pieces(first, count, self._limits.write_same)
            ],
            request,
        )

    def _same_done(self, command: ScsiCommand) -> None:
        """Take a WRITE SAME's end: when the unit does not know it, the whole request is done with WRITEs."""
        request: BlockRequest = command.context  # type: ignore[assignment]
        if command.outcome == _COMPLETE and _is_refusal(command):
            self._write_same = False
            request.error = request.error or _REDO
        if request.error == _REDO and request.pending == 1:
            self._write_zeroes(request)
        elif request.error == _REDO:
            request.pending -= 1
        else:
            self._write_done(command)
