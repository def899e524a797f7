# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections a session, at any recovery level (RFC 3720 3.2.2, 3.2.4.1, 5.3.1, 10.14, 10.15)."""

from __future__ import annotations

import asyncio

import pytest

from blockfleet_testtarget.faults import build_fault

PATTERN = bytes((5 * index + index // 253) & 0xFF for index in range(8192))
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "4096"}
CLEARED = (6, 0x47, 0x7F)
NO_SESSION, TOO_MANY, NOT_INCLUDED = 0x020A, 0x0206, 0x0208


def arm(endpoint, fault, /, **options):
    return endpoint.arm(build_fault(fault, options))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture(params=["0", "1", "2"], ids=lambda level: f"level {level}")
def level(request):
    return request.param


@pytest.fixture
async def pair(start, session, join, level):
    """A target and two connections of one session with it."""
    target = await start(keys={"ErrorRecoveryLevel": 2, "MaxConnections": 4, "DefaultTime2Retain": 3600})
    target.units["disk"].backing.write(0, PATTERN)
    one = await session(target, ErrorRecoveryLevel=level, MaxConnections="8", **SOLICITED)
    return target, one, await join(target, one, 1)


# ---- adding connections


async def test_number_of_connections_is_negotiated_12_2(start, session, join, level):
    target = await start(keys={"ErrorRecoveryLevel": 2, "MaxConnections": 2})
    one = await session(target, ErrorRecoveryLevel=level, MaxConnections="4")
    assert one.login_answer.text["MaxConnections"] == "2"
    other = await join(target, one, 1)
    assert other.login_answer.tsih == one.tsih
    with pytest.raises(AssertionError, match=hex(TOO_MANY)):
        await join(target, one, 2)
    await one.nothing_more()
    await other.nothing_more()


async def test_connection_in_another_portal_group_is_not_of_the_session(start, session, connect):
    target = await start(portals=["127.0.0.1:0", {"group": 2}], keys={"MaxConnections": 2})
    one = await session(target, MaxConnections="2")
    other = await connect(target, 1)
    other.tsih, other.cid = one.tsih, 1
    answer = await other.login_step({"InitiatorName": other.name, "TargetName": "iqn.2026-11.com.example:disk"})
    assert answer.status == NOT_INCLUDED


async def test_unknown_session_handle_is_told(start, connect):
    target = await start(keys={"MaxConnections": 2})
    other = await connect(target)
    other.tsih, other.cid = 0x1234, 1
    answer = await other.login_step({"InitiatorName": other.name, "TargetName": "iqn.2026-11.com.example:disk"})
    assert answer.status == NO_SESSION


@pytest.mark.parametrize("status", [TOO_MANY, NOT_INCLUDED, NO_SESSION], ids=hex)
async def test_fault_refuses_an_added_connection_only(start, session, join, status):
    target = await start(keys={"MaxConnections": 2})
    arm(target, "refuse_login", cid=1, status=status)
    one = await session(target, MaxConnections="2")
    with pytest.raises(AssertionError, match=hex(status)):
        await join(target, one, 1)
    await one.nothing_more()
    await join(target, one, 1)


# ---- numbers and allegiance


async def test_commands_run_in_the_order_of_their_cmdsn_over_all_connections(pair, wire):
    _, one, two = pair
    cmdsn = one.cmdsn
    itts = [two.command(bytes(6), lun=7, cmdsn=cmdsn + 1), one.command(bytes(6), cmdsn=cmdsn + 2)]
    await two.nothing_more()
    await one.nothing_more()
    first = one.command(bytes(6), cmdsn=cmdsn)
    assert [(await one.receive()).itt for _ in range(2)] == [first, itts[1]]
    answer = await two.receive()
    assert (answer.itt, answer.expcmdsn, answer.sense) == (
        itts[0],
        cmdsn + 3,
        (5, 0x25, 0),
    ) or answer.expcmdsn > cmdsn
    one.cmdsn = cmdsn + 3
    assert (await two.ping()).expcmdsn == cmdsn + 3


async def test_each_connection_counts_its_own_statsn(pair):
    _, one, two = pair
    assert abs(one.login_answer.statsn - two.login_answer.statsn) > 1000
    for each in (one, two, two, one):
        expected = each.expstatsn
        assert (await each.run(bytes(6)))[2].statsn == expected


async def test_data_r2t_and_status_keep_to_the_connection_of_the_command_3_2_4_1(pair, wire):
    target, one, two = pair
    one.command(wire.read10(0, 16), read=8192)
    itt = two.command(wire.write10(0, 16), write=8192)
    r2t = await two.receive()
    assert (r2t.opcode, r2t.itt) == (0x31, itt)
    data = b""
    while len(data) < 8192:
        data += (await one.receive()).data
    assert data == PATTERN
    one.data_out(itt, bytes(4096), ttt=r2t.ttt)
    answer = await one.receive()
    assert (answer.opcode, answer.byte2) == (0x3F, 0x09)
    for number in range(2):
        two.data_out(itt, PATTERN[::-1][4096 * number : 4096 * number + 4096], ttt=r2t.ttt, offset=4096 * number)
        r2t = await two.receive()
    assert (r2t.opcode, r2t.itt, r2t.byte3) == (0x21, itt, 0)
    assert target.units["disk"].backing.read(0, 8192) == PATTERN[::-1]


async def test_snack_on_another_connection_than_that_of_the_task_is_rejected(start, session, join, wire):
    target = await start(keys={"ErrorRecoveryLevel": 1, "MaxConnections": 2})
    one = await session(target, ErrorRecoveryLevel="1", MaxConnections="2")
    two = await join(target, one)
    itt = one.command(wire.read10(0, 1), read=512)
    await one.receive()
    two.snack(0, 0, 1, itt=itt)
    answer = await two.receive()
    assert (answer.opcode, answer.byte2) == (0x3F, 0x04)


async def test_task_set_response_waits_for_acknowledgements_on_every_connection_10_6_2(pair):
    _, one, two = pair
    two.command(bytes(6))
    status = await two.receive()
    tag = one.next_itt()
    one.send(0x02, flags=0x82, itt=tag, cmdsn=one.cmdsn, immediate=True)
    ping = await two.receive()
    assert (ping.opcode, ping.itt) == (0x20, 0xFFFFFFFF)
    await one.nothing_more()
    two.expstatsn = status.statsn + 1
    two.send(0x00, word20=ping.ttt, cmdsn=one.cmdsn, immediate=True)
    assert (await one.receive()).itt == tag


# ---- logout


async def test_one_connection_is_closed_by_another_10_14(pair, wire):
    target, one, two = pair
    two.command(wire.write10(0, 8), write=4096)
    await two.receive()
    answer = await one.logout(1, cid=1, expstatsn=two.expstatsn)
    assert answer.byte2 == 0
    assert await two.ended() == b""
    status, _, answer = await one.run(bytes(6))
    assert (status, answer.sense) == (2, CLEARED)
    assert (await one.run(bytes(6)))[0] == 0
    assert (await one.logout(1, cid=1)).byte2 == 1
    (kept,) = target.sessions
    assert (list(kept.connections), kept.tasks) == ([0], {})
    assert not target.violations


async def test_connection_closes_itself_and_the_session_lives_on(pair):
    target, one, two = pair
    assert (await two.logout(1, cid=1)).byte2 == 0
    assert await two.ended() == b""
    assert (await one.run(bytes(6)))[0] == 0
    assert (await one.logout(1, cid=0)).byte2 == 0
    await until(lambda: not target.sessions)


async def test_session_logout_closes_every_connection(pair):
    target, one, two = pair
    assert (await two.logout(0)).byte2 == 0
    assert [await one.ended(), await two.ended()] == [b"", b""]
    assert not target.sessions


async def test_logout_acknowledges_the_status_of_the_connection_it_is_about_10_14_4(pair):
    target, one, two = pair
    two.command(bytes(6))
    status = await two.receive()
    victim = target.sessions[0].connections[1]
    mine = target.sessions[0].connections[0].acknowledged
    assert victim.acknowledged == status.statsn
    await one.logout(1, cid=1, expstatsn=status.statsn + 1)
    assert victim.acknowledged == status.statsn + 1
    assert target.sessions[0].connections[0].acknowledged == mine
    assert not target.violations


@pytest.mark.parametrize("level", ["0", "1"], indirect=True)
async def test_below_level_2_a_lost_connection_ends_its_tasks(pair, wire):
    target, one, two = pair
    itt = two.command(wire.write10(0, 8), write=4096)
    await two.receive()
    gap = one.cmdsn + 1
    two.command(bytes(6), cmdsn=gap)
    await two.close()
    await until(lambda: len(target.connections) == 1)
    status, _, answer = await one.run(bytes(6))
    assert (status, answer.sense) == (2, CLEARED)
    again = one.command(bytes(6), cmdsn=gap)
    assert (await one.status()).itt == again
    assert (await one.manage(8, tag=itt)).byte2 == 4
    assert (await one.logout(2, cid=1)).byte2 == 2


@pytest.mark.parametrize("level", ["0", "1"], indirect=True)
async def test_below_level_2_reinstatement_ends_the_tasks_of_the_old_connection_5_3_4(pair, wire, join):
    target, one, two = pair
    itt = two.command(wire.write10(0, 8), write=4096)
    await two.receive()
    anew = await join(target, one, 1)
    assert await two.ended() == b""
    assert not target.sessions[0].tasks
    assert (await anew.manage(1, tag=itt, refcmdsn=one.cmdsn - 1)).byte2 == 1
    assert sorted(target.sessions[0].connections) == [0, 1]


# ---- faults of one connection


async def test_faults_strike_one_connection(pair, wire):
    target, one, two = pair
    hole = arm(target, "black_hole", cid=1)
    tag = two.command(bytes(6), immediate=True)
    await one.nothing_more()
    assert target.connections[1].frozen
    assert not target.connections[0].frozen
    target.disarm(hole)
    assert (await two.status()).itt == tag
    arm(target, "drop", cid=1, opcode="scsi_command", reset=True)
    assert (await one.run(bytes(6)))[0] == 0
    two.command(bytes(6))
    assert await two.ended() == b"reset"
