# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session is for: units, paths and portals (NEW-16 on, ERR0-05, ERR0-11).

A whole data plane meets the independent test target here: I/O comes by NBD and goes over TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.engine.rig import HOST, NAA, SIZE, TARGET, Rig, two_portals
from tests.export.nbd_client import EIO, READ, WRITE, NbdClient

from blockfleet.engine.data_plane import DataPlane
from blockfleet.engine.interface import InitiatorSpec, SessionSpec, session_key
from blockfleet.model.desired import LoginOptions, Policy
from blockfleet_testtarget.config import Config, PortalConfig, TargetConfig, UnitConfig
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.target import TestTarget

BLOCK = 4096
SHORT = LoginOptions(login_timeout=1.0, noop_interval=1.0, noop_timeout=1.0, replacement_timeout=1.0)


@asynccontextmanager
async def site(folder: Path, config: Config | None = None) -> AsyncIterator[Rig]:
    """A data plane and a target that share nothing but a TCP network."""
    data_plane = DataPlane(folder / "volumes", instance="here", version="0")
    await data_plane.configure(InitiatorSpec(name=HOST))
    async with TestTarget(config or two_portals()) as target:
        yield Rig(data_plane, target)
        await data_plane.close()
    for client in NbdClient.opened:
        client.writer.close()
    NbdClient.opened.clear()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with site(tmp_path) as made:
        yield made


def arm(rig: Rig, name: str, **parameters: object) -> None:
    rig.target.arm(build_fault(name, parameters))


async def read(volume_socket: str, within: float = 10.0) -> int:
    """Read a block and return the error number."""
    client = await NbdClient.open(Path(volume_socket))
    reply = await asyncio.wait_for(client.ask(READ, 0, BLOCK), within)
    await client.close()
    return reply.error


def phases(rig: Rig, state: object) -> dict[int, str]:
    """Phase of the path through each portal."""
    paths = {path.session: str(path.phase) for path in state.volumes[0].paths}  # type: ignore[attr-defined]
    return {index: paths[rig.key(index)] for index in (0, 1)}


# --- ERR0: what a lost session is to those above --------------------------------------------------------------


async def one_path(rig: Rig) -> str:
    """Serve the unit over one path with little patience; return the volume's socket."""
    await rig.login(options=SHORT)
    await rig.logged_in(0)
    return (await rig.publish()).socket


async def test_ERR0_05_the_loss_of_the_nexus_is_told_and_the_unit_looked_at_anew(rig: Rig) -> None:
    socket = await one_path(rig)
    before = (await rig.state()).sessions[0].logins
    arm(rig, "drop_now")
    await rig.until(lambda s: s.sessions[0].logins == before + 1 and s.volumes[0].phase == "online")
    assert len(await rig.events("connection_lost")) == 1
    assert await read(socket) == 0
    # Reinstatement ends the old nexus: its unit attention is taken, and no reader sees it.
    assert (await rig.volume()).counters["errors"] == 0


async def test_ERR0_11_an_outage_within_the_limit_is_no_error(rig: Rig) -> None:
    socket = await one_path(rig)
    await rig.target.close_portal(0)
    await rig.until(lambda s: s.volumes[0].phase == "queueing")
    waiting = asyncio.create_task(read(socket))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await rig.target.reopen_portal(0)
    assert await waiting == 0


async def test_ERR0_11_after_the_limit_i_o_fails_at_once_and_the_path_may_still_come_back(rig: Rig) -> None:
    socket = await one_path(rig)
    await rig.target.close_portal(0)
    await rig.until(lambda s: s.volumes[0].phase == "queueing")
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await read(socket) == EIO
    assert loop.time() - began < 3.0
    began = loop.time()
    assert await read(socket) == EIO
    assert loop.time() - began < 0.5
    await rig.target.reopen_portal(0)
    await rig.until(lambda s: s.volumes[0].phase == "online")
    assert await read(socket) == 0


# --- NEW: units -----------------------------------------------------------------------------------------------


async def test_NEW_16_units_are_found_without_lun_0_and_above_255(tmp_path: Path) -> None:
    luns = {3: "a", 255: "b", 256: "c", 16383: "d"}
    config = Config(
        portals=[PortalConfig("127.0.0.1", group=1)],
        units={
            name: UnitConfig(size=SIZE, naa=f"60014050000000000000000000000{n:03x}")
            for n, name in enumerate("abcd")
        },
        targets=[TargetConfig(TARGET, luns=dict(luns))],
        record_pdus=0,
    )
    async with site(tmp_path, config) as rig:
        await rig.login()
        state = await rig.logged_in(0)
        units = state.sessions[0].units
        assert [unit.identity[-1] for unit in units] == ["0", "1", "2", "3"]
        assert [unit.lun for unit in units] == list(luns)
        assert {unit.size for unit in units} == {SIZE}


async def test_NEW_16_a_unit_that_knows_no_optional_page_is_found(tmp_path: Path) -> None:
    config = two_portals()
    async with site(tmp_path, config) as rig:
        arm(rig, "fail_command", command="a3", sense="05/20/00", times=0)
        arm(rig, "fail_command", command="9e", sense="05/20/00", times=0)
        await rig.login()
        unit = (await rig.logged_in(0)).sessions[0].units[0]
        assert (unit.identity, unit.size, unit.fault) == (f"naa.{NAA}", SIZE, None)


@pytest.mark.parametrize("state", ["standby", "unavailable", "offline"])
async def test_NEW_17_i_o_leaves_a_port_group_that_serves_no_more(rig: Rig, state: str) -> None:
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    active = next(n for n, phase in phases(rig, await rig.state()).items() if phase == "active")
    arm(rig, "set_access", unit="unit", group=active + 1, state=state)
    assert await read(volume.socket) == 0
    moved = await rig.until(lambda s: phases(rig, s)[1 - active] == "active")
    assert phases(rig, moved)[active] != "active"
    assert (await rig.volume()).counters["errors"] == 0


async def test_NEW_17_a_transition_is_waited_for(rig: Rig) -> None:
    volume = await rig.two_paths(Policy.FAIL_OVER_ONLY)
    for group in (1, 2):
        arm(rig, "set_access", unit="unit", group=group, state="transitioning")
    waiting = asyncio.create_task(read(volume.socket))
    await asyncio.sleep(0.4)
    assert not waiting.done()
    for group in (1, 2):
        arm(rig, "set_access", unit="unit", group=group, state="optimized")
    assert await waiting == 0


async def test_NEW_20_a_change_of_capacity_is_followed(rig: Rig) -> None:
    volume = await rig.two_paths()
    arm(rig, "set_size", unit="unit", size=str(2 * SIZE))
    for _ in range(2):
        assert await read(volume.socket) == 0
    await rig.until(lambda s: s.volumes[0].size == 2 * SIZE)
    (event,) = await rig.events("volume_resized")
    assert event.details == {"before": str(SIZE), "after": str(2 * SIZE)}


@pytest.mark.parametrize(("block", "exponent"), [(512, 0), (512, 3), (4096, 0)], ids=["512n", "512e", "4Kn"])
async def test_NEW_20_block_sizes_are_those_of_the_unit(tmp_path: Path, block: int, exponent: int) -> None:
    config = two_portals()
    config.units["unit"] = UnitConfig(size=SIZE, naa=NAA, block_size=block, physical_exponent=exponent)
    async with site(tmp_path, config) as rig:
        await rig.login()
        await rig.logged_in(0)
        volume = await rig.publish()
        assert (volume.size, volume.block_size) == (SIZE, block)
        assert await read(volume.socket) == 0


async def test_NEW_22_a_unit_that_was_swapped_behind_a_relogin_gets_no_byte(rig: Rig) -> None:
    socket = await one_path(rig)
    client = await NbdClient.open(Path(socket))
    before = bytes(rig.target.units["other"].backing.read(0, BLOCK))
    await rig.target.close_portal(0)
    await rig.until(lambda s: s.sessions[0].phase == "recovering")
    client.send(WRITE, 0, BLOCK, data=b"\x5c" * BLOCK)
    arm(rig, "swap_lun", lun=3, unit="other", silent=True)
    await rig.target.reopen_portal(0)
    await rig.until(lambda s: s.volumes[0].paths[0].phase == "identity_mismatch")
    assert bytes(rig.target.units["other"].backing.read(0, BLOCK)) == before
    assert len(await rig.events("identity_mismatch")) == 1
    await client.close()


# --- NEW: paths and portals -----------------------------------------------------------------------------------


async def test_NEW_23_paths_fail_over_in_turn_without_an_error_until_the_last_is_gone(rig: Rig) -> None:
    await rig.login(0, options=SHORT)
    await rig.login(1, options=SHORT)
    await rig.logged_in(0, 1)
    volume = await rig.publish(Policy.FAIL_OVER_ONLY)
    for index in (0, 1):
        await rig.target.close_portal(index)
        await rig.until(lambda s, n=index: phases(rig, s)[n] == "failed")
        assert await read(volume.socket) == 0
        await rig.target.reopen_portal(index)
        await rig.until(lambda s, n=index: phases(rig, s)[n] != "failed")
    for index in (0, 1):
        await rig.target.close_portal(index)
    await rig.until(lambda s: s.volumes[0].phase == "queueing")
    assert await read(volume.socket) == EIO


async def test_NEW_24_portals_that_swallow_everything_do_not_add_up(rig: Rig) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    holes = [await asyncio.start_server(swallow, "127.0.0.1", 0) for _ in range(3)]
    try:
        began = asyncio.get_running_loop().time()
        for index, hole in enumerate(holes, 10):
            portal = f"127.0.0.1:{hole.sockets[0].getsockname()[1]}"
            spec = SessionSpec(
                key=session_key(TARGET, portal),
                target=TARGET,
                portal=portal,
                isid=f"80d15c0000{index:02x}",
                options=SHORT,
            )
            await rig.engine.open_session(spec)
        await rig.login(0, options=SHORT)
        await rig.logged_in(0)
        volume = await rig.publish()
        assert await read(volume.socket) == 0
        assert asyncio.get_running_loop().time() - began < SHORT.login_timeout
    finally:
        for key in [s.key for s in (await rig.state()).sessions if s.key != rig.key(0)]:
            await rig.engine.close_session(key)
        for hole in holes:
            hole.close()
