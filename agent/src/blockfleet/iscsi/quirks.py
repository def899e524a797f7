# SPDX-License-Identifier: GPL-3.0-or-later
"""What kinds of targets do in another way than RFC 3720 says, as far as a session has to know it.

A target is known by what its leading login says.  Whoever acts on an entry tells it with
:class:`~blockfleet.iscsi.events.QuirkMet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from blockfleet.iscsi.constants import TaskResponse

_R = TaskResponse

HIGHEST_RECOVERY_LEVEL = 2
"""ErrorRecoveryLevel has no more (RFC 3720 12.20)."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """The ways of one kind of target."""

    kind: str = ""
    reassign_answers: Mapping[TaskResponse, TaskResponse] = field(default_factory=lambda: MappingProxyType({}))
    """What an answer to TASK REASSIGN means, where that is not what RFC 3720 10.6.1 says."""
    reassign_names_unit: bool = False
    """Whether the LUN of a TASK REASSIGN has to be the task's, though the field is reserved (10.5.3)."""
    last_data_in_not_nameable: bool = False
    """Whether a Data SNACK may not name the last Data-In that was sent, but only all from some one on (10.16.1)."""
    answers_snack_by_response: bool = False
    """Whether a Status SNACK is answered with SCSI Responses, whatever the PDUs were that it asks for (10.16.1)."""
    logout_without_times: bool = False
    """Whether a recovery logout is answered with 0 for Time2Wait and Time2Retain whatever was agreed on (10.15)."""
    connections_leave_first: bool = False
    """Whether a session's further connections have to be logged out and closed before the session (10.14.1)."""
    recovery_level: int = HIGHEST_RECOVERY_LEVEL
    """The highest ErrorRecoveryLevel that is offered to it where none is declared."""

    @property
    def answers_in_doubt(self) -> bool:
        """Whether "reassigned" is no certainty: only the task itself shows it."""
        return bool(self.reassign_answers)


NONE = Quirks()

LIO = Quirks(
    kind="LIO",
    # Its code of 10.6.1 goes through the table for codes of its SCSI layer, which has others.  "Complete" would be
    # a task that it does not know, or success as soon as that is put right.
    reassign_answers=MappingProxyType(
        {
            _R.FUNCTION_REJECTED: _R.FUNCTION_COMPLETE,
            _R.FUNCTION_COMPLETE: _R.FUNCTION_COMPLETE,
            _R.LUN_DOES_NOT_EXIST: _R.TASK_STILL_ALLEGIANT,
            _R.FUNCTION_NOT_SUPPORTED: _R.REASSIGNMENT_NOT_SUPPORTED,
        }
    ),
    reassign_names_unit=True,
    # It compares the end of the run with the highest DataSN, as if the run reached one further.
    last_data_in_not_nameable=True,
    answers_snack_by_response=True,
    logout_without_times=True,
    # Where one request ends them all they go at the same time, and it walks their list without a lock
    # (iscsit_stop_session): its kernel dies of it.
    connections_leave_first=True,
    # Its kernel does not survive the end of a reassigned task: the counter of the command went with its connection.
    recovery_level=1,
)

_BY_ALIAS = {"LIO Target": LIO}


def quirks_of(target_alias: str) -> Quirks:
    """Return what is known of a target with this TargetAlias."""
    return _BY_ALIAS.get(target_alias, NONE)
