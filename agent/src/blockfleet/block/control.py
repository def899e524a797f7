# SPDX-License-Identifier: GPL-3.0-or-later
"""Control-path commands: one at a time, awaited, with unit attentions and congestion already dealt with.

For what is asked a few times in a session's life (INQUIRY, capacity, RTPG).  Block I/O does not come this way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.scsi.command import Outcome, ScsiCommand, ScsiExecutor
from blockfleet.scsi.condition import Action, Attention, Disposition, classify
from blockfleet.scsi.lun import describe

ATTENTION_LIMIT = 128
"""Unit attentions that one command consumes: a target may queue one for each thing that changed."""
RETRY_LIMIT = 5
"""Repeats after a condition that is worth trying again at once."""
BACK_OFF = (0.008, 0.032, 0.128, 0.512, 2.048)
"""Seconds between attempts while the target is busy."""

COMMAND_TIMEOUT = 10.0
"""Seconds for one attempt of a control command."""

_OUTCOMES = {
    Outcome.NOT_SENT: "it was not sent",
    Outcome.ABORTED: "it was aborted",
    Outcome.UNKNOWN: "the session was lost",
    Outcome.REFUSED: "the session does not take commands",
}


class CommandFailed(BlockfleetError):
    """A control command failed; ``disposition`` tells how, ``command`` is the command as it ended."""

    def __init__(self, message: str, command: ScsiCommand, disposition: Disposition | None) -> None:
        answered = disposition is not None
        super().__init__(
            Isdsc.SCSI_REQUEST_FAILED if answered else Isdsc.TRANSPORT_ERROR,
            message,
            remedy="see the target's log for the logical unit" if answered else "see the state of the session",
        )
        self.command = command
        self.disposition = disposition


async def _once(
    executor: ScsiExecutor,
    lun: int,
    cdb: bytes,
    data_in: memoryview | None,
    data_out: memoryview | None,
    *,
    timeout: float,
) -> ScsiCommand:
    done: asyncio.Future[ScsiCommand] = asyncio.get_running_loop().create_future()

    def finished(command: ScsiCommand) -> None:
        if not done.done():  # whoever waited may have been cancelled
            done.set_result(command)

    executor.execute(ScsiCommand(lun, cdb, finished, data_in=data_in, data_out=data_out, timeout=timeout))
    return await done


def _ignore(_attention: Attention) -> None:
    """Take note of nothing."""


async def run(
    executor: ScsiExecutor,
    lun: int,
    cdb: bytes,
    *,
    allocation: int = 0,
    data_out: bytes = b"",
    timeout: float = COMMAND_TIMEOUT,
    what: str = "command",
    on_attention: Callable[[Attention], None] = _ignore,
) -> bytes:
    """Run one command and return the data that it read.

    ``allocation`` is the size of the buffer for data in, ``timeout`` is in seconds for each attempt, ``what``
    names the command in errors.  Unit attentions are reported to ``on_attention`` and the command is repeated,
    at most ATTENTION_LIMIT times; a busy target is asked again along BACK_OFF.

    Raises :class:`CommandFailed`.
    """
    attentions = retries = waits = 0
    while True:
        buffer = memoryview(bytearray(allocation)) if allocation else None
        command = await _once(
            executor, lun, cdb, buffer, memoryview(data_out) if data_out else None, timeout=timeout
        )
        if command.outcome != Outcome.COMPLETE:
            why = command.error or _OUTCOMES.get(command.outcome, "it has no outcome")
            raise CommandFailed(f"{what} of {describe(lun)} failed: {why}", command, None)
        row = classify(command.status, command.sense)
        if row.attention:
            on_attention(row.attention)
        if row.action is Action.DONE:
            return bytes(buffer[: command.data_in_count]) if buffer else b""
        if row.action is Action.ATTENTION and attentions < ATTENTION_LIMIT:
            attentions += 1
        elif row.action is Action.RETRY and retries < RETRY_LIMIT:
            retries += 1
        elif row.action is Action.BACK_OFF and waits < len(BACK_OFF):
            await asyncio.sleep(BACK_OFF[waits])
            waits += 1
        else:
            raise CommandFailed(f"{what} of {describe(lun)} failed: {row.cause}", command, row)
