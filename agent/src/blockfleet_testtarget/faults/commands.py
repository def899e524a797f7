# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of SCSI commands."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockfleet_testtarget.faults.base import Fault, FaultError, register
from blockfleet_testtarget.scsi import device, medium
from blockfleet_testtarget.scsi.sense import Key, Sense, Status
from blockfleet_testtarget.scsi.unit import Result

if TYPE_CHECKING:
    from blockfleet_testtarget.target import TestTarget
    from blockfleet_testtarget.tasks import Task

READS = {0x08: 6, 0x28: 10, 0xA8: 12, 0x88: 16}
WRITES = {0x0A: 6, 0x2A: 10, 0xAA: 12, 0x8A: 16}
GROUPS = {"read": frozenset(READS), "write": frozenset(WRITES), "flush": frozenset({0x35, 0x91})}


def parse_sense(text: str) -> Sense:
    """Return the sense of a text such as 03/11/00 (key, code, qualifier in hex); raises FaultError."""
    try:
        key, asc, ascq = (int(part, 16) for part in text.split("/"))
    except ValueError:
        raise FaultError(f"{text!r} is no sense (KEY/ASC/ASCQ in hex)") from None
    return Sense(key, asc, ascq)


@dataclass(slots=True, kw_only=True)
class CommandFault(Fault):
    """Base of faults that wait for SCSI commands.

    `command` is read, write, flush or a CDB opcode in hex (empty: any); `lun` -1 is any.
    """

    command: str = ""
    lun: int = -1

    def armed(self, endpoint: TestTarget) -> bool:
        del endpoint
        self._opcodes()
        return True

    def _opcodes(self) -> frozenset[int]:
        if self.command in GROUPS:
            return GROUPS[self.command]
        try:
            return frozenset({int(self.command, 16)}) if self.command else frozenset()
        except ValueError:
            raise FaultError(f"{self.command!r} is none of {', '.join(GROUPS)} and no opcode in hex") from None

    def concerns(self, task: Task) -> bool:
        """Whether the task is one of those that the fault is for."""
        if self.command and task.cdb[0] not in self._opcodes():
            return False
        return self.lun in (-1, task.lun)

    def chosen(self, task: Task) -> bool:
        """Whether the fault strikes at this task."""
        return self.concerns(task) and self.strikes(task.connection)


@register
@dataclass(slots=True, kw_only=True)
class FailCommand(CommandFault):
    """End commands with a status (a name such as busy, task_set_full) or, when given, with a sense."""

    name: ClassVar[str] = "fail_command"
    status: str = "busy"
    sense: str = ""

    def armed(self, endpoint: TestTarget) -> bool:
        del endpoint
        self._opcodes()
        self._result()
        return True

    def _result(self) -> Result:
        if self.sense:
            return Result(status=Status.CHECK_CONDITION, sense=parse_sense(self.sense))
        try:
            return Result(status=Status[self.status.upper()])
        except KeyError:
            known = ", ".join(status.name.lower() for status in Status)
            raise FaultError(f"{self.status!r} is no status (known: {known})") from None

    def starting(self, task: Task) -> Result | None:
        return self._result() if self.chosen(task) else None


@register
@dataclass(slots=True, kw_only=True)
class MediumError(CommandFault):
    """Fail reads (and writes, with `writes`) that touch a range of blocks with 03/11/00 (03/0C/00)."""

    name: ClassVar[str] = "medium_error"
    times: int = 0
    first: int = 0
    blocks: int = 1
    writes: bool = False

    def starting(self, task: Task) -> Result | None:
        sizes = {**READS, **WRITES} if self.writes else READS
        size = sizes.get(task.cdb[0])
        if size is None:
            return None
        lba, count = medium.EXTENTS[size](task.cdb)
        if lba + count <= self.first or lba >= self.first + self.blocks or not self.chosen(task):
            return None
        asc = 0x0C if task.cdb[0] in WRITES else 0x11
        sense = Sense(Key.MEDIUM_ERROR, asc, 0, information=max(lba, self.first))
        return Result(status=Status.CHECK_CONDITION, sense=sense)


@register
@dataclass(slots=True, kw_only=True)
class SlowCommand(CommandFault):
    """Execute and answer a command only after `seconds`, when it was not aborted meanwhile.

    With `answer_only` it executes at once and only the answer is late.
    """

    name: ClassVar[str] = "slow_command"
    seconds: float = 1.0
    answer_only: bool = False

    def executing(self, task: Task) -> bool:
        if not self.chosen(task):
            return False
        task.keep_data()
        result = task.execute() if self.answer_only else None
        asyncio.get_running_loop().call_later(self.seconds, self._finish, task, result)
        return True

    def _finish(self, task: Task, result: Result | None) -> None:
        if not task.done and not task.aborted:
            task.respond(task.execute() if result is None else result)


@register
@dataclass(slots=True, kw_only=True)
class GhostWrite(CommandFault):
    """Apply a write `seconds` after it came, whatever became of its task, connection and session.

    This is what a slow back end does to an initiator that sends the write again elsewhere.
    """

    name: ClassVar[str] = "ghost_write"
    command: str = "write"
    seconds: float = 1.0

    def executing(self, task: Task) -> bool:
        if task.call is None or not self.chosen(task):
            return False
        task.keep_data()
        asyncio.get_running_loop().call_later(self.seconds, self._apply, task)
        return True

    def _apply(self, task: Task) -> None:
        if task.call is None or task.command is None:
            return
        unit = task.call.unit
        if task.session.endpoint.stopped:
            return
        result = device.execute(task.call, task.command)
        task.session.endpoint.note(f"late write of unit {unit.name} applied")
        if not task.done and not task.aborted:
            task.respond(result)


@register
@dataclass(slots=True, kw_only=True)
class LoseCommand(CommandFault):
    """Never execute nor answer a command, until it is aborted."""

    name: ClassVar[str] = "lose_command"

    def executing(self, task: Task) -> bool:
        return self.chosen(task)


@register
@dataclass(slots=True, kw_only=True)
class LoseAnswer(CommandFault):
    """Execute a command but never answer it."""

    name: ClassVar[str] = "lose_answer"

    def executing(self, task: Task) -> bool:
        if not self.chosen(task):
            return False
        task.execute()
        return True
