# SPDX-License-Identifier: GPL-3.0-or-later
"""TMF: task management (RFC 3720 6.9, 10.5, 10.6)."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig, at_every_level
from tests.conformance.raw_target import Peer
from tests.conformance.wire import Pdu

from blockfleet.model.errors import BlockfleetError
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

Session = tuple[Peer, Nexus, Listener]

ABORT_TASK, LUN_RESET, WARM_RESET = 1, 5, 6
COMPLETE, NO_TASK, NO_LUN, STILL_ALLEGIANT, NO_REASSIGN, UNSUPPORTED, UNAUTHORISED, REJECTED = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    255,
)


async def answer(peer: Peer, request: Pdu, response: int = COMPLETE) -> None:
    """Send a Task Management Function Response (10.6)."""
    await peer.raw(peer.numbered(wire.TASK_RESPONSE, 0x80, response, itt=request.itt))


async def stuck(
    rig: Rig, digests: tuple[str, str] = ("None", "None"), **options: object
) -> tuple[Peer, Issued, Pdu, Pdu]:
    """Leave a command unanswered; return it, what was sent of it, and the function that follows its time-out."""
    rig.hurry(abort=0.3)
    peer, nexus, _ = await rig.session(digests=digests)
    issued = Issued(nexus, READ_10, timeout=0.1, **{"read": 512, **options})  # type: ignore[arg-type]
    command = await peer.expect(wire.COMMAND)
    return peer, issued, command, await peer.expect(wire.TASK_REQUEST)


@at_every_level
async def test_TMF_01_abort_task_names_the_task(rig: Rig, digests: tuple[str, str]) -> None:
    peer, issued, command, request = await stuck(rig, digests)
    assert request.bhs[1] == 0x80 | ABORT_TASK
    assert (request.rtt, request.refcmdsn, request.lun) == (command.itt, command.cmdsn, command.lun)
    assert request.itt not in (command.itt, wire.NONE_TAG)
    assert (request.immediate, request.data, request.ahs) == (True, b"", b"")
    assert request.expstatsn == peer.stat_sn
    await answer(peer, request)
    assert (await issued.end()).outcome is Outcome.ABORTED


@pytest.mark.parametrize(("function", "lun"), [(LUN_RESET, LUN), (WARM_RESET, 0)])
@at_every_level
async def test_TMF_03_other_functions_name_no_task(session: Session, function: int, lun: int) -> None:
    peer, nexus, _ = session
    work = nexus.lun_reset(LUN, 2.0) if function == LUN_RESET else nexus.target_warm_reset(2.0)
    waiting = asyncio.create_task(work)
    request = await peer.expect(wire.TASK_REQUEST)
    assert request.bhs[1] == 0x80 | function
    assert (request.rtt, request.refcmdsn, request.lun, request.expdatasn) == (wire.NONE_TAG, 0, lun, 0)
    await answer(peer, request)
    assert await waiting == COMPLETE


@at_every_level
async def test_TMF_04_functions_are_immediate_and_use_no_cmdsn(session: Session) -> None:
    peer, nexus, _ = session
    waiting = asyncio.create_task(nexus.lun_reset(LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    await answer(peer, request)
    await waiting
    Issued(nexus)
    assert (request.immediate, (await peer.expect(wire.COMMAND)).cmdsn) == (True, request.cmdsn)


@at_every_level
async def test_TMF_06_a_response_before_that_of_the_function_counts(rig: Rig) -> None:
    peer, issued, command, request = await stuck(rig, read=0)
    await peer.raw(peer.response(command.itt))
    await issued.good()
    await answer(peer, request, NO_TASK)
    await peer.quiet()
    assert issued.ends == 1


@at_every_level
async def test_TMF_06_a_response_after_that_of_the_function_reaches_nobody(rig: Rig) -> None:
    peer, issued, command, request = await stuck(rig, read=0)
    await answer(peer, request)
    assert (await issued.end()).outcome is Outcome.ABORTED
    other = Issued(rig.under_test)
    assert (await peer.expect(wire.COMMAND)).itt != command.itt
    await peer.raw(peer.response(command.itt))
    await peer.gone()  # a target must not do that (10.5.1): session recovery
    assert (await other.end()).outcome is Outcome.UNKNOWN
    assert (issued.ends, issued.command.outcome) == (1, Outcome.ABORTED)


@pytest.mark.parametrize("response", [COMPLETE, NO_TASK])
@at_every_level
async def test_TMF_08_a_task_that_is_gone_is_settled(rig: Rig, response: int) -> None:
    peer, issued, _, request = await stuck(rig)
    await answer(peer, request, response)
    assert (await issued.end()).outcome is Outcome.ABORTED
    await peer.quiet()


@pytest.mark.parametrize(
    "response", [NO_LUN, STILL_ALLEGIANT, NO_REASSIGN, UNSUPPORTED, UNAUTHORISED, REJECTED], ids=str
)
@at_every_level
async def test_TMF_08_any_other_response_leads_up_the_ladder(rig: Rig, response: int) -> None:
    peer, issued, _, request = await stuck(rig)
    await answer(peer, request, response)
    reset = await peer.expect(wire.TASK_REQUEST, 1.0)
    assert (reset.bhs[1], reset.lun) == (0x80 | LUN_RESET, LUN)
    assert issued.running
    await answer(peer, reset)
    assert (await issued.end()).outcome is Outcome.ABORTED


@at_every_level
async def test_TMF_09_each_step_of_the_ladder_is_bounded(rig: Rig) -> None:
    started = asyncio.get_running_loop().time()
    peer, issued, _, request = await stuck(rig)
    steps = [request.bhs[1] & 0x7F]
    assert issued.running
    steps.append((await peer.expect(wire.TASK_REQUEST, 1.0)).bhs[1] & 0x7F)
    await peer.gone(2.0)
    assert steps == [ABORT_TASK, LUN_RESET]
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    assert asyncio.get_running_loop().time() - started < 2.0
    await (await rig.target.accept()).log_in()


@at_every_level
async def test_TMF_09_a_target_reset_comes_before_session_recovery_where_it_is_allowed(rig: Rig) -> None:
    rig.hurry(target_reset=True)
    peer, _, _, _ = await stuck(rig)
    await peer.expect(wire.TASK_REQUEST, 1.0)
    assert (await peer.expect(wire.TASK_REQUEST, 1.0)).bhs[1] & 0x7F == WARM_RESET


@pytest.mark.parametrize("kind", ["read", "write", "none"])
@at_every_level
async def test_TMF_12_a_command_in_trouble_is_aborted_not_forgotten(rig: Rig, kind: str) -> None:
    rig.hurry(abort=0.2)
    peer, nexus, _ = await rig.session()
    options = {"read": {"read": 512}, "write": {"write": bytes(512)}, "none": {}}[kind]
    issued = Issued(nexus, WRITE_10, timeout=0.1, **options)  # type: ignore[arg-type]
    itt = (await peer.expect(wire.COMMAND)).itt
    request = await peer.expect(wire.TASK_REQUEST, 1.0)
    assert (request.rtt, issued.running) == (itt, True)


@at_every_level
async def test_TMF_13_a_function_rejected_for_want_of_room_is_sent_again(session: Session) -> None:
    peer, nexus, _ = session
    waiting = asyncio.create_task(nexus.lun_reset(LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    await peer.raw(peer.reject(0x06, request))
    try:
        again = await peer.expect(wire.TASK_REQUEST, 1.0)
        await answer(peer, again)
        assert await waiting == COMPLETE
    finally:
        waiting.cancel()


@at_every_level
async def test_TMF_13_several_functions_may_be_under_way(session: Session) -> None:
    peer, nexus, _ = session
    waiting = [asyncio.create_task(nexus.lun_reset(n << 48, 2.0)) for n in range(4)]
    requests = [await peer.expect(wire.TASK_REQUEST) for _ in waiting]
    assert len({request.itt for request in requests}) == 4
    for request in reversed(requests):
        await answer(peer, request, UNSUPPORTED if request.lun == 2 << 48 else COMPLETE)
    assert [await one for one in waiting] == [COMPLETE, COMPLETE, UNSUPPORTED, COMPLETE]


@at_every_level
async def test_TMF_14_an_aborted_command_leaves_no_gap(rig: Rig) -> None:
    peer, issued, command, request = await stuck(rig)
    # The target never saw the command; with the function it counts its CmdSN as received (10.6.1).
    await answer(peer, request, COMPLETE)
    assert (await issued.end()).outcome is Outcome.ABORTED
    for n in range(3):
        good = Issued(rig.under_test)
        follower = await peer.expect(wire.COMMAND)
        assert follower.cmdsn == wire.serial_add(command.cmdsn, n + 1)
        await peer.answer(follower)
        await good.good()


@at_every_level
async def test_TMF_15_a_function_ends_only_what_it_names(rig: Rig) -> None:
    peer, nexus, _ = await rig.session()
    here, there = Issued(nexus, lun=LUN), Issued(nexus, lun=LUN + (1 << 48))
    await peer.expect(wire.COMMAND)
    itt = (await peer.expect(wire.COMMAND)).itt
    waiting = asyncio.create_task(nexus.lun_reset(LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    await peer.raw(peer.numbered(wire.TASK_RESPONSE, itt=request.itt, lun=LUN + (1 << 48), rtt=itt))
    await waiting
    assert (await here.end()).outcome is Outcome.ABORTED
    assert there.running
    await peer.raw(peer.response(itt))
    await there.good()


@at_every_level
async def test_TMF_09_a_caller_gets_an_answer_in_bounded_time(rig: Rig) -> None:
    rig.hurry()
    _, nexus, _ = await rig.session()
    with pytest.raises(BlockfleetError, match="no answer"):
        await nexus.lun_reset(LUN, 0.2)


@at_every_level
async def test_TMF_02_no_scsi_command_is_immediate(session: Session) -> None:
    """The condition of the row: a task that an immediate command has made."""
    peer, nexus, _ = session
    for attribute in range(5):
        Issued(nexus, attribute=attribute)
        assert not (await peer.expect(wire.COMMAND)).immediate
    Issued(nexus, READ_10, read=512)
    Issued(nexus, WRITE_10, write=bytes(512))
    Issued(nexus, bytes.fromhex("7f") + bytes(31), read=512)
    for _ in range(3):
        assert not (await peer.expect(wire.COMMAND)).immediate
