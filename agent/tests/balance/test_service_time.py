# SPDX-License-Identifier: GPL-3.0-or-later
"""Service time: commands go where the answer is expected first; on a simulated clock, unseen by the policy."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

import pytest

from blockfleet.balance.service_time import WINDOW, ServiceTime


@dataclass(eq=False)
class Lane:
    """Answers ``parallel`` commands at a time, each after ``latency``."""

    name: str
    latency: float = 1.0
    parallel: int = 1000
    in_flight: int = 0
    completed: int = 0
    limit: int = 1000
    weight: int = 0
    standby: bool = False


def run(chosen: ServiceTime[Lane], lanes: list[Lane], commands: int, depth: int) -> Counter[str]:
    """Keep ``depth`` commands in flight until so many were sent; return how many went to each lane."""
    busy_until = {lane.name: [0.0] * min(lane.parallel, depth) for lane in lanes}
    answers: list[tuple[float, int, Lane]] = []
    sent: Counter[str] = Counter()
    clock = 0.0
    for number in range(commands):
        if number >= depth:
            clock, _, done = heapq.heappop(answers)
            done.in_flight -= 1
            done.completed += 1
        lane = chosen.select()
        assert lane is not None
        lane.in_flight += 1
        sent[lane.name] += 1
        servers = busy_until[lane.name]
        end = max(heapq.heappop(servers), clock) + lane.latency
        heapq.heappush(servers, end)
        heapq.heappush(answers, (end, number, lane))
    for _, _, lane in answers:
        lane.in_flight -= 1
        lane.completed += 1
    return sent


def selector(*lanes: Lane) -> ServiceTime[Lane]:
    made: ServiceTime[Lane] = ServiceTime()
    made.update(lanes)
    return made


@pytest.mark.parametrize("parallel", [1, 1000], ids=["one at a time", "all at once"])
def test_a_slow_lane_gets_a_small_share(parallel: int) -> None:
    lanes = [Lane("fast", 1.0, parallel), Lane("slow", 8.0, parallel)]
    chosen = selector(*lanes)
    run(chosen, lanes, 4 * WINDOW, 16)
    sent = run(chosen, lanes, 20 * WINDOW, 16)
    assert 0 < sent["slow"] < 0.2 * sent.total()


def test_what_a_policy_without_measurement_would_send_there_is_more() -> None:
    """Least queue depth evens out queues: with fixed latencies 1 and 8 that is a ninth; this sends less there."""
    lanes = [Lane("fast", 1.0), Lane("slow", 8.0)]
    chosen = selector(*lanes)
    run(chosen, lanes, 4 * WINDOW, 16)
    assert run(chosen, lanes, 20 * WINDOW, 16)["slow"] < 20 * WINDOW / 9


@pytest.mark.parametrize("depth", [1, 2, 16])
def test_equals_get_equal_shares(depth: int) -> None:
    lanes = [Lane("a"), Lane("b")]
    sent = run(selector(*lanes), lanes, 20 * WINDOW, depth)
    assert abs(sent["a"] - sent["b"]) < 0.1 * sent.total()


def test_a_lane_that_was_slow_and_is_fast_again_gets_its_share_back() -> None:
    lanes = [Lane("a"), Lane("b", 20.0)]
    chosen = selector(*lanes)
    assert run(chosen, lanes, 20 * WINDOW, 8)["b"] < 2 * WINDOW
    lanes[1].latency = 1.0
    run(chosen, lanes, 20 * WINDOW, 8)
    sent = run(chosen, lanes, 20 * WINDOW, 8)
    assert abs(sent["a"] - sent["b"]) < 0.2 * sent.total()


def test_a_lane_that_answers_nothing_gets_no_more_than_it_takes_to_see_that() -> None:
    stuck, alive = Lane("stuck", 1e9), Lane("alive")
    chosen = selector(stuck, alive)
    sent = run(chosen, [stuck, alive], 10 * WINDOW, 64)
    assert 0 < stuck.completed <= sent["stuck"] <= 32


def test_a_full_lane_is_passed_over_and_there_may_be_none() -> None:
    full, free = Lane("full", in_flight=2, limit=2), Lane("free", in_flight=5)
    chosen = selector(full, free)
    assert chosen.select() is free
    chosen.update([full])
    assert chosen.select() is None
    assert (chosen.is_active(full), chosen.is_active(free)) == (True, False)
    assert selector().select() is None
