# SPDX-License-Identifier: GPL-3.0-or-later
"""MCS-23: the five load balance policies, as the Microsoft guide defines them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from blockfleet.balance.policy import SELECTORS, LoadBalancePolicy, Selector


@dataclass(eq=False)
class Lane:
    name: str
    in_flight: int = 0
    limit: int = 1000
    weight: int = 0
    standby: bool = False


def selector(policy: str, *lanes: Lane) -> Selector[Lane]:
    made: Selector[Lane] = SELECTORS[LoadBalancePolicy(policy)]()
    made.update(lanes)
    return made


def issue(chosen: Selector[Lane], commands: int) -> str:
    """Send commands that do not end; return the lanes that they went to."""
    names = ""
    for _ in range(commands):
        lane = chosen.select()
        assert lane is not None
        lane.in_flight += 1
        names += lane.name
    return names


def test_fail_over_only_uses_one_lane_and_returns_to_it() -> None:
    a, b = Lane("a"), Lane("b")
    chosen = selector("fail_over_only", a, b)
    assert issue(chosen, 4) == "aaaa"
    chosen.update([b])
    assert issue(chosen, 2) == "bb"
    chosen.update([a, b])
    assert issue(chosen, 2) == "aa"
    assert (chosen.is_active(a), chosen.is_active(b)) == (True, False)


def test_fail_over_only_takes_a_standby_lane_last() -> None:
    a, b = Lane("a", standby=True), Lane("b")
    chosen = selector("fail_over_only", a, b)
    assert issue(chosen, 2) == "bb"
    chosen.update([a])
    assert issue(chosen, 2) == "aa"


def test_fail_over_only_does_not_go_elsewhere_because_the_lane_is_full() -> None:
    assert selector("fail_over_only", Lane("a", in_flight=3, limit=3), Lane("b")).select() is None


def test_round_robin_takes_all_in_turn() -> None:
    chosen = selector("round_robin", Lane("a"), Lane("b", standby=True), Lane("c", weight=9))
    assert issue(chosen, 7) == "abcabca"


def test_round_robin_passes_over_a_full_lane() -> None:
    b = Lane("b", limit=1)
    chosen = selector("round_robin", Lane("a"), b, Lane("c"))
    assert issue(chosen, 6) == "abcaca"
    b.in_flight = 0
    assert issue(chosen, 3) == "bca"


def test_round_robin_with_subset_uses_one_standby_lane_when_no_active_one_is_left() -> None:
    a, b = Lane("a"), Lane("b")
    c, d = Lane("c", standby=True), Lane("d", standby=True)
    chosen = selector("round_robin_with_subset", a, c, b, d)
    assert issue(chosen, 4) == "abab"
    assert [chosen.is_active(lane) for lane in (a, b, c, d)] == [True, True, False, False]
    chosen.update([c, d])
    assert issue(chosen, 3) == "ccc"
    chosen.update([c, b, d])
    assert issue(chosen, 3) == "bbb"


def test_weighted_path_uses_the_lightest_and_then_the_next() -> None:
    a, b, c = Lane("a", weight=30), Lane("b", weight=10), Lane("c", weight=20)
    chosen = selector("weighted_path", a, b, c)
    assert issue(chosen, 3) == "bbb"
    chosen.update([a, c])
    assert issue(chosen, 3) == "ccc"
    chosen.update([a])
    assert issue(chosen, 1) == "a"


def test_least_queue_depth_evens_out_what_is_in_flight() -> None:
    a, b, c = Lane("a", in_flight=5), Lane("b"), Lane("c", in_flight=2)
    chosen = selector("least_queue_depth", a, b, c)
    assert Counter(issue(chosen, 8)) == {"b": 5, "c": 3}
    assert (a.in_flight, b.in_flight, c.in_flight) == (5, 5, 5)


def test_least_queue_depth_lets_equals_take_turns() -> None:
    lanes = [Lane("a"), Lane("b"), Lane("c")]
    chosen = selector("least_queue_depth", *lanes)
    names = ""
    for _ in range(6):
        names += issue(chosen, 1)
        for lane in lanes:
            lane.in_flight = 0
    assert Counter(names) == {"a": 2, "b": 2, "c": 2}


def test_least_queue_depth_leaves_a_full_lane_alone() -> None:
    assert issue(selector("least_queue_depth", Lane("a", limit=1), Lane("b", in_flight=7)), 3) == "abb"


@pytest.mark.parametrize("policy", list(LoadBalancePolicy))
def test_there_may_be_no_lane_and_none_with_room(policy: LoadBalancePolicy) -> None:
    assert selector(policy).select() is None
    assert selector(policy, Lane("a", in_flight=2, limit=2), Lane("b", limit=0)).select() is None
