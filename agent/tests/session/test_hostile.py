# SPDX-License-Identifier: GPL-3.0-or-later
"""A session whose target breaks the rules: it ends once, with everything that it carried, and then it is silent."""

from __future__ import annotations

import pytest
from tests.session.scripted_target import LUN, RESERVED, Make, ScriptedTarget, header

from blockfleet.iscsi.constants import TaskFunction
from blockfleet.iscsi.events import LoggedOut, LossKind
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.iscsi.session import Patience
from blockfleet.scsi.command import Outcome

NOP_OUT = 0x00
NOP_IN, RESPONSE, DATA_IN, LOGOUT_RESPONSE, R2T = 0x20, 0x21, 0x25, 0x26, 0x31


def beyond(target: ScriptedTarget) -> dict[str, int]:
    """Numbers that acknowledge commands which were never sent: the end of the connection."""
    numbers = target.numbers()
    return {**numbers, "expcmdsn": numbers["expcmdsn"] + 20, "maxcmdsn": numbers["maxcmdsn"] + 20}


def test_num_08_status_in_a_data_in_that_ends_the_connection_completes_nothing(target: ScriptedTarget) -> None:
    command = target.execute(b"\x28", read=512)
    (read,) = target.take()
    target.give(header(DATA_IN, 0x81, itt=read.itt, ttt=RESERVED, **beyond(target)), bytes(512))
    assert [event.kind for event in target.events()] == [LossKind.PROTOCOL]
    assert (target.done, command.outcome) == ([command], Outcome.UNKNOWN)


def test_num_08_a_response_that_ends_the_connection_completes_nothing(target: ScriptedTarget) -> None:
    command = target.execute(b"\0")
    (request,) = target.take()
    target.give(header(RESPONSE, 0x80, itt=request.itt, **beyond(target)))
    (event,) = target.events()
    assert "ExpCmdSN" in event.detail
    assert (target.done, command.outcome) == ([command], Outcome.UNKNOWN)


def test_num_08_an_r2t_that_ends_the_connection_is_not_served(make: Make) -> None:
    target = make(keys={"InitialR2T": "Yes", "ImmediateData": "No"})
    target.execute(b"\x2a", write=bytes(512))
    (write,) = target.take()
    target.give(header(R2T, itt=write.itt, ttt=1, lun=LUN, desired=512, **beyond(target)))
    assert [event.kind for event in target.events()] == [LossKind.PROTOCOL]
    assert not target.take()


def test_num_08_a_ping_that_ends_the_connection_is_not_answered(target: ScriptedTarget) -> None:
    target.give(header(NOP_IN, itt=RESERVED, ttt=1, **beyond(target)))
    assert [event.kind for event in target.events()] == [LossKind.PROTOCOL]
    assert not target.take()


@pytest.mark.parametrize("request_kind", ["function", "text"])
def test_ctl_20_a_logout_response_to_another_request_ends_that_too(
    target: ScriptedTarget, request_kind: str
) -> None:
    answers: list[object] = []
    if request_kind == "function":
        target.session.manage_task(TaskFunction.LOGICAL_UNIT_RESET, LUN, target.now, answers.append)
    else:
        target.session.send_text(b"SendTargets=All\0", target.now, lambda _: None, answers.append)
    (request,) = target.take()
    target.give(header(LOGOUT_RESPONSE, itt=request.itt, **target.numbers()))
    assert [event.kind for event in target.events()] == [LossKind.PROTOCOL]
    assert len(answers) == 1


@pytest.mark.parametrize("end", ["lost", "logged out"])
def test_a_connection_that_is_over_carries_nothing(target: ScriptedTarget, end: str) -> None:
    for _ in range(3):
        target.execute(b"\0")
    target.take()
    assert target.connection.in_flight == 3
    if end == "lost":
        target.connection.closed("reset")
    else:
        target.session.logout(target.now)
        (request,) = target.take()
        target.give(header(LOGOUT_RESPONSE, itt=request.itt, **target.numbers()))
    assert len(target.done) == 3
    assert target.connection.in_flight == 0


def test_dat_17_data_are_not_asked_for_over_and_over(make: Make) -> None:
    """A target that does not read what it asks for must not make us queue without end."""
    target = make(keys={"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "65536"})
    target.execute(b"\x2a", write=bytes(65536))
    (write,) = target.take()
    asked = 0
    while not target.events():
        assert asked < 8
        target.r2t(write, asked, 0, 65536)
        asked += 1
    assert target.done[0].outcome is Outcome.UNKNOWN


def test_ctl_21_waiting_for_the_answer_to_a_logout_is_no_busy_loop(make: Make) -> None:
    """No ping is sent any more, so no deadline may ask for one."""
    target = make(patience=Patience(noop_interval=1.0, noop_timeout=1.0, logout=4.0))
    target.session.logout(target.now)
    for _ in range(20):
        target.now = target.session.next_deadline()
        target.session.advance(target.now)
        if events := target.events():
            break
        assert target.session.next_deadline() > target.now
    assert [event.kind for event in events] == [LossKind.LOGOUT]
    assert 104.0 <= target.now <= 105.0


def test_ctl_19_a_session_whose_last_connection_is_logged_out_is_over(target: ScriptedTarget) -> None:
    """It may become the last one while it waits for its tasks: the target knows no session without connections."""
    command = target.execute(b"\0", timeout=0)
    (request,) = target.take()
    target.session.remove_connection(target.connection.cid, target.now)
    late = target.execute(b"\0", timeout=0)
    target.accept(request)
    target.respond(request)
    target.at(1.0)
    (logout,) = target.take()
    target.give(header(LOGOUT_RESPONSE, itt=logout.itt, **target.numbers()))
    assert [type(event) for event in target.events()] == [LoggedOut]
    assert (command.outcome, late.outcome) == (Outcome.COMPLETE, Outcome.REFUSED)
    assert target.session.over


@pytest.mark.parametrize("end", ["lost", "logged out"])
def test_tmf_what_waits_for_a_ping_is_told_when_the_session_ends(target: ScriptedTarget, end: str) -> None:
    """The answer to a function waits for pings on the other connections, which may all end before."""
    told: list[str] = []
    target.session.ping(target.now, target.connection, lambda: told.append("over"))
    target.take()
    if end == "lost":
        target.connection.closed("reset")
    else:
        target.session.logout(target.now)
        (request,) = target.take()
        target.give(header(LOGOUT_RESPONSE, itt=request.itt, **target.numbers()))
    assert target.session.over
    assert told == ["over"]


def test_rob_08_requests_for_news_that_get_none_do_not_pile_up(make: Make) -> None:
    """The target goes on talking, and answers neither a command nor what asks for news of it."""
    keys = {"ErrorRecoveryLevel": "1"}
    target = make(keys=keys, offer=SessionOffer(error_recovery_level=2), patience=Patience(noop_interval=5.0))
    command = target.execute(b"\0", timeout=0)
    target.accept(*target.take())
    sent = 0
    for second in range(1, 601):
        target.at(float(second))
        target.give(header(NOP_IN, itt=RESERVED, ttt=RESERVED, **target.numbers(advance=False)))
        sent += sum(pdu.opcode == NOP_OUT for pdu in target.take())
        assert len(target.session.control) <= 2
    assert command not in target.done
    assert 10 <= sent <= 600
