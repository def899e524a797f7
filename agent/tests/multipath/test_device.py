# SPDX-License-Identifier: GPL-3.0-or-later
"""The multipath device by its contract: choice of path, retries, queue, access states, unit attentions."""

from __future__ import annotations

from typing import Any

import pytest

from blockfleet.model.desired import Policy
from blockfleet.multipath.events import DevicePhase, EventKind
from blockfleet.multipath.path import Path, PathPhase
from blockfleet.multipath.spread import Spread
from blockfleet.scsi import cdb
from blockfleet.scsi.alua import AccessState
from blockfleet.scsi.command import Outcome
from blockfleet.scsi.condition import Attention

COMPARE_AND_WRITE = bytes.fromhex("89000000000000000000000000010000")
PERSISTENT_RESERVE_OUT = bytes.fromhex("5f060000000000001800")


def test_a_command_goes_out_with_the_paths_own_lun_and_comes_back_as_it_ended(lab: Any) -> None:
    lab.build("a")
    command = lab.read()
    assert command.lun == ord("a") << 48
    assert lab.sessions["a"].end() is command
    assert lab.done == [command]
    assert (command.outcome, command.status) == (Outcome.COMPLETE, 0)
    assert lab.paths["a"].counters["completed"] == 1


def test_fail_over_only_uses_the_first_path_and_returns_to_it(lab: Any) -> None:
    """Guide: when the formerly active path is reconnected it becomes active again."""
    lab.build("abc")
    lab.read()
    lab.sessions["a"].lose()
    assert [len(lab.sent(n)) for n in "abc"] == [0, 1, 0]
    assert [lab.paths[n].phase for n in "abc"] == ["failed", "active", "standby"]
    lab.back("a")
    lab.read()
    assert [len(lab.sent(n)) for n in "abc"] == [1, 1, 0]


def test_round_robin_takes_turns_over_the_paths_that_are_up(lab: Any) -> None:
    lab.build("abc", Policy.ROUND_ROBIN)
    for _ in range(6):
        lab.read()
    assert [len(lab.sent(n)) for n in "abc"] == [2, 2, 2]
    lab.device.path_down(lab.paths["b"])
    for _ in range(4):
        lab.read()
    assert [len(lab.sent(n)) for n in "abc"] == [4, 2, 4]


def test_the_policy_can_change_under_io(lab: Any) -> None:
    lab.build("ab")
    lab.device.set_spread(Spread(Policy.ROUND_ROBIN))
    assert lab.device.spread.policy is Policy.ROUND_ROBIN
    for _ in range(4):
        lab.read()
    assert [len(lab.sent(n)) for n in "ab"] == [2, 2]


def test_a_path_has_a_limit_and_what_is_above_waits_in_order(lab: Any) -> None:
    lab.build("a", limit=2)
    commands = [lab.read(n) for n in range(5)]
    assert len(lab.sent("a")) == 2
    assert lab.device.counters["held"] == 3
    while lab.sent("a"):
        lab.sessions["a"].end()
    assert lab.done == commands


def test_reads_of_unknown_outcome_go_to_another_path_at_once(lab: Any) -> None:
    lab.build("ab")
    command = lab.read()
    lab.sessions["a"].lose()
    assert lab.sent("b") == [command]
    assert not lab.seen(EventKind.FENCE)
    assert lab.device.phase is DevicePhase.DEGRADED


def test_writes_that_were_not_sent_go_to_another_path_at_once(lab: Any) -> None:
    lab.build("ab")
    command = lab.write()
    lab.sessions["a"].lose(Outcome.NOT_SENT)
    assert lab.sent("b") == [command]
    assert not lab.seen(EventKind.FENCE)


def test_a_session_that_refuses_takes_its_path_down_and_is_looked_at(lab: Any) -> None:
    lab.build("ab")
    lab.sessions["a"].open = False
    command = lab.write()
    assert lab.sent("b") == [command]
    assert lab.paths["a"].phase is PathPhase.FAILED
    assert [(e.path.session, e.attention) for e in lab.seen(EventKind.RECHECK)] == [("a", Attention.IDENTITY)]


def test_writes_of_unknown_outcome_wait_for_the_fence(lab: Any) -> None:
    lab.build("ab")
    command = lab.write()
    lab.sessions["a"].lose()
    assert lab.sent("b") == []
    assert [e.path.session for e in lab.seen(EventKind.FENCE)] == ["a"]
    assert lab.paths["a"].phase is PathPhase.FENCING
    lab.device.fence_done(lab.paths["a"], True)
    assert lab.sent("b") == [command]
    lab.sessions["b"].end()
    assert lab.done == [command]
    assert lab.device.counters["locked_ranges"] == 0


def test_one_fence_is_asked_for_all_writes_of_a_path(lab: Any) -> None:
    lab.build("ab")
    for lba in range(5):
        lab.write(lba)
    lab.sessions["a"].lose()
    assert len(lab.seen(EventKind.FENCE)) == 1
    lab.device.fence_done(lab.paths["a"], True)
    assert len(lab.sent("b")) == 5


def test_nothing_touches_the_blocks_of_a_write_before_it_is_done(lab: Any) -> None:
    lab.build("ab")
    lab.write(10, 4)
    lab.sessions["a"].lose()
    reading, writing, beside = lab.read(13), lab.write(8, 3), lab.write(14)
    assert lab.sent("b") == [beside]
    lab.device.fence_done(lab.paths["a"], True)
    assert len(lab.sent("b")) == 2
    lab.sessions["b"].end(at=1)
    assert set(lab.sent("b")) == {beside, reading, writing}


def test_a_fence_that_fails_is_asked_for_again_later(lab: Any) -> None:
    lab.build("ab")
    command = lab.write()
    lab.sessions["a"].lose()
    for _ in range(3):
        lab.device.fence_done(lab.paths["a"], False)
    assert len(lab.seen(EventKind.FENCE)) == 1
    lab.pass_time(2.0)
    assert len(lab.seen(EventKind.FENCE)) == 2
    assert lab.sent("b") == []
    lab.device.fence_done(lab.paths["a"], True)
    assert lab.sent("b") == [command]


def test_a_path_that_is_back_carries_nothing_before_its_fence(lab: Any) -> None:
    lab.build("a")
    command = lab.write(5)
    lab.sessions["a"].lose()
    lab.back("a")
    lab.read(100)
    assert lab.sent("a") == []
    lab.device.fence_done(lab.paths["a"], True)
    assert len(lab.sent("a")) == 2
    assert command in lab.sent("a")


def test_a_fence_that_never_comes_fails_the_write_and_keeps_its_blocks_locked(lab: Any) -> None:
    lab.build("ab", queue_timeout=30.0)
    command = lab.write(5)
    lab.sessions["a"].lose()
    waiting = lab.read(5)
    lab.pass_time(29.0)
    assert lab.done == []
    lab.pass_time(2.0)
    assert (command.outcome, waiting.outcome) == (Outcome.UNKNOWN, Outcome.REFUSED)
    assert lab.read(5).outcome == Outcome.REFUSED
    assert lab.read(6) in lab.sent("b")
    lab.device.fence_done(lab.paths["a"], True)
    assert lab.read(5) in lab.sent("b")


def test_a_removed_path_still_has_to_be_fenced(lab: Any) -> None:
    lab.build("ab")
    command = lab.write()
    lab.device.remove_path(lab.paths["a"])
    lab.sessions["a"].lose()
    assert [e.path.session for e in lab.seen(EventKind.FENCE)] == ["a"]
    lab.device.fence_done(lab.paths["a"], True)
    assert lab.sent("b") == [command]
    assert not lab.device.path_up(lab.paths["a"])


@pytest.mark.parametrize("command", [COMPARE_AND_WRITE, PERSISTENT_RESERVE_OUT], ids=["CAW", "PR OUT"])
def test_what_must_not_be_repeated_goes_up_as_unknown(lab: Any, command: bytes) -> None:
    lab.build("ab")
    sent = lab.send(command)
    lab.sessions["a"].lose()
    assert lab.done == [sent]
    assert sent.outcome == Outcome.UNKNOWN
    assert len(lab.seen(EventKind.FENCE)) == 1


def test_blocks_of_a_compare_and_write_stay_locked_until_the_fence(lab: Any) -> None:
    lab.build("ab")
    lab.send(COMPARE_AND_WRITE)
    lab.sessions["a"].lose()
    overtaking = lab.write(0)
    assert lab.sent("b") == []
    lab.device.fence_done(lab.paths["a"], True)
    assert lab.sent("b") == [overtaking]


def test_an_aborted_write_is_sent_again_without_a_fence(lab: Any) -> None:
    lab.build("a")
    command = lab.write()
    lab.sessions["a"].end(Outcome.ABORTED)
    assert lab.sent("a") == [command]
    assert not lab.seen(EventKind.FENCE)


def test_aborts_are_bounded(lab: Any) -> None:
    lab.build("a")
    command = lab.write()
    for _ in range(6):
        assert lab.done == []
        lab.sessions["a"].end(Outcome.ABORTED)
    assert lab.done == [command]
    assert lab.device.counters["locked_ranges"] == 0


def test_a_command_that_kills_every_session_is_given_up(lab: Any) -> None:
    lab.build("a")
    command = lab.read()
    for _ in range(33):
        assert lab.done == []
        lab.sessions["a"].lose()
        lab.back("a")
    assert lab.done == [command]
    assert command.outcome == Outcome.UNKNOWN


# --- conditions -------------------------------------------------------------------------------------------


def test_busy_is_asked_again_along_the_ladder_and_never_fails_the_path(lab: Any) -> None:
    lab.build("ab")
    lab.write()
    waited = []
    for _ in range(7):
        lab.sessions["a"].end(status=0x08)
        waited.append(round(lab.device.deadline() - lab.clock, 3))
        lab.pass_time(waited[-1])
    assert waited == [0.008, 0.032, 0.128, 0.512, 2.048, 8.192, 32.768]
    assert lab.sessions["b"].log == []
    assert lab.paths["a"].phase is PathPhase.ACTIVE


def test_endless_task_set_full_ends_within_the_budget(lab: Any) -> None:
    """As blktests scsi/004: it ends in an error, not in success and not never."""
    lab.build("a", retry_budget=5.0)
    command = lab.read()
    start = lab.clock
    while not lab.done:
        lab.sessions["a"].end(status=0x28)
        lab.pass_time(10.0 if lab.device.deadline() is None else lab.device.deadline() - lab.clock)
    assert lab.done == [command]
    assert (command.outcome, command.status) == (Outcome.COMPLETE, 0x28)
    assert lab.clock - start <= 5.0 + 10.0


def test_task_set_full_halves_the_depth_and_good_answers_give_it_back(lab: Any) -> None:
    lab.build("a", limit=8)
    for lba in range(8):
        lab.read(lba)
    lab.sessions["a"].end(status=0x28)
    assert lab.paths["a"].limit == 4
    for _ in range(200):
        lab.read()
        if lab.sent("a"):
            lab.sessions["a"].end()
        lab.pass_time(0.1)
    assert lab.paths["a"].limit == 8


@pytest.mark.parametrize(
    ("numbers", "attention"),
    [
        ("06/2a/09", Attention.CAPACITY),
        ("06/2a/06", Attention.ALUA),
        ("06/2a/01", Attention.MODE),
        ("06/38/07", Attention.SPACE),
    ],
)
def test_a_unit_attention_is_consumed_and_reported(lab: Any, numbers: str, attention: Attention) -> None:
    lab.build("a")
    command = lab.write()
    lab.sessions["a"].check(numbers)
    assert lab.sent("a") == [command]
    assert [e.attention for e in lab.seen(EventKind.RECHECK)] == [attention]
    lab.sessions["a"].end()
    assert lab.done == [command]


@pytest.mark.parametrize("numbers", ["06/29/00", "06/3f/0e", "06/3f/03", "05/25/00"])
def test_no_io_before_the_identity_is_checked(lab: Any, numbers: str) -> None:
    lab.build("a")
    command = lab.read()
    generation = lab.paths["a"].generation
    lab.sessions["a"].check(numbers)
    assert lab.sent("a") == []
    assert lab.paths["a"].generation > generation
    assert lab.device.phase is DevicePhase.ONLINE
    assert lab.seen(EventKind.RECHECK)[0].attention & Attention.IDENTITY
    lab.back("a")
    assert lab.sent("a") == [command]


def test_a_check_that_something_overtook_counts_for_nothing(lab: Any) -> None:
    lab.build("a")
    lab.read()
    lab.read(1)
    lab.sessions["a"].check("06/3f/0e")
    begun = lab.paths["a"].generation
    lab.sessions["a"].check("06/3f/0e")
    lab.events.clear()
    assert not lab.device.path_up(lab.paths["a"], begun)
    assert lab.sent("a") == []
    assert [e.attention for e in lab.seen(EventKind.RECHECK)] == [Attention.IDENTITY]
    lab.back("a")
    assert len(lab.sent("a")) == 2


def test_another_unit_behind_the_lun_gets_no_io(lab: Any) -> None:
    lab.build("ab")
    command = lab.write()
    lab.sessions["a"].check("06/3f/0e")
    lab.device.path_mismatch(lab.paths["a"])
    assert lab.paths["a"].phase is PathPhase.MISMATCH
    assert lab.sent("b") == [command]
    lab.sessions["b"].lose(Outcome.NOT_SENT)
    assert lab.sent("a") == []
    assert lab.device.phase is DevicePhase.QUEUEING


def test_a_hundred_unit_attentions_in_a_row_are_no_error(lab: Any) -> None:
    lab.build("a")
    command = lab.read()
    for _ in range(100):
        lab.sessions["a"].check("06/2a/09")
    lab.sessions["a"].end()
    assert lab.done == [command]
    assert command.status == 0


def test_unit_attentions_are_bounded(lab: Any) -> None:
    lab.build("a")
    command = lab.read()
    for _ in range(129):
        assert lab.done == []
        lab.sessions["a"].check("06/2a/09")
    assert lab.done == [command]
    assert command.status == 2


@pytest.mark.parametrize(
    "numbers", ["03/11/00", "04/44/00", "05/21/00", "05/24/00", "07/27/07", "07/27/00", "0e/1d/00"]
)
def test_errors_of_the_medium_and_of_the_request_go_up_at_once(lab: Any, numbers: str) -> None:
    lab.build("ab")
    command = lab.read()
    lab.sessions["a"].check(numbers)
    assert lab.done == [command]
    assert lab.sessions["b"].log == []
    assert lab.paths["a"].phase is PathPhase.ACTIVE


def test_a_reservation_conflict_goes_up_at_once_and_is_reported(lab: Any) -> None:
    lab.build("ab")
    command = lab.write()
    lab.sessions["a"].end(status=0x18)
    assert lab.done == [command]
    assert lab.sessions["b"].log == []
    assert [e.attention for e in lab.seen(EventKind.RECHECK)] == [Attention.RESERVATIONS]


def test_a_power_on_is_reported_as_a_lost_cache_but_our_own_reset_is_not(lab: Any) -> None:
    lab.build("ab", Policy.ROUND_ROBIN)
    lab.read()
    lab.sessions["a"].check("06/29/00")
    assert lab.seen(EventKind.RECHECK)[-1].attention & Attention.CACHE
    lab.back("a")
    for name in "ab":
        while lab.sent(name):
            lab.sessions[name].end()
    lab.write(1)
    lab.write(2)
    victim = "a" if lab.sent("a")[0].cdb == cdb.write_10(1, 1) else "b"
    other = "b" if victim == "a" else "a"
    lab.sessions[victim].lose()
    lab.device.fence_done(lab.paths[victim], True)
    lab.sessions[other].check("06/29/00")
    last = [e for e in lab.seen(EventKind.RECHECK) if e.path.session == other][-1]
    assert last.attention & Attention.IDENTITY
    assert not last.attention & Attention.CACHE


# --- access states ----------------------------------------------------------------------------------------


def test_optimized_paths_before_others_and_standby_only_when_nothing_else_is_left(lab: Any) -> None:
    lab.build("abc", Policy.ROUND_ROBIN)
    for name, state in zip(
        "abc", (AccessState.STANDBY, AccessState.ACTIVE_NON_OPTIMIZED, AccessState.ACTIVE_OPTIMIZED), strict=True
    ):
        lab.device.set_access(lab.paths[name], state)
    order = []
    for name in "cba":
        lab.read()
        order += [n for n in "abc" if lab.sent(n)]
        lab.sessions[name].end()
        lab.device.path_down(lab.paths[name])
    assert order == ["c", "b", "a"]


def test_the_preferred_group_comes_first_among_equals(lab: Any) -> None:
    lab.build("ab")
    lab.device.set_access(lab.paths["b"], AccessState.ACTIVE_OPTIMIZED, preferred=True)
    assert [lab.paths[n].phase for n in "ab"] == ["standby", "active"]


def test_a_port_in_standby_moves_io_and_keeps_the_path(lab: Any) -> None:
    lab.build("ab")
    command = lab.write()
    lab.sessions["a"].check("02/04/0b")
    assert lab.sent("b") == [command]
    assert lab.paths["a"].phase is PathPhase.STANDBY
    assert lab.seen(EventKind.RECHECK)[-1].attention is Attention.ALUA
    lab.device.set_access(lab.paths["a"], AccessState.ACTIVE_OPTIMIZED)
    lab.read()
    assert len(lab.sent("a")) == 1


def test_both_ports_inaccessible_for_a_while_fails_nothing(lab: Any) -> None:
    """As SPDK multipath.sh: no I/O on any port, nothing fails, and it goes on when one is back."""
    lab.build("ab")
    command = lab.write()
    lab.sessions["a"].check("02/04/0c")
    lab.sessions["b"].check("02/04/0a")
    assert lab.device.phase is DevicePhase.QUEUEING
    for _ in range(10):
        lab.pass_time(1.0)
        while lab.sent("a"):
            lab.sessions["a"].check("02/04/0c")
        while lab.sent("b"):
            lab.sessions["b"].check("02/04/0a")
    assert lab.done == []
    assert lab.device.phase is DevicePhase.QUEUEING
    lab.device.set_access(lab.paths["b"], AccessState.ACTIVE_OPTIMIZED)
    assert lab.sent("b") == [command]
    lab.sessions["b"].end()
    assert lab.done == [command]


def test_ports_that_never_serve_the_unit_fail_io_in_the_end(lab: Any) -> None:
    lab.build("a", queue_timeout=20.0)
    command = lab.write()
    for _ in range(60):
        while lab.sent("a"):
            lab.sessions["a"].check("02/04/0b")
        lab.pass_time(0.5)
    assert lab.done == [command]


def test_access_is_polled_at_least_once_in_two_seconds(lab: Any) -> None:
    lab.build("ab")
    lab.write()
    lab.sessions["a"].check("02/04/0b")
    lab.events.clear()
    lab.pass_time(2.0)
    assert Attention.ALUA in {e.attention for e in lab.seen(EventKind.RECHECK)}


# --- queue ------------------------------------------------------------------------------------------------


def test_without_a_path_io_waits_and_goes_on(lab: Any) -> None:
    lab.build("a")
    lab.sessions["a"].lose()
    lab.device.path_down(lab.paths["a"])
    commands = [lab.read(n) for n in range(3)]
    lab.pass_time(60.0)
    assert lab.done == []
    assert lab.device.phase is DevicePhase.QUEUEING
    lab.back("a")
    assert lab.sent("a") == commands
    assert lab.device.phase is DevicePhase.ONLINE


def test_after_the_queue_timer_io_fails_until_a_path_is_back(lab: Any) -> None:
    lab.build("a", queue_timeout=15.0)
    unknown = lab.write()
    lab.sessions["a"].lose()
    waiting = lab.read(7)
    lab.pass_time(14.9)
    assert lab.done == []
    lab.pass_time(0.2)
    assert {unknown.outcome, waiting.outcome} == {Outcome.UNKNOWN, Outcome.REFUSED}
    assert lab.device.phase is DevicePhase.FAILED
    late = lab.read(8)
    assert late.outcome == Outcome.REFUSED
    assert "15" in late.error
    lab.back("a")
    lab.device.fence_done(lab.paths["a"], True)
    assert lab.device.phase is DevicePhase.ONLINE
    assert lab.read(9) in lab.sent("a")


def test_a_device_that_never_had_a_path_fails_io_after_the_queue_timer(lab: Any) -> None:
    lab.build("", queue_timeout=15.0)
    command = lab.read()
    lab.pass_time(16.0)
    assert lab.done == [command]


def test_the_queue_is_bounded(lab: Any) -> None:
    lab.build("a", queue_limit=5)
    lab.device.path_down(lab.paths["a"])
    commands = [lab.read(n) for n in range(7)]
    assert [c.outcome for c in commands[5:]] == [Outcome.REFUSED] * 2
    assert lab.device.counters["held"] == 5


def test_close_ends_everything_once(lab: Any) -> None:
    lab.build("ab")
    in_flight = lab.write(1)
    lab.write(2)
    lab.sessions["a"].end(Outcome.UNKNOWN, at=1)
    lab.read(2)
    lab.device.close()
    assert len(lab.done) == 2
    lab.sessions["a"].lose()
    assert lab.done[-1] is in_flight
    assert lab.read().outcome == Outcome.REFUSED
    assert len(lab.done) == len(set(lab.done)) == 4
    assert lab.device.counters["held"] == 0


def test_close_from_within_a_completion_ends_everything_once(lab: Any) -> None:
    lab.build("a", limit=1)
    lab.read()
    for lba in range(4):
        lab.read(lba)
    append = lab.done.append
    closed: list[bool] = []

    def on_done(command: Any) -> None:
        append(command)
        if not closed:
            closed.append(True)
            lab.device.close()

    lab.sent("a")[0].outer_done = on_done
    lab.sessions["a"].end()
    assert len(lab.done) == len(set(lab.done)) == 5


# --- fence by LUN RESET -----------------------------------------------------------------------------------


def test_quiesce_waits_for_what_is_in_flight_and_holds_the_rest(lab: Any) -> None:
    lab.build("a")
    quiet: list[float] = []
    lab.write(1)
    lab.device.quiesce(lambda: quiet.append(lab.clock), timeout=2.0)
    held = lab.write(2)
    assert quiet == []
    lab.sessions["a"].end()
    assert quiet == [lab.clock]
    assert lab.sent("a") == []
    lab.device.resume()
    assert lab.sent("a") == [held]


def test_quiesce_does_not_wait_for_ever(lab: Any) -> None:
    lab.build("a")
    quiet: list[float] = []
    lab.write(1)
    lab.device.quiesce(lambda: quiet.append(lab.clock), timeout=2.0)
    lab.pass_time(3.0)
    assert len(quiet) == 1


# --- bookkeeping ------------------------------------------------------------------------------------------


def test_the_owner_is_told_of_every_earlier_deadline(lab: Any) -> None:
    lab.build("a")
    assert lab.device.deadline() is None
    lab.write()
    lab.sessions["a"].end(status=0x08)
    assert lab.seen(EventKind.DEADLINE)
    assert lab.device.deadline() == pytest.approx(lab.clock + 0.008)


def test_phases_are_told_as_they_change(lab: Any) -> None:
    lab.build("ab")
    for name in "ab":
        lab.device.path_down(lab.paths[name], "session lost")
    lab.back("b")
    lab.back("a")
    assert [e.phase for e in lab.seen(EventKind.PHASE)] == ["degraded", "queueing", "degraded", "online"]
    assert lab.seen(EventKind.PHASE)[0].cause == "session lost"


def test_a_device_has_a_bounded_number_of_paths(lab: Any) -> None:
    lab.build("")
    session = type("Any", (), {"execute": lambda _s, _c: None})()
    for number in range(64):
        lab.device.add_path(Path(session, 0, str(number)))
    with pytest.raises(ValueError, match="64"):
        lab.device.add_path(Path(session, 0, "65"))


def test_after_trouble_the_short_way_is_taken_again(lab: Any) -> None:
    lab.build("ab")
    lab.write(1)
    lab.sessions["a"].lose()
    assert not lab.device._calm
    lab.device.fence_done(lab.paths["a"], True)
    lab.sessions["b"].end()
    lab.back("a")
    assert lab.device._calm
    assert not lab.device._recoveries
