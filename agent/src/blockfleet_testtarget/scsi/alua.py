# SPDX-License-Identifier: GPL-3.0-or-later
"""Asymmetric logical unit access: states of target port groups (SPC-4 5.16, 6.37, 6.45)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field

from blockfleet_testtarget.scsi.sense import CheckCondition, Key, Sense, illegal_parameter


class Access(enum.IntEnum):
    """Asymmetric access states."""

    OPTIMIZED = 0x0
    NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    OFFLINE = 0xE
    TRANSITIONING = 0xF


REFUSALS: dict[Access, Sense] = {
    Access.STANDBY: Sense(Key.NOT_READY, 0x04, 0x0B),
    Access.UNAVAILABLE: Sense(Key.NOT_READY, 0x04, 0x0C),
    Access.OFFLINE: Sense(Key.NOT_READY, 0x04, 0x12),
    Access.TRANSITIONING: Sense(Key.NOT_READY, 0x04, 0x0A),
}
# Opcodes that every state serves: INQUIRY, REPORT LUNS, REQUEST SENSE, MAINTENANCE IN and OUT,
# PERSISTENT RESERVE IN and OUT, MODE SENSE, LOG SENSE.
ALWAYS_SERVED = frozenset({0x12, 0xA0, 0x03, 0xA3, 0xA4, 0x5E, 0x5F, 0x1A, 0x5A, 0x4D})
SUPPORTED_STATES = 0xCF  # T, O, U, S, AN, AO


@dataclass(frozen=True, slots=True)
class TargetPort:
    """One target port: a portal group of a target. `relative_id` is unique in the whole device."""

    target: str
    group_tag: int
    relative_id: int
    access_group: int

    @property
    def name(self) -> str:
        return f"{self.target},t,0x{self.group_tag:04x}"


@dataclass(slots=True)
class AccessGroups:
    """The target port groups through which one logical unit is reached, and their states."""

    ports: list[TargetPort] = field(default_factory=list)
    states: dict[int, Access] = field(default_factory=dict)
    preferred: int | None = None

    def add(self, port: TargetPort) -> None:
        if port not in self.ports:
            self.ports.append(port)
            self.states.setdefault(port.access_group, Access.OPTIMIZED)

    def state(self, port: TargetPort) -> Access:
        return self.states.get(port.access_group, Access.OPTIMIZED)

    def report(self, *, extended: bool) -> bytes:
        """Return the parameter data of REPORT TARGET PORT GROUPS, length field included."""
        groups = b""
        for group, state in sorted(self.states.items()):
            members = [port for port in self.ports if port.access_group == group]
            first = state | (0x80 if group == self.preferred else 0)
            groups += struct.pack(">BBHBBBB", first, SUPPORTED_STATES, group, 0, 0, 0, len(members))
            groups += b"".join(struct.pack(">HH", 0, port.relative_id) for port in members)
        if extended:
            groups = struct.pack(">BBH", 0x10, 0, 0) + groups
        return struct.pack(">I", len(groups)) + groups

    def parse_set(self, data: bytes) -> dict[int, Access]:
        """Return the changes that SET TARGET PORT GROUPS data asks for; raises CheckCondition."""
        changes: dict[int, Access] = {}
        for offset in range(4, len(data) - 3, 4):
            state, group = data[offset] & 0x0F, struct.unpack_from(">H", data, offset + 2)[0]
            if group not in self.states:
                raise illegal_parameter(offset + 2)
            if state not in (Access.OPTIMIZED, Access.NON_OPTIMIZED, Access.STANDBY, Access.UNAVAILABLE):
                raise illegal_parameter(offset)
            changes[group] = Access(state)
        return changes

    def check(self, port: TargetPort, opcode: int) -> None:
        """Raise CheckCondition when the port's state does not serve the command."""
        refusal = REFUSALS.get(self.state(port))
        if refusal is not None and opcode not in ALWAYS_SERVED:
            raise CheckCondition(refusal)
