# SPDX-License-Identifier: GPL-3.0-or-later
"""Persistent reservations of one logical unit (SPC-4 5.12, 6.15, 6.16)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.nexus import Nexus
from blockfleet_testtarget.scsi.sense import CheckCondition, Sense, illegal_field, illegal_parameter

OUT_LENGTH = 24


class Conflict(Exception):
    """A command ends with RESERVATION CONFLICT."""


class Kind(enum.IntEnum):
    """Reservation types."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_REGISTRANTS = 6
    WRITE_EXCLUSIVE_ALL = 7
    EXCLUSIVE_ACCESS_ALL = 8


ALL_REGISTRANTS = frozenset({Kind.WRITE_EXCLUSIVE_ALL, Kind.EXCLUSIVE_ACCESS_ALL})
REGISTRANTS = ALL_REGISTRANTS | {Kind.WRITE_EXCLUSIVE_REGISTRANTS, Kind.EXCLUSIVE_ACCESS_REGISTRANTS}
WRITE_EXCLUSIVE = frozenset({Kind.WRITE_EXCLUSIVE, Kind.WRITE_EXCLUSIVE_REGISTRANTS, Kind.WRITE_EXCLUSIVE_ALL})
TYPE_MASK = 0xEA01  # capabilities: types 1, 3, 5, 6, 7 and 8

# Opcodes that a reservation of another nexus lets through, whatever its type (SPC-4 table 66).
ALLOWED = frozenset({0x00, 0x03, 0x12, 0xA0, 0x5E, 0x5F, 0xA3, 0x9E, 0x25, 0x1A, 0x5A})
# Opcodes that only read the medium: let through by the write exclusive types.
READS = frozenset({0x08, 0x28, 0xA8, 0x88, 0x2F, 0xAF, 0x8F, 0x34, 0x90})

Tell = Callable[[Nexus, Sense], None]


@dataclass(slots=True)
class Reservations:
    """Registrations by nexus, the reservation, and the generation counter."""

    keys: dict[Nexus, int] = field(default_factory=dict)
    kind: Kind | None = None
    holder: Nexus | None = None
    generation: int = 0

    def check(self, nexus: Nexus, opcode: int) -> None:
        """Raise Conflict when another nexus' reservation forbids the command."""
        if self.kind is None or opcode in ALLOWED or self._holds(nexus):
            return
        if self.kind in REGISTRANTS and nexus in self.keys:
            return
        if self.kind in WRITE_EXCLUSIVE and opcode in READS:
            return
        raise Conflict

    def _holds(self, nexus: Nexus) -> bool:
        if self.kind in ALL_REGISTRANTS:
            return nexus in self.keys
        return self.kind is not None and nexus == self.holder

    def report(self, action: int) -> bytes:
        """Return the data of PERSISTENT RESERVE IN; raises CheckCondition for an unknown action."""
        if action == 0:
            keys = b"".join(struct.pack(">Q", key) for key in self.keys.values())
            return struct.pack(">II", self.generation, len(keys)) + keys
        if action == 1:
            if self.kind is None:
                return struct.pack(">II", self.generation, 0)
            key = 0 if self.kind in ALL_REGISTRANTS else self._holder_key()
            return struct.pack(">IIQIBBH", self.generation, 16, key, 0, 0, self.kind, 0)
        if action == 2:
            return struct.pack(">HBBH2x", 8, 0x00, 0x80, TYPE_MASK)
        if action == 3:
            rows = b"".join(self._full_status(nexus, key) for nexus, key in self.keys.items())
            return struct.pack(">II", self.generation, len(rows)) + rows
        raise illegal_field(1)

    def _holder_key(self) -> int:
        return self.keys[self.holder] if self.holder is not None else 0

    def _full_status(self, nexus: Nexus, key: int) -> bytes:
        holds = self._holds(nexus)
        kind = self.kind if holds and self.kind is not None else 0
        transport = nexus.transport_id()
        relative = nexus.port.relative_id
        return struct.pack(">Q4xBB4xHI", key, int(holds), kind, relative, len(transport)) + transport

    def change(self, action: int, scope_type: int, nexus: Nexus, data: bytes, tell: Tell) -> None:
        """Carry out PERSISTENT RESERVE OUT; raises Conflict or CheckCondition."""
        if len(data) != OUT_LENGTH:
            raise CheckCondition(conditions.PARAMETER_LENGTH)
        key, new_key = struct.unpack_from(">QQ", data)
        if data[20] & 0x0D:  # SPEC_I_PT, ALL_TG_PT, APTPL: not supported
            raise illegal_parameter(20)
        if action in (0, 6):
            self._register(nexus, key, new_key, tell, ignore=action == 6)
            return
        if self.keys.get(nexus) != key or nexus not in self.keys:
            raise Conflict
        if action in (1, 2, 4, 5) and (scope_type >> 4 or (action != 2 and scope_type & 15 not in set(Kind))):
            raise illegal_field(2)
        if action == 1:
            self._reserve(nexus, Kind(scope_type & 15))
        elif action == 2:
            self._release(nexus, scope_type & 15, tell)
        elif action == 3:
            self._clear(nexus, tell)
        elif action in (4, 5):
            self._preempt(nexus, new_key, Kind(scope_type & 15), tell)
        else:
            raise illegal_field(1)

    def _register(self, nexus: Nexus, key: int, new_key: int, tell: Tell, *, ignore: bool) -> None:
        if not ignore and key != self.keys.get(nexus, 0):
            raise Conflict
        if new_key:
            self.keys[nexus] = new_key
        elif nexus in self.keys:
            self._unregister(nexus, tell)
        self.generation += 1

    def _unregister(self, nexus: Nexus, tell: Tell) -> None:
        held = self._holds(nexus)
        del self.keys[nexus]
        if not held or (self.kind in ALL_REGISTRANTS and self.keys):
            return
        if self.kind in REGISTRANTS:
            for other in self.keys:
                tell(other, conditions.RESERVATIONS_RELEASED)
        self.kind, self.holder = None, None

    def _reserve(self, nexus: Nexus, kind: Kind) -> None:
        if self.kind is not None and not (self._holds(nexus) and self.kind == kind):
            raise Conflict
        if self.kind is None:
            self.kind, self.holder = kind, nexus

    def _release(self, nexus: Nexus, kind: int, tell: Tell) -> None:
        if self.kind is None or not self._holds(nexus):
            return
        if kind != self.kind:
            raise CheckCondition(Sense(conditions.Key.ILLEGAL_REQUEST, 0x26, 0x04))
        if self.kind in REGISTRANTS:
            for other in self.keys:
                if other != nexus:
                    tell(other, conditions.RESERVATIONS_RELEASED)
        self.kind, self.holder = None, None

    def _clear(self, nexus: Nexus, tell: Tell) -> None:
        for other in self.keys:
            if other != nexus:
                tell(other, conditions.RESERVATIONS_PREEMPTED)
        self.keys.clear()
        self.kind, self.holder = None, None
        self.generation += 1

    def _preempt(self, nexus: Nexus, victim: int, kind: Kind, tell: Tell) -> None:
        takes = self.kind is not None and (
            (self.kind in ALL_REGISTRANTS and victim == 0)
            or (self.kind not in ALL_REGISTRANTS and self._holder_key() == victim)
        )
        if not takes and victim == 0:
            raise illegal_parameter(8)
        every = self.kind in ALL_REGISTRANTS and victim == 0
        losers = [other for other, key in self.keys.items() if other != nexus and (every or key == victim)]
        if not losers and not takes:
            raise Conflict
        for other in losers:
            del self.keys[other]
            tell(other, conditions.REGISTRATIONS_PREEMPTED)
        if takes:
            self.kind, self.holder = kind, nexus
        self.generation += 1
