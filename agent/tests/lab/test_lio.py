# SPDX-License-Identifier: GPL-3.0-or-later
"""The initiator against LIO, one session at a time: login, CHAP, digests, data, reinstatement, task management."""

from __future__ import annotations

import asyncio
import re

import pytest
from tests.lab.conftest import CACHED, FORWARD, HOST, MUTUAL, ONE_WAY, PAIR, PLAIN, RECOVERING, REVERSE
from tests.lab.lio import GUEST_ADDRESS, Lio
from tests.net.nexus_rig import parameters, run, running
from tests.net.test_real_targets import write_and_read
from tests.proxy.proxy import PduProxy

from blockfleet.iscsi.chap import ChapAlgorithm, ChapCredentials
from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.model.secret import Secret
from blockfleet.net.discovery_session import send_targets
from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

LENGTHS = (512, 8192, 65536, 66048, 1 << 20)


def is_in(nexus: Nexus) -> bool:
    return nexus.phase is NexusPhase.LOGGED_IN


@pytest.mark.parametrize("data", ["none", "crc32c"], ids="data {}".format)
@pytest.mark.parametrize("header", ["none", "crc32c"], ids="header {}".format)
async def test_writes_and_reads_with_each_pair_of_digests(lio: Lio, header: str, data: str) -> None:
    made = parameters(lio.portals[0], target=PLAIN, header_digest=(header,), data_digest=(data,))
    async with running(made) as (nexus, listener):
        await listener.until(lambda: is_in(nexus))
        assert nexus.negotiated is not None
        agreed = (nexus.negotiated.header_digest, nexus.negotiated.data_digest)
        assert agreed == (header == "crc32c", data == "crc32c")
        for length in LENGTHS:
            await write_and_read(nexus, 0, length)
        assert listener.losses == []
        shown = await asyncio.to_thread(lio.session, PLAIN, HOST)
        assert "TARG_SESS_STATE_LOGGED_IN" in shown, shown


@pytest.mark.parametrize("target", [ONE_WAY, MUTUAL])
@pytest.mark.parametrize("algorithm", list(ChapAlgorithm), ids=lambda a: a.name)
async def test_chap_with_each_algorithm(lio: Lio, target: str, algorithm: ChapAlgorithm) -> None:
    mutual = (REVERSE.user, Secret(REVERSE.secret)) if target == MUTUAL else (None, None)
    credentials = ChapCredentials(FORWARD.user, Secret(FORWARD.secret), *mutual, algorithms=(algorithm,))
    async with running(parameters(lio.portals[0], target=target, credentials=credentials)) as (nexus, listener):
        await listener.until(lambda: is_in(nexus) or bool(listener.failures))
        assert is_in(nexus), listener.failures
        assert nexus.result is not None
        assert (nexus.result.chap_algorithm, nexus.result.mutual) == (algorithm, target == MUTUAL)
        await write_and_read(nexus, 0, 8192)


async def test_chap_uses_the_strongest_algorithm_that_lio_has(lio: Lio) -> None:
    credentials = ChapCredentials(FORWARD.user, Secret(FORWARD.secret))
    made = parameters(lio.portals[0], target=ONE_WAY, credentials=credentials)
    async with running(made) as (nexus, listener):
        await listener.until(lambda: is_in(nexus))
        assert nexus.result is not None
        assert nexus.result.chap_algorithm == 8, "SHA3-256 (IANA)"


@pytest.mark.parametrize(
    ("target", "name", "credentials", "code"),
    [
        pytest.param(
            ONE_WAY,
            HOST,
            ChapCredentials(FORWARD.user, Secret("not the secret")),
            Isdsc.AUTHENTICATION_FAILURE,
            id="wrong secret",
        ),
        pytest.param(
            MUTUAL,
            HOST,
            ChapCredentials(FORWARD.user, Secret(FORWARD.secret), REVERSE.user, Secret("not that one 12")),
            Isdsc.AUTHENTICATION_FAILURE,
            id="wrong mutual secret",
        ),
        pytest.param(PLAIN, f"{HOST}-unknown", None, Isdsc.AUTHORIZATION_FAILURE, id="unknown initiator"),
    ],
)
async def test_login_that_does_not_agree_fails_closed(
    lio: Lio, target: str, name: str, credentials: ChapCredentials | None, code: Isdsc
) -> None:
    made = parameters(lio.portals[0], target=target, credentials=credentials, initiator_name=name)
    async with running(made) as (nexus, listener):
        await listener.until(lambda: bool(listener.failures))
        error, will_retry = listener.failures[0]
        assert (nexus.phase, will_retry, error.code) == (NexusPhase.FAILED, False, code), error


async def test_without_credentials_lio_hangs_up_and_says_nothing(lio: Lio) -> None:
    """It answers AuthMethod=None with the end of the connection where it wants CHAP: nobody can tell the cause."""
    async with running(parameters(lio.portals[0], target=ONE_WAY)) as (_, listener):
        await listener.until(lambda: len(listener.failures) > 1)
        assert (listener.logins, [will_retry for _, will_retry in listener.failures]) == (0, [True, True])
        assert "closed by the target" in str(listener.failures[0][0])


async def test_discovery_shows_every_target_at_the_portals_of_the_guest(lio: Lio) -> None:
    found = await send_targets(
        HOST, Portal.parse(lio.portals[1]), None, isid=bytes.fromhex("800000000002"), timeout=10
    )
    portals = {record.name: sorted(str(portal) for portal, _ in record.portals) for record in found}
    assert portals[PAIR] == [f"{GUEST_ADDRESS}:3260", f"{GUEST_ADDRESS}:3261"]
    assert portals[CACHED] == [f"{GUEST_ADDRESS}:3260"]


async def test_target_that_has_recovery_level_2_and_4_connections_meets_an_initiator_of_level_0(lio: Lio) -> None:
    """RFC 3720 12.2, 12.20: both results are the lesser one."""
    wanted = parameters(lio.portals[0], target=RECOVERING, error_recovery_level=0)
    async with running(wanted) as (nexus, listener):
        await listener.until(lambda: is_in(nexus))
        assert nexus.negotiated is not None
        assert nexus.negotiated.error_recovery_level == 0
        assert nexus.negotiated.max_connections == 1
        await write_and_read(nexus, 0, 65536)


async def test_target_that_has_recovery_level_2_is_offered_level_1_where_none_is_declared(lio: Lio) -> None:
    """Its kernel does not survive the end of a reassigned task."""
    async with running(parameters(lio.portals[0], target=RECOVERING)) as (nexus, listener):
        await listener.until(lambda: is_in(nexus))
        assert nexus.result is not None
        assert nexus.result.target_alias == "LIO Target"
        assert nexus.result.negotiated.error_recovery_level == 1
        await write_and_read(nexus, 0, 65536)


async def test_reset_connection_is_reinstated_with_the_same_isid_and_a_new_tsih(lio: Lio) -> None:
    """RFC 3720 5.3.5: the target has one session of this initiator before and after."""
    async with (
        PduProxy(lio.portals[0]) as proxy,
        running(parameters(proxy.portal, target=PLAIN)) as (nexus, listener),
    ):
        await listener.until(lambda: listener.logins == 1)
        first = nexus.tsih
        await write_and_read(nexus, 0, 65536)
        proxy.reset_connections()
        await listener.until(lambda: listener.logins == 2)
        assert nexus.tsih not in {0, first}
        await write_and_read(nexus, 0, 65536)
        shown = await asyncio.to_thread(lio.session, PLAIN, HOST)
        assert len(re.findall("LIO Session ID", shown)) == 1, shown


async def test_sessions_dropped_by_the_target_come_back(lio: Lio) -> None:
    async with running(parameters(lio.portals[0], target=PLAIN)) as (nexus, listener):
        await listener.until(lambda: listener.logins == 1)
        await asyncio.to_thread(lio.drop_sessions, PLAIN)
        await listener.until(lambda: listener.logins == 2)
        await write_and_read(nexus, 0, 65536)


async def test_lun_reset_is_answered_and_told_to_the_initiator(lio: Lio) -> None:
    async with running(parameters(lio.portals[0], target=PLAIN)) as (nexus, listener):
        await listener.until(lambda: is_in(nexus))
        await write_and_read(nexus, 0, 512)
        assert await nexus.lun_reset(0) is TaskResponse.FUNCTION_COMPLETE
        # LIO says 1, "task does not exist", in place of 2.
        assert await nexus.lun_reset(9 << 48) is not TaskResponse.FUNCTION_COMPLETE
        await write_and_read(nexus, 0, 8192)
        assert listener.losses == []


async def test_volatile_write_cache_is_flushed(lio: Lio) -> None:
    async with running(parameters(lio.portals[0], target=CACHED)) as (nexus, listener):
        await listener.until(lambda: is_in(nexus))
        await write_and_read(nexus, 0, 8192)
        caching = await run(nexus, bytes([0x1A, 0, 0x08, 0, 255, 0]), read=255)
        assert (caching.outcome, caching.status) == (Outcome.COMPLETE, 0)
        assert caching.data_in is not None
        assert caching.data_in[4 + caching.data_in[3] + 2] & 0x04, "WCE (SBC-3 6.5.5)"
        flushed = await run(nexus, bytes([0x35]))
        assert (flushed.outcome, flushed.status) == (Outcome.COMPLETE, 0)
