# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace beside what went over the wire at the same time, as dumpcap saw it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.rig import HOST, QUICK, until
from tests.engine.trace_rig import Reader, opcodes
from tests.net.nexus_rig import run
from tests.net.test_real_targets import ARRAY, LUN, NAME, SIZE, write_and_read
from tests.net.test_real_targets import HOST as ACCOUNT
from tests.peers.capture import Capture, Pdu
from tests.peers.process import split_portal
from tests.peers.tgt import Tgt

from blockfleet.engine.data_plane import DataPlane
from blockfleet.engine.interface import Credentials, InitiatorSpec, SessionSpec, TraceSpec, session_key

pytestmark = pytest.mark.peer

CREDENTIALS = Credentials(
    user=ACCOUNT.user, secret=ACCOUNT.secret, mutual_user=ARRAY.user, mutual_secret=ARRAY.secret
)


def through(pdus: list[Pdu], port: int) -> list[Pdu]:
    """Those of one portal."""
    return [pdu for pdu in pdus if str(port) in pdu.ports]


@pytest.mark.parametrize("digest", ["none", "crc32c"])
async def test_the_pdus_of_a_trace_are_those_on_the_wire_over_ipv4_and_ipv6_with_mutual_chap(
    tgt6: Tgt, tshark_capture: Callable[..., Capture], tmp_path: Path, digest: str
) -> None:
    tgt6.add_target(NAME, account=ACCOUNT, mutual=ARRAY)
    tgt6.add_unit(NAME, SIZE)
    for key in ("HeaderDigest", "DataDigest"):
        tgt6.set(NAME, key, {"none": "None", "crc32c": "CRC32C"}[digest])
    wire = await asyncio.to_thread(tshark_capture, *tgt6.portals)
    engine = DataPlane(tmp_path / "volumes", instance="here", version="0")
    await engine.configure(InitiatorSpec(name=HOST))
    options = QUICK.model_copy(update={"header_digest": (digest,), "data_digest": (digest,)})
    keys = [session_key(NAME, portal) for portal in tgt6.portals]
    readers: list[Reader] = []
    for index, portal in enumerate(tgt6.portals):
        isid = f"80d15c00000{index + 1}"
        await engine.open_session(
            SessionSpec(
                key=keys[index], target=NAME, portal=portal, isid=isid, credentials=CREDENTIALS, options=options
            )
        )
        if not readers:
            # It is on before a byte is sent: the session connects when the loop turns.
            readers.append(Reader(engine, TraceSpec(target=NAME), tmp_path / "t.pcapng"))
            await readers[0].begun()
    await until(engine, lambda state: all(session.units for session in state.sessions))
    for key in keys:
        nexus = engine._sessions[key].nexus
        for length in (512, 66048, 1 << 20):
            await write_and_read(nexus, LUN["tgt"], length)
        await run(nexus, b"\x12\0\0\0\x05", read=5, lun=LUN["tgt"])
    await engine.close()
    await readers[0].ended()
    await asyncio.to_thread(wire.stop)
    seen = await asyncio.to_thread(wire.check)
    traced = await asyncio.to_thread(readers[0].recording().check)
    for _, port in map(split_portal, tgt6.portals):
        assert opcodes(through(traced, port)) == opcodes(through(seen, port))
        assert opcodes(through(traced, port))[0x25] > 5
    assert len(traced) == len(readers[0].pdus)
    assert headers(traced) == headers(seen)


def headers(pdus: list[Pdu]) -> list[tuple[str, ...]]:
    """What tells one PDU from another, in no order: the two sides of a connection have clocks of their own."""
    names = (
        "opcode",
        "initiatortasktag",
        "cmdsn",
        "statsn",
        "datasn",
        "expcmdsn",
        "headerdigest32",
        "datadigest32",
    )
    return sorted(tuple(",".join(pdu.fields.get(f"iscsi.{name}", [])) for name in names) for pdu in pdus)
