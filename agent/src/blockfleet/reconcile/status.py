# SPDX-License-Identifier: GPL-3.0-or-later
"""How the host stands, as conditions of its portals, targets and volumes.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blockfleet.attach.interface import Attacher
from blockfleet.engine.interface import EngineState, InitiatorSpec, SessionPhase, SessionState, VolumeState
from blockfleet.model.conditions import Condition, ConditionClock, ConditionType, Truth
from blockfleet.model.desired import Attachment, Document, Lifetime, Target
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import (
    EngineView,
    HostStatus,
    InitiatorView,
    PortalStatus,
    Problem,
    ReportStatus,
    TargetStatus,
    VolumeStatus,
)
from blockfleet.reconcile.plan import Planned
from blockfleet.reconcile.scope import Finding
from blockfleet.reconcile.verify import Verdict
from blockfleet.reconcile.volume_steps import usable_paths
from blockfleet.reconcile.wanted import Shown, Wanted
from blockfleet.store.documents import Desired


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a status is made of."""

    document: Document
    generation: int
    observed: EngineState
    shown: Shown
    planned: Planned
    verdict: Verdict
    degraded: str


class StatusMaker:
    """Makes statuses, and remembers since when each condition has been as it is."""

    def __init__(self, attachers: Mapping[Attachment, Attacher]) -> None:
        self._attachers = attachers
        self._clock = ConditionClock()

    def without_engine(
        self, desired: Desired, initiator: InitiatorSpec, problem: Problem, degraded: str, now: str
    ) -> HostStatus:
        """Describe a host whose engine cannot be reached: nothing is known but what is declared."""
        generation = desired.generation
        maker = _Maker(self._clock, generation, now)
        unknown = [(ConditionType.IN_SYNC, None, "EngineNotRunning", problem.message)]
        return HostStatus(
            generation=generation,
            in_sync=False,
            initiator=InitiatorView(name=initiator.name, alias=initiator.alias),
            engine=EngineView(reachable=False),
            conditions=maker.stamp("host", unknown),
            problems=(problem,),
            degraded=degraded or problem.message,
        )

    def status(self, view: View, now: str) -> HostStatus:
        """Describe the host; ``now`` is the present time in ISO 8601."""
        maker = _Maker(self._clock, view.generation, now)
        portals = tuple(self._portal(source.portal, view, maker) for source in view.document.discovery.portals)
        targets = tuple(self._target(name, view, maker) for name in _target_names(view))
        volumes = tuple(self._volume(name, view, maker) for name in _volume_names(view))
        in_sync = view.verdict.status is ReportStatus.IN_SYNC and not view.degraded
        conditions = maker.stamp("host", [_host_sync(view, in_sync), _host_persistent(view)])
        self._clock.forget_all_but(maker.subjects)
        initiator = view.observed.initiator or view.planned.wanted.initiator
        return HostStatus(
            generation=view.generation,
            in_sync=in_sync,
            initiator=InitiatorView(name=initiator.name, alias=initiator.alias),
            engine=EngineView(
                reachable=True,
                instance=view.observed.instance,
                version=view.observed.version,
                pid=view.observed.pid,
            ),
            portals=portals,
            targets=targets,
            volumes=volumes,
            conditions=conditions,
            problems=(*_degraded(view), *(found.problem for found in view.planned.findings)),
            degraded=view.degraded,
        )

    def _portal(self, portal: str, view: View, maker: _Maker) -> PortalStatus:
        error, answer = view.shown.errors.get(portal), view.shown.answers.get(portal)
        if error is not None:
            discovered: _Judgement = (ConditionType.DISCOVERED, False, "DiscoveryFailed", error.message)
        elif answer is None:
            discovered = (ConditionType.DISCOVERED, None, "NotAskedYet", "discovery has not run yet")
        else:
            count = len({entry.target for entry in answer})
            discovered = (ConditionType.DISCOVERED, True, "Answered", f"shows {count} targets")
        return PortalStatus(portal=portal, conditions=maker.stamp(f"portal {portal}", [discovered]))

    def _target(self, name: str, view: View, maker: _Maker) -> TargetStatus:
        wanted = view.planned.wanted
        target = next((t for t in view.document.targets if t.name == name), None)
        sessions = [s for s in view.observed.sessions if s.target == name]
        due = tuple(s.portal for s in wanted.sessions.values() if s.target == name)
        judgements = [
            _discovered(name, view),
            _logged_in(name, due, sessions, wanted),
            _devices_present(name, view),
            _target_persistent(target),
        ]
        policy = (target.policy if target else None) or view.document.policy
        return TargetStatus(
            name=name,
            declared=target is not None,
            portals=due,
            policy=policy.value,
            lifetime=((target.lifetime if target else None) or Lifetime.PERSISTENT).value,
            min_paths=wanted.needed.get(name, 0),
            sessions=tuple(s.model_dump(mode="json") for s in sessions),
            conditions=maker.stamp(f"target {name}", judgements),
        )

    def _volume(self, name: str, view: View, maker: _Maker) -> VolumeStatus:
        volume = view.planned.wanted.volumes.get(name)
        state = next((v for v in view.observed.volumes if v.name == name), None)
        found = next((f for f in view.planned.findings if f.volume == name), None)
        due = sum(1 for s in view.planned.wanted.sessions.values() if volume and s.target == volume.target)
        judgements = [
            _served(state, found),
            _paths_healthy(state, due),
            _verified(state, found),
        ]
        conditions = maker.stamp(f"volume {name}", judgements)
        target = volume.target if volume else ", ".join(state.targets if state else ())
        lun = volume.lun if volume else None
        if state is None:
            assert volume is not None
            return VolumeStatus(
                name=name,
                declared=True,
                target=target,
                lun=lun,
                identity=volume.identity,
                policy=volume.policy.value,
                failback=volume.failback,
                read_only=volume.read_only,
                conditions=conditions,
            )
        attacher = self._attachers[volume.attach if volume else Attachment.SOCKET]
        return VolumeStatus(
            name=name,
            declared=volume is not None,
            target=target,
            lun=lun if lun is not None else next((path.lun for path in state.paths), None),
            identity=state.identity,
            size=state.size,
            block_size=state.block_size,
            policy=state.policy.value,
            failback=state.failback,
            read_only=state.read_only,
            phase=state.phase,
            socket=state.socket,
            device=attacher.device(state),
            clients=state.clients,
            paths=tuple(path.model_dump(mode="json") for path in state.paths),
            conditions=conditions,
        )


_Judgement = tuple[ConditionType, bool | None, str, str]
"""A condition's type, truth (None: unknown), reason and message."""


class _Maker:
    """Stamps the conditions of one status with its generation and time."""

    def __init__(self, clock: ConditionClock, generation: int, now: str) -> None:
        self._clock = clock
        self._generation = generation
        self._now = now
        self.subjects: list[str] = []

    def stamp(self, subject: str, judgements: Iterable[_Judgement]) -> tuple[Condition, ...]:
        self.subjects.append(subject)
        conditions = [
            Condition(
                type=kind,
                status=Truth.of(truth),
                reason=reason,
                message=message,
                observed_generation=self._generation,
            )
            for kind, truth, reason, message in judgements
        ]
        return self._clock.stamp(subject, conditions, self._now)


def _target_names(view: View) -> list[str]:
    declared = [target.name for target in view.document.targets]
    declared += [volume.target for volume in view.document.volumes]
    return list(dict.fromkeys([*declared, *(session.target for session in view.observed.sessions)]))


def _volume_names(view: View) -> list[str]:
    declared = [volume.name for volume in view.document.volumes]
    return list(dict.fromkeys([*declared, *(volume.name for volume in view.observed.volumes)]))


def _degraded(view: View) -> tuple[Problem, ...]:
    if not view.degraded:
        return ()
    return (
        Problem(
            code=int(Isdsc.STATE_UNUSABLE), name=str(Isdsc.STATE_UNUSABLE), message=view.degraded, subject="state"
        ),
    )


def _host_sync(view: View, in_sync: bool) -> _Judgement:
    if in_sync:
        return ConditionType.IN_SYNC, True, "AsDeclared", ""
    if view.degraded:
        return ConditionType.IN_SYNC, None, "StateUnusable", view.degraded
    actions = len(view.planned.plan.actions)
    if actions:
        return ConditionType.IN_SYNC, False, "ChangesPending", f"{actions} changes are pending"
    problems = view.planned.findings
    message = problems[0].problem.message if problems else ""
    reason = "PathsMissing" if view.verdict.status is ReportStatus.PARTIAL else "Problems"
    return ConditionType.IN_SYNC, False, reason, message


def _host_persistent(view: View) -> _Judgement:
    if view.degraded:
        return ConditionType.PERSISTENT, False, "StateUnusable", view.degraded
    return ConditionType.PERSISTENT, True, "Saved", f"generation {view.generation}"


def _discovered(name: str, view: View) -> _Judgement:
    portals = view.shown.portals_of(name, view.document)
    if portals:
        return ConditionType.DISCOVERED, True, "Shown", f"at {', '.join(portals)}"
    if not view.document.discovery.portals and not view.document.discovery.static:
        return ConditionType.DISCOVERED, None, "NoDiscovery", "no discovery portal and no static target is declared"
    return ConditionType.DISCOVERED, False, "NotShown", "no declared discovery portal shows it"


def _logged_in(name: str, due: tuple[str, ...], sessions: list[SessionState], wanted: Wanted) -> _Judgement:
    if not due:
        # A target that is wanted at all its portals and shown at none is not logged in, not "not wanted".
        waits = name in wanted.open_ended
        return ConditionType.LOGGED_IN, False if waits else None, "NoPortal" if waits else "NotWanted", ""
    up = [s for s in sessions if s.phase is SessionPhase.LOGGED_IN and s.key in wanted.sessions]
    message = f"{len(up)} of {len(due)} sessions"
    if len(up) == len(due):
        return ConditionType.LOGGED_IN, True, "LoggedIn", message
    fault = next((s.fault for s in sessions if s.fault and s.phase is not SessionPhase.LOGGED_IN), None)
    reason = "MinimumReached" if len(up) >= wanted.needed.get(name, 0) else "SessionsDown"
    return ConditionType.LOGGED_IN, False, reason, f"{message}: {fault.message}" if fault else message


def _devices_present(name: str, view: View) -> _Judgement:
    volumes = [volume.name for volume in view.document.volumes if volume.target == name]
    if not volumes:
        return ConditionType.DEVICES_PRESENT, None, "NoVolumes", "no volume is declared on it"
    served = {volume.name for volume in view.observed.volumes}
    missing = [volume for volume in volumes if volume not in served]
    if missing:
        return ConditionType.DEVICES_PRESENT, False, "VolumesMissing", ", ".join(missing)
    return ConditionType.DEVICES_PRESENT, True, "Served", ", ".join(volumes)


def _target_persistent(target: Target | None) -> _Judgement:
    if target is None:
        return ConditionType.PERSISTENT, False, "NotDeclared", ""
    if target.lifetime is Lifetime.BOOT:
        return ConditionType.PERSISTENT, False, "UntilBoot", "its logins end with the next start of the host"
    return ConditionType.PERSISTENT, True, "Declared", ""


def _served(state: VolumeState | None, found: Finding | None) -> _Judgement:
    if state is not None:
        return ConditionType.DEVICES_PRESENT, True, "Served", ""
    message = found.problem.message if found else ""
    return ConditionType.DEVICES_PRESENT, False, "NotServed", message


def _paths_healthy(state: VolumeState | None, due: int) -> _Judgement:
    if state is None:
        return ConditionType.PATHS_HEALTHY, None, "NotServed", ""
    usable = usable_paths(state)
    message = f"{usable} of {max(due, len(state.paths))} paths"
    if state.phase in ("failed", "queueing"):
        return ConditionType.PATHS_HEALTHY, False, "NoPath", state.fault.message if state.fault else message
    if usable < max(due, len(state.paths)):
        return ConditionType.PATHS_HEALTHY, False, "PathsMissing", message
    return ConditionType.PATHS_HEALTHY, True, "AllPaths", message


def _verified(state: VolumeState | None, found: Finding | None) -> _Judgement:
    if found is not None and found.problem.code == Isdsc.IDENTITY_MISMATCH:
        return ConditionType.VERIFIED, False, "IdentityMismatch", found.problem.message
    if state is None:
        return ConditionType.VERIFIED, None, "NotServed", ""
    return ConditionType.VERIFIED, True, "IdentityMatches", state.identity
