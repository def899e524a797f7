# SPDX-License-Identifier: GPL-3.0-or-later
"""Who closes the TCP connections after a logout: RFC 3720 10.14."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from tests.net.connection_rig import LOGOUT, logged_in, received
from tests.net.nexus_rig import config, parameters, running, until

from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionSpec
from blockfleet.net.nexus import NexusPhase
from blockfleet.net.transport import CLOSING_PATIENCE
from blockfleet_testtarget.target import TestTarget

CLOSE_SESSION, CLOSE_CONNECTION = 0, 1
"""Reasons of a Logout Request (RFC 3720 10.14.1)."""
FOUR = {"MaxConnections": "4"}
HOLD = 0.1
"""Seconds between the target's FIN and what the initiator sees of it."""


class Relay:
    """Carries bytes to a portal and back; the target's FINs arrive late or never; the order is noted."""

    def __init__(self, host: str, port: int, fin: bool) -> None:
        self.order: list[tuple[int, str]] = []
        self._count = 0
        self._upstream = (host, port)
        self._fin = fin

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self._count
        self._count += 1
        upstream_reader, upstream = await asyncio.open_connection(*self._upstream)
        await asyncio.gather(self._forth(number, reader, upstream), self._back(number, upstream_reader, writer))
        writer.close()
        upstream.close()

    async def _forth(self, number: int, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            upstream.write(data)
        self.order.append((number, "initiator"))

    async def _back(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        await asyncio.sleep(HOLD)
        self.order.append((number, "target"))
        if self._fin:
            writer.write_eof()


@asynccontextmanager
async def relayed(target: TestTarget, fin: bool = True) -> AsyncIterator[tuple[Relay, str]]:
    portal = target.portals[0]
    relay = Relay(portal.host, portal.port, fin)
    server = await asyncio.start_server(relay.serve, "127.0.0.1")
    async with server:
        yield relay, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def log_in_and_out(target: TestTarget, portal: str) -> list[int]:
    """Have a session of three connections; return the reasons of the Logout Requests."""
    further = (ConnectionSpec(Portal.parse(portal)),) * 2
    async with running(parameters(portal, connections=further)) as (nexus, _):
        await until(lambda: logged_in(nexus) == 3)
    return [pdu.flags & 0x7F for pdu in received(target, LOGOUT)]


async def test_every_connection_of_a_session_waits_for_the_targets_fin() -> None:
    async with TestTarget(config(keys=FOUR)) as target, relayed(target) as (relay, portal):
        assert await log_in_and_out(target, portal) == [CLOSE_SESSION]
        await until(lambda: len(relay.order) == 6)
        assert sorted(relay.order[:3]) == [(number, "target") for number in range(3)]
        assert sorted(relay.order[3:]) == [(number, "initiator") for number in range(3)]


async def test_lio_has_the_connections_one_by_one_the_last_with_the_session() -> None:
    made = config(keys=FOUR)
    made = replace(made, targets=[replace(made.targets[0], alias="LIO Target")])
    async with TestTarget(made) as target, relayed(target) as (relay, portal):
        assert await log_in_and_out(target, portal) == [CLOSE_CONNECTION, CLOSE_CONNECTION, CLOSE_SESSION]
        await until(lambda: len(relay.order) == 6)
        assert {side for _, side in relay.order[2:4]} == {"initiator"}
        assert relay.order[4:] == [(0, "target"), (0, "initiator")]


async def test_lio_has_its_session_closed_after_a_connection_that_was_on_its_way_out() -> None:
    made = config(keys=FOUR)
    made = replace(made, targets=[replace(made.targets[0], alias="LIO Target")])
    async with TestTarget(made) as target, relayed(target) as (relay, portal):
        wanted = parameters(portal, connections=(ConnectionSpec(Portal.parse(portal)),))
        async with running(wanted) as (nexus, _):
            await until(lambda: logged_in(nexus) == 2)
            nexus.set_parameters(replace(wanted, connections=()))
            await until(lambda: received(target, LOGOUT))
            await until(lambda: len(nexus.connections) == 1)
            stopping = asyncio.ensure_future(nexus.stop())
            await until(lambda: len(received(target, LOGOUT)) == 2)
            assert (1, "target") in relay.order
            await stopping


async def test_a_target_that_does_not_close_is_waited_for_no_longer_than_a_second() -> None:
    async with TestTarget(config()) as target, relayed(target, fin=False) as (relay, portal):
        loop = asyncio.get_running_loop()
        async with running(parameters(portal)) as (nexus, _):
            await until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
            asked = loop.time()
        waited = loop.time() - asked
        await until(lambda: (0, "initiator") in relay.order)
        assert CLOSING_PATIENCE <= waited < CLOSING_PATIENCE + 2
