# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and writes over a session that loses PDUs in both directions, at recovery level 1."""

from __future__ import annotations

import random

import pytest

BLOCK = 512
LOST = 0.15
LOSABLE = frozenset({0x21, 0x25, 0x31})  # SCSI Response, Data-In, R2T
KEYS = {"ErrorRecoveryLevel": "1", "HeaderDigest": "CRC32C", "DataDigest": "CRC32C", "MaxBurstLength": "4096"}


class Reader:
    """Puts a read together, asking again for what is missing."""

    def __init__(self, one, itt, length):
        self.one, self.itt, self.length = one, itt, length
        self.pieces = {}
        self.status = None

    def take(self, pdu):
        if pdu.opcode == 0x25:
            self.pieces[pdu.word36] = (pdu.word40, pdu.data)
        if pdu.opcode == 0x21 or pdu.flags & 1:
            assert pdu.byte3 == 0
            self.status = pdu

    def data(self):
        pieces = [self.pieces[number] for number in sorted(self.pieces)]
        data = b"".join(piece for _, piece in pieces)
        return data if len(data) == self.length else None

    async def finish(self):
        while True:
            await self._drain()
            if self.data() is not None and self.status is not None:
                return self.data()
            if self.data() is None:
                missing = [number for number in range(max(self.pieces, default=0)) if number not in self.pieces]
                first = missing[0] if missing else max(self.pieces, default=-1) + 1
                self.one.snack(0, first, 1 if missing else 0, itt=self.itt)
            else:
                self.one.snack(1, 0, 0)

    async def _drain(self):
        """Take everything until a ping comes back, which is not lost."""
        ping = self.one.next_itt()
        self.one.send(0x00, itt=ping, cmdsn=self.one.cmdsn, immediate=True)
        while True:
            pdu = await self.one.receive()
            if pdu.itt == ping:
                return
            if pdu.itt == self.itt:
                self.take(pdu)


async def write(one, wire, chance, lba, data):
    """Write, spoiling Data-Out PDUs by chance, until the status is there."""
    itt = one.command(wire.write10(lba, len(data) // BLOCK), write=len(data))
    served = set()
    while True:
        pdu = await one.receive()
        if pdu.opcode == 0x21 and pdu.itt == itt:
            return pdu
        if pdu.opcode != 0x31 or pdu.ttt in served:
            continue
        served.add(pdu.ttt)
        offset, end, datasn = pdu.word40, pdu.word40 + pdu.word44, 0
        while offset < end:
            cut = min(offset + 1024, end)
            damage = {"bad_digest": chance.random() < LOST, "bad_header": cut < end and chance.random() < LOST / 2}
            one.data_out(
                itt, data[offset:cut], ttt=pdu.ttt, datasn=datasn, offset=offset, final=cut == end, **damage
            )
            if damage["bad_header"]:  # two in a row would end the connection
                one.send(0x00, itt=wire.NONE, cmdsn=one.cmdsn, immediate=True)
            offset, datasn = cut, datasn + 1


@pytest.mark.parametrize("seed", range(4))
async def test_every_byte_arrives_whatever_is_lost(start, session, wire, seed):
    chance = random.Random(seed)
    target = await start(keys={"ErrorRecoveryLevel": 1}, sequence_timeout=0.05, data_ack="bursts")
    one = await session(target, **KEYS, MaxRecvDataSegmentLength="1024", InitialR2T="Yes", ImmediateData="No")
    lost = 0

    def lose(connection, pdu):
        nonlocal lost
        # Nothing shows the initiator that the status of its write is missing, so that one is not lost.
        writing = pdu.opcode == 0x21
        if pdu.opcode in LOSABLE and not writing and chance.random() < LOST:
            lost += 1
            return []
        return None

    target.on_send(lose)
    for _ in range(25):
        blocks = chance.randrange(1, 33)
        lba = chance.randrange(0, 64)
        data = chance.randbytes(blocks * BLOCK)
        status = await write(one, wire, chance, lba, data)
        if status.byte3:  # sixteen recoveries of one task were not enough
            assert status.sense == (0x0B, 0x47, 0x05)
            continue
        one.expstatsn = (status.statsn + 1) & wire.NONE
        assert target.units["disk"].backing.read(lba * BLOCK, len(data)) == data
        reader = Reader(one, one.command(wire.read10(lba, blocks), read=len(data)), len(data))
        assert await reader.finish() == data
        one.expstatsn = (reader.status.statsn + 1) & wire.NONE
    assert lost > 20
    assert not [text for text in target.violations if "SNACK" not in text]
