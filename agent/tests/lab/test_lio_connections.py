# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections a session against LIO: every level, policy and digest; connections come, go and are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.lab.conftest import VARIED
from tests.lab.lio import Lio
from tests.net.load import Load
from tests.net.nexus_rig import Listener, parameters, run, running, until

from blockfleet.balance.policy import LoadBalancePolicy
from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionSpec
from blockfleet.net.nexus import Nexus

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

Policies = LoadBalancePolicy
FOUR = 4
ALONE = {Policies.FAIL_OVER_ONLY: {0}, Policies.WEIGHTED_PATH: {2}, Policies.ROUND_ROBIN_WITH_SUBSET: {1, 3}}
"""The connections that carry commands, of four with the weights and standby that the tests give."""


def logged_in(nexus: Nexus) -> int:
    return [status.phase.value for status in nexus.connections].count("logged_in")


@asynccontextmanager
async def session(
    lio: Lio, level: int, digest: str = "none", count: int = FOUR, **changes: object
) -> AsyncIterator[tuple[Nexus, Listener]]:
    """A session of connections to both portals in turn, all of them logged in."""
    await asyncio.to_thread(lio.configure, VARIED, error_recovery_level=level, max_connections=FOUR)
    portals = [Portal.parse(lio.portals[number % 2]) for number in range(count)]
    options: dict[str, object] = {
        "target": VARIED,
        "error_recovery_level": level,
        "header_digest": (digest,),
        "data_digest": (digest,),
        "connections": tuple(ConnectionSpec(portal) for portal in portals[1:]),
    }
    async with running(parameters(str(portals[0]), **options | changes)) as (nexus, listener):
        await until(lambda: logged_in(nexus) == count)
        assert nexus.negotiated is not None
        agreed = nexus.negotiated
        assert (agreed.error_recovery_level, agreed.max_connections) == (level, FOUR)
        assert (agreed.header_digest, agreed.data_digest) == (digest == "crc32c", digest == "crc32c")
        while (await run(nexus, b"\0")).status:
            pass
        yield nexus, listener


def use(nexus: Nexus, policy: Policies) -> None:
    """Change the policy, with weights and standby that tell the policies apart."""
    subset = policy is Policies.ROUND_ROBIN_WITH_SUBSET
    roles = [(weight, subset and place % 2 == 0) for place, weight in enumerate((30, 20, 10, 40))]
    further = [
        ConnectionSpec(spec.portal, weight, standby)
        for spec, (weight, standby) in zip(nexus.parameters.connections, roles[1:], strict=True)
    ]
    nexus.set_parameters(
        replace(
            nexus.parameters,
            connection_policy=policy,
            weight=roles[0][0],
            standby=roles[0][1],
            connections=tuple(further),
        )
    )


@pytest.mark.parametrize("digest", ["none", "crc32c"], ids="digests {}".format)
@pytest.mark.parametrize("level", [0, 1, 2], ids="level {}".format)
async def test_each_policy_over_four_connections_is_changed_under_load(lio: Lio, level: int, digest: str) -> None:
    async with session(lio, level, digest) as (nexus, listener):
        tsih = nexus.tsih
        async with Load(nexus, 8) as load:
            for policy in Policies:
                use(nexus, policy)
                # What went out under the policy before ends first.
                await load.done(load.count + 16)
                before = [status.commands for status in nexus.connections]
                await load.done(load.count + 24)
                counts = [status.commands - old for status, old in zip(nexus.connections, before, strict=True)]
                carrying = {place for place, count in enumerate(counts) if count}
                assert carrying == ALONE.get(policy, {0, 1, 2, 3}), (policy, counts)
        assert (nexus.tsih, listener.logins, listener.losses) == (tsih, 1, [])


@pytest.mark.parametrize("level", [0, 2], ids="level {}".format)
async def test_connections_come_and_go_under_load(lio: Lio, level: int) -> None:
    async with session(lio, level, count=2) as (nexus, listener):
        tsih = nexus.tsih
        others = [ConnectionSpec(Portal.parse(lio.portals[number % 2])) for number in (1, 0, 1)]
        async with Load(nexus, 8) as load:
            for count in (3, 1, 2, 0, 3):
                nexus.set_parameters(replace(nexus.parameters, connections=tuple(others[:count])))
                await until(lambda n=count: logged_in(nexus) == len(nexus.connections) == n + 1)  # type: ignore[misc]
                await load.done(load.count + 20)
            nexus.remove_connection(nexus.connections[2].cid or 0)
            await until(lambda: logged_in(nexus) == len(nexus.connections) == FOUR - 1)
            await load.done(load.count + 20)
        assert (nexus.tsih, listener.logins, listener.losses) == (tsih, 1, [])


async def test_lio_grants_four_connections_and_no_fifth(lio: Lio) -> None:
    spec = ConnectionSpec(Portal.parse(lio.portals[1]))
    async with session(lio, 0) as (nexus, listener):
        nexus.set_parameters(replace(nexus.parameters, connections=(*nexus.parameters.connections, spec)))
        await until(lambda: bool(nexus.connections[-1].error))
        assert "allows 4" in nexus.connections[-1].error
        assert logged_in(nexus) == FOUR
        assert listener.losses == []
