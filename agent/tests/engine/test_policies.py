# SPDX-License-Identifier: GPL-3.0-or-later
"""Each policy over three real paths, shown by the counters of the paths; changed while the volume is in use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engine.rig import HOST, NAA, SIZE, TARGET, Rig
from tests.export.nbd_client import READ, NbdClient

from blockfleet.engine.data_plane import DataPlane
from blockfleet.engine.interface import InitiatorSpec, PathSetting
from blockfleet.model.desired import Policy
from blockfleet_testtarget.config import Config, PortalConfig, TargetConfig, UnitConfig
from blockfleet_testtarget.faults.acts import ClosePortal
from blockfleet_testtarget.faults.commands import SlowCommand
from blockfleet_testtarget.target import TestTarget

BLOCK = 4096
PATHS = 3


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    data_plane = DataPlane(tmp_path / "volumes", instance="here", version="0")
    await data_plane.configure(InitiatorSpec(name=HOST))
    config = Config(
        portals=[PortalConfig("127.0.0.1", group=group) for group in range(1, PATHS + 1)],
        units={"unit": UnitConfig(size=SIZE, naa=NAA)},
        targets=[TargetConfig(TARGET, luns={3: "unit"}, keys={"DefaultTime2Wait": "0"})],
        record_pdus=0,
    )
    async with TestTarget(config) as target:
        made = Rig(data_plane, target)
        for index in range(PATHS):
            await made.login(index)
        await made.logged_in(*range(PATHS))
        yield made
        await NbdClient.close_all()
        await data_plane.close()
    assert list(target.violations) == []


def settings(rig: Rig, *roles: dict[str, object]) -> tuple[PathSetting, ...]:
    return tuple(PathSetting(session=rig.key(index), **role) for index, role in enumerate(roles))


async def opened(rig: Rig, policy: Policy, *roles: dict[str, object], **spec: object) -> NbdClient:
    volume = await rig.publish(policy, path_settings=settings(rig, *roles), **spec)
    return await NbdClient.open(Path(volume.socket))


async def issued(rig: Rig) -> list[int]:
    """Return how many commands each path was given, in the order of the portals."""
    paths = {path.session: path.counters["issued"] for path in (await rig.volume()).paths}
    return [paths[rig.key(index)] for index in range(PATHS)]


async def read(client: NbdClient, reads: int, depth: int = 1) -> None:
    """Read so often, ``depth`` at a time."""
    for sent in range(reads + depth):
        if sent >= depth:
            assert (await asyncio.wait_for(client.reply(), 20)).error == 0
        if sent < reads:
            client.send(READ, (sent % 64) * BLOCK, BLOCK)


async def carried(rig: Rig, client: NbdClient, reads: int = 30, depth: int = 1) -> list[int]:
    """Return how many of the reads went over each path."""
    before = await issued(rig)
    await read(client, reads, depth)
    return [after - old for after, old in zip(await issued(rig), before, strict=True)]


async def phases(rig: Rig) -> list[str]:
    found = {path.session: path.phase.value for path in (await rig.volume()).paths}
    return [found[rig.key(index)] for index in range(PATHS)]


ROLES = ({"weight": 30}, {"weight": 10, "standby": True}, {"weight": 20, "primary": True})
SHARES = [
    (Policy.FAIL_OVER_ONLY, [0, 0, 30], ["standby", "standby", "active"]),
    (Policy.ROUND_ROBIN, [10, 10, 10], ["active", "active", "active"]),
    (Policy.ROUND_ROBIN_WITH_SUBSET, [15, 0, 15], ["active", "standby", "active"]),
    (Policy.WEIGHTED_PATH, [0, 30, 0], ["standby", "active", "standby"]),
    (Policy.LEAST_QUEUE_DEPTH, [10, 10, 10], ["active", "active", "active"]),
    (Policy.SERVICE_TIME, [10, 10, 10], ["active", "active", "active"]),
]


@pytest.mark.parametrize(("policy", "shares", "roles"), SHARES, ids=[policy.value for policy, _, _ in SHARES])
async def test_the_share_of_each_path_with_one_read_at_a_time(
    rig: Rig, policy: Policy, shares: list[int], roles: list[str]
) -> None:
    client = await opened(rig, policy, *ROLES)
    assert await carried(rig, client) == shares
    assert await phases(rig) == roles


async def test_a_policy_changes_live_and_no_read_fails(rig: Rig) -> None:
    client = await opened(rig, Policy.FAIL_OVER_ONLY, *ROLES)
    for policy, shares, roles in SHARES:
        reading = asyncio.create_task(read(client, 200, depth=8))
        await asyncio.sleep(0)
        volume = await rig.publish(policy, path_settings=settings(rig, *ROLES))
        await reading
        found = await carried(rig, client)
        assert (volume.policy, sum(found), await phases(rig)) == (policy, 30, roles)
        assert policy is Policy.SERVICE_TIME or found == shares, "what it measured under the load before may differ"
    counters = (await rig.volume()).counters
    assert [counters[name] for name in ("retries", "refused", "expired")] == [0, 0, 0]


async def test_the_state_tells_what_was_asked_for_and_what_each_path_is(rig: Rig) -> None:
    asked = settings(rig, *ROLES)
    volume = await rig.publish(Policy.WEIGHTED_PATH, path_settings=asked, failback=False)
    assert (volume.policy, volume.failback, volume.path_settings) == (Policy.WEIGHTED_PATH, False, asked)
    shown = {path.session: (path.weight, path.standby, path.primary) for path in volume.paths}
    assert [shown[rig.key(index)] for index in range(PATHS)] == [
        (30, False, False),
        (10, True, False),
        (20, False, True),
    ]


async def test_weights_change_live(rig: Rig) -> None:
    client = await opened(rig, Policy.WEIGHTED_PATH, *ROLES)
    await rig.publish(
        Policy.WEIGHTED_PATH, path_settings=settings(rig, {"weight": 1}, {"weight": 2}, {"weight": 3})
    )
    assert await carried(rig, client) == [30, 0, 0]


@pytest.mark.parametrize("policy", [Policy.LEAST_QUEUE_DEPTH, Policy.SERVICE_TIME])
async def test_policies_that_look_at_the_queue_send_less_to_a_slow_path(rig: Rig, policy: Policy) -> None:
    """Six at a time: those on the slow path stay there, and all the others go elsewhere."""
    client = await opened(rig, policy)
    rig.target.arm(SlowCommand(portal=1, command="read", seconds=1.0, times=0))
    shares = await carried(rig, client, 240, depth=6)
    assert sum(shares) == 240
    assert 0 < shares[1] < 40
    assert min(shares[0], shares[2]) > 2 * shares[1]


async def test_round_robin_sends_as_much_to_a_slow_path(rig: Rig) -> None:
    client = await opened(rig, Policy.ROUND_ROBIN)
    rig.target.arm(SlowCommand(portal=1, command="read", seconds=0.01, times=0))
    assert await carried(rig, client, 60, depth=6) == [20, 20, 20]


@pytest.mark.parametrize(("failback", "after"), [(True, 2), (False, 0)], ids=["failback", "no failback"])
async def test_the_primary_path_is_lost_and_comes_back(rig: Rig, failback: bool, after: int) -> None:
    client = await opened(rig, Policy.FAIL_OVER_ONLY, *ROLES, failback=failback)
    assert await carried(rig, client) == [0, 0, 30]
    closed = rig.target.arm(ClosePortal(portal=2, times=0))
    await read(client, 30)
    await rig.until(lambda s: [p.phase for v in s.volumes for p in v.paths].count("failed") == 1)
    assert await carried(rig, client) == [30, 0, 0]
    rig.target.disarm(closed)
    await rig.until(lambda s: not [p for v in s.volumes for p in v.paths if p.phase == "failed"])
    assert await carried(rig, client) == [30 if index == after else 0 for index in range(PATHS)]
