# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections a session with istgt, which grants up to four at recovery level 0."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from tests.net.connection_rig import logged_in, ready, spread
from tests.net.load import Load
from tests.net.nexus_rig import parameters, running, until
from tests.peers.istgt import Istgt

from blockfleet.balance.policy import LoadBalancePolicy
from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionSpec

pytestmark = pytest.mark.peer

NAME = "iqn.2026-11.com.example:real"
GRANTED = 4


@pytest.fixture
def istgt() -> Iterator[Istgt]:
    with closing(Istgt()) as peer:
        peer.add_target(NAME, 32 << 20, digest="Header Data")
        yield peer


@pytest.mark.parametrize("count", [2, 3, 4])
async def test_mcs_01_istgt_takes_several_connections_and_spreads_verified_load(istgt: Istgt, count: int) -> None:
    await asyncio.to_thread(istgt.start)
    portal = Portal.parse(istgt.portals[0])
    made = parameters(str(portal), target=NAME, connections=(ConnectionSpec(portal),) * (count - 1))
    async with running(made) as (nexus, listener):
        await until(lambda: logged_in(nexus) == count)
        await ready(nexus)
        counts = await spread(nexus, 100)
        assert max(counts) - min(counts) <= 1
        assert (listener.logins, listener.losses) == (1, [])


async def test_mcs_09_istgt_sees_connections_come_under_load_and_go(istgt: Istgt) -> None:
    """They go without load: when a connection ends, istgt forgets commands of the session's others unanswered."""
    await asyncio.to_thread(istgt.start)
    portal = Portal.parse(istgt.portals[0])
    made = parameters(str(portal), target=NAME, connections=(ConnectionSpec(portal),))
    async with running(made) as (nexus, listener):

        async def have(count: int, policy: LoadBalancePolicy) -> None:
            further = (ConnectionSpec(portal),) * (count - 1)
            nexus.set_parameters(replace(nexus.parameters, connections=further, connection_policy=policy))
            await until(lambda: [one.phase.value for one in nexus.connections] == ["logged_in"] * count)

        await until(lambda: logged_in(nexus) == 2)
        await ready(nexus)
        async with Load(nexus, 6) as load:
            await have(GRANTED, LoadBalancePolicy.LEAST_QUEUE_DEPTH)
            await load.done(load.count + 40)
        await have(2, LoadBalancePolicy.ROUND_ROBIN)
        counts = await spread(nexus, 100)
        assert max(counts) - min(counts) <= 1
        assert (nexus.logins, listener.losses) == (1, [])
