# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault does what its name says, as seen from an initiator, and then lets go."""

from __future__ import annotations

import asyncio

import pytest

from blockfleet_testtarget.codec import Pdu, target_header
from blockfleet_testtarget.faults import REGISTRY, Fault, FaultError, build_fault

PATTERN = bytes(range(256)) * 64
GOOD = 0


def arm(endpoint, fault, /, **options) -> Fault:
    return endpoint.arm(build_fault(fault, options))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def read_pdus(one, wire, count):
    """Read 8 KiB in segments of 1 KiB and return the next PDUs."""
    one.command(wire.read10(0, 16), read=8192)
    return [await one.receive() for _ in range(count)]


@pytest.fixture
async def reader(start, session):
    target = await start()
    target.units["disk"].backing.write(0, PATTERN)
    return target, await session(target, MaxRecvDataSegmentLength="1024")


# ---- connections and PDUs


@pytest.mark.parametrize(("reset", "rest"), [(False, b""), (True, b"reset")], ids=["FIN", "RST"])
async def test_drop_after_some_pdus(start, session, reset, rest):
    target = await start()
    arm(target, "drop", opcode="scsi_command", after=2, reset=reset)
    one = await session(target)
    for _ in range(2):
        assert (await one.run(bytes(6)))[0] == GOOD
    one.command(bytes(6))
    assert await one.ended() == rest
    assert not target.faults


async def test_drop_after_sending_a_pdu(reader, wire):
    target, one = reader
    arm(target, "drop", opcode="data_in", after=3, sent=True)
    one.command(wire.read10(0, 16), read=8192)
    pdus = [await one.receive() for _ in range(4)]
    assert pdus[-1].word36 == 3
    await one.ended()
    assert not target.connections


async def test_refuse_connection(start, connect, session):
    target = await start()
    arm(target, "refuse_connection", times=2)
    for _ in range(2):
        assert await (await connect(target)).ended() == b"reset"
    await session(target)


async def test_black_hole_then_what_was_sent_is_acted_upon(start, session, wire):
    target = await start()
    one = await session(target)
    fault = arm(target, "black_hole")
    one.command(wire.write10(0, 1), write=512, data=PATTERN[:512])
    other = asyncio.create_task(session(target, isid=bytes.fromhex("800000020000")))
    await asyncio.sleep(0.05)
    assert target.units["disk"].backing.read(0, 512) == bytes(512)
    assert not other.done()
    target.disarm(fault)
    assert (await one.status()).byte3 == GOOD
    assert target.units["disk"].backing.read(0, 512) == PATTERN[:512]
    await other


async def test_delay_keeps_the_order(reader, wire):
    target, one = reader
    fault = arm(target, "delay", seconds=0.05)
    begun = asyncio.get_running_loop().time()
    pdus = await read_pdus(one, wire, 8)
    assert asyncio.get_running_loop().time() - begun >= 0.05
    assert [pdu.word36 for pdu in pdus] == list(range(8))
    target.disarm(fault)


async def test_delayed_answer_is_sent_before_the_connection_closes(start, connect):
    target = await start()
    arm(target, "delay", seconds=0.05)
    one = await connect(target)
    assert (await one.login_step({})).status == 0x0207
    assert await one.ended() == b""


async def test_drip_sends_in_small_pieces(start, session):
    target = await start()
    one = await session(target)
    fault = arm(target, "drip", size=7, seconds=0.001)
    assert (await one.run(bytes(6)))[0] == GOOD
    target.disarm(fault)


async def test_swallow(start, session):
    target = await start()
    one = await session(target)
    arm(target, "swallow", opcode="nop_out")
    for _ in range(2):
        one.send(0x00, itt=one.next_itt(), cmdsn=one.cmdsn, immediate=True)
    assert (await one.receive()).itt == one.itt


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("withhold", [0, 1, 2, 4, 5, 6, 7]),
        ("duplicate", [0, 1, 2, 3, 3, 4, 5, 6, 7]),
        ("reorder", [0, 1, 2, 4, 3, 5, 6, 7]),
    ],
)
async def test_data_in_that_is_skipped_repeated_or_out_of_order(reader, wire, fault, order):
    target, one = reader
    arm(target, fault, opcode="data_in", after=3)
    assert [pdu.word36 for pdu in await read_pdus(one, wire, len(order))] == order
    assert not target.faults


@pytest.mark.parametrize(("options", "value"), [({"value": 77}, 77), ({"value": 5, "add": True}, 6)])
async def test_bend_a_field(start, session, options, value):
    target = await start()
    one = await session(target)
    arm(target, "bend", opcode="scsi_response", field="statsn", **options)
    first = one.login_answer.statsn
    assert first == 1
    itt = one.command(bytes(6))
    answer = await one.receive()
    assert (answer.itt, answer.statsn) == (itt, value if not options.get("add") else first + value)


@pytest.mark.parametrize(("bit", "byte"), [(0, 16), (-72, 7), (-88, 5)], ids=["tag", "length", "length's top"])
async def test_corrupt_any_bit_of_the_header(start, session, bit, byte):
    target = await start()
    one = await session(target, HeaderDigest="CRC32C")
    one.command(bytes(6))
    plain = await one.receive()
    arm(target, "corrupt", opcode="scsi_response", part="header", bit=bit)
    one.command(bytes(6))
    header = (await one.reader.readexactly(52))[:48]
    plain_header = plain.header[:16] + one.itt.to_bytes(4, "big")
    assert [index for index in range(20) if header[index] != plain_header[index]] == [byte]


@pytest.mark.parametrize("part", ["header", "header_digest", "data", "data_digest"])
async def test_corrupt_once(start, session, wire, part):
    target = await start()
    one = await session(target, HeaderDigest="CRC32C", DataDigest="CRC32C")
    arm(target, "corrupt", part=part, opcode="data_in")
    one.command(wire.read10(0, 1), read=512)
    with pytest.raises(AssertionError):
        await one.receive()
    assert not target.faults


async def test_garbage_is_the_same_for_the_same_seed(start, connect, session):
    target = await start()
    answers = []
    for seed in (1, 1, 2):
        arm(target, "garbage", opcode="login_request", length=64, seed=seed)
        one = await connect(target)
        one.send_login({})
        answers.append(await one.reader.readexactly(64))
    assert answers[0] == answers[1] != answers[2]
    await session(target)


async def test_raw_bytes_as_an_answer_and_of_its_own_accord(start, session):
    target = await start()
    one = await session(target)
    raw = target_header(0x3F, itt=7).hex()
    arm(target, "answer_raw", opcode="nop_out", hex=raw)
    one.send(0x00, itt=one.next_itt(), cmdsn=one.cmdsn, immediate=True)
    assert (await one.receive()).header.hex() == raw
    arm(target, "send_raw", hex=raw)
    assert (await one.receive()).header.hex() == raw


async def test_reject_with_a_reason(start, session):
    target = await start()
    one = await session(target)
    arm(target, "reject", opcode="task_request", reason=6)
    one.send(0x02, flags=0x82, itt=one.next_itt(), cmdsn=one.cmdsn, immediate=True)
    answer = await one.receive()
    assert (answer.opcode, answer.byte2) == (0x3F, 6)


async def test_half_close(start, session):
    target = await start()
    one = await session(target)
    arm(target, "half_close", opcode="scsi_command")
    one.command(bytes(6))
    assert await one.reader.read() == b""
    assert target.connections


# ---- login


async def test_refuse_login_a_number_of_times(start, connect, session):
    target = await start()
    arm(target, "refuse_login", status=0x0302, times=2)
    for _ in range(2):
        one = await connect(target)
        assert (await one.login_step({"InitiatorName": one.name})).status == 0x0302
        assert await one.ended() == b""
    await session(target)


@pytest.mark.parametrize(("permanent", "status"), [(False, 0x0101), (True, 0x0102)])
async def test_redirect(start, connect, wire, permanent, status):
    target = await start()
    arm(target, "redirect", address="[::1]:3261", permanent=permanent, target=wire.TARGET)
    discovery = await connect(target)
    await discovery.login(None)
    one = await connect(target)
    answer = await one.login_step({"InitiatorName": one.name, "TargetName": wire.TARGET})
    assert (answer.status, answer.text) == (status, {"TargetAddress": "[::1]:3261"})


@pytest.mark.parametrize(("value", "shown"), [("Reject", "Reject"), ("99999999", "99999999"), ("", None)])
async def test_answer_a_key_otherwise(start, connect, value, shown):
    target = await start()
    arm(target, "answer_key", key="MaxBurstLength", value=value)
    answer = await (await connect(target)).login(MaxBurstLength="8192")
    assert answer.text.get("MaxBurstLength") == shown


async def test_send_a_key_of_its_own(start, connect, wire):
    target = await start()
    arm(target, "send_key", key="X-com.example.foo", value="1", expect=True)
    one = await connect(target)
    answer = await one.login_step({"InitiatorName": one.name, "TargetName": wire.TARGET})
    assert (answer.flags, answer.text["X-com.example.foo"]) == (0x04, "1")
    assert (await one.login_step({"X-com.example.foo": "NotUnderstood"})).flags == 0x87


# ---- commands


@pytest.mark.parametrize(
    ("name", "status"), [("busy", 0x08), ("task_set_full", 0x28), ("reservation_conflict", 0x18)]
)
async def test_fail_commands_with_a_status(start, session, wire, name, status):
    target = await start()
    one = await session(target)
    arm(target, "fail_command", command="write", status=name, times=2)
    assert (await one.run(wire.read10(0, 1), read=512))[0] == GOOD
    for expected in (status, status, GOOD):
        one.command(wire.write10(0, 1), write=512, data=b"x" * 512)
        assert (await one.status()).byte3 == expected


async def test_fail_a_command_with_a_sense(start, session):
    target = await start()
    one = await session(target)
    arm(target, "fail_command", sense="04/44/00")
    assert (await one.run(bytes(6)))[2].sense == (4, 0x44, 0x00)


async def test_medium_error_in_a_range(start, session, wire):
    target = await start()
    one = await session(target)
    arm(target, "medium_error", first=10, blocks=2)
    statuses = [(await one.run(wire.read10(lba, 2), read=1024))[0] for lba in (8, 9, 10, 11, 12)]
    assert statuses == [0, 2, 2, 2, 0]


async def test_slow_command_is_not_executed_when_aborted(start, session, wire):
    target = await start()
    one = await session(target)
    arm(target, "slow_command", seconds=0.05, command="write")
    itt = one.command(wire.write10(0, 1), write=512, data=PATTERN[:512])
    assert (await one.manage(1, tag=itt)).byte2 == 0
    await asyncio.sleep(0.1)
    assert target.units["disk"].backing.read(0, 512) == bytes(512)


async def test_slow_answer_comes_late_but_the_write_is_there(start, session, wire):
    target = await start()
    one = await session(target)
    arm(target, "slow_command", seconds=0.05, answer_only=True)
    one.command(wire.write10(0, 1), write=512, data=PATTERN[:512])
    await until(lambda: target.units["disk"].backing.read(0, 512) == PATTERN[:512])
    assert (await one.status()).byte3 == GOOD


async def test_ghost_write_is_applied_after_its_connection_and_session_died(start, session, wire):
    target = await start()
    one = await session(target)
    arm(target, "ghost_write", seconds=0.1)
    one.command(wire.write10(0, 1), write=512, data=b"old!" * 128)
    await until(lambda: not target.faults)
    arm(target, "drop_now")
    await one.ended()
    again = await session(target)
    again.command(wire.write10(0, 1), write=512, data=b"new!" * 128)
    assert (await again.status()).byte3 == GOOD
    assert target.units["disk"].backing.read(0, 4) == b"new!"
    await until(lambda: target.units["disk"].backing.read(0, 4) == b"old!")


async def test_ghost_write_keeps_data_that_came_by_r2t(start, session, wire):
    target = await start()
    one = await session(target, InitialR2T="Yes")
    arm(target, "ghost_write", seconds=0.05)
    itt = one.command(wire.write10(0, 2), write=1024)
    r2t = await one.receive()
    one.data_out(itt, PATTERN[:1024], ttt=r2t.ttt)
    assert (await one.status()).byte3 == GOOD
    assert target.units["disk"].backing.read(0, 1024) == PATTERN[:1024]


@pytest.mark.parametrize(("name", "written"), [("lose_command", bytes(512)), ("lose_answer", PATTERN[:512])])
async def test_command_that_is_never_answered(start, session, wire, name, written):
    target = await start()
    one = await session(target)
    arm(target, name)
    itt = one.command(wire.write10(0, 1), write=512, data=PATTERN[:512])
    assert (await one.run(bytes(6)))[0] == GOOD
    assert target.units["disk"].backing.read(0, 512) == written
    assert (await one.manage(1, tag=itt)).byte2 == 0


# ---- what the target does of its own accord


async def test_async_message(start, session):
    target = await start()
    one = await session(target)
    arm(target, "async", event=2, parameter1=0, parameter2=4, parameter3=6)
    answer = await one.receive()
    assert (answer.opcode, answer.itt, answer.word36, answer.word40) == (0x32, 0xFFFFFFFF, 0x02000000, 0x00040006)
    arm(target, "async", event=0, sense="06/2a/09", lun=3)
    second = await one.receive()
    assert (second.statsn, second.sense, second.lun) == (answer.statsn + 1, (6, 0x2A, 9), b"\0\3" + bytes(6))


async def test_ping_and_flood(start, session):
    target = await start()
    one = await session(target)
    arm(target, "ping")
    answer = await one.receive()
    assert (answer.opcode, answer.itt, answer.data) == (0x20, 0xFFFFFFFF, b"")
    connection = target.connections[0]
    assert answer.ttt in connection.pings
    one.send(0x00, word20=answer.ttt, cmdsn=one.cmdsn, immediate=True)
    await until(lambda: not connection.pings)
    arm(target, "flood", count=250)
    tags = [(await one.receive()).ttt for _ in range(250)]
    assert len(set(tags)) == 250


async def test_closed_window_stays_closed_until_disarmed(start, session):
    target = await start(command_window=2)
    one = await session(target)
    fault = arm(target, "close_window")
    shown = await one.receive()
    assert (shown.opcode, shown.maxcmdsn - shown.expcmdsn) == (0x20, 1)
    for _ in range(2):
        last = (await one.run(bytes(6)))[2]
    assert last.maxcmdsn == last.expcmdsn - 1
    one.command(bytes(6))
    one.cmdsn -= 1
    await until(lambda: target.violations)
    target.disarm(fault)
    opened = await one.receive()
    assert (opened.opcode, opened.maxcmdsn - opened.expcmdsn) == (0x20, 1)
    assert (await one.run(bytes(6)))[0] == GOOD


async def test_portal_that_closes_and_opens_again_at_its_port(start, connect, session):
    target = await start(portals=["127.0.0.1:0", "127.0.0.1:0"])

    def serving():
        return target.portals[1].server.is_serving()

    one = await session(target, portal=1)
    fault = arm(target, "close_portal", portal=1)
    assert await one.ended() == b"reset"
    await until(lambda: not serving())
    with pytest.raises(ConnectionRefusedError):
        await connect(target, portal=1)
    await connect(target)
    target.disarm(fault)
    await until(serving)
    await session(target, portal=1)


# ---- units


@pytest.mark.parametrize(
    ("name", "options", "condition"),
    [
        ("set_size", {"size": "16M"}, (6, 0x2A, 0x09)),
        ("set_identity", {"naa": "60" * 16}, (6, 0x3F, 0x05)),
        ("set_write_cache", {"enabled": False}, (6, 0x2A, 0x01)),
        ("set_access", {"group": 1, "state": "non_optimized"}, (6, 0x2A, 0x06)),
        ("unit_attention", {"sense": "06/3f/0e"}, (6, 0x3F, 0x0E)),
    ],
)
async def test_change_of_a_unit_is_told(start, session, name, options, condition):
    target = await start()
    one = await session(target)
    arm(target, name, **options)
    assert (await one.run(bytes(6)))[2].sense == condition
    assert (await one.run(bytes(6)))[0] == GOOD


async def test_changes_of_a_unit_show(start, session, wire):
    target = await start()
    one = await session(target)
    arm(target, "set_size", size="1M")
    arm(target, "set_identity", naa="61" * 16, silent=True)
    arm(target, "set_read_only")
    await one.clear_attention()
    assert (await one.run(bytes([0x25]), read=8))[1][:4] == (2047).to_bytes(4, "big")
    assert bytes.fromhex("61" * 16) in (await one.run(bytes([0x12, 1, 0x83, 0, 255, 0]), read=255))[1]
    one.command(wire.write10(0, 1), write=512, data=b"x" * 512)
    assert (await one.status()).sense == (7, 0x27, 0)


@pytest.mark.parametrize("silent", [False, True])
async def test_swap_of_a_lun(start, session, wire, silent):
    target = await start(units={"disk": {"size": "8M"}, "other": {"size": "4M"}})
    target.units["other"].backing.write(0, b"other")
    one = await session(target)
    arm(target, "swap_lun", lun=0, unit="other", silent=silent)
    if not silent:
        assert (await one.run(bytes(6)))[2].sense == (6, 0x3F, 0x0E)
    assert (await one.run(wire.read10(0, 1), read=512))[1][:5] == b"other"
    arm(target, "swap_lun", lun=0, unit="", silent=True)
    assert (await one.run(bytes(6)))[2].sense == (5, 0x25, 0)


# ---- arming


async def test_fault_is_for_the_connections_that_it_names(start, session):
    target = await start(portals=["127.0.0.1:0", "127.0.0.1:0"])
    arm(target, "fail_command", portal=1, times=0)
    one = await session(target)
    two = await session(target, portal=1, isid=bytes.fromhex("800000020000"))
    assert (await one.run(bytes(6)))[0] == GOOD
    assert (await two.run(bytes(6)))[0] == 0x08
    target.disarm()
    assert (await two.run(bytes(6)))[0] == GOOD


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("no_such_fault", {}, "there is no fault 'no_such_fault'"),
        ("drop", {"opcodes": "data_in"}, "has no option opcodes"),
        ("drop", {"times": "often"}, "times='often' is not of type int"),
        ("drop", {"opcode": "data_inn"}, "is no opcode"),
        ("bend", {"field": "colour"}, "is no field"),
        ("corrupt", {"part": "soul"}, "is none of header"),
        ("fail_command", {"status": "sleepy"}, "is no status"),
        ("fail_command", {"sense": "3/11"}, "is no sense"),
        ("fail_command", {"command": "wriite"}, "is none of read"),
        ("set_access", {"group": 9}, "has no target port group 9"),
        ("swap_lun", {"unit": "x"}, "there is no unit 'x'"),
        ("set_identity", {"naa": "zz"}, "is not 16 or 32 hex digits"),
        ("close_portal", {"portal": 5}, "there is no portal 5"),
    ],
)
async def test_fault_that_cannot_be_armed_says_why(start, name, options, part):
    target = await start()
    with pytest.raises(FaultError, match=part.replace("(", r"\(")):
        arm(target, name, **options)
    assert not target.faults


def test_every_fault_is_documented():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "testtarget.md").read_text()
    assert [name for name in REGISTRY if f"| `{name}` |" not in page] == []


# ---- hooks


async def test_hook_sees_received_pdus_and_answers_for_the_target(start, session):
    target = await start()
    one = await session(target)
    seen = []

    def hook(connection, pdu):
        seen.append((connection.number, pdu.opcode))
        if pdu.opcode != 0x00:
            return None
        return [Pdu(target_header(0x20, itt=pdu.itt, length=3), b"hey"), target_header(0x3F)]

    target.on_pdu(hook)
    assert (await one.run(bytes(6)))[0] == GOOD
    one.send(0x00, itt=0x77, cmdsn=one.cmdsn, immediate=True)
    answer = await one.receive()
    assert (answer.itt, answer.data) == (0x77, b"hey")
    assert (await one.receive()).opcode == 0x3F
    assert seen == [(1, 0x01), (1, 0x00)]


async def test_hook_replaces_what_is_sent(start, session):
    target = await start()
    one = await session(target)
    target.on_send(lambda _, pdu: [pdu.replace(residual=9)] if pdu.opcode == 0x21 else None)
    assert (await one.run(bytes(6)))[2].word44 == 9
