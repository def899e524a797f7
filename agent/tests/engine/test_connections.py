# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections a session: asked for, seen, and changed under I/O; a target that grants four."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.engine.rig import HOST, QUICK, TARGET, Rig, two_portals
from tests.export.nbd_client import WRITE, NbdClient

from blockfleet.engine.connections import connection_states
from blockfleet.engine.data_plane import DataPlane
from blockfleet.engine.interface import ConnectionSet, EngineState, InitiatorSpec, SessionSpec, SessionState
from blockfleet.engine.parameters import nexus_parameters
from blockfleet.model.desired import Connection, ConnectionRole
from blockfleet.model.load_balance import LoadBalancePolicy
from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionPhase, ConnectionStatus
from blockfleet_testtarget.target import TestTarget

BLOCK = 4096
Policies = LoadBalancePolicy


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    data_plane = DataPlane(tmp_path / "volumes", instance="here", version="0")
    await data_plane.configure(InitiatorSpec(name=HOST))
    keys = {"MaxConnections": "4", "ErrorRecoveryLevel": "1", "DefaultTime2Wait": "0"}
    async with TestTarget(two_portals(keys=keys)) as target:
        yield Rig(data_plane, target)
        await NbdClient.close_all()
        await data_plane.close()
    assert list(target.violations) == []


def wanted(count: int, policy: LoadBalancePolicy = Policies.ROUND_ROBIN, **leading: object) -> ConnectionSet:
    """A leading connection and more, the n-th with a weight of 10 - n."""
    further = tuple(Connection(weight=10 - n) for n in range(1, count))
    return ConnectionSet(leading=ConnectionRole(**leading), further=further, policy=policy)


def phases(session: SessionState) -> list[str]:
    return [connection.phase.value for connection in session.connections]


async def up(rig: Rig, count: int) -> EngineState:
    return await rig.until(
        lambda s: bool(s.sessions) and phases(s.sessions[0]) == ["logged_in"] * count and bool(s.sessions[0].units)
    )


async def spread(rig: Rig, client: NbdClient, writes: int = 24) -> list[int]:
    """Write so often, two at a time; return how many commands went to each connection."""
    before = [c.commands for c in (await rig.session()).connections]
    for _ in range(writes // 2):
        for offset in (0, BLOCK):
            client.send(WRITE, offset, BLOCK, data=b"\x5a" * BLOCK)
        for _ in range(2):
            assert (await asyncio.wait_for(client.reply(), 10)).error == 0
    return [c.commands - old for c, old in zip((await rig.session()).connections, before, strict=True)]


async def opened(rig: Rig, connections: ConnectionSet) -> NbdClient:
    await rig.login(connections=connections)
    await up(rig, connections.size)
    volume = await rig.publish()
    return await NbdClient.open(Path(volume.socket))


async def test_a_session_shows_its_connections_and_what_it_was_asked_for(rig: Rig) -> None:
    await rig.login(connections=wanted(3))
    session = (await up(rig, 3)).sessions[0]
    assert [c.cid for c in session.connections] == [0, 1, 2]
    assert [c.weight for c in session.connections] == [0, 9, 8]
    assert {c.portal for c in session.connections} == {rig.portal()}
    assert all(c.active for c in session.connections)
    assert session.connection_set == wanted(3)
    assert (session.negotiated["MaxConnections"], session.relogin_pending) == ("4", False)
    assert len(rig.target.sessions[0].connections) == 3


EXPECTED = {
    Policies.FAIL_OVER_ONLY: [True, False, False],
    Policies.ROUND_ROBIN: [True, True, True],
    Policies.WEIGHTED_PATH: [False, False, True],
    Policies.LEAST_QUEUE_DEPTH: [True, True, True],
}


async def test_the_policy_changes_under_i_o_and_decides_which_connections_carry_it(rig: Rig) -> None:
    client = await opened(rig, wanted(3, weight=11))
    for policy, active in EXPECTED.items():
        await rig.login(connections=wanted(3, policy, weight=11))
        carried = await spread(rig, client)
        assert [count > 0 for count in carried] == active, policy
        assert [c.active for c in (await rig.session()).connections] == active, policy
    session = await rig.session()
    assert (session.logins, session.relogin_pending) == (1, False)


async def test_connections_come_and_go_under_i_o_and_the_session_stays(rig: Rig) -> None:
    client = await opened(rig, wanted(2))
    tsih = (await rig.session()).tsih
    await rig.login(connections=wanted(4))
    await up(rig, 4)
    assert all(count > 0 for count in await spread(rig, client))
    await rig.login(connections=wanted(1))
    await up(rig, 1)
    await spread(rig, client)
    session = await rig.session()
    assert (session.tsih, session.logins, session.relogin_pending) == (tsih, 1, False)
    await rig.login(connections=wanted(3))
    await up(rig, 3)


async def test_a_session_that_began_with_one_connection_takes_more_from_its_next_login_on(rig: Rig) -> None:
    """RFC 3720 12.2: MaxConnections is the leading login's."""
    await rig.login()
    await up(rig, 1)
    await rig.login(connections=wanted(2))
    session = await rig.session()
    assert (phases(session), session.relogin_pending) == (["logged_in"], True)
    await rig.engine.relogin(rig.key())
    session = (await up(rig, 2)).sessions[0]
    assert (session.logins, session.relogin_pending) == (2, False)


async def test_a_portal_of_another_group_is_refused_with_its_cause_and_the_session_stays(rig: Rig) -> None:
    stranger = ConnectionSet(further=(Connection(portal=rig.portal(1)),))
    await rig.login(connections=stranger)
    state = await rig.until(lambda s: phases(s.sessions[0]) == ["logged_in", "failed"])
    connection = state.sessions[0].connections[1]
    assert (connection.portal, connection.cid, connection.active) == (rig.portal(1), None, False)
    assert rig.portal(1) in connection.error
    await up_and_used(rig)
    told = [violation for violation in rig.target.violations if "another portal group" not in violation]
    assert told == []
    rig.target.violations.clear()


async def up_and_used(rig: Rig) -> None:
    await rig.logged_in(0)
    client = await NbdClient.open(Path((await rig.publish()).socket))
    client.send(WRITE, 0, BLOCK, data=b"\x11" * BLOCK)
    assert (await asyncio.wait_for(client.reply(), 10)).error == 0


@pytest.mark.parametrize(("offered", "agreed"), [(0, "0"), (1, "1"), (2, "1")])
async def test_the_error_recovery_level_is_the_lower_of_both_sides(rig: Rig, offered: int, agreed: str) -> None:
    """RFC 3720 12.20; the target has 1."""
    await rig.login(options=QUICK.model_copy(update={"error_recovery_level": offered}))
    state = await rig.logged_in(0)
    assert state.sessions[0].negotiated["ErrorRecoveryLevel"] == agreed


def spec(rig_portal: str, **fields: object) -> dict[str, object]:
    return {
        "key": f"{TARGET}@{rig_portal}",
        "target": TARGET,
        "portal": rig_portal,
        "isid": "80d15c000001",
        **fields,
    }


def test_what_is_not_said_of_recovery_is_the_transports_own_default() -> None:
    portal = "192.0.2.10:3260"
    made = nexus_parameters(SessionSpec(**spec(portal)), InitiatorSpec(name=HOST))
    fields = {field.name: field.default for field in made.__dataclass_fields__.values()}
    assert made.error_recovery_level == fields["error_recovery_level"]
    assert (made.connections, made.connection_policy) == ((), fields["connection_policy"])
    with pytest.raises(ValidationError):
        SessionSpec(**spec(portal, connection_set={"further": [{}] * 8}))


def status(cid: int | None, phase: str, **fields: object) -> ConnectionStatus:
    values = {"weight": 0, "standby": False, "commands": 0, "in_flight": 0, "bytes_in": 0, "bytes_out": 0, **fields}
    return ConnectionStatus(cid, Portal.parse("192.0.2.10"), ConnectionPhase(phase), **values)  # type: ignore[arg-type]


def test_which_connections_a_policy_uses_is_said_of_those_that_are_logged_in() -> None:
    lost_first = (status(0, "recovering"), status(1, "logged_in", standby=True), status(2, "logged_in"))
    fail_over = connection_states(lost_first, Policies.FAIL_OVER_ONLY)
    assert [c.active for c in fail_over] == [False, False, True]
    subset = connection_states(lost_first, Policies.ROUND_ROBIN_WITH_SUBSET)
    assert [c.active for c in subset] == [False, False, True]
    only_standby = connection_states(lost_first[:2], Policies.ROUND_ROBIN_WITH_SUBSET)
    assert [c.active for c in only_standby] == [False, True]
    assert connection_states((), Policies.WEIGHTED_PATH) == ()
