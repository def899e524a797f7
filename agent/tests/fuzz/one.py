# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one harness under the coverage-guided fuzzer: ``python -m tests.fuzz.one NAME [option of libFuzzer ...]``.

An exception, a hang, too much memory and growth without end are findings; each leaves its input behind.  What is
alive between inputs is written to standard error as it is looked at, one line of ``ALIVE`` each time.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import atheris

ALIVE = "alive:"
PAGE = os.sysconf("SC_PAGE_SIZE")
FIRST_LOOK = 20.0
"""Seconds until the caches of the interpreter and the libraries are taken for full."""
BETWEEN_LOOKS = 5.0
MAXIMUM_GROWTH = 300_000
"""Blocks of memory above the first look: no input keeps anything, so only a leak reaches this."""
MAXIMUM_RSS_GROWTH = 64
"""MiB above the first look: room for the inputs that the fuzzer itself keeps."""
LOOKS = 6
"""Looks in a row that have to find the process too large: what large inputs need goes back at some time."""
LOOK_EVERY = 64
"""Inputs between two looks at the clock."""


MAXIMUM_CPU = 5.0
"""Seconds of CPU that one input may take: of those a machine under load has no fewer."""


class SlowError(Exception):
    """An input takes too long."""


class GrowthError(Exception):
    """Inputs leave something behind."""


class Growth:
    """Watches how many blocks of memory live between inputs, and how large the process is."""

    def __init__(self) -> None:
        self._inputs = 0
        self._next = time.monotonic() + FIRST_LOOK
        self._first: tuple[int, float] | None = None
        self._sizes: deque[float] = deque(maxlen=LOOKS)

    def look(self) -> None:
        """Count after one more input; raises :class:`GrowthError`."""
        self._inputs += 1
        if self._inputs % LOOK_EVERY or time.monotonic() < self._next:
            return
        gc.collect()
        blocks, size = sys.getallocatedblocks(), resident()
        self._first = self._first or (blocks, size)
        self._next = time.monotonic() + BETWEEN_LOOKS
        sys.stderr.write(f"{ALIVE} {blocks} blocks, {size:.1f} MiB\n")
        if blocks > self._first[0] + MAXIMUM_GROWTH:
            raise GrowthError(f"{blocks} blocks are alive where there were {self._first[0]}")
        self._sizes.append(size)
        least = min(self._sizes)
        if len(self._sizes) == LOOKS and least > self._first[1] + MAXIMUM_RSS_GROWTH:
            raise GrowthError(f"the process has {least:.0f} MiB where it had {self._first[1]:.0f}")


def resident() -> float:
    """Return the resident size of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / (1 << 20)


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
        begin = time.process_time()
        test_one_input(data)
        seconds = time.process_time() - begin
        if seconds > MAXIMUM_CPU:
            raise SlowError(f"{seconds:.1f} s of CPU")
        growth.look()

    # libFuzzer starts itself anew to merge, by the words that it takes for its own name.
    again = shlex.join([sys.executable, "-m", "tests.fuzz.one", name])
    atheris.Setup([again, *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
