# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to SendTargets, read as it comes (RFC 3720 12.3, 12.8, appendix D).

A discovery service is as hostile as any peer: names and addresses are checked before anyone sees them, and
what is wrong costs only itself.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from blockfleet.iscsi.keys import KEYS, RESERVED_ANSWERS, ValueFault, check_length
from blockfleet.iscsi.text import PairStream, TextError, decode_pair
from blockfleet.model import names
from blockfleet.model.portal import InvalidPortal, Portal, parse_target_address

MAXIMUM_TARGETS = 100_000
"""Targets that are taken from one answer."""

MAXIMUM_ADDRESSES = 400_000
"""Addresses that are taken from one answer, over all targets."""

MAXIMUM_PORTALS = 1024
"""Addresses that are taken for one target."""

MAXIMUM_ANSWER = 64 << 20
"""Bytes of text that are read of one answer."""

MAXIMUM_WARNINGS = 100
"""Warnings that are kept; the others are only counted."""

ALL_TARGETS = "All"
"""Value of SendTargets that asks for every target; only in discovery sessions (RFC 3720 appendix D)."""

TaggedPortal = tuple[Portal, int | None]


class SendTargetsError(Exception):
    """The answer cannot be read on; what was read before stays valid."""


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """A target by its normalised name, with its portals and their portal group tags in the order given."""

    name: str
    portals: tuple[TaggedPortal, ...]


class SendTargetsReader:
    """Reads the data segments of the Text Responses that answer one SendTargets.

    ``portal`` and ``tag`` are those of the connection that asked: they stand for a target without addresses,
    and lend their IPv6 zone to link-local addresses that come without one.
    """

    def __init__(self, portal: Portal, tag: int | None = None) -> None:
        self._portal = portal
        self._tag = tag
        self._stream = PairStream()
        self._received = 0
        self._addresses = 0
        self._targets: dict[str, dict[TaggedPortal, None]] = {}
        self._addressed: set[str] = set()
        self._current: str | None = None
        self._skipping = False
        self.warnings: list[str] = []
        """What was dropped and why, in printable text."""
        self.dropped = 0
        """How many entries were dropped."""

    def feed(self, data: bytes) -> None:
        """Take the data segment of one Text Response, cut wherever the target liked.

        Raises :class:`SendTargetsError` beyond the limits and when the target refuses to answer.
        """
        self._received += len(data)
        if self._received > MAXIMUM_ANSWER:
            raise SendTargetsError(f"the answer is longer than {MAXIMUM_ANSWER} bytes")
        try:
            pairs = self._stream.feed(data)
        except TextError as error:
            raise SendTargetsError(str(error)) from None
        for raw in pairs:
            self._take(raw)

    def finish(self) -> tuple[TargetRecord, ...]:
        """Return all targets once the last Text Response was fed.

        Raises :class:`SendTargetsError` when the last pair is unfinished.
        """
        try:
            self._stream.finish()
        except TextError as error:
            raise SendTargetsError(str(error)) from None
        return self.records()

    def records(self) -> tuple[TargetRecord, ...]:
        """Return the targets that were read so far; also after an error."""
        own: TaggedPortal = (self._portal, self._tag)
        return tuple(
            TargetRecord(name, tuple(portals) if name in self._addressed else (own,))
            for name, portals in self._targets.items()
            if portals or name not in self._addressed
        )

    def _take(self, raw: bytes) -> None:
        try:
            name, value = decode_pair(raw)
            if name in KEYS:
                check_length(KEYS[name], value)
        except (TextError, ValueFault) as error:
            if not raw.startswith(b"TargetAddress="):
                self._skip()
            self._drop(str(error))
            return
        if name == "TargetName":
            self._take_name(value)
        elif name == "TargetAddress":
            self._take_address(value)
        elif name == "SendTargets" and value in RESERVED_ANSWERS:
            raise SendTargetsError(f"the target answered SendTargets={value}")
        else:
            self._drop(f"{name} does not belong into an answer to SendTargets")

    def _skip(self) -> None:
        """Make sure that no address of a target that was dropped goes to the one before it."""
        self._current = None
        self._skipping = True

    def _take_name(self, value: str) -> None:
        self._skip()
        try:
            name = names.normalise(value)
        except names.InvalidName as error:
            self._drop(str(error))
            return
        if name not in self._targets:
            if len(self._targets) >= MAXIMUM_TARGETS:
                raise SendTargetsError(f"more than {MAXIMUM_TARGETS} targets")
            self._targets[name] = {}
        self._current = name
        self._skipping = False

    def _take_address(self, value: str) -> None:
        if self._current is None:
            if self._skipping:
                self.dropped += 1
            else:
                self._drop(f"TargetAddress={value[:80]!r} before any TargetName")
            return
        self._addresses += 1
        if self._addresses > MAXIMUM_ADDRESSES:
            raise SendTargetsError(f"more than {MAXIMUM_ADDRESSES} addresses")
        self._addressed.add(self._current)
        portals = self._targets[self._current]
        try:
            portal, tag = parse_target_address(value)
        except InvalidPortal as error:
            self._drop(f"{error} (of {self._current})")
            return
        if len(portals) >= MAXIMUM_PORTALS:
            self._drop(f"{self._current} has more than {MAXIMUM_PORTALS} addresses")
            return
        portals[self._with_zone(portal), tag] = None

    def _with_zone(self, portal: Portal) -> Portal:
        """A link-local address means nothing without a zone: take that of the connection."""
        zone = self._portal.host.partition("%")[2]
        if not zone or not portal.is_address or "%" in portal.host:
            return portal
        address = ipaddress.ip_address(portal.host)
        if address.version == 6 and address.is_link_local:
            return Portal(f"{portal.host}%{zone}", portal.port)
        return portal

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        if len(self.warnings) < MAXIMUM_WARNINGS:
            self.warnings.append(reason)
