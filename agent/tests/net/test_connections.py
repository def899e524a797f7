# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections a session against the test target: rows MCS of the conformance list at recovery level 0."""

from __future__ import annotations

import asyncio
from dataclasses import replace

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
    ready,
    received,
    session,
    spread,
    wanted,
)
from tests.net.load import Load
from tests.net.nexus_rig import config, parameters, run, running, until

from blockfleet.balance.policy import LoadBalancePolicy
from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionPhase, ConnectionSpec
from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome
from blockfleet_testtarget.config import PortalConfig
from blockfleet_testtarget.target import TestTarget

Policies = LoadBalancePolicy


async def test_mcs_01_an_added_connection_has_the_sessions_isid_and_tsih_and_a_cid_of_its_own() -> None:
    async with session(3) as (target, nexus, _):
        firsts = {}
        for pdu in received(target, LOGIN):
            firsts.setdefault(pdu.cid, pdu)
        assert sorted(firsts) == [0, 1, 2]
        assert {pdu.isid for pdu in firsts.values()} == {bytes.fromhex("80abcdef0001")}
        assert [firsts[cid].tsih for cid in (0, 1, 2)] == [0, nexus.tsih, nexus.tsih]
        assert len({pdu.cmdsn for pdu in firsts.values()}) == 1
        assert len(target.sessions) == 1
        assert nexus.logins == 1


async def test_mcs_03_no_more_connections_than_the_target_allows() -> None:
    async with TestTarget(config(keys={"MaxConnections": "2"})) as target:
        async with running(wanted(target, 4)) as (nexus, _):
            await until(lambda: logged_in(nexus) == 2)
            assert phases(nexus) == ["logged_in", "logged_in", "failed", "failed"]
            assert "allows 2" in nexus.connections[3].error
            assert len(target.connections) == 2


async def test_mcs_04_a_portal_of_another_group_is_not_joined() -> None:
    portals = [PortalConfig(host="127.0.0.1"), PortalConfig(host="127.0.0.1", group=2)]
    async with TestTarget(config(portals=portals, keys={"MaxConnections": "4"})) as target:
        made = parameters(
            target.portals[0].address, connections=(ConnectionSpec(Portal.parse(target.portals[1].address)),)
        )
        async with running(made) as (nexus, listener):
            await until(lambda: phases(nexus) == ["logged_in", "failed"])
            assert nexus.connections[1].error
            assert (await run(nexus, TEST_UNIT_READY)).outcome is Outcome.COMPLETE
            assert not listener.losses


@pytest.mark.parametrize("status", [0x0206, 0x0208, 0x020A], ids=hex)
async def test_mcs_05_a_refused_connection_leaves_the_session_alone_and_makes_no_storm(status: int) -> None:
    async with TestTarget(config(keys={"MaxConnections": "4"})) as target:
        arm(target, "refuse_login", cid=1, status=status, times=0)
        async with running(wanted(target, 2)) as (nexus, listener):
            await until(lambda: phases(nexus) == ["logged_in", "failed"])
            await ready(nexus)
            async with Load(nexus, 4) as load:
                await load.done(100)
            assert not listener.losses
            assert len([pdu for pdu in received(target, LOGIN) if pdu.cid == 1]) == 1


async def test_mcs_07_one_order_of_commands_over_all_connections() -> None:
    async with session(4) as (target, nexus, _):
        await spread(nexus, commands=200)
        numbers = [pdu.cmdsn for pdu in received(target, COMMAND)]
        assert sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers)))


async def test_mcs_08_a_slow_connection_holds_the_others_no_longer_than_the_window() -> None:
    async with session(2) as (target, nexus, listener):
        arm(target, "delay", cid=1, seconds=0.05, times=0)
        counts = await spread(nexus, commands=40)
        assert all(counts)
        nexus.set_parameters(replace(nexus.parameters, connection_policy=Policies.LEAST_QUEUE_DEPTH))
        assert not listener.losses


async def test_mcs_09_a_connection_is_removed_with_reason_1_and_its_cid_and_the_session_goes_on() -> None:
    async with session(3) as (target, nexus, listener):
        async with Load(nexus, 6) as load:
            await load.done(30)
            nexus.set_parameters(replace(nexus.parameters, connections=nexus.parameters.connections[:1]))
            await until(lambda: len(nexus.connections) == 2)
            await load.done(load.count + 30)
        (logout,) = received(target, LOGOUT)
        assert (logout.flags & 0x7F, logout.cid) == (1, 2)
        assert len(target.connections) == 2
        assert (listener.logins, listener.losses) == (1, [])


async def test_connections_come_and_go_under_load_without_an_error() -> None:
    async with session(2) as (target, nexus, listener):
        portal = Portal.parse(target.portals[0].address)
        tsih = nexus.tsih
        async with Load(nexus, 8) as load:
            for count in (3, 1, 2, 0, 3):
                nexus.set_parameters(replace(nexus.parameters, connections=(ConnectionSpec(portal),) * count))
                await until(lambda: phases(nexus) == ["logged_in"] * (count + 1))  # noqa: B023
                await load.done(load.count + 20)
        assert (nexus.tsih, nexus.logins, listener.losses) == (tsih, 1, [])


async def test_the_last_connection_is_not_removed() -> None:
    async with session(2) as (target, nexus, _):
        arm(target, "refuse_connection", times=0)
        other = replace(nexus.parameters, connections=())
        nexus.set_parameters(other)
        await until(lambda: len(nexus.connections) == 1)
        with pytest.raises(BlockfleetError) as caught:
            nexus.remove_connection(0)
        assert caught.value.code is Isdsc.CANT_REMOVE_LAST_CONNECTION
        assert (await run(nexus, TEST_UNIT_READY)).outcome is Outcome.COMPLETE


async def test_a_connection_is_removed_by_its_cid() -> None:
    async with session(3) as (_, nexus, _listener):
        with pytest.raises(BlockfleetError) as caught:
            nexus.remove_connection(7)
        assert caught.value.code is Isdsc.INVALID_CONNECTION_ID
        with pytest.raises(BlockfleetError) as caught:
            nexus.remove_connection(0)
        assert caught.value.code is Isdsc.CANNOT_REMOVE_LEADING_CONNECTION
        nexus.remove_connection(1)
        await until(lambda: [status.cid for status in nexus.connections] == [0, 2])
        assert len(nexus.parameters.connections) == 1


async def test_mcs_21_at_level_0_a_lost_connection_is_the_end_of_the_session() -> None:
    async with session(2) as (target, nexus, listener):
        target.connections[1].reset("test")
        await listener.until(lambda: listener.logins == 2)
        assert len(listener.losses) == 1
        await until(lambda: logged_in(nexus) == 2)
        assert len(target.connections) == 2


async def test_the_target_may_have_one_connection_logged_out() -> None:
    async with session(2) as (target, nexus, listener):
        async with Load(nexus, 4) as load:
            await load.done(20)
            arm(target, "async", event=1, parameter3=3, cid=1)
            await until(lambda: received(target, LOGOUT))
            await until(lambda: logged_in(nexus) == 2)
            await load.done(load.count + 20)
        (logout,) = received(target, LOGOUT)
        assert (logout.flags & 0x7F, logout.cid) == (1, 1)
        assert (listener.logins, listener.left, listener.losses) == (1, 0, [])


async def test_a_reset_ends_the_tasks_of_all_connections_and_is_told_after_they_have_been() -> None:
    async with session(3) as (target, nexus, _):
        arm(target, "slow_command", command="read", seconds=30.0, times=0)
        reads = [asyncio.ensure_future(run(nexus, bytes.fromhex("28000000000000000100"), read=512)) for _ in "123"]
        await until(lambda: all(status.in_flight == 1 for status in nexus.connections))
        assert await nexus.lun_reset(0) is TaskResponse.FUNCTION_COMPLETE
        assert all(read.done() for read in reads)
        assert {read.result().outcome for read in reads} == {Outcome.ABORTED}


async def test_abort_task_goes_to_the_connection_of_the_task_10_5_1() -> None:
    async with session(3) as (target, nexus, _):
        arm(target, "slow_command", command="read", seconds=30.0, times=0)
        reads = [asyncio.ensure_future(run(nexus, bytes.fromhex("28000000000000000100"), read=512)) for _ in "123"]
        await until(lambda: all(status.in_flight == 1 for status in nexus.connections))
        assert nexus._session is not None
        commands = [task.command for task in nexus._session.tasks.values()]
        for command in commands:
            await nexus.abort(command)
        assert {(await read).outcome for read in reads} == {Outcome.ABORTED}
        aborts = [(entry.connection, entry.pdu) for entry in target.received if entry.pdu.opcode == TASK_REQUEST]
        at = {entry.pdu.itt: entry.connection for entry in target.received if entry.pdu.opcode == COMMAND}
        assert [connection for connection, _ in aborts] == [at[pdu.ttt] for _, pdu in aborts]
        assert len({connection for connection, _ in aborts}) == 3


# ---- MCS-23: the policies


def specs(nexus: Nexus, *given: tuple[int, bool]) -> dict[str, object]:
    """Weights and standby of all connections, for set_parameters."""
    portal = nexus.parameters.portal
    (weight, standby), *others = given
    return {
        "weight": weight,
        "standby": standby,
        "connections": tuple(ConnectionSpec(portal, weight, standby) for weight, standby in others),
    }


async def test_mcs_23_each_policy_spreads_as_defined_and_is_changed_live() -> None:
    """The counters of each connection show it, while one load runs through all changes."""
    plain = (0, False)
    async with session(4) as (_, nexus, listener):
        async with Load(nexus, 6) as load:

            async def under(policy: Policies, *given: tuple[int, bool]) -> list[int]:
                nexus.set_parameters(replace(nexus.parameters, connection_policy=policy, **specs(nexus, *given)))
                before = [status.commands for status in nexus.connections]
                await load.done(load.count + 60)
                return [status.commands - old for status, old in zip(nexus.connections, before, strict=True)]

            counts = await under(Policies.ROUND_ROBIN, plain, plain, plain, plain)
            assert max(counts) - min(counts) <= 1
            counts = await under(Policies.FAIL_OVER_ONLY, plain, plain, plain, plain)
            assert [bool(count) for count in counts] == [True, False, False, False]
            counts = await under(Policies.ROUND_ROBIN_WITH_SUBSET, (0, True), plain, (0, True), plain)
            assert counts[0] == counts[2] == 0
            assert abs(counts[1] - counts[3]) <= 1
            counts = await under(Policies.WEIGHTED_PATH, (30, False), (20, False), (10, False), (40, False))
            assert [bool(count) for count in counts] == [False, False, True, False]
            counts = await under(Policies.LEAST_QUEUE_DEPTH, plain, plain, plain, plain)
            assert all(counts)
        assert (listener.logins, listener.losses) == (1, [])
        assert phases(nexus) == ["logged_in"] * 4


async def test_mcs_23_least_queue_depth_gives_a_slow_connection_less() -> None:
    async with session(4, connection_policy=Policies.LEAST_QUEUE_DEPTH) as (target, nexus, _):
        arm(target, "delay", cid=2, seconds=0.2, times=0)
        counts = await spread(nexus, commands=120)
        assert counts[2] < min(counts[0], counts[1], counts[3]) / 2


async def test_mcs_23_the_policy_changes_under_load() -> None:
    async with session(4) as (_, nexus, listener):
        async with Load(nexus, 8) as load:
            for policy in (*Policies, *Policies):
                nexus.set_parameters(replace(nexus.parameters, connection_policy=policy))
                await load.done(load.count + 15)
        assert listener.losses == []
        assert nexus.phase is NexusPhase.LOGGED_IN
        assert all(status.phase is ConnectionPhase.LOGGED_IN for status in nexus.connections)
