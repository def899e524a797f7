# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge how the host stands against its desired state, and whether waiting could still help.  Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from blockfleet.engine.interface import EngineState, SessionPhase
from blockfleet.model.plan import ReportStatus
from blockfleet.reconcile.plan import Planned
from blockfleet.reconcile.scope import Scope
from blockfleet.reconcile.volume_steps import usable_paths


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it stands; ``settled`` when more waiting would tell nothing new."""

    status: ReportStatus
    settled: bool


def judge(planned: Planned, observed: EngineState, scope: Scope) -> Verdict:
    """Judge a plan that was made of a fresh look: what it still wants done is not done.

    Steps that are refused are judged by the findings that they come with.
    """
    if any(not step.refused for step in planned.steps):
        return Verdict(ReportStatus.NOT_VERIFIED, settled=False)
    findings = scope.of(planned.findings)
    blocking = [found for found in findings if not found.is_path]
    paths = [found for found in findings if found.is_path]
    if blocking:
        return Verdict(ReportStatus.NOT_VERIFIED, settled=all(found.final for found in blocking))
    if not paths:
        return Verdict(ReportStatus.IN_SYNC, settled=True)
    short = targets_short_of_paths(planned, observed)
    lacking = [found for found in paths if found.target in short]
    if lacking:
        return Verdict(ReportStatus.NOT_VERIFIED, settled=all(found.final for found in lacking))
    return Verdict(ReportStatus.PARTIAL, settled=all(found.tried or found.final for found in paths))


def targets_short_of_paths(planned: Planned, observed: EngineState) -> frozenset[str]:
    """Return the targets that have fewer sessions, or a volume with fewer usable paths, than they need."""
    wanted = planned.wanted
    up = Counter(
        state.target
        for state in observed.sessions
        if state.key in wanted.sessions and state.phase is SessionPhase.LOGGED_IN
    )
    short = {target for target, needed in wanted.needed.items() if up[target] < needed}
    served = {state.name: state for state in observed.volumes}
    for volume in wanted.volumes.values():
        state = served.get(volume.name)
        if state is not None and usable_paths(state) < wanted.needed.get(volume.target, 0):
            short.add(volume.target)
    return frozenset(short)
