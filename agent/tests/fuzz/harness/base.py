# SPDX-License-Identifier: GPL-3.0-or-later
"""What a harness is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CANARY = "canary-secret-0x5eed"
"""A secret of the inputs that may show nowhere."""

_SECRETS = ("secret", "mutual_secret")


@dataclass(frozen=True, slots=True)
class Harness:
    """One parser under one kind of input.

    ``test_one_input`` takes any bytes and returns; an exception, an assertion included, is a finding.
    ``maximum_length`` is the longest input that is tried, in bytes.  ``tokens`` help the fuzzer to words that it
    would find late: they are its dictionary.  ``weight`` is its share of the time.
    """

    name: str
    covers: str
    """What is under test, for the table."""
    test_one_input: Callable[[bytes], None]
    maximum_length: int = 4096
    tokens: tuple[bytes, ...] = ()
    weight: int = 1


def speaks(value: Any) -> bool:
    """Whether plain data have the canary where no secret stands: then an error may repeat it."""
    if isinstance(value, dict):
        return any(CANARY in str(key) for key in value) or any(
            speaks(item) for key, item in value.items() if key not in _SECRETS
        )
    if isinstance(value, list):
        return any(speaks(item) for item in value)
    return isinstance(value, str) and CANARY in value
