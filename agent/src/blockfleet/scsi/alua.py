# SPDX-License-Identifier: GPL-3.0-or-later
"""Asymmetric logical unit access: REPORT TARGET PORT GROUPS parameter data (SPC-4 5.15 and 6.36)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass

MAXIMUM_GROUPS = 256
"""Groups of one answer that are read."""
RTPG_ALLOCATION = 4096

DEFAULT_TRANSITION = 60.0
"""Seconds a transition may take where the target does not say (it may say up to 255)."""


class AccessState(enum.IntEnum):
    """Asymmetric access states; the numbers are the standard's."""

    ACTIVE_OPTIMIZED = 0x0
    ACTIVE_NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    BLOCK_DEPENDENT = 0x4
    OFFLINE = 0xE
    TRANSITIONING = 0xF


@dataclass(frozen=True, slots=True)
class PortGroup:
    """One target port group descriptor."""

    number: int
    state: AccessState
    preferred: bool
    supported: int
    """Bits of the states that the group can be in (byte 1 of the descriptor)."""
    status: int
    """Why it is in this state: 0 unknown, 1 by command, 2 by itself."""
    ports: tuple[int, ...]
    """Relative target port identifiers."""


@dataclass(frozen=True, slots=True)
class PortGroups:
    """The whole answer."""

    groups: tuple[PortGroup, ...]
    transition: float = DEFAULT_TRANSITION
    """Implicit transition time in seconds."""

    def of(self, number: int | None) -> PortGroup | None:
        """Return the group with this number, if it is there."""
        return next((group for group in self.groups if group.number == number), None)


_DESCRIPTOR = struct.Struct(">BBHxBxB")
_STATES = {state.value: state for state in AccessState}


def _ports(data: bytes) -> Iterable[int]:
    return (int.from_bytes(data[at + 2 : at + 4], "big") for at in range(0, len(data) - 3, 4))


def parse(data: bytes) -> PortGroups:
    """Parse RTPG parameter data with either header; reads what is there, never raises.

    Reserved access states count as UNAVAILABLE.
    """
    if len(data) < 4:
        return PortGroups(())
    end = min(len(data), 4 + int.from_bytes(data[:4], "big"))
    at, transition = 4, DEFAULT_TRANSITION
    if end >= 8 and (data[4] >> 4) & 7 == 1:
        at, transition = 8, float(data[5]) or DEFAULT_TRANSITION
    groups: list[PortGroup] = []
    while at + _DESCRIPTOR.size <= end and len(groups) < MAXIMUM_GROUPS:
        flags, supported, number, status, count = _DESCRIPTOR.unpack_from(data, at)
        at += _DESCRIPTOR.size
        groups.append(
            PortGroup(
                number=number,
                state=_STATES.get(flags & 0x0F, AccessState.UNAVAILABLE),
                preferred=bool(flags & 0x80),
                supported=supported,
                status=status,
                ports=tuple(_ports(data[at : min(end, at + 4 * count)])),
            )
        )
        at += 4 * count
    return PortGroups(tuple(groups), transition)
