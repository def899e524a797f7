# SPDX-License-Identifier: GPL-3.0-or-later
"""NEW: what RFC 7143 and RFC 7144 added to a session."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, WRITE_10, Issued, Rig
from tests.conformance.raw_target import ABSENT, Peer

from blockfleet.model.errors import BlockfleetError
from blockfleet.net.nexus import Nexus
from blockfleet.net.task_queries import i_t_nexus_reset, query_asynchronous_event, query_task, query_task_set
from blockfleet.scsi.command import Outcome

COMPLETE, SUCCEEDED, REJECTED = 0, 7, 255
QUERY_TASK, QUERY_TASK_SET, NEXUS_RESET, QUERY_EVENT = 9, 10, 11, 12
"""RFC 7144 4.1."""


async def originated(rig: Rig, *offers: str) -> tuple[Peer, dict[str, str]]:
    """Let the target originate keys; return the answers, with the session up."""
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text(*peer.answers(request, {}), *offers), flags=0x04)
    request = await peer.login_request()
    await peer.answer_login(request, tsih=8)
    peer.full_feature = True
    await listener.until(lambda: listener.logins)
    return peer, request.keys


@pytest.mark.parametrize("level", [0, 1, 2, 31])
async def test_NEW_02_the_protocol_level_is_the_smaller(rig: Rig, level: int) -> None:
    _, answers = await originated(rig, f"iSCSIProtocolLevel={level}")
    assert answers == {"iSCSIProtocolLevel": str(min(level, 2))}


@pytest.mark.parametrize("level", ["32", "-1", "x"])
async def test_NEW_02_an_illegal_level_is_refused(rig: Rig, level: str) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(
        request, wire.text(*peer.answers(request, {}), ("iSCSIProtocolLevel", level)), flags=0x04
    )
    await peer.gone()
    await listener.failure()


@pytest.mark.parametrize("answer", ["1", "2", "NotUnderstood", ABSENT], ids=lambda answer: answer or "absent")
async def test_NEW_02_an_offered_level_is_what_the_target_makes_of_it(rig: Rig, answer: str) -> None:
    peer, nexus, _ = await rig.session({"iSCSIProtocolLevel": answer}, protocol_level=2)
    assert peer.offers["iSCSIProtocolLevel"] == "2"
    await refused_below_level_2(peer, nexus, answer != "2")


async def refused_below_level_2(peer: Peer, nexus: Nexus, refused: bool) -> None:
    """Hold that a function of RFC 7144 is asked for at its level, and below it refused before it is sent."""
    asking = asyncio.create_task(query_task_set(nexus, LUN, 1.0))
    if refused:
        with pytest.raises(BlockfleetError, match="iSCSIProtocolLevel 2"):
            await asking
        await peer.quiet(0.03)
    else:
        request = await peer.expect(wire.TASK_REQUEST)
        await peer.raw(peer.numbered(wire.TASK_RESPONSE, 0x80, COMPLETE, itt=request.itt))
        assert await asking is False


async def test_NEW_02_functions_of_rfc_7144_are_not_used_below_level_2(rig: Rig) -> None:
    peer, _ = await originated(rig, "iSCSIProtocolLevel=1")
    nexus = rig.under_test
    await refused_below_level_2(peer, nexus, True)
    for work in (nexus.lun_reset(LUN, 2.0), nexus.target_warm_reset(2.0)):
        waiting = rig.background(work)
        request = await peer.expect(wire.TASK_REQUEST)
        assert request.bhs[1] & 0x7F in range(1, 9)
        await peer.answer(request)
        await waiting


async def test_NEW_03_a_node_architecture_changes_nothing(rig: Rig) -> None:
    peer, answers = await originated(rig, "X#NodeArchitecture=ExampleOS,v4.2")
    assert answers == {}
    issued = Issued(rig.under_test)
    await peer.answer(await peer.expect(wire.COMMAND))
    await issued.good()


MARKERS = {"OFMarker=Yes": "No", "IFMarker=Yes": "No", "OFMarkInt=2048~8192": "Reject", "IFMarkInt=64": "Reject"}


@pytest.mark.parametrize("offer", MARKERS)
async def test_NEW_04_markers_are_refused_in_terms_the_target_knows(rig: Rig, offer: str) -> None:
    _, answers = await originated(rig, offer)
    assert answers == {offer.partition("=")[0]: MARKERS[offer]}


async def test_NEW_04_markers_and_spkm_are_not_offered(rig: Rig) -> None:
    peer, _, _ = await rig.session()
    keys = {name: value for request in peer.requests for name, value in request.pairs}
    assert not {"OFMarker", "IFMarker", "OFMarkInt", "IFMarkInt"} & set(keys)
    assert "SPKM" not in keys["AuthMethod"]


async def respond(peer: Peer, request: wire.Pdu, response: int, information: bytes = bytes(3)) -> None:
    """Send a Task Management Function Response with Additional Response Information (RFC 7144 4.2)."""
    pdu = peer.numbered(wire.TASK_RESPONSE, 0x80, response, itt=request.itt)
    pdu[8:11] = information
    await peer.raw(pdu)


LEVEL_2 = {"iSCSIProtocolLevel": "2"}
PRESENCE = [(SUCCEEDED, True), (COMPLETE, False), (5, None)]


@pytest.mark.parametrize(("response", "present"), PRESENCE)
async def test_NEW_06_query_task_names_the_task_and_ends_nothing(
    rig: Rig, digests: tuple[str, str], response: int, present: bool | None
) -> None:
    peer, nexus, _ = await rig.session(LEVEL_2, digests, protocol_level=2)
    issued = Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    asking = rig.background(query_task(nexus, issued.command, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    assert (request.bhs[1], request.immediate) == (0x80 | QUERY_TASK, True)
    assert (request.rtt, request.refcmdsn, request.lun) == (command.itt, command.cmdsn, command.lun)
    await respond(peer, request, response)
    assert await asking is present
    assert issued.running
    await peer.raw(peer.response(command.itt))
    await issued.good()


@pytest.mark.parametrize(("response", "present"), PRESENCE)
async def test_NEW_06_query_task_set_names_the_unit_and_ends_nothing(
    rig: Rig, response: int, present: bool | None
) -> None:
    peer, nexus, _ = await rig.session(LEVEL_2, protocol_level=2)
    issued = Issued(nexus)
    await peer.expect(wire.COMMAND)
    asking = rig.background(query_task_set(nexus, LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    assert (request.bhs[1], request.rtt, request.lun) == (0x80 | QUERY_TASK_SET, wire.NONE_TAG, LUN)
    await respond(peer, request, response)
    assert await asking is present
    assert issued.running


async def test_NEW_06_i_t_nexus_reset_ends_the_tasks_of_every_unit_and_keeps_the_session(rig: Rig) -> None:
    peer, nexus, listener = await rig.session(LEVEL_2, protocol_level=2)
    here, there = Issued(nexus), Issued(nexus, lun=LUN + (1 << 48))
    for _ in range(2):
        await peer.expect(wire.COMMAND)
    resetting = rig.background(i_t_nexus_reset(nexus, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    assert (request.bhs[1], request.rtt, request.lun) == (0x80 | NEXUS_RESET, wire.NONE_TAG, 0)
    assert here.running
    await respond(peer, request, COMPLETE)
    assert await resetting == COMPLETE
    assert [(await issued.end()).outcome for issued in (here, there)] == [Outcome.ABORTED] * 2
    good = Issued(nexus)
    await peer.answer(await peer.expect(wire.COMMAND))
    await good.good()
    assert not listener.losses


async def test_NEW_06_the_additional_response_information_of_an_event_is_read(rig: Rig) -> None:
    peer, nexus, _ = await rig.session(LEVEL_2, protocol_level=2)
    asking = rig.background(query_asynchronous_event(nexus, LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    assert (request.bhs[1], request.rtt, request.lun) == (0x80 | QUERY_EVENT, wire.NONE_TAG, LUN)
    await respond(peer, request, SUCCEEDED, bytes([0x26, 0x2A, 0x09]))
    event = await asking
    assert (event.depth, event.sense_key, event.code, event.qualifier) == (2, 6, 0x2A, 0x09)
    asking = rig.background(query_asynchronous_event(nexus, LUN, 2.0))
    await respond(peer, await peer.expect(wire.TASK_REQUEST), COMPLETE, bytes([0x26, 0x2A, 0x09]))
    assert await asking is None


REPORTING = {"TaskReporting": "FastAbort", "ImmediateData": "No", "MaxOutstandingR2T": "2"}
OFFERED = {"task_reporting": ("FastAbort", "RFC3720")}


async def reset_with_an_open_write(rig: Rig, reporting: str) -> tuple[Peer, Issued, Issued, wire.Pdu, asyncio.Task]:
    """Leave two writes of different units open and begin to reset the unit of the first."""
    peer, nexus, _ = await rig.session({**REPORTING, "TaskReporting": reporting}, **OFFERED)
    assert peer.offers["TaskReporting"] == "FastAbort,RFC3720"
    first = Issued(nexus, WRITE_10, write=bytes(1024))
    second = Issued(nexus, WRITE_10, write=bytes(1024), lun=LUN + (1 << 48))
    tags = [(await peer.expect(wire.COMMAND)).itt for _ in range(2)]
    resetting = rig.background(nexus.lun_reset(LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    await peer.raw(peer.r2t(tags[0], 0x10, 0, 0, 512, lun=LUN))
    await peer.raw(peer.r2t(tags[1], 0x20, 0, 0, 512, lun=LUN + (1 << 48)))
    return peer, first, second, request, resetting


async def test_NEW_05_fast_abort_serves_no_task_that_the_function_ends(rig: Rig) -> None:
    peer, first, second, request, resetting = await reset_with_an_open_write(rig, "FastAbort")
    assert (await peer.expect(wire.DATA_OUT)).ttt == 0x20
    await peer.quiet(0.05)
    await respond(peer, request, COMPLETE)
    assert await resetting == COMPLETE
    assert (await first.end()).outcome is Outcome.ABORTED
    assert second.running
    await peer.quiet(0.03)


async def test_NEW_05_a_function_that_is_refused_leaves_the_task_to_be_served(rig: Rig) -> None:
    peer, first, _, request, resetting = await reset_with_an_open_write(rig, "FastAbort")
    assert (await peer.expect(wire.DATA_OUT)).ttt == 0x20
    await respond(peer, request, REJECTED)
    assert await resetting == REJECTED
    assert (await peer.expect(wire.DATA_OUT)).ttt == 0x10
    assert first.running


async def test_NEW_05_without_fast_abort_every_transfer_tag_is_served(rig: Rig) -> None:
    peer, _, _, _, _ = await reset_with_an_open_write(rig, "RFC3720")
    assert [(await peer.expect(wire.DATA_OUT)).ttt for _ in range(2)] == [0x10, 0x20]


async def test_NEW_05_tasks_that_another_initiator_ended_are_fenced_and_the_event_confirmed(rig: Rig) -> None:
    rig.hurry(abort=1.0)
    peer, nexus, listener = await rig.session(REPORTING, **OFFERED)
    issued = Issued(nexus, WRITE_10, write=bytes(1024))
    command = await peer.expect(wire.COMMAND)
    pdu = peer.asynchronous(5)
    pdu[8:16] = LUN.to_bytes(8, "big")
    await peer.raw(pdu)
    answer = await peer.expect(wire.NOP_OUT)
    assert (answer.itt, answer.ttt, answer.lun, answer.immediate) == (wire.NONE_TAG, wire.NONE_TAG, LUN, True)
    assert answer.expstatsn == peer.stat_sn
    await peer.raw(peer.r2t(command.itt, 0x10, 0, 0, 512, lun=LUN))
    # No data: the task is asked for instead, since no response need come.
    request = await peer.expect(wire.TASK_REQUEST)
    assert (request.bhs[1] & 0x7F, request.rtt) == (1, command.itt)
    await respond(peer, request, 1)
    assert (await issued.end()).outcome is Outcome.ABORTED
    assert not listener.losses


async def test_NEW_05_the_event_is_a_protocol_error_where_fast_abort_was_not_agreed_on(rig: Rig) -> None:
    peer, _, listener = await rig.session()
    await peer.raw(peer.asynchronous(5))
    await peer.gone()
    await listener.loss()
