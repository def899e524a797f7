# SPDX-License-Identifier: GPL-3.0-or-later
"""How I/O is spread over paths: roles, the primary path, and the return to a path that was lost."""

from __future__ import annotations

from typing import Any

import pytest

from blockfleet.model.desired import Policy
from blockfleet.multipath.path import Path
from blockfleet.multipath.spread import PathRole, Spread
from blockfleet.scsi.alua import AccessState

FAIL_OVER, SUBSET, WEIGHTED = Policy.FAIL_OVER_ONLY, Policy.ROUND_ROBIN_WITH_SUBSET, Policy.WEIGHTED_PATH
STANDBY, PRIMARY = PathRole(standby=True), PathRole(primary=True)


def spread(lab: Any, policy: Policy, *, failback: bool = True, **roles: PathRole) -> None:
    lab.device.set_spread(Spread(policy, failback, roles))


def phases(lab: Any) -> str:
    """The first letters: a(ctive), s(tandby), f(ailed)."""
    return "".join(path.phase[0] for path in lab.paths.values())


def carried(lab: Any, commands: int = 6) -> str:
    """Read so often and return the paths that it went over, each read ended before the next."""
    names = ""
    for _ in range(commands):
        lab.read()
        (name,) = [n for n, session in lab.sessions.items() if session.sent]
        lab.sessions[name].end()
        names += name
    return names


def down(lab: Any, *names: str) -> None:
    for name in names:
        lab.sessions[name].open = False
        lab.device.path_down(lab.paths[name])


def test_the_primary_path_carries_everything_under_fail_over_only(lab: Any) -> None:
    lab.build("abc")
    spread(lab, FAIL_OVER, c=PRIMARY)
    assert (carried(lab), phases(lab)) == ("cccccc", "ssa")


def test_the_primary_comes_before_the_path_that_the_target_prefers(lab: Any) -> None:
    lab.build("abc")
    lab.device.set_access(lab.paths["b"], AccessState.ACTIVE_OPTIMIZED, preferred=True)
    assert phases(lab) == "sas"
    spread(lab, FAIL_OVER, c=PRIMARY)
    assert phases(lab) == "ssa"


def test_the_primary_is_no_reason_to_use_a_worse_access_state(lab: Any) -> None:
    lab.build("ab")
    spread(lab, FAIL_OVER, b=PRIMARY)
    lab.device.set_access(lab.paths["b"], AccessState.ACTIVE_NON_OPTIMIZED)
    assert phases(lab) == "as"


def test_a_path_in_standby_takes_over_last_under_fail_over_only(lab: Any) -> None:
    lab.build("abc")
    spread(lab, FAIL_OVER, a=STANDBY)
    assert phases(lab) == "sas"
    down(lab, "b")
    assert phases(lab) == "sfa"
    down(lab, "c")
    assert phases(lab) == "aff"


def test_a_subset_takes_turns_and_one_of_the_reserve_takes_over(lab: Any) -> None:
    lab.build("abcd")
    spread(lab, SUBSET, c=STANDBY, d=PathRole(standby=True, primary=False))
    assert (carried(lab), phases(lab)) == ("ababab", "aass")
    down(lab, "a", "b")
    assert (carried(lab), phases(lab)) == ("cccccc", "ffas")
    lab.back("b")
    assert (carried(lab), phases(lab)) == ("bbbbbb", "fass")


def test_the_lightest_path_carries_everything_under_weighted_path(lab: Any) -> None:
    lab.build("abc")
    spread(lab, WEIGHTED, a=PathRole(weight=30), b=PathRole(weight=10), c=PathRole(weight=20))
    assert carried(lab) == "bbbbbb"
    down(lab, "b")
    assert carried(lab) == "cccccc"
    lab.back("b")
    assert carried(lab) == "bbbbbb"


def test_roles_change_under_io_and_apply_to_paths_that_come_later(lab: Any) -> None:
    lab.build("ab")
    lab.read()
    spread(lab, FAIL_OVER, b=PRIMARY, late=PRIMARY)
    assert carried_by_next(lab) == "b"
    late = Path(lab.sessions["a"], 9 << 48, "late")
    lab.device.add_path(late)
    assert (late.primary, late.weight) == (True, 0)


def carried_by_next(lab: Any) -> str:
    before = {name: len(session.sent) for name, session in lab.sessions.items()}
    lab.read()
    (name,) = [n for n, session in lab.sessions.items() if len(session.sent) > before[n]]
    return name


LOST_FIRST = {
    FAIL_OVER: {"a": PRIMARY},
    WEIGHTED: {"a": PathRole(weight=1), "b": PathRole(weight=2), "c": PathRole(weight=3)},
    SUBSET: {"b": STANDBY, "c": STANDBY},
}


@pytest.mark.parametrize("policy", LOST_FIRST)
@pytest.mark.parametrize(("failback", "after"), [(True, "ass"), (False, "sas")], ids=["failback", "no failback"])
def test_io_returns_to_a_path_that_is_back_only_with_failback(
    lab: Any, policy: Policy, failback: bool, after: str
) -> None:
    lab.build("abc")
    spread(lab, policy, failback=failback, **LOST_FIRST[policy])
    assert phases(lab) == "ass"
    down(lab, "a")
    assert phases(lab) == "fas"
    lab.back("a")
    assert phases(lab) == after


def test_without_failback_io_returns_when_the_path_that_took_over_is_lost(lab: Any) -> None:
    lab.build("ab")
    spread(lab, FAIL_OVER, failback=False)
    down(lab, "a")
    lab.back("a")
    assert phases(lab) == "sa"
    down(lab, "b")
    lab.back("b")
    assert phases(lab) == "as"


def test_without_failback_a_path_that_is_only_checked_keeps_its_io(lab: Any) -> None:
    """A unit attention has every path looked at again; that is no loss."""
    lab.build("ab")
    spread(lab, FAIL_OVER, failback=False)
    lab.read()
    lab.sessions["a"].check("06/29/00")
    assert phases(lab)[0] == "s"
    lab.back("a")
    assert phases(lab) == "as"


def test_without_failback_the_first_choice_takes_its_place_when_it_comes_for_the_first_time(lab: Any) -> None:
    lab.build("b")
    spread(lab, FAIL_OVER, failback=False, a=PRIMARY)
    assert phases(lab) == "a"
    lab.sessions["a"] = lab.sessions["b"]
    first = Path(lab.sessions["b"], 1 << 48, "a")
    lab.device.add_path(first)
    assert lab.device.path_up(first)
    assert (first.phase, lab.paths["b"].phase) == ("active", "standby")


def test_without_failback_a_path_of_the_subset_joins_the_others_again(lab: Any) -> None:
    lab.build("abc")
    spread(lab, SUBSET, failback=False, c=STANDBY)
    down(lab, "a")
    assert phases(lab) == "fas"
    lab.back("a")
    assert phases(lab) == "aas"


@pytest.mark.parametrize("policy", [Policy.ROUND_ROBIN, Policy.LEAST_QUEUE_DEPTH, Policy.SERVICE_TIME])
def test_a_policy_that_uses_all_paths_uses_one_that_is_back(lab: Any, policy: Policy) -> None:
    lab.build("ab")
    spread(lab, policy, failback=False)
    down(lab, "a")
    lab.back("a")
    assert phases(lab) == "aa"
    assert set(carried(lab)) == {"a", "b"}


def test_without_failback_the_targets_access_states_are_followed_all_the_same(lab: Any) -> None:
    lab.build("ab")
    spread(lab, FAIL_OVER, failback=False)
    lab.device.set_access(lab.paths["a"], AccessState.STANDBY)
    assert phases(lab) == "sa"
    lab.device.set_access(lab.paths["a"], AccessState.ACTIVE_OPTIMIZED)
    assert phases(lab) == "as"


def test_a_new_spread_begins_with_the_first_choice(lab: Any) -> None:
    lab.build("ab")
    spread(lab, FAIL_OVER, failback=False)
    down(lab, "a")
    lab.back("a")
    spread(lab, FAIL_OVER, failback=False, a=PRIMARY)
    assert phases(lab) == "as"
