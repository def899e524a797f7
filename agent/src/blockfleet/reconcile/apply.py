# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out the steps of a plan, as many at once as is safe, and say which did not work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import groupby

from blockfleet.attach.interface import Attacher
from blockfleet.engine.interface import Engine, EngineState, SessionPhase, SessionSpec, VolumeSpec
from blockfleet.model.desired import Attachment
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import Problem
from blockfleet.reconcile.steps import Operation, Step
from blockfleet.reconcile.wanted import WantedSession
from blockfleet.store.state import Binding, StateStore

PARALLEL = 8
"""Requests that are out to the engine at one time."""

RELOGIN_GRACE = 5.0
"""Seconds beyond the login timeout that a re-login may take before the next session is spared."""

RELOGIN_POLL = 0.1

Sleep = Callable[[float], Awaitable[None]]
Clock = Callable[[], float]


class Executor:
    """Carries out steps against one engine.  Steps of one kind run side by side, kinds one after another.

    Re-logins run one by one, each only when the one before is back: new credentials that do not work must not
    take down every path.
    """

    def __init__(
        self,
        engine: Engine,
        store: StateStore,
        attachers: Mapping[Attachment, Attacher],
        *,
        clock: Clock,
        sleep: Sleep,
    ) -> None:
        self._engine = engine
        self._store = store
        self._attachers = attachers
        self._clock = clock
        self._sleep = sleep
        self._limit = asyncio.Semaphore(PARALLEL)

    async def run(self, steps: Iterable[Step], observed: EngineState) -> dict[str, Problem]:
        """Carry out the steps that are not refused; return the problem of each that failed, by its key.

        Raises BlockfleetError ENGINE_NOT_RUNNING when the engine goes away; all else is told in the result.
        """
        seen = {state.key: state.isid for state in observed.sessions}
        due = [step for step in steps if not step.refused]
        problems: dict[str, Problem] = {}
        for operation, group in groupby(due, key=lambda step: step.operation):
            if operation is Operation.RELOGIN:
                await self._relogin_in_turn(list(group), seen, problems)
            else:
                await asyncio.gather(*(self._guarded(step, seen, problems) for step in group))
        return problems

    async def _guarded(self, step: Step, seen: Mapping[str, str], problems: dict[str, Problem]) -> None:
        async with self._limit:
            try:
                await self._perform(step, seen)
            except BlockfleetError as error:
                if error.code is Isdsc.ENGINE_NOT_RUNNING:
                    raise
                problems[step.key] = Problem.of(error, step.key)

    async def _perform(self, step: Step, seen: Mapping[str, str]) -> None:
        match step.operation:
            case Operation.WITHDRAW:
                await self._withdraw(step.key)
            case Operation.CLOSE:
                await self._engine.close_session(step.key)
            case Operation.CONFIGURE:
                assert step.initiator is not None
                await self._engine.configure(step.initiator)
            case Operation.OPEN | Operation.UPDATE:
                assert step.session is not None
                await self._engine.open_session(self._spec(step.session, seen))
            case Operation.PUBLISH:
                await self._publish(step)
            case Operation.REPUBLISH:
                await self._withdraw(step.key)
                await self._publish(step)
            case Operation.RELOGIN:
                raise AssertionError("re-logins run in turn")

    def _spec(self, session: WantedSession, seen: Mapping[str, str]) -> SessionSpec:
        isid = self._store.isid(session.target, session.portal, seen=seen.get(session.key, ""))
        return SessionSpec(
            key=session.key,
            target=session.target,
            portal=session.portal,
            isid=seen.get(session.key, isid),
            credentials=session.credentials,
            options=session.options,
        )

    async def _relogin_in_turn(
        self, steps: list[Step], seen: Mapping[str, str], problems: dict[str, Problem]
    ) -> None:
        for step in steps:
            assert step.session is not None
            try:
                before = await self._engine.open_session(self._spec(step.session, seen))
                await self._engine.relogin(step.key)
                if before.phase is SessionPhase.LOGGED_IN and not await self._came_back(step.session):
                    return  # The others keep their present login; what went wrong shows in the session's state.
            except BlockfleetError as error:
                if error.code is Isdsc.ENGINE_NOT_RUNNING:
                    raise
                problems[step.key] = Problem.of(error, step.key)
                return

    async def _came_back(self, session: WantedSession) -> bool:
        deadline = self._clock() + session.options.login_timeout + RELOGIN_GRACE
        while self._clock() < deadline:
            observed = await self._engine.observe()
            state = next((s for s in observed.sessions if s.key == session.key), None)
            if state is None or state.phase is SessionPhase.FAILED:
                return False
            if state.phase is SessionPhase.LOGGED_IN and not state.relogin_pending:
                return True
            await self._sleep(RELOGIN_POLL)
        return False

    async def _publish(self, step: Step) -> None:
        volume = step.volume
        assert volume is not None
        if not step.identity:
            return  # It was foreseen before the login that shows the unit; a later pass knows the identity.
        state = await self._engine.publish(
            VolumeSpec(
                name=volume.name,
                identity=step.identity,
                targets=(volume.target,),
                policy=volume.policy,
                read_only=volume.read_only,
            )
        )
        self._store.bind(volume.name, Binding(volume.target, volume.lun, step.identity))
        await self._attachers[volume.attach].attach(state)

    async def _withdraw(self, name: str) -> None:
        for attacher in self._attachers.values():
            await attacher.detach(name)
        await self._engine.withdraw(name)
