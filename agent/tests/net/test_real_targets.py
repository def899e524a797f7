# SPDX-License-Identifier: GPL-3.0-or-later
"""The initiator against targets that somebody else wrote: tgt and istgt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.net.nexus_rig import parameters, run, running
from tests.peers.istgt import Istgt
from tests.peers.tgt import Account, Tgt

from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.model.secret import Secret
from blockfleet.net.discovery_session import send_targets
from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome, ScsiCommand

pytestmark = pytest.mark.peer

NAME = "iqn.2026-11.com.example:real"
HOST = Account("host", "a secret of 12+")
ARRAY = Account("array", "another of 12+")
PORTALS = ("127.0.0.1:0", "[::1]:0")
SIZE = 32 << 20


@pytest.fixture
def tgt() -> Iterator[Tgt]:
    with closing(Tgt(PORTALS)) as peer:
        yield peer


def credentials(*, mutual: bool, secret: str = HOST.secret) -> ChapCredentials:
    if not mutual:
        return ChapCredentials(HOST.user, Secret(secret))
    return ChapCredentials(HOST.user, Secret(secret), ARRAY.user, Secret(ARRAY.secret))


async def ready(nexus: Nexus) -> None:
    """Use up the unit attentions that follow a login."""
    for _ in range(4):
        command = await run_at(nexus, b"\0")
        if command.outcome is Outcome.COMPLETE and command.status == 0:
            return
    raise AssertionError("the unit does not become ready")


LUN = {"tgt": 1 << 48, "istgt": 0}


async def run_at(nexus: Nexus, cdb: bytes, *, read: int = 0, write: bytes = b"") -> ScsiCommand:
    """Run a command at LUN 1 of tgt (its LUN 0 is no disk)."""
    return await run(nexus, cdb, read=read, write=write, lun=LUN["tgt"])


async def write_and_read(nexus: Nexus, lun: int, length: int) -> None:
    """Write a pattern across every burst limit and read it back."""
    data = bytes(i * 31 + (i >> 9) & 0xFF for i in range(length))
    blocks = (length // 512).to_bytes(2, "big")
    for _ in range(4):
        written = await run(nexus, b"\x2a\0\0\0\0\x07\0" + blocks, write=data, lun=lun)
        if written.status != 2:
            break
    assert (written.outcome, written.status) == (Outcome.COMPLETE, 0)
    read = await run(nexus, b"\x28\0\0\0\0\x07\0" + blocks, read=length, lun=lun)
    assert (read.outcome, read.status) == (Outcome.COMPLETE, 0)
    assert bytes(read.data_in or b"") == data


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    "digests", [("none", "none"), ("crc32c", "none"), ("none", "crc32c"), ("crc32c", "crc32c")]
)
async def test_tgt_writes_and_reads_with_each_pair_of_digests(
    tgt: Tgt, digests: tuple[str, str], family: int
) -> None:
    tgt.add_target(NAME)
    tgt.add_unit(NAME, SIZE)
    for key, value in zip(("HeaderDigest", "DataDigest"), digests, strict=True):
        tgt.set(NAME, key, {"none": "None", "crc32c": "CRC32C"}[value])
    made = parameters(tgt.portals[family], target=NAME, header_digest=digests[:1], data_digest=digests[1:])
    async with running(made) as (nexus, listener):
        await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
        assert nexus.negotiated is not None
        assert (nexus.negotiated.header_digest, nexus.negotiated.data_digest) == tuple(
            d == "crc32c" for d in digests
        )
        for length in (512, 8192, 65536, 66048, 1 << 20):
            await write_and_read(nexus, LUN["tgt"], length)


@pytest.mark.parametrize("mutual", [False, True], ids=["one-way", "mutual"])
async def test_tgt_chap(tgt: Tgt, mutual: bool) -> None:
    tgt.add_target(NAME, account=HOST, mutual=ARRAY if mutual else None)
    tgt.add_unit(NAME, SIZE)
    made = parameters(tgt.portals[0], target=NAME, credentials=credentials(mutual=mutual))
    async with running(made) as (nexus, listener):
        await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
        assert nexus.result is not None
        assert (nexus.result.chap_algorithm, nexus.result.mutual) == (5, mutual)
        await ready(nexus)


@pytest.mark.parametrize("case", ["wrong secret", "wrong mutual secret", "no credentials", "target is not asked"])
async def test_tgt_chap_that_does_not_agree_fails_closed(tgt: Tgt, case: str) -> None:
    open_target = case == "target is not asked"
    tgt.add_target(NAME, account=None if open_target else HOST, mutual=None if open_target else ARRAY)
    given = {
        "wrong secret": credentials(mutual=True, secret="not the secret"),
        "wrong mutual secret": ChapCredentials(
            HOST.user, Secret(HOST.secret), ARRAY.user, Secret("not that one 12")
        ),
        "no credentials": None,
        "target is not asked": credentials(mutual=True),
    }[case]
    async with running(parameters(tgt.portals[0], target=NAME, credentials=given)) as (nexus, listener):
        await listener.until(lambda: bool(listener.failures))
        assert nexus.phase is NexusPhase.FAILED
        assert "secret" not in str(listener.failures[0][0]).replace("chap.secret", "").replace("mutual_secret", "")
        if case != "target is not asked":
            assert listener.failures[0][0].code in (Isdsc.AUTHENTICATION_FAILURE, Isdsc.PROTOCOL_ERROR)


async def test_tgt_a_dropped_connection_is_reinstated_and_io_goes_on(tgt: Tgt) -> None:
    tgt.add_target(NAME)
    tgt.add_unit(NAME, SIZE)
    async with running(parameters(tgt.portals[0], target=NAME)) as (nexus, listener):
        await listener.until(lambda: listener.logins == 1)
        await ready(nexus)
        await asyncio.to_thread(tgt.drop_connections, NAME)
        await listener.until(lambda: listener.logins == 2)
        await write_and_read(nexus, LUN["tgt"], 65536)
        (connection,) = await asyncio.to_thread(tgt.connections, NAME)
        assert connection.initiator == nexus.parameters.initiator_name


async def test_tgt_discovery_over_both_families(tgt: Tgt) -> None:
    for number in range(30):
        tgt.add_target(f"{NAME}-{number:02}")
    for portal in tgt.portals:
        found = await send_targets(
            "iqn.2026-11.com.example:host",
            Portal.parse(portal),
            None,
            isid=bytes.fromhex("800000000002"),
            timeout=10,
        )
        assert [record.name for record in found] == [f"{NAME}-{number:02}" for number in range(30)]
        # tgt shows the portals of the address family that it was asked through.
        assert {str(p) for record in found for p, _ in record.portals} == {portal}


@pytest.mark.parametrize("digest", ["Auto", "Header Data"])
@pytest.mark.parametrize("mutual", [None, False, True], ids=["open", "one-way", "mutual"])
async def test_istgt_chap_digests_and_data(digest: str, mutual: bool | None) -> None:
    with closing(Istgt(PORTALS, first_burst=16384, max_burst=65536, max_segment=8192)) as istgt:
        account = None if mutual is None else HOST
        istgt.add_target(NAME, SIZE, account=account, mutual=ARRAY if mutual else None, digest=digest)
        await asyncio.to_thread(istgt.start)
        for portal in istgt.portals:
            made = parameters(
                portal,
                target=NAME,
                header_digest=("crc32c", "none"),
                data_digest=("crc32c", "none"),
                credentials=None if mutual is None else credentials(mutual=mutual),
            )
            async with running(made) as (nexus, listener):
                await listener.until(lambda nexus=nexus: nexus.phase is NexusPhase.LOGGED_IN)
                assert nexus.negotiated is not None
                assert nexus.negotiated.max_burst_length == 65536
                for length in (512, 16384, 66048, 1 << 20):
                    await write_and_read(nexus, LUN["istgt"], length)
