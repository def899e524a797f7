# SPDX-License-Identifier: GPL-3.0-or-later
"""Lost connections, hostile units and killed engines under I/O: no error to the application, no wrong byte."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engine.conftest import EngineProcess
from tests.engine.rig import HOST, QUICK, SIZE, Rig, command, fio, isid, struck, two_portals, uri
from tests.export.nbd_client import EIO, READ, WRITE, NbdClient

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import InitiatorSpec
from blockfleet.model.desired import LoginOptions, Policy
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.faults.base import Fault
from blockfleet_testtarget.target import TestTarget

BLOCK = 4096


@pytest.fixture
async def rig(engine_client: EngineClient) -> AsyncIterator[Rig]:
    await engine_client.configure(InitiatorSpec(name=HOST))
    async with TestTarget(two_portals()) as target:
        yield Rig(engine_client, target)
        await NbdClient.close_all()


def arm(rig: Rig, name: str, **parameters: object) -> Fault:
    fault = build_fault(name, parameters)
    rig.target.arm(fault)
    return fault


# --- lost connections -----------------------------------------------------------------------------------------


async def test_reset_connection_comes_back_with_the_same_isid_and_i_o_goes_on(rig: Rig, tmp_path: Path) -> None:
    """RFC 3720 5.3.5, 9.1.1: session reinstatement, conservative reuse of ISIDs."""
    await rig.login()
    await rig.logged_in(0)
    volume = await rig.publish()
    async with fio(volume, tmp_path) as running:
        for round_ in range(3):
            await asyncio.sleep(0.3)
            arm(rig, "drop_now")
            await rig.until(lambda s, n=round_: s.sessions[0].logins == n + 2 and s.volumes[0].phase == "online")
        assert running()
    state = (await rig.state()).sessions[0]
    assert (state.phase, state.logins, state.isid) == ("logged_in", 4, isid(0))
    assert [s.nexus.isid.hex() for s in rig.target.sessions] == [isid(0)]
    assert list(rig.target.violations) == []
    counters = (await rig.volume()).counters
    assert (counters["errors"], counters["refused"], counters["locked_ranges"], counters["held"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("policy", list(Policy))
async def test_each_path_is_lost_in_turn_under_load(rig: Rig, tmp_path: Path, policy: Policy) -> None:
    volume = await rig.two_paths(policy)
    async with fio(volume, tmp_path) as running:
        for round_, index in enumerate((0, 1, 0, 1)):
            await asyncio.sleep(0.2)
            arm(rig, "drop_now", portal=index)
            await rig.until(
                lambda s, n=round_: s.volumes[0].phase == "online" and sum(x.logins for x in s.sessions) == n + 3
            )
        assert running()
    assert (await rig.volume()).counters["errors"] == 0
    assert [s.logins for s in (await rig.state()).sessions] == [3, 3]
    fenced = await rig.events("path_fenced")
    assert {event.details["method"] for event in fenced} <= {"lun_reset"}
    assert list(rig.target.violations) == []


async def test_path_that_falls_silent_is_found_by_a_ping_and_i_o_moves(rig: Rig) -> None:
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    active = next(index for index in (0, 1) if volume.paths[index].phase == "active")
    portal = [rig.key(0), rig.key(1)].index(volume.paths[active].session)
    client = await NbdClient.open(Path(volume.socket))
    arm(rig, "black_hole", portal=portal, times=0)
    started = asyncio.get_running_loop().time()
    reply = await asyncio.wait_for(client.ask(READ, 0, BLOCK), 10)
    assert reply.error == 0
    took = asyncio.get_running_loop().time() - started
    assert took < QUICK.noop_interval + QUICK.noop_timeout + 1.5
    await client.close()


async def test_write_of_unknown_outcome_is_answered_only_after_its_fence(rig: Rig) -> None:
    """A write hangs in the target and its connection is reset: LUN RESET, a second copy, an answer."""
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    lost = arm(rig, "lose_command", command="write")
    client = await NbdClient.open(Path(volume.socket))
    write = asyncio.create_task(client.ask(WRITE, 0, BLOCK, data=b"\x5a" * BLOCK))
    await struck(lost)
    arm(rig, "drop_now")
    reply = await asyncio.wait_for(write, 10)
    assert reply.error == 0
    assert (await client.ask(READ, 0, BLOCK)).data == b"\x5a" * BLOCK
    fenced = await rig.events("path_fencing", "path_fenced")
    assert [event.name for event in fenced] == ["path_fencing", "path_fenced"]
    assert (await rig.volume()).counters["fences"] == 1
    await client.close()


async def test_reads_beside_an_unfenced_write_go_on_through_the_other_path(rig: Rig) -> None:
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    first = next(p.session for p in volume.paths if p.phase == "active")
    lost = arm(rig, "lose_command", command="write")
    client = await NbdClient.open(Path(volume.socket))
    client.send(WRITE, 0, BLOCK, data=b"\x5a" * BLOCK)
    await struck(lost)
    index = 0 if first == rig.key(0) else 1
    await rig.target.close_portal(index)
    await rig.until(lambda s: any(p.phase == "fencing" for p in s.volumes[0].paths))
    other = await NbdClient.open(Path(volume.socket))
    beside = await asyncio.wait_for(other.ask(READ, 8 * BLOCK, BLOCK), 5)
    assert beside.error == 0
    behind = asyncio.create_task(other.ask(READ, 0, BLOCK))
    await asyncio.sleep(0.5)
    assert not behind.done(), "the locked range is not served before the fence"
    await rig.target.reopen_portal(index)
    assert (await asyncio.wait_for(behind, 20)).data == b"\x5a" * BLOCK
    await client.close()
    await other.close()


async def test_all_paths_away_queues_and_then_fails(rig: Rig) -> None:
    patience = LoginOptions(login_timeout=1.0, noop_interval=1.0, noop_timeout=1.0, replacement_timeout=1.0)
    await rig.login(options=patience)
    await rig.logged_in(0)
    volume = await rig.publish()
    client = await NbdClient.open(Path(volume.socket))
    await rig.target.close_portal(0)
    await rig.until(lambda s: s.volumes[0].phase == "queueing")
    assert (await asyncio.wait_for(client.ask(READ, 0, BLOCK), 10)).error == EIO
    assert (await rig.volume()).phase == "failed"
    await rig.target.reopen_portal(0)
    await rig.until(lambda s: s.volumes[0].phase == "online")
    assert (await client.ask(READ, 0, BLOCK)).error == 0
    await client.close()


async def test_relogin_under_load_is_no_error(rig: Rig, tmp_path: Path) -> None:
    volume = await rig.two_paths(Policy.ROUND_ROBIN)
    async with fio(volume, tmp_path) as running:
        for index in (0, 1, 0):
            await asyncio.sleep(0.2)
            await rig.engine.relogin(rig.key(index))
            await rig.until(lambda s: s.volumes[0].phase == "online")
        assert running()
    counters = (await rig.volume()).counters
    assert (counters["errors"], counters["fences"]) == (0, 0), "the path was idle when it logged out"


async def test_session_closed_under_load_is_no_error(rig: Rig, tmp_path: Path) -> None:
    volume = await rig.two_paths(Policy.ROUND_ROBIN)
    async with fio(volume, tmp_path) as running:
        await asyncio.sleep(0.2)
        await rig.engine.close_session(rig.key(0))
        await asyncio.sleep(0.2)
        assert running()
    assert (await rig.volume()).counters["errors"] == 0


# --- units that change ----------------------------------------------------------------------------------------


async def test_unit_that_grows_is_a_larger_volume_for_the_next_client(rig: Rig) -> None:
    volume = await rig.two_paths()
    client = await NbdClient.open(Path(volume.socket))
    arm(rig, "set_size", unit="unit", size=str(2 * SIZE))
    assert (await client.ask(READ, 0, BLOCK)).error == 0
    await client.ask(READ, 0, BLOCK)
    grown = (await rig.until(lambda s: s.volumes[0].size == 2 * SIZE)).volumes[0]
    assert grown.phase == "online"
    assert (await rig.events("volume_resized"))[0].details == {"before": str(SIZE), "after": str(2 * SIZE)}
    assert f"export-size: {2 * SIZE}" in await command("nbdinfo", uri(grown))
    await client.close()


async def test_other_unit_behind_the_lun_gets_no_byte(rig: Rig) -> None:
    """Another volume under the same LUN (CVE-2023-2088): a unit attention stops all I/O until a check."""
    await rig.login()
    await rig.logged_in(0)
    volume = await rig.publish()
    client = await NbdClient.open(Path(volume.socket))
    assert (await client.ask(WRITE, 0, BLOCK, data=b"\x11" * BLOCK)).error == 0
    before = bytes(rig.target.units["other"].backing.read(0, BLOCK))
    arm(rig, "swap_lun", lun=3, unit="other")
    stuck = asyncio.create_task(client.ask(WRITE, 0, BLOCK, data=b"\x22" * BLOCK))
    wrong = (await rig.until(lambda s: s.volumes[0].paths[0].phase == "identity_mismatch")).volumes[0]
    assert wrong.fault is not None
    assert wrong.fault.name == "ISDSC_IDENTITY_MISMATCH"
    await asyncio.sleep(0.3)
    assert not stuck.done()
    assert bytes(rig.target.units["other"].backing.read(0, BLOCK)) == before
    arm(rig, "swap_lun", lun=3, unit="unit")
    await rig.engine.rescan(rig.key())
    assert (await asyncio.wait_for(stuck, 20)).error == 0
    assert bytes(rig.target.units["unit"].backing.read(0, BLOCK)) == b"\x22" * BLOCK
    await client.close()


async def test_unit_swapped_while_logged_out_is_found_before_the_first_i_o(rig: Rig) -> None:
    await rig.login()
    await rig.logged_in(0)
    volume = await rig.publish()
    client = await NbdClient.open(Path(volume.socket))
    await rig.target.close_portal(0)
    await rig.until(lambda s: s.sessions[0].phase == "recovering")
    client.send(WRITE, 0, BLOCK, data=b"\x33" * BLOCK)
    before = bytes(rig.target.units["other"].backing.read(0, BLOCK))
    arm(rig, "swap_lun", lun=3, unit="other", silent=True)
    await rig.target.reopen_portal(0)
    await rig.until(lambda s: s.volumes[0].paths[0].phase == "identity_mismatch")
    assert bytes(rig.target.units["other"].backing.read(0, BLOCK)) == before
    await client.close()


async def test_unit_attentions_are_consumed(rig: Rig, tmp_path: Path) -> None:
    volume = await rig.two_paths(Policy.ROUND_ROBIN)
    async with fio(volume, tmp_path) as running:
        for sense in ("06/29/03", "06/2a/09", "06/3f/0e", "06/2a/06"):
            arm(rig, "unit_attention", unit="unit", sense=sense, count=3)
            await asyncio.sleep(0.15)
        assert running()
    assert (await rig.volume()).counters["errors"] == 0
    await rig.until(lambda s: s.volumes[0].phase == "online")


# --- killed engine --------------------------------------------------------------------------------------------


async def test_killed_engine_is_fenced_before_its_successor_serves_the_unit(tmp_path: Path) -> None:
    data = os.urandom(BLOCK)
    seen: list[int] = []
    async with TestTarget(two_portals()) as target:
        target.on_pdu(lambda _connection, pdu: seen.append(pdu.opcode))
        engines = [EngineProcess(tmp_path / "run")]
        try:
            for last in (False, True):
                await engines[-1].ready()
                client = EngineClient(engines[-1].socket)
                await client.configure(InitiatorSpec(name=HOST))
                rig = Rig(client, target)
                await rig.login()
                await rig.logged_in(0)
                seen.clear()
                volume = await rig.publish()
                nbd = await NbdClient.open(Path(volume.socket))
                if last:
                    assert (await nbd.ask(READ, 0, BLOCK)).data == data
                    assert 0x02 in seen, "task management before the first use of the unit"
                    assert "was killed" in engines[-1].log.read_text()
                else:
                    assert (await nbd.ask(WRITE, 0, BLOCK, data=data)).error == 0
                    assert 0x02 not in seen
                    engines[-1].process.kill()
                    engines[-1].process.wait(10)
                    engines.append(EngineProcess(tmp_path / "run"))
                await nbd.close()
                await client.close()
            assert await asyncio.to_thread(engines[-1].terminate) == 0
        finally:
            for engine in engines:
                if engine.process.poll() is None:
                    engine.process.kill()
                    engine.process.wait(10)
