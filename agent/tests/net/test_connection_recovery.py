# SPDX-License-Identifier: GPL-3.0-or-later
"""Error recovery level 2 against the test target: connections are lost, their tasks go on (rows MCS)."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest
from tests.net.connection_rig import (
    COMMAND,
    LOGIN,
    LOGOUT,
    TASK_REQUEST,
    TEST_UNIT_READY,
    arm,
    logged_in,
    phases,
    received,
    session,
)
from tests.net.load import Load
from tests.net.nexus_rig import Listener, run, until

from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome
from blockfleet_testtarget.target import TestTarget

LEVEL_2 = {"ErrorRecoveryLevel": "2", "DefaultTime2Retain": "20"}
REASSIGN, RECOVERY = 8, 2
READ_1M = bytes.fromhex("28000000000000080000")
WRITE_1M = bytes.fromhex("2a000000000000080000")
SIZE = 1 << 20
"""Four Data-In PDUs, as large as the initiator takes them; and sixteen sequences of a write."""
PATTERN = bytes((7 * index + index // 241) & 0xFF for index in range(SIZE))


def level_2(
    count: int, *, keys: dict[str, str] | None = None, **changes: object
) -> AbstractAsyncContextManager[tuple[TestTarget, Nexus, Listener]]:
    return session(count, keys=LEVEL_2 | (keys or {}), error_recovery_level=2, **changes)


def lose(target: TestTarget, cid: int) -> None:
    next(connection for connection in target.connections if connection.cid == cid).reset("test")


def reassigns(target: TestTarget) -> list[int]:
    """The tags that were to be reassigned."""
    return [pdu.ttt for pdu in received(target, TASK_REQUEST) if pdu.flags & 0x7F == REASSIGN]


async def read_arrives(target: TestTarget, cid: int) -> None:
    """Wait until a READ has come over a connection."""
    seen = len(target.received)
    await until(
        lambda: any(
            (entry.connection.cid, entry.pdu.opcode, entry.pdu.bhs[32]) == (cid, COMMAND, READ_1M[0])
            for entry in list(target.received)[seen:]
        )
    )


async def test_connections_lost_in_turn_under_verified_load_are_recovered_in_the_same_session() -> None:
    async with level_2(2) as (target, nexus, listener):
        tsih = nexus.tsih
        async with Load(nexus, 8) as load:
            for turn in range(8):
                await load.done(load.count + 20)
                lose(target, turn % 2)
                await until(lambda: logged_in(nexus) == 2 and len(target.connections) == 2)
            await load.done(load.count + 20)
        assert (nexus.tsih, nexus.logins, listener.losses) == (tsih, 1, [])
        assert nexus.counters["connections_lost"] == nexus.counters["connections_recovered"] == 8
        assert nexus.counters["tasks_reassigned"] + nexus.counters["commands_retried"] > 0
        assert {connection.session.tsih for connection in target.connections} == {tsih}


async def test_a_session_of_one_connection_is_continued_under_verified_load() -> None:
    async with level_2(1) as (target, nexus, listener):
        tsih = nexus.tsih
        async with Load(nexus, 4) as load:
            for turn in range(4):
                await load.done(load.count + 15)
                lose(target, 0)
                await until(lambda: nexus.counters["connections_recovered"] == turn + 1)  # noqa: B023
            await load.done(load.count + 15)
        assert (nexus.tsih, nexus.logins, listener.losses) == (tsih, 1, [])
        assert nexus.counters["connections_recovered"] == 4


async def test_mcs_10_the_lost_connection_is_logged_out_for_recovery_on_one_that_is_left() -> None:
    async with level_2(2, keys={"DefaultTime2Wait": "1"}) as (target, nexus, _):
        loop = asyncio.get_running_loop()
        lost_at = loop.time()
        lose(target, 1)
        await until(lambda: received(target, LOGOUT))
        assert loop.time() - lost_at >= 0.9
        (logout,) = received(target, LOGOUT)
        assert (logout.flags & 0x7F, logout.cid) == (RECOVERY, 1)
        await until(lambda: logged_in(nexus) == 2)


async def test_mcs_11_tasks_are_reassigned_one_by_one_with_their_tags() -> None:
    async with level_2(2) as (target, nexus, _):
        target.units["disk"].backing.write(0, PATTERN)
        arm(target, "slow_command", command="read", seconds=1.5, times=4)
        before = len(received(target, COMMAND))
        reads = [asyncio.ensure_future(run(nexus, READ_1M, read=SIZE)) for _ in range(4)]
        await until(lambda: len(received(target, COMMAND)) == before + 4)
        lose(target, 1)
        for read in reads:
            command = await read
            assert (command.outcome, command.status) == (Outcome.COMPLETE, 0), command.error
            assert bytes(command.data_in or b"") == PATTERN
        tags = [entry.pdu.itt for entry in target.received if entry.pdu.opcode == COMMAND and entry.pdu.data == b""]
        asked = reassigns(target)
        assert len(asked) == len(set(asked)) == nexus.counters["tasks_reassigned"] == 2
        assert set(asked) <= set(tags)
        requests = received(target, TASK_REQUEST)
        assert all(pdu.immediate for pdu in requests)
        assert not {pdu.itt for pdu in requests} & set(asked)


async def test_mcs_13_a_read_goes_on_at_the_data_that_had_not_come() -> None:
    async with level_2(2) as (target, nexus, _):
        target.units["disk"].backing.write(0, PATTERN)
        arm(target, "drop", opcode="data_in", after=1, sent=True, reset=False)
        command = await run(nexus, READ_1M, read=SIZE)
        assert bytes(command.data_in or b"") == PATTERN
        (request,) = [pdu for pdu in received(target, TASK_REQUEST) if pdu.flags & 0x7F == REASSIGN]
        assert 0 < request.datasn < 4


async def test_mcs_14_a_write_is_asked_for_anew() -> None:
    keys = {"MaxBurstLength": "65536", "FirstBurstLength": "65536", "InitialR2T": "Yes", "ImmediateData": "No"}
    async with level_2(2, keys=keys) as (target, nexus, _):
        arm(target, "drop", opcode="data_out", after=3)
        command = await run(nexus, WRITE_1M, write=PATTERN)
        assert (command.outcome, command.status) == (Outcome.COMPLETE, 0), command.error
        assert bytes(target.units["disk"].backing.read(0, SIZE)) == PATTERN
        assert len(reassigns(target)) == 1


async def test_mcs_15_a_task_that_the_target_has_lost_ends_unknown_and_the_session_goes_on() -> None:
    async with level_2(2) as (target, nexus, listener):
        arm(target, "answer_reassign", code=1)
        arm(target, "drop", opcode="data_in", sent=True)
        command = await run(nexus, READ_1M, read=SIZE)
        assert command.outcome is Outcome.UNKNOWN
        assert (await run(nexus, TEST_UNIT_READY)).outcome is Outcome.COMPLETE
        await until(lambda: logged_in(nexus) == 2)
        assert (nexus.logins, listener.losses) == (1, [])


async def test_mcs_15_a_task_that_is_still_allegiant_is_asked_for_again() -> None:
    async with level_2(2) as (target, nexus, _):
        target.units["disk"].backing.write(0, PATTERN)
        arm(target, "answer_reassign", code=3, times=2)
        arm(target, "drop", opcode="data_in", sent=True)
        command = await run(nexus, READ_1M, read=SIZE)
        assert bytes(command.data_in or b"") == PATTERN
        assert len(reassigns(target)) == 3


@pytest.mark.parametrize("code", [4, 5, 6, 255])
async def test_mcs_15_a_target_that_refuses_reassignment_gets_session_recovery(code: int) -> None:
    async with level_2(2) as (target, nexus, listener):
        arm(target, "answer_reassign", code=code, times=0)
        arm(target, "drop", opcode="data_in", sent=True)
        command = await run(nexus, READ_1M, read=SIZE)
        assert command.outcome is Outcome.UNKNOWN
        await listener.until(lambda: listener.logins == 2)
        assert len(listener.losses) == 1
        assert "reassignment" in str(listener.losses[0])


async def test_mcs_16_a_command_that_was_not_delivered_is_sent_again_with_its_cmdsn() -> None:
    async with level_2(2) as (target, nexus, _):
        arm(target, "drop", opcode="scsi_command", reset=True)
        command = await run(nexus, READ_1M, read=SIZE)
        assert (command.outcome, command.status) == (Outcome.COMPLETE, 0)
        sent = [pdu for pdu in received(target, COMMAND) if pdu.word(20) == SIZE]
        assert [(pdu.itt, pdu.cmdsn) for pdu in sent] == [(sent[0].itt, sent[0].cmdsn)] * len(sent)
        assert nexus.counters["commands_retried"] == 1
        assert not reassigns(target)


@pytest.mark.parametrize(("wait", "retain"), [(0, 0), (1, 20)])
async def test_mcs_17_recovery_keeps_to_time2wait_and_time2retain(wait: int, retain: int) -> None:
    keys = {"DefaultTime2Wait": str(wait), "DefaultTime2Retain": str(retain)}
    async with level_2(2, keys=keys) as (target, nexus, listener):
        lose(target, 1)
        if retain:
            await until(lambda: nexus.counters["connections_recovered"] == 1)
            assert not listener.losses
        else:
            await listener.until(lambda: listener.logins == 2)
        await until(lambda: logged_in(nexus) == 2)


async def test_time2retain_over_without_a_connection_is_session_recovery() -> None:
    async with level_2(1, keys={"DefaultTime2Retain": "2"}) as (target, nexus, listener):
        arm(target, "refuse_connection", times=0)
        pending = asyncio.ensure_future(run(nexus, READ_1M, read=SIZE))
        lose(target, 0)
        held = asyncio.ensure_future(run(nexus, TEST_UNIT_READY))
        await until(lambda: nexus.phase is NexusPhase.RECOVERING)
        assert not held.done()
        await listener.until(lambda: listener.losses)  # type: ignore[arg-type,return-value]
        assert (await pending).outcome in (Outcome.UNKNOWN, Outcome.COMPLETE)
        assert (await held).outcome in (Outcome.NOT_SENT, Outcome.UNKNOWN)
        target.disarm()
        await listener.until(lambda: listener.logins == 2)


async def test_mcs_19_times_that_the_target_gives_hold_for_the_connection() -> None:
    async with level_2(2, keys={"DefaultTime2Wait": "60"}) as (target, nexus, listener):
        loop = asyncio.get_running_loop()
        lost_at = loop.time()
        arm(target, "drop_connection", cid=1, wait=1, retain=6)
        await until(lambda: received(target, LOGOUT))
        assert loop.time() - lost_at >= 0.9
        await until(lambda: logged_in(nexus) == 2)
        assert not listener.losses


async def test_mcs_20_the_connection_that_recovers_another_is_lost_too() -> None:
    async with level_2(2) as (target, nexus, listener):
        tsih = nexus.tsih
        async with Load(nexus, 6) as load:
            await load.done(20)
            arm(target, "drop", opcode="logout_request", cid=0)
            lose(target, 1)
            await until(lambda: nexus.counters["connections_lost"] == 2)
            await until(lambda: logged_in(nexus) == 2)
            await load.done(load.count + 20)
            arm(target, "drop", opcode="task_request", cid=0)
            arm(target, "slow_command", command="read", seconds=0.5, times=0)
            await read_arrives(target, 1)
            lose(target, 1)
            await until(lambda: nexus.counters["connections_lost"] == 4)
            target.disarm()
            await until(lambda: logged_in(nexus) == 2)
            await load.done(load.count + 20)
        assert (nexus.tsih, nexus.logins, listener.losses) == (tsih, 1, [])


async def test_mcs_22_all_connections_are_lost_and_the_session_is_continued() -> None:
    async with level_2(3) as (target, nexus, listener):
        tsih = nexus.tsih
        async with Load(nexus, 6) as load:
            await load.done(20)
            for connection in list(target.connections):
                connection.reset("test")
            await until(lambda: nexus.counters["connections_recovered"] == 3)
            await until(lambda: phases(nexus) == ["logged_in"] * 3)
            await load.done(load.count + 20)
        assert (nexus.tsih, nexus.logins, listener.losses) == (tsih, 1, [])
        again = [pdu for pdu in received(target, LOGIN) if pdu.tsih == tsih]
        assert {pdu.cid for pdu in again} == {0, 1, 2}


async def test_mcs_22_a_target_that_has_forgotten_the_session_gets_a_new_one() -> None:
    async with level_2(1) as (target, nexus, listener):
        tsih = nexus.tsih
        arm(target, "refuse_login", cid=0, status=0x020A, times=1)
        lose(target, 0)
        await listener.until(lambda: listener.logins == 2)
        assert len(listener.losses) == 1
        assert "continued" in str(listener.losses[0])
        assert nexus.tsih != tsih


async def test_a_connection_that_says_nothing_any_more_is_found_by_its_ping() -> None:
    async with level_2(2, noop_interval=0.3, noop_timeout=0.3) as (target, nexus, listener):
        async with Load(nexus, 4) as load:
            await load.done(20)
            arm(target, "black_hole", cid=1, times=0)
            await until(lambda: nexus.counters["connections_lost"] == 1)
            target.disarm()
            await load.done(load.count + 40)
            await until(lambda: logged_in(nexus) == 2)
        assert (nexus.logins, listener.losses) == (1, [])


async def test_an_added_connection_that_is_refused_after_a_loss_leaves_the_others_alone() -> None:
    async with level_2(2) as (target, nexus, listener):
        arm(target, "refuse_login", cid=1, status=0x0301, times=2)
        async with Load(nexus, 4) as load:
            lose(target, 1)
            await until(lambda: "failed" in phases(nexus))
            await until(lambda: logged_in(nexus) == 2)
            await load.done(load.count + 20)
        assert (nexus.logins, listener.losses) == (1, [])
