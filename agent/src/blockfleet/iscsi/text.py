# SPDX-License-Identifier: GPL-3.0-or-later
"""Key=value text of login and text PDUs: to bytes and back, split and joined over PDUs (RFC 3720 5.1, 5.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable

Pair = tuple[str, str]

MAXIMUM_KEY_LENGTH = 63
"""Bytes of a key name (RFC 3720 5.1, standard-label)."""

MAXIMUM_SIMPLE_VALUE = 255
"""Bytes of a value, or of one value of a list, unless its key says otherwise (RFC 3720 5.1)."""

MAXIMUM_VALUE = 8192
"""Bytes of the longest value of any key; the limit of each key is in :mod:`blockfleet.iscsi.keys`."""

MAXIMUM_NEGOTIATION_TEXT = 65536
"""Bytes of text that are taken in one negotiation (RFC 3720 5.1 asks for 8192, or 65536 with long items)."""

MAXIMUM_PAIR = MAXIMUM_KEY_LENGTH + 1 + MAXIMUM_VALUE

TOLERATED_PADDING = 3
"""Zero bytes after the last pair that are forgiven: padding that a peer counted as data."""

# Digits, letters and .-+@_ (RFC 3720 5.1), and the # of X# and Z# names.  Lower case may begin a key: that of
# iSCSIProtocolLevel does (RFC 7143 13.24).
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9.\-+@_#]*")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class TextError(Exception):
    """Text that breaks RFC 3720 5.1 or a limit; the message shows no more of it than the key."""


def encode_text(pairs: Iterable[Pair]) -> bytes:
    """Return ``key=value`` and a zero byte for each pair.

    Raises :class:`TextError` for a key or value that must not be sent.
    """
    parts: list[bytes] = []
    for key, value in pairs:
        _check(key, value)
        parts.append(f"{key}={value}\0".encode())
    return b"".join(parts)


def decode_text(data: bytes) -> list[Pair]:
    """Read the pairs of one logical text data segment, in order and with repetitions.

    Raises :class:`TextError` for a pair without ``=`` or key, a missing final zero byte, text that is not
    UTF-8, control characters, and keys or values over the limits.
    """
    if not data:
        return []
    if data[-1]:
        raise TextError("the text does not end with a zero byte")
    body = data[:-1]
    for _ in range(TOLERATED_PADDING):
        body = body.removesuffix(b"\0")
    return [decode_pair(raw) for raw in body.split(b"\0")]


def decode_pair(raw: bytes) -> Pair:
    """Read one ``key=value`` without its zero byte; raises :class:`TextError`."""
    if len(raw) > MAXIMUM_PAIR:
        raise TextError(f"a key=value pair of {len(raw)} bytes is longer than {MAXIMUM_PAIR}")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise TextError("the text is not UTF-8") from None
    key, equals, value = text.partition("=")
    if not equals:
        raise TextError(f"{key[:MAXIMUM_KEY_LENGTH]!r} is no key=value pair")
    _check(key, value)
    return key, value


def _check(key: str, value: str) -> None:
    if len(key) > MAXIMUM_KEY_LENGTH or not _KEY.fullmatch(key):
        raise TextError(f"{key[:MAXIMUM_KEY_LENGTH]!r} is no key name")
    if len(value.encode()) > MAXIMUM_VALUE:
        raise TextError(f"the value of {key} is longer than {MAXIMUM_VALUE} bytes")
    if _CONTROL.search(value):
        raise TextError(f"the value of {key} has a control character")


def split_text(data: bytes, limit: int) -> list[bytes]:
    """Cut text into the data segments of consecutive PDUs, all but the last of which carry the C bit.

    ``limit`` is the receiver's MaxRecvDataSegmentLength.  Empty text is one empty segment.
    """
    return [data[start : start + limit] for start in range(0, len(data), limit)] or [b""]


class TextJoiner:
    """Joins the data segments of PDUs with the C bit into one logical text data segment.

    ``limit`` bounds the bytes of the whole negotiation, ``maximum_parts`` the segments of one logical one.
    """

    __slots__ = ("_limit", "_maximum_parts", "_parts", "_total")

    def __init__(self, limit: int = MAXIMUM_NEGOTIATION_TEXT, maximum_parts: int = 256) -> None:
        self._limit = limit
        self._maximum_parts = maximum_parts
        self._parts: list[bytes] = []
        self._total = 0

    @property
    def partial(self) -> bool:
        """Whether a logical text data segment has begun and not ended."""
        return bool(self._parts)

    def add(self, data: bytes, *, more: bool) -> list[Pair] | None:
        """Take the data segment of one PDU; its pairs once the C bit (``more``) is off, None before.

        Raises :class:`TextError` for malformed text and beyond the limits.
        """
        self._total += len(data)
        if self._total > self._limit:
            raise TextError(f"more than {self._limit} bytes of text in one negotiation")
        if more or self._parts:
            self._parts.append(data)
        if more:
            if len(self._parts) >= self._maximum_parts:
                raise TextError(f"text in more than {self._maximum_parts} parts")
            return None
        whole = b"".join(self._parts) if self._parts else data
        self._parts.clear()
        return decode_text(whole)


class PairStream:
    """Cuts pairs out of text that comes in pieces of any size, holding no more than one unfinished pair."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pairs that ``data`` completes, for :func:`decode_pair`.

        Raises :class:`TextError` when an unfinished pair is longer than any may be.
        """
        *whole, rest = (self._rest + data).split(b"\0")
        if len(rest) > MAXIMUM_PAIR:
            raise TextError(f"a key=value pair is longer than {MAXIMUM_PAIR} bytes")
        self._rest = rest
        return [raw for raw in whole if raw]

    def finish(self) -> None:
        """Say that no more comes; raises :class:`TextError` for a pair that was left unfinished."""
        if self._rest:
            raise TextError("the text does not end with a zero byte")
