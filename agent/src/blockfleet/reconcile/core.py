# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API's side and the loop's side of the reconciler share: one way to look and one way to plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockfleet.attach.interface import Attacher
from blockfleet.engine.interface import Engine, EngineState, InitiatorSpec
from blockfleet.model.change import Options
from blockfleet.model.desired import Attachment
from blockfleet.reconcile.apply import Clock, Executor, Sleep
from blockfleet.reconcile.discovery import Discoverer
from blockfleet.reconcile.plan import Planned, Situation, make_plan, names_of
from blockfleet.reconcile.scope import Scope
from blockfleet.store.documents import Desired
from blockfleet.store.state import StateStore


@dataclass(frozen=True, slots=True)
class Timing:
    """Where time comes from, so that tests need not wait: monotonic seconds, sleeping, seconds since the epoch."""

    clock: Clock
    sleep: Sleep
    wall: Clock


class Core:
    """The store, the engine and the planner between them."""

    def __init__(
        self, store: StateStore, engine: Engine, attachers: Mapping[Attachment, Attacher], timing: Timing
    ) -> None:
        self.store = store
        self.engine = engine
        self.timing = timing
        self.discoverer = Discoverer(engine, store, timing.clock, timing.wall)
        self.executor = Executor(engine, store, attachers, clock=timing.clock, sleep=timing.sleep)

    @property
    def initiator(self) -> InitiatorSpec:
        """Return who the host is by its present desired state."""
        declared = self.store.desired.document.initiator
        return InitiatorSpec(name=declared.name or self.store.initiator_name, alias=declared.alias or "")

    async def observe(self, *, prepare: bool) -> EngineState:
        """Look at the engine; ``prepare`` tells one that has just started who it is.

        A host that has lost its state adopts what still runs: the name, because another would end every session,
        and the sessions and volumes, which stay while nobody declares otherwise.  Raises BlockfleetError
        ENGINE_NOT_RUNNING.
        """
        observed = await self.engine.observe()
        if not prepare:
            return observed
        if observed.initiator is None:
            await self.engine.configure(self.initiator)
            return await self.engine.observe()
        if self.store.desired.generation == 0 and names_of(observed) != self.store.foreign:
            self.store.adopt(observed.initiator.name, names_of(observed))
        return observed

    def plan(self, observed: EngineState, new: Desired, options: Options, scope: Scope) -> Planned:
        """Plan how the host gets from what is observed to ``new``."""
        situation = Situation(
            desired=self.store.desired,
            applied=self.store.applied,
            observed=observed,
            shown=self.discoverer.shown(new.document),
            bindings=self.store.bindings,
            initiator_name=self.store.initiator_name,
            foreign=self.store.foreign,
            fingerprint=self.store.fingerprint,
        )
        return make_plan(situation, new, options, scope)
