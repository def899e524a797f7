# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's event log: what the engine told and what the agent did, in one numbered sequence."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

from blockfleet.engine.interface import EngineEvent
from blockfleet.model.events import EVENTS, EventNumber
from blockfleet.store.database import Database
from blockfleet.store.schema import EVENT

CAPACITY = 4096
"""Events that are kept, in memory and on the disk; the oldest go first."""


class EventLog:
    """Appends in memory; :meth:`flush` writes what is new in one transaction.

    A crash loses at most what was not flushed yet; numbers are never given twice for what was flushed.
    """

    def __init__(self, database: Database | None, wall: Callable[[], float]) -> None:
        self._database = database
        self._wall = wall
        self._events: deque[EngineEvent] = deque(maxlen=CAPACITY)
        if database is not None:
            for row in database.rows(EVENT):
                body = json.loads(row["body"])
                self._events.append(EngineEvent(sequence=row["sequence"], **body))
        self._last = self._events[-1].sequence if self._events else 0
        self._flushed = self._last

    @property
    def last(self) -> int:
        """Return the number of the newest event."""
        return self._last

    def record(
        self,
        number: EventNumber,
        subject: str,
        message: str = "",
        details: dict[str, str] | None = None,
    ) -> EngineEvent:
        """Append an event of the agent's own; without a message it has the text of its kind."""
        kind = EVENTS[number]
        return self.take(
            EngineEvent(
                sequence=0,
                time=self._wall(),
                number=int(number),
                name=kind.name,
                severity=kind.severity,
                subject=subject,
                message=message or kind.text,
                details=details or {},
            )
        )

    def take(self, event: EngineEvent) -> EngineEvent:
        """Append an event from elsewhere under a number of this log."""
        self._last += 1
        numbered = event.model_copy(update={"sequence": self._last})
        self._events.append(numbered)
        return numbered

    def after(self, sequence: int, limit: int = CAPACITY) -> list[EngineEvent]:
        """Return up to ``limit`` kept events above ``sequence``, oldest first."""
        found = [event for event in self._events if event.sequence > sequence]
        return found[: max(0, limit)]

    def flush(self) -> None:
        """Write what is new; raises BlockfleetError when the disk does not take it, and keeps it for later."""
        fresh = [event for event in self._events if event.sequence > self._flushed]
        if not fresh or self._database is None:
            return
        with self._database.transaction():
            for event in fresh:
                body = event.model_dump(mode="json", exclude={"sequence"})
                self._database.put(EVENT, event.sequence, json.dumps(body, sort_keys=True))
            self._database.delete_up_to(EVENT, self._last - CAPACITY)
        self._flushed = self._last
