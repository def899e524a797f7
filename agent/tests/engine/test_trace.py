# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces of a data plane's sessions: what is in them, when they begin and end, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.rig import HOST, QUICK, TARGET, Rig, two_portals
from tests.engine.trace_rig import Reader, opcodes
from tests.net.nexus_rig import run

from blockfleet.engine import server as server_module
from blockfleet.engine import trace as trace_module
from blockfleet.engine.client import EngineClient
from blockfleet.engine.data_plane import DataPlane
from blockfleet.engine.interface import Credentials, InitiatorSpec, TraceSpec
from blockfleet.engine.server import ControlServer
from blockfleet.model.desired import LoginOptions
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.net.connections import ConnectionSpec
from blockfleet.net.nexus import Nexus
from blockfleet.net.tap import Link, Passed, Tap
from blockfleet.scsi.command import Outcome
from blockfleet_testtarget.chap import Chap
from blockfleet_testtarget.config import Config
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.target import TestTarget

LUN_3 = 3 << 48
LOGIN_REQUEST, LOGIN_RESPONSE, COMMAND, RESPONSE, DATA_OUT, DATA_IN = 0x03, 0x23, 0x01, 0x21, 0x05, 0x25
BOTH_DIGESTS = QUICK.model_copy(update={"header_digest": ("crc32c",), "data_digest": ("crc32c",)})


@asynccontextmanager
async def engine_with(config: Config, folder: Path) -> AsyncIterator[Rig]:
    data_plane = DataPlane(folder / "volumes", instance="here", version="0")
    await data_plane.configure(InitiatorSpec(name=HOST))
    async with TestTarget(config) as target:
        yield Rig(data_plane, target)
        await data_plane.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with engine_with(two_portals(), tmp_path) as found:
        yield found


def nexus_of(rig: Rig, index: int = 0) -> Nexus:
    assert isinstance(rig.engine, DataPlane)
    return rig.engine._sessions[rig.key(index)].nexus


def tapped(nexus: Nexus) -> bool:
    """Whether a tap stands between the session and its first TCP connection."""
    assert nexus._driver is not None
    transport = next(iter(nexus._driver._transports.values()))._transport
    assert transport is not None
    below = transport._transport if isinstance(transport, Tap) else transport
    assert isinstance(below.get_protocol(), Tap) == isinstance(transport, Tap)
    return isinstance(transport, Tap)


async def write_and_read(nexus: Nexus, length: int) -> None:
    data = bytes(i * 31 + (i >> 9) & 0xFF for i in range(length))
    blocks = (length // 512).to_bytes(2, "big")
    for _ in range(3):
        # The first command after a login may find a unit attention.
        written = await run(nexus, b"\x2a\0\0\0\0\x07\0" + blocks, write=data, lun=LUN_3)
        if written.status == 0:
            break
    assert written.status == 0
    read = await run(nexus, b"\x28\0\0\0\0\x07\0" + blocks, read=length, lun=LUN_3)
    assert bytes(read.data_in or b"") == data


@pytest.mark.peer
@pytest.mark.parametrize("options", [QUICK, BOTH_DIGESTS], ids=["digests off", "digests on"])
async def test_a_trace_that_begins_in_mid_session_begins_with_the_login_and_goes_on_over_a_reconnect(
    rig: Rig, tmp_path: Path, options: LoginOptions
) -> None:
    await rig.login(0, options=options)
    await rig.logged_in(0)
    nexus = nexus_of(rig)
    await write_and_read(nexus, 8192)
    reader = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "t.pcapng").begun()
    await write_and_read(nexus, 1 << 20)
    rig.target.arm(build_fault("drop_now", {}))
    await rig.until(lambda state: state.sessions[0].logins == 2 and bool(state.sessions[0].units))
    await write_and_read(nexus, 512)
    await rig.engine.close_session(rig.key(0))
    await reader.ended()
    assert [r.kind for r in reader.records if r.kind != "pdu"] == ["opened", "closed", "opened", "closed"]
    assert {r.before for r in reader.pdus[:2]} == {True}
    found = await asyncio.to_thread(reader.recording().check)
    assert len(found) == len(reader.pdus)
    counted = opcodes(found)
    assert counted[LOGIN_REQUEST] == counted[LOGIN_RESPONSE] >= 4
    assert {0x06, 0x26, DATA_OUT, DATA_IN} <= set(counted)


@pytest.mark.peer
async def test_each_connection_of_a_session_is_a_tcp_stream_with_its_own_login(tmp_path: Path) -> None:
    async with engine_with(two_portals(keys={"MaxConnections": "4"}), tmp_path) as rig:
        await rig.login(0, options=BOTH_DIGESTS)
        await rig.logged_in(0)
        nexus = nexus_of(rig)
        portal = nexus.parameters.portal
        nexus.set_parameters(
            replace(nexus.parameters, connections=(ConnectionSpec(portal), ConnectionSpec(portal)))
        )
        reader = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "t.pcapng").begun()
        await rig.engine.relogin(rig.key(0))
        async with asyncio.timeout(20):
            while [status.phase.value for status in nexus.connections] != ["logged_in"] * 3:
                await asyncio.sleep(0.02)
        late = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "late.pcapng").begun()
        for _ in range(12):
            await write_and_read(nexus, 4096)
        await rig.engine.close_session(rig.key(0))
        await reader.ended()
        await late.ended()
    links = [record.connection for record in reader.records if record.kind == "opened"]
    assert len(links) == 4
    assert [record.connection for record in late.records if record.kind == "opened"] == links[1:]
    for file in (reader, late):
        found = await asyncio.to_thread(file.recording().check)
        assert len(found) == len(file.pdus)
        for link in links[1:]:
            seen = {b64decode(record.data)[0] & 0x3F for record in file.pdus if record.connection == link}
            assert {LOGIN_REQUEST, LOGIN_RESPONSE, COMMAND} <= seen


async def test_nothing_stands_between_a_session_and_its_connection_while_nobody_traces(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.login(0)
    await rig.logged_in(0)
    nexus = nexus_of(rig)
    assert not tapped(nexus)
    first = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "1").begun()
    second = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "2").begun()
    assert tapped(nexus)
    await first.stop()
    assert tapped(nexus)
    await write_and_read(nexus, 4096)
    async with asyncio.timeout(10):
        while not {COMMAND, DATA_IN} <= {b64decode(r.data)[0] & 0x3F for r in second.pdus}:
            await asyncio.sleep(0.01)
    await second.stop()
    assert not tapped(nexus)
    await write_and_read(nexus, 4096)


@pytest.mark.peer
async def test_a_trace_that_begins_within_a_pdu_begins_with_that_pdu(rig: Rig, tmp_path: Path) -> None:
    await rig.login(0, options=BOTH_DIGESTS)
    await rig.logged_in(0)
    nexus = nexus_of(rig)
    await write_and_read(nexus, 65536)
    rig.target.arm(build_fault("drip", {"size": 10000, "seconds": 0.02}))
    reading = asyncio.create_task(run(nexus, b"\x28\0\0\0\0\x07\0\0\x80", read=65536, lun=LUN_3))
    connection = nexus._session.connections[0] if nexus._session else None
    assert connection is not None
    async with asyncio.timeout(10):
        while len(connection.begun()) < 20000:
            await asyncio.sleep(0)
    reader = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "t.pcapng").begun()
    assert (await reading).outcome is Outcome.COMPLETE
    rig.target.disarm()
    await rig.engine.close_session(rig.key(0))
    await reader.ended()
    found = await asyncio.to_thread(reader.recording().check)
    assert len(found) == len(reader.pdus)
    assert opcodes(found)[DATA_IN] >= 1


@pytest.mark.peer
async def test_a_bad_digest_is_in_the_trace_as_it_came(rig: Rig, tmp_path: Path) -> None:
    await rig.login(0, options=BOTH_DIGESTS)
    await rig.logged_in(0)
    reader = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "t.pcapng").begun()
    rig.target.arm(build_fault("corrupt", {"part": "data", "opcode": "data_in"}))
    await run(nexus_of(rig), b"\x28\0\0\0\0\x07\0\0\x08", read=4096, lun=LUN_3)
    await rig.until(lambda state: state.sessions[0].logins == 2)
    await rig.engine.close_session(rig.key(0))
    await reader.ended()
    shown = await asyncio.to_thread(reader.recording().decode, "-Y", "iscsi", "-O", "iscsi")
    assert shown.count("Bad CRC32") == 1


@pytest.mark.peer
@pytest.mark.parametrize("part", ["header", "header_digest", "data"])
async def test_err_a_damaged_pdu_that_costs_no_connection_costs_the_trace_no_other_pdu(
    tmp_path: Path, part: str
) -> None:
    options = BOTH_DIGESTS.model_copy(update={"error_recovery_level": 1})
    async with engine_with(two_portals(keys={"ErrorRecoveryLevel": "1"}), tmp_path) as rig:
        await rig.login(0, options=options)
        await rig.logged_in(0)
        reader = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "t.pcapng").begun()
        rig.target.arm(build_fault("corrupt", {"part": part, "opcode": "data_in"}))
        for _ in range(4):
            await write_and_read(nexus_of(rig), 65536)
        assert (await rig.session()).logins == 1
        await rig.engine.close_session(rig.key(0))
        await reader.ended()
    shown = await asyncio.to_thread(reader.recording().decode, "-Y", "iscsi", "-O", "iscsi")
    assert shown.count("Bad CRC32") == 1
    found = await asyncio.to_thread(reader.recording().pdus)
    assert len(found) == len(reader.pdus)


@pytest.mark.parametrize("late", [False, True], ids=["from the first byte", "in mid session"])
@pytest.mark.parametrize("with_chap", [False, True], ids=["masked", "asked for"])
async def test_sec_chap_responses_are_masked_unless_they_are_asked_for(
    tmp_path: Path, late: bool, with_chap: bool
) -> None:
    chap = Chap("host7", "canary-of-the-host", "array9", "canary-of-the-array")
    spec = TraceSpec(target=TARGET, with_chap=with_chap)
    credentials = Credentials(
        user="host7", secret="canary-of-the-host", mutual_user="array9", mutual_secret="canary-of-the-array"
    )
    async with engine_with(two_portals(chap=chap), tmp_path) as rig:
        await rig.login(0, credentials)
        await rig.logged_in(0)
        reader = Reader(rig.engine, spec, tmp_path / "t.pcapng")
        await reader.begun()
        if not late:
            await rig.login(1, credentials)
            await rig.logged_in(1)
        await rig.engine.close_session(rig.key(0))
        await rig.engine.close_session(rig.key(1))
        await reader.ended()
    last = max(record.connection for record in reader.pdus)
    text = [b64decode(r.data)[48:] for r in reader.pdus if r.connection == last]
    pairs = dict(pair.split(b"=", 1) for data in text for pair in data.split(b"\0") if pair.startswith(b"CHAP_"))
    responses = [
        (record.inbound, pair)
        for record in reader.pdus
        for pair in b64decode(record.data)[48:].split(b"\0")
        if record.connection == last and pair.startswith(b"CHAP_R=")
    ]
    assert [inbound for inbound, _ in responses] == [False, True]
    for _, pair in responses:
        assert (pair.strip(b"*") == b"CHAP_R=") is not with_chap
        assert len(pair) > 30
    assert pairs[b"CHAP_N"] == b"array9"
    assert pairs[b"CHAP_C"].startswith(b"0")


async def test_the_sessions_of_one_portal_can_be_traced_alone(rig: Rig, tmp_path: Path) -> None:
    await rig.login(0)
    spec = TraceSpec(target=TARGET, portal=rig.portal(0))
    reader = await Reader(rig.engine, spec, tmp_path / "t.pcapng").begun()
    await rig.login(1)
    await rig.logged_in(0, 1)
    await rig.engine.close_session(rig.key(0))
    await reader.ended()
    assert {record.session for record in reader.records if record.kind == "opened"} == {rig.key(0)}


async def test_a_login_that_fails_is_traced_too(tmp_path: Path) -> None:
    chap = Chap("host7", "canary-of-the-host")
    async with engine_with(two_portals(chap=chap), tmp_path) as rig:
        wrong = Credentials(user="host7", secret="canary-that-is-wrong")
        await rig.login(0, wrong)
        reader = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "t.pcapng").begun()
        await rig.until(lambda state: state.sessions[0].phase == "failed")
        await rig.engine.relogin(rig.key(0))
        await rig.login(0, wrong.model_copy(update={"fingerprint": "other", "algorithms": ("md5",)}))
        async with asyncio.timeout(10):
            while not any(r.kind == "closed" for r in reader.records):
                await asyncio.sleep(0.02)
        await rig.engine.close_session(rig.key(0))
        await reader.ended()
    statuses = [b64decode(r.data)[36:38] for r in reader.pdus if r.inbound]
    assert statuses[-1] == b"\x02\x01"


async def test_it_ends_when_its_seconds_are_over(rig: Rig, tmp_path: Path) -> None:
    await rig.login(0)
    await rig.logged_in(0)
    reader = await Reader(rig.engine, TraceSpec(target=TARGET, seconds=0.2), tmp_path / "t.pcapng").ended()
    assert reader.batches[-1].ended
    assert not tapped(nexus_of(rig))


@pytest.mark.peer
@pytest.mark.parametrize("limit", [0, 100])
async def test_no_more_data_is_kept_than_was_asked_for_but_headers_text_and_sense_are_whole(
    rig: Rig, tmp_path: Path, limit: int
) -> None:
    await rig.login(0)
    await rig.logged_in(0)
    reader = await Reader(rig.engine, TraceSpec(target=TARGET, data=limit), tmp_path / "t.pcapng").begun()
    await write_and_read(nexus_of(rig), 1 << 18)
    refused = await run(nexus_of(rig), b"\xff", lun=LUN_3)
    assert refused.status == 2
    await rig.engine.close_session(rig.key(0))
    await reader.ended()
    for record in reader.pdus:
        kept = b64decode(record.data)
        if kept[0] & 0x3F in (COMMAND, DATA_OUT, DATA_IN):
            assert len(kept) <= 48 + 4 + limit
        else:
            assert len(kept) == record.length
    assert max(record.length for record in reader.pdus) > 60000
    assert any(b64decode(r.data)[0] == RESPONSE and r.length > 48 for r in reader.pdus)
    recording = reader.recording()
    assert not (await asyncio.to_thread(recording.decode, "-Y", "_ws.malformed")).strip()
    cut = await asyncio.to_thread(recording.decode, "-Y", "frame.cap_len < frame.len")
    assert cut.strip()


@pytest.mark.peer
async def test_a_reader_that_is_too_slow_misses_pdus_and_is_told_and_io_goes_on(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "MAXIMUM_HELD", 300_000)
    await rig.login(0, options=BOTH_DIGESTS)
    await rig.logged_in(0)
    nexus = nexus_of(rig)
    reader = await Reader(rig.engine, TraceSpec(target=TARGET), tmp_path / "t.pcapng").begun()
    before = len(reader.pdus)
    reader.read.clear()
    for _ in range(4):
        await write_and_read(nexus, 1 << 20)
    rig.target.arm(build_fault("drop_now", {}))
    await rig.until(lambda state: state.sessions[0].logins == 2 and bool(state.sessions[0].units))
    reader.read.set()
    await asyncio.sleep(0.1)
    await write_and_read(nexus_of(rig), 8192)
    await rig.engine.close_session(rig.key(0))
    await reader.ended()
    assert reader.dropped > 10
    assert reader.batches[-1].dropped_bytes > 6 << 20
    assert sum(r.kind == "opened" for r in reader.records) == 2
    assert len(reader.pdus) > before
    found = await asyncio.to_thread(reader.recording().check)
    assert len(found) == len(reader.pdus)
    statistics = await asyncio.to_thread(_statistics, reader.file)
    assert statistics == {"ifrecv": len(reader.pdus) + reader.dropped, "ifdrop": reader.dropped}


async def test_what_is_held_of_many_small_pdus_is_no_more_memory_than_the_bound_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound = 4 << 20
    monkeypatch.setattr(trace_module, "MAXIMUM_HELD", bound)
    trace = trace_module.Trace(TraceSpec(target=TARGET))
    link = Link(1, ("192.0.2.1", 40000), ("192.0.2.9", 3260), 0)
    trace.opened(link, "key", ())
    tracemalloc.start()
    try:
        for number in range(20000):
            trace.passed(link, Passed(1_700_000_000_000_000 + number, True, bytes([0x20]).ljust(48)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bound * 0.5 < held < bound * 1.1
    trace.end()
    batches = [batch async for batch in trace.batches()]
    told = sum(record.kind == "pdu" for batch in batches for record in batch.records)
    assert 5000 < told == 20000 - batches[-1].dropped


async def test_what_is_held_of_many_connections_is_no_more_memory_than_the_bound_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A target that is logged in to over and over, and a reader that has stopped."""
    monkeypatch.setattr(trace_module, "MAXIMUM_HELD", 2 << 20)
    bound = trace_module.MAXIMUM_HELD + trace_module.LOGIN_RESERVE
    trace = trace_module.Trace(TraceSpec(target=TARGET))
    tracemalloc.start()
    try:
        for number in range(20000):
            link = Link(number, ("192.0.2.1", 40000), ("192.0.2.9", 3260), 0)
            trace.opened(link, "key", ())
            trace.passed(link, Passed(0, True, bytes([0x23]).ljust(48)))
            trace.closed(link, 1, reset=True)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bound * 0.5 < held < bound * 1.1
    trace.end()
    batches = [batch async for batch in trace.batches()]
    records = [record for batch in batches for record in batch.records]
    seen = {kind: {one.connection for one in records if one.kind == kind} for kind in ("opened", "pdu", "closed")}
    assert seen["pdu"] <= seen["opened"] == seen["closed"]
    assert 100 < len(seen["pdu"]) == 20000 - batches[-1].dropped


def _statistics(file: Path) -> dict[str, int]:
    """Read the Interface Statistics Block, the last block of the file (the pcapng specification, 4.6)."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[-4:], "little")
    block = whole[-length:]
    assert block[:4] == b"\x05\0\0\0"
    found, at = {}, 20
    while code := int.from_bytes(block[at : at + 2], "little"):
        size = int.from_bytes(block[at + 2 : at + 4], "little")
        found[code] = int.from_bytes(block[at + 4 : at + 4 + size], "little")
        at += 4 + size
    return {"ifrecv": found[4], "ifdrop": found[5]}


async def test_a_client_that_reads_nothing_costs_its_own_connection_and_no_io(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "MAXIMUM_HELD", 300_000)
    monkeypatch.setattr(server_module, "LINE_TIMEOUT", 0.5)
    await rig.login(0)
    await rig.logged_in(0)
    nexus = nexus_of(rig)
    control = ControlServer(rig.engine, tmp_path / "e.sock", instance="i", version="0")
    await control.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "e.sock"), limit=1000)
    for request in (
        {"id": 0, "method": "hello", "params": {"protocols": [1]}},
        {"id": 1, "method": "trace", "params": {"target": TARGET}},
    ):
        writer.write(json.dumps(request).encode() + b"\n")
    async with asyncio.timeout(10):
        while not tapped(nexus):
            await asyncio.sleep(0.01)
        for _ in range(6):
            await write_and_read(nexus, 1 << 20)
        while tapped(nexus):
            await asyncio.sleep(0.01)
    await write_and_read(nexus, 1 << 20)
    assert (await rig.session()).logins == 1
    writer.transport.abort()
    await control.stop()
    assert not reader.at_eof()


async def test_a_client_that_goes_leaves_no_tap(rig: Rig, tmp_path: Path) -> None:
    await rig.login(0)
    await rig.logged_in(0)
    control = ControlServer(rig.engine, tmp_path / "e.sock", instance="i", version="0")
    await control.start()
    client = EngineClient(tmp_path / "e.sock")
    batches = client.trace(TraceSpec(target=TARGET))
    first = await anext(batches)
    assert [record.kind for record in first.records][:2] == ["opened", "pdu"]
    assert tapped(nexus_of(rig))
    await batches.aclose()
    async with asyncio.timeout(10):
        while tapped(nexus_of(rig)):
            await asyncio.sleep(0.01)
    await control.stop()


async def test_what_has_no_session_cannot_be_traced(rig: Rig) -> None:
    await rig.login(0)
    for spec in (TraceSpec(target="iqn.2026-11.com.example:other"), TraceSpec(target=TARGET, portal=rig.portal(1))):
        with pytest.raises(BlockfleetError) as caught:
            await anext(rig.engine.trace(spec))
        assert caught.value.code is Isdsc.TARGET_NOT_FOUND


async def test_traces_are_bounded_in_number(rig: Rig, tmp_path: Path) -> None:
    await rig.login(0)
    spec = TraceSpec(target=TARGET)
    readers = [
        await Reader(rig.engine, spec, tmp_path / str(i)).begun() for i in range(trace_module.MAXIMUM_TRACES)
    ]
    with pytest.raises(BlockfleetError) as caught:
        await anext(rig.engine.trace(spec))
    assert caught.value.code is Isdsc.OUT_OF_RESOURCES
    await readers[0].stop()
    readers.append(await Reader(rig.engine, spec, tmp_path / "again").begun())
    for reader in readers:
        await reader.stop()
