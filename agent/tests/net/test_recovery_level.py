# SPDX-License-Identifier: GPL-3.0-or-later
"""The error recovery level that is offered: the highest that is safe, less where the target cannot live with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from tests.conformance import wire
from tests.conformance.raw_target import Peer, RawTarget
from tests.net.nexus_rig import config, parameters, running, until

from blockfleet.net.nexus import NexusPhase
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.target import TestTarget

LIO = "LIO Target"
HIGHEST = {"ErrorRecoveryLevel": "2", "DefaultTime2Wait": "0", "DefaultTime2Retain": "30"}
ONE_R2T = {"MaxOutstandingR2T": "1"}
OF_THE_LEVEL = (0x0200, 0x020B, 0x0300, 0x0400)
NOT_OF_THE_LEVEL = (0x0207, 0x0301, 0x0302)


def offers(target: TestTarget) -> list[tuple[str, str]]:
    """The levels that were offered, each with MaxOutstandingR2T."""
    texts = [entry.pdu.data.decode() for entry in target.received if entry.pdu.opcode == wire.LOGIN]
    keys = [dict(pair.split("=", 1) for pair in text.split("\0") if pair) for text in texts]
    return [(one["ErrorRecoveryLevel"], one["MaxOutstandingR2T"]) for one in keys if "ErrorRecoveryLevel" in one]


@pytest.fixture
async def raw() -> AsyncIterator[RawTarget]:
    target = RawTarget()
    await target.listen()
    yield target
    await target.close()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("blockfleet.net")]


@pytest.mark.parametrize("level", [0, 1, 2])
async def test_highest_level_is_offered_by_itself_and_the_target_lowers_it(level: int) -> None:
    """RFC 3720 12.20, and 12.19 for the one R2T."""
    async with TestTarget(config(keys=HIGHEST | {"ErrorRecoveryLevel": str(level)})) as target:
        async with running(parameters(target.portals[0].address)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            assert offers(target) == [("2", "1")]
            assert nexus.negotiated is not None
            assert nexus.negotiated.error_recovery_level == level


@pytest.mark.parametrize(
    ("declared", "alias", "agreed"),
    [(None, LIO, 1), (2, LIO, 2), (0, LIO, 0), (None, "LIO Target 2", 2), (None, "", 2)],
    ids=["LIO", "LIO, 2 declared", "LIO, 0 declared", "another alias", "no alias"],
)
async def test_lio_is_offered_level_1_unless_more_is_declared(
    declared: int | None, alias: str, agreed: int, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(keys=HIGHEST)
    made = replace(made, targets=[replace(made.targets[0], alias=alias)])
    with caplog.at_level(logging.INFO, "blockfleet.net"):
        async with TestTarget(made) as target:
            wanted = parameters(target.portals[0].address, error_recovery_level=declared)
            async with running(wanted) as (nexus, listener):
                await listener.until(lambda: listener.logins == 1)
                assert [level for level, _ in offers(target)] == [str(agreed)]
                assert nexus.negotiated is not None
                assert nexus.negotiated.error_recovery_level == agreed
    lowered = (declared, alias) == (None, LIO)
    assert any("taken for LIO: it is offered ErrorRecoveryLevel 1" in line for line in told(caplog)) is lowered


@pytest.mark.parametrize("declared", [None, 2])
async def test_lio_that_is_known_only_after_the_offer_is_logged_in_again_at_level_1(
    declared: int | None, raw: RawTarget, caplog: pytest.LogCaptureFixture
) -> None:
    late = ("TargetAlias", LIO)
    async with running(parameters(raw.portal, error_recovery_level=declared)) as (nexus, listener):
        peer = await raw.accept()
        request = await peer.pass_security()
        await peer.operational(request, {"ErrorRecoveryLevel": "2", **ONE_R2T}, late)
        if declared is None:
            assert await peer.gone() == b""
            peer = await raw.accept()
            request = await peer.pass_security()
            assert (request.keys["ErrorRecoveryLevel"], request.tsih) == ("1", 0)
            await peer.operational(request, {"ErrorRecoveryLevel": "1", **ONE_R2T}, late)
        await listener.until(lambda: listener.logins == 1)
        assert not listener.failures
        assert nexus.negotiated is not None
        assert nexus.negotiated.error_recovery_level == (declared or 1)
        serving = asyncio.create_task(peer.serve())
    await serving
    again = [line for line in told(caplog) if "trying again with ErrorRecoveryLevel 1" in line]
    assert len(again) == (0 if declared else 1)


async def close(peer: Peer, request: wire.Pdu) -> None:
    peer.writer.close()


async def reset(peer: Peer, request: wire.Pdu) -> None:
    peer.reset()


def refuse(status: int) -> Callable[[Peer, wire.Pdu], Awaitable[None]]:
    async def answer(peer: Peer, request: wire.Pdu) -> None:
        await peer.answer_login(request, status=status)
        peer.writer.close()

    return answer


@pytest.mark.parametrize("highest", [0, 1])
@pytest.mark.parametrize(
    "answer",
    [close, reset, *map(refuse, OF_THE_LEVEL)],
    ids=["closes", "resets", *map("{:04x}".format, OF_THE_LEVEL)],
)
async def test_target_that_refuses_the_level_is_offered_lower_ones(
    answer: Callable[[Peer, wire.Pdu], Awaitable[None]],
    highest: int,
    raw: RawTarget,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(parameters(raw.portal)) as (nexus, listener):
        for level in (2, 1, 0):
            peer = await raw.accept()
            request = await peer.pass_security()
            assert request.keys["ErrorRecoveryLevel"] == str(level)
            if level > highest:
                await answer(peer, request)
                continue
            await peer.operational(request, {"ErrorRecoveryLevel": str(level), **ONE_R2T})
            break
        await listener.until(lambda: listener.logins == 1)
        assert not listener.failures
        assert nexus.negotiated is not None
        assert nexus.negotiated.error_recovery_level == highest
        serving = asyncio.create_task(peer.serve())
    await serving
    assert [line[-1] for line in told(caplog) if "trying again with ErrorRecoveryLevel" in line] == ["1", "0"][
        : 2 - highest
    ]


@pytest.mark.parametrize("status", NOT_OF_THE_LEVEL, ids="{:04x}".format)
async def test_refusal_that_names_another_cause_is_not_taken_for_one_of_the_level(
    status: int, raw: RawTarget
) -> None:
    async with running(parameters(raw.portal)) as (_, listener):
        peer = await raw.accept()
        await refuse(status)(peer, await peer.pass_security())
        await listener.until(lambda: listener.failures)  # type: ignore[arg-type,return-value]
        assert f"{status:04x}" in str(listener.failures[0][0])


async def test_refusal_before_the_level_was_offered_is_not_taken_for_one_of_the_level(raw: RawTarget) -> None:
    async with running(parameters(raw.portal)) as (_, listener):
        peer = await raw.accept()
        await refuse(0x0200)(peer, await peer.login_request())
        await listener.until(lambda: listener.failures)  # type: ignore[arg-type,return-value]
        assert len(raw.peers) == 1


async def test_target_that_refuses_at_every_level_is_an_error_like_any_other(raw: RawTarget) -> None:
    async with running(parameters(raw.portal)) as (nexus, listener):
        for level in (2, 1, 0):
            peer = await raw.accept()
            request = await peer.pass_security()
            assert request.keys["ErrorRecoveryLevel"] == str(level)
            await refuse(0x0200)(peer, request)
        await listener.until(lambda: listener.failures)  # type: ignore[arg-type,return-value]
        assert "0200" in str(listener.failures[0][0])
        assert nexus.phase is NexusPhase.FAILED


@pytest.mark.parametrize("declared", [None, 2], ids=["by itself", "declared"])
async def test_commands_of_a_session_without_a_connection_wait_for_time2retain_only_where_that_is_declared(
    declared: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockfleet.net.nexus.CONTINUATION", 0.5)
    async with TestTarget(config(keys=HIGHEST)) as target:
        wanted = parameters(target.portals[0].address, error_recovery_level=declared)
        async with running(wanted) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            target.arm(build_fault("refuse_connection", {"times": 0}))
            target.connections[0].reset("test")
            if declared is None:
                await listener.until(lambda: len(listener.losses) == 1)
                assert "no connection came back in time" in str(listener.losses[0])
            else:
                await until(lambda: nexus.phase is NexusPhase.RECOVERING)
                await asyncio.sleep(1.0)
                assert not listener.losses
            target.disarm()
            await until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
            assert listener.logins == (2 if declared is None else 1)
