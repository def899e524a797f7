# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept at recovery level 1 and 2 until the initiator has acknowledged it (RFC 3720 3.2.2.2, 6.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import MASK32, later

if TYPE_CHECKING:
    from blockfleet_testtarget.recovery import RecoverableTask

STATUS_LIMIT = 4096  # numbered responses of one connection
TASK_LIMIT = 4096  # ended tasks of one session


class SentStatus:
    """A numbered response as it was sent first; `task` is the SCSI task that it ended, if any."""

    __slots__ = ("bhs", "data", "task")

    def __init__(self, bhs: bytes, data: bytes | memoryview, task: RecoverableTask | None) -> None:
        self.bhs = bhs
        self.data = data
        self.task = task


class StatusLog:
    """The numbered responses of one connection that are not acknowledged, by StatSN, oldest first."""

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self.sent: dict[int, SentStatus] = {}

    def keep(self, bhs: bytes, data: bytes | memoryview, task: RecoverableTask | None) -> None:
        """Keep a response; one with the StatSN of an earlier one takes its place."""
        self.sent[int.from_bytes(bhs[24:28], "big")] = SentStatus(bhs, data, task)
        if len(self.sent) > STATUS_LIMIT:
            self._drop(next(iter(self.sent)))

    def acknowledge(self, expstatsn: int) -> None:
        """Let go of what comes before a StatSN, with the tasks that it ended."""
        while self.sent:
            oldest = next(iter(self.sent))
            if not later(expstatsn, oldest):
                return
            self._drop(oldest)

    def _drop(self, statsn: int) -> None:
        task = self.sent.pop(statsn).task
        if task is not None and task.statsn == statsn:
            self.retention.release(task)

    def answers(self, itt: int) -> bool:
        """Whether a response to a request is among those kept."""
        tag = (itt & MASK32).to_bytes(4, "big")
        return any(status.bhs[16:20] == tag for status in self.sent.values())


class Retention:
    """The ended SCSI tasks of a session whose status is not acknowledged.

    `tags` says, by the Target Transfer Tag of a Data-In PDU with the A bit, whose it is and the
    lowest DataSN that a DataACK for it may name. `limit` bounds the read data kept, in bytes; of the
    oldest tasks then only the status is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tasks: dict[int, RecoverableTask] = {}
        self.tags: dict[int, tuple[RecoverableTask, int]] = {}
        self.size = 0

    def keep(self, task: RecoverableTask) -> None:
        """Keep an ended task; an older one with its tag is over."""
        older = self.tasks.get(task.itt)
        if older is not None:
            self.release(older)
        self.tasks[task.itt] = task
        self.size += task.kept
        if self.size > self.limit:
            self._shrink()
        if len(self.tasks) > TASK_LIMIT:
            self.release(next(iter(self.tasks.values())))

    def _shrink(self) -> None:
        for task in self.tasks.values():
            self.size -= task.kept
            task.forget_data()
            if self.size <= self.limit:
                return

    def release(self, task: RecoverableTask) -> None:
        """Let go of a task: its status was acknowledged, or it is terminated."""
        if self.tasks.get(task.itt) is not task:
            return
        del self.tasks[task.itt]
        self.size -= task.kept
        for tag in task.ack_tags:
            self.tags.pop(tag, None)
