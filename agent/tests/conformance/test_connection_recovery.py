# SPDX-License-Identifier: GPL-3.0-or-later
"""MCS at error recovery level 2: a connection is lost, its tasks go on (RFC 3720 6.2.2, 6.4, 10.5, 10.14)."""

from __future__ import annotations

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, Issued, Rig
from tests.conformance.recovering import (
    AGREED,
    FUNCTION_UNSUPPORTED,
    NO_TASK,
    NOT_SUPPORTED,
    PATTERN,
    SIZE,
    STILL_ALLEGIANT,
    UNAUTHORISED,
    acknowledge,
    answer,
    beside_pings,
    finish_read,
    log_out,
    lost_read,
    now,
    on_second,
    pair,
    reassigned,
    recovery_logout,
    reinstated,
)

from blockfleet.scsi.command import Outcome


@pytest.mark.parametrize("how", ["reset", "closed"])
@pytest.mark.parametrize("wait", [0, 1])
async def test_MCS_10_a_lost_connection_is_logged_out_for_recovery_on_another(
    rig: Rig, how: str, wait: int
) -> None:
    peers, _, listener = await pair(rig, answers={"DefaultTime2Wait": str(wait)})
    cut = now()
    if how == "reset":
        peers[1].reset()
    else:
        peers[1].writer.close()
    await recovery_logout(peers[0], peers[1].requests[0].cid)
    assert wait <= now() - cut < wait + 1.0
    assert not listener.losses


async def test_TMF_10_task_reassign_is_function_8(rig: Rig) -> None:
    peers, issued, command, _ = await lost_read(rig)
    request = await reassigned(peers[0], command, (0, 1, 2))
    assert request.bhs[1] & 0x7F == 8
    assert issued.running


async def test_MCS_11_tasks_are_reassigned_one_by_one_and_nothing_moves_before_the_answer(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peers, nexus, listener = await pair(rig, digests)
    issued = [Issued(nexus) for _ in range(4)]
    lost = [await peers[1].expect(wire.COMMAND) for _ in range(2)]
    for _ in range(2):
        await peers[0].answer(await peers[0].expect(wire.COMMAND))
    peers[1].reset()
    await log_out(peers)
    wanted = {command.itt: command for command in lost}
    requests = []
    for _ in range(2):
        request = await beside_pings(peers[0])
        assert (request.opcode, request.bhs[1], request.immediate) == (wire.TASK_REQUEST, 0x88, True)
        assert request.rtt in wanted
        requests.append(request)
    assert {request.rtt for request in requests} == set(wanted)
    assert len({request.itt for request in requests}) == 2
    for request in requests:
        await answer(peers[0], request)
        await peers[0].raw(peers[0].response(request.rtt))
    for one in issued:
        await one.good()
    assert not listener.losses


async def test_MCS_15_reassignments_without_an_answer_get_session_recovery(rig: Rig) -> None:
    """Several have their time-out at the same moment: the first ends the session, and the others with it."""
    rig.hurry(abort=1.0)
    peers, nexus, listener = await pair(rig)
    issued = [Issued(nexus) for _ in range(4)]
    lost = [await peers[1].expect(wire.COMMAND) for _ in range(2)]
    for _ in range(2):
        await peers[0].answer(await peers[0].expect(wire.COMMAND))
    peers[1].reset()
    await log_out(peers)
    functions = [await beside_pings(peers[0]) for _ in lost]
    assert {pdu.rtt for pdu in functions} == {command.itt for command in lost}
    peer = await reinstated(rig)
    rig.background(peer.serve())
    assert sorted([(await one.end()).outcome for one in issued]) == [Outcome.COMPLETE] * 2 + [Outcome.UNKNOWN] * 2
    await listener.until(lambda: listener.logins == 2)
    await Issued(nexus).good()
    assert len(listener.losses) == 1


async def test_MCS_13_a_reassigned_read_goes_on_after_what_was_acknowledged(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peers, issued, command, listener = await lost_read(rig, digests)
    # 0 says that nothing was acknowledged (10.5.7).
    request = await reassigned(peers[0], command, (0, 1, 2))
    await answer(peers[0], request)
    await finish_read(peers[0], command, request.expdatasn)
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]
    assert not listener.losses


async def test_MCS_13_a_target_may_send_everything_again(rig: Rig) -> None:
    peers, issued, command, listener = await lost_read(rig)
    await answer(peers[0], await reassigned(peers[0], command, (0, 1, 2)))
    await finish_read(peers[0], command, 0)
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]
    assert not listener.losses


async def test_MCS_14_a_reassigned_write_is_asked_for_anew(rig: Rig, digests: tuple[str, str]) -> None:
    peers, nexus, listener = await pair(rig, digests)
    issued, command = await on_second(nexus, peers, write=PATTERN[: 2 * SIZE])
    await peers[1].raw(peers[1].r2t(command.itt, 0x10, 0, 0, SIZE, lun=LUN))
    assert (await peers[1].expect(wire.DATA_OUT)).ttt == 0x10
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers)
    request = await reassigned(peers[0], command, (0, 1))
    await peers[0].quiet()
    await answer(peers[0], request)
    for sn, offset in enumerate((0, SIZE), request.expdatasn):
        await peers[0].raw(peers[0].r2t(command.itt, 0x20 + sn, sn, offset, SIZE, lun=LUN))
        out = await peers[0].expect(wire.DATA_OUT)
        assert (out.ttt, out.datasn, out.data) == (0x20 + sn, 0, PATTERN[offset : offset + SIZE])
    await peers[0].raw(peers[0].response(command.itt, expdatasn=request.expdatasn + 2))
    await issued.good()
    assert not listener.losses


async def test_MCS_15_a_task_that_does_not_exist_any_more_is_given_up(rig: Rig) -> None:
    peers, issued, command, listener = await lost_read(rig)
    await answer(peers[0], await reassigned(peers[0], command, (0, 1, 2)), NO_TASK)
    assert (await issued.end()).outcome is not Outcome.COMPLETE
    assert not listener.losses


async def test_MCS_15_a_task_that_is_still_allegiant_is_asked_for_again(rig: Rig) -> None:
    peers, issued, command, listener = await lost_read(rig)
    await answer(peers[0], await reassigned(peers[0], command, (0, 1, 2)), STILL_ALLEGIANT)
    request = await reassigned(peers[0], command, (0, 1, 2))
    await answer(peers[0], request)
    await finish_read(peers[0], command, request.expdatasn)
    await issued.good()
    assert not listener.losses


@pytest.mark.parametrize("response", [NOT_SUPPORTED, FUNCTION_UNSUPPORTED, UNAUTHORISED, 255], ids=str)
async def test_MCS_15_a_target_that_cannot_reassign_leads_to_session_recovery(rig: Rig, response: int) -> None:
    peers, issued, command, listener = await lost_read(rig)
    for _ in range(3):
        await answer(peers[0], await reassigned(peers[0], command, (0, 1, 2)), response)
        if response != 255:
            break
        try:
            await listener.until(lambda: listener.losses, 0.4)
        except TimeoutError:
            continue
        break
    await listener.loss()
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    await peers[0].gone()
    again = await reinstated(rig)
    assert again.requests[0].isid == peers[0].requests[0].isid
    await listener.until(lambda: listener.logins == 2)


async def test_MCS_16_an_unacknowledged_command_is_sent_again_with_its_cmdsn(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peers, nexus, listener = await pair(rig, digests)
    issued = [Issued(nexus, READ_10, read=SIZE) for _ in range(2)]
    here = await peers[0].expect(wire.COMMAND)
    lost = await peers[1].expect(wire.COMMAND)
    peers[0].exp_cmd_sn = lost.cmdsn if lost.cmdsn == peers[0].requests[0].cmdsn else here.cmdsn + 1 & 0xFFFFFFFF
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers)
    again = await beside_pings(peers[0])
    assert again.opcode == wire.COMMAND
    assert (again.itt, again.cmdsn, again.bhs[32:48]) == (lost.itt, lost.cmdsn, lost.bhs[32:48])
    for pdu in (here, again):
        await peers[0].raw(peers[0].last_data_in(pdu.itt, 0, 0, bytes(SIZE)))
    for one in issued:
        await one.good()
    assert not listener.losses


@pytest.mark.parametrize(("wait", "retain"), [(0, 7), (1, 7)])
async def test_MCS_17_reassignment_does_not_begin_before_time2wait(rig: Rig, wait: int, retain: int) -> None:
    answers = {"DefaultTime2Wait": str(wait), "DefaultTime2Retain": str(retain)}
    peers, nexus, _ = await pair(rig, answers=answers)
    _, command = await on_second(nexus, peers, read=SIZE)
    await acknowledge(peers[0])
    cut = now()
    peers[1].reset()
    await log_out(peers)
    await reassigned(peers[0], command)
    assert wait <= now() - cut < wait + 1.5


async def test_MCS_17_after_time2retain_nothing_is_reassigned(rig: Rig) -> None:
    peers, nexus, listener = await pair(rig, answers={"DefaultTime2Retain": "1"})
    issued, _ = await on_second(nexus, peers, read=SIZE)
    await acknowledge(peers[0])
    peers[1].reset()
    await recovery_logout(peers[0], peers[1].requests[0].cid)  # never answered
    assert (await issued.end(4.0)).outcome is Outcome.UNKNOWN
    await listener.loss()
    assert b"\x88" not in (await peers[0].gone())[1:2]


async def test_MCS_17_without_time2retain_there_is_no_recovery(rig: Rig) -> None:
    peers, nexus, listener = await pair(rig, answers={"DefaultTime2Retain": "0"})
    issued, _ = await on_second(nexus, peers, read=SIZE)
    peers[1].reset()
    await listener.loss()
    assert (await issued.end()).outcome is Outcome.UNKNOWN


async def test_MCS_17_a_task_that_the_logout_does_not_retain_is_given_up(rig: Rig) -> None:
    peers, nexus, listener = await pair(rig)
    issued, _ = await on_second(nexus, peers, read=SIZE)
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers, retain=0)
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    good = Issued(nexus)
    pdu = await peers[0].expect(wire.COMMAND)
    await peers[0].answer(pdu)
    await good.good()
    assert not listener.losses


@pytest.mark.parametrize("where", ["itself", "the other"])
async def test_MCS_19_the_times_of_an_event_override_the_defaults(rig: Rig, where: str) -> None:
    peers, _, listener = await pair(rig)
    told = now()
    by = peers[1] if where == "itself" else peers[0]
    await by.raw(by.asynchronous(2, p1=peers[1].requests[0].cid, p2=1, p3=3))
    await peers[1].gone()
    await recovery_logout(peers[0], peers[1].requests[0].cid)
    assert 1.0 <= now() - told < 2.0
    assert not listener.losses


async def test_CTL_23_times_of_a_logout_response_hold_for_the_reassignment(rig: Rig) -> None:
    """Time2Wait of the response, at level 2 (10.15.3)."""
    peers, nexus, _ = await pair(rig)
    _, command = await on_second(nexus, peers, read=SIZE)
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers, retain=5, wait=1)
    told = now()
    await reassigned(peers[0], command)
    assert 1.0 <= now() - told < 2.0


async def test_MCS_20_a_failure_during_recovery_escalates_and_ends_every_command_once(rig: Rig) -> None:
    peers, nexus, listener = await pair(rig, answers={"DefaultTime2Retain": "1"})
    issued = [Issued(nexus) for _ in range(4)]
    for peer in peers:
        for _ in range(2):
            await peer.expect(wire.COMMAND)
    peers[1].reset()
    await recovery_logout(peers[0], peers[1].requests[0].cid)
    peers[0].reset()
    # Continuation is tried, and refused: the session is gone.
    again = await rig.target.accept()
    first = await again.login_request()
    assert first.tsih == 0x51AB
    await again.answer_login(first, flags=0, status=0x020A)
    await listener.loss()
    for one in issued:
        assert (await one.end()).outcome is Outcome.UNKNOWN
        assert one.ends == 1
    await reinstated(rig)
    await listener.until(lambda: listener.logins == 2)


async def test_MCS_22_a_session_without_connections_is_continued(rig: Rig, digests: tuple[str, str]) -> None:
    peers, nexus, listener = await rig.several(1, 2, digests, AGREED)
    issued = Issued(nexus, READ_10, read=4 * SIZE)
    command = await peers[0].expect(wire.COMMAND)
    await peers[0].raw(peers[0].data_in(command.itt, 0, 0, PATTERN[:SIZE]))
    await acknowledge(peers[0])
    peers[0].reset()
    again = await rig.target.accept()
    again.numbering = peers[0].numbering
    await again.join(peers[0])
    first = again.requests[0]
    # The same CID: the login logs the lost connection out by itself (5.3.4).
    assert (first.isid, first.tsih, first.cid) == (peers[0].requests[0].isid, 0x51AB, peers[0].requests[0].cid)
    request = await reassigned(again, command, (0, 1))
    await answer(again, request)
    await finish_read(again, command, request.expdatasn)
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]
    assert (listener.losses, listener.logins, nexus.tsih) == ([], 1, 0x51AB)


async def test_MCS_22_a_session_that_the_target_has_forgotten_is_reinstated(rig: Rig) -> None:
    peers, nexus, listener = await rig.several(1, 2, answers=AGREED)
    issued = Issued(nexus)
    await peers[0].expect(wire.COMMAND)
    peers[0].reset()
    again = await rig.target.accept()
    request = await again.login_request()
    assert request.tsih == 0x51AB
    await again.answer_login(request, flags=0, status=0x020A)
    await listener.loss()
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    anew = await reinstated(rig)
    assert anew.requests[0].isid == peers[0].requests[0].isid
    await listener.until(lambda: listener.logins == 2)


async def test_TMF_07_a_reassigned_task_is_aborted_where_it_now_is(rig: Rig) -> None:
    rig.hurry(abort=1.0)
    peers, nexus, _ = await pair(rig)
    issued, command = await on_second(nexus, peers, read=SIZE, timeout=0.4)
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers)
    await answer(peers[0], await reassigned(peers[0], command))
    request = await beside_pings(peers[0])
    assert (request.opcode, request.bhs[1] & 0x7F, request.rtt) == (wire.TASK_REQUEST, 1, command.itt)
    assert request.refcmdsn == command.cmdsn
    await answer(peers[0], request)
    assert (await issued.end()).outcome is Outcome.ABORTED
    assert issued.ends == 1


async def test_KEY_30_level_2_has_both_kinds_of_recovery_at_once(rig: Rig) -> None:
    """A gap in the data is asked for within the connection, then the connection itself is lost."""
    peers, nexus, listener = await pair(rig)
    issued, command = await on_second(nexus, peers, read=4 * SIZE)
    for n in (0, 2):
        await peers[1].raw(peers[1].data_in(command.itt, n, n * SIZE, PATTERN[n * SIZE : (n + 1) * SIZE]))
    asked = await peers[1].expect(wire.SNACK)
    assert (asked.bhs[1], asked.begrun, asked.runlength) == (wire.DATA_SNACK, 1, 1)
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers)
    request = await reassigned(peers[0], command, (0, 1))
    await answer(peers[0], request)
    await finish_read(peers[0], command, request.expdatasn)
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]
    assert not listener.losses
