# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened in this engine: a bounded log that any number of followers read at their own pace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from itertools import islice

from blockfleet.engine.interface import EngineEvent
from blockfleet.model.events import EVENTS, EventNumber

CAPACITY = 4096
"""Events that are kept for followers; a follower that lags further sees a gap in the sequence numbers."""

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_log = logging.getLogger(__name__)


class EventLog:
    """Keeps the newest events and wakes followers.

    Sequence numbers begin at the milliseconds of the wall clock, so that they also grow from one engine process
    to the next and a follower's ``after`` stays meaningful.
    """

    def __init__(self, *, capacity: int = CAPACITY, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: deque[EngineEvent] = deque(maxlen=capacity)
        self._sequence = int(clock() * 1000)
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def last(self) -> int:
        """Sequence number of the newest event."""
        return self._sequence

    def record(
        self, number: EventNumber, subject: str, message: str = "", details: dict[str, str] | None = None
    ) -> EngineEvent:
        """Append an event and wake everyone who follows; without a message it says the text of its kind."""
        kind = EVENTS[number]
        self._sequence += 1
        event = EngineEvent(
            sequence=self._sequence,
            time=self._clock(),
            number=int(number),
            name=kind.name,
            severity=kind.severity,
            subject=subject,
            message=message or kind.text,
            details=details or {},
        )
        _log.log(_LEVELS[kind.severity], "%s %s: %s", event.name, subject, event.message)
        self._events.append(event)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        return event

    def after(self, sequence: int) -> list[EngineEvent]:
        """Return the kept events with a higher sequence number, oldest first."""
        if not self._events or sequence >= self._sequence:
            return []
        return list(islice(self._events, max(0, sequence + 1 - self._events[0].sequence), None))

    async def follow(self, after: int = 0) -> AsyncGenerator[EngineEvent, None]:
        """Yield kept events above ``after``, then new ones; nothing is queued for a slow follower."""
        loop = asyncio.get_running_loop()
        while True:
            for event in self.after(after):
                after = event.sequence
                yield event
            if self._sequence > after and self._events:
                continue
            waiter = loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
