# SPDX-License-Identifier: GPL-3.0-or-later
"""The full feature phase of the target at recovery level 0 (RFC 3720 3.2, 10.3 to 10.19)."""

from __future__ import annotations

import struct

import pytest

PATTERN = bytes(range(256)) * 64  # 16 KiB
UNSOLICITED = {"InitialR2T": "No", "FirstBurstLength": "4096", "MaxBurstLength": "4096"}


def stored(target, offset, length):
    return target.units["disk"].backing.read(offset, length)


# ---- numbering


async def test_command_runs_when_those_before_it_have_come(start, session, wire):
    target = await start()
    one = await session(target)
    late = one.command(wire.write10(0, 1), write=512, data=b"2" * 512, cmdsn=one.cmdsn + 1)
    first = one.command(wire.write10(0, 1), write=512, data=b"1" * 512)
    assert [(await one.status()).itt for _ in range(2)] == [first, late]
    assert stored(target, 0, 512) == b"2" * 512


async def test_command_outside_of_the_window_and_a_repeated_one_are_ignored(start, session, wire):
    target = await start(command_window=4)
    one = await session(target)
    await one.run(bytes(6))
    for cmdsn in (one.cmdsn - 1, one.cmdsn + 4):
        one.command(wire.write10(0, 1), write=512, data=b"x" * 512, cmdsn=cmdsn)
    itt = one.command(bytes(6))
    answer = await one.status()
    assert answer.itt == itt
    assert stored(target, 0, 512) == bytes(512)
    assert len(target.violations) == 2


async def test_immediate_command_takes_no_cmdsn(start, session):
    one = await session(await start())
    _, _, answer = await one.run(bytes(6), immediate=True)
    assert answer.expcmdsn == one.cmdsn


async def test_numbers_wrap(start, connect):
    target = await start(first_statsn=0xFFFFFFFF)
    one = await connect(target)
    one.cmdsn = 0xFFFFFFFE
    answer = await one.login()
    assert answer.statsn == 0xFFFFFFFF
    answers = [(await one.run(bytes(6)))[2] for _ in range(3)]
    assert [answer.statsn for answer in answers] == [0, 1, 2]
    assert [answer.expcmdsn for answer in answers] == [0xFFFFFFFF, 0, 1]


async def test_window_closes_by_one_for_every_open_task(start, session, wire):
    one = await session(await start(command_window=3))
    start_window = one.login_answer.maxcmdsn
    one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    assert (r2t.opcode, r2t.maxcmdsn - r2t.expcmdsn + 1) == (0x31, 2)
    assert r2t.maxcmdsn == start_window


# ---- reads


async def test_read_is_cut_at_segment_and_burst(start, session, wire):
    target = await start()
    target.units["disk"].backing.write(0, PATTERN)
    one = await session(target, MaxRecvDataSegmentLength="3072", MaxBurstLength="8192")
    one.command(wire.read10(0, 32), read=16384)
    pdus = [await one.receive() for _ in range(6)]
    assert [(pdu.word36, pdu.word40, len(pdu.data)) for pdu in pdus] == [
        (0, 0, 3072),
        (1, 3072, 3072),
        (2, 6144, 2048),
        (3, 8192, 3072),
        (4, 11264, 3072),
        (5, 14336, 2048),
    ]
    assert [pdu.flags for pdu in pdus] == [0, 0, 0x80, 0, 0, 0x81]
    assert b"".join(pdu.data for pdu in pdus) == PATTERN


async def test_status_comes_apart_when_configured(start, session, wire):
    one = await session(await start(status_in_data=False))
    itt = one.command(wire.read10(0, 1), read=512)
    assert (await one.receive()).flags == 0x80
    answer = await one.status()
    assert (answer.itt, answer.byte3, answer.word36) == (itt, 0, 1)


@pytest.mark.parametrize(
    ("expected", "flag", "residual", "moved"),
    [(1024, 0x80, 0, 1024), (1536, 0x82, 512, 1024), (512, 0x84, 512, 512)],
    ids=["equal", "underflow", "overflow"],
)
async def test_residual_of_a_read(start, session, wire, expected, flag, residual, moved):
    one = await session(await start())
    one.command(wire.read10(0, 2), read=expected)
    answer = await one.receive()
    assert (answer.flags & ~1, answer.word44, len(answer.data)) == (flag, residual, moved)


async def test_odd_lengths_are_padded(start, session):
    one = await session(await start(), HeaderDigest="CRC32C", DataDigest="CRC32C")
    for length in range(5, 9):
        _, data, _ = await one.run(bytes([0x12, 0, 0, 0, length, 0]), read=length)
        assert len(data) == length


# ---- writes


async def test_immediate_data_is_all_the_data(start, session, wire):
    target = await start()
    one = await session(target)
    one.command(wire.write10(3, 2), write=1024, data=PATTERN[:1024])
    assert (await one.status()).byte3 == 0
    assert stored(target, 1536, 1024) == PATTERN[:1024]


async def test_rest_is_asked_for_in_bursts_one_at_a_time(start, session, wire):
    target = await start(keys={"MaxOutstandingR2T": 1})
    one = await session(target, MaxBurstLength="6144", InitialR2T="Yes")
    itt = one.command(wire.write10(0, 32), write=16384, data=PATTERN[:1024])
    asked = []
    for _ in range(3):
        r2t = await one.receive()
        assert (r2t.opcode, r2t.itt) == (0x31, itt)
        asked.append((r2t.word36, r2t.word40, r2t.word44))
        half = r2t.word40 + r2t.word44 // 2
        end = r2t.word40 + r2t.word44
        one.data_out(itt, PATTERN[r2t.word40 : half], ttt=r2t.ttt, offset=r2t.word40, final=False)
        one.data_out(itt, PATTERN[half:end], ttt=r2t.ttt, offset=half, datasn=1)
    assert asked == [(0, 1024, 6144), (1, 7168, 6144), (2, 13312, 3072)]
    assert (await one.status()).byte3 == 0
    assert stored(target, 0, 16384) == PATTERN
    assert not target.violations


async def test_several_r2ts_are_outstanding_up_to_the_limit(start, session, wire):
    target = await start(keys={"MaxOutstandingR2T": 2})
    one = await session(target, MaxBurstLength="4096", InitialR2T="Yes", MaxOutstandingR2T="8")
    itt = one.command(wire.write10(0, 32), write=16384)
    r2ts = [await one.receive() for _ in range(2)]
    while r2ts:
        r2t = r2ts.pop(0)
        end = r2t.word40 + 4096
        one.data_out(itt, PATTERN[r2t.word40 : end], ttt=r2t.ttt, offset=r2t.word40)
        if end <= 8192:
            r2ts.append(await one.receive())
    assert (await one.status()).byte3 == 0
    assert stored(target, 0, 16384) == PATTERN


async def test_unsolicited_burst_then_r2t(start, session, wire):
    target = await start()
    one = await session(target, **UNSOLICITED)
    itt = one.command(wire.write10(0, 16), write=8192, data=PATTERN[:1024], final=False)
    one.data_out(itt, PATTERN[1024:2048], offset=1024, final=False)
    one.data_out(itt, PATTERN[2048:4096], offset=2048, datasn=1)
    r2t = await one.receive()
    assert (r2t.word40, r2t.word44) == (4096, 4096)
    one.data_out(itt, PATTERN[4096:8192], ttt=r2t.ttt, offset=4096)
    assert (await one.status()).byte3 == 0
    assert stored(target, 0, 8192) == PATTERN[:8192]


async def test_error_waits_for_the_unsolicited_data(start, session, wire):
    one = await session(await start(), **UNSOLICITED)
    itt = one.command(wire.write10(0xFFFFFF, 8), write=4096, final=False)
    one.data_out(itt, PATTERN[:2048], final=False)
    ping = one.next_itt()
    one.send(0x00, itt=ping, cmdsn=one.cmdsn, immediate=True)
    assert (await one.receive()).itt == ping
    one.data_out(itt, PATTERN[2048:4096], offset=2048, datasn=1)
    answer = await one.status()
    assert (answer.byte3, answer.sense) == (0x02, (0x05, 0x21, 0x00))


@pytest.mark.parametrize(
    "break_it",
    [
        {"datasn": 1},
        {"offset": 512},
    ],
    ids=["DataSN", "offset"],
)
async def test_gap_in_data_ends_the_task_with_a_crc_error(start, session, wire, break_it):
    target = await start()
    one = await session(target, InitialR2T="Yes")
    itt = one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    first = {"offset": 0, "datasn": 0} | break_it
    one.data_out(itt, PATTERN[:2048], ttt=r2t.ttt, final=False, **first)
    one.data_out(itt, PATTERN[2048:4096], ttt=r2t.ttt, offset=2048, datasn=first["datasn"] + 1)
    answer = await one.status()
    assert answer.sense == (0x0B, 0x47, 0x05)
    assert stored(target, 0, 4096) == bytes(4096)


async def test_more_data_than_asked_for_ends_the_connection(start, session, wire):
    target = await start()
    one = await session(target, InitialR2T="Yes")
    itt = one.command(wire.write10(0, 1), write=512)
    r2t = await one.receive()
    one.data_out(itt, PATTERN[:1024], ttt=r2t.ttt)
    assert await one.ended() == b""
    assert "more data than the R2T asked for" in target.violations[-1]


async def test_data_for_no_task_is_rejected(start, session):
    one = await session(await start())
    one.data_out(0x55, b"data", ttt=0x77)
    answer = await one.receive()
    assert (answer.opcode, answer.byte2) == (0x3F, 0x09)
    assert answer.data[0] == 0x05


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"ImmediateData": "No"}, {"write": 512, "data": b"x" * 512}),
        ({"InitialR2T": "Yes"}, {"write": 512, "final": False}),
        ({"FirstBurstLength": "512"}, {"write": 1024, "data": b"x" * 1024}),
    ],
    ids=["immediate data", "unsolicited data", "first burst"],
)
async def test_data_that_was_not_allowed_ends_the_connection(start, session, wire, keys, options):
    target = await start()
    one = await session(target, **keys)
    one.command(wire.write10(0, 1), **options)
    assert await one.ended() == b""
    assert len(target.violations) == 1


# ---- digests


@pytest.mark.parametrize("header", ["None", "CRC32C"])
@pytest.mark.parametrize("data", ["None", "CRC32C"])
async def test_digests(start, session, wire, header, data):
    target = await start()
    one = await session(target, HeaderDigest=header, DataDigest=data)
    one.command(wire.write10(0, 8), write=4096, data=PATTERN[:4096])
    assert (await one.status()).byte3 == 0
    assert (await one.run(wire.read10(0, 8), read=4096))[1] == PATTERN[:4096]


async def test_wrong_data_digest_is_rejected_and_ends_the_task(start, session, wire):
    target = await start()
    one = await session(target, DataDigest="CRC32C", InitialR2T="Yes")
    itt = one.command(wire.write10(0, 1), write=512)
    r2t = await one.receive()
    one.data_out(itt, PATTERN[:512], ttt=r2t.ttt, bad_digest=True)
    reject = await one.receive()
    assert (reject.opcode, reject.byte2) == (0x3F, 0x02)
    one.expstatsn = reject.statsn + 1
    assert (await one.status()).sense == (0x0B, 0x47, 0x05)
    assert stored(target, 0, 512) == bytes(512)


async def test_digests_are_those_of_the_rfc():
    from blockfleet_testtarget.stream import PduStream

    class Bare(PduStream):
        pass

    # RFC 3720 B.4
    vectors = {
        bytes(32): "aa36918a",
        b"\xff" * 32: "43aba862",
        bytes(range(32)): "4e79dd46",
        bytes(range(31, -1, -1)): "5cdb3f11",
    }
    stream = Bare()
    stream.data_digest = True
    for data, digest in vectors.items():
        assert stream.encode(bytes(48), data)[-1].hex() == digest


# ---- task management


async def test_abort_task_ends_a_task_without_an_answer(start, session, wire):
    target = await start()
    one = await session(target, InitialR2T="Yes")
    itt = one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    answer = await one.manage(1, tag=itt, refcmdsn=one.cmdsn - 1)
    assert answer.byte2 == 0
    one.data_out(itt, PATTERN[:4096], ttt=r2t.ttt)
    assert (await one.run(bytes(6)))[0] == 0
    assert stored(target, 0, 4096) == bytes(4096)


async def test_abort_of_a_task_that_is_over_says_so(start, session):
    one = await session(await start())
    await one.run(bytes(6))
    assert (await one.manage(1, tag=one.itt, refcmdsn=one.cmdsn - 1)).byte2 == 1


async def test_abort_of_a_command_that_never_came_counts_it_as_received(start, session, wire):
    one = await session(await start())
    one.cmdsn += 1
    assert (await one.manage(1, tag=0x99, refcmdsn=one.cmdsn - 1)).byte2 == 0
    assert (await one.run(bytes(6)))[2].expcmdsn == one.cmdsn


@pytest.mark.parametrize("function", [2, 4], ids=["ABORT TASK SET", "CLEAR TASK SET"])
async def test_task_set_ends_when_its_data_has_come(start, session, wire, function):
    target = await start()
    one = await session(target, InitialR2T="Yes")
    itt = one.command(wire.write10(0, 8), write=4096)
    r2t = await one.receive()
    tag = one.next_itt()
    one.send(0x02, flags=0x80 | function, itt=tag, cmdsn=one.cmdsn, immediate=True)
    one.data_out(itt, b"", ttt=r2t.ttt)
    answer = await one.receive()
    assert (answer.opcode, answer.itt, answer.byte2) == (0x22, tag, 0)
    assert not target.sessions[0].tasks


async def test_task_set_response_waits_for_the_acknowledgement_of_status(start, session):
    one = await session(await start())
    one.command(bytes(6))
    response = await one.receive()
    tag = one.next_itt()
    one.send(0x02, flags=0x82, itt=tag, cmdsn=one.cmdsn, immediate=True)
    ping = await one.receive()
    assert (ping.opcode, ping.itt) == (0x20, 0xFFFFFFFF)
    one.expstatsn = response.statsn + 1
    one.send(0x00, word20=ping.ttt, cmdsn=one.cmdsn, immediate=True)
    answer = await one.receive()
    assert (answer.opcode, answer.itt) == (0x22, tag)


@pytest.mark.parametrize(
    ("function", "condition"), [(5, (6, 0x29, 0x03)), (6, (6, 0x29, 0x02))], ids=["LU reset", "warm reset"]
)
async def test_reset_ends_tasks_of_all_sessions_and_tells_them(start, session, wire, function, condition):
    target = await start()
    one = await session(target)
    other = await session(target, isid=bytes.fromhex("800000020000"), InitialR2T="Yes")
    other.command(wire.write10(0, 8), write=4096)
    await other.receive()
    assert (await one.manage(function)).byte2 == 0
    assert not any(session.tasks for session in target.sessions)
    for each in (one, other):
        status, _, answer = await each.run(bytes(6))
        assert (status, answer.sense) == (0x02, condition)
        assert (await each.run(bytes(6)))[0] == 0


async def test_cold_reset_ends_every_session(start, session):
    target = await start()
    one = await session(target)
    other = await session(target, isid=bytes.fromhex("800000020000"))
    await one.manage(7)
    assert await one.ended() == b""
    assert await other.ended() == b""
    assert not target.sessions


@pytest.mark.parametrize(
    ("function", "lun", "answer"),
    [(2, 9, 2), (5, 9, 2), (3, 0, 5), (8, 0, 4), (99, 0, 5)],
    ids=["no LUN for a task set", "no LUN for a reset", "CLEAR ACA", "TASK REASSIGN", "unknown"],
)
async def test_function_that_cannot_be_done_is_answered_so(start, session, function, lun, answer):
    one = await session(await start())
    assert (await one.manage(function, lun=lun)).byte2 == answer


# ---- NOP, text, logout, reject


async def test_ping_is_echoed_up_to_the_segment_limit(start, session):
    one = await session(await start(), MaxRecvDataSegmentLength="512")
    itt = one.next_itt()
    one.send(0x00, itt=itt, cmdsn=one.cmdsn, data=PATTERN[:600], immediate=True)
    answer = await one.receive()
    assert (answer.opcode, answer.itt, answer.ttt) == (0x20, itt, 0xFFFFFFFF)
    assert answer.data == PATTERN[:512]


async def text_exchange(one, text):
    itt = one.next_itt()
    ttt, data = 0xFFFFFFFF, text
    parts = []
    while True:
        one.send(0x04, itt=itt, word20=ttt, cmdsn=one.cmdsn, data=data)
        one.cmdsn += 1
        answer = await one.receive()
        one.expstatsn = answer.statsn + 1
        assert (answer.opcode, answer.itt) == (0x24, itt)
        parts.append(answer)
        if answer.flags & 0x80:
            assert answer.ttt == 0xFFFFFFFF
            return parts
        assert answer.ttt != 0xFFFFFFFF
        ttt, data = answer.ttt, b""


async def test_send_targets_names_every_target_with_its_portals(start, connect):
    names = [f"iqn.2026-11.com.example:t{number}" for number in range(3)]
    target = await start(
        portals=["127.0.0.1:0", {"host": "::1", "group": 2}],
        targets=[
            {"name": names[0]},
            {"name": names[1], "portal_groups": [2]},
            {"name": names[2], "initiators": ["iqn.2026-11.com.example:somebody"]},
        ],
        units={},
    )
    one = await connect(target)
    await one.login(None)
    (answer,) = await text_exchange(one, b"SendTargets=All\0")
    v4, v6 = (portal.port for portal in target.portals)
    assert answer.data.decode().split("\0") == [
        f"TargetName={names[0]}",
        f"TargetAddress=127.0.0.1:{v4},1",
        f"TargetAddress=[::1]:{v6},2",
        f"TargetName={names[1]}",
        f"TargetAddress=[::1]:{v6},2",
        "",
    ]


async def test_long_send_targets_answer_is_cut_anywhere(start, connect):
    names = [f"iqn.2026-11.com.example:target-{number:04}" for number in range(40)]
    target = await start(targets=[{"name": name} for name in names], units={}, text_segment=100)
    one = await connect(target)
    await one.login(None)
    parts = await text_exchange(one, b"SendTargets=All\0")
    assert len(parts) > 20
    assert all(len(part.data) <= 100 for part in parts)
    assert all(bool(part.flags & 0x40) == (not part.data.endswith(b"\0")) for part in parts[:-1])
    lines = b"".join(part.data for part in parts).decode().split("\0")
    assert [line for line in lines if line.startswith("TargetName=")] == [f"TargetName={name}" for name in names]


async def test_send_targets_in_a_normal_session_is_about_its_target(start, session, wire):
    one = await session(await start())
    (answer,) = await text_exchange(one, b"SendTargets=\0")
    assert answer.data.startswith(f"TargetName={wire.TARGET}\0".encode())
    (answer,) = await text_exchange(one, b"SendTargets=All\0")
    assert answer.data == b"SendTargets=Reject\0"


async def test_discovery_session_runs_no_commands(start, connect):
    one = await connect(await start())
    await one.login(None)
    one.command(bytes(6))
    answer = await one.receive()
    assert (answer.opcode, answer.byte2) == (0x3F, 0x04)


@pytest.mark.parametrize("reason", [0, 1], ids=["session", "connection"])
async def test_logout_is_answered_and_closes(start, session, reason):
    target = await start()
    one = await session(target)
    itt = one.next_itt()
    one.send(0x06, flags=0x80 | reason, itt=itt, word20=0, cmdsn=one.cmdsn, immediate=True)
    answer = await one.receive()
    assert (answer.opcode, answer.itt, answer.byte2) == (0x26, itt, 0)
    assert await one.ended() == b""
    assert not target.sessions


async def test_logout_for_recovery_is_not_supported_at_level_0(start, session):
    one = await session(await start())
    one.send(0x06, flags=0x82, itt=one.next_itt(), word20=0, cmdsn=one.cmdsn, immediate=True)
    assert (await one.receive()).byte2 == 2


async def test_unknown_opcode_is_rejected_with_its_header(start, session):
    one = await session(await start())
    one.send(0x1C, itt=0x1234)
    answer = await one.receive()
    assert (answer.opcode, answer.byte2, answer.itt) == (0x3F, 0x05, 0xFFFFFFFF)
    assert answer.data[:1] == b"\x1c"
    assert struct.unpack_from(">I", answer.data, 16)[0] == 0x1234


async def test_tag_in_use_is_rejected(start, session, wire):
    one = await session(await start(), InitialR2T="Yes")
    one.command(wire.write10(0, 8), write=4096)
    await one.receive()
    one.itt -= 1
    one.command(bytes(6))
    assert (await one.receive()).byte2 == 0x07


async def test_segment_that_is_too_long_ends_the_connection(start, session, wire):
    target = await start(keys={"MaxRecvDataSegmentLength": 4096})
    one = await session(target)
    one.command(wire.write10(0, 16), write=8192, data=PATTERN[:8192])
    assert await one.ended() == b""
    assert "4096 is the limit" in target.violations[-1]


async def test_pdu_in_single_bytes_is_the_same_pdu(start, session, wire):
    target = await start()
    one = await session(target, HeaderDigest="CRC32C", DataDigest="CRC32C")
    sent = []
    write, one.writer.write = one.writer.write, sent.append
    one.command(wire.write10(0, 1), write=512, data=PATTERN[:512])
    one.writer.write = write
    for byte in b"".join(sent):
        one.writer.write(bytes([byte]))
        await one.writer.drain()
    assert (await one.status()).byte3 == 0
    assert stored(target, 0, 512) == PATTERN[:512]


async def test_received_pdus_are_kept_within_the_limits(start, session, wire):
    target = await start(record_pdus=3, record_bytes=1200)
    one = await session(target)
    for _ in range(5):
        one.command(wire.write10(0, 1), write=512, data=PATTERN[:512])
        await one.status()
    assert [entry.pdu.opcode for entry in target.received] == [0x01, 0x01]
    assert bytes(target.received[-1].pdu.data) == PATTERN[:512]
