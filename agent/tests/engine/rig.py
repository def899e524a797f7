# SPDX-License-Identifier: GPL-3.0-or-later
"""A real engine process against the embedded test target, which runs in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blockfleet.engine.interface import (
    ConnectionSet,
    Credentials,
    Engine,
    EngineEvent,
    EngineState,
    SessionSpec,
    SessionState,
    VolumeSpec,
    VolumeState,
    session_key,
)
from blockfleet.model.desired import LoginOptions, Policy
from blockfleet_testtarget.config import Config, PortalConfig, TargetConfig, UnitConfig
from blockfleet_testtarget.faults.base import Fault
from blockfleet_testtarget.target import TestTarget

HOST = "iqn.2026-11.com.example:host"
TARGET = "iqn.2026-11.com.example:disk"
NAA = "6001405000000000000000000000b10c"
IDENTITY = f"naa.{NAA}"
SIZE = 16 << 20
ONE = ConnectionSet()
QUICK = LoginOptions(login_timeout=3.0, noop_interval=1.0, noop_timeout=1.0)


def two_portals(**target: object) -> Config:
    """One unit behind two portals of two groups; the wishes of both sides differ."""
    return Config(
        portals=[PortalConfig("127.0.0.1", group=1), PortalConfig("127.0.0.1", group=2)],
        units={"unit": UnitConfig(size=SIZE, naa=NAA), "other": UnitConfig(size=SIZE)},
        targets=[TargetConfig(TARGET, luns={3: "unit"}, **target)],
        record_pdus=0,
    )


def isid(index: int) -> str:
    """The ISID of the path through a portal."""
    return f"80d15c00000{index + 1}"


@dataclass
class Rig:
    """An engine, in another process or in this one, and a target."""

    engine: Engine
    target: TestTarget

    def portal(self, index: int = 0) -> str:
        return self.target.portals[index].address

    def key(self, index: int = 0) -> str:
        return session_key(TARGET, self.portal(index))

    async def login(
        self,
        index: int = 0,
        credentials: Credentials | None = None,
        options: LoginOptions = QUICK,
        connections: ConnectionSet = ONE,
    ) -> SessionState:
        """Open the session through a portal; does not wait."""
        return await self.engine.open_session(
            SessionSpec(
                key=self.key(index),
                target=TARGET,
                portal=self.portal(index),
                isid=isid(index),
                credentials=credentials,
                options=options,
                connection_set=connections,
            )
        )

    async def state(self) -> EngineState:
        return await self.engine.observe()

    async def session(self, index: int = 0) -> SessionState:
        return next(s for s in (await self.state()).sessions if s.key == self.key(index))

    async def volume(self, name: str = "v") -> VolumeState:
        return next(v for v in (await self.state()).volumes if v.name == name)

    async def until(self, what: Callable[[EngineState], bool], seconds: float = 20.0) -> EngineState:
        """Poll the engine until ``what`` holds."""
        return await until(self.engine, what, seconds)

    async def logged_in(self, *indexes: int) -> EngineState:
        """Wait until sessions are in and have shown their units."""
        keys = {self.key(index) for index in indexes}
        return await self.until(
            lambda state: keys <= {s.key for s in state.sessions if s.phase == "logged_in" and s.units}
        )

    async def publish(self, policy: Policy = Policy.FAIL_OVER_ONLY, **spec: object) -> VolumeState:
        return await self.engine.publish(
            VolumeSpec(name="v", identity=IDENTITY, targets=(TARGET,), policy=policy, **spec)
        )

    async def two_paths(self, policy: Policy = Policy.ROUND_ROBIN) -> VolumeState:
        """Log in through both portals and serve the unit."""
        await self.login(0)
        await self.login(1)
        await self.logged_in(0, 1)
        volume = await self.publish(policy)
        assert [path.phase for path in volume.paths].count("failed") == 0
        return volume

    async def events(self, *names: str) -> list[EngineEvent]:
        """Return what was recorded so far, of the given names."""
        found: list[EngineEvent] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                async for event in self.engine.events():
                    found.append(event)  # noqa: PERF401 - the stream has no end
        return [event for event in found if event.name in names]


async def struck(fault: Fault, seconds: float = 10.0) -> None:
    """Wait until the target has met what an armed fault is for: the engine's own count may run ahead of it."""
    async with asyncio.timeout(seconds):
        while not fault.struck:
            await asyncio.sleep(0.01)


async def until(engine: Engine, what: Callable[[EngineState], bool], seconds: float = 20.0) -> EngineState:
    """Poll an engine until ``what`` holds."""
    state = await engine.observe()
    try:
        async with asyncio.timeout(seconds):
            while not what(state):
                await asyncio.sleep(0.02)
                state = await engine.observe()
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {state.model_dump_json(indent=1)}") from None
    return state


def uri(volume: VolumeState) -> str:
    return f"nbd+unix:///{volume.name}?socket={volume.socket}"


async def command(*words: str | Path, seconds: float = 60.0) -> str:
    """Run a program, which has to succeed, and return its output."""
    process = await asyncio.create_subprocess_exec(
        *map(str, words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    text = output.decode(errors="replace")
    assert process.returncode == 0, f"{words[0]} exited with {process.returncode}: {text}"
    return text


@asynccontextmanager
async def fio(
    volume: VolumeState, folder: Path, seconds: float = 3, **options: object
) -> AsyncIterator[Callable[[], bool]]:
    """Run fio with verification beside the body, which can ask whether it still runs; it may meet no error."""
    settings = {
        "ioengine": "nbd",
        "uri": uri(volume),
        "rw": "randwrite",
        "bs": "4k",
        "iodepth": 16,
        "size": SIZE,
        "verify": "crc32c",
        "verify_fatal": 1,
        "verify_state_save": 0,
        "serialize_overlap": 1,
        "time_based": 1,
        "runtime": seconds,
        "output": folder / "fio.txt",
    } | options
    words = [f"--{name}={value}" for name, value in settings.items()]
    run = asyncio.create_task(command("fio", "--name=verify", *words, seconds=seconds + 60))
    try:
        yield lambda: not run.done()
        await run
    finally:
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError, AssertionError):
            await run
    text = (folder / "fio.txt").read_text()
    assert re.search(r"err= 0", text), text
