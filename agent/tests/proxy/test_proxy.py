# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy by itself: between an initiator and a target that are none of ours, libiscsi in qemu and tgt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.peers.tgt import Tgt
from tests.proxy.pdu import Agreement, WirePdu, read_pdu
from tests.proxy.proxy import Action, Direction, PduProxy, Rule

pytestmark = pytest.mark.peer

NAME = "iqn.2026-11.com.example:proxied"
SIZE = 8 << 20
SCSI_COMMAND, DATA_OUT, SCSI_RESPONSE, DATA_IN = 0x01, 0x05, 0x21, 0x25
TEST_TIME = 20.0


def disk(tgt: Tgt, *, header_digest: bool = True) -> None:
    tgt.add_target(NAME)
    tgt.set(NAME, "HeaderDigest", "CRC32C" if header_digest else "None")
    tgt.add_unit(NAME, SIZE)


async def qemu_io(proxy: PduProxy, *commands: str, header_digest: bool = True) -> tuple[int, str]:
    """Run commands of qemu-io on the disk behind the proxy; returns the exit status and what it printed."""
    image = {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": proxy.portal,
        "target": NAME,
        "lun": "1",
        "header-digest": "crc32c" if header_digest else "none",
    }
    process = await asyncio.create_subprocess_exec(
        *("qemu-io", "--image-opts", ",".join(f"{name}={value}" for name, value in image.items())),
        *(word for command in commands for word in ("-c", command)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TEST_TIME):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")


WRITE_AND_READ = ("write -P 0x5a 0 1M", "read -P 0x5a 0 1M")


@pytest.mark.parametrize("header_digest", [False, True], ids=["no digest", "header digest"])
async def test_without_rules_all_passes_unchanged(tgt: Tgt, header_digest: bool) -> None:
    disk(tgt, header_digest=header_digest)
    async with PduProxy(tgt.portals[0]) as proxy:
        status, output = await qemu_io(proxy, *WRITE_AND_READ, header_digest=header_digest)
        assert (status, "verification failed" in output) == (0, False), output
        assert proxy.passed[Direction.TO_TARGET, SCSI_COMMAND] > 2
        assert proxy.passed[Direction.TO_TARGET, DATA_OUT] > 0
        assert proxy.passed[Direction.TO_INITIATOR, DATA_IN] > 0
        assert not proxy.deeds
        assert proxy.accepted >= 1


async def test_corrupt_data_without_a_data_digest_arrive_wrong_and_nobody_notices(tgt: Tgt) -> None:
    """The proof that it does corrupt: libiscsi has no data digest, so its reader gets the wrong byte."""
    disk(tgt)
    rule = Rule(
        Action.CORRUPT_DATA, Direction.TO_INITIATOR, frozenset({DATA_IN}), where=lambda p: p.data_length > 4096
    )
    async with PduProxy(tgt.portals[0], [rule]) as proxy:
        status, output = await qemu_io(proxy, *WRITE_AND_READ)
        assert "Pattern verification failed" in output, (status, output)
        assert proxy.count(Action.CORRUPT_DATA) == rule.done > 0


async def test_corrupt_header_is_noticed_by_its_digest(tgt: Tgt) -> None:
    """libiscsi drops the connection, logs in again and repeats: the pattern is right in the end."""
    disk(tgt)
    rule = Rule(Action.CORRUPT_HEADER, Direction.TO_INITIATOR, frozenset({DATA_IN}), times=1, keep_lengths=True)
    async with PduProxy(tgt.portals[0], [rule]) as proxy:
        status, output = await qemu_io(proxy, *WRITE_AND_READ)
        assert (status, "verification failed" in output) == (0, False), output
        assert rule.done == 1
        assert proxy.accepted >= 2


async def test_reset_ends_the_connection_on_both_sides(tgt: Tgt) -> None:
    disk(tgt)
    rule = Rule(Action.RESET, Direction.TO_TARGET, frozenset({SCSI_COMMAND}), times=1, where=_write)
    async with PduProxy(tgt.portals[0], [rule]) as proxy:
        status, output = await qemu_io(proxy, *WRITE_AND_READ)
        assert (status, "verification failed" in output) == (0, False), output
        assert (rule.done, proxy.accepted >= 2) == (1, True)
        assert proxy.deeds == {(Action.RESET, Direction.TO_TARGET, SCSI_COMMAND): 1}


def _write(pdu: WirePdu) -> bool:
    return pdu.header[32] in {0x2A, 0x8A}


async def test_delay_holds_a_pdu_back(tgt: Tgt) -> None:
    disk(tgt)
    rule = Rule(Action.DELAY, Direction.TO_TARGET, frozenset({SCSI_COMMAND}), times=1, seconds=0.5, where=_write)
    async with PduProxy(tgt.portals[0], [rule]) as proxy:
        began = asyncio.get_running_loop().time()
        status, output = await qemu_io(proxy, *WRITE_AND_READ)
        assert status == 0, output
        assert asyncio.get_running_loop().time() - began > 0.5


# --- what one PDU becomes, seen by a plain reader behind the proxy --------------------------------------------


def pdu(opcode: int, tag: int, data: bytes = b"", *, flags: int = 0x80) -> WirePdu:
    header = bytearray(48)
    header[0], header[1] = opcode, flags
    header[5:8] = len(data).to_bytes(3, "big")
    header[16:20] = tag.to_bytes(4, "big")
    return WirePdu(header, b"", bytearray(data + bytes(-len(data) % 4)), b"")


async def arrivals(rules: list[Rule], sent: list[WirePdu], *, seed: int = 1) -> list[WirePdu]:
    """Send PDUs through a proxy to somebody who only reads, and return what got there."""
    got: list[WirePdu] = []
    over = asyncio.Event()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                got.append(await read_pdu(reader, Agreement()))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
            over.set()

    server = await asyncio.start_server(read, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    async with server, PduProxy(f"{address}:{port}", rules, seed=seed) as proxy, asyncio.timeout(TEST_TIME):
        host, number = proxy.portal.split(":")
        _, writer = await asyncio.open_connection(host, int(number))
        for one in sent:
            writer.write(one.encode())
        writer.write_eof()
        await over.wait()
        writer.close()
    return got


NOP_OUT = 0x00
EVERY = frozenset({NOP_OUT})


async def test_drop_and_duplicate() -> None:
    sent = [pdu(NOP_OUT, tag, b"ping") for tag in range(4)]
    rules = [
        Rule(Action.DROP, opcodes=EVERY, where=lambda p: p.task_tag == 1),
        Rule(Action.DUPLICATE, opcodes=EVERY, where=lambda p: p.task_tag == 2),
    ]
    assert [one.task_tag for one in await arrivals(rules, sent)] == [0, 2, 2, 3]


async def test_one_byte_is_changed_and_always_the_same_one_for_a_seed() -> None:
    sent = [pdu(NOP_OUT, tag, bytes(64)) for tag in range(200)]

    async def differences(seed: int) -> list[tuple[int, int]]:
        rule = Rule(Action.CORRUPT_DATA, opcodes=EVERY, one_in=10)
        got = await arrivals([rule], sent, seed=seed)
        assert len(got) == len(sent)
        wrong = [(n, sum(map(bool, one.data))) for n, one in enumerate(got) if any(one.data)]
        assert len(wrong) == rule.done
        assert {changed for _, changed in wrong} == {1}
        return wrong

    assert await differences(7) == await differences(7)
    assert await differences(7) != await differences(8)


async def test_header_is_changed_in_one_byte_and_lengths_are_spared_if_asked() -> None:
    sent = [pdu(NOP_OUT, 9) for _ in range(100)]
    got = await arrivals([Rule(Action.CORRUPT_HEADER, opcodes=EVERY, keep_lengths=True)], sent)
    assert len(got) == 100
    for one in got:
        changed = [n for n, (a, b) in enumerate(zip(one.header, sent[0].header, strict=True)) if a != b]
        assert len(changed) == 1
        assert changed[0] not in range(4, 8)


async def test_black_hole_lets_nothing_more_through_and_keeps_the_connection() -> None:
    sent = [pdu(NOP_OUT, tag) for tag in range(5)]
    got: list[WirePdu] = []
    closed = asyncio.Event()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                got.append(await read_pdu(reader, Agreement()))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
            closed.set()

    server = await asyncio.start_server(read, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    rule = Rule(Action.BLACK_HOLE, opcodes=EVERY, where=lambda p: p.task_tag == 2, times=1)
    async with server, PduProxy(f"{address}:{port}", [rule]) as proxy, asyncio.timeout(TEST_TIME):
        _, writer = await asyncio.open_connection(*proxy.portal.split(":"))
        for one in sent:
            writer.write(one.encode())
        while not rule.done or len(got) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert [one.task_tag for one in got] == [0, 1]
        assert (proxy.connections, closed.is_set()) == (1, False)
        writer.close()


@pytest.mark.parametrize("first", [0x03, 0x23], ids=["initiator offers", "target offers"])
@pytest.mark.parametrize(
    ("offer", "answer", "agreed"),
    [("CRC32C,None", "CRC32C", True), ("None,CRC32C", "None", False), ("CRC32C", "CRC32C", True)],
)
def test_digest_is_what_was_answered(first: int, offer: str, answer: str, agreed: bool) -> None:
    """RFC 3720 5.2: one side offers a list, the other chooses; both can be the one that begins."""
    agreement = Agreement()
    second = {0x03: 0x23, 0x23: 0x03}[first]
    agreement.hear(pdu(first, 1, f"HeaderDigest={offer}\0".encode(), flags=0x04))
    agreement.hear(pdu(second, 1, f"HeaderDigest={answer}\0".encode(), flags=0x04))
    assert not agreement.header_digest, "not before the login ends"
    agreement.hear(pdu(0x23, 1, flags=0x87))
    assert (agreement.header_digest, agreement.data_digest) == (agreed, False)


async def test_initiator_is_reset_where_the_target_is_away(free_port: Callable[[], int]) -> None:
    async with PduProxy(f"127.0.0.1:{free_port()}") as proxy:
        reader, writer = await asyncio.open_connection(*proxy.portal.split(":"))
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
