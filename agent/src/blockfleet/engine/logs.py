# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines on standard error: plain, one event a line, repeats limited."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable

BURST = 5
"""Equal lines that are let through within one period."""
PERIOD = 60.0
"""Seconds."""
REMEMBERED = 1024
"""Different lines that are counted at the same time."""

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class RepeatFilter(logging.Filter):
    """Lets :data:`BURST` equal lines through per :data:`PERIOD`; the next one after it tells how many were not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on one line."""
        key = (record.name, record.getMessage())
        now = self._clock()
        entry = self._seen.get(key)
        if entry is None or now - entry[0] >= PERIOD:
            if entry is not None and entry[1] > BURST:
                record.msg = f"{key[1]} (and {int(entry[1]) - BURST} more in {now - entry[0]:.0f} s)"
                record.args = ()
            self._seen[key] = [now, 1]
            self._seen.move_to_end(key)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            return True
        entry[1] += 1
        return entry[1] <= BURST


class LineFormatter(logging.Formatter):
    """``TIME LEVEL NAME: text`` on one line; under journald its priority prefix instead of the time.

    Control characters are escaped: text from a peer can neither end a line nor drive a terminal.
    """

    def __init__(self, *, journal: bool) -> None:
        head = "" if journal else "%(asctime)s "
        super().__init__(f"{head}%(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line feed at its end."""
        text = super().format(record)
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}" if self._journal else line


def configure_logging(level: str) -> None:
    """Send the log of this process to standard error at ``level`` ("debug" to "error")."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(journal="JOURNAL_STREAM" in os.environ))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
