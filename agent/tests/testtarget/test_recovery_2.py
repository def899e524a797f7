# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery level 2 of the target: tasks outlive their connection (RFC 3720 5.3, 6.1.4.3, 6.2.2, 6.4, 10.14)."""

from __future__ import annotations

import asyncio

import pytest

from blockfleet_testtarget.faults import build_fault

PATTERN = bytes((7 * index + index // 241) & 0xFF for index in range(16384))
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "4096"}
COMPLETE, NO_TASK, STILL_ALLEGIANT, NO_REASSIGNMENT, REJECTED = 0, 1, 3, 4, 255
REASSIGN = 8
CLEARED = (6, 0x47, 0x7F)
RECOVERY = 2


def arm(endpoint, fault, /, **options):
    return endpoint.arm(build_fault(fault, options))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def begin(start):
    async def begin(keys=None, **changes):
        wishes = {"ErrorRecoveryLevel": 2, "MaxConnections": 4, "DefaultTime2Retain": 3600, **(keys or {})}
        target = await start(keys=wishes, **{"announce_lost": False, **changes})
        target.units["disk"].backing.write(0, PATTERN)
        return target

    return begin


@pytest.fixture
def pair(begin, session, join):
    """A target and two connections of one session with it."""

    async def pair(*, keys=None, segment="1024", **changes):
        target = await begin(**changes)
        limits = {"MaxRecvDataSegmentLength": segment}
        offers = {"ErrorRecoveryLevel": "2", "MaxConnections": "4"}
        offers |= {"DefaultTime2Wait": "0", "DefaultTime2Retain": "3600", **(keys or {})}
        one = await session(target, **offers, **SOLICITED, **limits)
        return target, one, await join(target, one, 1, **limits)

    return pair


async def lose(target, one):
    """Close a connection and wait until the target knows."""
    count = len(target.connections)
    one.writer.transport.abort()
    await until(lambda: len(target.connections) == count - 1)


async def read(one, wire, count=8):
    itt = one.command(wire.read10(0, 16), read=8192)
    return itt, [await one.receive() for _ in range(count)]


# ---- a connection is lost


async def test_target_tells_of_a_lost_connection_on_another_6_1_4_3(pair):
    target, one, two = await pair(announce_lost=True, keys={"DefaultTime2Wait": "3"})
    await lose(target, two)
    event = await one.receive()
    assert (event.opcode, event.word36 >> 24, event.word36 & 0xFFFF) == (0x32, 2, 1)
    assert (event.word40 >> 16, event.word40 & 0xFFFF) == (3, 3600)


async def test_logout_for_recovery_then_reassigned_read_goes_on_where_it_was_acknowledged(pair, wire):
    target, one, two = await pair()
    itt, pdus = await read(two, wire)
    await lose(target, two)
    answer = await one.logout(RECOVERY, cid=1, expstatsn=two.expstatsn)
    assert (answer.byte2, answer.word40) == (0, 3600)
    answer = await one.manage(REASSIGN, tag=itt, expdatasn=4)
    assert answer.byte2 == COMPLETE
    again = [await one.receive() for _ in range(4)]
    assert [(pdu.itt, pdu.word36, pdu.word40) for pdu in again] == [(itt, n, 1024 * n) for n in range(4, 8)]
    assert b"".join(pdu.data for pdu in again) == PATTERN[4096:8192]
    assert again[-1].flags & 1
    assert again[-1].statsn == answer.statsn + 1
    assert abs(again[-1].statsn - pdus[-1].statsn) > 1000
    one.snack(0, 3, 1, itt=itt)
    assert (await one.receive()).byte2 == 0x04
    assert [violation for violation in target.violations if "SNACK" not in violation] == []


async def test_reassigned_read_with_all_data_acknowledged_brings_the_status_alone(pair, wire):
    target, one, two = await pair()
    itt, _ = await read(two, wire)
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    await one.manage(REASSIGN, tag=itt, expdatasn=8)
    status = await one.status()
    assert (status.itt, status.byte3, status.word36) == (itt, 0, 8)
    await one.nothing_more()


async def test_reassigned_read_is_cut_for_its_new_connection_6_2_2(begin, session, join, wire):
    target = await begin()
    offers = {"ErrorRecoveryLevel": "2", "MaxConnections": "4", "MaxBurstLength": "4096"}
    one = await session(target, **offers, DefaultTime2Wait="0", MaxRecvDataSegmentLength="1536")
    two = await join(target, one, 1, MaxRecvDataSegmentLength="1024")
    itt, _ = await read(two, wire)
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    await one.manage(REASSIGN, tag=itt, expdatasn=2)
    pdus = [await one.receive() for _ in range(5)]
    assert [(pdu.word36, pdu.word40, len(pdu.data)) for pdu in pdus] == [
        (2, 2048, 1536),
        (3, 3584, 512),
        (4, 4096, 1536),
        (5, 5632, 1536),
        (6, 7168, 1024),
    ]
    assert b"".join(pdu.data for pdu in pdus) == PATTERN[2048:8192]


@pytest.mark.parametrize(("expdatasn", "violations"), [(0, 0), (1, 1), (9, 1)], ids=["unchanged", "below", "above"])
async def test_reference_number_that_cannot_be_is_ignored_10_5_6(pair, wire, expdatasn, violations):
    target, one, two = await pair(data_ack="bursts")
    itt, pdus = await read(two, wire)
    two.snack(2, 4, tag=pdus[3].ttt)
    await two.nothing_more()
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    await one.manage(REASSIGN, tag=itt, expdatasn=expdatasn)
    assert [(await one.receive()).word36 for _ in range(4)] == [4, 5, 6, 7]
    assert len(target.violations) == violations


async def test_snack_tag_is_0_again_after_a_reassignment_6_2_2(pair, wire):
    target, one, two = await pair()
    itt, _ = await read(two, wire)
    two.snack(3, itt=itt, tag=0x99)
    assert [await two.receive() for _ in range(9)][-1].ttt == 0x99
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    await one.manage(REASSIGN, tag=itt, expdatasn=8)
    assert (await one.status()).ttt == 0


async def test_lost_status_of_a_write_is_sent_on_the_new_connection(pair, wire):
    target, one, two = await pair()
    arm(target, "drop", cid=1, opcode="status", sent=True, reset=True)
    itt = two.command(wire.write10(0, 1), write=512)
    two.data_out(itt, bytes(512), ttt=(await two.receive()).ttt)
    await until(lambda: len(target.connections) == 1)
    await one.logout(RECOVERY, cid=1)
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == COMPLETE
    status = await one.status()
    assert (status.itt, status.byte3) == (itt, 0)
    assert (await one.run(bytes(6)))[0] == 0


@pytest.mark.parametrize(
    ("expdatasn", "r2tsn"), [(0, 1), (1, 1), (2, 2)], ids=["unchanged", "R2T not seen", "seen"]
)
async def test_reassigned_write_asks_anew_for_what_has_not_come(pair, wire, expdatasn, r2tsn):
    target, one, two = await pair()
    data = PATTERN[::-1][:8192]
    itt = two.command(wire.write10(0, 16), write=8192)
    r2t = await two.receive()
    two.data_out(itt, data[:4096], ttt=r2t.ttt)
    old = await two.receive()
    two.data_out(itt, data[4096:5120], ttt=old.ttt, offset=4096, final=False)
    await two.nothing_more()
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    answer = await one.manage(REASSIGN, tag=itt, expdatasn=expdatasn)
    r2t = await one.receive()
    assert r2t.statsn == answer.statsn + 1
    assert (r2t.opcode, r2t.itt, r2t.word36, r2t.word40, r2t.word44) == (0x31, itt, r2tsn, 5120, 3072)
    assert r2t.ttt != old.ttt
    one.data_out(itt, bytes(3072), ttt=old.ttt, offset=5120, datasn=1)
    one.data_out(itt, data[5120:], ttt=r2t.ttt, offset=5120)
    assert (await one.status()).byte3 == 0
    assert target.units["disk"].backing.read(0, 8192) == data


async def test_command_under_way_answers_at_its_new_connection(pair, wire):
    target, one, two = await pair()
    arm(target, "slow_command", command="read", seconds=0.3)
    itt = two.command(wire.read10(0, 1), read=512)
    await two.nothing_more()
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == COMPLETE
    answer = await one.receive()
    assert (answer.itt, answer.data, answer.flags) == (itt, PATTERN[:512], 0x81)


async def test_answer_that_comes_while_no_connection_has_the_task_is_kept(pair, wire):
    target, one, two = await pair()
    arm(target, "slow_command", command="read", seconds=0.05)
    itt = two.command(wire.read10(0, 1), read=512)
    await two.nothing_more()
    await lose(target, two)
    await until(lambda: target.sessions[0].retention.tasks)
    await one.logout(RECOVERY, cid=1)
    await one.manage(REASSIGN, tag=itt)
    assert (await one.receive()).data == PATTERN[:512]


async def test_data_that_was_not_kept_is_read_again(pair, wire):
    target, one, two = await pair(keep_bytes=1000)
    itt, _ = await read(two, wire)
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    await one.manage(REASSIGN, tag=itt)
    assert b"".join([(await one.receive()).data for _ in range(8)]) == PATTERN[:8192]


async def test_immediate_commands_do_not_outlive_their_connection_6_12(pair, wire):
    target, one, two = await pair()
    itt = two.command(wire.write10(0, 1), write=512, immediate=True)
    await two.receive()
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == NO_TASK


# ---- answers to TASK REASSIGN


async def test_task_is_still_allegiant_until_its_connection_is_logged_out_10_6_1(pair, wire):
    target, one, two = await pair()
    itt = two.command(wire.write10(0, 1), write=512)
    await two.receive()
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == STILL_ALLEGIANT
    await lose(target, two)
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == STILL_ALLEGIANT
    await one.logout(RECOVERY, cid=1)
    assert (await one.manage(REASSIGN, tag=0x4242)).byte2 == NO_TASK
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == COMPLETE


async def test_task_management_is_not_reassigned_10_5_1(pair):
    _, one, two = await pair()
    two.command(bytes(6))
    await two.receive()
    tag = two.next_itt()
    two.send(0x02, flags=0x82, itt=tag, cmdsn=one.cmdsn, immediate=True)
    assert [(await each.receive()).opcode for each in (one, two)] == [0x20, 0x20]
    assert (await one.manage(REASSIGN, tag=tag)).byte2 == REJECTED


@pytest.mark.parametrize("code", [1, 3, 4, 5, 6])
async def test_fault_answers_a_reassignment(pair, wire, code):
    target, one, two = await pair()
    arm(target, "answer_reassign", code=code)
    itt, _ = await read(two, wire)
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == code
    await one.nothing_more()
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == COMPLETE


async def test_reassignment_that_is_not_immediate_is_a_violation(pair, wire):
    target, one, two = await pair()
    itt, _ = await read(two, wire)
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    one.send(0x02, flags=0x88, itt=one.next_itt(), word20=itt, cmdsn=one.cmdsn)
    assert (await one.receive()).byte2 == COMPLETE
    assert "not immediate" in target.violations[-1]


async def test_abort_on_another_connection_sends_the_status_first_10_5_1(pair, wire):
    target, one, two = await pair()
    refcmdsn = one.cmdsn
    itt, _ = await read(two, wire)
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    tag = one.next_itt()
    tail = refcmdsn.to_bytes(4, "big")
    one.send(0x02, flags=0x81, itt=tag, word20=itt, cmdsn=one.cmdsn, tail=tail, immediate=True)
    status, answer = await one.receive(), await one.receive()
    assert (status.opcode, status.itt, answer.opcode, answer.itt, answer.byte2) == (0x21, itt, 0x22, tag, 0)


async def test_reset_ends_tasks_that_wait_for_a_connection(pair, wire):
    target, one, two = await pair()
    itts = [(await read(two, wire))[0], two.command(wire.write10(0, 1), write=512)]
    await two.receive()
    await lose(target, two)
    assert (await one.manage(5)).byte2 == COMPLETE
    await one.logout(RECOVERY, cid=1)
    assert [(await one.manage(REASSIGN, tag=itt)).byte2 for itt in itts] == [NO_TASK, NO_TASK]


# ---- commands that were not delivered


async def test_undelivered_command_is_discarded_and_sent_again_with_its_cmdsn(pair, wire):
    target, one, two = await pair()
    gap = one.cmdsn
    one.cmdsn += 1
    lost = two.command(wire.read10(0, 1), read=512)
    await two.nothing_more()
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    assert (await one.manage(REASSIGN, tag=lost)).byte2 == NO_TASK
    one.command(wire.read10(0, 1), read=512, cmdsn=gap + 1, itt=lost)
    first = one.command(bytes(6), cmdsn=gap)
    assert [(await one.receive()).itt for _ in range(2)] == [first, lost]
    assert not target.violations


async def test_command_that_was_delivered_is_not_run_twice(pair, wire):
    target, one, two = await pair()
    cmdsn = one.cmdsn
    itt, _ = await read(two, wire)
    await lose(target, two)
    await one.logout(RECOVERY, cid=1)
    one.command(wire.read10(0, 16), read=8192, cmdsn=cmdsn, itt=itt)
    await one.nothing_more()
    assert not target.violations


# ---- logout, and connections in place of others


async def test_living_connection_is_removed_for_recovery_by_itself(pair, wire):
    _, one, two = await pair()
    itt = two.command(wire.write10(0, 1), write=512)
    await two.receive()
    assert (await two.logout(RECOVERY, cid=1)).byte2 == 0
    assert await two.ended() == b""
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == COMPLETE
    assert (await one.receive()).opcode == 0x31


async def test_connection_is_logged_out_once(pair):
    target, one, two = await pair()
    await lose(target, two)
    assert (await one.logout(RECOVERY, cid=7)).byte2 == 1
    assert (await one.logout(RECOVERY, cid=1)).byte2 == 0
    assert (await one.logout(RECOVERY, cid=1)).byte2 == 1


async def test_logout_that_closes_a_failed_connection_ends_its_tasks(pair, wire):
    target, one, two = await pair()
    itt = two.command(wire.write10(0, 1), write=512)
    await two.receive()
    await lose(target, two)
    assert (await one.logout(1, cid=1)).byte2 == 0
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == NO_TASK
    assert (await one.run(bytes(6)))[2].sense == CLEARED


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "failed"])
async def test_reinstatement_logs_the_old_connection_out_for_recovery_5_3_4(pair, wire, join, alive):
    target, one, two = await pair()
    itt, _ = await read(two, wire)
    if not alive:
        await lose(target, two)
    anew = await join(target, one, 1, MaxRecvDataSegmentLength="4096")
    assert (await anew.manage(REASSIGN, tag=itt, expdatasn=6)).byte2 == COMPLETE
    pdus = [await anew.receive()]
    assert [(pdu.word36, pdu.word40, pdu.data) for pdu in pdus] == [(6, 6144, PATTERN[6144:8192])]
    assert sorted(target.sessions[0].connections) == [0, 1]


async def test_reinstatement_acknowledges_status_of_the_old_connection_10_12_9(pair, wire, connect):
    target, one, two = await pair()
    itt, pdus = await read(two, wire)
    await lose(target, two)
    anew = await connect(target, isid=one.isid, numbers=one.numbers)
    anew.cid, anew.tsih, anew.expstatsn = 1, one.tsih, pdus[-1].statsn + 1
    await anew.login()
    assert (await anew.manage(REASSIGN, tag=itt)).byte2 == NO_TASK


# ---- the session without a connection


async def test_session_with_one_connection_goes_on_by_reinstatement(begin, session, join, wire):
    target = await begin(keys={"MaxConnections": 1})
    one = await session(target, ErrorRecoveryLevel="2", DefaultTime2Wait="0")
    itt = one.command(wire.read10(0, 4), read=2048)
    await one.receive()
    anew = await join(target, one, 0)
    assert await one.ended() == b""
    assert anew.tsih == one.tsih
    assert (await anew.manage(REASSIGN, tag=itt)).byte2 == COMPLETE
    assert (await anew.receive()).data == PATTERN[:2048]
    assert (await anew.run(bytes(6)))[0] == 0


@pytest.mark.parametrize("cid", [0, 1, 5], ids=["first", "second", "new"])
async def test_session_goes_on_after_all_connections_were_lost_5_3_6(pair, wire, join, cid):
    target, one, two = await pair()
    itt, _ = await read(two, wire)
    await lose(target, one)
    await lose(target, two)
    assert [each.tsih for each in target.sessions] == [one.tsih]
    anew = await join(target, one, cid, MaxRecvDataSegmentLength="8192")
    if cid != 1:
        assert (await anew.manage(REASSIGN, tag=itt)).byte2 == STILL_ALLEGIANT
        assert (await anew.logout(RECOVERY, cid=1)).byte2 == 0
    assert (await anew.manage(REASSIGN, tag=itt)).byte2 == COMPLETE
    assert len((await anew.receive()).data) == 4096
    assert not target.violations


async def test_session_reinstatement_ends_all_5_3_5(pair, wire, session):
    target, one, two = await pair()
    itt, _ = await read(two, wire)
    await lose(target, two)
    anew = await session(target, isid=one.isid, ErrorRecoveryLevel="2")
    assert await one.ended() == b""
    assert [each.tsih for each in target.sessions] == [anew.tsih]
    assert (await anew.manage(REASSIGN, tag=itt)).byte2 == NO_TASK


# ---- times


async def test_nothing_is_retained_where_time2retain_is_0_10_15_4(pair, wire):
    target, one, two = await pair(keys={"DefaultTime2Retain": "0"})
    itt, _ = await read(two, wire)
    await lose(target, two)
    assert (await one.logout(RECOVERY, cid=1)).byte2 == 1
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == NO_TASK
    await lose(target, one)
    assert not target.sessions


async def test_tasks_and_session_end_after_time2retain(pair, wire, connect):
    target, one, two = await pair(keys={"DefaultTime2Retain": "1"})
    itt = two.command(wire.write10(0, 1), write=512)
    await two.receive()
    await lose(target, two)
    await until(lambda: not target.sessions[0].tasks)
    status, _, answer = await one.run(bytes(6))
    assert (status, answer.sense) == (2, CLEARED)
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == NO_TASK
    await lose(target, one)
    await until(lambda: not target.sessions)
    anew = await connect(target, isid=one.isid)
    anew.tsih = one.tsih
    answer = await anew.login_step({"InitiatorName": anew.name, "TargetName": "iqn.2026-11.com.example:disk"})
    assert answer.status == 0x020A


async def test_recovery_before_time2wait_is_noticed_6_4(pair, wire):
    target, one, two = await pair(keys={"DefaultTime2Wait": "30"})
    itt, _ = await read(two, wire)
    await lose(target, two)
    answer = await one.logout(RECOVERY, cid=1)
    assert answer.word40 == 30 << 16 | 3600
    await one.manage(REASSIGN, tag=itt)
    early = [violation for violation in target.violations if "before Time2Wait" in violation]
    assert len(early) == len(target.violations) == 2


async def test_fault_answers_a_logout_and_keeps_to_its_times(pair, wire):
    target, one, two = await pair(keys={"DefaultTime2Wait": "30"})
    itt, _ = await read(two, wire)
    arm(target, "answer_logout", code=3)
    answer = await two.logout(RECOVERY, cid=1)
    assert (answer.byte2, answer.word40) == (3, 30 << 16 | 3600)
    arm(target, "answer_logout", code=0, wait=0, retain=1)
    answer = await one.logout(RECOVERY, cid=1)
    assert (answer.byte2, answer.word40) == (0, 1)
    await until(lambda: not target.sessions[0].cleanup.departures)
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == NO_TASK
    assert not target.violations


async def test_fault_drops_a_connection_and_tells_of_it_10_9_1(pair, wire):
    target, one, two = await pair(announce_lost=True, keys={"DefaultTime2Wait": "30"})
    itt, _ = await read(two, wire)
    arm(target, "drop_connection", cid=1, wait=0, retain=6)
    event = await one.receive()
    assert (event.opcode, event.word36, event.word40) == (0x32, 2 << 24 | 1, 6)
    assert await two.ended() == b"reset"
    await until(lambda: len(target.connections) == 1)
    await one.nothing_more()
    await one.logout(RECOVERY, cid=1)
    assert not target.violations
    assert (await one.manage(REASSIGN, tag=itt)).byte2 == COMPLETE


async def test_target_stops_while_connections_wait(begin, session):
    target = await begin()
    one = await session(target, ErrorRecoveryLevel="2")
    await lose(target, one)
    await target.stop()
    assert not target.sessions


# ---- as others see it


@pytest.mark.peer
@pytest.mark.root
async def test_dissector_finds_nothing_malformed_in_recovery(begin, session, join, wire, tshark_capture):
    target = await begin(data_ack="bursts", announce_lost=True)
    keys = {"ErrorRecoveryLevel": "2", "MaxConnections": "2", "DefaultTime2Wait": "0", "DefaultTime2Retain": "60"}
    digests = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
    limits = {"MaxRecvDataSegmentLength": "1024"}
    capture = await asyncio.to_thread(tshark_capture, target.portals[0].address)
    one = await session(target, **keys, **digests, **limits, **SOLICITED)
    two = await join(target, one, 1, **digests, **limits)
    itt, pdus = await read(two, wire)
    two.snack(0, 2, 2, itt=itt)
    two.snack(1, pdus[-1].statsn, 1)
    two.snack(2, 4, tag=pdus[3].ttt)
    two.snack(3, itt=itt, tag=9)
    assert [await two.receive() for _ in range(8)][-1].ttt == 9
    write = two.command(wire.write10(0, 8), write=4096)
    r2t = await two.receive()
    two.data_out(write, bytes(1024), ttt=r2t.ttt, bad_digest=True)
    assert [(await two.receive()).opcode for _ in range(2)] == [0x3F, 0x31]
    await lose(target, two)
    assert (await one.receive()).opcode == 0x32
    await one.logout(RECOVERY, cid=1)
    await one.manage(REASSIGN, tag=itt, expdatasn=6)
    assert [(await one.receive()).word36 for _ in range(2)] == [6, 7]
    await one.manage(REASSIGN, tag=write)
    r2t = await one.receive()
    one.data_out(write, bytes(4096), ttt=r2t.ttt)
    assert (await one.status()).itt == write
    await one.logout(0)
    await one.ended()
    await asyncio.to_thread(capture.stop)
    dissected = await asyncio.to_thread(capture.decode, "-Y", "tcp", "-V")
    assert "Malformed" not in dissected
    for name in ("SNACK Request", "Reject", "Asynchronous Message", "Ready To Transfer", "Task Management"):
        assert f"Opcode: {name}" in dissected, name
