# SPDX-License-Identifier: GPL-3.0-or-later
"""No write comes back from the dead: engine and volume over real targets whose backend or network is slow.

In each case an application writes a version of a block; it hangs in the target's backend or in the network when
its path fails.  The volume answers it after its fence, the application overwrites the block and reads it until
long after the first copy came loose.  The letters are those of the cases that corrupt data, or do not, without
the product's fence (``test_ghost_writes_without_fence.py`` runs the same machinery without it).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.integrity.nbd import NbdPipe
from tests.integrity.oracle import BLOCK
from tests.integrity.site import Register, Site, site
from tests.peers.tgt import Tgt

from blockfleet.model.desired import Policy

pytestmark = [pytest.mark.peer, pytest.mark.alone]

DELAY = 2.6
"""Seconds that a write hangs in the backend: more than it takes to find a silent path, 2 s here."""
AFTER = 0.4
"""Seconds that are watched after the first copy came loose."""

TARGETS = ["tgt", "istgt"]


@asynccontextmanager
async def application(
    host: Site, policy: Policy = Policy.FAIL_OVER_ONLY, patience: float = 0.0
) -> AsyncIterator[Register]:
    """Serve the volume and open it; at the end no block may have shown what it must not."""
    await host.serve(policy)
    pipe = NbdPipe(host.socket, patience)
    await pipe.open()
    register = Register(pipe)
    assert (await register.write()).error == 0
    yield register
    await pipe.close()
    assert register.oracle.violations == []


async def reset(host: Site, path: int) -> None:
    """A and E: the connection is reset, the portal answers."""
    assert host.proxies[path].reset() == 1


async def fall_silent(host: Site, path: int) -> None:
    """A2: nothing gets through any more, the target's side of the connection stays open."""
    assert len(host.proxies[path].hold()) == 1


async def dropped_by_the_target(host: Site, path: int) -> None:
    """The administrator closes the connection at the target."""
    assert isinstance(host.target, Tgt)
    await asyncio.to_thread(host.target.drop_connections, host.names[path])


Fault = Callable[[Site, int], Awaitable[None]]
FAULTS: list[tuple[str, Fault, int]] = [
    *((kind, reset, paths) for kind in TARGETS for paths in (1, 2)),
    *(("tgt", fault, paths) for fault in (fall_silent, dropped_by_the_target) for paths in (1, 2)),
    ("istgt", fall_silent, 2),
]


@pytest.mark.parametrize(
    ("kind", "fault", "paths"), FAULTS, ids=lambda value: getattr(value, "__name__", str(value))
)
async def test_a_a2_e_write_that_hangs_in_the_backend_when_its_path_fails(
    kind: str, fault: Fault, paths: int, shim: Path, tmp_path: Path
) -> None:
    async with site(kind, paths, shim, tmp_path) as host, application(host) as block:
        host.delays.hold(block.next_mark, DELAY)
        lost = block.write()
        await host.delays.until_begun()
        await fault(host, await host.active())
        assert (await lost).error == 0
        assert host.delays.ended == 1, "answered while the first copy could still take effect"
        assert (await block.write()).error == 0
        await block.watch(AFTER)
        assert {event.details["method"] for event in await host.events("path_fenced")} == {"lun_reset"}


@pytest.mark.parametrize("kind", TARGETS)
async def test_f_slow_backend_behind_a_live_session_is_waited_for(kind: str, shim: Path, tmp_path: Path) -> None:
    """Nothing is sent twice, and nothing has to be fenced."""
    async with site(kind, 2, shim, tmp_path) as host, application(host) as block:
        host.delays.hold(block.next_mark, DELAY)
        assert (await block.write()).error == 0
        assert host.delays.ended == 1
        assert (await block.write()).error == 0
        await block.watch(AFTER)
        state = await host.control.observe()
        assert [s.logins for s in state.sessions] == [1, 1]
        assert state.volumes[0].counters["fences"] == 0


async def test_h_portal_that_stays_away_is_waited_for(shim: Path, tmp_path: Path) -> None:
    """The path of the lost write cannot be asked any more, the other one works."""
    async with site("tgt", 2, shim, tmp_path) as host, application(host) as block:
        active = await host.active()
        host.delays.hold(block.next_mark, DELAY)
        lost = block.write()
        await host.delays.until_begun()
        await host.proxies[active].refuse()
        host.proxies[active].reset()
        assert (await lost).error == 0
        assert host.delays.ended == 1, "answered while the first copy could still take effect"
        assert (await block.write()).error == 0
        await block.watch(AFTER)


async def test_g_lun_reset_goes_to_the_target_of_the_lost_write(shim: Path, tmp_path: Path) -> None:
    """Two targets over one backing file: one answers LUN RESET while the other one's write still runs."""
    async with site("tgt twice", 2, shim, tmp_path) as host, application(host) as block:
        assert len((await host.volume()).paths) == 2
        host.delays.hold(block.next_mark, DELAY)
        lost = block.write()
        await host.delays.until_begun()
        host.proxies[await host.active()].reset()
        assert (await lost).error == 0
        assert host.delays.ended == 1, "answered while the first copy could still take effect"
        assert (await block.write()).error == 0
        await block.watch(AFTER)


# --- in the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "paths"), [("tgt", 1), ("tgt", 2), ("istgt", 2)])
async def test_n1_n2_writes_held_in_the_network_and_delivered_late(
    kind: str, paths: int, shim: Path, tmp_path: Path
) -> None:
    """The session is reinstated before anything is sent again: the target takes nothing more from the old one."""
    async with site(kind, paths, shim, tmp_path) as host, application(host) as block:
        others = [Register(block._pipe, lba, block.oracle) for lba in (8, 9)]
        (wire,) = host.proxies[await host.active()].hold()
        lost = [register.write() for register in (block, *others)]
        async with asyncio.timeout(5):
            while wire.held < 3 * BLOCK:
                await asyncio.sleep(0.01)
        for register, answer in zip((block, *others), lost, strict=True):
            assert (await answer).error == 0
            assert (await register.write()).error == 0
        await wire.deliver()
        for register in (block, *others):
            await register.watch(AFTER)


async def test_n3_writes_held_in_the_network_of_a_portal_that_stays_away(shim: Path, tmp_path: Path) -> None:
    """Only a login with the old ISID through the other portal of the group can end the old session."""
    async with site("tgt", 2, shim, tmp_path) as host, application(host) as block:
        others = [Register(block._pipe, lba, block.oracle) for lba in (8, 9)]
        (wire,) = host.proxies[await host.active()].hold(new_ones=True)
        lost = [register.write() for register in (block, *others)]
        async with asyncio.timeout(5):
            while wire.held < 3 * BLOCK:
                await asyncio.sleep(0.01)
        for register, answer in zip((block, *others), lost, strict=True):
            assert (await answer).error == 0
            assert (await register.write()).error == 0
        await wire.deliver()
        for register in (block, *others):
            await register.watch(AFTER)


# --- the engine is killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("isids", ["80d15c0001", "80d15c0002"], ids=["a-same-isid", "b-another-isid"])
async def test_write_that_hangs_in_the_backend_when_the_engine_is_killed(
    kind: str, isids: str, shim: Path, tmp_path: Path
) -> None:
    """Another ISID is that of an agent which lost its state: nothing is reinstated, LUN RESET remains."""
    async with site(kind, 1, shim, tmp_path) as host, application(host, patience=20) as block:
        host.delays.hold(block.next_mark, DELAY)
        lost = block.write()
        await host.delays.until_begun()
        await host.kill_engine()
        await host.serve(isids=isids)
        assert (await lost).error == 0
        assert host.delays.ended == 1, "answered while the first copy could still take effect"
        assert (await block.write()).error == 0
        await block.watch(AFTER)


async def test_write_held_in_the_network_when_the_engine_is_killed_and_its_path_stays_away(
    shim: Path, tmp_path: Path
) -> None:
    """The successor gets in through the other path alone: LUN RESET there does not stop what is on its way."""
    async with site("tgt", 2, shim, tmp_path) as host, application(host, patience=20) as block:
        others = [Register(block._pipe, lba, block.oracle) for lba in (8, 9)]
        (wire,) = host.proxies[await host.active()].hold(new_ones=True)
        lost = [register.write() for register in (block, *others)]
        async with asyncio.timeout(5):
            while wire.held < 3 * BLOCK:
                await asyncio.sleep(0.01)
        await host.kill_engine()
        await host.serve(wait_for=1)
        for register, answer in zip((block, *others), lost, strict=True):
            assert (await answer).error == 0
            assert (await register.write()).error == 0
        await wire.deliver()
        for register in (block, *others):
            await register.watch(AFTER)
