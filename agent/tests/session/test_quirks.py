# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery from a target that answers SNACKs as LIO does, PDU by PDU, with what LIO of Linux 6.1 sent."""

from __future__ import annotations

import pytest
from tests.session.scripted_target import RESERVED, Sent, header
from tests.session.test_recovery import (
    COMMAND,
    DATA,
    NOP_OUT,
    SIZE,
    SNACK,
    STATUS,
    WRITE,
    F,
    S,
    Target,
    good,
    pattern,
    run_of,
)

from blockfleet.iscsi.constants import TaskFunction, TaskResponse
from blockfleet.iscsi.events import QuirkMet
from blockfleet.scsi.command import Outcome

TASK_REQUEST = 0x02
ALIAS = "LIO Target"


def lio(alias: str = ALIAS) -> Target:
    return Target(keys={"InitialR2T": "Yes", "ImmediateData": "Yes", "TargetAlias": alias})


def asked(target: Target) -> list[tuple[int, int, int, int, int]]:
    return [run_of(pdu) for pdu in target.take() if pdu.opcode == SNACK]


def substitute(target: Target, number: int, tag: int) -> None:
    """Answer a Status SNACK: a SCSI Response with the StatSN and the tag of what was lost."""
    following, target.stat_sn = target.stat_sn, number
    target.give(header(0x21, F, itt=tag, **target.numbers()))
    target.stat_sn = following


def met(target: Target) -> bool:
    return bool([event for event in target.events() if isinstance(event, QuirkMet)])


@pytest.mark.parametrize(("alias", "length"), [(ALIAS, 0), ("", 1)], ids=["LIO", "others"])
def test_the_last_data_in_is_asked_for_without_an_end(alias: str, length: int) -> None:
    target = lio(alias)
    command, sent, data = target.read(1)
    target.harm = 60
    target.piece(sent, 0, data, byte1=F | S)
    assert asked(target) == [(DATA, sent.itt, RESERVED, 0, length)]
    target.stat_sn -= 1
    target.piece(sent, 0, data, byte1=F | S)
    good(command, data)


def test_data_in_before_the_last_one_is_asked_for_by_number() -> None:
    target = lio()
    command, sent, data = target.read(4)
    for number in (0, 3):
        target.piece(sent, number, data)
    assert asked(target) == [(DATA, sent.itt, RESERVED, 1, 2)]
    for number in (1, 2):
        target.piece(sent, number, data)
    target.respond(sent, datasn=4)
    good(command, data)


@pytest.mark.parametrize("later_first", [False, True], ids=["at once", "behind another gap"])
def test_good_for_a_command_that_was_not_taken_is_no_success(later_first: bool) -> None:
    """What was lost is the Reject of a write with damaged data: the target has never begun it."""
    target = lio()
    before = target.execute(b"\0")
    earlier = target.lose_status() if later_first else 0
    written = target.execute(WRITE, write=pattern(SIZE))
    other, sent = target.take()
    target.accept(other)
    reject = target.lose_status()
    target.acknowledge()
    assert asked(target) == [(STATUS, RESERVED, RESERVED, earlier or reject, 1 + later_first)]
    substitute(target, reject, sent.itt)
    assert written.outcome is Outcome.PENDING
    if later_first:
        following, target.stat_sn = target.stat_sn, earlier
        target.respond(other)
        target.stat_sn = following
    else:
        target.respond(other)
    assert met(target)
    (again,) = [pdu for pdu in target.take() if pdu.opcode == COMMAND]
    assert (again.bhs[:28], again.data) == (sent.bhs[:28], sent.data), "the command again, as it was"
    good(before)
    target.accept(again)
    target.respond(again, 0x08)
    assert (written.outcome, written.status) == (Outcome.COMPLETE, 8)


def test_a_write_that_was_sent_again_in_silence_ends_by_its_own_status() -> None:
    """Its Reject was lost, it was sent again and taken; its status is not that of what stands for the Reject."""
    target = lio()
    written = target.execute(WRITE, write=pattern(SIZE))
    (sent,) = target.take()
    reject = target.lose_status()
    target.at(2.6)
    (again,) = [pdu for pdu in target.take() if pdu.opcode == COMMAND]
    target.accept(again)
    target.respond(again, 2, sense=b"\x70\0\x03")
    assert asked(target) == [(STATUS, RESERVED, RESERVED, reject, 1)]
    substitute(target, reject, sent.itt)
    assert (written.outcome, written.status) == (Outcome.COMPLETE, 2)
    assert [pdu for pdu in target.take() if pdu.opcode == COMMAND] == []


def test_a_lost_status_of_a_command_that_was_taken_is_believed() -> None:
    target = lio()
    written = target.execute(WRITE, write=pattern(SIZE))
    (sent,) = target.take()
    target.accept(sent)
    lost = target.lose_status()
    target.acknowledge()
    assert asked(target) == [(STATUS, RESERVED, RESERVED, lost, 1)]
    substitute(target, lost, sent.itt)
    good(written)
    assert not met(target)


def test_a_lost_answer_to_a_ping_is_made_up_for() -> None:
    target = lio()
    answers: list[bool] = []
    target.session.ping(target.now, target.connection, lambda: answers.append(True))
    (ping,) = target.take()
    assert ping.opcode == NOP_OUT
    lost = target.lose_status()
    target.acknowledge()
    assert asked(target) == [(STATUS, RESERVED, RESERVED, lost, 1)]
    substitute(target, lost, ping.itt)
    assert (answers, target.session.control, met(target)) == ([True], {}, True)


def test_a_task_management_function_whose_answer_was_lost_is_asked_for_again() -> None:
    target = lio()
    answers: list[TaskResponse | None] = []
    target.session.manage_task(TaskFunction.LOGICAL_UNIT_RESET, 5 << 48, target.now, answers.append)

    def functions() -> list[Sent]:
        return [pdu for pdu in target.take() if pdu.opcode == TASK_REQUEST]

    (request,) = functions()
    lost = target.lose_status()
    target.acknowledge()
    substitute(target, lost, request.itt)
    assert answers == [], "GOOD of a command says nothing of a function"
    target.at(1)
    (again,) = functions()
    assert (again.bhs[1], again.lun) == (request.bhs[1], request.lun)
    target.give(header(0x22, F, 0, itt=again.itt, **target.numbers()))
    assert answers == [TaskResponse.FUNCTION_COMPLETE]
