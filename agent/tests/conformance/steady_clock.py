# SPDX-License-Identifier: GPL-3.0-or-later
"""An event loop whose clock does not run while the machine is busy with something else.

Initiator and target share a loop here.  Its time is what the loop has waited, at most what it wanted to, and the
processor time that it has used.  What a loaded machine adds, the time in which this thread was ready to run and
did not, is no part of it: limits of a few hundred milliseconds can be held to on any machine, and an initiator
that computes or waits for too long still fails them.  The clock is never ahead of real time.
"""

from __future__ import annotations

import asyncio
import selectors
import time


class _Waiting(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Adds up for how long it was waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # What is there already takes no waiting, however late this thread gets to run again.
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        began = time.monotonic()
        found = super().select(timeout)
        elapsed = time.monotonic() - began
        self.waited += elapsed if timeout is None else min(elapsed, timeout)
        return found


class SteadyLoop(asyncio.SelectorEventLoop):
    """A selector event loop with such a clock."""

    def __init__(self) -> None:
        self._waiting = _Waiting()
        super().__init__(self._waiting)

    def time(self) -> float:
        """Return the time of this loop, in seconds; it has no known beginning."""
        return self._waiting.waited + time.thread_time()
