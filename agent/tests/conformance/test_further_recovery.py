# SPDX-License-Identifier: GPL-3.0-or-later
"""X: further MUSTs of RFC 3720 about several connections and about recovery that no other row names."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import CHAP_USER, INITIATOR, LUN, READ_10, TARGET, USER, WRITE_10, Issued, Rig
from tests.conformance.raw_target import Peer
from tests.conformance.recovering import (
    AGREED,
    PATTERN,
    SIZE,
    acknowledge,
    answer,
    beside_pings,
    finish_read,
    log_out,
    now,
    on_second,
    pair,
    reassigned,
    recovery_logout,
)
from tests.conformance.wire import Pdu

from blockfleet.scsi.command import Outcome

LEVELS = [0, 1, 2]
TSIH = 0x51AB

# --- numbering ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS, ids="level{}".format)
@pytest.mark.parametrize("window", [3, 64], ids="window{}".format)
async def test_X_18_requests_go_out_in_the_order_of_cmdsn_on_each_connection(
    rig: Rig, level: int, window: int
) -> None:
    peers, nexus, _ = await rig.several(3, level)
    seen: list[list[int]] = [[] for _ in peers]

    async def serve(place: int) -> None:
        while True:
            pdu = await peers[place].recv(3600)
            if pdu.opcode == wire.COMMAND:
                seen[place].append(pdu.cmdsn - peers[0].requests[0].cmdsn & 0xFFFFFFFF)
            await peers[place].answer(pdu)

    for place, peer in enumerate(peers):
        peer.window = window
        rig.background(serve(place))
    await asyncio.gather(*(Issued(nexus, READ_10, read=SIZE).good() for _ in range(40)))
    assert sorted(number for numbers in seen for number in numbers) == list(range(40))
    for numbers in seen:
        assert numbers
        assert numbers == sorted(numbers)


async def test_X_27_after_a_loss_no_cmdsn_is_left_out_or_used_twice(rig: Rig, digests: tuple[str, str]) -> None:
    peers, nexus, listener = await pair(rig, digests)
    issued = [Issued(nexus) for _ in range(8)]
    here, lost = [[await peer.expect(wire.COMMAND) for _ in range(4)] for peer in peers]
    first = peers[0].requests[0].cmdsn
    # The target saw nothing of the second connection, and waits for the first number of it.
    peers[0].exp_cmd_sn = min((pdu.cmdsn for pdu in lost), key=lambda number: number - first & 0xFFFFFFFF)
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers)
    again = [await peers[0].expect(wire.COMMAND) for _ in lost]
    assert [(pdu.itt, pdu.cmdsn) for pdu in again] == [(pdu.itt, pdu.cmdsn) for pdu in lost]
    peers[0].exp_cmd_sn = wire.serial_add(first, 8)
    for pdu in here + again:
        await peers[0].answer(pdu)
    for one in issued:
        await one.good()
    anew = [Issued(nexus) for _ in range(4)]
    for n, one in enumerate(anew):
        pdu = await peers[0].expect(wire.COMMAND)
        assert pdu.cmdsn == wire.serial_add(first, 8 + n)
        await peers[0].answer(pdu)
        await one.good()
    assert not listener.losses


# --- logging in and out ---------------------------------------------------------------------------------------


async def test_X_19_a_login_that_reinstates_a_connection_acknowledges_its_status(rig: Rig) -> None:
    peers, nexus, listener = await rig.several(1, 2, answers=AGREED)
    for _ in range(5):
        issued = Issued(nexus)
        await peers[0].answer(await peers[0].expect(wire.COMMAND))
        await issued.good()
    peers[0].reset()
    request = await (await rig.target.accept()).login_request()
    assert (request.tsih, request.cid) == (TSIH, peers[0].requests[0].cid)
    assert request.expstatsn == peers[0].stat_sn
    assert not listener.losses


async def test_X_20_digests_and_limits_hold_for_the_connection_that_agreed_on_them(rig: Rig) -> None:
    digest = ("crc32c", "none")
    leading, nexus, listener = await rig.session(
        {"MaxConnections": "4", "ImmediateData": "No"},
        connections=rig.further(1),
        header_digest=digest,
        data_digest=digest,
    )
    changes = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C", "MaxRecvDataSegmentLength": "1024"}
    other = await (await rig.target.accept()).join(leading, changes)
    await rig.connected(nexus, 2)
    issued = [Issued(nexus, WRITE_10, write=PATTERN[:3000]) for _ in range(2)]
    for peer, lengths in ((leading, [3000]), (other, [1024, 1024, 952])):
        command = await peer.expect(wire.COMMAND)
        await peer.raw(peer.r2t(command.itt, 0x11, 0, 0, 3000, lun=LUN))
        parts = [await peer.expect(wire.DATA_OUT) for _ in lengths]
        assert [len(part.data) for part in parts] == lengths
        assert b"".join(part.data for part in parts) == PATTERN[:3000]
        await peer.raw(peer.response(command.itt, expdatasn=1))
    for one in issued:
        await one.good()
    assert not listener.losses


async def test_X_22_a_recovery_logout_carries_the_expstatsn_of_the_connection_it_removes(rig: Rig) -> None:
    peers, nexus, _ = await pair(rig)
    for count in (3, 2):
        issued = [Issued(nexus) for _ in range(2 * count)]
        for peer in peers:
            for _ in range(count):
                await peer.answer(await peer.expect(wire.COMMAND))
        for one in issued:
            await one.good()
    assert peers[0].stat_sn != peers[1].stat_sn
    peers[1].reset()
    logout = await recovery_logout(peers[0], peers[1].requests[0].cid)
    assert logout.expstatsn == peers[1].stat_sn


async def test_X_26_after_a_logout_of_the_session_no_connection_gets_a_new_request(rig: Rig) -> None:
    rig.hurry(logout=2.0)
    peers, nexus, _ = await rig.several(3)
    stopping = rig.background(nexus.stop())
    taken = [rig.background(peer.recv(1.0)) for peer in peers]
    done, quiet = await asyncio.wait(taken, return_when=asyncio.FIRST_COMPLETED)
    late = [Issued(nexus) for _ in range(6)]
    assert {(await one.end()).outcome for one in late} == {Outcome.REFUSED}
    (logout,) = [one.result() for one in done]
    assert (logout.opcode, logout.bhs[1]) == (wire.LOGOUT, 0x80)
    await asyncio.sleep(0.2)
    assert not any(one.done() for one in quiet)
    await next(peer for peer, one in zip(peers, taken, strict=True) if one in done).answer(logout)
    await stopping


# --- what ends a session --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS, ids="level{}".format)
@pytest.mark.parametrize("place", [0, 1], ids=["leading", "further"])
async def test_X_21_a_format_error_ends_all_connections_and_the_session_is_recovered(
    rig: Rig, level: int, place: int
) -> None:
    peers, nexus, listener = await rig.several(2, level)
    issued = [Issued(nexus) for _ in range(2)]
    for peer in peers:
        await peer.expect(wire.COMMAND)
    await peers[place].raw(wire.header(wire.RESPONSE, dsl=0xFFFFFF))
    for peer in peers:
        assert await peer.gone() == b""
    await listener.loss()
    assert [(await one.end()).outcome for one in issued] == [Outcome.UNKNOWN] * 2
    request = await (await rig.target.accept()).login_request()
    assert (request.isid, request.tsih) == (peers[0].requests[0].isid, 0)


@pytest.mark.parametrize("ahead", [0x10000, 0x7FFFFFFF], ids=hex)
async def test_X_24_a_statsn_far_from_the_expected_one_leads_to_recovery(rig: Rig, level: int, ahead: int) -> None:
    peer, nexus, _ = await rig.recovering(level)
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.response(itt, statsn=wire.serial_add(peer.stat_sn, ahead)))
    # No request for all the responses between: what is known of the connection cannot be true.
    assert await peer.gone() == b""
    assert (await issued.end()).outcome is Outcome.UNKNOWN


# --- retry and reassignment -----------------------------------------------------------------------------------


def alike(first: Pdu, second: Pdu) -> bool:
    """Whether two PDUs are the same but for ExpStatSN."""
    return all(pdu.bhs[28:32] for pdu in (first, second)) and (
        (first.bhs[:28], first.bhs[32:], first.ahs, first.data)
        == (second.bhs[:28], second.bhs[32:], second.ahs, second.data)
    )


CASES = {
    "read": (READ_10, {"read": 2 * SIZE}),
    "write": (WRITE_10, {"write": PATTERN[: 2 * SIZE]}),
    "long CDB": (bytes.fromhex("7f") + bytes(range(31)), {"read": SIZE}),
    "both": (WRITE_10, {"read": SIZE, "write": PATTERN[:SIZE]}),
}


@pytest.mark.parametrize("copy", ["whole header", "basic header"])
@pytest.mark.parametrize("case", CASES)
async def test_X_23_a_retry_is_the_same_pdu(rig: Rig, level: int, case: str, copy: str) -> None:
    peer, nexus, listener = await rig.recovering(level, ("CRC32C", "CRC32C"), {"ImmediateData": "Yes"})
    cdb, options = CASES[case]
    Issued(nexus, cdb, **options)  # type: ignore[arg-type]
    command = await peer.expect(wire.COMMAND)
    assert bool(command.data) == ("write" in options)
    peer.exp_cmd_sn = command.cmdsn
    # A Reject returns the header (10.17.4); some targets leave its AHS out.
    await peer.raw(peer.reject(0x02, None, command.bhs + (command.ahs if copy == "whole header" else b"")))
    assert alike(await peer.expect(wire.COMMAND), command)
    assert not listener.losses


async def test_X_23_what_was_acknowledged_is_not_sent_again(rig: Rig, level: int) -> None:
    rig.hurry(recovery=0.1)
    peer, nexus, listener = await rig.recovering(level)
    issued = Issued(nexus, READ_10, read=SIZE)
    command = await peer.expect(wire.COMMAND)
    await acknowledge(peer)
    until = now() + 0.6
    while (left := until - now()) > 0:
        try:
            pdu = await peer.recv(left)
        except TimeoutError:
            break
        assert pdu.opcode == wire.NOP_OUT
        await peer.answer(pdu)
    await peer.answer(command)
    await issued.good()
    assert not listener.losses


async def test_X_25_no_task_is_reassigned_before_its_connection_is_logged_out(rig: Rig) -> None:
    peers, nexus, listener = await pair(rig)
    issued, command = await on_second(nexus, peers, read=4 * SIZE)
    await acknowledge(peers[0])
    peers[1].reset()
    cid = peers[1].requests[0].cid
    logout = await recovery_logout(peers[0], cid)
    await peers[0].quiet(0.3)
    # 3: the clean-up failed (10.15.1); the connection is not logged out by that.
    await peers[0].raw(peers[0].numbered(wire.LOGOUT_RESPONSE, 0x80, 3, itt=logout.itt, time2wait=0, time2retain=5))
    logout = await recovery_logout(peers[0], cid)
    await peers[0].raw(peers[0].numbered(wire.LOGOUT_RESPONSE, itt=logout.itt, time2wait=0, time2retain=5))
    request = await reassigned(peers[0], command)
    await answer(peers[0], request)
    await finish_read(peers[0], command, request.expdatasn)
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]
    assert not listener.losses


async def rejoined(rig: Rig, first: Peer) -> Peer:
    """Let a lost session be continued by one connection."""
    peer = await rig.target.accept()
    return await peer.join(first)


async def test_X_29_a_dropped_session_is_continued_after_the_wait_that_the_event_names(rig: Rig) -> None:
    peers, nexus, listener = await pair(rig)
    issued, command = await on_second(nexus, peers, read=4 * SIZE)
    await acknowledge(peers[0])
    told = now()
    await peers[0].raw(peers[0].asynchronous(3, p2=1, p3=6))
    for peer in peers:
        assert await peer.gone() == b""
    again = await rejoined(rig, peers[0])
    assert 1.0 <= now() - told < 2.0
    assert again.requests[0].tsih == TSIH
    # The other lost connection is logged out on this one, or by a login of its own.
    there = again
    if again.requests[0].cid != peers[1].requests[0].cid:
        pdu = await beside_pings(again)
        assert (pdu.opcode, pdu.bhs[1], pdu.cid) == (wire.LOGOUT, 0x82, peers[1].requests[0].cid)
        await again.raw(again.numbered(wire.LOGOUT_RESPONSE, itt=pdu.itt, time2retain=6))
    request = await reassigned(there, command)
    await answer(there, request)
    await finish_read(there, command, request.expdatasn)
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]
    assert (listener.losses, listener.logins) == ([], 1)


# --- negotiation ----------------------------------------------------------------------------------------------


async def test_X_30_a_redirected_login_takes_its_policy_with_it(rig: Rig) -> None:
    elsewhere = await rig.listen()
    peer, _, _ = await rig.login(
        credentials=CHAP_USER, header_digest=("crc32c",), data_digest=("crc32c",), error_recovery_level=2
    )
    first = await peer.login_request()
    await peer.answer_login(first, wire.text(("TargetAddress", elsewhere.portal)), flags=0, status=0x0101)
    there = await elsewhere.accept()
    second = await there.login_request()
    assert (second.isid, second.tsih, second.csg) == (first.isid, 0, 0)
    assert second.keys == first.keys
    keys = second.keys
    assert (keys["InitiatorName"], keys["TargetName"], keys["AuthMethod"]) == (INITIATOR, TARGET, "CHAP")
    # A target that would do without authentication is refused here as it would be there.
    await there.answer_login(second, wire.text("TargetPortalGroupTag=1", "AuthMethod=None"))
    assert USER.encode() not in await there.gone()


async def test_X_31_a_login_response_that_is_continued_is_answered_by_an_empty_request(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    request = await peer.pass_security()
    data = wire.text(*peer.answers(request, {"MaxBurstLength": "20480"}))
    for at in range(0, len(data) - 33, 33):
        await peer.answer_login(request, data[at : at + 33], flags=0x44)
        request = await peer.login_request()
        assert (request.data, request.more, request.csg) == (b"", False, 1)
    rest = data[len(data) // 33 * 33 if len(data) % 33 else len(data) - 33 :]
    await peer.answer_login(request, rest, tsih=TSIH)
    await listener.until(lambda: listener.logins)
    assert nexus.negotiated is not None
    assert nexus.negotiated.max_burst_length == 20480


async def test_X_32_a_connection_has_one_text_request_outstanding(rig: Rig) -> None:
    peer, _, listener = await rig.session()
    await peer.raw(peer.asynchronous(4, p3=3) + peer.asynchronous(4, p3=3))
    request = await peer.expect(wire.TEXT)
    await peer.quiet(0.2)
    await peer.raw(peer.numbered(wire.TEXT_RESPONSE, itt=request.itt, ttt=wire.NONE_TAG))
    # The second event may be served by the same exchange, or by one that follows.
    await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=0x31, lun=LUN))
    while (pdu := await peer.recv()).opcode == wire.TEXT:
        await peer.raw(peer.numbered(wire.TEXT_RESPONSE, itt=pdu.itt, ttt=wire.NONE_TAG))
    assert (pdu.opcode, pdu.ttt) == (wire.NOP_OUT, 0x31)
    assert not listener.losses


@pytest.mark.parametrize("how", ["refused", "closed"])
async def test_X_33_where_no_level_is_declared_the_highest_is_offered_and_then_less(rig: Rig, how: str) -> None:
    peer, nexus, listener = await rig.login(error_recovery_level=None)
    for level in ("2", "1", "0"):
        request = await peer.pass_security()
        offer = dict(request.pairs)
        assert offer["ErrorRecoveryLevel"] == level
        assert (offer["MaxOutstandingR2T"] == "1") is (level != "0")
        if level == "0":
            break
        if how == "refused":
            await peer.answer_login(request, flags=0, status=0x0200)
        else:
            peer.writer.close()
        peer = await rig.target.accept()
    await peer.operational(request, {})
    await listener.until(lambda: listener.logins)
    assert nexus.negotiated is not None
    assert nexus.negotiated.error_recovery_level == 0


@pytest.mark.parametrize("level", LEVELS, ids="level{}".format)
async def test_X_33_a_level_that_is_declared_is_offered_as_it_is(rig: Rig, level: int) -> None:
    peer, nexus, listener = await rig.login(error_recovery_level=level)
    request = await peer.pass_security()
    assert dict(request.pairs)["ErrorRecoveryLevel"] == str(level)
    await peer.operational(request, {"ErrorRecoveryLevel": str(level), "MaxOutstandingR2T": "1"})
    await listener.until(lambda: listener.logins)
    assert nexus.negotiated is not None
    assert nexus.negotiated.error_recovery_level == level
