# SPDX-License-Identifier: GPL-3.0-or-later
"""MCS: several connections a session, as they are at every recovery level (RFC 3720 3.2.2, 5.3, 10.14, 12)."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import INITIATOR, LUN, READ_10, TARGET, WRITE_10, Issued, Rig
from tests.conformance.raw_target import Peer

from blockfleet.balance.policy import LoadBalancePolicy
from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionSpec
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

LEADING_ONLY = {
    "MaxConnections", "InitialR2T", "ImmediateData", "MaxBurstLength", "FirstBurstLength", "DefaultTime2Wait",
    "DefaultTime2Retain", "MaxOutstandingR2T", "DataPDUInOrder", "DataSequenceInOrder", "ErrorRecoveryLevel",
    "TaskReporting", "iSCSIProtocolLevel",
}  # fmt: skip
"""Use: LO in RFC 3720 chapter 12 and RFC 7143 chapter 13."""


async def test_LGN_10_a_further_connection_carries_the_tsih_of_the_session(rig: Rig) -> None:
    peers, nexus, _ = await rig.several(3)
    assert [peer.requests[0].tsih for peer in peers] == [0, 0x51AB, 0x51AB]
    assert nexus.tsih == 0x51AB


async def test_MCS_01_a_further_connection_logs_in_as_the_rfc_says(rig: Rig, digests: tuple[str, str]) -> None:
    peers, nexus, listener = await rig.several(3, digests=digests)
    for peer in peers[1:]:
        first = peer.requests[0]
        assert (first.isid, first.tsih) == (peers[0].requests[0].isid, 0x51AB)
        assert (first.keys["InitiatorName"], first.keys["TargetName"]) == (INITIATOR, TARGET)
        assert (first.immediate, first.cmdsn) == (True, peers[0].requests[0].cmdsn)
        assert {request.cid for request in peer.requests} == {first.cid}
    assert len({peer.requests[0].cid for peer in peers}) == 3
    assert listener.logins == 1
    good = [Issued(nexus) for _ in range(6)]
    serving = [rig.background(peer.serve()) for peer in peers]
    for issued in good:
        await issued.good()
    assert all(not task.done() for task in serving)


async def test_KEY_35_keys_of_the_leading_login_are_not_sent_again(rig: Rig) -> None:
    peers, _, _ = await rig.several(2)
    sent = {name for request in peers[1].requests for name, _ in request.pairs}
    leading = {name for request in peers[0].requests for name, _ in request.pairs}
    assert LEADING_ONLY - leading == {"TaskReporting", "iSCSIProtocolLevel"}
    assert not sent & LEADING_ONLY
    assert {"HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength"} <= sent


async def test_MCS_02_further_connections_wait_for_the_end_of_the_leading_login(rig: Rig) -> None:
    peer, nexus, _ = await rig.login(connections=rig.further(1))
    request = await peer.pass_security()
    await rig.target.no_connection(0.15)
    await peer.operational(request, {"MaxConnections": "4"})
    await (await rig.target.accept()).join(peer)
    await rig.connected(nexus, 2)


@pytest.mark.parametrize(("granted", "count"), [("1", 1), ("2", 2)])
async def test_MCS_03_there_are_no_more_connections_than_agreed(rig: Rig, granted: str, count: int) -> None:
    peer, nexus, listener = await rig.session({"MaxConnections": granted}, connections=rig.further(3))
    assert int(peer.offers["MaxConnections"]) >= 4
    for _ in range(count - 1):
        await (await rig.target.accept()).join(peer)
    await rig.connected(nexus, count)
    await rig.target.no_connection(0.2)
    assert not listener.losses


async def test_MCS_04_a_portal_of_another_group_is_never_joined(rig: Rig) -> None:
    elsewhere = await rig.listen()
    spec = ConnectionSpec(Portal.parse(elsewhere.portal))
    peer, nexus, listener = await rig.session({"MaxConnections": "4"}, connections=(spec,))
    serving = rig.background(peer.serve())
    other = await elsewhere.accept()
    other.numbering = peer.numbering
    request = await other.login_request()
    await other.answer_login(request, wire.text("TargetPortalGroupTag=2", "AuthMethod=None"))
    await other.gone()
    await Issued(nexus).good()
    assert (listener.losses, serving.done()) == ([], False)


@pytest.mark.parametrize("status", [0x0206, 0x0208, 0x020A], ids=hex)
async def test_MCS_05_a_refused_connection_leaves_the_session_running(rig: Rig, status: int) -> None:
    peer, nexus, listener = await rig.session({"MaxConnections": "4"}, connections=rig.further(1))
    serving = rig.background(peer.serve())
    other = await rig.target.accept()
    await other.answer_login(await other.login_request(), flags=0, status=status)
    await other.gone()
    for _ in range(3):
        await Issued(nexus).good()
    await rig.target.no_connection(0.2)
    assert (listener.losses, serving.done()) == ([], False)


async def test_MCS_05_where_the_session_is_said_to_be_gone_its_other_connections_are_asked(rig: Rig) -> None:
    peer, _, listener = await rig.session({"MaxConnections": "4"}, connections=rig.further(1))
    other = await rig.target.accept()
    await other.answer_login(await other.login_request(), flags=0, status=0x020A)
    await peer.answer(await peer.expect(wire.NOP_OUT))
    assert not listener.losses


async def test_MCS_07_one_cmdsn_for_the_session_and_one_statsn_for_each_connection(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peers, nexus, listener = await rig.several(4, digests=digests)
    commands = [Issued(nexus) for _ in range(40)]
    seen = []
    for peer in peers:
        for _ in range(10):
            pdu = await peer.expect(wire.COMMAND)
            seen.append(pdu)
            await peer.answer(pdu)
    first = peers[0].requests[0].cmdsn
    assert sorted(pdu.cmdsn - first & 0xFFFFFFFF for pdu in seen) == list(range(40))
    assert len({pdu.itt for pdu in seen}) == 40
    for issued in commands:
        await issued.good()
    for peer in peers:
        await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=3))
        assert (await peer.expect(wire.NOP_OUT)).expstatsn == peer.stat_sn
    assert not listener.losses


async def test_MCS_07_data_and_answers_stay_on_the_connection_of_their_command(rig: Rig) -> None:
    peers, nexus, _ = await rig.several(2)
    commands = [Issued(nexus, WRITE_10, write=bytes([n]) * 9000) for n in range(4)]
    for peer in peers:
        for command in [await peer.expect(wire.COMMAND) for _ in range(2)]:
            assert len(set(await peer.take_write(command))) == 1
    for issued in commands:
        await issued.good()


async def test_MCS_08_a_slow_connection_does_not_stop_the_others(rig: Rig) -> None:
    (slow, quick), nexus, listener = await rig.several(2)
    quick.window = slow.window = 16
    first = [Issued(nexus) for _ in range(2)]
    held = await slow.expect(wire.COMMAND)
    serving = rig.background(quick.serve())
    # ExpCmdSN stands at the command of the slow one; MaxCmdSN leaves room for others.
    others = [Issued(nexus) for _ in range(12)]
    done = 0
    async with asyncio.timeout(3.0):
        while done < 6:
            done = sum(not issued.running for issued in others)
            await asyncio.sleep(0.01)
    rig.background(slow.serve())
    await slow.raw(slow.response(held.itt))
    for issued in [*first, *others]:
        await issued.good()
    assert (listener.losses, serving.done()) == ([], False)


async def test_MCS_09_one_connection_is_removed_while_the_session_goes_on(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peers, nexus, listener = await rig.several(2, digests=digests)
    leaving = peers[1]
    cid = leaving.requests[0].cid
    pending = [Issued(nexus) for _ in range(4)]
    held = [await leaving.expect(wire.COMMAND) for _ in range(2)]
    staying = rig.background(peers[0].serve())
    nexus.remove_connection(cid)
    await leaving.quiet()  # its tasks end first
    for command in held:
        await leaving.answer(command)
    logout = await leaving.expect(wire.LOGOUT)
    assert (logout.bhs[1], logout.cid, logout.immediate) == (0x81, cid, True)
    await leaving.answer(logout)
    await leaving.gone()
    for issued in [*pending, *(Issued(nexus) for _ in range(3))]:
        await issued.good()
    assert (listener.losses, staying.done()) == ([], False)


async def test_CTL_25_one_logout_closes_all_connections_of_a_session(rig: Rig) -> None:
    peers, nexus, _ = await rig.several(4)
    stopping = rig.background(nexus.stop())
    logouts = []
    for peer in peers:
        try:
            pdu = await peer.recv(0.3)
        except TimeoutError:
            continue
        assert (pdu.opcode, pdu.bhs[1]) == (wire.LOGOUT, 0x80)
        logouts.append((peer, pdu))
    ((peer, logout),) = logouts
    await peer.answer(logout)
    for one in peers:
        assert await one.gone() == b""
    await stopping


async def test_CTL_09_a_request_to_log_out_one_connection_leaves_the_others(rig: Rig) -> None:
    peers, nexus, listener = await rig.several(2)
    cid = peers[1].requests[0].cid
    await peers[1].raw(peers[1].asynchronous(1, p3=3))
    logout = await peers[1].expect(wire.LOGOUT)
    assert (logout.bhs[1], logout.cid) == (0x81, cid)
    await peers[1].answer(logout)
    await peers[1].gone()
    serving = rig.background(peers[0].serve())
    await Issued(nexus).good()
    assert (listener.losses, serving.done()) == ([], False)


async def test_TMF_07_a_task_is_aborted_on_the_connection_that_it_is_allegiant_to(rig: Rig) -> None:
    rig.hurry(abort=1.0)
    peers, nexus, _ = await rig.several(2)
    issued = [Issued(nexus, timeout=0.2) for _ in range(2)]
    for peer in peers:
        command = await peer.expect(wire.COMMAND)
        request = await peer.expect(wire.TASK_REQUEST)
        assert (request.rtt, request.refcmdsn) == (command.itt, command.cmdsn)
        await peer.answer(request)
    assert [(await one.end()).outcome for one in issued] == [Outcome.ABORTED] * 2


async def test_MCS_21_below_level_2_a_lost_connection_ends_its_tasks_and_they_go_out_anew(rig: Rig) -> None:
    peers, nexus, listener = await rig.several(2)
    issued = [Issued(nexus) for _ in range(4)]
    numbers = [(await peer.expect(wire.COMMAND)).cmdsn for peer in peers for _ in range(2)]
    peers[1].reset()
    await listener.loss()
    assert [(await one.end()).outcome for one in issued] == [Outcome.UNKNOWN] * 4
    again = await (await rig.target.accept()).log_in({"MaxConnections": "4"})
    assert again.requests[0].tsih == 0
    await listener.until(lambda: listener.logins == 2)
    anew = Issued(nexus)
    command = await again.expect(wire.COMMAND)
    assert command.cmdsn == again.requests[0].cmdsn
    await again.answer(command)
    await anew.good()
    assert len(set(numbers)) == 4


# --- policies -------------------------------------------------------------------------------------------------

UNEQUAL = [(0, False), (7, False), (3, True)]
"""Weight and standby of three connections."""


async def distribution(rig: Rig, policy: LoadBalancePolicy, slow: int | None = None) -> tuple[list[int], Nexus]:
    """Run forty commands, eight at a time; return how many each connection got."""
    (weight, standby), *others = UNEQUAL
    portal = Portal.parse(rig.target.portal)
    specs = tuple(ConnectionSpec(portal, *other) for other in others)
    peers, nexus, _ = await rig.several(
        3, connections=specs, weight=weight, standby=standby, connection_policy=policy
    )
    return await counted(rig, peers, nexus, slow), nexus


async def counted(rig: Rig, peers: list[Peer], nexus: Nexus, slow: int | None) -> list[int]:
    counts = [0] * len(peers)

    async def serve(place: int) -> None:
        while True:
            pdu = await peers[place].expect(wire.COMMAND, 3600)
            counts[place] += 1
            if place == slow:
                await asyncio.sleep(0.1)
            await peers[place].answer(pdu)

    servers = [rig.background(serve(place)) for place in range(len(peers))]
    for _ in range(5):
        for issued in [Issued(nexus, READ_10, read=512) for _ in range(8)]:
            await issued.good()
    for server in servers:
        server.cancel()
    await asyncio.gather(*servers, return_exceptions=True)
    assert sum(counts) == 40
    return counts


async def test_MCS_23_fail_over_only_uses_the_first(rig: Rig) -> None:
    counts, _ = await distribution(rig, LoadBalancePolicy.FAIL_OVER_ONLY)
    assert counts == [40, 0, 0]


async def test_MCS_23_round_robin_uses_all_alike(rig: Rig) -> None:
    counts, _ = await distribution(rig, LoadBalancePolicy.ROUND_ROBIN)
    assert max(counts) - min(counts) <= 1


async def test_MCS_23_round_robin_with_subset_spares_the_standby(rig: Rig) -> None:
    counts, _ = await distribution(rig, LoadBalancePolicy.ROUND_ROBIN_WITH_SUBSET)
    assert counts == [20, 20, 0]


async def test_MCS_23_weighted_path_uses_the_lightest(rig: Rig) -> None:
    counts, _ = await distribution(rig, LoadBalancePolicy.WEIGHTED_PATH)
    assert counts == [40, 0, 0]


async def test_MCS_23_least_queue_depth_spares_the_slow(rig: Rig) -> None:
    counts, _ = await distribution(rig, LoadBalancePolicy.LEAST_QUEUE_DEPTH, slow=1)
    assert all(count >= 10 for count in counts)
    assert counts[1] <= 15


async def test_MCS_04_lun_of_a_command_is_the_same_on_every_connection(rig: Rig) -> None:
    peers, nexus, _ = await rig.several(2)
    for _ in range(2):
        Issued(nexus)
    assert {(await peer.expect(wire.COMMAND)).lun for peer in peers} == {LUN}
