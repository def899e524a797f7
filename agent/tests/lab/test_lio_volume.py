# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole engine against LIO: two portals are one volume of two paths, and paths are lost under verified load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.engine.rig import HOST as ENGINE_HOST
from tests.engine.rig import QUICK, SIZE, fio, isid, until
from tests.lab.conftest import HOST, PAIR
from tests.lab.lio import Lio
from tests.proxy.proxy import Action, PduProxy, Rule

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import InitiatorSpec, SessionSpec, VolumeSpec, VolumeState, session_key
from blockfleet.model.desired import LoginOptions, Policy

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

DIGESTS = LoginOptions.model_validate(QUICK.model_dump() | {"header_digest": ["crc32c"], "data_digest": ["crc32c"]})


@pytest.fixture
async def engine(engine_client: EngineClient) -> EngineClient:
    assert ENGINE_HOST == HOST
    await engine_client.configure(InitiatorSpec(name=HOST))
    return engine_client


async def login(engine: EngineClient, target: str, portal: str, index: int, options: LoginOptions = QUICK) -> None:
    """Open a session and wait until its unit is known."""
    key = session_key(target, portal)
    await engine.open_session(SessionSpec(key=key, target=target, portal=portal, isid=isid(index), options=options))
    await until(engine, lambda state: any(s.key == key and s.units for s in state.sessions))


async def published(engine: EngineClient, *targets: str, policy: Policy) -> VolumeState:
    """Serve the disk that all sessions show."""
    units = [unit for session in (await engine.observe()).sessions for unit in session.units]
    (identity,) = {unit.identity for unit in units}
    assert not any(unit.identity_is_weak for unit in units)
    return await engine.publish(VolumeSpec(name="v", identity=identity, targets=targets, policy=policy))


@pytest.mark.parametrize("policy", [Policy.FAIL_OVER_ONLY, Policy.ROUND_ROBIN])
async def test_each_path_is_reset_in_turn_under_verified_load(
    lio: Lio, engine: EngineClient, tmp_path: Path, policy: Policy
) -> None:
    async with PduProxy(lio.portals[0]) as first, PduProxy(lio.portals[1]) as second:
        for index, proxy in enumerate((first, second)):
            await login(engine, PAIR, proxy.portal, index)
        volume = await published(engine, PAIR, policy=policy)
        assert (volume.size, sorted(path.lun for path in volume.paths)) == (SIZE, [3, 3])
        async with fio(volume, tmp_path, seconds=8) as running:
            for round_, proxy in enumerate((first, second)):
                await asyncio.sleep(0.3)
                proxy.reset_connections()
                await until(
                    engine,
                    lambda s, n=round_: (
                        s.volumes[0].phase == "online" and sum(x.logins for x in s.sessions) == n + 3
                    ),
                )
            assert running()
        counters = (await engine.observe()).volumes[0].counters
        assert (counters["errors"], counters["locked_ranges"]) == (0, 0)


async def test_one_pdu_in_300_corrupted_under_verified_load(lio: Lio, engine: EngineClient, tmp_path: Path) -> None:
    """Recovery level 0: each error costs the session, and none costs the application anything but time."""
    rules = [Rule(action, one_in=600) for action in (Action.CORRUPT_HEADER, Action.CORRUPT_DATA)]
    async with PduProxy(lio.portals[0], seed=3) as first, PduProxy(lio.portals[1], seed=5) as second:
        for index, proxy in enumerate((first, second)):
            await login(engine, PAIR, proxy.portal, index, DIGESTS)
        volume = await published(engine, PAIR, policy=Policy.ROUND_ROBIN)
        first.rules = [*rules]
        second.rules = [*rules]
        async with fio(volume, tmp_path, seconds=12):
            pass
        first.rules = []
        second.rules = []
        state = await until(engine, lambda s: s.volumes[0].phase == "online" and len(s.volumes[0].paths) == 2, 40)
        assert sum(proxy.count(rule.action) for proxy in (first, second) for rule in rules) >= 2
        assert sum(session.logins for session in state.sessions) > 2
        assert state.volumes[0].counters["errors"] == 0
