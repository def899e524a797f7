# SPDX-License-Identifier: GPL-3.0-or-later
"""What the initiator puts on the wire, as Wireshark's decoder reads it: nothing malformed, every digest right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.net.nexus_rig import parameters, run, running
from tests.net.test_real_targets import ARRAY, HOST, LUN, NAME, SIZE, credentials, write_and_read
from tests.peers.capture import Capture
from tests.peers.tgt import Tgt

from blockfleet.model.portal import Portal
from blockfleet.net.discovery_session import send_targets
from blockfleet.net.nexus import NexusPhase

pytestmark = pytest.mark.peer

LOGIN, COMMAND, DATA_OUT, NOP_OUT, TASK, TEXT, LOGOUT = 0x03, 0x01, 0x05, 0x00, 0x02, 0x04, 0x06


@pytest.mark.parametrize("digest", ["none", "crc32c"])
async def test_a_whole_life_with_mutual_chap_decodes_cleanly(
    tgt6: Tgt, tshark_capture: Callable[..., Capture], digest: str
) -> None:
    tgt6.add_target(NAME, account=HOST, mutual=ARRAY)
    tgt6.add_unit(NAME, SIZE)
    for key in ("HeaderDigest", "DataDigest"):
        tgt6.set(NAME, key, {"none": "None", "crc32c": "CRC32C"}[digest])
    capture = await asyncio.to_thread(tshark_capture, *tgt6.portals)
    isid = bytes.fromhex("80abcdef0003")
    await send_targets("iqn.2026-11.com.example:host", Portal.parse(tgt6.portals[1]), None, isid=isid, timeout=10)
    made = parameters(
        tgt6.portals[0],
        target=NAME,
        credentials=credentials(mutual=True),
        header_digest=(digest,),
        data_digest=(digest,),
        noop_interval=0.2,
    )
    async with running(made) as (nexus, listener):
        await listener.until(lambda: nexus.phase is NexusPhase.LOGGED_IN)
        for length in (512, 66048, 1 << 20):
            await write_and_read(nexus, LUN["tgt"], length)
        await run(nexus, b"\x12\0\0\0\x05", read=5, lun=LUN["tgt"])
        await nexus.lun_reset(LUN["tgt"])
        while not nexus.counters["pings"]:
            await asyncio.sleep(0.05)
    await asyncio.to_thread(capture.stop)
    sent = {pdu.opcode for pdu in await asyncio.to_thread(capture.check)}
    assert {LOGIN, COMMAND, DATA_OUT, NOP_OUT, TASK, TEXT, LOGOUT} <= sent
