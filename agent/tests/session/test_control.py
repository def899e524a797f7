# SPDX-License-Identifier: GPL-3.0-or-later
"""NOP, task management, async messages, text, logout, Reject, and what time does: rows CTL, TMF, ERR1."""

from __future__ import annotations

import pytest
from tests.session.scripted_target import LUN, RESERVED, Make, ScriptedTarget, header

from blockfleet.iscsi.constants import TaskFunction, TaskResponse
from blockfleet.iscsi.events import AsyncNotice, ConnectionLost, LoggedOut, LogoutAsked, LossKind
from blockfleet.iscsi.session import Patience
from blockfleet.scsi.command import Outcome

ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET = 1, 2, 4, 5, 6
TMF_REQUEST, TMF_RESPONSE, NOP_OUT, NOP_IN = 0x02, 0x22, 0x00, 0x20


def async_message(target: ScriptedTarget, event: int, data: bytes = b"", **parameters: int) -> None:
    bhs = header(0x32, itt=RESERVED, lun=LUN, **target.numbers())
    bhs[36] = event
    for number in (1, 2, 3):
        bhs[36 + 2 * number : 38 + 2 * number] = parameters.get(f"p{number}", 0).to_bytes(2, "big")
    target.give(bhs, data)


# -- NOP


def test_ctl_01_a_ping_of_the_target_is_answered_with_its_tag_and_lun(make: Make) -> None:
    target = make(window=0)
    target.give(header(NOP_IN, itt=RESERVED, ttt=0x1234, lun=LUN, **target.numbers(advance=False)))
    (answer,) = target.take()
    assert (answer.opcode, answer.immediate, answer.itt, answer.ttt) == (NOP_OUT, True, RESERVED, 0x1234)
    assert (answer.lun, answer.cmdsn) == (LUN, 0x20)


def test_nop_in_without_a_transfer_tag_wants_no_answer(target: ScriptedTarget) -> None:
    target.give(header(NOP_IN, itt=RESERVED, ttt=RESERVED, **target.numbers(advance=False)))
    assert not target.take()


def test_ctl_04_our_ping_has_a_tag_of_ours_and_no_lun(make: Make) -> None:
    target = make(patience=Patience(noop_interval=5, noop_timeout=3))
    target.at(4.9)
    assert not target.take()
    target.at(5.1)
    (ping,) = target.take()
    assert (ping.opcode, ping.ttt, ping.lun, ping.immediate) == (NOP_OUT, RESERVED, 0, True)
    assert ping.itt != RESERVED


def test_ctl_06_silence_after_a_ping_loses_the_connection_in_interval_plus_timeout(make: Make) -> None:
    target = make(patience=Patience(noop_interval=5, noop_timeout=3))
    command = target.execute(b"\x2a", write=bytes(512), timeout=60)
    target.at(7.9)
    assert command.outcome is Outcome.PENDING
    target.at(8.1)
    (event,) = target.events()
    assert event.kind is LossKind.KEEPALIVE
    assert command.outcome is Outcome.UNKNOWN


def test_ctl_07_a_link_that_moves_data_is_not_killed_by_a_late_pong(make: Make) -> None:
    target = make(patience=Patience(noop_interval=5, noop_timeout=3))
    target.execute(b"\x28", read=100_000, timeout=120)
    (read,) = target.take()
    target.at(5.5)
    for number in range(20):
        target.at(5.5 + 2 * number)
        target.data_in(read, number, 512 * number, bytes(512))
    assert not target.events()


def test_rob_08_a_flood_of_pings_is_not_answered_without_bound(target: ScriptedTarget) -> None:
    for number in range(10_000):
        target.give(header(NOP_IN, itt=RESERVED, ttt=number, **target.numbers(advance=False)))
    assert len(target.take()) < 100


# -- task management


def test_tmf_01_abort_task_names_tag_cmdsn_and_lun_of_the_task(target: ScriptedTarget) -> None:
    target.execute(b"\0")
    target.execute(b"\0", timeout=5)
    _, second = target.take()
    target.at(6)
    (abort,) = target.take()
    assert (abort.opcode, abort.bhs[1] & 0x7F, abort.immediate) == (TMF_REQUEST, ABORT_TASK, True)
    assert (abort.rtt, abort.refcmdsn, abort.lun) == (second.itt, second.cmdsn, LUN)
    assert abort.cmdsn == second.cmdsn + 1


@pytest.mark.parametrize("function", [ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET])
def test_tmf_03_other_functions_name_no_task_and_target_resets_no_lun(
    target: ScriptedTarget, function: int
) -> None:
    target.session.manage_task(TaskFunction(function), LUN, target.now, lambda _: None)
    (request,) = target.take()
    assert request.rtt == RESERVED
    assert request.lun == (0 if function == WARM_RESET else LUN)


def test_tmf_06_a_response_before_the_abort_counts_and_one_after_it_reaches_nobody(target: ScriptedTarget) -> None:
    early, late = target.execute(b"\0", timeout=5), target.execute(b"\0", timeout=5)
    first, second = target.take()
    target.at(6)
    aborts = target.take()
    target.respond(first)
    assert early.outcome is Outcome.COMPLETE
    for abort in aborts:
        target.give(header(TMF_RESPONSE, byte2=0, itt=abort.itt, **target.numbers()))
    assert late.outcome is Outcome.ABORTED
    target.respond(second)
    assert len(target.done) == 2


@pytest.mark.parametrize("response", [0, 1])
def test_tmf_08_complete_and_no_such_task_both_end_the_aborted_task(target: ScriptedTarget, response: int) -> None:
    command = target.execute(b"\x2a", write=bytes(512), timeout=5)
    target.take()
    target.at(6)
    (abort,) = target.take()
    target.give(header(TMF_RESPONSE, byte2=response, itt=abort.itt, **target.numbers()))
    assert command.outcome is Outcome.ABORTED


def test_tmf_08_a_reserved_response_is_a_protocol_error(target: ScriptedTarget) -> None:
    target.session.manage_task(TaskFunction.LOGICAL_UNIT_RESET, LUN, target.now, lambda _: None)
    (request,) = target.take()
    target.give(header(TMF_RESPONSE, byte2=99, itt=request.itt, **target.numbers()))
    assert target.events()[0].kind is LossKind.PROTOCOL


def test_tmf_09_abort_task_lun_reset_target_reset_then_the_session_each_in_its_time(make: Make) -> None:
    target = make(patience=Patience(noop_interval=0, abort=10, target_reset=True))
    command = target.execute(b"\0", timeout=5)
    target.take()
    target.at(5.6)
    assert [pdu.bhs[1] & 0x7F for pdu in target.take()] == [ABORT_TASK]
    target.at(16.6)
    assert [pdu.bhs[1] & 0x7F for pdu in target.take()] == [LUN_RESET]
    target.at(27.6)
    assert [pdu.bhs[1] & 0x7F for pdu in target.take()] == [WARM_RESET]
    assert command.outcome is Outcome.PENDING
    target.at(39)
    assert target.events()[0].kind is LossKind.STUCK_TASK
    assert command.outcome is Outcome.UNKNOWN


def test_tmf_09_no_other_host_is_reset_for_our_stuck_command_unless_told(make: Make) -> None:
    target = make(patience=Patience(noop_interval=0, abort=10))
    target.execute(b"\0", timeout=5)
    target.at(30)
    assert WARM_RESET not in [pdu.bhs[1] & 0x7F for pdu in target.take() if pdu.opcode == TMF_REQUEST]
    assert target.events()[0].kind is LossKind.STUCK_TASK


def test_tmf_08_an_unsupported_abort_goes_on_to_lun_reset_at_once(make: Make) -> None:
    target = make(patience=Patience(noop_interval=0, abort=30))
    target.execute(b"\0", timeout=5)
    target.take()
    target.at(5.6)
    (abort,) = target.take()
    target.give(header(TMF_RESPONSE, byte2=5, itt=abort.itt, **target.numbers()))
    target.at(6.6)
    assert [pdu.bhs[1] & 0x7F for pdu in target.take()] == [LUN_RESET]


def test_lun_reset_ends_the_older_tasks_of_that_lun_only(target: ScriptedTarget) -> None:
    answers: list[TaskResponse | None] = []
    mine = target.execute(b"\0")
    other = target.execute(b"\0", lun=6 << 48)
    target.session.manage_task(TaskFunction.LOGICAL_UNIT_RESET, LUN, target.now, answers.append)
    younger = target.execute(b"\0")
    request = target.take()[2]
    target.give(header(TMF_RESPONSE, byte2=0, itt=request.itt, **target.numbers()))
    assert answers == [TaskResponse.FUNCTION_COMPLETE]
    assert (mine.outcome, other.outcome, younger.outcome) == (Outcome.ABORTED, Outcome.PENDING, Outcome.PENDING)


# -- async messages


def test_ctl_09_a_logout_request_of_the_target_is_told(target: ScriptedTarget) -> None:
    async_message(target, 1, p3=7)
    assert target.events() == [LogoutAsked(1, 7)]


@pytest.mark.parametrize(("event", "cid"), [(2, 1), (3, 0)], ids=["CTL-11", "CTL-12"])
def test_a_dropped_connection_comes_with_its_own_times(target: ScriptedTarget, event: int, cid: int) -> None:
    async_message(target, event, p1=cid, p2=4, p3=9)
    (lost,) = target.events()
    assert isinstance(lost, ConnectionLost)
    assert (lost.kind, lost.wait, lost.retain) == (LossKind.DROPPED, 4, 9)


def test_ctl_11_the_drop_of_a_connection_that_we_do_not_have_is_ignored(target: ScriptedTarget) -> None:
    async_message(target, 2, p1=9)
    assert not target.events()


def test_ctl_13_a_request_to_negotiate_is_answered_with_a_text_request(target: ScriptedTarget) -> None:
    async_message(target, 4, p3=3)
    (text,) = target.take()
    assert (text.opcode, text.final, text.ttt) == (0x04, True, RESERVED)


def test_ctl_15_sense_in_a_scsi_event_stays_in_its_segment(target: ScriptedTarget) -> None:
    async_message(target, 0, b"\x00\x03abc")
    async_message(target, 0, b"\xff\xffab")
    first, second = target.events()
    assert isinstance(first, AsyncNotice)
    assert (first.lun, first.sense) == (LUN, b"abc")
    assert len(second.sense) <= 2


def test_err0_10_a_reserved_async_event_is_a_protocol_error(target: ScriptedTarget) -> None:
    async_message(target, 9)
    assert target.events()[0].kind is LossKind.PROTOCOL


# -- text


def test_dsc_04_a_long_answer_is_asked_for_until_it_is_final(target: ScriptedTarget) -> None:
    pieces: list[bytes] = []
    ends: list[str] = []
    target.session.send_text(b"SendTargets=All\0", target.now, pieces.append, ends.append)
    (request,) = target.take()
    assert (request.final, request.ttt, request.data) == (True, RESERVED, b"SendTargets=All\0")
    for number in range(3):
        target.give(
            header(0x24, 0x40, itt=request.itt, ttt=0x90 + number, lun=LUN, **target.numbers()), b"part%d" % number
        )
        (more,) = target.take()
        assert (more.itt, more.ttt, more.lun, more.data) == (request.itt, 0x90 + number, LUN, b"")
    target.give(header(0x24, 0x80, itt=request.itt, ttt=0x55, **target.numbers()), b"end")
    assert b"".join(pieces) == b"part0part1part2end"
    assert ends == [""]
    assert not target.take(), "DSC-05: a transfer tag in a final response means nothing"


def test_dsc_06_an_unfinished_answer_without_a_transfer_tag_is_an_error(target: ScriptedTarget) -> None:
    ends: list[str] = []
    target.session.send_text(b"", target.now, lambda _: None, ends.append)
    (request,) = target.take()
    target.give(header(0x24, 0x00, itt=request.itt, ttt=RESERVED, **target.numbers()))
    assert target.events()[0].kind is LossKind.PROTOCOL
    assert ends
    assert ends[0]


def test_dsc_14_one_text_exchange_at_a_time(target: ScriptedTarget) -> None:
    ends: list[str] = []
    target.session.send_text(b"", target.now, lambda _: None, ends.append)
    target.session.send_text(b"", target.now, lambda _: None, ends.append)
    assert ends == ["another text exchange runs"]


# -- logout


def test_ctl_19_and_21_logout_closes_the_session_and_then_the_connection(target: ScriptedTarget) -> None:
    target.session.logout(target.now)
    (request,) = target.take()
    assert (request.opcode, request.bhs[1], request.data) == (0x06, 0x80, b"")
    refused = target.execute(b"\0")
    assert refused.outcome is Outcome.REFUSED
    target.give(header(0x26, 0x80, 0, itt=request.itt, **target.numbers()))
    assert target.events() == [LoggedOut(1)]


def test_ctl_21_a_logout_that_is_not_answered_ends_in_bounded_time(make: Make) -> None:
    target = make(patience=Patience(noop_interval=0, logout=5))
    target.session.logout(target.now)
    target.at(5.6)
    assert target.events()[0].kind is LossKind.LOGOUT


def test_ctl_24_a_status_between_logout_request_and_response_still_counts(target: ScriptedTarget) -> None:
    command = target.execute(b"\0")
    (sent,) = target.take()
    target.session.logout(target.now)
    (request,) = target.take()
    target.respond(sent)
    assert command.outcome is Outcome.COMPLETE
    target.give(header(0x26, 0x80, 0, itt=request.itt, **target.numbers()))
    assert target.events() == [LoggedOut(1)]


# -- reject


def reject(target: ScriptedTarget, reason: int, data: bytes) -> None:
    target.give(header(0x3F, 0x80, reason, itt=RESERVED, **target.numbers()), data)


def test_err1_19_a_rejected_command_ends_and_its_place_in_the_order_is_filled(target: ScriptedTarget) -> None:
    command = target.execute(b"\0")
    (sent,) = target.take()
    reject(target, 0x09, sent.bhs)
    (plug,) = target.take()
    assert command.outcome is Outcome.ABORTED
    assert "invalid pdu field" in command.error
    assert (plug.opcode, plug.immediate, plug.cmdsn) == (NOP_OUT, False, sent.cmdsn)
    following = target.execute(b"\0")
    assert target.take()[0].cmdsn == sent.cmdsn + 1
    assert following.outcome is Outcome.PENDING


@pytest.mark.parametrize("data", [b"", bytes(47), b"\x3e" + bytes(47), b"\x01" + b"\x99" * 47])
def test_err1_21_a_reject_with_a_header_that_is_not_ours_is_only_noted(target: ScriptedTarget, data: bytes) -> None:
    command = target.execute(b"\0")
    target.take()
    reject(target, 0x04, data)
    assert command.outcome is Outcome.PENDING
    assert not target.events()
    assert target.session.counters.rejects == 1


def test_ctl_17_a_rejected_text_request_ends_only_the_exchange(target: ScriptedTarget) -> None:
    ends: list[str] = []
    target.session.send_text(b"", target.now, lambda _: None, ends.append)
    (request,) = target.take()
    reject(target, 0x0B, request.bhs)
    assert len(ends) == 1
    assert not target.events()
