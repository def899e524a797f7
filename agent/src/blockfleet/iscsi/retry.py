# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that the target has not acknowledged, sent again (RFC 3720 6.2.1), at error recovery level 1 and above.

The target delivers in the order of CmdSN, so that only the command that it waits for is surely missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi.command_out import issue
from blockfleet.iscsi.serial import after
from blockfleet.iscsi.task import AbortStage

if TYPE_CHECKING:
    from blockfleet.iscsi.session import Session
    from blockfleet.iscsi.task import Task

MAXIMUM_RETRIES = 8
"""Times that one command is sent again; after that its own time limit ends it."""


class Unacknowledged:
    """Watches ExpCmdSN of one session."""

    __slots__ = ("_exp_cmd_sn", "_since", "_tries", "_unheard")

    def __init__(self) -> None:
        self._exp_cmd_sn = -1
        self._since = 0.0
        self._tries: dict[int, int] = {}
        self._unheard: set[int] = set()

    def scan(self, session: Session, now: float) -> None:
        """Send what the target waits for again, when nothing was acknowledged for ``Patience.recovery`` seconds."""
        expected = session.exp_cmd_sn
        if expected != self._exp_cmd_sn or not after(session.cmd_sn, expected):
            self._exp_cmd_sn = expected
            self._since = now
            self._tries = {number: tries for number, tries in self._tries.items() if not after(expected, number)}
            return
        if now - self._since < session.patience.recovery * 2 ** self._tries.get(expected, 0):
            return
        self._since = now
        task = next((t for t in session.tasks.values() if t.cmd_sn == expected), None)
        self._unheard &= session.tasks.keys()
        if task is not None:
            self._unheard.add(task.tag)
            self._retry(session, task)
        elif session.live is not None and self._may(expected):
            session.plug(session.live, expected)

    def rejected(self, session: Session, task: Task) -> bool:
        """Send a command again that came damaged; False where that was done often enough.

        One that is acknowledged in the meantime needs nothing: the target asks for the data anew.
        """
        self._unheard.discard(task.tag)
        return after(session.exp_cmd_sn, task.cmd_sn) or self._retry(session, task)

    def in_doubt(self, task: Task) -> bool:
        """Whether a command was sent again without a word of the target why: a Reject of it may have been lost."""
        return task.tag in self._unheard

    def _retry(self, session: Session, task: Task) -> bool:
        # What has begun is acknowledged by that (6.1.4.2), and an abort closes the gap by itself (6.9).
        if task.data_sn or task.abort_stage is not AbortStage.NONE or not task.connection.takes_data:
            return True
        if not self._may(task.cmd_sn):
            return False
        session.counters.commands_retried += 1
        issue(task.connection, task)
        return True

    def _may(self, cmd_sn: int) -> bool:
        """Count an attempt to fill the place of ``cmd_sn``; False where there were enough."""
        tries = self._tries.get(cmd_sn, 0) + 1
        self._tries[cmd_sn] = tries
        return tries <= MAXIMUM_RETRIES
