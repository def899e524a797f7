# SPDX-License-Identifier: GPL-3.0-or-later
"""SCSI Response, residuals and sense (RFC 3720 10.4): rows RSP of the conformance list, and hostile ones of ROB."""

from __future__ import annotations

import pytest
from tests.session.scripted_target import RESERVED, ScriptedTarget, header

from blockfleet.iscsi.events import ConnectionLost, LossKind
from blockfleet.scsi.command import Outcome

READ = b"\x28"
F, UNDERFLOW, OVERFLOW = 0x80, 0x02, 0x04
CHECK_CONDITION = 0x02


def lost_kind(target: ScriptedTarget) -> LossKind:
    (event,) = target.events()
    assert isinstance(event, ConnectionLost)
    return event.kind


def test_rsp_02_underflow_and_overflow_set_the_residual(target: ScriptedTarget) -> None:
    short = target.execute(READ, read=1024)
    long = target.execute(READ, read=512)
    first, second = target.take()
    target.data_in(first, 0, 0, bytes(512), byte1=F)
    target.respond(first, byte1=F | UNDERFLOW, residual=512, expdatasn=1)
    target.data_in(second, 0, 0, bytes(512), byte1=F)
    target.respond(second, byte1=F | OVERFLOW, residual=100, expdatasn=1)
    assert (short.outcome, short.data_in_count, short.residual) == (Outcome.COMPLETE, 512, 512)
    assert (long.outcome, long.data_in_count, long.residual) == (Outcome.COMPLETE, 512, -100)


def test_rsp_02_both_residual_flags_are_an_error(target: ScriptedTarget) -> None:
    target.execute(READ, read=512)
    (sent,) = target.take()
    target.respond(sent, byte1=F | UNDERFLOW | OVERFLOW, residual=1)
    assert lost_kind(target) is LossKind.PROTOCOL


def test_rsp_03_a_short_read_without_underflow_is_never_a_success(target: ScriptedTarget) -> None:
    command = target.execute(READ, read=1024)
    (sent,) = target.take()
    target.data_in(sent, 0, 0, bytes(512), byte1=F)
    target.respond(sent, expdatasn=1)
    assert command.outcome is Outcome.ABORTED
    assert "512 of 1024" in command.error


@pytest.mark.parametrize(
    ("segment", "sense"),
    [
        (b"\x00\x04abcd", b"abcd"),
        (b"\x00\x00", b""),
        (b"", b""),
        (b"\xff", b""),
        (b"\xff\xffab", b"ab"),
        (b"\x00\x02abcdef", b"ab"),
    ],
    ids=["exact", "SenseLength 0", "no segment", "one byte", "ROB-03 over-long", "trailing data"],
)
def test_rsp_05_sense_stays_inside_the_data_segment(target: ScriptedTarget, segment: bytes, sense: bytes) -> None:
    command = target.execute(b"\0")
    (sent,) = target.take()
    target.give(header(0x21, F, 0, CHECK_CONDITION, itt=sent.itt, **target.numbers()), segment)
    assert (command.outcome, command.status, command.sense) == (Outcome.COMPLETE, CHECK_CONDITION, sense)


def test_rsp_09_expdatasn_beyond_what_came_is_missing_data(target: ScriptedTarget) -> None:
    command = target.execute(READ, read=1024)
    (sent,) = target.take()
    target.data_in(sent, 0, 0, bytes(512))
    target.respond(sent, byte1=F | UNDERFLOW, residual=512, expdatasn=2)
    assert lost_kind(target) is LossKind.PROTOCOL
    assert command.outcome is Outcome.UNKNOWN


def test_rsp_10_a_second_response_reaches_no_task(target: ScriptedTarget) -> None:
    target.execute(b"\0")
    (sent,) = target.take()
    target.respond(sent)
    target.respond(sent)
    assert len(target.done) == 1
    assert lost_kind(target) is LossKind.PROTOCOL


def test_target_failure_is_not_a_status(target: ScriptedTarget) -> None:
    command = target.execute(b"\0")
    (sent,) = target.take()
    target.give(header(0x21, F, 1, 0, itt=sent.itt, **target.numbers()))
    assert command.outcome is Outcome.UNKNOWN
    assert "target failure" in command.error


@pytest.mark.parametrize("opcode", [0x01, 0x3E, 0x2F])
def test_err0_09_an_opcode_that_is_not_a_targets_ends_the_session(target: ScriptedTarget, opcode: int) -> None:
    command = target.execute(b"\0")
    target.take()
    target.give(header(opcode, itt=RESERVED, **target.numbers()))
    assert lost_kind(target) is LossKind.PROTOCOL
    assert command.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("case", ["unknown tag", "for a write", "after the status"])
def test_rob_05_and_06_data_in_for_the_wrong_task_is_refused(target: ScriptedTarget, case: str) -> None:
    if case == "for a write":
        target.execute(b"\x2a", write=bytes(512))
    else:
        target.execute(READ, read=512)
    (sent,) = target.take()
    if case == "unknown tag":
        sent.bhs = sent.bhs[:16] + b"\0\0\x77\x77" + sent.bhs[20:]
    if case == "after the status":
        target.respond(sent, CHECK_CONDITION)
    target.data_in(sent, 0, 0, bytes(512))
    assert lost_kind(target) is LossKind.PROTOCOL


def test_err0_07_a_lost_transport_settles_every_command_by_whether_it_left(target: ScriptedTarget) -> None:
    target.window = 0
    sent = [target.execute(b"\x2a", write=bytes(512)) for _ in range(64)]
    held = target.execute(b"\x2a", write=bytes(512))
    target.take()
    target.connection.closed("connection reset by peer")
    assert {command.outcome for command in sent} == {Outcome.UNKNOWN}
    assert held.outcome is Outcome.NOT_SENT
    refused = target.execute(b"\0")
    assert refused.outcome is Outcome.REFUSED
    (event,) = target.events()
    assert (event.kind, event.wait, event.retain) == (LossKind.TRANSPORT, 2, 20)
