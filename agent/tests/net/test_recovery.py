# SPDX-License-Identifier: GPL-3.0-or-later
"""A nexus at error recovery level 1 against the test target: what is lost or damaged comes again, in one session
(RFC 3720 6.1.4.1, 6.1.4.2, 6.2.1, 6.7, 6.8, 10.16).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from tests.net.nexus_rig import Listener, config, parameters, run, running
from tests.proxy.pdu import WirePdu
from tests.proxy.proxy import Action, Direction, PduProxy, Rule

from blockfleet.iscsi.session import Patience
from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome, ScsiCommand
from blockfleet_testtarget.faults import Fault, build_fault
from blockfleet_testtarget.target import TestTarget

BLOCK = 512
ON = ("crc32c",)
DATA_OUT, DATA_IN = 0x05, 0x25
PATTERN = bytes((3 * index + index // 251) & 0xFF for index in range(1 << 20))
CRC_ERROR = (0x0B, 0x47, 0x05)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockfleet.net.nexus.Patience", partial(Patience, recovery=0.3))
    monkeypatch.setattr("blockfleet.iscsi.timers.SCAN_INTERVAL", 0.1)


def extent(operation: int, block: int, length: int) -> bytes:
    return bytes([operation, 0]) + block.to_bytes(4, "big") + b"\0" + (length // BLOCK).to_bytes(2, "big")


@dataclass
class Rig:
    """A nexus and its target, and a way to make trouble between them."""

    nexus: Nexus
    listener: Listener
    target: TestTarget

    def arm(self, fault: str, **options: object) -> Fault:
        armed = build_fault(fault, options)
        self.target.arm(armed)
        return armed

    async def read(self, block: int, length: int) -> bytes:
        command = await run(self.nexus, extent(0x28, block, length), read=length)
        assert (command.outcome, command.status) == (Outcome.COMPLETE, 0), (command, command.error)
        return bytes(command.data_in or b"")

    async def write(self, block: int, data: bytes) -> ScsiCommand:
        return await run(self.nexus, extent(0x2A, block, len(data)), write=data)

    def stored(self, block: int, length: int) -> bytes:
        return bytes(self.target.units["disk"].backing.read(block * BLOCK, length))

    @property
    def counters(self) -> dict[str, int]:
        return self.nexus.counters

    def one_session(self) -> bool:
        return self.listener.logins == 1 and not self.listener.losses


@asynccontextmanager
async def recovering(
    *,
    keys: dict[str, str] | None = None,
    through: PduProxy | None = None,
    digest: bool = True,
    **changes: object,
) -> AsyncIterator[Rig]:
    """A session with small segments, so that a read has many Data-In PDUs and a write several R2Ts."""
    wanted = {"ErrorRecoveryLevel": "2", "MaxBurstLength": "65536", "FirstBurstLength": "8192", **(keys or {})}
    settings = {"keys": wanted, "login_attention": False, "sequence_timeout": 0.2, "record_pdus": 0, **changes}
    made = config(**settings)
    async with TestTarget(made) as target:
        target.units["disk"].backing.write(0, PATTERN)
        portal = target.portals[0].address
        if through is not None:
            through.target = portal
            portal = through.portal
        digests = ON if digest else ("none",)
        offered = parameters(portal, error_recovery_level=1, header_digest=digests, data_digest=digests)
        async with running(offered) as (nexus, listener):
            await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
            assert nexus.negotiated is not None
            assert nexus.negotiated.error_recovery_level == 1
            yield Rig(nexus, listener, target)


READ_FAULTS = {
    "ERR1-07 a Data-In is missing": ("withhold", {"opcode": "data_in", "sn": 1}),
    "ERR1-03 the data of a Data-In are damaged": ("corrupt", {"opcode": "data_in", "part": "data", "after": 1}),
    "ERR1-03 the digest of a Data-In is damaged": ("corrupt", {"opcode": "data_in", "part": "data_digest"}),
    "ERR1-02 the header of a Data-In is damaged": ("corrupt", {"opcode": "data_in", "part": "header", "after": 1}),
    "ERR1-02 the length of a Data-In is damaged": ("corrupt", {"opcode": "data_in", "part": "header", "bit": -72}),
    "ERR1-02 a header digest is damaged": ("corrupt", {"opcode": "data_in", "part": "header_digest"}),
    "ERR1-17 a Data-In comes twice": ("duplicate", {"opcode": "data_in"}),
    "ERR1-17 two Data-In change places": ("reorder", {"opcode": "data_in", "sn": 1}),
    "ERR1-09 the last Data-In, with the status, is lost": ("withhold", {"opcode": "status"}),
    "ERR1-09 the header of the last one is damaged": (
        "corrupt",
        {"opcode": "data_in", "part": "header", "after": 3},
    ),
    "ERR1-10 all data are lost": ("withhold", {"opcode": "data_in", "times": 4}),
    "RTY a command is damaged": ("corrupt", {"opcode": "scsi_command", "part": "header", "received": True}),
}


@pytest.mark.parametrize("status_in_data", [True, False], ids=["status in data", "status apart"])
@pytest.mark.parametrize("name", READ_FAULTS)
async def test_a_read_is_whole_whatever_is_lost(name: str, status_in_data: bool) -> None:
    fault, options = READ_FAULTS[name]
    async with recovering(status_in_data=status_in_data) as rig:
        armed = rig.arm(fault, **options)
        assert await rig.read(3, 1 << 20 >> 2) == PATTERN[3 * BLOCK : 3 * BLOCK + (1 << 18)]
        assert await rig.read(0, 1 << 18) == PATTERN[: 1 << 18]
        assert armed.struck
        assert rig.one_session()
        assert not rig.target.violations


WRITE_FAULTS = {
    "ERR1-08 an R2T is missing": ("withhold", {"opcode": "r2t", "sn": 1}),
    "ERR1-02 the header of an R2T is damaged": ("corrupt", {"opcode": "r2t", "part": "header"}),
    "ERR1-17 an R2T comes twice": ("duplicate", {"opcode": "r2t"}),
    "ERR1-22 the data of a Data-Out are damaged": (
        "corrupt", {"opcode": "data_out", "part": "data", "received": True, "after": 1}
    ),
    "ERR1-22 the header of a Data-Out is damaged": (
        "corrupt", {"opcode": "data_out", "part": "header", "received": True, "after": 1}
    ),
    "ERR1-22 the only Data-Out of an R2T is lost": ("swallow", {"opcode": "data_out", "after": 2}),
    "ERR1-09 the status is lost": ("withhold", {"opcode": "status"}),
    "ERR1-17 the status comes twice": ("duplicate", {"opcode": "status"}),
    "ERR1-20 the immediate data are damaged": (
        "corrupt", {"opcode": "scsi_command", "part": "data", "received": True}
    ),
    "RTY the header of the command is damaged": (
        "corrupt", {"opcode": "scsi_command", "part": "header", "received": True}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITE_FAULTS)
async def test_a_write_is_whole_whatever_is_lost(name: str) -> None:
    fault, options = WRITE_FAULTS[name]
    async with recovering() as rig:
        armed = rig.arm(fault, **options)
        data = random.Random(name).randbytes(1 << 18)
        written = await rig.write(7, data)
        assert (written.outcome, written.status) == (Outcome.COMPLETE, 0), (written.error, written.sense.hex())
        assert rig.stored(7, len(data)) == data
        assert await rig.read(0, 4096) == rig.stored(0, 4096)
        assert armed.struck
        assert rig.one_session()


@pytest.mark.parametrize("ends", ["status in data", "status apart"])
async def test_ERR1_11_data_that_are_refused_fail_their_task(ends: str) -> None:
    async with recovering(status_in_data=ends == "status in data") as rig:
        rig.arm("withhold", opcode="data_in", sn=1)
        rig.arm("reject_snack", kind="data")
        read = await run(rig.nexus, extent(0x28, 0, 1 << 18), read=1 << 18)
        assert (read.outcome, read.status) == (Outcome.COMPLETE, 2)
        assert (read.sense[2] & 15, *read.sense[12:14]) == CRC_ERROR
        assert await rig.read(0, 4096) == PATTERN[:4096]
        assert rig.one_session()


@pytest.mark.parametrize(
    ("lost", "refused"), [("status", "status"), ("r2t", "data")], ids=["a response", "an R2T, which is not needed"]
)
async def test_ERR1_20_what_a_refusal_of_retransmission_leads_to(lost: str, refused: str) -> None:
    async with recovering() as rig:
        rig.arm("withhold", opcode=lost, sn=1) if lost == "r2t" else rig.arm("withhold", opcode=lost)
        rig.arm("reject_snack", kind=refused)
        written = await rig.write(0, PATTERN[: 1 << 17])
        if lost == "status":
            await rig.listener.until(lambda: bool(rig.listener.losses))
            assert written.outcome is Outcome.UNKNOWN, "no result is made up for it"
        else:
            # The target repeats it by itself, or ends the task.
            assert written.outcome is Outcome.COMPLETE
            assert rig.one_session()


@pytest.mark.parametrize("lost", ["data_in", "status"])
async def test_ERR1_23_requests_in_vain_are_bounded_and_end_the_session(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockfleet.net.nexus.Patience", partial(Patience, recovery=0.02))
    monkeypatch.setattr("blockfleet.iscsi.timers.SCAN_INTERVAL", 0.02)
    async with recovering() as rig:
        rig.arm("withhold", opcode=lost, after=0 if lost == "status" else 2)
        rig.arm("ignore_snack")
        read = await run(rig.nexus, extent(0x28, 0, 1 << 18), read=1 << 18)
        assert read.outcome is Outcome.UNKNOWN
        await rig.listener.until(lambda: rig.listener.logins == 2)
        asked = rig.counters["data_snacks"] + rig.counters["status_snacks"]
        assert 4 <= asked <= 20


@pytest.mark.parametrize("ack", ["last", "bursts"])
async def test_ERR1_13_data_are_acknowledged_when_the_target_asks(ack: str) -> None:
    async with recovering(data_ack=ack) as rig:
        rig.arm("withhold", opcode="data_in", sn=1)
        assert await rig.read(0, 1 << 18) == PATTERN[: 1 << 18]
        assert rig.counters["data_acks"] == (1 if ack == "last" else 4)
        assert not rig.target.violations


async def test_ERR1_09_a_lost_ping_or_its_answer_does_not_end_an_idle_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with recovering() as rig:
        session = rig.nexus._session
        assert session is not None
        session.patience = Patience(noop_interval=0.1, noop_timeout=0.2, recovery=0.1)
        for opcode, fault in (("nop_out", "swallow"), ("nop_in", "withhold")):
            armed = rig.arm(fault, opcode=opcode)
            before = rig.counters["pings"]
            assert await rig.read(0, 512) == PATTERN[:512]
            async with asyncio.timeout(5):
                while not armed.struck or rig.counters["pings"] < before + 4:
                    await asyncio.sleep(0.02)
        assert rig.one_session()


# ---- by chance


async def soak(rig: Rig, chance: random.Random, operations: int) -> None:
    """Write and read at random places from four tasks at once; every byte is compared."""
    slot = 256

    async def load(number: int) -> None:
        first = 2048 + number * slot
        expected = bytearray(rig.stored(first, slot * BLOCK))
        for _ in range(operations // 4):
            length = chance.choice((1, 8, 64, 200))
            block = chance.randrange(slot - length + 1)
            place = slice(block * BLOCK, (block + length) * BLOCK)
            if chance.random() < 0.5:
                data = chance.randbytes(length * BLOCK)
                written = await rig.write(first + block, data)
                assert written.outcome is Outcome.COMPLETE, written.error
                if written.status:  # the target asked sixteen times for data of one task
                    assert (written.sense[2] & 15, *written.sense[12:14]) == CRC_ERROR
                    data = rig.stored(first + block, len(data))
                expected[place] = data
                assert rig.stored(first + block, len(data)) == data
            else:
                assert await rig.read(first + block, length * BLOCK) == expected[place]

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(load(number))


@pytest.mark.parametrize("in_data", [True, False], ids=["status in data", "status apart"])
async def test_every_byte_arrives_though_one_pdu_in_20_of_the_target_is_lost(in_data: bool) -> None:
    chance, lost = random.Random(20), 0

    def lose(*_: object) -> list[object] | None:
        nonlocal lost
        if chance.random() >= 0.05:
            return None
        lost += 1
        return []

    short = {"MaxBurstLength": "8192", "FirstBurstLength": "4096"}
    async with recovering(keys=short, status_in_data=in_data, data_ack="bursts") as rig:
        rig.target.on_send(lose)  # type: ignore[arg-type]
        await soak(rig, random.Random(21), 240)
        assert rig.one_session()
        assert lost > 20
        assert rig.counters["data_snacks"] + rig.counters["status_snacks"] > 10
        # Whether an R2T that it does not need any more was sent again is the target's to say.
        assert not [text for text in rig.target.violations if "SNACK for R2TSN" not in text]


def spaced(distance: int) -> object:
    """Let one PDU in ``distance`` of a direction be harmed at most: two damaged headers in a row are too many."""
    left = {False: 0, True: 0}

    def far_enough(pdu: WirePdu) -> bool:
        left[pdu.opcode < 0x20] += 1
        if left[pdu.opcode < 0x20] < distance:
            return False
        left[pdu.opcode < 0x20] = 0
        return True

    return far_enough


async def test_every_byte_arrives_though_one_pdu_in_50_is_damaged_both_ways() -> None:
    far_enough = spaced(25)
    rules = [
        Rule(action, direction, one_in=2, keep_lengths=direction is Direction.TO_TARGET, where=far_enough)  # type: ignore[arg-type]
        for direction in Direction
        for action in (Action.CORRUPT_HEADER, Action.CORRUPT_DATA)
    ]
    async with PduProxy("", rules, seed=50) as proxy, recovering(through=proxy) as rig:
        await soak(rig, random.Random(51), 500)
        assert rig.one_session()
        assert proxy.count(Action.CORRUPT_HEADER) > 10
        assert proxy.count(Action.CORRUPT_DATA) > 5
        assert rig.counters["resyncs"] > 2
        assert rig.counters["data_digest_errors"] > 2
