# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client can do to the server: nothing that is without limit."""

from __future__ import annotations

import asyncio
import stat
import struct

import pytest
from tests.export.conftest import MEBIBYTE
from tests.export.nbd_client import ESHUTDOWN, FLUSH, READ, WRITE, NbdClient, go, option, request

from blockfleet.export import greeter
from blockfleet.export.connection import MAXIMUM_BYTES, MAXIMUM_REQUESTS, MAXIMUM_UNSENT
from blockfleet.export.reply_pool import MAXIMUM_IDLE, POOLED, ReplyPool
from blockfleet.export.server import MAXIMUM_CLIENTS, NbdExport
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc


async def settle(value, rounds: int = 20) -> int:
    """Wait until a number has stood still for some loop turns and return it."""
    last, same = value(), 0
    while same < rounds:
        await asyncio.sleep(0.005)
        same = same + 1 if value() == last else 0
        last = value()
    return last


async def test_requests_in_flight_are_bounded_and_the_rest_is_served_later(export, disk, eventually):
    client = await NbdClient.open(export.socket_path)
    disk.hold = True
    total = 5 * MAXIMUM_REQUESTS
    for n in range(total):
        client.send(READ, 512 * n, 512)
    await eventually(lambda: len(disk.held) == MAXIMUM_REQUESTS)
    assert await settle(lambda: len(disk.held)) == MAXIMUM_REQUESTS
    disk.hold = False
    disk.release()
    assert len({(await client.reply()).cookie for _ in range(total)}) == total


async def test_bytes_in_flight_are_bounded(export, disk, eventually):
    client = await NbdClient.open(export.socket_path)
    disk.hold = True
    for _ in range(100):
        client.send(READ, 0, 4 * MEBIBYTE)
    await eventually(lambda: len(disk.held) >= MAXIMUM_BYTES // (4 * MEBIBYTE))
    assert await settle(lambda: len(disk.held)) == MAXIMUM_BYTES // (4 * MEBIBYTE)


async def test_client_that_does_not_read_stops_being_served(export, disk):
    client = await NbdClient.open(export.socket_path)
    client.writer.transport.pause_reading()
    asked = 200
    for n in range(asked):
        client.send(READ, 0, MEBIBYTE)
        del n
    served = await settle(lambda: export.counters["reads"])
    # What is unsent, what the socket holds, and the requests of the turn in which the limit was met.
    assert served * MEBIBYTE < MAXIMUM_UNSENT + MAXIMUM_BYTES + 4 * MEBIBYTE
    assert served < asked
    client.writer.transport.resume_reading()
    for _ in range(asked):
        assert len((await client.reply()).data) == MEBIBYTE
    assert export.counters["reads"] == asked


async def test_write_that_never_ends_holds_up_nobody_else(export, disk):
    stuck = await NbdClient.open(export.socket_path)
    stuck.writer.write(request(WRITE, 1, 0, 4 * MEBIBYTE) + bytes(100000))
    half = await NbdClient.open(export.socket_path)
    half.writer.write(request(READ, 1, 0, 512)[:17])
    other = await NbdClient.open(export.socket_path)
    assert (await other.ask(READ, 0, 4096)).error == 0
    assert disk.data[:100000] == bytes(100000)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(bytes(64), id="zeroes"),
        pytest.param(request(READ, 1, 0, 512) + b"\x25\x60\x95\x14" + bytes(24), id="bad-magic-after-a-request"),
        pytest.param(request(WRITE, 1, 0, (1 << 25) + 1), id="write-over-32-MiB"),
        pytest.param(request(WRITE, 1, 0, 0xFFFFFFFF), id="write-of-4-GiB"),
    ],
)
async def test_protocol_violation_ends_this_connection_only(export, sent, eventually):
    bystander = await NbdClient.open(export.socket_path)
    client = await NbdClient.open(export.socket_path)
    client.writer.write(sent)
    async with asyncio.timeout(5):
        await client.reader.read()
    await eventually(lambda: export.clients == 1)
    assert export.counters["protocol_violations"] == 1
    assert (await bystander.ask(READ, 0, 512)).error == 0


async def test_garbage_instead_of_a_handshake_is_closed(export, eventually):
    client = await NbdClient.dial(export.socket_path)
    client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await client.at_end()
    await eventually(lambda: export.counters["protocol_violations"] == 1)


async def test_client_that_says_nothing_is_closed(export, monkeypatch):
    monkeypatch.setattr(greeter, "HANDSHAKE_TIMEOUT", 0.05)
    client = await NbdClient.dial(export.socket_path)
    async with asyncio.timeout(5):
        assert await client.at_end()
    assert export.clients == 0


async def test_too_many_options_close(export):
    client = await NbdClient.dial(export.socket_path)
    client.writer.write(option(99) * 40)
    async with asyncio.timeout(5):
        answers = await client.reader.read()
        while rest := await client.reader.read():
            answers += rest
    assert len(answers) == 32 * 20


async def test_one_client_too_many_is_turned_away_until_one_leaves(export, eventually):
    clients = [await NbdClient.open(export.socket_path) for _ in range(MAXIMUM_CLIENTS)]
    reader, writer = await asyncio.open_unix_connection(str(export.socket_path))
    assert await NbdClient(reader, writer).at_end()
    writer.close()
    assert export.counters["connections_refused"] == 1
    await clients.pop().close()
    await eventually(lambda: export.clients == MAXIMUM_CLIENTS - 1)
    clients.append(await NbdClient.open(export.socket_path))


async def test_client_that_vanishes_with_requests_in_flight_leaves_nothing(export, disk, eventually):
    client = await NbdClient.open(export.socket_path)
    disk.hold = True
    client.send(WRITE, 0, data=b"\x5a" * 512)
    client.send(READ, 0, MEBIBYTE)
    await eventually(lambda: len(disk.held) == 2)
    client.writer.transport.abort()
    await eventually(lambda: export.clients == 0)
    disk.release()
    assert disk.data[:512] == b"\x5a" * 512
    disk.hold = False
    again = await NbdClient.open(export.socket_path)
    assert (await again.ask(READ, 0, 512)).data == b"\x5a" * 512


async def test_requests_behind_the_handshake_in_one_piece_are_served(export):
    reader, writer = await asyncio.open_unix_connection(str(export.socket_path))
    writer.write(b"\x00\x00\x00\x03" + go() + request(READ, 7, 0, 512))
    await reader.readexactly(18 + (20 + 12) + 20)
    assert await reader.readexactly(16) == struct.pack(">IIQ", 0x67446698, 0, 7)
    assert await reader.readexactly(512) == bytes(512)
    writer.close()


# --- socket and stop -------------------------------------------------------------------------------------------


async def test_socket_is_for_its_owner_alone_and_goes_with_the_export(export):
    mode = export.socket_path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    await export.stop()
    await export.stop()
    assert not export.socket_path.exists()


async def test_stale_socket_is_replaced(serve, disk, folder):
    first = NbdExport("vol1", disk, folder / "vol1.sock")
    await first.start()
    first.socket_path.rename(folder / "aside")
    await first.stop()
    (folder / "aside").rename(folder / "vol1.sock")
    export = await serve(disk)
    assert await NbdClient.open(export.socket_path)


async def test_socket_that_is_served_is_not_taken_over(export, disk):
    with pytest.raises(BlockfleetError, match="somebody serves it") as caught:
        await NbdExport("vol1", disk, export.socket_path).start()
    assert caught.value.code is Isdsc.STATE_LOCKED
    assert await NbdClient.open(export.socket_path)


async def test_file_in_the_place_of_the_socket_is_left_alone(disk, folder):
    path = folder / "vol1.sock"
    path.write_text("precious")
    with pytest.raises(BlockfleetError, match="no socket is in its place"):
        await NbdExport("vol1", disk, path).start()
    assert path.read_text() == "precious"


async def test_folder_that_is_not_there_is_one_error(disk, folder):
    with pytest.raises(BlockfleetError, match=r"cannot serve .*No such file"):
        await NbdExport("vol1", disk, folder / "none" / "vol1.sock").start()


async def test_socket_that_somebody_put_in_our_place_is_not_removed(export, disk, folder):
    export.socket_path.rename(folder / "aside")
    other = NbdExport("vol1", disk, export.socket_path)
    await other.start()
    await export.stop()
    assert other.socket_path.exists()
    await other.stop()


async def test_stop_answers_what_is_in_flight_and_eshutdown_to_what_is_new(export, disk, eventually):
    client = await NbdClient.open(export.socket_path)
    disk.hold = True
    old = client.send(WRITE, 0, data=bytes(512))
    await eventually(lambda: len(disk.held) == 1)
    stopping = asyncio.create_task(export.stop(drain_timeout=5))
    await eventually(lambda: not export.socket_path.exists())
    new = [client.send(READ, 0, 512), client.send(WRITE, 0, data=bytes(512)), client.send(FLUSH)]
    for cookie in new:
        reply = await client.reply()
        assert (reply.cookie, reply.error) == (cookie, ESHUTDOWN)
    assert not stopping.done()
    disk.release()
    assert (await client.reply()).cookie == old
    await stopping
    assert await client.at_end()
    assert export.clients == 0


async def test_stop_cuts_off_what_never_finishes(export, disk, eventually):
    client = await NbdClient.open(export.socket_path)
    disk.hold = True
    client.send(READ, 0, 512)
    await eventually(lambda: len(disk.held) == 1)
    async with asyncio.timeout(5):
        await export.stop(drain_timeout=0.05)
    assert await client.at_end()
    disk.release()


# --- reply pool ------------------------------------------------------------------------------------------------


class HalfSent:
    """A transport that still holds ``pending`` bytes."""

    def __init__(self) -> None:
        self.pending = 0

    def get_write_buffer_size(self) -> int:
        return self.pending


def test_buffer_is_used_again_only_when_its_last_byte_was_sent():
    transport = HalfSent()
    pool = ReplyPool(transport)
    first, second = pool.take(POOLED), pool.take(POOLED)
    assert pool.hand_over([first, bytes(16), second]) == 2 * POOLED + 16
    pool.hand_over_other(100)
    transport.pending = POOLED + 101
    assert pool.take(POOLED) is first
    third = pool.take(POOLED)
    assert third is not second
    transport.pending = 101
    assert pool.take(POOLED) is not second
    transport.pending = 100
    assert pool.take(POOLED) is second


def test_pool_keeps_lengths_apart_and_forgets_when_full():
    transport = HalfSent()
    pool = ReplyPool(transport)
    small = pool.take(POOLED)
    pool.hand_over([small])
    assert len(pool.take(2 * POOLED)) == 2 * POOLED
    for _ in range(100):
        pool.hand_over([bytearray(MEBIBYTE)])
        assert pool.kept <= MAXIMUM_IDLE
    assert pool.take(POOLED) is not small
