# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane in the test's own process, where its patience can be shortened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engine.rig import HOST, Rig, struck, two_portals
from tests.export.nbd_client import READ, WRITE, NbdClient

from blockfleet.engine import fence, path_link
from blockfleet.engine.data_plane import DataPlane
from blockfleet.engine.interface import InitiatorSpec, VolumeSpec
from blockfleet.model.desired import Policy
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.target import TestTarget

BLOCK = 4096


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(fence, "TIME_FENCE", 0.6)
    monkeypatch.setattr(path_link, "DRAIN_TIMEOUT", 0.2)
    data_plane = DataPlane(tmp_path / "volumes", instance="here", version="0")
    await data_plane.configure(InitiatorSpec(name=HOST))
    async with TestTarget(two_portals()) as target:
        yield Rig(data_plane, target)
        await NbdClient.close_all()
        await data_plane.close()


async def hung_write(rig: Rig, client: NbdClient) -> str:
    """Send a write that the target never answers; returns the session that it hangs on."""
    lost = build_fault("lose_command", {"command": "write"})
    rig.target.arm(lost)
    client.send(WRITE, 0, BLOCK, data=b"\x77" * BLOCK)
    await struck(lost)
    state = await rig.state()
    return next(p.session for p in state.volumes[0].paths if p.counters["in_flight"])


async def test_session_closed_with_a_hanging_write_is_fenced_by_time_then_the_write_goes_elsewhere(
    rig: Rig,
) -> None:
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    client = await NbdClient.open(Path(volume.socket))
    key = await hung_write(rig, client)
    await rig.engine.close_session(key)
    after = await rig.volume()
    assert key not in [path.session for path in after.paths]
    assert after.counters["locked_ranges"] == 1
    reply = await asyncio.wait_for(client.reply(), 10)
    assert reply.error == 0
    assert (await client.ask(READ, 0, BLOCK)).data == b"\x77" * BLOCK
    fenced = await rig.events("path_fenced")
    assert [event.details["method"] for event in fenced] == ["time"]
    assert (await rig.volume()).counters["locked_ranges"] == 0
    await client.close()


async def test_portal_that_stays_away_is_fenced_by_time(rig: Rig) -> None:
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    client = await NbdClient.open(Path(volume.socket))
    key = await hung_write(rig, client)
    await rig.target.close_portal([rig.key(0), rig.key(1)].index(key))
    assert (await asyncio.wait_for(client.reply(), 10)).error == 0
    assert [event.details["method"] for event in await rig.events("path_fenced")] == ["time"]
    await client.close()


async def test_withdrawing_with_a_hanging_write_is_bounded_and_its_client_gets_no_success(rig: Rig) -> None:
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    client = await NbdClient.open(Path(volume.socket))
    await hung_write(rig, client)
    async with asyncio.timeout(20):
        await rig.engine.withdraw("v")
    assert await client.at_end()
    assert (await rig.state()).volumes == ()
    await client.close()


async def test_withdrawal_goes_on_when_its_caller_gives_up(rig: Rig) -> None:
    await rig.two_paths()
    caller = asyncio.create_task(rig.engine.withdraw("v"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await rig.until(lambda s: s.volumes == ())


async def test_state_is_plain_data(rig: Rig) -> None:
    await rig.two_paths()
    state = await rig.state()
    assert type(state).model_validate(json.loads(state.model_dump_json())) == state


async def test_paths_of_a_target_that_is_no_longer_the_volumes_leave_it(rig: Rig) -> None:
    volume = await rig.two_paths()
    mine = VolumeSpec(name="v", identity=volume.identity, targets=volume.targets, policy=Policy.ROUND_ROBIN)
    other = mine.model_copy(update={"targets": ("iqn.2026-11.com.example:elsewhere",)})
    changed = await rig.engine.publish(other)
    assert changed.paths == ()
    back = await rig.engine.publish(mine)
    assert [path.phase for path in back.paths] == ["active", "active"]
    assert back.phase == "online"
