# SPDX-License-Identifier: GPL-3.0-or-later
"""A nexus, somebody who listens to it, and the test target, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.portal import Portal
from blockfleet.net.nexus import Nexus, NexusParameters
from blockfleet.scsi.command import ScsiCommand
from blockfleet_testtarget.config import Config, PortalConfig, TargetConfig, UnitConfig

NAME = "iqn.2026-11.com.example:disk"
LUN_0 = 0
PATIENCE = 10.0


@dataclass
class Listener:
    """Notes what a nexus tells, and lets a test wait for it."""

    logins: int = 0
    left: int = 0
    losses: list[BlockfleetError] = field(default_factory=list)
    failures: list[tuple[BlockfleetError, bool]] = field(default_factory=list)
    async_events: list[tuple[int, int, bytes]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def nexus_logged_in(self, nexus: Nexus) -> None:
        self.logins += 1
        self.changed.set()

    def nexus_lost(self, nexus: Nexus, error: BlockfleetError) -> None:
        self.losses.append(error)
        self.changed.set()

    def nexus_login_failed(self, nexus: Nexus, error: BlockfleetError, will_retry: bool) -> None:
        self.failures.append((error, will_retry))
        self.changed.set()

    async def nexus_leaving(self, nexus: Nexus) -> None:
        self.left += 1
        self.changed.set()

    def nexus_async_event(self, nexus: Nexus, code: int, lun: int, sense: bytes) -> None:
        self.async_events.append((code, lun, sense))
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something told makes the condition true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def parameters(portal: str, **changes: object) -> NexusParameters:
    """Parameters with unequal values wherever the target has a value of its own."""
    made = NexusParameters(
        "iqn.2026-11.com.example:host", "a host", NAME, Portal.parse(portal), bytes.fromhex("80abcdef0001")
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def config(*hosts: str, **changes: object) -> Config:
    """A target with one RAM disk at LUN 0, on a free port of each host."""
    made = Config(
        portals=[PortalConfig(host=host) for host in hosts or ("127.0.0.1",)],
        units={"disk": UnitConfig(size=8 << 20)},
        targets=[TargetConfig(name=NAME, luns={0: "disk"})],
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running(made: NexusParameters) -> AsyncIterator[tuple[Nexus, Listener]]:
    """Start a nexus, and stop it at the end."""
    listener = Listener()
    nexus = Nexus(made, listener)
    nexus.start()
    try:
        yield nexus, listener
    finally:
        await nexus.stop()


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def run(nexus: Nexus, cdb: bytes, *, read: int = 0, write: bytes = b"", lun: int = LUN_0) -> ScsiCommand:
    """Run one command and wait for its end."""
    done: asyncio.Future[ScsiCommand] = asyncio.get_running_loop().create_future()
    nexus.execute(
        ScsiCommand(
            lun,
            cdb.ljust(16, b"\0"),
            done.set_result,
            data_in=memoryview(bytearray(read)) if read else None,
            data_out=memoryview(write) if write else None,
        )
    )
    async with asyncio.timeout(PATIENCE):
        return await done
