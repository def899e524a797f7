# SPDX-License-Identifier: GPL-3.0-or-later
"""A real target with a slow backend on demand, a network that can be spoilt, and an engine over them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.engine.conftest import EngineProcess
from tests.engine.rig import HOST, QUICK, until
from tests.integrity.delay_write import DelayedWrites
from tests.integrity.nbd import READ, WRITE, NbdPipe, Request
from tests.integrity.oracle import BLOCK, Oracle, mark
from tests.integrity.proxy import Proxy, proxied
from tests.peers.istgt import Istgt
from tests.peers.tgt import Tgt

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import (
    EngineEvent,
    EngineState,
    InitiatorSpec,
    SessionSpec,
    VolumeSpec,
    VolumeState,
    session_key,
)
from blockfleet.model.desired import LoginOptions, Policy

SIZE = 16 << 20
_NAME = "iqn.2026-11.com.example:ghost"
NAMES = {"tgt": (_NAME, _NAME), "tgt twice": (_NAME, f"{_NAME}-2"), "istgt": (_NAME, _NAME)}
"""Which target each path leads to."""
LUNS = {"tgt": 1 << 48, "tgt twice": 1 << 48, "istgt": 0}
SCSI_ID = "naa.5000c50015ea71ab"
VOLUME = b"site-volume-0001"


@asynccontextmanager
async def real_target(kind: str, delays: DelayedWrites) -> AsyncIterator[Tgt | Istgt]:
    """Start a target with one disk and two portals of one group; tgt asks for no pause before a new login.

    "tgt twice" is one disk behind two targets.
    """
    target: Tgt | Istgt
    portals = ("127.0.0.1:0", "127.0.0.1:0")
    if kind != "istgt":
        target = await asyncio.to_thread(Tgt, portals, environment=delays.environment)
    else:
        target = Istgt(portals, environment=delays.environment)
    try:
        if isinstance(target, Tgt):
            await asyncio.to_thread(_add_disk, target, kind)
        else:
            target.add_target(NAMES[kind][0], SIZE)
            await asyncio.to_thread(target.start)
        yield target
    finally:
        await asyncio.to_thread(target.close)


def _add_disk(target: Tgt, kind: str) -> None:
    image: Path | None = None
    for name in dict.fromkeys(NAMES[kind]):
        target.add_target(name)
        target.set(name, "DefaultTime2Wait", "0")
        if image is None:
            image = target.add_unit(name, SIZE, scsi_id=SCSI_ID)
        else:
            target.share_unit(name, image, scsi_id=SCSI_ID)


class Site:
    """An engine with one session for each proxy, and a volume over them."""

    def __init__(self, kind: str, target: Tgt | Istgt, proxies: list[Proxy], delays: DelayedWrites, folder: Path):
        self.names = NAMES[kind]
        self.lun = LUNS[kind]
        self.target = target
        self.proxies = proxies
        self.delays = delays
        self.runtime = folder / "run"
        self.engine = EngineProcess(self.runtime)
        self.control = EngineClient(self.engine.socket)

    # --- engine ------------------------------------------------------------------------------------------

    async def serve(
        self,
        policy: Policy = Policy.FAIL_OVER_ONLY,
        *,
        isids: str = "80d15c0001",
        options: LoginOptions = QUICK,
        wait_for: int | None = None,
    ) -> VolumeState:
        """Log in through every proxy and serve the disk, once ``wait_for`` sessions (all) are in."""
        await self.engine.ready()
        await self.control.configure(InitiatorSpec(name=HOST))
        for index, proxy in enumerate(self.proxies):
            await self.control.open_session(
                SessionSpec(
                    key=self.key(index),
                    target=self.names[index],
                    portal=proxy.portal,
                    isid=f"{isids}{index + 1:02x}",
                    options=options,
                )
            )
        wanted = len(self.proxies) if wait_for is None else wait_for
        state = await self.until(lambda s: len(_disks(s)) >= wanted)
        await self.control.publish(
            VolumeSpec(name="v", identity=_disks(state)[0], targets=tuple(sorted(set(self.names))), policy=policy)
        )
        return (await self.until(lambda s: bool(s.volumes[0].socket))).volumes[0]

    def key(self, index: int) -> str:
        return session_key(self.names[index], self.proxies[index].portal)

    @property
    def socket(self) -> Path:
        return self.runtime / "volumes" / "v.sock"

    async def until(self, what: Callable[[EngineState], bool], seconds: float = 30.0) -> EngineState:
        return await until(self.control, what, seconds)

    async def volume(self) -> VolumeState:
        return (await self.control.observe()).volumes[0]

    async def active(self) -> int:
        """Return the path that carries the I/O."""
        shown = {path.session: path.phase for path in (await self.volume()).paths}
        return next(index for index in range(len(self.proxies)) if shown.get(self.key(index)) == "active")

    async def events(self, *names: str) -> list[EngineEvent]:
        """Return what was recorded so far, of the given names."""
        found: list[EngineEvent] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                async for event in self.control.events():
                    found.append(event)  # noqa: PERF401 - the stream has no end
        return [event for event in found if event.name in names]

    async def kill_engine(self) -> None:
        """Kill the engine and start another on the same folder; nothing is logged in yet."""
        self.engine.process.kill()
        await asyncio.to_thread(self.engine.process.wait, 10)
        await self.control.close()
        self.engine = EngineProcess(self.runtime)
        self.control = EngineClient(self.engine.socket)

    async def close(self) -> None:
        await self.control.close()
        if self.engine.process.poll() is None:
            self.engine.process.kill()
            await asyncio.to_thread(self.engine.process.wait, 10)


def _disks(state: EngineState) -> list[str]:
    return [u.identity for s in state.sessions for u in s.units if u.device_type == 0]


@asynccontextmanager
async def site(kind: str, paths: int, shim: Path, folder: Path) -> AsyncIterator[Site]:
    """Put it all together; the volume is not served yet."""
    delays = DelayedWrites(shim, folder)
    async with real_target(kind, delays) as target, proxied(*target.portals[:paths]) as proxies:
        made = Site(kind, target, proxies, delays, folder)
        try:
            yield made
        finally:
            await made.close()


class Register:
    """One block of a volume, written by an application that waits for each answer."""

    def __init__(self, pipe: NbdPipe, lba: int = 7, oracle: Oracle | None = None) -> None:
        self._pipe = pipe
        self.lba = lba
        self.oracle = oracle or Oracle(VOLUME)

    @property
    def next_mark(self) -> bytes:
        """What the version that is written next begins with."""
        return mark(VOLUME, self.lba, self.oracle.writer, self.oracle.register(self.lba).submitted + 1)

    def write(self) -> asyncio.Future[Request]:
        """Begin to write the next version; the result is its answer, of which the oracle is told."""
        data = self.oracle.intend(self.lba)
        version = self.oracle.register(self.lba).submitted
        answer: asyncio.Future[Request] = asyncio.get_running_loop().create_future()

        def answered(request: Request) -> None:
            if request.error:
                self.oracle.failed(self.lba, version)
            else:
                self.oracle.acknowledged(self.lba, version)
            if not answer.done():
                answer.set_result(request)

        self._pipe.submit(Request(WRITE, answered, self.lba * BLOCK, data=data))
        return answer

    async def read(self) -> None:
        """Read the block and let the oracle judge it."""
        before = self.oracle.glance(self.lba)
        answer = await self._pipe.ask(READ, self.lba * BLOCK, BLOCK)
        assert answer.error == 0
        self.oracle.check(self.lba, before, answer.data)

    async def watch(self, seconds: float) -> None:
        """Read the block over and over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            await self.read()
            await asyncio.sleep(0.02)
