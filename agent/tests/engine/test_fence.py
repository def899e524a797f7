# SPDX-License-Identifier: GPL-3.0-or-later
"""The ladder of the path fence on a clock of its own: reinstate and LUN RESET, else time, never a guess."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable

import pytest

from blockfleet.engine.fence import DETOUR_AFTER, RESET_TIMEOUT, TIME_FENCE, FenceMethod, fence
from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc


class _Selector(selectors.DefaultSelector):
    """Moves the clock on instead of waiting."""

    now = 0.0

    def select(self, timeout=None):
        if timeout:
            self.now += timeout
        return super().select(0)


def simulate(run: Callable[[], Awaitable[object]]) -> tuple[object, float]:
    """Run on a loop whose waiting takes no time; returns the result and the seconds that it took there."""
    selector = _Selector()

    def make() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now
        return loop

    with asyncio.Runner(loop_factory=make) as runner:
        result = runner.run(run())
    return result, selector.now


class ScriptedSession:
    """Logs in at the times of ``logins`` (generation 2 on), answers each LUN RESET with the next of ``answers``.

    An answer is a response, or None for silence: after ``timeout`` an error is raised.
    """

    def __init__(
        self,
        logins: list[float],
        answers: list[tuple[float, TaskResponse | None]],
        *,
        detour: bool = False,
        contacts: tuple[float, ...] = (),
    ) -> None:
        self._logins = logins
        self._answers = answers
        self._detour = detour
        self._contacts = contacts
        self.resets: list[tuple[int, float]] = []
        self.detours: list[tuple[int, float]] = []

    @property
    def contacted_at(self) -> float:
        now = asyncio.get_running_loop().time()
        return max((contact for contact in self._contacts if contact <= now), default=0.0)

    async def detour(self, lun: int) -> bool:
        self.detours.append((lun, asyncio.get_running_loop().time()))
        return self._detour

    @property
    def generation(self) -> int:
        now = asyncio.get_running_loop().time()
        return 1 + sum(1 for login in self._logins if login <= now)

    async def wait_for_login(self, after: int, timeout: float) -> bool:
        now = asyncio.get_running_loop().time()
        if self.generation > after:
            return True
        coming = [login for login in self._logins if now < login <= now + timeout]
        await asyncio.sleep(coming[0] - now if coming else timeout)
        return bool(coming)

    async def lun_reset(self, lun: int, timeout: float) -> TaskResponse:
        self.resets.append((lun, asyncio.get_running_loop().time()))
        delay, response = self._answers.pop(0)
        await asyncio.sleep(min(delay, timeout))
        if response is None or delay > timeout:
            raise BlockfleetError(Isdsc.SCSI_REQUEST_FAILED, "no answer")
        return response


COMPLETE = TaskResponse.FUNCTION_COMPLETE


def run(session: ScriptedSession) -> tuple[object, float]:
    return simulate(lambda: fence(session, 7 << 48, lost=1, lost_at=0.0))


def test_reinstated_session_and_answered_lun_reset_are_the_fence() -> None:
    session = ScriptedSession([2.0], [(3.6, COMPLETE)])
    method, took = run(session)
    assert method is FenceMethod.LUN_RESET
    assert took == pytest.approx(5.6, abs=0.01)
    assert session.resets == [(7 << 48, pytest.approx(2.0, abs=0.01))]


def test_answer_is_awaited_beyond_the_time_fence_because_the_target_is_still_busy() -> None:
    method, took = run(ScriptedSession([2.0], [(25.0, COMPLETE)]))
    assert method is FenceMethod.LUN_RESET
    assert took == pytest.approx(27.0, abs=0.01)


def test_target_that_stays_away_is_fenced_by_time_from_the_reset_of_the_socket() -> None:
    session = ScriptedSession([], [])
    method, took = run(session)
    assert method is FenceMethod.TIME
    assert took == pytest.approx(TIME_FENCE, abs=0.01)
    assert session.resets == []


def test_login_that_was_lost_does_not_count_as_reinstated() -> None:
    session = ScriptedSession([], [(0.0, COMPLETE)])
    assert session is not None
    method, _ = run(session)
    assert method is FenceMethod.TIME


def test_unit_that_hangs_on_a_live_session_is_asked_again_and_never_guessed_about() -> None:
    session = ScriptedSession([1.0], [(99.0, None), (99.0, None), (0.5, COMPLETE)])
    method, took = run(session)
    assert method is FenceMethod.LUN_RESET
    assert len(session.resets) == 3
    assert took > 2 * RESET_TIMEOUT


def test_session_lost_again_during_the_reset_is_waited_for_within_the_same_deadline() -> None:
    session = ScriptedSession([1.0, 4.0], [(2.9, None), (0.1, COMPLETE)])
    method, took = run(session)
    assert method is FenceMethod.LUN_RESET
    assert took == pytest.approx(4.1, abs=0.4)


@pytest.mark.parametrize(
    "response",
    [
        TaskResponse.LUN_DOES_NOT_EXIST,
        TaskResponse.FUNCTION_NOT_SUPPORTED,
        TaskResponse.AUTHORIZATION_FAILED,
        TaskResponse.FUNCTION_REJECTED,
        TaskResponse.TASK_DOES_NOT_EXIST,
    ],
)
def test_refused_lun_reset_proves_nothing_and_time_is_the_fence(response: TaskResponse) -> None:
    method, took = run(ScriptedSession([1.0], [(0.1, response)]))
    assert method is FenceMethod.TIME
    assert took == pytest.approx(TIME_FENCE, abs=0.01)


def test_portal_that_stays_away_is_fenced_through_another_portal_of_its_group() -> None:
    session = ScriptedSession([], [], detour=True)
    method, took = run(session)
    assert method is FenceMethod.DETOUR
    assert took == pytest.approx(DETOUR_AFTER, abs=0.01)
    assert [lun for lun, _ in session.detours] == [7 << 48]


def test_portal_that_takes_connections_and_holds_the_login_back_is_alive_and_not_fenced_by_time() -> None:
    session = ScriptedSession([40.0], [(0.1, COMPLETE)], contacts=(1.0, 12.0, 23.0, 34.0))
    method, took = run(session)
    assert method is FenceMethod.LUN_RESET
    assert took == pytest.approx(40.1, abs=0.01)


def test_time_counts_from_the_last_sign_of_life() -> None:
    method, took = run(ScriptedSession([], [], contacts=(6.0,)))
    assert method is FenceMethod.TIME
    assert took == pytest.approx(6.0 + TIME_FENCE, abs=DETOUR_AFTER)
