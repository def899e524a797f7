# SPDX-License-Identifier: GPL-3.0-or-later
"""Which logical unit a declared volume is: found by target and LUN, held by identity.  Pure.

A volume is never bound by guess.  It is refused while what the target shows is missing, has no identity, is not
what the volume was bound to, or could be two units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blockfleet.engine.interface import EngineState, LogicalUnit, SessionPhase, SessionState
from blockfleet.model.isdsc import Isdsc
from blockfleet.reconcile.scope import Finding, finding
from blockfleet.reconcile.wanted import Wanted, WantedVolume
from blockfleet.store.state import Binding

DISK = 0
"""Peripheral device type of a direct access block device (SPC-4 table 49)."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a volume is: its identity, or why it has none yet.

    ``expected``: nothing is known against it, and a login that is about to be made may show it.
    """

    identity: str = ""
    finding: Finding | None = None
    expected: bool = False


Sighting = tuple[SessionState, LogicalUnit]


def required_identity(volume: WantedVolume, binding: Binding | None) -> str:
    """Return the identity that the volume must have: the declared one, else the one it was bound to.

    A binding holds for the target and LUN that it was made for: who declares another LUN means another unit.
    """
    if volume.identity:
        return volume.identity
    if binding is not None and (binding.target, binding.lun) == (volume.target, volume.lun):
        return binding.identity
    return ""


def resolve_all(
    wanted: Wanted,
    observed: EngineState,
    bindings: Mapping[str, Binding],
    logging_in: frozenset[str],
    declared_now: frozenset[str],
) -> dict[str, Resolution]:
    """Resolve every wanted volume.

    ``logging_in`` are targets that a login is about to be made to, ``declared_now`` volumes that were not
    declared before.
    """
    resolutions: dict[str, Resolution] = {}
    owners: dict[tuple[str, str], str] = {}
    for volume in wanted.volumes.values():
        sessions = [s for s in observed.sessions if s.target == volume.target and s.phase is SessionPhase.LOGGED_IN]
        if not sessions:
            resolutions[volume.name] = _without_session(
                volume, wanted, volume.target in logging_in, volume.name in declared_now
            )
            continue
        resolution, weak = _resolve(volume, sessions, required_identity(volume, bindings.get(volume.name)))
        if resolution.identity:
            # A weak identity tells units apart only within one target.
            owner = owners.setdefault((resolution.identity, volume.target if weak else ""), volume.name)
            if owner != volume.name:
                resolution = Resolution(finding=_taken(volume, resolution.identity, owner))
        resolutions[volume.name] = resolution
    return resolutions


def _without_session(volume: WantedVolume, wanted: Wanted, logging_in: bool, new: bool) -> Resolution:
    if logging_in:
        return Resolution(expected=True)
    declared = any(session.target == volume.target for session in wanted.sessions.values())
    if declared or volume.target in wanted.open_ended:
        return Resolution(
            finding=_fault(volume, Isdsc.TARGET_MAPPING_UNAVAILABLE, "no session to {target} is logged in yet")
        )
    return Resolution(
        finding=_fault(
            volume,
            Isdsc.TARGET_MAPPING_UNAVAILABLE,
            "no login to {target} is declared",
            remedy="declare its portals",
            final=True,
        ),
        # In the dry run of a playbook the logins that an earlier task declares are not there yet: a new volume is
        # promised, and an apply that cannot keep the promise says so.
        expected=new,
    )


def _resolve(volume: WantedVolume, sessions: list[SessionState], required: str) -> tuple[Resolution, bool]:
    everything = [(session, unit) for session in sessions for unit in session.units]
    seen = _matching(volume, everything, required)
    if not seen:
        return Resolution(finding=_not_there(volume, everything)), False
    broken = next((unit for _, unit in seen if unit.fault is not None), None)
    sound = [(session, unit) for session, unit in seen if unit.fault is None]
    if not sound:
        assert broken is not None
        assert broken.fault is not None
        return Resolution(finding=_fault(volume, Isdsc.SCSI_REQUEST_FAILED, broken.fault.message)), False
    wrong = _wrong(volume, sound, everything, required)
    if wrong is not None:
        return Resolution(finding=wrong), False
    unit = sound[0][1]
    return Resolution(identity=unit.identity), unit.identity_is_weak


def _matching(volume: WantedVolume, everything: list[Sighting], required: str) -> list[Sighting]:
    if volume.lun is not None:
        return [(session, unit) for session, unit in everything if unit.lun == volume.lun]
    return [(session, unit) for session, unit in everything if unit.identity == required]


def _wrong(volume: WantedVolume, seen: list[Sighting], everything: list[Sighting], required: str) -> Finding | None:
    """Return what speaks against taking the units that were seen for the volume."""
    kinds = {unit.device_type for _, unit in seen} - {DISK}
    if kinds:
        return _fault(volume, Isdsc.REQUEST_NOT_SUPPORTED, f"it is no disk (device type {min(kinds)})", final=True)
    identities = sorted({unit.identity for _, unit in seen})
    if "" in identities:
        return _fault(
            volume,
            Isdsc.REQUEST_NOT_SUPPORTED,
            "it shows no identity (VPD page 83h)",
            remedy="have the target give the logical unit an NAA, EUI or T10 designator",
            final=True,
        )
    if len(identities) > 1:
        return _ambiguous(volume, f"its portals show different logical units: {', '.join(identities)}")
    identity = identities[0]
    if required and identity != required:
        return _fault(
            volume,
            Isdsc.IDENTITY_MISMATCH,
            f"it shows {identity}, but the volume is bound to {required}",
            remedy="put the target right, or remove the volume and declare it again for the other unit",
            final=True,
        )
    luns = _luns_of(identity, everything)
    if len(luns) > 1:
        return _ambiguous(volume, f"{identity} is shown as LUN {' and LUN '.join(map(str, luns))}")
    return None


def _luns_of(identity: str, everything: Iterable[Sighting]) -> list[int]:
    """Return the LUNs of one session that show an identity, where one session shows several."""
    by_session: dict[str, set[int]] = {}
    for session, unit in everything:
        if unit.identity == identity:
            by_session.setdefault(session.key, set()).add(unit.lun)
    return max((sorted(luns) for luns in by_session.values()), key=len, default=[])


def _unit_name(volume: WantedVolume) -> str:
    return f"LUN {volume.lun}" if volume.lun is not None else volume.identity


def _fault(volume: WantedVolume, code: Isdsc, why: str, *, remedy: str = "", final: bool = False) -> Finding:
    return finding(
        code,
        f"volume {volume.name} ({volume.target} {_unit_name(volume)}): {why.format(target=volume.target)}",
        volume.name,
        remedy=remedy,
        target=volume.target,
        volume=volume.name,
        final=final,
    )


def _ambiguous(volume: WantedVolume, why: str) -> Finding:
    return _fault(
        volume,
        Isdsc.VOLUME_AMBIGUOUS,
        why,
        remedy="have the target give each logical unit an identity of its own",
        final=True,
    )


def _not_there(volume: WantedVolume, everything: list[Sighting]) -> Finding:
    luns = sorted({unit.lun for _, unit in everything})
    shown = f"the target shows LUN {', '.join(map(str, luns))}" if luns else "the target shows no logical unit"
    # Not final: the units of a fresh login come a moment after it.
    return _fault(
        volume, Isdsc.VOLUME_NOT_FOUND, f"there is no such unit; {shown}", remedy="check the LUN, and the export"
    )


def _taken(volume: WantedVolume, identity: str, owner: str) -> Finding:
    return _fault(
        volume,
        Isdsc.VOLUME_ALREADY_PERSISTENTLY_BOUND,
        f"{identity} is already volume {owner}",
        remedy="remove one of the two",
        final=True,
    )
