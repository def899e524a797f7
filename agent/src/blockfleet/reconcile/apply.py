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
from blockfleet.reconcile.disruption import USABLE_PATH
from blockfleet.reconcile.steps import Operation, Step
from blockfleet.reconcile.wanted import WantedSession
from blockfleet.store.state import Binding, StateStore

PARALLEL = 8
"""Requests that are out to the engine at one time."""

RELOGIN_GRACE = 5.0
"""Seconds beyond the login timeout that a re-login may take before the next session is spared."""

FAILURE_STANDS = 1.0
"""Seconds after which a failed login is that of the re-login."""

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
            connection_set=session.connection_set,
        )

    async def _relogin_in_turn(
        self, steps: list[Step], seen: Mapping[str, str], problems: dict[str, Problem]
    ) -> None:
        """Log in anew: first the sessions that are down anyway, then those that carry I/O, one by one.

        What does not come back ends it: the others keep their present login, and what went wrong shows in the
        state of the session that failed.
        """
        observed = await self._engine.observe()
        up = {state.key for state in observed.sessions if state.phase is SessionPhase.LOGGED_IN}
        down = [step for step in steps if step.key not in up]
        for step in down:
            await self._relogin(step, seen, problems)
        carrying = [step for step in steps if step.key in up]
        if down and carrying and not await self._came_back(down):
            return
        for step in carrying:
            await self._relogin(step, seen, problems)
            if step.key in problems or not await self._came_back([step]):
                return

    async def _relogin(self, step: Step, seen: Mapping[str, str], problems: dict[str, Problem]) -> None:
        assert step.session is not None
        try:
            await self._engine.open_session(self._spec(step.session, seen))
            await self._engine.relogin(step.key)
        except BlockfleetError as error:
            if error.code is Isdsc.ENGINE_NOT_RUNNING:
                raise
            problems[step.key] = Problem.of(error, step.key)

    async def _came_back(self, steps: list[Step]) -> bool:
        """Wait until sessions are logged in and their paths usable; false as soon as one has failed for good."""
        keys = {step.key for step in steps}
        patience = max(step.session.options.login_timeout for step in steps if step.session is not None)
        start = self._clock()
        while True:
            observed = await self._engine.observe()
            phases = {state.key: state.phase for state in observed.sessions}
            elapsed = self._clock() - start
            # Just after the request, a session may still show the failure of the login before.
            failed = any(phases.get(key, SessionPhase.FAILED) is SessionPhase.FAILED for key in keys)
            if (failed and elapsed >= FAILURE_STANDS) or elapsed >= patience + RELOGIN_GRACE:
                return False
            pending = {s.key for s in observed.sessions if s.relogin_pending}
            logged_in = all(phases.get(key) is SessionPhase.LOGGED_IN and key not in pending for key in keys)
            paths = [path for volume in observed.volumes for path in volume.paths if path.session in keys]
            if logged_in and all(path.phase in USABLE_PATH for path in paths):
                return True
            await self._sleep(RELOGIN_POLL)

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
                failback=volume.failback,
                path_settings=volume.path_settings,
                read_only=volume.read_only,
            )
        )
        self._store.bind(volume.name, Binding(volume.target, volume.lun, step.identity))
        await self._attachers[volume.attach].attach(state)

    async def _withdraw(self, name: str) -> None:
        for attacher in self._attachers.values():
            await attacher.detach(name)
        await self._engine.withdraw(name)
