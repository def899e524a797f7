# SPDX-License-Identifier: GPL-3.0-or-later
"""SendTargets against the embedded target, and against portals that are none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from blockfleet.discovery.found import FoundPortal
from blockfleet.discovery.sendtargets import discover
from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.model.secret import Secret
from blockfleet_testtarget.chap import Chap
from blockfleet_testtarget.config import Config, PortalConfig, TargetConfig
from blockfleet_testtarget.target import TestTarget

HOST = "iqn.2026-11.com.example:host"
ISID = bytes.fromhex("80d15c000001")
A, B = "iqn.2026-11.com.example:a", "iqn.2026-11.com.example:b"


async def ask(
    portal: Portal, credentials: ChapCredentials | None = None, timeout: float = 10.0
) -> tuple[FoundPortal, ...]:
    return await discover(HOST, portal, credentials, isid=ISID, timeout=timeout)


def own(target: TestTarget, index: int = 0) -> Portal:
    return Portal.parse(target.portals[index].address)


async def test_all_targets_with_all_their_portals_ipv4_and_ipv6() -> None:
    portals = [PortalConfig("127.0.0.1", group=3), PortalConfig("::1", group=4)]
    targets = [TargetConfig(B, portal_groups=[3, 4]), TargetConfig(A, portal_groups=[4])]
    async with TestTarget(Config(portals=portals, targets=targets)) as target:
        v4, v6 = own(target, 0), own(target, 1)
        expected = (FoundPortal(A, v6, 4), FoundPortal(B, v4, 3), FoundPortal(B, v6, 4))
        assert await ask(v4) == expected
        assert await ask(v6) == expected
        assert list(target.violations) == []


async def test_host_name_is_resolved() -> None:
    async with TestTarget(Config(targets=[TargetConfig(A)])) as target:
        found = await ask(Portal("localhost", own(target).port))
        assert [entry.target for entry in found] == [A]


async def test_discovery_leaves_no_session_behind() -> None:
    async with TestTarget(Config(targets=[TargetConfig(A)])) as target:
        await ask(own(target))
        async with asyncio.timeout(10):
            while target.connections:
                await asyncio.sleep(0.01)
        assert target.sessions == []


async def test_answer_over_many_text_responses() -> None:
    targets = [TargetConfig(f"iqn.2026-11.com.example:disk{n:04}") for n in range(500)]
    async with TestTarget(Config(targets=targets, text_segment=512)) as target:
        found = await ask(own(target))
        assert [entry.target for entry in found] == [t.name for t in targets]


async def test_portal_without_targets_shows_none() -> None:
    async with TestTarget(Config(targets=[])) as target:
        assert await ask(own(target)) == ()


def credentials(secret: str) -> ChapCredentials:
    return ChapCredentials(
        user="discoverer",
        secret=Secret(secret),
        mutual_user="service",
        mutual_secret=Secret("canary-service-secret"),
    )


CHAP = Chap(
    user="discoverer",
    secret="canary-discovery-1",
    mutual_user="service",
    mutual_secret="canary-service-secret",
)


async def test_discovery_has_credentials_of_its_own() -> None:
    target_chap = Chap(user="other", secret="canary-of-the-target")
    config = Config(targets=[TargetConfig(A, chap=target_chap)], discovery_chap=CHAP)
    async with TestTarget(config) as target:
        assert [e.target for e in await ask(own(target), credentials("canary-discovery-1"))] == [A]


@pytest.mark.parametrize("given", [None, "canary-wrong-secret"], ids=["none", "wrong-secret"])
async def test_refused_credentials_are_an_authentication_failure_without_the_secret(given: str | None) -> None:
    config = Config(targets=[TargetConfig(A)], discovery_chap=CHAP)
    async with TestTarget(config) as target:
        with pytest.raises(BlockfleetError) as caught:
            await ask(own(target), credentials(given) if given else None)
        assert caught.value.code is Isdsc.AUTHENTICATION_FAILURE
        assert str(own(target)) in str(caught.value)
        assert "canary" not in str(caught.value)


# --- portals that are none --------------------------------------------------------------------------------


@asynccontextmanager
async def listener(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> AsyncIterator[Portal]:
    tasks: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        with contextlib.suppress(ConnectionError):
            serve(reader, writer)
            while await reader.read(65536):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    yield Portal("127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)


async def failure(portal: Portal, timeout: float = 10.0) -> BlockfleetError:
    """Ask and return the error, which must come in the time that was given."""
    with pytest.raises(BlockfleetError) as caught:
        await asyncio.wait_for(ask(portal, timeout=timeout), timeout + 5)
    assert str(portal) in str(caught.value)
    return caught.value


async def test_refused_connection_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = await failure(Portal("127.0.0.1", unused.getsockname()[1]))
    assert error.code is Isdsc.CONNECTION_FAILED
    assert "connection refused" in str(error)


async def test_portal_that_drops_packets_costs_the_timeout_and_no_more() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):  # what the backlog does not take is dropped, as behind a firewall
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        error = await failure(Portal("127.0.0.1", full.getsockname()[1]), timeout=0.3)
        for filler in fillers:
            filler.close()
    assert error.code is Isdsc.CONNECTION_FAILED
    assert "no answer within 0.3 s" in str(error)


async def test_portal_that_never_answers_the_login_costs_the_timeout_and_no_more() -> None:
    async with listener(lambda _reader, _writer: None) as portal:
        error = await failure(portal, timeout=0.3)
    assert error.code is Isdsc.CONNECTION_FAILED
    assert "no answer within 0.3 s" in str(error)


BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"


@pytest.mark.parametrize(
    "garbage",
    [BANNER * 64, b"HTTP/1.1 400 Bad Request\r\n" * 64, bytes(2048), b"\xff" * 2048],
    ids=["ssh", "http", "zeroes", "ones"],
)
async def test_portal_that_answers_garbage_is_no_target(garbage: bytes) -> None:
    async with listener(lambda _reader, writer: writer.write(garbage)) as portal:
        error = await failure(portal)
    assert error.code is Isdsc.PROTOCOL_ERROR


async def test_banner_too_short_to_be_a_pdu_costs_the_timeout_and_no_more() -> None:
    async with listener(lambda _reader, writer: writer.write(BANNER)) as portal:
        error = await failure(portal, timeout=0.3)
    assert "no answer within 0.3 s" in str(error)


async def test_portal_that_closes_at_once() -> None:
    async with listener(lambda _reader, writer: writer.close()) as portal:
        error = await failure(portal)
    assert error.code is Isdsc.CONNECTION_FAILED


async def test_host_name_that_does_not_exist_is_named() -> None:
    error = await failure(Portal("no-such-host.invalid"))
    assert error.code is Isdsc.DNS_NAME_UNRESOLVED
    assert "no-such-host.invalid" in str(error)
