# SPDX-License-Identifier: GPL-3.0-or-later
"""The task management functions of RFC 7144 over a nexus: what runs, and the reset of the nexus itself.

All of them need iSCSIProtocolLevel 2, and raise :class:`~blockfleet.model.errors.BlockfleetError` without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockfleet.iscsi.constants import TaskFunction, TaskResponse
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import ScsiCommand

_NONE_PRESENT = TaskResponse.FUNCTION_COMPLETE
_SOME_PRESENT = TaskResponse.FUNCTION_SUCCEEDED


@dataclass(frozen=True, slots=True)
class AsynchronousEvent:
    """A unit attention or deferred error that waits at a logical unit (SAM-5 7.9)."""

    depth: int
    """UADE DEPTH: 0 unspecified, 1 one, 2 more than one."""
    sense_key: int
    code: int
    qualifier: int


async def query_task(nexus: Nexus, command: ScsiCommand, timeout: float = 15.0) -> bool | None:
    """Tell whether the target still has a command; None where it does not say."""
    response, _ = await nexus.manage(TaskFunction.QUERY_TASK, command.lun, timeout, command)
    return _presence(response)


async def query_task_set(nexus: Nexus, lun: int, timeout: float = 15.0) -> bool | None:
    """Tell whether a logical unit has any task of this nexus; None where the target does not say."""
    response, _ = await nexus.manage(TaskFunction.QUERY_TASK_SET, lun, timeout)
    return _presence(response)


async def query_asynchronous_event(nexus: Nexus, lun: int, timeout: float = 15.0) -> AsynchronousEvent | None:
    """Return the event that waits for this nexus at a logical unit, if one does."""
    response, information = await nexus.manage(TaskFunction.QUERY_ASYNCHRONOUS_EVENT, lun, timeout)
    if response is not _SOME_PRESENT:
        return None
    first, code, qualifier = information
    return AsynchronousEvent(first >> 4 & 3, first & 0x0F, code, qualifier)


async def i_t_nexus_reset(nexus: Nexus, timeout: float = 30.0) -> TaskResponse:
    """Have the target forget all tasks and conditions of this nexus; with FUNCTION_COMPLETE none of them runs."""
    return (await nexus.manage(TaskFunction.I_T_NEXUS_RESET, 0, timeout))[0]


def _presence(response: TaskResponse) -> bool | None:
    return {_SOME_PRESENT: True, _NONE_PRESENT: False}.get(response)
