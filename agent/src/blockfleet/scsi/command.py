# SPDX-License-Identifier: GPL-3.0-or-later
"""One SCSI command on its way through paths and sessions, and what became of it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol


class Outcome(enum.IntEnum):
    """What is known of a command once its executor has let go of it.

    The distinction that matters is what a *retry* may do: see ``UNKNOWN``.
    """

    PENDING = 0
    COMPLETE = 1
    """The device server answered: ``status``, ``sense`` and ``residual`` are valid."""
    NOT_SENT = 2
    """Not one byte of it left this host: it may be sent again anywhere at once."""
    ABORTED = 3
    """The target confirmed that it does not run and will not run."""
    UNKNOWN = 4
    """It may have run, may run now or may still run.  A write must be fenced before it is sent again,
    acknowledged or overtaken by an overlapping command."""
    REFUSED = 5
    """The executor cannot take it (no path, logged out, bad size): ``error`` says why."""


class TaskAttribute(enum.IntEnum):
    """Task attribute codes of a SCSI Command PDU (RFC 3720 10.3.1, SAM-3)."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class ScsiCommand:
    """A command descriptor block with its buffers, its completion and its outcome.

    ``lun`` is the 64-bit LUN structure as an integer (SAM-3 4.9).  ``data_in`` is the buffer that read
    data are placed in, ``data_out`` the bytes to write; at most one of them except for bidirectional
    commands.  The buffers belong to the executor until ``on_done`` is called, which happens exactly once.
    ``timeout`` is in seconds, 0 for none.

    After completion ``data_in_count`` bytes of ``data_in`` are valid, ``residual`` is negative for an
    overflow and positive for an underflow, and ``sense`` is empty unless the status carries sense data.

    An executor that wraps another (a multipath device over nexuses) saves ``on_done`` in ``outer_done``
    and its own bookkeeping in ``path``: no closure is made per command.
    """

    __slots__ = (
        "attribute",
        "cdb",
        "context",
        "data_in",
        "data_in_count",
        "data_out",
        "error",
        "lun",
        "on_done",
        "outcome",
        "outer_done",
        "path",
        "residual",
        "sense",
        "status",
        "timeout",
    )

    def __init__(
        self,
        lun: int,
        cdb: bytes,
        on_done: Callable[[ScsiCommand], None],
        *,
        data_in: memoryview | None = None,
        data_out: memoryview | None = None,
        timeout: float = 30.0,
        attribute: int = TaskAttribute.SIMPLE,
        context: object = None,
    ) -> None:
        self.lun = lun
        self.cdb = cdb
        self.on_done = on_done
        self.data_in = data_in
        self.data_out = data_out
        self.timeout = timeout
        self.attribute = attribute
        self.context = context
        self.outcome = Outcome.PENDING
        self.status = 0
        self.sense = b""
        self.residual = 0
        self.data_in_count = 0
        self.error = ""
        self.outer_done: Callable[[ScsiCommand], None] | None = None
        self.path: object = None

    def __repr__(self) -> str:
        return (
            f"ScsiCommand(lun={self.lun:#x}, cdb={self.cdb.hex()}, outcome={self.outcome.name},"
            f" status={self.status:#04x})"
        )


class ScsiExecutor(Protocol):
    """Whatever can run a SCSI command: one nexus, or a multipath device over several."""

    def execute(self, command: ScsiCommand) -> None:
        """Take ``command``; ``command.on_done(command)`` is called exactly once, possibly before returning."""
