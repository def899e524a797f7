# SPDX-License-Identifier: GPL-3.0-or-later
"""A nexus against the test target: logins, losses, reinstatement, refusals, and portals that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.net.nexus_rig import config, parameters, run, running

from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.model.secret import Secret
from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome
from blockfleet_testtarget.chap import Chap
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.target import TestTarget

TEST_UNIT_READY = b"\0"
READ_8_BLOCKS = bytes.fromhex("28000000000000000800")
WRITE_8_BLOCKS = bytes.fromhex("2a000000000000000800")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[Portal]:
    """A TCP server that is no iSCSI target."""
    opened = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Portal("127.0.0.1", opened.sockets[0].getsockname()[1])
    finally:
        opened.close()
        await opened.wait_closed()


async def good(nexus: Nexus, attentions: int = 3) -> None:
    """Use up unit attentions until TEST UNIT READY is GOOD."""
    for _ in range(attentions):
        if (await run(nexus, TEST_UNIT_READY)).status == 0:
            return
    raise AssertionError("the unit does not become ready")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("digest", ["none", "crc32c"])
async def test_write_and_read_back(host: str, digest: str) -> None:
    async with TestTarget(config(host)) as target:
        made = parameters(target.portals[0].address, header_digest=(digest,), data_digest=(digest,))
        async with running(made) as (nexus, listener):
            await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
            await good(nexus)
            data = bytes(range(256)) * 16
            written = await run(nexus, WRITE_8_BLOCKS, write=data)
            read = await run(nexus, READ_8_BLOCKS, read=4096)
            assert (written.outcome, written.status) == (Outcome.COMPLETE, 0)
            assert bytes(read.data_in or b"") == data
            assert nexus.negotiated is not None
            assert nexus.negotiated.header_digest is nexus.negotiated.data_digest is (digest == "crc32c")
        assert not target.violations


async def test_a_host_name_is_tried_at_every_address() -> None:
    async with TestTarget(config("127.0.0.1")) as target:
        # localhost is ::1 first where the resolver has both; nobody listens there.
        made = parameters(f"localhost:{target.portals[0].port}")
        async with running(made) as (nexus, listener):
            await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)


async def test_err0_01_a_reset_connection_comes_back_with_the_same_isid() -> None:
    async with TestTarget(config(keys={"DefaultTime2Wait": "0"})) as target:
        async with running(parameters(target.portals[0].address)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            await good(nexus)
            first_tsih = nexus.tsih
            target.connections[0].reset("test")
            await listener.until(lambda: listener.logins == 2)
            logins = [entry.pdu for entry in target.received if entry.pdu.opcode == 0x03]
            assert {pdu.isid for pdu in logins} == {bytes.fromhex("80abcdef0001")}
            assert {pdu.tsih for pdu in logins} == {0}
            assert len(target.sessions) == 1
            assert nexus.tsih != first_tsih
            assert len(listener.losses) == 1
            await good(nexus)
        assert not target.violations


async def test_err0_03_time2wait_passes_before_the_next_attempt() -> None:
    async with TestTarget(config(keys={"DefaultTime2Wait": "1"})) as target:
        async with running(parameters(target.portals[0].address)) as (_, listener):
            await listener.until(lambda: listener.logins == 1)
            loop = asyncio.get_running_loop()
            lost = loop.time()
            target.connections[0].reset("test")
            await listener.until(lambda: listener.logins == 2)
            assert loop.time() - lost >= 1.0


async def test_commands_in_flight_end_unknown_when_the_connection_is_lost() -> None:
    async with TestTarget(config(keys={"DefaultTime2Wait": "0"})) as target:
        async with running(parameters(target.portals[0].address)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            await good(nexus)
            target.on_pdu(lambda _connection, pdu: [] if pdu.opcode == 0x01 else None)
            pending = asyncio.ensure_future(run(nexus, WRITE_8_BLOCKS, write=bytes(4096)))
            await asyncio.sleep(0)
            target.connections[0].reset("test")
            assert (await pending).outcome is Outcome.UNKNOWN
            assert nexus.phase is NexusPhase.RECOVERING
            refused = await run(nexus, TEST_UNIT_READY)
            assert refused.outcome is Outcome.REFUSED


async def test_tmf_lun_reset_is_answered() -> None:
    async with TestTarget(config()) as target:
        async with running(parameters(target.portals[0].address)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            assert await nexus.lun_reset(0) is TaskResponse.FUNCTION_COMPLETE
            assert await nexus.lun_reset(9 << 48) is TaskResponse.LUN_DOES_NOT_EXIST
            assert await nexus.target_warm_reset() is TaskResponse.FUNCTION_COMPLETE


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("algorithm", [5, 6, 7, 8])
async def test_sec_11_chap_with_each_algorithm(algorithm: int, mutual: bool) -> None:
    chap = Chap(
        user="host",
        secret="a secret of 12+",
        algorithms=(str(algorithm),),
        **({"mutual_user": "array", "mutual_secret": "another of 12+"} if mutual else {}),
    )
    made = config()
    made = replace(made, targets=[replace(made.targets[0], chap=chap)])
    credentials = ChapCredentials(
        "host",
        Secret("a secret of 12+"),
        "array" if mutual else None,
        Secret("another of 12+") if mutual else None,
    )
    async with TestTarget(made) as target:
        async with running(parameters(target.portals[0].address, credentials=credentials)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            assert nexus.result is not None
            assert (nexus.result.chap_algorithm, nexus.result.mutual) == (algorithm, mutual)


async def test_sec_23_a_wrong_secret_is_tried_once_and_named() -> None:
    made = config()
    made = replace(made, targets=[replace(made.targets[0], chap=Chap(user="host", secret="the right secret"))])
    credentials = ChapCredentials("host", Secret("the wrong secret"))
    async with TestTarget(made) as target:
        async with running(parameters(target.portals[0].address, credentials=credentials)) as (nexus, listener):
            await listener.until(lambda: bool(listener.failures))
            ((error, will_retry),) = listener.failures
            assert error.code is Isdsc.AUTHENTICATION_FAILURE
            assert "authentication failed" in str(error)
            assert "(0201)" in str(error)
            assert "wrong" not in str(error)
            assert not will_retry
            assert nexus.phase is NexusPhase.FAILED
            # The next attempt is half a minute away: any storm would show at once.
            for _ in range(50):
                await asyncio.sleep(0)
            assert target.connections_seen == 1
            nexus.set_parameters(
                replace(nexus.parameters, credentials=ChapCredentials("host", Secret("the right secret")))
            )
            await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)


async def test_lgn_32_an_unknown_target_is_named() -> None:
    async with TestTarget(config()) as target:
        made = parameters(target.portals[0].address, target="iqn.2026-11.com.example:other")
        async with running(made) as (nexus, listener):
            await listener.until(lambda: bool(listener.failures))
            assert listener.failures[0][0].code is Isdsc.NOT_FOUND
            assert nexus.phase is NexusPhase.FAILED


async def test_a_portal_where_nobody_listens_is_refused_and_tried_again() -> None:
    async with server(_never) as free:
        portal = free
    async with running(parameters(str(portal))) as (nexus, listener):
        await listener.until(lambda: bool(listener.failures))
        error, will_retry = listener.failures[0]
        assert error.code is Isdsc.CONNECTION_FAILED
        assert "refused" in str(error)
        assert will_retry
        assert nexus.phase is NexusPhase.CONNECTING


async def _never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_lgn_44_a_target_that_never_answers_costs_the_login_timeout() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with server(mute) as portal, running(parameters(str(portal), login_timeout=0.3)) as (_, listener):
        begin = asyncio.get_running_loop().time()
        await listener.until(lambda: bool(listener.failures))
        assert 0.2 < asyncio.get_running_loop().time() - begin < 3
        assert listener.failures[0][0].code is Isdsc.CONNECTION_FAILED


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.0 400 Bad Request\r\n\r\n" + bytes(60), b"\xff" * 4096, b"SSH-2.0-x\r\n"]
)
async def test_a_portal_that_answers_garbage_is_no_target(garbage: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(48)
        writer.write(garbage)
        await writer.drain()
        writer.close()

    async with server(babble) as portal, running(parameters(str(portal), login_timeout=5)) as (_, listener):
        await listener.until(lambda: bool(listener.failures))
        assert listener.failures[0][0].code in (Isdsc.PROTOCOL_ERROR, Isdsc.CONNECTION_FAILED)


async def test_rob_02_a_dripping_target_ends_with_the_login_timer() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(48)
        try:
            for _ in range(1000):
                writer.write(b"\x23")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            writer.close()

    async with server(drip) as portal, running(parameters(str(portal), login_timeout=0.4)) as (_, listener):
        await listener.until(lambda: bool(listener.failures))
        assert "0.4 s" in str(listener.failures[0][0])


async def test_stop_logs_out() -> None:
    async with TestTarget(config()) as target:
        async with running(parameters(target.portals[0].address)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
        assert nexus.phase is NexusPhase.CLOSED
        assert [entry.pdu.opcode for entry in target.received][-1] == 0x06
        assert not target.sessions


async def test_relogin_uses_the_newest_parameters() -> None:
    async with TestTarget(config()) as target:
        async with running(parameters(target.portals[0].address)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            nexus.set_parameters(replace(nexus.parameters, header_digest=("crc32c",)))
            assert nexus.negotiated is not None
            assert not nexus.negotiated.header_digest
            await nexus.relogin()
            await listener.until(lambda: listener.logins == 2)
            assert nexus.negotiated.header_digest


async def test_ctl_09_a_logout_that_the_target_asks_for_comes_in_time_and_the_session_returns() -> None:
    async with TestTarget(config(keys={"DefaultTime2Wait": "0"})) as target:
        async with running(parameters(target.portals[0].address)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            target.arm(build_fault("async", {"event": 1, "parameter3": 5}))
            await listener.until(lambda: listener.logins == 2)
            assert listener.left == 1
            assert [entry.pdu.opcode for entry in target.received].count(0x06) == 1
            await good(nexus)


async def test_rob_garbage_that_announces_a_long_header_is_not_waited_for() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(48)
        writer.write(b"\x23\x87\0\0" + b"\xff" * 60)
        await reader.read()
        writer.close()

    async with server(babble) as portal, running(parameters(str(portal), login_timeout=9)) as (_, listener):
        begin = asyncio.get_running_loop().time()
        await listener.until(lambda: bool(listener.failures))
        assert asyncio.get_running_loop().time() - begin < 5
        assert listener.failures[0][0].code is Isdsc.PROTOCOL_ERROR
