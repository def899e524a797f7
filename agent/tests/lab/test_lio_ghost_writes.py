# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a write that LIO has begun when its connection is lost and it is written anew.

The disk under the first copy answers late, that of the second at once, and both have the same bytes: so the
first lands on the second wherever nothing holds the second back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.export.nbd_client import WRITE, NbdClient
from tests.lab.conftest import FAST, GHOST, SLOW, STUCK, STUCK_DELAY
from tests.lab.lio import Lio
from tests.lab.test_lio_volume import engine, login, published
from tests.net.nexus_rig import Listener, parameters, run, running
from tests.proxy.proxy import Action, PduProxy, Rule

from blockfleet.engine.client import EngineClient
from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.desired import Policy
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome, ScsiCommand

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

__all__ = ["engine"]
BLOCK = 4096
OLD, NEW = b"\xaa" * BLOCK, b"\xbb" * BLOCK
SLOW_LUN, FAST_LUN = 0, 1 << 48
OTHER_ISID = bytes.fromhex("80abcdef0002")
READER_ISID = bytes.fromhex("80abcdef0003")
LANDS_WITHIN = STUCK_DELAY + 20


def write(lun: int, data: bytes, on_done: Callable[[ScsiCommand], None]) -> ScsiCommand:
    cdb = b"\x2a".ljust(8, b"\0") + (BLOCK // 512).to_bytes(1, "big") + b"\0"
    return ScsiCommand(lun, cdb.ljust(16, b"\0"), on_done, data_out=memoryview(data))


async def write_now(nexus: Nexus, lun: int, data: bytes) -> None:
    """Write the block, past the unit attentions of a new nexus."""
    for _ in range(4):
        written = await run(nexus, write(lun, data, print).cdb, write=data, lun=lun)
        if written.status != 2:
            break
    assert (written.outcome, written.status) == (Outcome.COMPLETE, 0)


async def in_flight(lio: Lio, wanted: bool, disk: str = "slow") -> None:
    """Wait until a disk with a delay holds a write, or none."""
    async with asyncio.timeout(LANDS_WITHIN):
        while (await asyncio.to_thread(lio.writes_held, disk) > 0) is not wanted:
            await asyncio.sleep(0.05)


async def on_the_medium(lio: Lio, disk: str = "slow") -> bytes:
    """Return the block once every write has landed."""
    await in_flight(lio, False, disk)
    made = parameters(lio.portals[1], target=FAST, isid=READER_ISID)
    async with running(made) as (nexus, listener):
        await listener.until(lambda: listener.logins == 1)
        await settled(nexus, 0)
        found = await run(nexus, b"\x28".ljust(8, b"\0") + write(0, OLD, print).cdb[8:], read=BLOCK)
        assert (found.outcome, found.status) == (Outcome.COMPLETE, 0)
        return bytes(found.data_in or b"")


async def settled(nexus: Nexus, lun: int = SLOW_LUN) -> None:
    """Use up the unit attentions of a disk."""
    for _ in range(4):
        if (await run(nexus, b"\0", lun=lun)).status == 0:
            return
    raise AssertionError("the unit does not become ready")


@asynccontextmanager
async def lost_write(lio: Lio, *, noticed: bool) -> AsyncIterator[tuple[Nexus, Listener]]:
    """Let the connection be lost while LIO is busy with a write of OLD that it does not get done soon.

    Where it is not ``noticed``, LIO goes on believing in the connection.
    """
    async with PduProxy(lio.portals[0]) as proxy:
        made = parameters(proxy.portal, target=GHOST, noop_interval=0.5, noop_timeout=0.5)
        async with running(made) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            await write_now(nexus, FAST_LUN, bytes(BLOCK))
            await settled(nexus)
            lost: asyncio.Future[ScsiCommand] = asyncio.get_running_loop().create_future()
            nexus.execute(write(SLOW_LUN, OLD, lost.set_result))
            await in_flight(lio, True)
            if noticed:
                proxy.reset_connections()
            else:
                proxy.rules.append(Rule(Action.BLACK_HOLE, times=1))
            assert (await lost).outcome is Outcome.UNKNOWN
            yield nexus, listener


async def test_new_session_beside_the_lost_one_is_no_fence(lio: Lio) -> None:
    """Login with another ISID, as most initiators do after a loss: the old write overtakes the new one."""
    async with lost_write(lio, noticed=True):
        async with running(parameters(lio.portals[0], target=GHOST, isid=OTHER_ISID)) as (nexus, listener):
            await listener.until(lambda: listener.logins == 1)
            await write_now(nexus, FAST_LUN, NEW)
            assert await on_the_medium(lio) == OLD, "a ghost write: what the fence is for"


@pytest.mark.parametrize("noticed", [False, True], ids=["LIO does not notice", "LIO sees it end"])
async def test_reinstatement_is_a_fence_of_its_own(lio: Lio, noticed: bool) -> None:
    """RFC 3720 5.3.5: the tasks of the old session are over when the new one is in full feature phase."""
    async with lost_write(lio, noticed=noticed) as (nexus, listener):
        await listener.until(lambda: listener.logins == 2)
        assert await asyncio.to_thread(lio.writes_held, "slow") == 0
        await write_now(nexus, FAST_LUN, NEW)
        assert await on_the_medium(lio) == NEW


async def test_reinstatement_and_lun_reset_are_a_fence(lio: Lio) -> None:
    async with lost_write(lio, noticed=True) as (nexus, listener):
        await listener.until(lambda: listener.logins == 2)
        assert await nexus.lun_reset(SLOW_LUN) is TaskResponse.FUNCTION_COMPLETE
        assert await asyncio.to_thread(lio.writes_held, "slow") == 0
        await write_now(nexus, FAST_LUN, NEW)
        assert await on_the_medium(lio) == NEW


async def test_lun_reset_on_a_live_session_waits_for_what_runs(lio: Lio) -> None:
    async with running(parameters(lio.portals[0], target=GHOST)) as (nexus, listener):
        await listener.until(lambda: listener.logins == 1)
        await settled(nexus)
        nexus.execute(write(SLOW_LUN, OLD, lambda _: None))
        await in_flight(lio, True)
        assert await nexus.lun_reset(SLOW_LUN) is TaskResponse.FUNCTION_COMPLETE
        assert await asyncio.to_thread(lio.writes_held, "slow") == 0
        await write_now(nexus, FAST_LUN, NEW)
        assert await on_the_medium(lio) == NEW


async def engine_loses_a_write(
    lio: Lio, engine: EngineClient, target: str, disk: str, lose: Callable[[PduProxy], None]
) -> None:
    """Lose the path to a disk that is at work on a write; a second path would take the write at once."""
    async with PduProxy(lio.portals[0]) as proxy:
        await login(engine, target, proxy.portal, 0)
        volume = await published(engine, target, FAST, policy=Policy.FAIL_OVER_ONLY)
        client = await NbdClient.open(Path(volume.socket))
        lost = asyncio.create_task(client.ask(WRITE, 0, data=OLD))
        await in_flight(lio, True, disk)
        await login(engine, FAST, lio.portals[1], 1)
        lose(proxy)
        assert (await asyncio.wait_for(lost, LANDS_WITHIN)).error == 0
        held = await asyncio.to_thread(lio.writes_held, disk)
        assert (await asyncio.wait_for(client.ask(WRITE, 0, data=NEW), LANDS_WITHIN)).error == 0
        assert await on_the_medium(lio, disk) == NEW
        assert held == 0, "the second copy was answered before the first"
        volume = (await engine.observe()).volumes[0]
        assert (volume.counters["fences"], volume.counters["errors"]) == (1, 0)
        client.writer.close()


def go_silent(proxy: PduProxy) -> None:
    proxy.rules.append(Rule(Action.BLACK_HOLE, times=1))


@pytest.mark.parametrize(
    "lose", [go_silent, PduProxy.reset_connections], ids=["LIO does not notice", "LIO sees it end"]
)
async def test_engine_holds_a_lost_write_back_until_its_path_is_fenced(
    lio: Lio, engine: EngineClient, lose: Callable[[PduProxy], None]
) -> None:
    await engine_loses_a_write(lio, engine, SLOW, "slow", lose)


async def test_engine_holds_a_lost_write_back_while_lio_holds_the_login_back(
    lio: Lio, engine: EngineClient
) -> None:
    """LIO answers the reinstating login only when the old write has ended: later than the time fence."""
    await engine_loses_a_write(lio, engine, STUCK, "stuck", PduProxy.reset_connections)
