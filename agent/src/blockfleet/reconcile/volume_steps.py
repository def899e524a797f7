# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes: from those that are served to those that are wanted.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockfleet.engine.interface import EngineState, PathSetting, SessionPhase, VolumeState
from blockfleet.model.change import Options
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import Action, Kind, Origin, Verb
from blockfleet.reconcile.disruption import USABLE_PATH, Cost, cost_of_withdrawal
from blockfleet.reconcile.scope import Finding, finding
from blockfleet.reconcile.steps import Operation, Step
from blockfleet.reconcile.volumes import Resolution
from blockfleet.reconcile.wanted import Wanted, WantedVolume


def volume_steps(
    wanted: Wanted,
    before: Wanted | None,
    observed: EngineState,
    resolutions: Mapping[str, Resolution],
    options: Options,
    *,
    foreign: frozenset[str],
) -> list[Step]:
    """Return what has to be served, served otherwise, or served no more.

    What cannot be resolved is left as it is: a volume that is served stays, one that is not stays away.
    ``foreign`` volumes are left alone while nobody declares them.
    """
    served = {volume.name: volume for volume in observed.volumes}
    steps = []
    for volume in wanted.volumes.values():
        state, resolution = served.get(volume.name), resolutions[volume.name]
        origin = Origin.CORRECTIVE if before and before.volumes.get(volume.name) == volume else Origin.INTENDED
        if state is None and (resolution.identity or resolution.expected):
            steps.append(_publishing(volume, resolution.identity, origin))
        elif state is not None and resolution.identity:
            step = _changing(volume, state, resolution.identity, origin, options)
            if step is not None:
                steps.append(step)
    declared_before = before.volumes if before else {}
    steps += [
        _withdrawing(state, before, options)
        for name, state in served.items()
        if name not in wanted.volumes and (name not in foreign or name in declared_before)
    ]
    return steps


_LIVE = frozenset({"policy", "failback", "paths"})
"""What can change under a volume's users."""


def _paths(settings: tuple[PathSetting, ...]) -> list[str]:
    """Write the roles of paths as words, under the portals of their sessions."""
    shown = []
    for setting in settings:
        words = [setting.session.partition("@")[2]]
        words += ["primary"] if setting.primary else []
        words += ["standby"] if setting.standby else []
        words += [f"weight {setting.weight}"] if setting.weight else []
        shown.append(" ".join(words))
    return shown


def _shown(volume: WantedVolume, identity: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "target": volume.target,
        "policy": volume.policy.value,
        "failback": volume.failback,
        "paths": _paths(volume.path_settings),
        "read_only": volume.read_only,
    }
    if identity:
        shown["identity"] = identity
    return shown


def _shown_state(state: VolumeState) -> dict[str, Any]:
    return {
        "target": ", ".join(state.targets),
        "policy": state.policy.value,
        "failback": state.failback,
        "paths": _paths(state.path_settings),
        "read_only": state.read_only,
        "identity": state.identity,
    }


def _publishing(volume: WantedVolume, identity: str, origin: Origin) -> Step:
    unit = f"LUN {volume.lun}" if volume.lun is not None else volume.identity
    action = Action(
        verb=Verb.PUBLISH,
        kind=Kind.VOLUME,
        subject=volume.name,
        text=f"+ volume {volume.name} served from {volume.target} {unit}",
        origin=origin,
        after=_shown(volume, identity or volume.identity),
    )
    return Step(Operation.PUBLISH, volume.name, action, volume=volume, identity=identity)


def _changing(
    volume: WantedVolume, state: VolumeState, identity: str, origin: Origin, options: Options
) -> Step | None:
    before, after = _shown_state(state), _shown(volume, identity)
    changes = [name for name in after if before[name] != after[name]]
    if not changes:
        return None
    operation = Operation.PUBLISH if _LIVE.issuperset(changes) else Operation.REPUBLISH
    cost = cost_of_withdrawal(state) if operation is Operation.REPUBLISH else Cost()
    refused = "" if options.allow_disruption else cost.why
    action = Action(
        verb=Verb.UPDATE,
        kind=Kind.VOLUME,
        subject=volume.name,
        text=f"~ volume {volume.name} served: "
        + ", ".join(f"{name} {_told(before[name])} -> {_told(after[name])}" for name in changes),
        origin=origin,
        disruption=cost.disruption,
        refused=refused,
        before=before,
        after=after,
    )
    return Step(operation, volume.name, action, volume=volume, identity=identity, refused=bool(refused))


def _told(value: Any) -> str:
    return "[" + ", ".join(value) + "]" if isinstance(value, list) else str(value)


def _withdrawing(state: VolumeState, before: Wanted | None, options: Options) -> Step:
    cost = cost_of_withdrawal(state)
    refused = "" if options.allow_disruption else cost.why
    action = Action(
        verb=Verb.WITHDRAW,
        kind=Kind.VOLUME,
        subject=state.name,
        text=f"- volume {state.name} served from {', '.join(state.targets)}",
        origin=Origin.INTENDED if before is None or state.name in before.volumes else Origin.CORRECTIVE,
        disruption=cost.disruption,
        refused=refused,
        before=_shown_state(state),
    )
    return Step(Operation.WITHDRAW, state.name, action, refused=bool(refused))


# --- what is not as it should be and no step mends -----------------------------------------------------------


def volume_findings(wanted: Wanted, observed: EngineState, resolutions: Mapping[str, Resolution]) -> list[Finding]:
    """Return what is wrong with the wanted volumes."""
    served = {volume.name: volume for volume in observed.volumes}
    findings = []
    for volume in wanted.volumes.values():
        state, found = served.get(volume.name), resolutions[volume.name].finding
        if found is not None and (state is None or found.final):
            findings.append(found)
        elif state is not None:
            findings += _health(volume, state, wanted, observed)
    return findings


def usable_paths(state: VolumeState) -> int:
    """Return how many paths of a volume can carry I/O."""
    return sum(path.phase in USABLE_PATH for path in state.paths)


def _health(volume: WantedVolume, state: VolumeState, wanted: Wanted, observed: EngineState) -> list[Finding]:
    if state.phase in ("failed", "queueing"):
        why = state.fault.message if state.fault else "none of its paths works"
        return [
            finding(
                Isdsc.TARGET_MAPPING_UNAVAILABLE,
                f"volume {volume.name} is {state.phase}: {why}",
                volume.name,
                target=volume.target,
                volume=volume.name,
            )
        ]
    logged_in = {s.key for s in observed.sessions if s.phase is SessionPhase.LOGGED_IN}
    due = [s for s in wanted.sessions.values() if s.target == volume.target and s.key in logged_in]
    usable = usable_paths(state)
    if usable >= len(due):
        return []
    missing = finding(
        Isdsc.PATH_COUNT_MISMATCH,
        f"volume {volume.name} has {usable} usable paths over {len(due)} sessions",
        volume.name,
        remedy="check that every portal of the target shows its logical unit",
        target=volume.target,
        volume=volume.name,
    )
    return [missing.as_path(tried=True)]
