# SPDX-License-Identifier: GPL-3.0-or-later
"""One initiator under test, a target in the test's hand, and beside them a session that must not notice."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.raw_target import PATIENCE, Peer, RawTarget
from tests.conformance.steady_clock import SteadyLoop
from tests.peers.suite_trace import add_verdicts, suite_trace, traced

from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.portal import Portal
from blockfleet.model.secret import Secret
from blockfleet.net import nexus as nexus_module
from blockfleet.net.connections import ConnectionPhase, ConnectionSpec
from blockfleet.net.discovery_session import send_targets
from blockfleet.net.nexus import Nexus, NexusParameters
from blockfleet.scsi.command import Outcome, ScsiCommand, ScsiExecutor

__all__ = ["suite_trace", "traced"]

TARGET = "iqn.2026-11.com.example:conformance"
INITIATOR = "iqn.2026-11.com.example:host"
ISID = bytes.fromhex("80c0ffee0007")
LUN = 5 << 48
TEST_UNIT_READY = bytes(6)
READ_10 = bytes.fromhex("28000000000000000800")
WRITE_10 = bytes.fromhex("2a000000000000000800")

USER, SECRET = "initiator user", b"secret of the host"
MUTUAL_USER, MUTUAL_SECRET = "target user", b"the target's own secret"
CHAP_USER = ChapCredentials(USER, Secret(SECRET))
CHAP_BOTH = ChapCredentials(USER, Secret(SECRET), MUTUAL_USER, Secret(MUTUAL_SECRET))
"""What a nexus is given; how CHAP runs on the wire is worked out in test_security."""

at_every_level = pytest.mark.parametrize("rig", [0, 1, 2], indirect=True, ids="level{}".format)
"""Runs a test whose requirement is the same at each error recovery level at all of them."""

DIGESTS = [("None", "None"), ("None", "CRC32C"), ("CRC32C", "None"), ("CRC32C", "CRC32C")]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test here runs by a clock that a loaded machine does not put out of step."""
    return {"steady": SteadyLoop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the trace of each module be judged at its end."""
    add_verdicts(items, Path(__file__).parent, without=frozenset({"test_report.py", "test_steady_clock.py"}))


@dataclass
class Listener:
    """Notes what a nexus tells, and lets a test wait for it."""

    logins: int = 0
    losses: list[BlockfleetError] = field(default_factory=list)
    failures: list[tuple[BlockfleetError, bool]] = field(default_factory=list)
    events: list[tuple[int, int, bytes]] = field(default_factory=list)
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
        """Nothing has to be moved away."""

    def nexus_async_event(self, nexus: Nexus, code: int, lun: int, sense: bytes) -> None:
        self.events.append((code, lun, sense))
        self.changed.set()

    async def until(self, condition: Callable[[], object], within: float = PATIENCE) -> None:
        """Wait until something told makes the condition true."""
        async with asyncio.timeout(within):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def failure(self) -> BlockfleetError:
        """Wait for the first login that failed and return its error."""
        await self.until(lambda: self.failures)
        return self.failures[0][0]

    async def loss(self) -> BlockfleetError:
        """Wait for the loss of a session and return its error."""
        await self.until(lambda: self.losses)
        return self.losses[0]


class Issued:
    """A command that was given to a nexus."""

    def __init__(
        self,
        nexus: ScsiExecutor,
        cdb: bytes = TEST_UNIT_READY,
        *,
        read: int = 0,
        write: bytes = b"",
        lun: int = LUN,
        timeout: float = 30.0,
        attribute: int = 1,
    ) -> None:
        self._over: asyncio.Future[ScsiCommand] = asyncio.get_running_loop().create_future()
        self.ends = 0
        self.buffer = bytearray(b"\xee" * read)
        self.command = ScsiCommand(
            lun,
            cdb.ljust(16, b"\0"),
            self._ended,
            data_in=memoryview(self.buffer) if read else None,
            data_out=memoryview(write) if write else None,
            timeout=timeout,
            attribute=attribute,
        )
        nexus.execute(self.command)

    def _ended(self, command: ScsiCommand) -> None:
        self.ends += 1
        if not self._over.done():
            self._over.set_result(command)

    @property
    def running(self) -> bool:
        return not self.ends

    async def end(self, within: float = PATIENCE) -> ScsiCommand:
        """Wait for the end of the command, which comes exactly once."""
        async with asyncio.timeout(within):
            await asyncio.shield(self._over)
        assert self.ends == 1
        return self.command

    async def good(self) -> ScsiCommand:
        """Wait for the end, which must be status GOOD."""
        command = await self.end()
        assert (command.outcome, command.status) == (Outcome.COMPLETE, 0), f"{command} {command.error}"
        return command


class Rig:
    """What a test drives."""

    def __init__(self, patch: pytest.MonkeyPatch, level: int = 0) -> None:
        self.level = level
        """ErrorRecoveryLevel that is offered and agreed on, where a test names no other."""
        self.target = RawTarget(level)
        self._targets = [self.target]
        self._patch = patch
        self._nexuses: list[Nexus] = []
        self._tasks: list[asyncio.Task[Any]] = []

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> RawTarget:
        """Open a further target."""
        target = RawTarget(self.level)
        self._targets.append(target)
        await target.listen(host, port)
        return target

    def hurry(self, quiet: float = 5.0, **patience: float) -> None:
        """Shorten limits that no parameter of a nexus sets: ``abort``, ``logout``, ``text``, ``quiet``; seconds."""
        self._patch.setattr("blockfleet.iscsi.confirmation.QUIET", quiet)
        self._patch.setattr(nexus_module, "Patience", functools.partial(nexus_module.Patience, **patience))
        self._patch.setattr("blockfleet.iscsi.timers.SCAN_INTERVAL", 0.05)

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine beside the test; it ends with it."""
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    def nexus(self, at: RawTarget | None = None, **changes: object) -> tuple[Nexus, Listener]:
        """Start a nexus to a target."""
        portal = Portal.parse((at or self.target).portal)
        made = NexusParameters(
            INITIATOR,
            "a host",
            TARGET,
            portal,
            ISID,
            noop_interval=0.0,
            error_recovery_level=self.level,
            connections=(),
        )
        listener = Listener()
        chance = changes.pop("random_bytes", os.urandom)
        nexus = Nexus(replace(made, **changes), listener, random_bytes=chance)  # type: ignore[arg-type]
        self._nexuses.append(nexus)
        nexus.start()
        return nexus, listener

    async def login(self, at: RawTarget | None = None, **changes: object) -> tuple[Peer, Nexus, Listener]:
        """Start a nexus and return with its connection accepted and nothing said yet."""
        nexus, listener = self.nexus(at, **changes)
        return await (at or self.target).accept(), nexus, listener

    async def session(
        self, answers: dict[str, str] | None = None, digests: tuple[str, str] = ("None", "None"), **changes: object
    ) -> tuple[Peer, Nexus, Listener]:
        """Start a nexus and let it log in."""
        header_digest, data_digest = digests
        peer, nexus, listener = await self.login(**changes)
        await peer.log_in({"HeaderDigest": header_digest, "DataDigest": data_digest, **(answers or {})})
        await listener.until(lambda: listener.logins)
        return peer, nexus, listener

    async def several(
        self,
        count: int,
        level: int = 0,
        digests: tuple[str, str] = ("None", "None"),
        answers: dict[str, str] | None = None,
        **changes: object,
    ) -> tuple[list[Peer], Nexus, Listener]:
        """Start a nexus that wants ``count`` connections to the target, and let all of them log in."""
        agreed = {"MaxConnections": "4" if count > 1 else "1", "ImmediateData": "No"}
        if level:
            agreed |= {"ErrorRecoveryLevel": str(level), "MaxOutstandingR2T": "1"}
        wanted = {"connections": self.further(count - 1), "error_recovery_level": level, **changes}
        peer, nexus, listener = await self.session({**agreed, **(answers or {})}, digests, **wanted)
        peers = [peer]
        for _ in range(count - 1):
            peers.append(await (await self.target.accept()).join(peer))  # noqa: PERF401 - one after the other
        await self.connected(nexus, count)
        return peers, nexus, listener

    def further(self, count: int) -> tuple[ConnectionSpec, ...]:
        """Further connections to the target, beside the leading one."""
        return (ConnectionSpec(Portal.parse(self.target.portal)),) * count

    @staticmethod
    async def connected(nexus: Nexus, count: int, within: float = PATIENCE) -> None:
        """Wait until so many connections of a session are logged in."""
        async with asyncio.timeout(within):
            while [one.phase for one in nexus.connections].count(ConnectionPhase.LOGGED_IN) != count:
                await asyncio.sleep(0.005)

    async def recovering(
        self,
        level: int,
        digests: tuple[str, str] = ("None", "None"),
        answers: dict[str, str] | None = None,
        **changes: object,
    ) -> tuple[Peer, Nexus, Listener]:
        """Do as :meth:`session` at an error recovery level above 0, with sequences in order."""
        agreed = {"ErrorRecoveryLevel": str(level), "MaxOutstandingR2T": "1", "ImmediateData": "No"}
        return await self.session({**agreed, **(answers or {})}, digests, error_recovery_level=level, **changes)

    def discover(self, timeout: float = 4.0, credentials: Any = None, isid: bytes = ISID) -> asyncio.Task[Any]:
        """Start a discovery."""
        portal = Portal.parse(self.target.portal)
        return self.background(send_targets(INITIATOR, portal, credentials, isid=isid, timeout=timeout))

    @property
    def under_test(self) -> Nexus:
        """The nexus that was started last."""
        return self._nexuses[-1]

    async def close(self) -> None:
        for target in self._targets:
            await target.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for nexus in self._nexuses:
            await nexus.stop()


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A rig, with a second session to another target that has to stay up and fast whatever happens here."""
    made = Rig(monkeypatch, getattr(request, "param", 0))
    await made.target.listen()
    beside = await made.listen()
    nexus, listener = made.nexus(beside, isid=bytes.fromhex("80c0ffee0008"))
    peer = await (await beside.accept()).log_in()
    await listener.until(lambda: listener.logins)
    made.background(peer.serve())
    try:
        yield made
        command = await Issued(nexus).end(2.0)
        assert (command.outcome, listener.logins, listener.losses) == (Outcome.COMPLETE, 1, [])
    finally:
        await made.close()


@pytest.fixture(params=DIGESTS, ids="-".join)
def digests(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Header and data digest: all four combinations."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[1, 2], ids="level{}".format)
def level(request: pytest.FixtureRequest) -> int:
    """An error recovery level at which lost PDUs are asked for again."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def session(rig: Rig, digests: tuple[str, str]) -> tuple[Peer, Nexus, Listener]:
    """A session in full feature phase: the target's end, the nexus and its listener."""
    return await rig.session(digests=digests)
