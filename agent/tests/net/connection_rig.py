# SPDX-License-Identifier: GPL-3.0-or-later
"""A nexus with several connections, the test target, and what is looked at on both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.net.load import Load
from tests.net.nexus_rig import Listener, config, parameters, run, running, until

from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionSpec
from blockfleet.net.nexus import Nexus, NexusParameters
from blockfleet_testtarget.codec import Pdu
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.target import TestTarget

COMMAND, TASK_REQUEST, LOGIN, LOGOUT = 0x01, 0x02, 0x03, 0x06
TEST_UNIT_READY = b"\0"


def arm(target: TestTarget, name: str, /, **options: object) -> None:
    target.arm(build_fault(name, options))


def wanted(target: TestTarget, count: int, **changes: object) -> NexusParameters:
    """Parameters for a leading connection and ``count - 1`` more to the same portal."""
    portal = Portal.parse(target.portals[0].address)
    return parameters(str(portal), connections=(ConnectionSpec(portal),) * (count - 1), **changes)


def phases(nexus: Nexus) -> list[str]:
    return [status.phase.value for status in nexus.connections]


def logged_in(nexus: Nexus) -> int:
    return phases(nexus).count("logged_in")


async def ready(nexus: Nexus) -> None:
    """Use up the unit attention of the login."""
    while (await run(nexus, TEST_UNIT_READY)).status:
        pass


@asynccontextmanager
async def session(
    count: int, *, keys: dict[str, str] | None = None, **changes: object
) -> AsyncIterator[tuple[TestTarget, Nexus, Listener]]:
    """A target that grants four connections, and a nexus that has all that it wants."""
    async with TestTarget(config(keys={"MaxConnections": "4", "DefaultTime2Wait": "0", **(keys or {})})) as target:
        async with running(wanted(target, count, **changes)) as (nexus, listener):
            await until(lambda: logged_in(nexus) == count)
            await ready(nexus)
            yield target, nexus, listener
        assert not target.violations, list(target.violations)


def received(target: TestTarget, opcode: int) -> list[Pdu]:
    return [entry.pdu for entry in target.received if entry.pdu.opcode == opcode]


async def spread(nexus: Nexus, commands: int = 60) -> list[int]:
    """Run verified load; return how many commands went to each connection."""
    before = [status.commands for status in nexus.connections]
    async with Load(nexus, 6) as load:
        await load.done(commands)
    return [status.commands - old for status, old in zip(nexus.connections, before, strict=True)]
