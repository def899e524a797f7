# SPDX-License-Identifier: GPL-3.0-or-later
"""Command and status numbering (RFC 3720 3.2.2): rows NUM of the conformance list."""

from __future__ import annotations

from tests.session.scripted_target import RESERVED, Make, ScriptedTarget, header

from blockfleet.iscsi.events import ConnectionLost, LossKind
from blockfleet.scsi.command import Outcome

TEST_UNIT_READY = b"\0"


def test_num_01_cmdsn_starts_at_the_login_value_and_rises_by_one(target: ScriptedTarget) -> None:
    assert [pdu.cmdsn for pdu in target.login_pdus] == [0x20, 0x20]
    for _ in range(10):
        target.execute(TEST_UNIT_READY)
    assert [pdu.cmdsn for pdu in target.take()] == list(range(0x20, 0x2A))


def test_num_02_immediate_requests_do_not_consume_cmdsn(target: ScriptedTarget) -> None:
    target.execute(TEST_UNIT_READY)
    target.session.ping(target.now)
    target.execute(TEST_UNIT_READY)
    first, ping, second = target.take()
    assert (first.cmdsn, ping.cmdsn, second.cmdsn) == (0x20, 0x21, 0x21)
    assert ping.immediate
    assert not second.immediate


def test_num_04_a_window_of_one_holds_the_second_command_back(make: Make) -> None:
    target = make(window=1)
    target.execute(TEST_UNIT_READY)
    target.execute(TEST_UNIT_READY)
    (first,) = target.take()
    target.accept(first)
    target.respond(first)
    (second,) = target.take()
    assert second.cmdsn == first.cmdsn + 1


def test_num_05_cmdsn_wraps_inside_an_open_window(make: Make) -> None:
    target = make(cmd_sn=0xFFFFFFFE, window=8)
    for _ in range(4):
        target.execute(TEST_UNIT_READY)
    sent = target.take()
    assert [pdu.cmdsn for pdu in sent] == [0xFFFFFFFE, 0xFFFFFFFF, 0, 1]
    for pdu in sent:
        target.accept(pdu)
        target.respond(pdu)
    assert [command.outcome for command in target.done] == [Outcome.COMPLETE] * 4


def test_num_06_a_maxcmdsn_below_expcmdsn_less_one_is_ignored(make: Make) -> None:
    target = make(window=2)
    target.execute(TEST_UNIT_READY)
    (first,) = target.take()
    numbers = {**target.numbers(), "expcmdsn": 0x21, "maxcmdsn": 0x1F}
    target.give(header(0x21, itt=first.itt, **numbers))
    target.execute(TEST_UNIT_READY)
    target.execute(TEST_UNIT_READY)
    assert len(target.take()) == 1, "the window still ends at MaxCmdSN 0x21"


def test_num_07_an_older_window_does_not_close_a_newer_one(make: Make) -> None:
    target = make(window=4)
    target.execute(TEST_UNIT_READY)
    (first,) = target.take()
    target.give(header(0x21, itt=first.itt, **{**target.numbers(), "expcmdsn": 0x20, "maxcmdsn": 0x20}))
    for _ in range(3):
        target.execute(TEST_UNIT_READY)
    assert len(target.take()) == 3


def test_num_10_expstatsn_acknowledges_in_every_pdu(target: ScriptedTarget) -> None:
    target.execute(TEST_UNIT_READY)
    (first,) = target.take()
    assert first.expstatsn == 0x1002
    target.respond(first)
    target.execute(TEST_UNIT_READY)
    assert target.take()[0].expstatsn == 0x1003


def test_num_11_a_statsn_gap_ends_the_session_at_erl_0(target: ScriptedTarget) -> None:
    command = target.execute(TEST_UNIT_READY)
    (first,) = target.take()
    target.stat_sn += 0x7FFFFFFF
    target.respond(first)
    (event,) = target.events()
    assert isinstance(event, ConnectionLost)
    assert event.kind is LossKind.PROTOCOL
    assert command.outcome is Outcome.UNKNOWN


def test_num_12_only_numbered_pdus_advance_expstatsn(target: ScriptedTarget) -> None:
    target.execute(b"\x2a", write=bytes(200_000))
    command = target.take()[0]
    target.r2t(command, 0, 65536, 512)
    target.give(header(0x20, itt=RESERVED, ttt=9, **target.numbers(advance=False)))
    target.session.ping(target.now)
    *_, answer, ping = target.take()
    assert answer.expstatsn == ping.expstatsn == 0x1002
    target.give(header(0x20, itt=ping.itt, ttt=RESERVED, **target.numbers()))
    target.execute(TEST_UNIT_READY)
    assert target.take()[0].expstatsn == 0x1003


def test_num_13_statsn_wraps(make: Make) -> None:
    target = make(stat_sn=0xFFFFFFFE)
    target.execute(TEST_UNIT_READY)
    (first,) = target.take()
    assert first.expstatsn == 0
    target.respond(first)
    assert target.done


def test_num_16_tags_are_unique_and_never_the_reserved_one(make: Make) -> None:
    target = make(window=16)
    target.session._next_tag = 0xFFFFFFFD
    for _ in range(8):
        target.execute(TEST_UNIT_READY)
    tags = [pdu.itt for pdu in target.take()]
    assert len(set(tags)) == 8
    assert RESERVED not in tags


def test_num_17_a_window_that_never_opens_lets_pings_pass_and_commands_time_out(make: Make) -> None:
    target = make(window=1)
    target.execute(TEST_UNIT_READY, timeout=0)
    held = target.execute(TEST_UNIT_READY, timeout=3)
    target.take()
    target.session.ping(target.now)
    assert [pdu.opcode for pdu in target.take()] == [0x00]
    target.at(2.9)
    assert held.outcome is Outcome.PENDING
    target.at(3.6)
    assert held.outcome is Outcome.NOT_SENT


def test_a_repeated_statsn_is_dropped(target: ScriptedTarget) -> None:
    target.execute(TEST_UNIT_READY)
    target.execute(TEST_UNIT_READY)
    first, second = target.take()
    target.respond(first)
    target.stat_sn -= 1
    target.respond(second)
    assert len(target.done) == 1
    assert not target.events()
