# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole engine against LIO, where PDUs are damaged (level 1) and connections lost (level 2) under verified load.

``BLOCKFLEET_LAB_SECONDS`` is how long each load lasts; the figures of each are properties in the JUnit report.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.engine.rig import fio, isid, until
from tests.lab.conftest import VARIED
from tests.lab.lio import Lio
from tests.lab.test_lio_volume import engine
from tests.proxy.pdu import WirePdu
from tests.proxy.proxy import Action, Direction, PduProxy, Rule

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import (
    ConnectionSet,
    EngineState,
    SessionSpec,
    SessionState,
    VolumeSpec,
    VolumeState,
    session_key,
)
from blockfleet.model.desired import Connection, LoginOptions

__all__ = ["engine"]

Figures = list[tuple[str, object]]
SECONDS = float(os.environ.get("BLOCKFLEET_LAB_SECONDS", "12"))
pytestmark = [pytest.mark.lab, pytest.mark.timeout(SECONDS + 120)]

ONE_IN = 200
KILL_INTERVAL = 2.0
LONGEST_STALL = 20.0
"""Seconds that no request may exceed; LIO takes 3 until it asks again for data where its R2T was lost."""
TASK_REQUEST, TASK_REASSIGN = 0x02, 8
COMMAND, DATA_OUT, R2T, DATA_IN, RESPONSE = 0x01, 0x05, 0x31, 0x25, 0x21
WITH_DIGESTS = {"header_digest": ["crc32c"], "data_digest": ["crc32c"]}
IN_ONE_PDU = {"bs": "4k"}
IN_SEVERAL_PDUS = {"bs": "32k"}
SMALL = {"FirstBurstLength": "4096", "MaxXmitDataSegmentLength": "8192"}
"""What LIO takes with a command, and in one PDU; it declares what it calls its Xmit length."""


@dataclass(frozen=True)
class Measured:
    """What a load has come to."""

    requests: int
    longest: float
    """Seconds of the slowest request."""


def measured(folder: Path) -> Measured:
    """Read fio's report: JSON behind the text."""
    text = (folder / "fio.txt").read_text()
    report, _ = json.JSONDecoder().raw_decode(text, text.index("\n{") + 1)
    (job,) = report["jobs"]
    sides = [job["read"], job["write"]]
    return Measured(sum(side["total_ios"] for side in sides), max(side["clat_ns"]["max"] for side in sides) / 1e9)


async def serve(
    lio: Lio, engine: EngineClient, level: int, portals: list[str], keys: dict[str, str], **options: object
) -> tuple[SessionState, VolumeState]:
    """Log in with one connection to each portal, and serve the disk."""
    offered = {"FirstBurstLength": "65536", "MaxXmitDataSegmentLength": "262144", "DefaultTime2Wait": "0"} | keys
    await asyncio.to_thread(lio.configure, VARIED, error_recovery_level=level, max_connections=4, **offered)
    made = LoginOptions.model_validate({"error_recovery_level": level} | options)
    further = tuple(Connection(portal=portal) for portal in portals[1:])
    key = session_key(VARIED, portals[0])
    await engine.open_session(
        SessionSpec(
            key=key,
            target=VARIED,
            portal=portals[0],
            isid=isid(0),
            options=made,
            connection_set=ConnectionSet(further=further),
        )
    )
    state = await until(engine, lambda s: is_whole(s, len(portals)))
    (session,) = state.sessions
    assert session.negotiated["ErrorRecoveryLevel"] == str(level)
    identity = next(unit.identity for unit in session.units if unit.lun == 0)
    return session, await engine.publish(VolumeSpec(name="v", identity=identity, targets=(VARIED,)))


def is_whole(state: EngineState, connections: int) -> bool:
    """Whether the session has shown its units, and all of its connections are logged in."""
    (session,) = state.sessions
    return bool(session.units) and [one.phase for one in session.connections] == ["logged_in"] * connections


def load(volume: VolumeState, folder: Path, **options: object) -> AbstractAsyncContextManager[Callable[[], bool]]:
    """Write and verify for as long as this run of the tests wants it."""
    return fio(volume, folder, seconds=SECONDS, **({"output-format": "normal,json"} | options))


async def result(engine: EngineClient, folder: Path, proxies: list[PduProxy], figures: Figures) -> EngineState:
    """Return the engine's state at the end of a load in which nothing failed; the figures go to the report."""
    state = await until(engine, lambda s: is_whole(s, len(proxies)))
    (session,) = state.sessions
    met = measured(folder)
    figures += [("requests", met.requests), ("longest", f"{met.longest:.2f} s")]
    figures += [(name, count) for name, count in session.counters.items() if count]
    deeds = sum((proxy.deeds for proxy in proxies), Counter[tuple[Action, Direction, int]]())
    figures += [(f"{deed} {way} {opcode:#04x}", count) for (deed, way, opcode), count in sorted(deeds.items())]
    assert state.volumes[0].counters["errors"] == 0
    assert met.longest < LONGEST_STALL
    return state


def harm() -> list[Rule]:
    """Damage one in ``ONE_IN`` PDUs: its header or its data, but no header to LIO.

    LIO closes the connection at every level where a header's digest is wrong, as RFC 3720 6.7 lets it:
    ``test_a_damaged_header_ends_the_connection_at_lio``.
    """
    return [
        Rule(Action.CORRUPT_HEADER, Direction.TO_INITIATOR, one_in=2 * ONE_IN),
        Rule(Action.CORRUPT_DATA, Direction.TO_INITIATOR, one_in=2 * ONE_IN),
        Rule(Action.CORRUPT_DATA, Direction.TO_TARGET, one_in=ONE_IN),
    ]


@pytest.mark.parametrize(
    ("keys", "options", "opcodes"),
    [({}, IN_ONE_PDU, {COMMAND, RESPONSE, DATA_IN}), (SMALL, IN_SEVERAL_PDUS, {COMMAND, DATA_OUT})],
    ids=["data with the command", "data in many PDUs"],
)
async def test_damaged_pdus_cost_no_session_at_level_1(
    lio: Lio,
    engine: EngineClient,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    keys: dict[str, str],
    options: dict[str, str],
    opcodes: set[int],
) -> None:
    async with PduProxy(lio.portals[0], seed=7) as proxy:
        before, volume = await serve(lio, engine, 1, [proxy.portal], keys, **WITH_DIGESTS)
        proxy.rules = harm()
        async with load(volume, tmp_path, **options):
            pass
        proxy.rules = []
        state = await result(engine, tmp_path, [proxy], request.node.user_properties)
        (session,) = state.sessions
        assert (session.logins, session.tsih) == (1, before.tsih)
        assert opcodes <= {opcode for _, _, opcode in proxy.deeds}
        for action in (Action.CORRUPT_HEADER, Action.CORRUPT_DATA):
            assert proxy.count(action)
        counters = session.counters
        assert 0 < counters["header_digest_errors"] <= proxy.count(Action.CORRUPT_HEADER)
        assert 0 < counters["resyncs"] <= counters["header_digest_errors"]
        assert 0 < counters["data_digest_errors"] <= proxy.count(Action.CORRUPT_DATA)
        assert counters["data_snacks"] > 0
        assert counters["status_snacks"] > 0
        assert counters["commands_retried"] > 0


async def test_a_damaged_header_ends_the_connection_at_lio(lio: Lio, engine: EngineClient) -> None:
    """Why the others damage no header on the way to LIO; it says nothing and closes, at level 1 as at level 0."""
    async with PduProxy(lio.portals[0]) as proxy:
        await serve(lio, engine, 1, [proxy.portal], {}, **WITH_DIGESTS)
        proxy.rules = [Rule(Action.CORRUPT_HEADER, Direction.TO_TARGET, times=1)]
        state = await until(engine, lambda s: s.sessions[0].logins == 2)
        assert (len(state.sessions), proxy.accepted) == (1, 2)
        assert "HeaderDigest CRC32C failed" in lio.log


def reassigns(pdu: WirePdu) -> bool:
    return pdu.header[1] & 0x7F == TASK_REASSIGN


async def test_connections_killed_in_turn_cost_no_session_at_level_2(
    lio: Lio, engine: EngineClient, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with PduProxy(lio.portals[0]) as first, PduProxy(lio.portals[1]) as second:
        proxies = [first, second]
        before, volume = await serve(lio, engine, 2, [proxy.portal for proxy in proxies], {})
        # They change nothing: they count on the wire.
        watches = [
            Rule(Action.DELAY, Direction.TO_TARGET, opcodes=frozenset({TASK_REQUEST}), where=reassigns)
            for _ in proxies
        ]
        for proxy, watch in zip(proxies, watches, strict=True):
            proxy.rules = [watch]
        kills = 0
        async with load(volume, tmp_path, **IN_ONE_PDU) as running:
            while running():
                await asyncio.sleep(KILL_INTERVAL)
                await until(engine, lambda s: is_whole(s, 2))
                if running():
                    proxies[kills % 2].reset_connections()
                    kills += 1
        state = await result(engine, tmp_path, proxies, request.node.user_properties)
        asked = sum(watch.done for watch in watches)
        request.node.user_properties += [("kills", kills), ("TASK REASSIGN requests that the proxies saw", asked)]
        (session,) = state.sessions
        assert (session.logins, session.tsih) == (1, before.tsih)
        assert kills > SECONDS / KILL_INTERVAL / 2
        counters = session.counters
        # LIO may drop some by itself under way: they are lost and recovered like the others.
        assert counters["connections_lost"] == counters["connections_recovered"] >= kills
        assert asked >= counters["tasks_reassigned"] > 0
