# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery level 1 of the target: SNACK, recovery R2Ts, retries, digests (RFC 3720 6.1 to 6.8, 10.16, 10.17)."""

from __future__ import annotations

import struct

import pytest

from blockfleet_testtarget.faults import build_fault

PATTERN = bytes((3 * index + index // 251) & 0xFF for index in range(16384))
DATA, STATUS, DATA_ACK, R_DATA = range(4)
LEVEL = {"ErrorRecoveryLevel": "1"}
SEGMENTS = {**LEVEL, "MaxRecvDataSegmentLength": "1024"}
DIGESTS = {**LEVEL, "HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "4096"}
SNACK_REJECT, PROTOCOL_ERROR, INVALID_ACK, INVALID_FIELD = 0x03, 0x04, 0x08, 0x09


def arm(endpoint, fault, /, **options):
    return endpoint.arm(build_fault(fault, options))


@pytest.fixture
def begin(start):
    async def begin(**changes):
        keys = {"ErrorRecoveryLevel": 2, **changes.pop("keys", {})}
        target = await start(keys=keys, sequence_timeout=0.1, **changes)
        target.units["disk"].backing.write(0, PATTERN)
        return target

    return begin


def stored(target, length):
    return target.units["disk"].backing.read(0, length)


async def read(one, wire, count):
    """Read 8 KiB and return the next PDUs."""
    itt = one.command(wire.read10(0, 16), read=8192)
    pdus = [await one.receive() for _ in range(count)]
    assert all(pdu.itt == itt for pdu in pdus)
    return pdus


async def rejected(one):
    answer = await one.receive()
    assert answer.opcode == 0x3F, answer
    return answer.byte2


def same_data(a, b):
    return (a.opcode, a.flags, a.byte3, a.lun, a.itt, a.ttt, a.statsn, a.word36, a.word40, a.word44, a.data) == (
        b.opcode, b.flags, b.byte3, b.lun, b.itt, b.ttt, b.statsn, b.word36, b.word40, b.word44, b.data
    )  # fmt: skip


# ---- negotiation


@pytest.mark.parametrize(("wish", "offer", "level"), [(2, "1", "1"), (1, "2", "1"), (2, "2", "2"), (2, "0", "0")])
async def test_level_is_the_lower_of_the_two(begin, session, wish, offer, level):
    one = await session(await begin(keys={"ErrorRecoveryLevel": wish}), ErrorRecoveryLevel=offer)
    assert one.login_answer.text["ErrorRecoveryLevel"] == level


@pytest.mark.parametrize(
    ("wishes", "keys", "granted"),
    [
        ({}, {}, "1"),
        ({"ErrorRecoveryLevel": 0}, {}, "4"),
        ({"DataSequenceInOrder": "No"}, {"DataSequenceInOrder": "No"}, "4"),
        ({"DataSequenceInOrder": "No"}, {"DataSequenceInOrder": "Yes"}, "1"),
    ],
    ids=["recovery", "level 0", "any order", "order"],
)
async def test_sequences_in_order_have_one_outstanding_r2t_12_19(begin, session, wishes, keys, granted):
    one = await session(await begin(keys=wishes), **keys, **LEVEL, MaxOutstandingR2T="8")
    assert one.login_answer.text["MaxOutstandingR2T"] == granted


async def test_snack_at_level_0_is_rejected(begin, session):
    one = await session(await begin())
    one.snack(DATA, itt=1)
    assert await rejected(one) == SNACK_REJECT


# ---- Data SNACK


@pytest.mark.parametrize(
    ("first", "length", "numbers"),
    [(3, 1, [3]), (2, 3, [2, 3, 4]), (5, 0, [5, 6, 7]), (0, 0, list(range(8))), (0, 2, [0, 1]), (7, 1, [7])],
)
async def test_data_snack_brings_exact_replicas_10_16(begin, session, wire, first, length, numbers):
    one = await session(await begin(), **SEGMENTS)
    pdus = await read(one, wire, 8)
    one.snack(DATA, first, length, itt=one.itt)
    for number in numbers:
        assert same_data(await one.receive(), pdus[number])
    await one.nothing_more()


async def test_withheld_data_is_there_for_a_snack(begin, session, wire):
    target = await begin()
    arm(target, "withhold", opcode="data_in", sn=3)
    one = await session(target, **SEGMENTS)
    pdus = await read(one, wire, 7)
    assert [pdu.word36 for pdu in pdus] == [0, 1, 2, 4, 5, 6, 7]
    one.snack(DATA, 3, 1, itt=one.itt)
    again = await one.receive()
    assert (again.word36, again.word40, again.data) == (3, 3072, PATTERN[3072:4096])


async def test_replica_carries_the_window_of_now(begin, session, wire):
    one = await session(await begin(), **SEGMENTS)
    first = (await read(one, wire, 8))[0]
    itt = one.itt
    for _ in range(3):
        one.command(bytes(6))
        await one.receive()
    one.snack(DATA, 0, 1, itt=itt)
    again = await one.receive()
    assert (again.expcmdsn - first.expcmdsn, again.word36) == (3, 0)


@pytest.mark.parametrize(("first", "length"), [(8, 1), (8, 0), (6, 3), (9, 0)])
async def test_snack_for_data_that_was_not_sent_is_rejected_with_the_next_number(
    begin, session, wire, first, length
):
    one = await session(await begin(), **SEGMENTS)
    await read(one, wire, 8)
    one.snack(DATA, first, length, itt=one.itt)
    answer = await one.receive()
    assert (answer.opcode, answer.byte2, answer.word36) == (0x3F, PROTOCOL_ERROR, 8)
    assert answer.data[0] == 0x10


async def test_snack_after_the_status_was_acknowledged_is_rejected(begin, session, wire):
    one = await session(await begin(), **SEGMENTS)
    pdus = await read(one, wire, 8)
    one.expstatsn = pdus[-1].statsn + 1
    one.snack(DATA, 3, 1, itt=one.itt)
    assert await rejected(one) == PROTOCOL_ERROR


@pytest.mark.parametrize("options", [{"itt": 0x7777}, {"itt": 0xFFFFFFFF}], ids=["unknown task", "no task"])
async def test_data_snack_for_no_task_is_rejected(begin, session, wire, options):
    one = await session(await begin(), **SEGMENTS)
    one.snack(DATA, 0, 1, **options)
    assert await rejected(one) == PROTOCOL_ERROR


async def test_data_snack_with_a_tag_and_an_unknown_type_are_invalid(begin, session, wire):
    one = await session(await begin(), **SEGMENTS)
    await read(one, wire, 8)
    one.snack(DATA, 0, 1, itt=one.itt, tag=1)
    assert await rejected(one) == INVALID_FIELD
    one.snack(4, 0, 1, itt=one.itt)
    assert await rejected(one) == INVALID_FIELD


async def test_data_beyond_the_limit_is_not_kept(begin, session, wire):
    target = await begin(keep_bytes=12000)
    one = await session(target, **SEGMENTS)
    first = await read(one, wire, 8)
    second = await read(one, wire, 8)
    one.snack(DATA, 0, 1, itt=first[0].itt)
    assert await rejected(one) == SNACK_REJECT
    one.snack(DATA, 0, 1, itt=second[0].itt)
    assert same_data(await one.receive(), second[0])
    one.snack(STATUS, first[-1].statsn, 1)
    assert same_data(await one.receive(), first[-1])


async def test_rejected_snack_leaves_a_task_with_a_status_as_it_is(begin, session, wire):
    target = await begin()
    arm(target, "reject_snack", kind="data")
    one = await session(target, **SEGMENTS)
    await read(one, wire, 8)
    one.snack(DATA, 1, 1, itt=one.itt)
    assert await rejected(one) == SNACK_REJECT
    await one.nothing_more()


async def test_rejected_snack_ends_a_task_without_a_status_6_7(begin, session, wire):
    target = await begin()
    arm(target, "reject_snack", kind="data")
    one = await session(target, **LEVEL, **SOLICITED)
    itt = one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    one.snack(DATA, 0, 1, itt=itt)
    assert await rejected(one) == SNACK_REJECT
    one.data_out(itt, bytes(4096), ttt=r2t.ttt)
    answer = await one.receive()
    assert (answer.itt, answer.byte3, answer.sense) == (itt, 2, (0x0B, 0x11, 0x13))
    assert stored(target, 4096) == PATTERN[:4096]


async def test_ignored_snacks_of_one_kind(begin, session, wire):
    target = await begin()
    fault = arm(target, "ignore_snack", kind="data")
    one = await session(target, **SEGMENTS)
    pdus = await read(one, wire, 8)
    for _ in range(2):
        one.snack(DATA, 1, 1, itt=one.itt)
    one.snack(STATUS, pdus[-1].statsn, 1)
    assert same_data(await one.receive(), pdus[-1])
    assert fault.struck == 2


# ---- Status SNACK


async def test_status_snack_brings_any_numbered_response_again_10_16(begin, session, wire):
    target = await begin()
    one = await session(target, **SEGMENTS)
    one.command(bytes(6), lun=5)
    failed = await one.receive()
    echo = await one.ping()
    one.send(0x1C, itt=1)
    reject = await one.receive()
    arm(target, "async", event=255, vcode=7)
    event = await one.receive()
    pdus = await read(one, wire, 8)
    sent = [failed, echo, reject, event, pdus[-1]]
    assert [pdu.opcode for pdu in sent] == [0x21, 0x20, 0x3F, 0x32, 0x25]
    assert [pdu.statsn - failed.statsn for pdu in sent] == [0, 1, 2, 3, 4]
    assert failed.sense == (5, 0x25, 0)
    for first, length, wanted in [(failed.statsn, 1, sent[:1]), (echo.statsn, 0, sent[1:]), (0, 0, sent)]:
        one.snack(STATUS, first, length)
        for pdu in wanted:
            assert same_data(await one.receive(), pdu)
    one.expstatsn = reject.statsn + 1
    one.snack(STATUS, 0, 0)
    assert [(await one.receive()).statsn for _ in range(2)] == [event.statsn, pdus[-1].statsn]
    assert not [text for text in target.violations if "opcode" not in text]


@pytest.mark.parametrize("first", [-1, 1], ids=["acknowledged", "not sent"])
async def test_status_that_cannot_be_had_is_a_protocol_error(begin, session, first):
    one = await session(await begin(), **SEGMENTS)
    one.expstatsn = (await one.ping()).statsn + 1
    one.snack(STATUS, one.expstatsn + first, 1)
    assert await rejected(one) == PROTOCOL_ERROR
    await one.nothing_more()


async def test_status_numbers_wrap(begin, connect):
    target = await begin(first_statsn=0xFFFFFFFD)
    one = await connect(target)
    await one.login(**LEVEL)
    answers = [await one.ping() for _ in range(4)]
    assert [answer.statsn for answer in answers] == [0xFFFFFFFE, 0xFFFFFFFF, 0, 1]
    one.snack(STATUS, 0xFFFFFFFF, 2)
    assert [(await one.receive()).statsn for _ in range(2)] == [0xFFFFFFFF, 0]


@pytest.mark.parametrize("in_data", [True, False], ids=["in the data", "apart"])
async def test_withheld_and_repeated_status(begin, session, wire, in_data):
    target = await begin(status_in_data=in_data)
    one = await session(target, **SEGMENTS)
    arm(target, "withhold", opcode="status")
    pdus = await read(one, wire, 7 if in_data else 8)
    assert not any(pdu.flags & 1 for pdu in pdus)
    lost = one.expstatsn
    one.snack(STATUS, lost, 1)
    status = await one.receive()
    assert (status.opcode, status.statsn, status.byte3) == (0x25 if in_data else 0x21, lost, 0)
    assert status.word36 == (7 if in_data else 8)  # DataSN; ExpDataSN (10.4.8)
    one.expstatsn = lost + 1
    arm(target, "duplicate", opcode="status")
    one.command(bytes(6))
    assert same_data(await one.receive(), await one.receive())


# ---- DataACK


@pytest.mark.parametrize(
    ("ask", "flags"),
    [
        ("never", [0, 0, 0x80, 0, 0, 0x81]),
        ("last", [0, 0, 0x80, 0, 0, 0xC1]),
        ("bursts", [0, 0, 0xC0, 0, 0, 0xC1]),
    ],
)
async def test_a_bit_comes_with_a_tag_and_the_lun_10_7_2(begin, session, wire, ask, flags):
    target = await begin(data_ack=ask, target={"luns": {3: "disk"}})
    one = await session(target, **LEVEL, MaxRecvDataSegmentLength="1536", MaxBurstLength="4096")
    one.command(wire.read10(0, 16), read=8192, lun=3)
    pdus = [await one.receive() for _ in range(6)]
    assert [pdu.flags for pdu in pdus] == flags
    for pdu in pdus:
        asks = bool(pdu.flags & 0x40)
        assert (pdu.ttt != 0xFFFFFFFF) == asks
        assert pdu.lun == struct.pack(">H6x", 3 if asks else 0)


async def test_a_bit_is_never_set_at_level_0(begin, session, wire):
    one = await session(await begin(data_ack="bursts"), MaxRecvDataSegmentLength="1024")
    assert not any(pdu.flags & 0x40 for pdu in await read(one, wire, 8))


@pytest.fixture
async def acknowledging(begin, session, wire):
    """A session where 8 Data-In PDUs came and the 4th asked for a DataACK."""
    target = await begin(data_ack="bursts")
    one = await session(target, **SEGMENTS, MaxBurstLength="4096")
    pdus = await read(one, wire, 8)
    assert [pdu.word36 for pdu in pdus if pdu.flags & 0x40] == [3, 7]
    return one, pdus


async def test_acknowledged_data_is_not_sent_again(acknowledging):
    one, pdus = acknowledging
    one.snack(DATA_ACK, 4, tag=pdus[3].ttt, lun=pdus[3].lun)
    one.snack(DATA, 0, 0, itt=one.itt)
    for number in range(4, 8):
        assert same_data(await one.receive(), pdus[number])
    one.snack(DATA, 3, 1, itt=one.itt)
    assert await rejected(one) == PROTOCOL_ERROR


async def test_postponed_acknowledgement_may_name_more_than_was_asked_for(acknowledging):
    one, pdus = acknowledging
    one.snack(DATA_ACK, 6, tag=pdus[3].ttt, lun=pdus[3].lun)
    one.snack(DATA, 0, 0, itt=one.itt)
    assert [(await one.receive()).word36 for _ in range(2)] == [6, 7]


async def test_status_survives_the_acknowledgement_of_all_data(acknowledging):
    one, pdus = acknowledging
    one.snack(DATA_ACK, 8, tag=pdus[7].ttt, lun=pdus[7].lun)
    one.snack(STATUS, pdus[7].statsn, 1)
    assert same_data(await one.receive(), pdus[7])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"first": 4, "tag": 0x7FFFFFF0}, INVALID_ACK),
        ({"first": 3}, INVALID_ACK),
        ({"first": 9}, INVALID_ACK),
        ({"first": 4, "length": 1}, INVALID_FIELD),
        ({"first": 4, "itt": 1}, INVALID_FIELD),
        ({"first": 4, "lun": struct.pack(">H6x", 3)}, INVALID_FIELD),
    ],
    ids=["tag", "too little", "too much", "RunLength", "Initiator Task Tag", "LUN"],
)
async def test_wrong_data_ack_is_rejected(acknowledging, options, reason):
    one, pdus = acknowledging
    one.snack(DATA_ACK, **{"tag": pdus[3].ttt, "lun": pdus[3].lun, **options})
    assert await rejected(one) == reason


async def test_data_ack_serves_once_and_not_after_the_status(acknowledging):
    one, pdus = acknowledging
    for _ in range(2):
        one.snack(DATA_ACK, 4, tag=pdus[3].ttt, lun=pdus[3].lun)
    assert await rejected(one) == INVALID_ACK
    one.expstatsn = pdus[7].statsn + 1
    one.snack(DATA_ACK, 8, tag=pdus[7].ttt, lun=pdus[7].lun)
    assert await rejected(one) == INVALID_ACK


# ---- R-Data SNACK


@pytest.mark.parametrize(
    ("acked", "count"), [(0, 6), (2, 3)], ids=["nothing acknowledged", "a sequence acknowledged"]
)
async def test_r_data_snack_resegments_and_tags_the_response_10_16_3(begin, session, wire, acked, count):
    target = await begin(data_ack="bursts")
    one = await session(target, **LEVEL, MaxRecvDataSegmentLength="2048", MaxBurstLength="4096")
    pdus = await read(one, wire, 4)
    if acked:
        one.snack(DATA_ACK, acked, tag=pdus[1].ttt, lun=pdus[1].lun)
    await one.declare(b"MaxRecvDataSegmentLength=1536\0")
    one.snack(DATA, acked, 1, itt=pdus[0].itt)
    assert await rejected(one) == PROTOCOL_ERROR
    one.snack(R_DATA, itt=pdus[0].itt, tag=0x55)
    again = [await one.receive() for _ in range(count)]
    assert [pdu.word36 for pdu in again] == list(range(acked, acked + count))
    assert all(len(pdu.data) <= 1536 and not pdu.flags & 1 for pdu in again)
    assert b"".join(pdu.data for pdu in again) == PATTERN[4096 if acked else 0 : 8192]
    response = await one.receive()
    assert (response.opcode, response.itt, response.ttt) == (0x21, pdus[0].itt, 0x55)
    assert (response.statsn, response.word36) == (pdus[-1].statsn, acked + count)
    one.snack(STATUS, response.statsn, 1)
    assert same_data(await one.receive(), response)
    one.snack(R_DATA, itt=pdus[0].itt, tag=0x55)
    assert await rejected(one) == INVALID_FIELD
    one.snack(R_DATA, itt=pdus[0].itt, tag=0x56)
    latest = [await one.receive() for _ in range(count + 1)][-1]
    assert (latest.ttt, latest.statsn) == (0x56, response.statsn)


@pytest.mark.parametrize(
    "options", [{"tag": 0}, {"tag": 0xFFFFFFFF}, {"tag": 5, "first": 1}, {"tag": 5, "length": 1}]
)
async def test_r_data_snack_with_a_reserved_tag_or_a_run_is_invalid(begin, session, wire, options):
    one = await session(await begin(), **SEGMENTS)
    await read(one, wire, 8)
    one.snack(R_DATA, itt=one.itt, **options)
    assert await rejected(one) == INVALID_FIELD


# ---- R2T SNACK and recovery R2T


async def test_r2t_snack_brings_the_outstanding_r2t_again(begin, session, wire):
    target = await begin()
    arm(target, "withhold", opcode="r2t", sn=1)
    one = await session(target, **LEVEL, **SOLICITED)
    itt = one.command(wire.write10(0, 16), write=8192)
    r2t = await one.receive()
    one.data_out(itt, PATTERN[:4096], ttt=r2t.ttt)
    one.snack(DATA, 1, 1, itt=itt)
    second = await one.receive()
    assert (second.opcode, second.word36, second.word40, second.word44) == (0x31, 1, 4096, 4096)
    one.snack(DATA, 0, 0, itt=itt)
    assert same_data(await one.receive(), second)
    for first, length in [(0, 1), (2, 1), (2, 0)]:
        one.snack(DATA, first, length, itt=itt)
        answer = await one.receive()
        assert (answer.opcode, answer.byte2, answer.word36) == (0x3F, PROTOCOL_ERROR, 2)
    one.data_out(itt, PATTERN[4096:8192], ttt=second.ttt, offset=4096)
    assert (await one.status()).byte3 == 0


@pytest.mark.parametrize("bad", ["data digest", "header digest", "missing"])
async def test_lost_data_out_is_asked_for_by_a_recovery_r2t_6_7(begin, session, wire, bad):
    target = await begin()
    one = await session(target, **DIGESTS, **SOLICITED)
    itt = one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    damage = {"data digest": {"bad_digest": True}, "header digest": {"bad_header": True}, "missing": {}}[bad]
    send = {"ttt": r2t.ttt}
    data = bytes(reversed(PATTERN[:4096]))
    one.data_out(itt, data[:1024], final=False, **send)
    if bad != "missing":
        one.data_out(itt, data[1024:2048], offset=1024, datasn=1, final=False, **send, **damage)
    one.data_out(itt, data[2048:3072], offset=2048, datasn=2, final=False, **send)
    one.data_out(itt, data[3072:], offset=3072, datasn=3, **send)
    if bad == "data digest":
        assert await rejected(one) == 0x02
    again = await one.receive()
    assert (again.opcode, again.itt, again.word36, again.word40, again.word44) == (0x31, itt, 1, 1024, 1024)
    assert again.ttt != r2t.ttt
    one.data_out(itt, data[1024:2048], offset=1024, ttt=again.ttt)
    assert (await one.status()).byte3 == 0
    assert stored(target, 4096) == data
    assert not target.violations


async def test_last_data_out_that_does_not_come_is_asked_for_after_a_time(begin, session, wire):
    target = await begin()
    one = await session(target, **LEVEL, **SOLICITED)
    itt = one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    one.data_out(itt, PATTERN[4096:6144], ttt=r2t.ttt, final=False)
    again = await one.receive()
    assert (again.word36, again.word40, again.word44) == (1, 2048, 2048)
    one.data_out(itt, PATTERN[6144:8192], ttt=r2t.ttt, offset=2048, datasn=1)  # late: no longer wanted
    one.data_out(itt, PATTERN[6144:8192], ttt=again.ttt, offset=2048)
    assert (await one.status()).byte3 == 0
    assert stored(target, 4096) == PATTERN[4096:8192]
    assert not target.violations


async def test_r2t_without_any_answer_is_repeated_then_asked_anew_6_8(begin, session, wire):
    one = await session(await begin(), **LEVEL, **SOLICITED)
    itt = one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    assert same_data(await one.receive(), r2t)
    anew = await one.receive()
    assert (anew.word36, anew.word40, anew.word44) == (1, 0, 4096)
    one.data_out(itt, PATTERN[:4096], ttt=anew.ttt)
    assert (await one.status()).byte3 == 0


@pytest.mark.parametrize("lost", ["first", "last", "last, unseen"])
async def test_lost_unsolicited_data_is_asked_for(begin, session, wire, lost):
    target = await begin()
    one = await session(target, **DIGESTS, InitialR2T="No", FirstBurstLength="4096", MaxBurstLength="8192")
    data = bytes(reversed(PATTERN[:8192]))
    itt = one.command(wire.write10(0, 16), write=8192, data=data[:1024], final=False)
    one.data_out(itt, data[1024:2048], offset=1024, final=False, bad_digest=lost == "first")
    if lost == "first":
        assert await rejected(one) == 0x02
    unseen = lost == "last, unseen"
    one.data_out(itt, data[2048:4096], offset=2048, datasn=1, bad_digest=lost == "last", bad_header=unseen)
    if lost == "last":
        assert await rejected(one) == 0x02
    asked = []
    while True:
        answer = await one.receive()
        if answer.opcode != 0x31:
            break
        asked.append((answer.word36, answer.word40, answer.word44))
        one.data_out(itt, data[answer.word40 : answer.word40 + answer.word44], ttt=answer.ttt, offset=answer.word40)
    assert (
        asked
        == {
            "first": [(0, 1024, 1024), (1, 4096, 4096)],
            "last": [(0, 2048, 2048), (1, 4096, 4096)],
            "last, unseen": [(0, 2048, 6144)],
        }[lost]
    )
    assert (answer.opcode, answer.byte3) == (0x21, 0)
    assert stored(target, 8192) == data


async def test_recovery_has_an_end(begin, session, wire):
    target = await begin()
    one = await session(target, **DIGESTS, **SOLICITED)
    itt = one.command(wire.write10(0, 1), write=512)
    for number in range(17):
        r2t = await one.receive()
        assert (r2t.opcode, r2t.word36) == (0x31, number)
        one.data_out(itt, bytes(512), ttt=r2t.ttt, bad_digest=True)
        assert await rejected(one) == 0x02
    answer = await one.receive()
    assert (answer.itt, answer.sense) == (itt, (0x0B, 0x47, 0x05))
    assert stored(target, 512) == PATTERN[:512]


async def test_target_that_does_not_recover_ends_the_task_with_a_crc_error(begin, session, wire):
    target = await begin()
    arm(target, "no_recovery_r2t")
    one = await session(target, **DIGESTS, **SOLICITED)
    itt = one.command(wire.write10(0, 2), write=1024)
    r2t = await one.receive()
    one.data_out(itt, bytes(512), ttt=r2t.ttt, final=False, bad_digest=True)
    assert await rejected(one) == 0x02
    one.data_out(itt, bytes(512), ttt=r2t.ttt, offset=512, datasn=1)
    assert (await one.status()).sense == (0x0B, 0x47, 0x05)


@pytest.mark.parametrize(
    ("second", "violation"),
    [({"datasn": 2, "offset": 512}, "DataSN 2"), ({"datasn": 1, "offset": 1024}, "at offset 1024")],
    ids=["number", "offset"],
)
async def test_numbers_that_do_not_fit_the_data_are_a_violation(begin, session, wire, second, violation):
    target = await begin()
    one = await session(target, **LEVEL, **SOLICITED)
    itt = one.command(wire.write10(0, 4), write=2048)
    r2t = await one.receive()
    one.data_out(itt, bytes(512), ttt=r2t.ttt, final=False)
    one.data_out(itt, bytes(512), ttt=r2t.ttt, final=False, **second)
    await one.nothing_more()
    assert len(target.violations) == 1
    assert violation in target.violations[0]


async def test_corrupt_received_data_without_a_change_of_the_initiator(begin, session, wire):
    target = await begin()
    arm(target, "corrupt", opcode="data_out", part="data", received=True)
    one = await session(target, **DIGESTS, **SOLICITED)
    itt = one.command(wire.write10(0, 1), write=512)
    r2t = await one.receive()
    one.data_out(itt, bytes(512), ttt=r2t.ttt)
    assert await rejected(one) == 0x02
    r2t = await one.receive()
    assert r2t.word36 == 1
    one.data_out(itt, bytes(512), ttt=r2t.ttt)
    assert (await one.status()).byte3 == 0
    assert not target.violations


# ---- headers and commands


async def test_command_with_a_wrong_header_digest_is_dropped_and_retried_6_2_1(begin, session, wire):
    target = await begin()
    one = await session(target, **DIGESTS)
    cmdsn = one.cmdsn
    lost = one.command(wire.write10(0, 1), write=512, data=bytes(512), bad_header=True)
    after = one.command(wire.write10(0, 1), write=512, data=PATTERN[512:1024])
    await one.nothing_more()
    one.command(wire.write10(0, 1), write=512, data=bytes(512), cmdsn=cmdsn, itt=lost)
    assert [(await one.status()).itt for _ in range(2)] == [lost, after]
    assert stored(target, 512) == PATTERN[512:1024]
    assert not target.violations


async def test_header_that_no_good_one_follows_ends_the_connection(begin, session):
    target = await begin()
    one = await session(target, **DIGESTS)
    one.command(bytes(6), bad_header=True)
    one.command(bytes(6), bad_header=True)
    assert await one.ended() == b""


@pytest.mark.parametrize("length", [4, 120, 0xFFFFFF], ids=["too short", "too long", "beyond the limit"])
async def test_corrupt_length_ends_the_connection(begin, session, length):
    target = await begin()
    one = await session(target, **DIGESTS)
    sent = []
    write, one.writer.write = one.writer.write, sent.append
    for _ in range(8):
        one.command(bytes(6))
    one.writer.write = write
    sent[0] = sent[0][:5] + length.to_bytes(3, "big") + sent[0][8:]
    one.writer.write(b"".join(sent))
    assert await one.ended() == b""
    assert not target.sessions


async def test_header_fault_drops_a_received_pdu(begin, session):
    target = await begin()
    arm(target, "corrupt", opcode="scsi_command", part="header", received=True)
    one = await session(target, **DIGESTS)
    cmdsn = one.cmdsn
    itt = one.command(bytes(6))
    await one.nothing_more()
    one.command(bytes(6), cmdsn=cmdsn, itt=itt)
    assert (await one.status()).itt == itt


@pytest.mark.parametrize("cause", ["data digest", "reject", "tag in use"])
async def test_rejected_command_leaves_its_cmdsn_open_6_3(begin, session, wire, cause):
    target = await begin()
    one = await session(target, **DIGESTS, **{**SOLICITED, "ImmediateData": "Yes"})
    if cause == "tag in use":
        one.command(wire.write10(8, 1), write=512)
        await one.receive()
    if cause == "reject":
        arm(target, "reject", opcode="scsi_command", reason=0x0A)
    cmdsn = one.cmdsn
    tag = one.itt if cause == "tag in use" else one.next_itt()
    one.command(wire.write10(0, 1), write=512, data=bytes(512), itt=tag, bad_digest=cause == "data digest")
    reason = await rejected(one)
    assert reason == {"data digest": 0x02, "reject": 0x0A, "tag in use": 0x07}[cause]
    assert (await one.ping()).expcmdsn == cmdsn
    after = one.command(bytes(6))
    again = one.command(wire.write10(0, 1), write=512, data=bytes(512), cmdsn=cmdsn)
    answers = [await one.receive() for _ in range(2)]
    assert [answer.itt for answer in answers] == [again, after]


async def test_gap_can_be_plugged_by_abort_task_6_9(begin, session):
    target = await begin()
    one = await session(target, **DIGESTS)
    cmdsn = one.cmdsn
    lost = one.command(bytes(6), bad_header=True)
    after = one.command(bytes(6))
    itt = one.next_itt()
    tail = struct.pack(">I", cmdsn)
    one.send(0x02, flags=0x81, itt=itt, word20=lost, cmdsn=one.cmdsn, tail=tail, immediate=True)
    answers = [await one.receive() for _ in range(2)]
    assert sorted((answer.opcode, answer.itt) for answer in answers) == [(0x21, after), (0x22, itt)]


@pytest.mark.parametrize("state", ["in progress", "answered", "waiting"])
async def test_retry_of_a_command_that_was_received_is_ignored_6_2_1(begin, session, wire, state):
    target = await begin()
    one = await session(target, **LEVEL, **SOLICITED)
    cmdsn = one.cmdsn + (state == "waiting")
    write = wire.write10(0, 1) if state == "in progress" else bytes(6)
    options = {"write": 512} if state == "in progress" else {}
    itt = one.command(write, cmdsn=cmdsn, **options)
    if state != "waiting":
        one.cmdsn += 1
        first = await one.receive()
    one.command(write, cmdsn=cmdsn, itt=itt, **options)
    await one.nothing_more()
    assert not target.violations
    if state == "in progress":
        one.data_out(itt, bytes(512), ttt=first.ttt)
        assert (await one.status()).itt == itt


async def test_old_cmdsn_of_another_command_is_a_violation(begin, session):
    target = await begin()
    one = await session(target, **LEVEL)
    one.command(bytes(6))
    await one.receive()
    one.command(bytes(6), cmdsn=one.cmdsn - 1)
    await one.nothing_more()
    assert len(target.violations) == 1


async def test_tasks_are_let_go_when_their_status_is_acknowledged(begin, session, wire):
    target = await begin(data_ack="last")
    one = await session(target, **SEGMENTS)
    for _ in range(3):
        pdus = await read(one, wire, 8)
    (held,) = target.sessions
    assert (len(held.retention.tasks), held.retention.size, len(held.retention.tags)) == (3, 3 * 8192, 3)
    one.expstatsn = pdus[-1].statsn + 1
    await one.nothing_more()
    assert (held.retention.tasks, held.retention.size, held.retention.tags) == ({}, 0, {})
