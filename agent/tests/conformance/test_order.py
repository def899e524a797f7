# SPDX-License-Identifier: GPL-3.0-or-later
"""Data in other orders than the natural one, where DataPDUInOrder or DataSequenceInOrder is No (12.18, 12.19)."""

from __future__ import annotations

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Rig
from tests.conformance.raw_target import Peer

from blockfleet.net.nexus import Nexus

SIZE = 512
PATTERN = bytes(n * 41 + (n >> 8) & 255 for n in range(8 * SIZE))
ORDERS = [(3, 2, 1, 0), (1, 0, 3, 2), (2, 0, 3, 1)]


async def unordered(rig: Rig, level: int, digests: tuple[str, str]) -> tuple[Peer, Nexus]:
    """A session in which the target may choose any order."""
    answers = {"DataPDUInOrder": "No", "DataSequenceInOrder": "No", "ErrorRecoveryLevel": str(level)}
    changes = {"data_pdu_in_order": False, "data_sequence_in_order": False, "error_recovery_level": level}
    peer, nexus, _ = await rig.session({**answers, "ImmediateData": "No"}, digests, **changes)
    assert (peer.offers["DataPDUInOrder"], peer.offers["DataSequenceInOrder"]) == ("No", "No")
    return peer, nexus


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
@pytest.mark.parametrize("level", [0, 1, 2], ids="level{}".format)
async def test_DAT_15_sequences_may_be_asked_for_in_any_order(
    rig: Rig, level: int, order: tuple[int, ...], digests: tuple[str, str]
) -> None:
    peer, nexus = await unordered(rig, level, digests)
    issued = Issued(nexus, WRITE_10, write=PATTERN[: 4 * SIZE])
    itt = (await peer.expect(wire.COMMAND)).itt
    for sn, place in enumerate(order):
        await peer.raw(peer.r2t(itt, 0x40 + sn, sn, place * SIZE, SIZE, lun=LUN))
    for sn, place in enumerate(order):
        out = await peer.expect(wire.DATA_OUT)
        assert (out.ttt, out.datasn, out.offset, out.final) == (0x40 + sn, 0, place * SIZE, True)
        assert out.data == PATTERN[place * SIZE : (place + 1) * SIZE]
    await peer.raw(peer.response(itt, expdatasn=len(order)))
    await issued.good()


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
@pytest.mark.parametrize("level", [0, 1, 2], ids="level{}".format)
async def test_KEY_26_data_in_any_order_are_taken_where_that_was_agreed_on(
    rig: Rig, level: int, order: tuple[int, ...]
) -> None:
    peer, nexus = await unordered(rig, level, ("None", "None"))
    issued = Issued(nexus, READ_10, read=4 * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    for sn, place in enumerate(order[:-1]):
        await peer.raw(peer.data_in(itt, sn, place * SIZE, PATTERN[place * SIZE : (place + 1) * SIZE]))
    place = order[-1]
    await peer.raw(peer.last_data_in(itt, 3, place * SIZE, PATTERN[place * SIZE : (place + 1) * SIZE]))
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]


@pytest.mark.parametrize("level", [1, 2], ids="level{}".format)
async def test_X_17_data_in_any_order_with_a_gap_arrive_whole(
    rig: Rig, level: int, digests: tuple[str, str]
) -> None:
    peer, nexus = await unordered(rig, level, digests)
    issued = Issued(nexus, READ_10, read=4 * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    order = (2, 0, 3, 1)
    parts = [PATTERN[place * SIZE : (place + 1) * SIZE] for place in order]
    pdus = [peer.data_in(itt, sn, place * SIZE, parts[sn]) for sn, place in enumerate(order[:-1])]
    pdus.append(peer.last_data_in(itt, 3, order[-1] * SIZE, parts[-1]))
    for sn in (0, 2, 3):
        await peer.raw(pdus[sn])
    asked = await peer.expect(wire.SNACK)
    assert (asked.bhs[1], asked.itt, asked.begrun, asked.runlength) == (wire.DATA_SNACK, itt, 1, 1)
    assert issued.running
    await peer.raw(pdus[1])
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[: 4 * SIZE]


async def test_X_17_a_part_that_comes_twice_under_two_numbers_is_an_error(rig: Rig) -> None:
    peer, nexus = await unordered(rig, 0, ("None", "None"))
    issued = Issued(nexus, READ_10, read=4 * SIZE)
    itt = (await peer.expect(wire.COMMAND)).itt
    for sn, place in enumerate((1, 1)):
        await peer.raw(peer.data_in(itt, sn, place * SIZE, bytes(SIZE)))
    await peer.gone()
    assert not (await issued.end()).status
    assert issued.command.outcome != 1


async def test_X_28_a_bidirectional_command_moves_both_ways_with_its_residuals(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No"}, digests)
    issued = Issued(nexus, WRITE_10, read=3 * SIZE, write=PATTERN[: 2 * SIZE])
    command = await peer.expect(wire.COMMAND)
    assert command.bhs[1] & (wire.READ | wire.WRITE) == wire.READ | wire.WRITE
    for sn, ttt in enumerate((7, 8)):
        await peer.raw(peer.r2t(command.itt, ttt, sn, sn * SIZE, SIZE, lun=LUN))
        out = await peer.expect(wire.DATA_OUT)
        assert (out.ttt, out.data) == (ttt, PATTERN[sn * SIZE : (sn + 1) * SIZE])
    # Data-In and R2T of a bidirectional command share one numbering (10.7.5, 10.8.3).
    await peer.raw(peer.data_in(command.itt, 2, 0, PATTERN[:SIZE]))
    await peer.raw(peer.data_in(command.itt, 3, SIZE, PATTERN[SIZE : 2 * SIZE], wire.F))
    flags = 0x80 | wire.BIDI_UNDERFLOW
    await peer.raw(peer.response(command.itt, b1=flags, expdatasn=4, bidi_residual=SIZE))
    done = await issued.good()
    assert bytes(issued.buffer[: 2 * SIZE]) == PATTERN[: 2 * SIZE]
    assert (done.data_in_count, listener.losses) == (2 * SIZE, [])
