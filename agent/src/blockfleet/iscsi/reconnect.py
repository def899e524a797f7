# SPDX-License-Identifier: GPL-3.0-or-later
"""How long to wait before the next attempt to log in (RFC 3720 6.4.1, 12.15; the figures below are ours)."""

from __future__ import annotations

from collections.abc import Callable

FIRST = 0.5
"""Seconds before the second attempt to reach a portal that could not be reached."""

LONGEST = 5.0
"""Seconds between attempts to reach a portal that stays away: I/O may be waiting for it."""

FIRST_AFTER_REFUSAL = 30.0
"""Seconds before a login is tried again that was refused for what it said: it may have been put right there."""

LONGEST_AFTER_REFUSAL = 600.0

JITTER = 0.25
"""Part of a delay by which it is varied, so that many hosts do not come back at the same moment."""


class BackOff:
    """Delays that grow with each failure in a row and start again after a success.

    ``random`` returns a number in [0, 1).
    """

    __slots__ = ("_failures", "_random", "_refusals")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._failures = 0
        self._refusals = 0

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures = self._refusals = 0

    def failed(self) -> float:
        """Return the seconds to wait after a failure that may pass: unreachable, busy, a target error."""
        delay = min(FIRST * 2.0**self._failures, LONGEST)
        self._failures = min(self._failures + 1, 32)
        return delay * (1 + JITTER * self._random())

    def refused(self) -> float:
        """Return the seconds to wait after a refusal that the same login meets again (status class 2)."""
        delay = min(FIRST_AFTER_REFUSAL * 2.0**self._refusals, LONGEST_AFTER_REFUSAL)
        self._refusals = min(self._refusals + 1, 32)
        return delay * (1 + JITTER * self._random())
