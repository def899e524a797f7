# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fault is: a small class, armed one by one, that bends one thing that the target does."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from blockfleet_testtarget.codec import Pdu
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.scsi.unit import Result
    from blockfleet_testtarget.target import TestTarget
    from blockfleet_testtarget.tasks import Task


class FaultError(ValueError):
    """A fault cannot be armed as asked."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """Base of all faults.

    `times` is how often it strikes before it disarms itself (0: for ever), `after` how many
    opportunities it lets pass first. `target`, `portal` (index), `initiator` and `cid` narrow it down
    to connections; empty and -1 match all. A connection has its CID from its first Login Request on.
    """

    name: ClassVar[str] = ""
    times: int = 1
    after: int = 0
    target: str = ""
    portal: int = -1
    initiator: str = ""
    cid: int = -1
    struck: int = 0

    def armed(self, endpoint: TestTarget) -> bool:
        """Begin; return False when all was done at once and there is nothing to keep."""
        del endpoint
        return True

    def disarmed(self, endpoint: TestTarget) -> None:
        """End: undo what must not last."""

    def accepting(self, connection: Connection) -> bool:
        """See a new connection; return True when it was dealt with."""
        del connection
        return False

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        """See a received PDU; return True when it was dealt with."""
        del connection, pdu
        return False

    def sending(self, connection: Connection, pdu: Pdu) -> list[Pdu] | None:
        """See a PDU about to be sent; return what to send in its place, or None to leave it."""
        del connection, pdu
        return None

    def starting(self, task: Task) -> Result | None:
        """See a SCSI task before it runs; return a result to end it with."""
        del task
        return None

    def recovering(self, task: Task) -> bool:
        """See a task about to ask again for data that was lost; return True when it shall give up."""
        del task
        return False

    def executing(self, task: Task) -> bool:
        """See a SCSI task whose data is there; return True when it was taken over."""
        del task
        return False

    def answering(self, connection: Connection, name: str, value: str | None) -> str | None:
        """See the target's answer to a key (None: no answer due); return the one to give."""
        del connection, name
        return value

    def adding(self, connection: Connection, stage: int) -> list[tuple[str, str]]:
        """Return keys to add to a Login Response of a stage."""
        del connection, stage
        return []

    def matches(self, connection: Connection) -> bool:
        """Whether the connection is one of those that the fault is for."""
        if self.portal not in (-1, connection.portal.index) or self.cid not in (-1, connection.cid):
            return False
        if self.target and connection.target_name != self.target:
            return False
        return not self.initiator or connection.initiator_name == self.initiator

    def strikes(self, connection: Connection) -> bool:
        """Count an opportunity; return whether the fault strikes now."""
        if not self.matches(connection):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times and self.struck >= self.times:
            return False
        self.struck += 1
        return True

    @property
    def spent(self) -> bool:
        return bool(self.times) and self.struck >= self.times


REGISTRY: dict[str, type[Fault]] = {}


def register(kind: type[Fault]) -> type[Fault]:
    """Class decorator: make a fault known by its name."""
    REGISTRY[kind.name] = kind
    return kind


def build_fault(name: str, options: dict[str, Any]) -> Fault:
    """Make a fault from its name and plain values; raises FaultError, naming what is wrong."""
    kind = REGISTRY.get(name)
    if kind is None:
        raise FaultError(f"there is no fault {name!r} (known: {', '.join(sorted(REGISTRY))})")
    known = {item.name for item in fields(kind)} - {"struck"}
    unknown = set(options) - known
    if unknown:
        raise FaultError(f"{name} has no option {', '.join(sorted(unknown))} (known: {', '.join(sorted(known))})")
    try:
        fault = kind(**options)
    except TypeError as error:
        raise FaultError(f"{name}: {error}") from error
    for item in fields(kind):
        example, given = item.default, options.get(item.name)
        if given is not None and isinstance(example, (int, float, str)):
            wanted = (int, float) if isinstance(example, float) else type(example)
            if not isinstance(given, wanted) or isinstance(given, bool) != isinstance(example, bool):
                raise FaultError(f"{name}: {item.name}={given!r} is not of type {type(example).__name__}")
    return fault
