# SPDX-License-Identifier: GPL-3.0-or-later
"""ROB: targets that are hostile or broken."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance import wire
from tests.conformance.conftest import (
    CHAP_USER,
    INITIATOR,
    ISID,
    LUN,
    READ_10,
    TARGET,
    WRITE_10,
    Issued,
    Listener,
    Rig,
)
from tests.conformance.raw_target import Peer

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import InitiatorSpec, SessionSpec, session_key
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

Session = tuple[Peer, Nexus, Listener]
MIB = 1 << 20


async def lost(peer: Peer, listener: Listener, *commands: Issued) -> None:
    """Hold that the connection is dropped soon and no command looks as if it had worked."""
    await peer.gone()
    await listener.loss()
    for issued in commands:
        assert (await issued.end()).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("where", ["header", "data"])
async def test_ROB_02_a_pdu_that_drips_does_not_hold_anything_up(rig: Rig, where: str) -> None:
    rig.hurry(abort=0.2)
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus, READ_10, read=4096, timeout=0.2)
    itt = (await peer.expect(wire.COMMAND)).itt
    pdu = peer.last_data_in(itt, 0, 0, bytes(4096))
    sent = 0 if where == "header" else 1000
    await peer.raw(pdu[:sent])

    async def drip() -> None:
        for at in range(sent, sent + 40):
            await peer.raw(pdu[at : at + 1])
            await asyncio.sleep(0.05)

    rig.background(drip())
    await listener.until(lambda: listener.losses, 2.5)
    assert (await issued.end()).outcome is Outcome.UNKNOWN


async def test_ROB_03_65536_keys_are_too_many(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    for at in range(0, 65536, 500):
        data = wire.text(*(f"X-{n}=" for n in range(at, at + 500)))
        await peer.answer_login(request, data, flags=0x44)
        try:
            request = await peer.login_request()
        except (asyncio.IncompleteReadError, ConnectionError):
            break
    else:
        raise AssertionError("all of them were taken")
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


@pytest.mark.parametrize("part", [b"v" * 8000, b""], ids=["16 MiB", "empty"])
async def test_ROB_03_text_without_end_is_cut_off(rig: Rig, part: bytes) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    rounds = 0
    await peer.answer_login(request, b"X-bomb=", flags=0x44)
    while rounds < 3000:
        rounds += 1
        try:
            request = await peer.login_request()
        except (asyncio.IncompleteReadError, ConnectionError):
            break
        await peer.answer_login(request, part, flags=0x44)
    assert rounds < 2500
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


@pytest.mark.parametrize("claimed", [0xFFFF, 5, 3])
async def test_ROB_04_a_sense_length_over_the_segment_reads_nothing_more(session: Session, claimed: int) -> None:
    peer, nexus, listener = session
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.response(itt, 2, claimed.to_bytes(2, "big") + b"\x70\x00"))
    assert (await issued.end()).sense == b"\x70\x00"
    assert not listener.losses


@pytest.mark.parametrize("opcode", [wire.RESPONSE, wire.DATA_IN, wire.R2T], ids=["response", "data-in", "r2t"])
@pytest.mark.parametrize("tag", ["never issued", "reserved", "another kind"])
async def test_ROB_05_a_tag_that_fits_no_task_is_refused(rig: Rig, opcode: int, tag: str) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus, READ_10, read=512)
    await peer.expect(wire.COMMAND)
    waiting = rig.background(nexus.lun_reset(LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    itt = {"never issued": 0x00FACADE, "reserved": wire.NONE_TAG, "another kind": request.itt}[tag]
    fields = {"itt": itt, "ttt": 1, "desired": 512}
    await peer.raw(peer.numbered(opcode, 0x81 if opcode == wire.DATA_IN else 0x80, **fields))
    await lost(peer, listener, issued)
    with pytest.raises(BlockfleetError):
        await waiting


@pytest.mark.parametrize("opcode", [wire.TASK_RESPONSE, wire.TEXT_RESPONSE, wire.NOP_IN])
async def test_ROB_05_control_responses_with_the_tag_of_a_command_do_not_end_it(rig: Rig, opcode: int) -> None:
    peer, nexus, _ = await rig.session()
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.numbered(opcode, itt=itt, ttt=wire.NONE_TAG))
    await asyncio.sleep(0.03)
    assert issued.command.outcome in (Outcome.PENDING, Outcome.UNKNOWN)


@pytest.mark.parametrize("case", ["write", "ping", "finished"])
async def test_ROB_06_data_for_what_reads_nothing_are_refused(rig: Rig, case: str) -> None:
    peer, nexus, listener = await rig.session(noop_interval=0.2 if case == "ping" else 0.0)
    other = Issued(nexus, WRITE_10, write=bytes(512))
    itt = (await peer.expect(wire.COMMAND)).itt
    if case == "ping":
        itt = (await peer.expect(wire.NOP_OUT)).itt
    elif case == "finished":
        read = Issued(nexus, READ_10, read=512)
        itt = (await peer.expect(wire.COMMAND)).itt
        await peer.raw(peer.last_data_in(itt, 0, 0, b"\x01" * 512))
        await read.good()
    await peer.raw(peer.data_in(itt, 1 if case == "finished" else 0, 0, b"\x02" * 512))
    await lost(peer, listener, other)
    if case == "finished":
        assert bytes(read.buffer) == b"\x01" * 512


@pytest.mark.untraced
async def test_ROB_08_a_flood_of_pings_is_answered_within_bounds(rig: Rig) -> None:
    peer, nexus, listener = await rig.session()
    flood = bytes(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=7)) * 2000
    tracemalloc.start()
    try:
        for _ in range(25):
            peer.writer.write(flood)
            await asyncio.wait_for(peer.writer.drain(), 2.0)
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB
    issued = Issued(nexus)
    answered = 0
    while (pdu := await peer.recv()).opcode == wire.NOP_OUT:
        answered += 1
    assert 0 < answered <= 50000
    await peer.answer(pdu)
    await issued.good()
    assert not listener.losses


async def test_ROB_09_contradicting_events_lead_to_one_recovery(rig: Rig) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus)
    cid = (await peer.expect(wire.COMMAND)).bhs and peer.requests[0].cid
    events = [peer.asynchronous(255) for _ in range(200)]
    events += [
        peer.asynchronous(1, p3=1),
        peer.asynchronous(2, p1=cid, p2=1, p3=2),
        peer.asynchronous(3, p2=3, p3=4),
    ]
    await peer.raw(b"".join(events))
    await lost(peer, listener, issued)
    again = await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)
    assert len(listener.losses) == 1
    await again.quiet(0.05)
    await rig.target.no_connection(0.05)


BAD_PLACES = ["224.0.0.1:3260", "0.0.0.0:3260", "[ff02::1]:3260", "169.254.169.254:80", "[::]:3260", "127.0.0.1:0"]


@pytest.mark.parametrize("place", BAD_PLACES)
async def test_ROB_10_a_redirect_to_a_place_without_portals_is_not_followed(rig: Rig, place: str) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), wire.text(("TargetAddress", place)), flags=0, status=0x0101)
    await peer.gone()
    assert "redirect" in str(await listener.failure())


HOSTILE = [
    b"TargetName=iqn.2026-11.com.example:$(reboot)\0TargetAddress=192.0.2.1,1\0",
    b"TargetName=iqn.2026-11.com.example:\x1b[2J\0TargetAddress=192.0.2.1,1\0",
    b"TargetName=../../../etc/cron.d/x\0TargetAddress=192.0.2.1,1\0",
    b"TargetName=iqn.2026-11.com.example:ok\0TargetAddress=;rm -rf /,1\0TargetAddress=`id`:3260\0",
    b"TargetName=\0=\0\xff\xfe\0TargetAddress=192.0.2.9,1\0",
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
async def test_ROB_11_hostile_names_and_addresses_are_dropped(rig: Rig, data: bytes) -> None:
    found = rig.discover()
    peer = await (await rig.target.accept()).log_in()
    request = await peer.expect(wire.TEXT)
    good = wire.text(("TargetName", TARGET), "TargetAddress=192.0.2.7,1")
    await peer.raw(peer.numbered(wire.TEXT_RESPONSE, data=data + good, itt=request.itt, ttt=wire.NONE_TAG))
    await peer.answer(await peer.expect(wire.LOGOUT))
    records = {record.name: [str(portal) for portal, _ in record.portals] for record in await found}
    assert records == {TARGET: ["192.0.2.7:3260"]}


@pytest.mark.untraced
async def test_ROB_11_an_answer_without_end_is_cut_off(rig: Rig) -> None:
    found = rig.discover(timeout=30.0)
    peer = await (await rig.target.accept()).log_in()
    request = await peer.expect(wire.TEXT)
    limit = int(peer.offers["MaxRecvDataSegmentLength"])
    filler = wire.text("X-filler=" + "f" * 8000)
    data = filler * (limit // len(filler))
    sent = 0
    while sent < 80 * MIB:
        sent += len(data)
        await peer.raw(peer.numbered(wire.TEXT_RESPONSE, 0x00, data=data, itt=request.itt, ttt=1))
        request = await peer.recv()
        if request.opcode == wire.LOGOUT:
            break
    assert sent < 80 * MIB
    await peer.answer(request)
    with pytest.raises(BlockfleetError, match="longer"):
        await found


async def test_ROB_12_a_second_round_of_chap_is_refused(rig: Rig) -> None:
    peer, _, listener = await rig.login(credentials=CHAP_USER)
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=CHAP"))
    challenge = wire.text("CHAP_A=5", "CHAP_I=1", "CHAP_C=0x4142434445464748")
    await peer.answer_login(await peer.login_request(), challenge)
    request = await peer.login_request()
    assert "CHAP_R" in request.keys
    await peer.answer_login(request, challenge, flags=0)
    assert b"CHAP_R" not in await peer.gone()
    await listener.failure()


async def test_ROB_12_an_equal_challenge_is_answered_and_noted(rig: Rig) -> None:
    warnings = []
    for number in range(2):
        isid = ISID[:5] + bytes([0x40 + number])
        peer, nexus, listener = await rig.login(credentials=CHAP_USER, isid=isid)
        await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=CHAP"))
        await peer.answer_login(
            await peer.login_request(), wire.text("CHAP_A=5", "CHAP_I=1", "CHAP_C=0xa0a1a2a3a4a5a6")
        )
        await peer.answer_login(await peer.login_request())
        await peer.operational(await peer.login_request(), {})
        await listener.until(lambda listener=listener: listener.logins)
        assert nexus.result is not None
        warnings.append([text for text in nexus.result.warnings if "challenge" in text])
    assert len(warnings[1]) == 1


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0x7FFFFFFE, 100000])
async def test_ROB_14_our_own_limit_holds_in_a_window_without_end(rig: Rig, size: int) -> None:
    peer, nexus, listener = await rig.login()
    peer.window = size
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    issued = [Issued(nexus) for _ in range(300)]
    for _ in issued:
        await peer.answer(await peer.expect(wire.COMMAND))
    for one in issued:
        await one.good()


async def test_ROB_14_commands_that_wait_for_a_window_are_bounded(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    peer.window = 0
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    issued = [Issued(nexus) for _ in range(9000)]
    refused = [one for one in issued if one.command.outcome is Outcome.REFUSED]
    assert 0 < len(refused) < 9000
    peer.window = 1
    for _ in range(3):  # a window that opens and closes again
        peer.max_cmd_sn = wire.serial_add(peer.exp_cmd_sn, 0)
        await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=wire.NONE_TAG))
        await peer.expect(wire.COMMAND)
        await peer.quiet(0.02)


async def test_ROB_15_a_half_closed_connection_is_noticed(rig: Rig) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus)
    await peer.expect(wire.COMMAND)
    peer.writer.write_eof()
    await lost(peer, listener, issued)


async def test_ROB_15_a_target_that_never_reads_is_given_up(rig: Rig) -> None:
    rig.hurry(abort=0.2)
    peer, nexus, listener = await rig.session(noop_interval=0.3, noop_timeout=0.3)
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    issued = [Issued(nexus, WRITE_10, write=bytes(4096), timeout=0.3) for _ in range(60)]
    await listener.until(lambda: listener.losses, 3.0)
    for one in issued:
        assert (await one.end()).outcome in (Outcome.UNKNOWN, Outcome.NOT_SENT)


@pytest.mark.parametrize("which", [("CRC32C", "None"), ("None", "CRC32C")], ids=["header", "data"])
async def test_ROB_16_a_digest_that_was_agreed_on_and_left_out_is_an_error(
    rig: Rig, which: tuple[str, str]
) -> None:
    peer, nexus, listener = await rig.session(digests=which)
    issued = Issued(nexus, READ_10, read=512)
    command = await peer.expect(wire.COMMAND)
    peer.header_digest = peer.data_digest = False
    first = peer.data_in(command.itt, 0, 0, b"\xa5" * 256)
    await peer.raw(first + peer.last_data_in(command.itt, 1, 256, b"\xa5" * 256))
    await lost(peer, listener, issued)


async def test_ROB_17_how_a_stream_is_cut_makes_no_difference(rig: Rig, session: Session) -> None:
    peer, nexus, listener = session
    sock = peer.writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for size in (1, 7, 48, 4096):
        issued = Issued(nexus, READ_10, read=1001)
        plain = Issued(nexus)
        first, second = await peer.expect(wire.COMMAND), await peer.expect(wire.COMMAND)
        data = bytes(n * size & 255 for n in range(1001))
        stream = peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=size)
        stream += peer.data_in(first.itt, 0, 0, data[:500]) + peer.last_data_in(first.itt, 1, 500, data[500:])
        stream += peer.response(second.itt, 2, wire.sense(5, 0x24, 0))
        for at in range(0, len(stream), size):
            peer.writer.write(bytes(stream[at : at + size]))
            await asyncio.sleep(0)
        assert (await peer.expect(wire.NOP_OUT)).ttt == size
        await issued.good()
        assert bytes(issued.buffer) == data
        assert (await plain.end()).sense == wire.sense(5, 0x24, 0)[2:]
    assert not listener.losses


async def answers(client: EngineClient) -> bool:
    """Whether an engine serves its control socket; the socket is there a moment before."""
    try:
        await client.observe()
    except BlockfleetError:
        return False
    return True


@contextlib.asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[EngineClient]:
    """An engine of its own process; it ends by SIGKILL."""
    process = subprocess.Popen([sys.executable, "-m", "blockfleet.engine.main", "--runtime-dir", str(folder)])
    client = EngineClient(folder / "engine.sock")
    try:
        async with asyncio.timeout(30.0):
            while not await answers(client):
                assert process.poll() is None
                await asyncio.sleep(0.02)
        yield client
    finally:
        process.kill()
        process.wait()
        await client.close()


@pytest.mark.untraced
async def test_ROB_18_after_a_crash_the_same_isid_reinstates_the_session(rig: Rig, tmp_path: Path) -> None:
    spec = SessionSpec(
        key=session_key(TARGET, rig.target.portal), target=TARGET, portal=rig.target.portal, isid=ISID.hex()
    )
    seen = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir(mode=0o700)
        async with engine(folder) as client:
            await client.configure(InitiatorSpec(name=INITIATOR, alias="x"))
            await client.open_session(spec)
            peer = await (await rig.target.accept(10.0)).log_in()
            rig.background(peer.serve())
            first = peer.requests[0]
            seen.append((first.isid, first.tsih, first.keys["InitiatorName"]))
            await rig.target.no_connection(0.1)
    assert seen == [(int.from_bytes(ISID, "big"), 0, INITIATOR)] * 2
