# SPDX-License-Identifier: GPL-3.0-or-later
"""ERR1 at error recovery levels 1 and 2: lost and damaged PDUs cost no connection (RFC 3720 chapter 6, 10.16)."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig
from tests.conformance.raw_target import Peer
from tests.conformance.wire import Pdu

from blockfleet.model.isdsc import Isdsc
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

PATTERN = bytes(n * 31 + (n >> 9) & 255 for n in range(1 << 14))
SIZE = 512
LEVELS = [1, 2]
WITH_HEADER_DIGEST = [("CRC32C", "None"), ("CRC32C", "CRC32C")]
WITH_DATA_DIGEST = [("None", "CRC32C"), ("CRC32C", "CRC32C")]

Session = tuple[Peer, Nexus, Listener]


async def acknowledged(peer: Peer) -> int:
    """Ask for a sign of life and return the ExpStatSN that it carries."""
    await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=0x4321, lun=LUN))
    answer = await peer.expect(wire.NOP_OUT)
    assert answer.ttt == 0x4321
    return answer.expstatsn


async def begun_read(nexus: Nexus, peer: Peer, count: int) -> tuple[Issued, int, list[bytearray]]:
    """Issue a read; return it, its tag, and the Data-In that answer it, the last one with status."""
    issued = Issued(nexus, READ_10, read=count * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    parts = [PATTERN[n * SIZE : (n + 1) * SIZE] for n in range(count)]
    pdus = [peer.data_in(itt, n, n * SIZE, part) for n, part in enumerate(parts[:-1])]
    return issued, itt, [*pdus, peer.last_data_in(itt, count - 1, (count - 1) * SIZE, parts[-1])]


async def snack(peer: Peer, kind: int, first: int, count: int, itt: int = wire.NONE_TAG) -> Pdu:
    """Take a SNACK and hold it to its form (10.16)."""
    pdu = await peer.expect(wire.SNACK, 2.0)
    assert (pdu.bhs[1], pdu.begrun, pdu.runlength) == (kind, first, count)
    assert (pdu.itt, pdu.ttt) == (itt, wire.NONE_TAG)
    assert (pdu.data, pdu.ahs, pdu.bhs[2:4]) == (b"", b"", b"\0\0")
    assert not any(pdu.bhs[24:28] + pdu.bhs[32:40])
    return pdu


async def beside_pings(peer: Peer) -> Pdu:
    """Take the next PDU that is not a ping; those are answered."""
    while (pdu := await peer.recv(3.0)).opcode == wire.NOP_OUT:
        await peer.answer(pdu)
    return pdu


async def whole(issued: Issued, count: int, listener: Listener) -> None:
    """Hold that a read has every byte, once, and that nothing was lost for it."""
    command = await issued.good()
    assert bytes(issued.buffer) == PATTERN[: count * SIZE]
    assert command.data_in_count == count * SIZE
    assert not listener.losses


# --- Data-In --------------------------------------------------------------------------------------------------


async def test_ERR1_07_a_missing_data_in_is_asked_for_before_its_status_is_acknowledged(
    rig: Rig, digests: tuple[str, str], level: int
) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    status_sn = peer.stat_sn
    issued, itt, pdus = await begun_read(nexus, peer, 8)
    for n in (0, 1, 2, 4):
        await peer.raw(pdus[n])
    asked = await snack(peer, wire.DATA_SNACK, 3, 1, itt)
    assert asked.expstatsn == status_sn
    for n in (5, 6, 7):
        await peer.raw(pdus[n])
    assert await acknowledged(peer) == status_sn
    assert issued.running
    await peer.raw(pdus[3])
    await whole(issued, 8, listener)
    assert await acknowledged(peer) == wire.serial_add(status_sn)


async def test_ERR1_07_several_gaps_are_asked_for_exactly(rig: Rig, level: int) -> None:
    peer, nexus, listener = await rig.recovering(level)
    issued, itt, pdus = await begun_read(nexus, peer, 8)
    for n in (0, 3, 6):
        await peer.raw(pdus[n])
    for first in (1, 4):
        await snack(peer, wire.DATA_SNACK, first, 2, itt)
    for n in (4, 5, 2, 1, 7):
        await peer.raw(pdus[n])
    await whole(issued, 8, listener)


async def test_ERR1_07_a_missing_last_data_in_shows_by_the_count_of_the_response(
    rig: Rig, digests: tuple[str, str], level: int
) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    issued = Issued(nexus, READ_10, read=4 * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    pdus = [
        peer.data_in(itt, n, n * SIZE, PATTERN[n * SIZE : (n + 1) * SIZE], wire.F if n == 3 else 0)
        for n in range(4)
    ]
    for n in range(3):
        await peer.raw(pdus[n])
    await peer.raw(peer.response(itt, expdatasn=4))
    await snack(peer, wire.DATA_SNACK, 3, 1, itt)
    assert issued.running
    await peer.raw(pdus[3])
    await whole(issued, 4, listener)


@pytest.mark.parametrize("digests", WITH_DATA_DIGEST, ids="-".join)
async def test_ERR1_03_damaged_data_are_asked_for_again(rig: Rig, digests: tuple[str, str], level: int) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    issued, itt, pdus = await begun_read(nexus, peer, 4)
    damaged = bytearray(pdus[2])
    damaged[-100] ^= 0x10
    for pdu in (pdus[0], pdus[1], damaged, pdus[3]):
        await peer.raw(pdu)
    await snack(peer, wire.DATA_SNACK, 2, 1, itt)
    assert issued.running
    await peer.raw(pdus[2])
    await whole(issued, 4, listener)
    assert nexus.counters["digest_errors"] == 1


async def test_ERR1_10_everything_lost_is_asked_for_and_taken_once(rig: Rig, level: int) -> None:
    peer, nexus, listener = await rig.recovering(level)
    issued = Issued(nexus, READ_10, read=4 * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    pdus = [peer.data_in(itt, n, n * SIZE, PATTERN[n * SIZE : (n + 1) * SIZE]) for n in range(4)]
    await peer.raw(peer.response(itt, expdatasn=4))
    asked = await peer.expect(wire.SNACK, 2.0)
    # 0 and 0 means whatever is not acknowledged; here that is the same.
    assert (asked.bhs[1], asked.itt, asked.begrun) == (wire.DATA_SNACK, itt, 0)
    assert asked.runlength in (0, 4)
    for pdu in pdus:
        await peer.raw(pdu * 2)
    await whole(issued, 4, listener)
    await peer.quiet()


async def test_ERR1_10_a_part_that_is_lost_is_never_asked_for_as_everything(rig: Rig, level: int) -> None:
    peer, nexus, _ = await rig.recovering(level)
    _, itt, pdus = await begun_read(nexus, peer, 4)
    await peer.raw(pdus[1])
    await snack(peer, wire.DATA_SNACK, 0, 1, itt)


@pytest.mark.parametrize("response", ["before", "after"])
async def test_ERR1_11_data_that_cannot_be_sent_again_fail_their_task(rig: Rig, level: int, response: str) -> None:
    peer, nexus, listener = await rig.recovering(level)
    issued = Issued(nexus, READ_10, read=3 * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    for n in (0, 2):
        await peer.raw(peer.data_in(itt, n, n * SIZE, PATTERN[n * SIZE : (n + 1) * SIZE]))
    asked = await snack(peer, wire.DATA_SNACK, 1, 1, itt)
    end = lambda: peer.response(itt, expdatasn=3)  # noqa: E731 - numbered when it is sent
    if response == "before":
        await peer.raw(end())
        await peer.raw(peer.reject(0x03, asked))
    else:
        await peer.raw(peer.reject(0x03, asked))
        await peer.raw(end())
    command = await issued.end()
    assert (command.outcome, command.status) != (Outcome.COMPLETE, 0)
    assert not listener.losses
    good = Issued(nexus)
    await peer.answer(await peer.expect(wire.COMMAND))
    await good.good()


# --- DataACK --------------------------------------------------------------------------------------------------


async def data_ack(peer: Peer, expected: int, ttt: int) -> None:
    """Take a DataACK (10.16.2)."""
    pdu = await peer.expect(wire.SNACK, 2.0)
    assert (pdu.bhs[1], pdu.begrun, pdu.runlength) == (wire.DATA_ACK, expected, 0)
    assert (pdu.itt, pdu.ttt, pdu.lun) == (wire.NONE_TAG, ttt, LUN)


async def test_ERR1_13_a_gap_is_asked_for_before_data_are_acknowledged(
    rig: Rig, digests: tuple[str, str], level: int
) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    issued, itt, pdus = await begun_read(nexus, peer, 5)
    await peer.raw(pdus[0])
    flags = wire.F | wire.ACKNOWLEDGE
    marked = peer.data_in(itt, 2, 2 * SIZE, PATTERN[2 * SIZE : 3 * SIZE], flags, ttt=0x77, lun=LUN)
    await peer.raw(marked)
    await snack(peer, wire.DATA_SNACK, 1, 1, itt)
    await peer.quiet()
    await peer.raw(pdus[1])
    await data_ack(peer, 3, 0x77)
    await peer.raw(pdus[3])
    await peer.raw(pdus[4])
    await whole(issued, 5, listener)


async def test_ERR1_13_without_a_gap_data_are_acknowledged_at_once(rig: Rig, level: int) -> None:
    peer, nexus, listener = await rig.recovering(level)
    issued, itt, pdus = await begun_read(nexus, peer, 3)
    await peer.raw(pdus[0])
    await peer.raw(
        peer.data_in(itt, 1, SIZE, PATTERN[SIZE : 2 * SIZE], wire.F | wire.ACKNOWLEDGE, ttt=0x78, lun=LUN)
    )
    await data_ack(peer, 2, 0x78)
    await peer.raw(pdus[2])
    await whole(issued, 3, listener)


async def test_ERR1_15_what_was_acknowledged_is_not_asked_for_again(rig: Rig, level: int) -> None:
    rig.hurry(recovery=0.2)
    peer, nexus, listener = await rig.recovering(level)
    issued, itt, pdus = await begun_read(nexus, peer, 6)
    await peer.raw(pdus[0])
    await peer.raw(
        peer.data_in(itt, 1, SIZE, PATTERN[SIZE : 2 * SIZE], wire.F | wire.ACKNOWLEDGE, ttt=0x79, lun=LUN)
    )
    await data_ack(peer, 2, 0x79)
    await peer.raw(pdus[5])
    for _ in range(3):
        asked = await beside_pings(peer)
        assert (asked.opcode, asked.bhs[1], asked.begrun, asked.runlength) == (wire.SNACK, wire.DATA_SNACK, 2, 3)
    for n in (0, 1, 2, 3, 4):
        await peer.raw(pdus[n])
    await whole(issued, 6, listener)


async def test_ERR1_16_our_limit_is_declared_once_so_that_data_come_again_as_they_were(rig: Rig) -> None:
    """The condition of the row, a new MaxRecvDataSegmentLength of ours while a read runs."""
    peer, nexus, listener = await rig.recovering(1)
    issued = Issued(nexus, READ_10, read=3 * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 0, PATTERN[:SIZE]))
    await peer.raw(peer.asynchronous(4, p3=3))
    request = await peer.expect(wire.TEXT)
    assert "MaxRecvDataSegmentLength" not in dict(request.pairs)
    await peer.raw(
        peer.numbered(
            wire.TEXT_RESPONSE, data=wire.text("MaxRecvDataSegmentLength=1024"), itt=request.itt, ttt=wire.NONE_TAG
        )
    )
    await peer.raw(peer.last_data_in(itt, 2, 2 * SIZE, PATTERN[2 * SIZE : 3 * SIZE]))
    await snack(peer, wire.DATA_SNACK, 1, 1, itt)
    await peer.raw(peer.data_in(itt, 1, SIZE, PATTERN[SIZE : 2 * SIZE]))
    await whole(issued, 3, listener)


# --- R2T ------------------------------------------------------------------------------------------------------


async def served(peer: Peer, offset: int, length: int, ttt: int) -> None:
    """Take the data that an R2T asked for."""
    data, sn = b"", 0
    while len(data) < length:
        pdu = await peer.expect(wire.DATA_OUT, 2.0)
        assert (pdu.ttt, pdu.datasn, pdu.offset, pdu.lun) == (ttt, sn, offset + len(data), LUN)
        data += pdu.data
        sn += 1
    assert pdu.final
    assert data == PATTERN[offset : offset + length]


async def begun_write(nexus: Nexus, peer: Peer, size: int) -> tuple[Issued, int]:
    issued = Issued(nexus, WRITE_10, write=PATTERN[:size])
    return issued, (await peer.expect(wire.COMMAND)).itt


async def test_ERR1_08_a_missing_r2t_is_asked_for(rig: Rig, digests: tuple[str, str], level: int) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    issued, itt = await begun_write(nexus, peer, 3 * SIZE)
    await peer.raw(peer.r2t(itt, 0x10, 0, 0, SIZE, lun=LUN))
    await served(peer, 0, SIZE, 0x10)
    await peer.quiet()  # nothing but a later PDU shows that one is missing
    await peer.raw(peer.r2t(itt, 0x12, 2, 2 * SIZE, SIZE, lun=LUN))
    await snack(peer, wire.DATA_SNACK, 1, 1, itt)
    await peer.raw(peer.r2t(itt, 0x11, 1, SIZE, SIZE, lun=LUN))
    await served(peer, SIZE, SIZE, 0x11)
    await served(peer, 2 * SIZE, SIZE, 0x12)
    await peer.raw(peer.response(itt, expdatasn=3))
    await issued.good()
    assert not listener.losses


async def test_ERR1_22_a_recovery_r2t_is_served(rig: Rig, digests: tuple[str, str], level: int) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    issued, itt = await begun_write(nexus, peer, 2 * SIZE)
    await peer.raw(peer.r2t(itt, 0x20, 0, 0, SIZE, lun=LUN))
    await served(peer, 0, SIZE, 0x20)
    # The target discards it, and asks for the same range under another tag.
    await peer.raw(peer.r2t(itt, 0x21, 1, 0, SIZE, lun=LUN))
    await served(peer, 0, SIZE, 0x21)
    await peer.raw(peer.r2t(itt, 0x22, 2, SIZE, SIZE, lun=LUN))
    await served(peer, SIZE, SIZE, 0x22)
    await peer.raw(peer.response(itt, expdatasn=3))
    await issued.good()
    assert not listener.losses


@pytest.mark.parametrize("kind", ["data", "r2t", "status"])
async def test_ERR1_17_what_comes_twice_counts_once_and_costs_nothing(rig: Rig, level: int, kind: str) -> None:
    peer, nexus, listener = await rig.recovering(level)
    if kind == "r2t":
        issued, itt = await begun_write(nexus, peer, SIZE)
        await peer.raw(peer.r2t(itt, 0x30, 0, 0, SIZE, lun=LUN) * 2)
        await served(peer, 0, SIZE, 0x30)
        await peer.quiet()
        await peer.raw(peer.response(itt, expdatasn=1) * 2)
        await issued.good()
    else:
        issued, _, pdus = await begun_read(nexus, peer, 3)
        for pdu in pdus[:-1]:
            await peer.raw(pdu * 2)
        await peer.raw(pdus[-1] * (2 if kind == "status" else 1))
        await whole(issued, 3, listener)
    good = Issued(nexus)
    await peer.answer(await peer.expect(wire.COMMAND))
    await good.good()
    assert not listener.losses


# --- status ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digests", WITH_DATA_DIGEST, ids="-".join)
async def test_ERR1_04_a_response_with_a_digest_error_is_asked_for_again(
    rig: Rig, digests: tuple[str, str], level: int
) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    stat_sn = peer.stat_sn
    sense = wire.sense(5, 0x24, 0)
    pdu = peer.response(itt, 2, sense)
    damaged = bytearray(pdu)
    damaged[-6] ^= 1
    await peer.raw(damaged)
    await snack(peer, wire.STATUS_SNACK, stat_sn, 1)
    assert issued.running
    await peer.raw(pdu)
    command = await issued.end()
    assert (command.outcome, command.status, command.sense) == (Outcome.COMPLETE, 2, sense[2:])
    assert not listener.losses


async def test_ERR1_04_a_response_that_is_missing_is_asked_for_and_later_ones_wait(rig: Rig, level: int) -> None:
    peer, nexus, listener = await rig.recovering(level)
    first, second = Issued(nexus), Issued(nexus)
    tags = [(await peer.expect(wire.COMMAND)).itt for _ in range(2)]
    stat_sn = peer.stat_sn
    pdus = [peer.response(itt) for itt in tags]
    await peer.raw(pdus[1])
    await snack(peer, wire.STATUS_SNACK, stat_sn, 1)
    assert await acknowledged(peer) == stat_sn
    await peer.raw(pdus[0])
    await first.good()
    await second.good()
    assert await acknowledged(peer) == wire.serial_add(stat_sn, 2)
    assert not listener.losses


@pytest.mark.parametrize("digests", WITH_DATA_DIGEST, ids="-".join)
async def test_ERR1_05_a_damaged_event_is_asked_for_again_and_acted_on_once(
    rig: Rig, digests: tuple[str, str], level: int
) -> None:
    peer, _, listener = await rig.recovering(level, digests)
    stat_sn = peer.stat_sn
    pdu = peer.asynchronous(0, data=wire.sense(6, 0x29, 0))
    damaged = bytearray(pdu)
    damaged[-5] ^= 0x80
    await peer.raw(damaged)
    await snack(peer, wire.STATUS_SNACK, stat_sn, 1)
    assert not listener.events
    await peer.raw(pdu * 2)
    await listener.until(lambda: listener.events)
    await peer.quiet()
    assert len(listener.events) == 1
    assert not listener.losses


@pytest.mark.parametrize("digests", WITH_DATA_DIGEST, ids="-".join)
async def test_ERR1_05_a_damaged_ping_of_the_targets_is_dropped(
    rig: Rig, digests: tuple[str, str], level: int
) -> None:
    peer, _, listener = await rig.recovering(level, digests)
    pdu = peer.unnumbered(wire.NOP_IN, data=b"ping", itt=wire.NONE_TAG, ttt=5)
    pdu[-5] ^= 0x80
    await peer.raw(pdu)
    await peer.quiet()
    assert await acknowledged(peer) == peer.stat_sn
    assert not listener.losses


async def test_ERR1_09_a_lost_last_response_is_found_out_and_asked_for(rig: Rig, level: int) -> None:
    rig.hurry(recovery=0.2)
    peer, nexus, listener = await rig.recovering(level)
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    stat_sn = peer.stat_sn
    lost = peer.response(itt)
    # The command is acknowledged, so that only its response can be missing.
    await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=wire.NONE_TAG, statsn=stat_sn))
    await peer.answer(await peer.expect(wire.NOP_OUT, 2.0))
    await snack(peer, wire.STATUS_SNACK, stat_sn, 1)
    await peer.raw(lost)
    await issued.good()
    assert not listener.losses


@pytest.mark.parametrize("digests", WITH_HEADER_DIGEST, ids="-".join)
@pytest.mark.parametrize("at", [48, 16, 32], ids="byte {}".format)
async def test_ERR1_02_a_damaged_header_is_passed_over_and_what_it_was_asked_for(
    rig: Rig, digests: tuple[str, str], level: int, at: int
) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    first, second = Issued(nexus), Issued(nexus)
    tags = [(await peer.expect(wire.COMMAND)).itt for _ in range(2)]
    stat_sn = peer.stat_sn
    pdus = [peer.response(itt) for itt in tags]
    damaged = bytearray(pdus[0])
    damaged[at] ^= 0x04
    await peer.raw(damaged + pdus[1])
    request = await beside_pings(peer)
    assert (request.opcode, request.bhs[1], request.begrun) == (wire.SNACK, wire.STATUS_SNACK, stat_sn)
    assert (first.running, listener.losses) == (True, [])
    await peer.raw(pdus[0])
    await first.good()
    await second.good()
    assert not listener.losses


# --- Reject and retry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("digests", [("CRC32C", "CRC32C")], ids="-".join)
async def test_ERR1_19_a_command_that_came_damaged_is_sent_again_with_its_number(
    rig: Rig, digests: tuple[str, str], level: int
) -> None:
    peer, nexus, listener = await rig.recovering(level, digests)
    issued = Issued(nexus, READ_10, read=SIZE)
    command = await peer.expect(wire.COMMAND)
    peer.exp_cmd_sn = command.cmdsn  # not taken
    await peer.raw(peer.reject(0x02, command))
    again = await peer.expect(wire.COMMAND, 2.0)
    assert (again.itt, again.cmdsn, again.bhs[32:48]) == (command.itt, command.cmdsn, command.bhs[32:48])
    await peer.raw(peer.last_data_in(again.itt, 0, 0, PATTERN[:SIZE]))
    await whole(issued, 1, listener)


async def test_ERR1_19_a_command_that_never_arrived_is_sent_again_with_its_number(rig: Rig, level: int) -> None:
    rig.hurry(recovery=0.2)
    peer, nexus, listener = await rig.recovering(level)
    lost, follower = Issued(nexus), Issued(nexus)
    first = await peer.expect(wire.COMMAND)
    second = await peer.expect(wire.COMMAND)
    peer.exp_cmd_sn = first.cmdsn
    # ExpCmdSN stands still at the lost command while the target is alive.
    while (again := await peer.recv(3.0)).opcode != wire.COMMAND:
        peer.exp_cmd_sn = first.cmdsn
        if again.opcode == wire.NOP_OUT:
            await peer.answer(again)
    assert (again.itt, again.cmdsn, again.lun) == (first.itt, first.cmdsn, first.lun)
    peer.exp_cmd_sn = wire.serial_add(second.cmdsn)
    for itt in (first.itt, second.itt):
        await peer.raw(peer.response(itt))
    await lost.good()
    await follower.good()
    assert not listener.losses


async def test_NUM_14_a_retry_is_followed_by_a_numbered_request_that_is_acknowledged(rig: Rig, level: int) -> None:
    """RFC 3720 9.4: an old instance of a retried command cannot come into a later window."""
    rig.hurry(recovery=0.2)
    peer, nexus, listener = await rig.recovering(level, ("CRC32C", "CRC32C"))
    issued = Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    peer.exp_cmd_sn = command.cmdsn
    await peer.raw(peer.reject(0x02, command))
    again = await peer.expect(wire.COMMAND, 2.0)
    assert again.cmdsn == command.cmdsn
    await peer.raw(peer.response(again.itt))
    await issued.good()
    after = Issued(nexus)
    follower = await peer.recv(2.0)
    assert (follower.cmdsn, follower.immediate) == (wire.serial_add(command.cmdsn), False)
    while follower.opcode != wire.COMMAND:
        await peer.answer(follower)
        follower = await peer.recv(2.0)
    await peer.raw(peer.response(follower.itt))
    await after.good()
    assert not listener.losses


async def test_ERR1_23_requests_for_retransmission_are_bounded_and_the_connection_is_recovered(
    rig: Rig, level: int
) -> None:
    rig.hurry(recovery=0.05)
    peer, nexus, listener = await rig.recovering(level, noop_interval=30.0)
    issued, _, pdus = await begun_read(nexus, peer, 4)
    await peer.raw(pdus[0])
    await peer.raw(pdus[2])
    asked = 0
    began = asyncio.get_running_loop().time()
    try:
        while True:
            pdu = await peer.recv(6.0)
            asked += pdu.opcode == wire.SNACK
            if pdu.opcode == wire.NOP_OUT:
                await peer.answer(pdu)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    assert 1 <= asked <= 16
    assert asyncio.get_running_loop().time() - began < 6.0
    again = await (await rig.target.accept()).login_request()
    assert again.tsih == (0x51AB if level == 2 else 0)
    if level == 1:
        await listener.loss()
        assert (await issued.end()).outcome is Outcome.UNKNOWN


# --- negotiation ----------------------------------------------------------------------------------------------


async def test_KEY_28_recovery_with_ordered_sequences_asks_for_one_r2t(rig: Rig, level: int) -> None:
    peer, nexus, _ = await rig.recovering(level)
    assert (peer.offers["ErrorRecoveryLevel"], peer.offers["DataSequenceInOrder"]) == (str(level), "Yes")
    assert peer.offers["MaxOutstandingR2T"] == "1"
    assert nexus.negotiated is not None
    assert nexus.negotiated.max_outstanding_r2t == 1


async def test_KEY_28_an_answer_that_allows_more_is_refused(rig: Rig, level: int) -> None:
    peer, _, listener = await rig.login(error_recovery_level=level)
    request = await peer.pass_security()
    answers = {"ErrorRecoveryLevel": str(level), "MaxOutstandingR2T": "8", "DataSequenceInOrder": "Yes"}
    await peer.answer_login(request, wire.text(*peer.answers(request, answers)), tsih=3)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


@pytest.mark.parametrize("answer", ["0", "1", "2"])
@pytest.mark.parametrize("offer", LEVELS)
async def test_KEY_29_the_level_is_the_smaller_and_no_more_is_used(rig: Rig, offer: int, answer: str) -> None:
    if int(answer) > offer:
        peer, _, listener = await rig.login(error_recovery_level=offer)
        request = await peer.pass_security()
        answers = {"ErrorRecoveryLevel": answer, "MaxOutstandingR2T": "1"}
        await peer.answer_login(request, wire.text(*peer.answers(request, answers)), tsih=3)
        await peer.gone()
        await listener.failure()
        return
    peer, nexus, listener = await rig.recovering(offer, answers={"ErrorRecoveryLevel": answer})
    issued, itt, pdus = await begun_read(nexus, peer, 3)
    await peer.raw(pdus[0])
    await peer.raw(pdus[2])
    if answer == "0":
        assert await peer.gone() == b""
        await listener.loss()
        assert (await issued.end()).outcome is Outcome.UNKNOWN
    else:
        await snack(peer, wire.DATA_SNACK, 1, 1, itt)
