# SPDX-License-Identifier: GPL-3.0-or-later
"""The target's side of recovering a lost connection (RFC 3720 6.2.2, 10.5, 10.14), as several tests need it."""

from __future__ import annotations

import asyncio
import contextlib

from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig
from tests.conformance.raw_target import Peer
from tests.conformance.wire import Pdu

from blockfleet.net.nexus import Nexus

TASK_REASSIGN = 8
COMPLETE, NO_TASK, STILL_ALLEGIANT, NOT_SUPPORTED, FUNCTION_UNSUPPORTED, UNAUTHORISED = 0, 1, 3, 4, 5, 6
PATTERN = bytes(n * 37 + (n >> 10) & 255 for n in range(1 << 14))
SIZE = 512
AGREED = {"DefaultTime2Wait": "0", "DefaultTime2Retain": "7"}

Pair = tuple[list[Peer], Nexus, Listener]


def now() -> float:
    return asyncio.get_running_loop().time()


async def pair(
    rig: Rig, digests: tuple[str, str] = ("None", "None"), answers: dict[str, str] | None = None
) -> Pair:
    """A session of two connections at level 2."""
    return await rig.several(2, 2, digests, {**AGREED, **(answers or {})})


async def on_second(nexus: Nexus, peers: list[Peer], make: type[Issued] = Issued, **options: object) -> tuple:
    """Issue commands until the second connection has one; return it as issued and as sent."""
    cdb = WRITE_10 if "write" in options else READ_10 if "read" in options else bytes(6)
    issued = [make(nexus, cdb, **options) for _ in range(2)]  # type: ignore[arg-type]
    here = await peers[0].expect(wire.COMMAND)
    there = await peers[1].expect(wire.COMMAND)
    await peers[0].answer(here)
    by_order = sorted([(here.cmdsn, here), (there.cmdsn, there)])
    index = [pdu for _, pdu in by_order].index(there)
    await issued[1 - index].end()
    return issued[index], there


async def acknowledge(peer: Peer, lun: int = LUN) -> None:
    """Tell ExpCmdSN on a connection, and wait until that and all before it was read."""
    await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=0x5151, lun=lun))
    while (pdu := await peer.expect(wire.NOP_OUT)).ttt != 0x5151:
        await peer.answer(pdu)


async def beside_pings(peer: Peer, within: float = 3.0) -> Pdu:
    """Take the next PDU that is not a ping; those are answered."""
    while (pdu := await peer.recv(within)).opcode == wire.NOP_OUT:
        await peer.answer(pdu)
    return pdu


async def recovery_logout(peer: Peer, cid: int, within: float = 3.0) -> Pdu:
    """Take the Logout Request that removes a lost connection for recovery."""
    logout = await beside_pings(peer, within)
    assert (logout.opcode, logout.bhs[1], logout.cid) == (wire.LOGOUT, 0x82, cid)
    assert logout.immediate
    return logout


async def log_out(peers: list[Peer], retain: int = 7, wait: int = 0) -> None:
    """Take the recovery logout of the second connection on the first, and grant it."""
    logout = await recovery_logout(peers[0], peers[1].requests[0].cid)
    response = peers[0].numbered(wire.LOGOUT_RESPONSE, itt=logout.itt, time2wait=wait, time2retain=retain)
    await peers[0].raw(response)


async def reinstated(rig: Rig) -> Peer:
    """Let the session log in anew, with TSIH 0; attempts to join the old one are left behind."""
    while True:
        peer = await rig.target.accept()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            request = await peer.login_request()
            if not request.tsih:
                await peer.answer_login(request, wire.text("TargetPortalGroupTag=1", "AuthMethod=None"))
                await peer.operational(await peer.login_request(), {"MaxOutstandingR2T": "1"})
                return peer


async def reassigned(peer: Peer, command: Pdu, expected: tuple[int, ...] = (0,)) -> Pdu:
    """Take the TASK REASSIGN of a command and hold it to its form (10.5)."""
    request = await beside_pings(peer)
    assert (request.opcode, request.bhs[1]) == (wire.TASK_REQUEST, 0x80 | TASK_REASSIGN)
    assert (request.immediate, request.rtt) == (True, command.itt)
    assert request.itt not in (command.itt, wire.NONE_TAG)
    assert request.expdatasn in expected
    return request


async def answer(peer: Peer, request: Pdu, response: int = COMPLETE) -> None:
    """Answer a task management function."""
    await peer.raw(peer.numbered(wire.TASK_RESPONSE, 0x80, response, itt=request.itt))


async def lost_read(rig: Rig, digests: tuple[str, str] = ("None", "None"), parts: int = 2) -> tuple:
    """Lose the second connection in the middle of a read of four parts; log it out."""
    peers, nexus, listener = await pair(rig, digests)
    issued, command = await on_second(nexus, peers, read=4 * SIZE)
    for n in range(parts):
        await peers[1].raw(peers[1].data_in(command.itt, n, n * SIZE, PATTERN[n * SIZE : (n + 1) * SIZE]))
    await acknowledge(peers[0])
    peers[1].reset()
    await log_out(peers)
    return peers, issued, command, listener


async def finish_read(peer: Peer, command: Pdu, first: int) -> None:
    """Send a read's data from ``first`` on."""
    for n in range(first, 3):
        await peer.raw(peer.data_in(command.itt, n, n * SIZE, PATTERN[n * SIZE : (n + 1) * SIZE]))
    await peer.raw(peer.last_data_in(command.itt, 3, 3 * SIZE, PATTERN[3 * SIZE : 4 * SIZE]))
