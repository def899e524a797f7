# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine against tgt, a target that many people run: what it does otherwise than the RFC has to be survived."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.rig import HOST, QUICK, TARGET, command, fio, isid, until, uri
from tests.peers.tgt import Account, Tgt

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import (
    Credentials,
    DiscoverySpec,
    EngineState,
    InitiatorSpec,
    SessionSpec,
    VolumeSpec,
    VolumeState,
    session_key,
)
from blockfleet.model.desired import Policy

pytestmark = pytest.mark.peer

SIZE = 16 << 20
FORWARD = Account("host7", "canary-forward-1")
REVERSE = Account("array", "canary-reverse-2")


@pytest.fixture
def tgt() -> Iterator[Tgt]:
    target = Tgt(("127.0.0.1:0", "[::1]:0"))
    yield target
    target.close()


@pytest.fixture
async def engine(engine_client: EngineClient) -> EngineClient:
    await engine_client.configure(InitiatorSpec(name=HOST))
    return engine_client


async def login(engine: EngineClient, tgt: Tgt, index: int, credentials: Credentials | None = None) -> None:
    portal = tgt.portals[index]
    await engine.open_session(
        SessionSpec(
            key=session_key(TARGET, portal),
            target=TARGET,
            portal=portal,
            isid=isid(index),
            credentials=credentials,
            options=QUICK,
        )
    )


def disks(state: EngineState) -> list[str]:
    return [u.identity for s in state.sessions for u in s.units if u.device_type == 0]


async def two_paths(
    engine: EngineClient, tgt: Tgt, policy: Policy, credentials: Credentials | None = None
) -> VolumeState:
    for index in (0, 1):
        await login(engine, tgt, index, credentials)
    state = await until(engine, lambda s: len(disks(s)) == 2)
    first, second = disks(state)
    assert first == second
    return await engine.publish(VolumeSpec(name="v", identity=first, targets=(TARGET,), policy=policy))


async def test_mutual_chap_over_ipv4_and_ipv6_becomes_one_volume_with_two_paths(
    engine: EngineClient, tgt: Tgt, tmp_path: Path
) -> None:
    tgt.add_target(TARGET, account=FORWARD, mutual=REVERSE)
    image = tgt.add_unit(TARGET, SIZE)
    credentials = Credentials(
        user=FORWARD.user, secret=FORWARD.secret, mutual_user=REVERSE.user, mutual_secret=REVERSE.secret
    )
    volume = await two_paths(engine, tgt, Policy.ROUND_ROBIN, credentials)
    assert [p.phase for p in volume.paths] == ["active", "active"]
    assert (volume.size, volume.phase) == (SIZE, "online")
    data = os.urandom(SIZE)
    (tmp_path / "in").write_bytes(data)
    await command("nbdcopy", "--flush", tmp_path / "in", uri(volume))
    await command("nbdcopy", uri(volume), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert image.read_bytes() == data


async def test_wrong_mutual_secret_is_a_failed_session(engine: EngineClient, tgt: Tgt) -> None:
    tgt.add_target(TARGET, account=FORWARD, mutual=REVERSE)
    tgt.add_unit(TARGET, SIZE)
    wrong = Credentials(
        user=FORWARD.user, secret=FORWARD.secret, mutual_user=REVERSE.user, mutual_secret="canary-not-this-1"
    )
    await login(engine, tgt, 0, wrong)
    state = (await until(engine, lambda s: s.sessions[0].phase == "failed")).sessions[0]
    assert state.fault is not None
    assert state.fault.name == "ISDSC_AUTHENTICATION_FAILURE"
    assert "canary" not in state.model_dump_json()


async def test_discovery_shows_the_portals_of_the_family_that_was_asked(engine: EngineClient, tgt: Tgt) -> None:
    tgt.add_target(TARGET)
    for portal in tgt.portals:
        found = await engine.discover(DiscoverySpec(portal=portal))
        assert [(e.target, e.portal, e.tag) for e in found] == [(TARGET, portal, 1)]


@pytest.mark.parametrize("policy", list(Policy))
async def test_connections_dropped_by_the_target_under_load(
    engine: EngineClient, tgt: Tgt, tmp_path: Path, policy: Policy
) -> None:
    tgt.add_target(TARGET)
    tgt.add_unit(TARGET, SIZE)
    volume = await two_paths(engine, tgt, policy)
    async with fio(volume, tmp_path, seconds=6) as running:  # DefaultTime2Wait of tgt is 2 s
        for round_ in range(2):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(tgt.drop_connections, TARGET)
            await until(
                engine,
                lambda s, n=round_: s.volumes[0].phase == "online" and all(x.logins >= n + 2 for x in s.sessions),
            )
        assert running()
    state = await engine.observe()
    assert [s.isid for s in state.sessions] == [isid(0), isid(1)]
    assert (state.volumes[0].counters["errors"], state.volumes[0].counters["locked_ranges"]) == (0, 0)


async def test_target_that_is_killed_and_comes_back_under_load(
    engine: EngineClient, tgt: Tgt, tmp_path: Path
) -> None:
    tgt.add_target(TARGET)
    tgt.add_unit(TARGET, SIZE)
    volume = await two_paths(engine, tgt, Policy.ROUND_ROBIN)
    async with fio(volume, tmp_path) as running:
        await asyncio.sleep(0.3)
        await asyncio.to_thread(tgt.kill9)
        await until(engine, lambda s: s.volumes[0].phase == "queueing")
        await asyncio.to_thread(tgt.restart)
        await until(engine, lambda s: s.volumes[0].phase == "online", 40)
        assert running()
    assert (await engine.observe()).volumes[0].counters["errors"] == 0


async def test_target_that_stands_still_for_a_while(engine: EngineClient, tgt: Tgt, tmp_path: Path) -> None:
    tgt.add_target(TARGET)
    tgt.add_unit(TARGET, SIZE)
    volume = await two_paths(engine, tgt, Policy.ROUND_ROBIN)
    async with fio(volume, tmp_path) as running:
        await asyncio.sleep(0.3)
        tgt.pause()
        await asyncio.sleep(4)
        tgt.resume()
        await until(engine, lambda s: s.volumes[0].phase == "online", 40)
        assert running()
    assert (await engine.observe()).volumes[0].counters["errors"] == 0


async def test_same_default_identity_at_two_targets_is_not_one_volume(engine: EngineClient, tgt: Tgt) -> None:
    """tgt's default identity is the same on every host: units merge only within one target."""
    other = "iqn.2026-11.com.example:other"
    second = Tgt(("127.0.0.1:0",))
    try:
        for target, name in ((tgt, TARGET), (second, other)):
            target.add_target(name)
            target.add_unit(name, SIZE)
        for index, (name, portal) in enumerate(((TARGET, tgt.portals[0]), (other, second.portals[0]))):
            await engine.open_session(
                SessionSpec(key=session_key(name, portal), target=name, portal=portal, isid=isid(index))
            )
        state = await until(engine, lambda s: len(disks(s)) == 2)
        assert disks(state)[0] == disks(state)[1]
        assert all(u.identity_is_weak for s in state.sessions for u in s.units if u.device_type == 0)
        volume = await engine.publish(
            VolumeSpec(name="v", identity=disks(state)[0], targets=(TARGET, other), policy=Policy.ROUND_ROBIN)
        )
        assert sorted(p.phase for p in volume.paths) == ["active", "identity_mismatch"]
    finally:
        second.close()
