# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session keeps of each request that it has sent and that is not answered yet."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockfleet.iscsi.constants import LogoutReason, TaskFunction, TaskResponse
from blockfleet.scsi.command import ScsiCommand

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.sequence import InputSequence


MAXIMUM_SENDINGS = 8
"""Times that all data of a write are sent on one connection, as an R2T is short and a burst may be long."""


class AbortStage(enum.IntEnum):
    """How far the session has gone to end a task that did not finish in time (RFC 3720 6.9)."""

    NONE = 0
    ABORT_TASK = 1
    LUN_RESET = 2
    TARGET_WARM_RESET = 3


class Task:
    """A SCSI command in flight: its tag, numbers and how much of its data has moved.

    ``connection`` is the one that it is allegiant to (RFC 3720 3.2.4.1), ``data_sn`` the number of the next Data-In
    or R2T, ``received`` the contiguous bytes read so far, ``asked`` the bytes that R2Ts have asked for,
    ``read_residual`` what a bidirectional command left unread.  ``sequence`` is there only while Data-In or R2T
    PDUs have come out of order.
    """

    __slots__ = (
        "abort_stage",
        "asked",
        "cmd_sn",
        "command",
        "connection",
        "data_sn",
        "deadline",
        "read_residual",
        "reassigned",
        "received",
        "sequence",
        "tag",
    )

    connection: Connection

    def __init__(self, command: ScsiCommand, deadline: float) -> None:
        self.command = command
        self.deadline = deadline
        self.tag = 0
        self.cmd_sn = 0
        self.data_sn = 0
        self.received = 0
        self.asked = 0
        self.read_residual = 0
        self.sequence: InputSequence | None = None
        self.abort_stage = AbortStage.NONE
        self.reassigned = False

    def may_send_again(self, length: int) -> bool:
        """Whether an R2T for ``length`` bytes more than there are may be recovery (RFC 3720 6.7), within bounds."""
        total = len(self.command.data_out or b"")
        return self.connection.recovery is not None and self.asked + length <= total * MAXIMUM_SENDINGS

    def allegiance_renewed(self, deadline: float) -> None:
        """Note that it goes on on another connection; it gets until ``deadline`` at least."""
        self.reassigned = True
        self.asked = 0
        if self.deadline:
            self.deadline = max(self.deadline, deadline)

    def renumbered(self, number: int, offset: int | None = None) -> bool:
        """Take the first DataSN or R2TSN of a new allegiance, where it is not the next one (RFC 3720 6.2.2).

        Data (at ``offset``) may come again that were received already, but none may be missing.
        """
        if not self.reassigned or (offset is not None and (number > self.data_sn or offset > self.received)):
            return False
        self.reassigned = False
        self.data_sn = number
        if offset is not None:
            self.received = offset
        return True


@dataclass(slots=True)
class TaskRequest:
    """A task management function that waits for its response; ``response`` None means none came in time."""

    function: TaskFunction
    lun: int
    cmd_sn: int
    deadline: float
    on_done: Callable[[TaskResponse | None], None]
    connection: Connection
    task: Task | None = None
    again_at: float = 0.0
    """When it is to be sent anew, after the target had no room for it; 0 while it is under way."""
    silenced: list[int] = field(default_factory=list)
    """Tags of tasks that are not served while this function runs (RFC 7143 4.2.3.4)."""


@dataclass(slots=True)
class TextRequest:
    """A text exchange, which may take many PDUs; ``on_data`` gets each segment, ``on_done`` the error or ''."""

    deadline: float
    connection: Connection
    on_data: Callable[[bytes], None]
    on_done: Callable[[str], None]
    rounds: int = 0


@dataclass(slots=True)
class Ping:
    """A NOP-Out that waits for its NOP-In; ``cmd_sn`` is None where it is immediate."""

    sent: float
    connection: Connection
    cmd_sn: int | None = None
    on_answer: Callable[[], None] | None = None
    """Called when the answer has come, or cannot come any more because the connection is lost."""

    @property
    def is_forgettable(self) -> bool:
        """Whether nothing depends on its answer: it holds no place in the command order, and nobody waits."""
        return self.cmd_sn is None and self.on_answer is None


@dataclass(slots=True)
class LogoutRequest:
    """A Logout Request that waits for its response: ``connection`` carries it, ``cid`` is what it ends."""

    deadline: float
    connection: Connection
    reason: LogoutReason
    cid: int


@dataclass(slots=True)
class Counters:
    """What a session counts; every field only grows."""

    commands: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    r2ts: int = 0
    pings: int = 0
    async_messages: int = 0
    rejects: int = 0
    timeouts: int = 0
    digest_errors: int = 0
    header_digest_errors: int = 0
    data_digest_errors: int = 0
    resyncs: int = 0
    """Damaged headers after which the next PDU was found."""
    data_snacks: int = 0
    """Requests to send Data-In or R2T PDUs again."""
    status_snacks: int = 0
    data_acks: int = 0
    repeats: int = 0
    """PDUs that came again, or after their task had ended, and were dropped."""
    connections_lost: int = 0
    """Connections whose loss did not end the session."""
    connections_recovered: int = 0
    tasks_reassigned: int = 0
    commands_retried: int = 0
    """Commands sent again because the target had not acknowledged them."""

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}


Control = TaskRequest | TextRequest | Ping | LogoutRequest
"""Whatever has an Initiator Task Tag and is not a SCSI command."""
