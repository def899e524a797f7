# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is hurt when sessions end or volumes go.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockfleet.engine.interface import EngineState, PathPhase, VolumeState
from blockfleet.model.plan import Disruption

USABLE_PATH = frozenset({PathPhase.ACTIVE, PathPhase.STANDBY})
"""Phases of a path that can carry I/O."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an action does to users, and why it is refused unless disruption is allowed (empty: it is not)."""

    disruption: Disruption = Disruption.NONE
    why: str = ""


def in_use(observed: EngineState) -> tuple[VolumeState, ...]:
    """Return the volumes that somebody has open."""
    return tuple(volume for volume in observed.volumes if volume.clients > 0)


def costs_of_logout(observed: EngineState, ending: frozenset[str]) -> Mapping[str, Cost]:
    """Return the cost of ending each session of ``ending`` when all of them end.

    A session may end freely while each volume in use keeps a usable path that stays.
    """
    costs = dict.fromkeys(ending, Cost())
    for volume in in_use(observed):
        if any(path.phase in USABLE_PATH and path.session not in ending for path in volume.paths):
            continue
        for path in volume.paths:
            if path.session in ending:
                costs[path.session] = Cost(
                    Disruption.INTERRUPTS, f"volume {volume.name} is in use and would lose its last path"
                )
    return costs


def cost_of_relogin(observed: EngineState, key: str) -> Cost:
    """Return the cost of logging one session out and in again, while the others stay."""
    cost = Cost(Disruption.RELOGIN)
    for volume in in_use(observed):
        if not any(path.session == key for path in volume.paths):
            continue
        others = any(path.phase in USABLE_PATH and path.session != key for path in volume.paths)
        if not others:
            return Cost(Disruption.INTERRUPTS, f"volume {volume.name} is in use and has no other path")
        cost = Cost(Disruption.RELOGIN, f"volume {volume.name} is in use")
    return cost


def cost_of_withdrawal(volume: VolumeState) -> Cost:
    """Return the cost of serving a volume no more."""
    if volume.clients > 0:
        clients = "a client has" if volume.clients == 1 else f"{volume.clients} clients have"
        return Cost(Disruption.INTERRUPTS, f"{clients} it open")
    return Cost()


def cost_of_renaming(observed: EngineState) -> Cost:
    """Return the cost of changing the initiator's name, which ends every session."""
    used = in_use(observed)
    if used:
        return Cost(Disruption.INTERRUPTS, f"volume {used[0].name} is in use and every session has to end")
    return Cost(Disruption.RELOGIN if observed.sessions else Disruption.NONE)
