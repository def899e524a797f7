# SPDX-License-Identifier: GPL-3.0-or-later
"""The control experiment: an initiator that retries without a fence does corrupt data on these targets.

Bare nexuses take the place of the product; the oracle has to find the ghost in each case, else the tests that
look for ghosts behind the product could not fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.integrity.delay_write import DelayedWrites
from tests.integrity.oracle import BLOCK, Oracle, mark
from tests.integrity.proxy import Proxy, proxied
from tests.integrity.site import LUNS, NAMES, VOLUME, real_target
from tests.net.nexus_rig import Listener, parameters, run, running

from blockfleet.iscsi.constants import TaskResponse
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.cdb import read_10, write_10
from blockfleet.scsi.command import Outcome

pytestmark = [pytest.mark.peer, pytest.mark.alone]

DELAY = 1.5
_SECTORS = BLOCK // 512


class Bare:
    """Nexuses without anything above them that would fence."""

    def __init__(self, kind: str, proxies: list[Proxy], delays: DelayedWrites) -> None:
        self.proxies = proxies
        self.delays = delays
        self.oracle = Oracle(VOLUME)
        self.nexuses: list[Nexus] = []
        self.listeners: list[Listener] = []
        self._kind = kind
        self.lun = LUNS[kind]

    async def log_in(self, stack: AsyncExitStack) -> None:
        for index, proxy in enumerate(self.proxies):
            isid = bytes.fromhex("80abcdef00") + bytes([index + 1])
            made = parameters(proxy.portal, target=NAMES[self._kind][index], isid=isid)
            nexus, listener = await stack.enter_async_context(running(made))
            await listener.until(lambda listener=listener: listener.logins == 1)  # type: ignore[misc]
            self.nexuses.append(nexus)
            self.listeners.append(listener)
            await self.read(0, index)

    async def write(self, lba: int, data: bytes, path: int) -> None:
        """Write on a path until it is answered GOOD: unit attentions come first."""
        for _ in range(4):
            done = await run(self.nexuses[path], write_10(lba * _SECTORS, _SECTORS), write=data, lun=self.lun)
            assert done.outcome is Outcome.COMPLETE
            if done.status == 0:
                return
        raise AssertionError(f"the write ends with status {done.status}: {done.sense.hex()}")

    async def read(self, lba: int, path: int) -> bytes:
        for _ in range(4):
            done = await run(self.nexuses[path], read_10(lba * _SECTORS, _SECTORS), read=BLOCK, lun=self.lun)
            if done.status == 0:
                return bytes(done.data_in or b"")
        raise AssertionError(f"the read ends with status {done.status}: {done.sense.hex()}")

    def lose(self, lba: int, path: int) -> bytes:
        """Send a version whose answer nobody waits for, and return it."""
        data = self.oracle.intend(lba)
        lost = asyncio.create_task(
            run(self.nexuses[path], write_10(lba * _SECTORS, _SECTORS), write=data, lun=self.lun)
        )
        lost.add_done_callback(lambda task: task.cancelled() or task.exception())
        return data

    async def lose_in_the_target(self, lba: int, path: int) -> bytes:
        """Send a version whose write hangs in the target's backend."""
        version = self.oracle.register(lba).submitted + 1
        self.delays.hold(mark(VOLUME, lba, self.oracle.writer, version), DELAY)
        data = self.lose(lba, path)
        await self.delays.until_begun()
        return data

    async def retry_and_overwrite(self, lba: int, data: bytes, path: int) -> None:
        """Do what a multipath layer without a fence does, and what an application then may do."""
        await self.write(lba, data, path)
        self.oracle.acknowledged(lba, 1)
        newer = self.oracle.intend(lba)
        await self.write(lba, newer, path)
        self.oracle.acknowledged(lba, 2)
        await self.judge(lba, path)
        assert self.oracle.violations == []

    async def judge(self, lba: int, path: int) -> None:
        before = self.oracle.glance(lba)
        self.oracle.check(lba, before, await self.read(lba, path))

    def ghosts(self) -> int:
        assert all("shows version 1 after version 2" in violation for violation in self.oracle.violations)
        return len(self.oracle.violations)


@asynccontextmanager
async def bare(kind: str, paths: int, shim: Path, folder: Path) -> AsyncIterator[Bare]:
    delays = DelayedWrites(shim, folder)
    async with (
        real_target(kind, delays) as target,
        proxied(*target.portals[:paths]) as proxies,
        AsyncExitStack() as stack,
    ):
        made = Bare(kind, proxies, delays)
        await made.log_in(stack)
        yield made
        for proxy in proxies:
            await proxy.close()  # a nexus takes its time to log out of a session that is silent


async def test_a_reinstatement_alone_leaves_a_ghost_on_tgt(shim: Path, tmp_path: Path) -> None:
    async with bare("tgt", 1, shim, tmp_path) as host:
        data = await host.lose_in_the_target(5, 0)
        host.proxies[0].reset()
        await host.listeners[0].until(lambda: host.listeners[0].logins == 2)
        await host.retry_and_overwrite(5, data, 0)
        await host.delays.until_ended()
        await asyncio.sleep(0.1)
        await host.judge(5, 0)
        assert host.ghosts() == 1


async def test_e_retry_on_the_second_path_leaves_a_ghost_on_tgt(shim: Path, tmp_path: Path) -> None:
    async with bare("tgt", 2, shim, tmp_path) as host:
        data = await host.lose_in_the_target(5, 0)
        await host.retry_and_overwrite(5, data, 1)
        await host.delays.until_ended()
        await asyncio.sleep(0.1)
        await host.judge(5, 1)
        assert host.ghosts() == 1


@pytest.mark.parametrize("kind", ["tgt", "istgt"])
async def test_n1_writes_on_their_way_leave_ghosts(kind: str, shim: Path, tmp_path: Path) -> None:
    async with bare(kind, 2, shim, tmp_path) as host:
        (wire,) = host.proxies[0].hold()
        lost = {lba: host.lose(lba, 0) for lba in (5, 6, 7)}
        async with asyncio.timeout(5):
            while wire.held < 3 * BLOCK:
                await asyncio.sleep(0.01)
        for lba, data in lost.items():
            await host.retry_and_overwrite(lba, data, 1)
        assert await wire.deliver()
        await asyncio.sleep(0.3)
        for lba in lost:
            await host.judge(lba, 1)
        assert host.ghosts() == 3


async def test_n2_lun_reset_on_the_other_path_does_not_stop_writes_on_their_way(shim: Path, tmp_path: Path) -> None:
    """Its unit attention eats the first stale command and no other."""
    async with bare("tgt", 2, shim, tmp_path) as host:
        (wire,) = host.proxies[0].hold()
        lost = {lba: host.lose(lba, 0) for lba in (5, 6, 7)}
        async with asyncio.timeout(5):
            while wire.held < 3 * BLOCK:
                await asyncio.sleep(0.01)
        assert await host.nexuses[1].lun_reset(host.lun) is TaskResponse.FUNCTION_COMPLETE
        for lba, data in lost.items():
            await host.retry_and_overwrite(lba, data, 1)
        assert await wire.deliver()
        await asyncio.sleep(0.3)
        for lba in lost:
            await host.judge(lba, 1)
        assert host.ghosts() == 2


async def test_g_lun_reset_through_another_target_leaves_a_ghost_on_tgt(shim: Path, tmp_path: Path) -> None:
    async with bare("tgt twice", 2, shim, tmp_path) as host:
        data = await host.lose_in_the_target(5, 0)
        assert await host.nexuses[1].lun_reset(host.lun) is TaskResponse.FUNCTION_COMPLETE
        assert host.delays.ended == 0
        await host.retry_and_overwrite(5, data, 1)
        await host.delays.until_ended()
        await asyncio.sleep(0.1)
        await host.judge(5, 1)
        assert host.ghosts() == 1


async def test_c_reinstatement_and_lun_reset_leave_none(shim: Path, tmp_path: Path) -> None:
    async with bare("tgt", 1, shim, tmp_path) as host:
        data = await host.lose_in_the_target(5, 0)
        host.proxies[0].reset()
        await host.listeners[0].until(lambda: host.listeners[0].logins == 2)
        assert await host.nexuses[0].lun_reset(host.lun) is TaskResponse.FUNCTION_COMPLETE
        assert host.delays.ended == 1, "the answer came when the write had ended"
        await host.retry_and_overwrite(5, data, 0)
        await host.judge(5, 0)
        assert host.ghosts() == 0
