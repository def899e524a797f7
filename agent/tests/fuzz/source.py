# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of one fuzzing input as a source of decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Choice = TypeVar("Choice")


class Source:
    """Reads an input from its front; once it is used up every number is 0 and every run of bytes empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes were not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes, or as many as there are."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(self.left)

    def number(self, size: int = 1) -> int:
        """Return a number of ``size`` bytes, big-endian."""
        return int.from_bytes(self.take(size), "big")

    def choose(self, choices: Sequence[Choice]) -> Choice:
        """Return one of at most 256 ``choices`` by the next byte."""
        return choices[self.number() % len(choices)]

    def flag(self) -> bool:
        """Return one bit."""
        return bool(self.number() & 1)
