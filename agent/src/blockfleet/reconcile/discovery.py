# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the declared portals for targets, and remember the answers.

Discovery writes nothing but its own cache: it never touches what is declared, never a session.  What a dry run
asks about portals that are not declared yet stays in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blockfleet.engine.interface import DiscoveredPortal, DiscoverySpec, Engine
from blockfleet.model.desired import DiscoveryPortal, Document
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.events import EventNumber
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import Problem
from blockfleet.reconcile.wanted import Shown, credentials_for
from blockfleet.store.documents import Desired, portal_record
from blockfleet.store.state import StateStore

PARALLEL = 8
"""Portals that are asked at one time."""

TIMEOUT = 10.0
"""Seconds that one portal may take to answer."""

REMEMBERED = 1024
"""Answers that are kept in memory."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The last time that a portal was asked with certain credentials."""

    at: float
    answer: tuple[DiscoveredPortal, ...] | None
    problem: Problem | None


class Discoverer:
    """Knows what discovery showed; asks again only when told how old an attempt may be."""

    def __init__(
        self, engine: Engine, store: StateStore, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._store = store
        self._clock = clock
        self._wall = wall
        self._attempts: dict[tuple[str, str], _Attempt] = {}
        self._limit = asyncio.Semaphore(PARALLEL)

    def shown(self, document: Document) -> Shown:
        """Return what is known of a document's portals, without asking."""
        answers: dict[str, tuple[DiscoveredPortal, ...]] = {}
        errors: dict[str, Problem] = {}
        for source in document.discovery.portals:
            credentials = self._fingerprint(source)
            attempt = self._attempts.get((source.portal, credentials))
            record = self._store.discovery.get(source.portal)
            if attempt is not None and attempt.answer is not None:
                answers[source.portal] = attempt.answer
            elif record is not None and record.credentials == credentials:
                answers[source.portal] = record.answer
            if attempt is not None and attempt.problem is not None:
                errors[source.portal] = attempt.problem
        return Shown(answers, errors)

    async def ask_missing(self, desired: Desired, *, retry_after: float) -> None:
        """Ask the portals that have not answered yet, and all while a target that they should show is not shown.

        An attempt that is younger than ``retry_after`` seconds is not repeated.
        """
        document = desired.document
        shown = self.shown(document)
        incomplete = any(
            target.portals == "all" and not shown.portals_of(target.name, document) for target in document.targets
        )
        due = [
            source
            for source in document.discovery.portals
            if (incomplete or source.portal not in shown.answers)
            and self.age(source) >= retry_after
            and portal_record(source.portal) not in desired.unreadable
        ]
        await self.ask(due)

    async def ask(
        self, sources: Iterable[DiscoveryPortal]
    ) -> tuple[dict[str, tuple[DiscoveredPortal, ...]], dict[str, Problem]]:
        """Ask portals now; return the answers, and what went wrong where there was none, by portal."""
        asked = list(sources)
        results = await asyncio.gather(*(self._ask(source) for source in asked))
        answers = {s.portal: answer for s, (answer, _) in zip(asked, results, strict=True) if answer is not None}
        problems = {
            s.portal: problem for s, (_, problem) in zip(asked, results, strict=True) if problem is not None
        }
        return answers, problems

    def age(self, source: DiscoveryPortal) -> float:
        """Return how many seconds ago a portal was last asked, infinite for never.

        Answers that are kept count by the wall clock, so that an agent that starts anew asks nobody.
        """
        credentials = self._fingerprint(source)
        attempt = self._attempts.get((source.portal, credentials))
        if attempt is not None:
            return self._clock() - attempt.at
        record = self._store.discovery.get(source.portal)
        if record is not None and record.credentials == credentials and record.seen_at <= self._wall():
            return self._wall() - record.seen_at
        return float("inf")

    def keep(self, document: Document) -> None:
        """Write the answers of a document's portals to the store, and drop those of portals that it lacks."""
        declared = {source.portal for source in document.discovery.portals}
        self._store.forget_discovery([portal for portal in self._store.discovery if portal not in declared])
        for source in document.discovery.portals:
            credentials = self._fingerprint(source)
            attempt = self._attempts.get((source.portal, credentials))
            if attempt is None or attempt.answer is None:
                continue
            record = self._store.discovery.get(source.portal)
            if record is None or (record.credentials, record.answer) != (credentials, attempt.answer):
                self._store.save_discovery(source.portal, credentials, attempt.answer)

    def _fingerprint(self, source: DiscoveryPortal) -> str:
        credentials = credentials_for(source.chap, self._store.fingerprint)
        return credentials.fingerprint if credentials else ""

    async def _ask(self, source: DiscoveryPortal) -> tuple[tuple[DiscoveredPortal, ...] | None, Problem | None]:
        credentials = credentials_for(source.chap, self._store.fingerprint)
        key = (source.portal, credentials.fingerprint if credentials else "")
        answer: tuple[DiscoveredPortal, ...] | None = None
        problem: Problem | None = None
        async with self._limit:
            try:
                answer = await self._engine.discover(
                    DiscoverySpec(portal=source.portal, credentials=credentials, timeout=TIMEOUT)
                )
            except BlockfleetError as error:
                if error.code is Isdsc.ENGINE_NOT_RUNNING:
                    raise
                problem = Problem.of(error, source.portal)
        self._note(key, answer, problem)
        return answer, problem

    def _note(
        self, key: tuple[str, str], answer: tuple[DiscoveredPortal, ...] | None, problem: Problem | None
    ) -> None:
        known = self._attempts.pop(key, None)
        if problem is not None:
            if known is None or known.problem != problem:
                self._store.events.record(EventNumber.SEND_TARGETS_FAILED, key[0], problem.message)
            # What a portal answered before stays true until it answers otherwise.
            answer = known.answer if known is not None else None
        self._attempts[key] = _Attempt(self._clock(), answer, problem)
        while len(self._attempts) > REMEMBERED:
            del self._attempts[next(iter(self._attempts))]
