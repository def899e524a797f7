# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests at error recovery level 0 (RFC 3720 6.7, 6.1.4.4): each error is noticed, ends the session, and the
session comes back; no byte that was changed on the way is ever delivered or kept.
"""

from __future__ import annotations

import random

import pytest
from tests.net.nexus_rig import Listener, parameters, run, running
from tests.peers.tgt import Tgt
from tests.proxy.proxy import Action, Direction, PduProxy, Rule

from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome, ScsiCommand

pytestmark = pytest.mark.peer

NAME = "iqn.2026-11.com.example:corrupted"
LUN = 1 << 48
BLOCK = 512
LENGTH = 384 << 10
"""Beyond the first burst, so that there are immediate data, R2Ts and Data-Outs."""
CHECK_CONDITION = 2
COMMAND, DATA_OUT, RESPONSE, DATA_IN, R2T = 0x01, 0x05, 0x21, 0x25, 0x31
SOAK_OPERATIONS = 600
ON = ("crc32c",)


def disk(tgt: Tgt, digest: str) -> None:
    tgt.add_target(NAME)
    tgt.add_unit(NAME, 8 << 20)
    for key, value in (("HeaderDigest", digest), ("DataDigest", digest), ("DefaultTime2Wait", "0")):
        tgt.set(NAME, key, value)
    tgt.set(NAME, "InitialR2T", "No")


def extent(operation: int, block: int, length: int) -> bytes:
    return bytes([operation, 0]) + block.to_bytes(4, "big") + b"\0" + (length // BLOCK).to_bytes(2, "big")


async def settled(nexus: Nexus, listener: Listener, cdb: bytes, **data: object) -> ScsiCommand:
    """Run a command until the target answers it with GOOD, over as many sessions as that takes."""
    for _ in range(30):
        await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
        login = listener.logins
        command = await run(nexus, cdb, lun=LUN, **data)  # type: ignore[arg-type]
        if command.outcome is Outcome.COMPLETE and command.status == 0:
            return command
        if command.outcome is Outcome.COMPLETE:
            assert command.status == CHECK_CONDITION, repr(command)
        else:
            await listener.until(lambda login=login: len(listener.losses) >= login)  # type: ignore[misc]
    raise AssertionError(f"never answered: {command!r}")


async def write(nexus: Nexus, listener: Listener, block: int, data: bytes) -> None:
    await settled(nexus, listener, extent(0x2A, block, len(data)), write=data)


async def read(nexus: Nexus, listener: Listener, block: int, length: int) -> bytes:
    return bytes((await settled(nexus, listener, extent(0x28, block, length), read=length)).data_in or b"")


@pytest.mark.parametrize(
    ("action", "direction", "opcode"),
    [
        pytest.param(action, direction, opcode, id=f"{action} of {opcode:#04x} {direction}")
        for direction, action, opcodes in (
            (Direction.TO_TARGET, Action.CORRUPT_HEADER, (COMMAND, DATA_OUT)),
            (Direction.TO_TARGET, Action.CORRUPT_DATA, (COMMAND, DATA_OUT)),
            (Direction.TO_INITIATOR, Action.CORRUPT_HEADER, (RESPONSE, DATA_IN, R2T)),
            (Direction.TO_INITIATOR, Action.CORRUPT_DATA, (DATA_IN,)),
        )
        for opcode in opcodes
    ],
)
async def test_one_corrupt_pdu_is_noticed_and_the_session_comes_back(
    tgt: Tgt, action: Action, direction: Direction, opcode: int
) -> None:
    disk(tgt, "CRC32C")
    chance = random.Random(f"{action}{opcode}")
    async with PduProxy(tgt.portals[0], seed=chance.randrange(1000)) as proxy:
        made = parameters(proxy.portal, target=NAME, header_digest=ON, data_digest=ON)
        async with running(made) as (nexus, listener):
            await write(nexus, listener, 0, bytes(4 * BLOCK))
            for round_ in range(1, 4):
                rule = Rule(action, direction, frozenset({opcode}), times=1, keep_lengths=True)
                proxy.rules[:] = [rule]
                data = chance.randbytes(LENGTH)
                await write(nexus, listener, 0, data)
                assert await read(nexus, listener, 0, LENGTH) == data
                assert rule.done == 1
                assert (len(listener.losses), listener.logins) == (round_, round_ + 1)
            if direction is Direction.TO_INITIATOR:
                assert nexus.counters["digest_errors"] == 3


async def test_without_digests_the_same_harm_is_not_noticed(tgt: Tgt) -> None:
    """What the other tests would look like with a proxy that does nothing, or an initiator that checks nothing."""
    disk(tgt, "None")
    async with PduProxy(tgt.portals[0]) as proxy:
        async with running(parameters(proxy.portal, target=NAME)) as (nexus, listener):
            data = random.Random(5).randbytes(LENGTH)
            await write(nexus, listener, 0, data)
            proxy.rules[:] = [Rule(Action.CORRUPT_DATA, Direction.TO_INITIATOR, frozenset({DATA_IN}), times=1)]
            got = await read(nexus, listener, 0, LENGTH)
            assert sum(a != b for a, b in zip(got, data, strict=True)) == 1
            assert listener.losses == []


async def test_one_pdu_in_60_corrupted_both_ways_and_no_wrong_byte(tgt: Tgt) -> None:
    disk(tgt, "CRC32C")
    chance = random.Random(60)
    rules = [
        # tgt reads what TotalAHSLength tells of before it checks the digest, and may wait for ever.
        Rule(action, direction, one_in=60, keep_lengths=direction is Direction.TO_TARGET)
        for action in (Action.CORRUPT_HEADER, Action.CORRUPT_DATA)
        for direction in Direction
    ]
    expected = bytearray(2048 * BLOCK)
    async with PduProxy(tgt.portals[0], rules, seed=60) as proxy:
        made = parameters(
            proxy.portal, target=NAME, header_digest=ON, data_digest=ON, noop_interval=0.5, noop_timeout=0.5
        )
        async with running(made) as (nexus, listener):
            for _ in range(SOAK_OPERATIONS):
                length = chance.choice((1, 8, 64, 256)) * BLOCK
                block = chance.randrange(2048 - length // BLOCK)
                place = slice(block * BLOCK, block * BLOCK + length)
                if chance.random() < 0.5:
                    expected[place] = chance.randbytes(length)
                    await write(nexus, listener, block, bytes(expected[place]))
                else:
                    assert await read(nexus, listener, block, length) == expected[place]
            proxy.rules.clear()
            assert await read(nexus, listener, 0, len(expected)) == expected
            assert {deed for deed, _, _ in proxy.deeds} == {Action.CORRUPT_HEADER, Action.CORRUPT_DATA}
            assert len(listener.losses) > 5
            assert nexus.counters["digest_errors"] > 2
