# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets that a coroutine speaks for."""

from __future__ import annotations

import asyncio

import pytest

from blockfleet_testtarget.script import PeerGoneError, ScriptedTarget


@pytest.fixture
async def peer(wire):
    one = wire.Initiator()
    yield one
    await one.close()


async def test_script_bends_a_login_and_sees_the_reaction(peer):
    seen = []
    done = asyncio.Event()

    async def handler(connection):
        request = await connection.receive()
        connection.send(connection.answer(request, flags=0x87, text={"Bogus": "7"}, tsih=0))
        await connection.closed()
        seen.append(request.opcode)
        done.set()

    async with ScriptedTarget(handler) as target:
        await peer.connect("127.0.0.1", target.port)
        answer = await peer.login_step({"InitiatorName": peer.name})
        assert (answer.flags, answer.tsih, answer.text) == (0x87, 0, {"Bogus": "7"})
        await peer.close()
        await done.wait()
    assert seen == [0x03]


async def test_script_goes_on_after_a_login(peer):
    async def handler(connection):
        keys = await connection.accept_login({"HeaderDigest": "CRC32C", "DataDigest": "None"}, tsih=9)
        assert keys["InitiatorName"] == peer.name
        connection.header_digest = True
        request = await connection.receive()
        connection.send(connection.answer(request, data=b"", byte3=0x08))

    async with ScriptedTarget(handler) as target:
        await peer.connect("127.0.0.1", target.port)
        answer = await peer.login(HeaderDigest="CRC32C", DataDigest="None")
        assert answer.tsih == 9
        peer.command(bytes(6))
        assert (await peer.status()).byte3 == 0x08


async def test_error_of_a_script_is_raised(peer):
    async def handler(connection):
        await connection.receive()
        raise LookupError("wrong key")

    async def use():
        async with ScriptedTarget(handler) as target:
            await peer.connect("127.0.0.1", target.port)
            peer.send(0x00)
            assert await peer.ended() == b""

    with pytest.raises(LookupError, match="wrong key"):
        await use()


async def test_wait_of_a_script_is_bounded_and_ends_with_the_peer(peer):
    waited, ended = asyncio.Event(), asyncio.Event()

    async def handler(connection):
        with pytest.raises(TimeoutError):
            await connection.receive(0.01)
        waited.set()
        with pytest.raises(PeerGoneError):
            await connection.receive()
        ended.set()

    async with ScriptedTarget(handler) as target:
        await peer.connect("127.0.0.1", target.port)
        await waited.wait()
        peer.writer.write_eof()
        await ended.wait()
