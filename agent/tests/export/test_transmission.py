# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests and replies as doc/proto.md words them, through a real socket, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from tests.export.conftest import FULL, MEBIBYTE
from tests.export.memory_disk import MemoryDisk
from tests.export.nbd_client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    EINVAL,
    EIO,
    ENOSPC,
    EPERM,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    NbdClient,
    request,
)

from blockfleet.block.device import Operation


@pytest.fixture(params=[False, True], ids=["simple", "structured"])
def structured(request):
    return request.param


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("length", [512, 4096, 65536, 65536 + 512, MEBIBYTE, 4 * MEBIBYTE])
async def test_what_was_written_is_read_back(export, disk, structured, length):
    client = await NbdClient.open(export.socket_path, structured=structured)
    data = pattern(length)
    assert (await client.ask(WRITE, 1024, data=data)).error == 0
    assert disk.data[1024 : 1024 + length] == data
    reply = await client.ask(READ, 1024, length)
    assert (reply.error, reply.data, reply.structured) == (0, data, structured)
    assert reply.offset == (1024 if structured else None)


async def test_client_is_told_size_and_abilities(export):
    client = await NbdClient.open(export.socket_path)
    assert client.size == 8 * MEBIBYTE
    # HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN
    assert client.flags == 0b1_1110_1101


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        (FLUSH, 0, (Operation.FLUSH, 0, 0, False, True)),
        (TRIM, FUA, (Operation.TRIM, 4096, 8192, True, True)),
        (WRITE_ZEROES, 0, (Operation.WRITE_ZEROES, 4096, 8192, False, True)),
        (WRITE_ZEROES, NO_HOLE | FUA, (Operation.WRITE_ZEROES, 4096, 8192, True, False)),
        (WRITE_ZEROES, NO_HOLE, (Operation.WRITE_ZEROES, 4096, 8192, False, False)),
        (READ, DF, (Operation.READ, 4096, 8192, False, False)),
        (READ, DF | FUA, (Operation.READ, 4096, 8192, False, False)),
    ],
)
async def test_command_and_its_flags_reach_the_device(export, disk, command, flags, expected):
    client = await NbdClient.open(export.socket_path)
    where = () if command == FLUSH else (4096, 8192)
    assert (await client.ask(command, *where, flags=flags)).error == 0
    assert disk.log == [expected]


@pytest.mark.parametrize("fua", [False, True])
async def test_fua_of_a_write_makes_it_durable_before_the_reply(serve, structured, fua):
    disk = MemoryDisk(FULL, cached=True)
    export = await serve(disk)
    client = await NbdClient.open(export.socket_path, structured=structured)
    for size in (4096, 262144):
        data = pattern(size)
        await client.ask(WRITE, 0, data=data, flags=FUA if fua else 0)
        disk.lose_power()
        assert (disk.data[:size] == data) is fua


async def test_flush_on_one_connection_covers_what_another_wrote(serve):
    disk = MemoryDisk(FULL, cached=True)
    export = await serve(disk)
    writer, flusher = [await NbdClient.open(export.socket_path) for _ in range(2)]
    await writer.ask(WRITE, 8192, data=pattern(4096))
    await flusher.ask(FLUSH)
    disk.lose_power()
    assert (await writer.ask(READ, 8192, 4096)).data == pattern(4096)
    assert export.clients == 2


REFUSED = [
    pytest.param(READ, 0, 0, 0, EINVAL, id="read-of-nothing"),
    pytest.param(READ, 0, 4 * MEBIBYTE + 512, 0, EINVAL, id="read-over-maximum-payload"),
    pytest.param(READ, 8 * MEBIBYTE, 512, 0, EINVAL, id="read-beyond-end"),
    pytest.param(READ, 2**64 - 512, 512, 0, EINVAL, id="read-at-end-of-64-bits"),
    pytest.param(READ, 100, 512, 0, EINVAL, id="read-not-aligned"),
    pytest.param(READ, 0, 512, NO_HOLE, EINVAL, id="read-with-no-hole"),
    pytest.param(READ, 0, 512, 0x8000, EINVAL, id="read-with-unknown-flag"),
    pytest.param(WRITE, 8 * MEBIBYTE - 512, 1024, 0, ENOSPC, id="write-beyond-end"),
    pytest.param(WRITE, 0, 1000, 0, EINVAL, id="write-not-aligned"),
    pytest.param(WRITE, 0, 512, DF, EINVAL, id="write-with-df"),
    pytest.param(WRITE, 0, 4 * MEBIBYTE + 512, 0, EINVAL, id="write-over-maximum-payload"),
    pytest.param(WRITE_ZEROES, 8 * MEBIBYTE, 512, 0, ENOSPC, id="zeroes-beyond-end"),
    pytest.param(WRITE_ZEROES, 0, 512, FAST_ZERO, EINVAL, id="fast-zero-not-offered"),
    pytest.param(WRITE_ZEROES, 0, 0, 0, EINVAL, id="zeroes-of-nothing"),
    pytest.param(TRIM, 8 * MEBIBYTE, 512, 0, EINVAL, id="trim-beyond-end"),
    pytest.param(FLUSH, 512, 0, 0, EINVAL, id="flush-with-offset"),
    pytest.param(FLUSH, 0, 512, 0, EINVAL, id="flush-with-length"),
    pytest.param(CACHE, 0, 512, 0, EINVAL, id="cache-not-offered"),
    pytest.param(BLOCK_STATUS, 0, 512, REQ_ONE, EINVAL, id="block-status-not-negotiated"),
    pytest.param(99, 0, 512, 0, EINVAL, id="unknown-command"),
]


@pytest.mark.parametrize(("command", "offset", "length", "flags", "error"), REFUSED)
async def test_request_is_refused_and_the_connection_goes_on(
    export, structured, command, offset, length, flags, error
):
    client = await NbdClient.open(export.socket_path, structured=structured)
    data = bytes(length) if command == WRITE else b""
    reply = await client.ask(command, offset, length, flags, data)
    assert reply.error == error
    assert reply.structured is structured
    assert (await client.ask(READ, 512, 1024)).data == bytes(1024)
    assert export.counters["errors"] == 1


@pytest.mark.parametrize("command", [WRITE, TRIM, WRITE_ZEROES])
async def test_read_only_export_answers_eperm_to_every_write(serve, command):
    disk = MemoryDisk(replace(FULL, read_only=True), keep_log=True)
    export = await serve(disk)
    client = await NbdClient.open(export.socket_path)
    assert client.flags & 2
    reply = await client.ask(command, 0, 70000 if command == WRITE else 512, data=bytes(70000 * (command == WRITE)))
    assert reply.error == EPERM
    assert (await client.ask(READ, 0, 512)).error == 0
    assert [entry[0] for entry in disk.log] == [Operation.READ]


@pytest.mark.parametrize(
    ("field", "command", "flags"),
    [
        ("can_flush", FLUSH, 0),
        ("can_fua", WRITE, FUA),
        ("can_trim", TRIM, 0),
        ("can_write_zeroes", WRITE_ZEROES, 0),
    ],
)
async def test_what_was_not_offered_is_einval(serve, field, command, flags):
    export = await serve(MemoryDisk(replace(FULL, **{field: False})))
    client = await NbdClient.open(export.socket_path)
    length = 0 if command == FLUSH else 512
    reply = await client.ask(command, 0, length, flags, bytes(512) if command == WRITE else b"")
    assert reply.error == EINVAL


@pytest.mark.parametrize(
    ("errno", "answered"), [(5, EIO), (28, ENOSPC), (1, EPERM), (122, ENOSPC), (95, EINVAL), (110, EIO), (108, 108)]
)
async def test_device_error_becomes_one_the_protocol_knows(export, disk, structured, errno, answered):
    client = await NbdClient.open(export.socket_path, structured=structured)
    disk.fail_with = errno
    for command, length, data in ((READ, 70000, b""), (READ, 512, b""), (WRITE, 512, bytes(512)), (FLUSH, 0, b"")):
        assert (await client.ask(command, 0, length, 0, data)).error == answered


async def test_replies_follow_completion_not_request_order(export, disk, structured, eventually):
    client = await NbdClient.open(export.socket_path, structured=structured)
    disk.data[:] = pattern(len(disk.data))
    disk.hold = True
    cookies = [client.send(READ, 4096 * n, 4096) for n in range(20)]
    await eventually(lambda: len(disk.held) == 20)
    assert export.in_flight == 20
    disk.release(newest_first=True)
    lengths = dict.fromkeys(cookies, 4096)
    for cookie in reversed(cookies):
        reply = await client.reply(lengths)
        start = 4096 * cookies.index(cookie)
        assert (reply.cookie, reply.data) == (cookie, disk.data[start : start + 4096])


async def test_disc_finishes_what_is_in_flight_then_closes(export, disk, eventually):
    client = await NbdClient.open(export.socket_path)
    disk.hold = True
    cookie = client.send(WRITE, 0, data=pattern(4096))
    client.send(DISC)
    await eventually(lambda: len(disk.held) == 1)
    disk.release()
    assert (await client.reply()).cookie == cookie
    assert await client.at_end()
    await eventually(lambda: export.clients == 0)
    assert export.counters["protocol_violations"] == 0


async def test_requests_split_at_every_byte_are_the_same_requests(export, disk):
    conversation = (
        request(WRITE, 1, 0, 512, FUA, pattern(512, 1))
        + request(READ, 2, 0, 512)
        + request(TRIM, 3, 4096, 512)
        + request(WRITE, 4, 512, 1024, 0, pattern(1024, 2))
        + request(99, 5, 0, 512)
        + request(READ, 6, 0, 1536)
    )
    expected = {1: b"", 2: pattern(512, 1), 3: b"", 4: b"", 5: b"", 6: pattern(512, 1) + pattern(1024, 2)}
    client = await NbdClient.open(export.socket_path)
    for cut in range(1, len(conversation)):
        disk.data[:2048] = bytes(2048)
        client.writer.write(conversation[:cut])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        client.writer.write(conversation[cut:])
        replies = [await client.reply() for _ in expected]
        assert {reply.cookie: reply.data for reply in replies} == expected
        assert [reply.cookie for reply in replies if reply.error] == [5]


async def test_requests_in_pieces_of_odd_length_are_the_same_requests(export):
    client = await NbdClient.open(export.socket_path)
    blocks = {n: pattern(4096 * (1 + n % 31), n) for n in range(60)}
    stream = b"".join(request(WRITE, n, 131072 * n, len(data), 0, data) for n, data in blocks.items())
    for start in range(0, len(stream), 7919):
        client.writer.write(stream[start : start + 7919])
        await client.writer.drain()
    assert {(await client.reply()).cookie for _ in blocks} == set(blocks)
    for n, data in blocks.items():
        assert (await client.ask(READ, 131072 * n, len(data))).data == data


async def test_new_size_is_told_to_the_next_client_and_kept_by_the_device(export, disk):
    old = await NbdClient.open(export.socket_path)
    disk.resize(4 * MEBIBYTE)
    assert (await old.ask(READ, 4 * MEBIBYTE, 512)).error == EINVAL
    assert (await old.ask(WRITE, 4 * MEBIBYTE, data=bytes(512))).error == ENOSPC
    disk.resize(16 * MEBIBYTE)
    new = await NbdClient.open(export.socket_path)
    assert (old.size, new.size) == (8 * MEBIBYTE, 16 * MEBIBYTE)
    assert (await new.ask(WRITE, 12 * MEBIBYTE, data=pattern(512))).error == 0


async def test_counters_tell_what_clients_asked_for(export):
    client = await NbdClient.open(export.socket_path)
    await client.ask(WRITE, 0, data=bytes(1536))
    await client.ask(READ, 0, 4096)
    await client.ask(READ, 0, 512)
    await client.ask(FLUSH)
    await client.ask(TRIM, 0, 512)
    await client.ask(WRITE_ZEROES, 0, 512)
    expected = {"reads": 2, "read_bytes": 4608, "writes": 1, "written_bytes": 1536}
    expected |= {"flushes": 1, "trims": 1, "write_zeroes": 1, "errors": 0, "connections": 1}
    assert expected.items() <= export.counters.items()
