# SPDX-License-Identifier: GPL-3.0-or-later
"""Codes of task management, and the response (RFC 3720 10.5.1, 10.6)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import Op, target_header

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection


class Function(enum.IntEnum):
    """Functions (10.5.1)."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class Answer(enum.IntEnum):
    """Responses (10.6.1)."""

    COMPLETE = 0
    NO_TASK = 1
    NO_LUN = 2
    STILL_ALLEGIANT = 3
    NO_REASSIGNMENT = 4
    NOT_SUPPORTED = 5
    NOT_AUTHORIZED = 6
    REJECTED = 255


def respond(connection: Connection, itt: int, answer: int) -> None:
    """Send a task management response."""
    if not connection.writable:
        return
    header = target_header(
        Op.TASK_RESPONSE, byte2=answer, itt=itt, statsn=connection.take_statsn(), window=connection.window()
    )
    connection.send_status(header)
