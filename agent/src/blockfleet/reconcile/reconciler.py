# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API asks of the control plane: plan, apply, look, discover."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockfleet.attach.interface import Attacher
from blockfleet.attach.socket import SocketAttacher
from blockfleet.engine.interface import DiscoveredPortal, Engine, EngineEvent, EngineState, SessionPhase
from blockfleet.model.change import Change, Options
from blockfleet.model.desired import Attachment, DiscoveryPortal
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.events import EventNumber
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.merge import merge
from blockfleet.model.plan import (
    DesiredView,
    DiscoveredPortalView,
    DiscoveredTarget,
    DiscoveryReport,
    HostStatus,
    Origin,
    Plan,
    Problem,
    Report,
)
from blockfleet.model.portal import InvalidPortal, Portal
from blockfleet.reconcile.converge import Convergence, report_of
from blockfleet.reconcile.core import Core, Timing
from blockfleet.reconcile.keeper import Keeper
from blockfleet.reconcile.plan import Planned, corrective_part
from blockfleet.reconcile.scope import Scope, scope_of
from blockfleet.reconcile.status import StatusMaker, View
from blockfleet.reconcile.verify import judge
from blockfleet.store.documents import Desired, iso_time, unreadable_in
from blockfleet.store.state import StateStore

DISCOVERY_FRESH = 5.0
"""Seconds for which a request makes do with the last attempt at discovery."""

_REAL_TIME = Timing(time.monotonic, asyncio.sleep, time.time)


@dataclass(frozen=True, slots=True)
class _Request:
    """A change, checked and resolved against the present desired state."""

    new: Desired
    options: Options
    scope: Scope
    whole: bool


class Reconciler:
    """The control plane of one host: one store, one engine.

    Every method raises :class:`~blockfleet.model.errors.BlockfleetError`, and then has changed nothing:
    ENGINE_NOT_RUNNING, STATE_UNUSABLE while the store is degraded, DISRUPTION_REFUSED, and what is wrong with a
    document.  ``status`` never raises for an engine that is away.
    """

    def __init__(
        self,
        store: StateStore,
        engine: Engine,
        *,
        repair: bool = True,
        attachers: Mapping[Attachment, Attacher] | None = None,
        timing: Timing = _REAL_TIME,
    ) -> None:
        attachers = attachers or {Attachment.SOCKET: SocketAttacher()}
        self._store = store
        self._engine = engine
        self._core = Core(store, engine, attachers, timing)
        self._lock = asyncio.Lock()
        self._keeper = Keeper(self._core, self._lock, repair=repair)
        self._statuses = StatusMaker(attachers)

    @property
    def repair(self) -> bool:
        """Whether drift is put right as it is found, or only told."""
        return self._keeper.repair

    @repair.setter
    def repair(self, value: bool) -> None:
        self._keeper.repair = value

    async def run(self) -> None:
        """Keep the host in order until cancelled.  The engine and its I/O go on without it."""
        if self._store.degraded:
            self._store.events.record(EventNumber.STATE_DEGRADED, "state", self._store.degraded)
        for record in sorted(self._store.desired.unreadable):
            self._store.events.record(EventNumber.SECRET_UNREADABLE, record)
        await self._keeper.run()

    async def look(self) -> None:
        """Do at once what :meth:`run` does every few seconds."""
        await self._keeper.look()

    # --- changes -----------------------------------------------------------------------------------------

    async def plan(self, change: Change | None = None) -> Plan:
        """Say what a change would do, or what would bring the host to its present desired state.

        May ask discovery portals that are not known yet; changes nothing on the host.
        """
        planned, _ = await self._planned(self._request(change))
        return planned.plan

    async def apply(self, change: Change | None = None) -> Report:
        """Carry a change out and look until it is verified or the wait timeout is over."""
        async with self._lock:
            return await self._apply(self._request(change))

    async def drift(self) -> Plan:
        """Return what the host lacks of what it once had as declared, and what it has besides."""
        self._require_state(whole=False)
        observed = await self._core.observe(prepare=False)
        return corrective_part(self._core.plan(observed, self._store.desired, Options(), Scope()).plan)

    def _require_state(self, *, whole: bool) -> None:
        if self._store.degraded and (self._store.read_only or not whole):
            raise BlockfleetError(
                Isdsc.STATE_UNUSABLE,
                self._store.degraded,
                remedy="put the state right; see the message",
            )

    def _request(self, change: Change | None) -> _Request:
        whole = change is not None and change.mode == "replace"
        self._require_state(whole=whole)
        desired = self._store.desired
        if change is None:
            return _Request(desired, Options(), Scope(), whole=False)
        document = merge(desired.document, change)
        volume_targets = {volume.name: volume.target for volume in document.volumes}
        new = Desired(desired.generation, document, unreadable_in(document, desired))
        return _Request(new, change.options, scope_of(change, volume_targets), whole)

    async def _planned(self, request: _Request) -> tuple[Planned, EngineState]:
        await self._core.observe(prepare=True)
        await self._core.discoverer.ask_missing(request.new, retry_after=DISCOVERY_FRESH)
        observed = await self._core.observe(prepare=True)
        return self._core.plan(observed, request.new, request.options, request.scope), observed

    async def _apply(self, request: _Request) -> Report:
        planned, observed = await self._planned(request)
        _refuse_disruption(planned)
        if planned.declared or (request.whole and self._store.degraded):
            actions = [action.model_dump(mode="json") for action in planned.plan.actions]
            self._store.save_desired(request.new.document, actions, whole=request.whole)
        self._core.discoverer.keep(request.new.document)
        outcome = await Convergence(self._core, request.options, request.scope).run(planned, observed)
        report = report_of(planned, outcome, self._store.desired.generation)
        if report.verified:
            self._store.mark_applied(report.generation)
        if report.changed:
            number = EventNumber.CHANGE_APPLIED if report.verified else EventNumber.CHANGE_NOT_VERIFIED
            self._store.events.record(
                number,
                f"generation {report.generation}",
                "; ".join(action.text for action in report.actions),
                {"status": report.status.value},
            )
        return report

    # --- looking -----------------------------------------------------------------------------------------

    async def observed(self) -> EngineState:
        """Return the engine's present state."""
        return await self._core.observe(prepare=False)

    async def status(self) -> HostStatus:
        """Return how the host stands, as conditions."""
        now = iso_time(self._core.timing.wall())
        desired, degraded = self._store.desired, self._store.degraded
        try:
            observed = await self._core.observe(prepare=False)
        except BlockfleetError as error:
            problem = Problem.of(error, "engine")
            return self._statuses.without_engine(desired, self._core.initiator, problem, degraded, now)
        planned = self._core.plan(observed, desired, Options(), Scope())
        view = View(
            document=desired.document,
            generation=desired.generation,
            observed=observed,
            shown=self._core.discoverer.shown(desired.document),
            planned=planned,
            verdict=judge(planned, observed, Scope()),
            degraded=degraded,
        )
        return self._statuses.status(view, now)

    async def desired_view(self) -> DesiredView:
        """Return the desired state with its secrets as fingerprints."""
        desired = self._store.desired
        return DesiredView(generation=desired.generation, document=self._store.shown(desired.document))

    async def events(self, after: int, limit: int) -> Sequence[EngineEvent]:
        """Return kept events with a number above ``after``, oldest first."""
        return self._store.events.after(after, limit)

    # --- discovery and scanning --------------------------------------------------------------------------

    async def discover(self, portals: Sequence[str] | None = None) -> DiscoveryReport:
        """Ask portals for their targets now: those given, with the credentials declared for them, or all declared.

        Nothing but the cache of answers changes.
        """
        self._require_state(whole=False)
        document = self._store.desired.document
        declared = {source.portal: source for source in document.discovery.portals}
        names = list(declared) if portals is None else [_portal(text, i) for i, text in enumerate(portals)]
        await self._core.observe(prepare=True)
        sources = [declared.get(name, DiscoveryPortal(portal=name)) for name in dict.fromkeys(names)]
        answers, problems = await self._core.discoverer.ask(sources)
        self._core.discoverer.keep(document)
        return DiscoveryReport(targets=_by_target(answers), problems=tuple(problems.values()))

    async def rescan(self, target: str | None = None) -> HostStatus:
        """Ask the sessions of a target, or all, for their logical units again, and look."""
        observed = await self._core.observe(prepare=False)
        sessions = [s for s in observed.sessions if target is None or s.target == target]
        if target is not None and not sessions:
            raise BlockfleetError(
                Isdsc.TARGET_NOT_FOUND,
                f"no session to {target[:223]!r} exists",
                remedy="declare its portals first",
                field="target",
            )
        up = [s.key for s in sessions if s.phase is SessionPhase.LOGGED_IN]
        await asyncio.gather(*(self._engine.rescan(key) for key in up))
        return await self.status()


def _refuse_disruption(planned: Planned) -> None:
    """Raise for the first action that was asked for and would interrupt a user."""
    refused = [action for action in planned.refused if action.origin is Origin.INTENDED]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise BlockfleetError(
            Isdsc.DISRUPTION_REFUSED,
            f"refused to interrupt a user: {refused[0].text}: {refused[0].refused}{more}; nothing was changed",
            remedy="close the volume's users first, or set allow_disruption",
            field=refused[0].subject,
        )


def _portal(text: str, index: int) -> str:
    try:
        return str(Portal.parse(text))
    except InvalidPortal as error:
        field = f"portals[{index}]"
        raise BlockfleetError(Isdsc.DOCUMENT_INVALID, f"{field}: {error}", field=field) from None


def _by_target(answers: Mapping[str, tuple[DiscoveredPortal, ...]]) -> tuple[DiscoveredTarget, ...]:
    portals: dict[str, dict[str, int | None]] = defaultdict(dict)
    for answer in answers.values():
        for entry in answer:
            portals[entry.target][entry.portal] = entry.tag
    return tuple(
        DiscoveredTarget(
            target=target,
            portals=tuple(DiscoveredPortalView(portal=p, tag=t) for p, t in sorted(found.items())),
        )
        for target, found in sorted(portals.items())
    )
