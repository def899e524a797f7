# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one harness under the coverage-guided fuzzer: ``python -m tests.fuzz.one NAME [option of libFuzzer ...]``.

An exception, a hang, too much memory and growth without end are findings; each leaves its input behind.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import atheris

FIRST_LOOK = 20.0
"""Seconds until the caches of the interpreter and the libraries are taken for full."""
BETWEEN_LOOKS = 5.0
MAXIMUM_GROWTH = 300_000
"""Blocks of memory above the first look: no input keeps anything, so only a leak reaches this."""
LOOK_EVERY = 256
"""Inputs between two looks at the clock."""


class GrowthError(Exception):
    """Inputs leave something behind."""


class Growth:
    """Watches how many blocks of memory live between inputs."""

    def __init__(self) -> None:
        self._inputs = 0
        self._next = time.monotonic() + FIRST_LOOK
        self._first = 0

    def look(self) -> None:
        """Count after one more input; raises :class:`GrowthError`."""
        self._inputs += 1
        if self._inputs % LOOK_EVERY or time.monotonic() < self._next:
            return
        gc.collect()
        blocks = sys.getallocatedblocks()
        self._first = self._first or blocks
        self._next = time.monotonic() + BETWEEN_LOOKS
        if blocks > self._first + MAXIMUM_GROWTH:
            raise GrowthError(f"{blocks} blocks are alive where there were {self._first}")


def instrumented() -> dict[str, Callable[[bytes], None]]:
    """Import the harnesses with the product under instrumentation."""
    with atheris.instrument_imports(include=["blockfleet"], enable_loader_override=False):
        from tests.fuzz.harness import HARNESSES
    return {name: harness.test_one_input for name, harness in HARNESSES.items()}


def main() -> None:
    """Fuzz until an option of libFuzzer says that it is enough."""
    name, *options = sys.argv[1:]
    test_one_input = instrumented()[name]
    growth = Growth()

    def run(data: bytes) -> None:
        test_one_input(data)
        growth.look()

    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
