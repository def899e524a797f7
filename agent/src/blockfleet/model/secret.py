# SPDX-License-Identifier: GPL-3.0-or-later
"""A secret that cannot be printed by accident."""

from __future__ import annotations

import hmac


class Secret:
    """Bytes that show as ``***`` wherever an object is turned into text.

    Equality takes constant time.  The value leaves only through :meth:`reveal`.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)

    def reveal(self) -> bytes:
        """Return the secret itself; the caller must not store, log or send it in clear."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret cannot be pickled or copied out of the process")
