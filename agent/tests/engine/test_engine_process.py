# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine as a process: its life, its sessions and its volumes, against the embedded test target."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engine.conftest import EngineProcess
from tests.engine.rig import HOST, IDENTITY, QUICK, SIZE, TARGET, Rig, command, isid, two_portals, uri

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import Credentials, DiscoverySpec, InitiatorSpec, SessionSpec, VolumeSpec
from blockfleet.model.desired import LoginOptions, Policy
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet_testtarget.chap import Chap
from blockfleet_testtarget.target import TestTarget


@pytest.fixture
async def rig(engine_client: EngineClient) -> AsyncIterator[Rig]:
    await engine_client.configure(InitiatorSpec(name=HOST, alias="host"))
    async with TestTarget(two_portals()) as target:
        yield Rig(engine_client, target)


# --- process ------------------------------------------------------------------------------------------------


def test_second_engine_on_a_runtime_directory_exits_75_naming_the_first(engine_process: EngineProcess) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "blockfleet.engine.main", "--runtime-dir", str(engine_process.runtime)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 75
    assert f"process {engine_process.process.pid}" in second.stderr
    assert engine_process.process.poll() is None


async def test_sigterm_without_anything_to_end_is_a_clean_exit(engine_process: EngineProcess) -> None:
    assert engine_process.terminate() == 0
    assert not engine_process.socket.exists()


async def test_standard_event_loop_serves_as_well(tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path / "plain", "--no-uvloop")
    try:
        await engine.ready()
        assert engine.terminate() == 0
    finally:
        if engine.process.poll() is None:
            engine.process.kill()
            engine.process.wait()


async def test_service_manager_hears_ready_and_stopping(tmp_path: Path, monkeypatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        loop = asyncio.get_running_loop()
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        engine = EngineProcess(tmp_path / "run")
        try:
            first = await asyncio.wait_for(loop.sock_recv(manager, 200), 20)
            assert first.startswith(b"READY=1\n")
            assert engine.socket.is_socket()
            stopped = asyncio.create_task(asyncio.to_thread(engine.terminate))
            assert await asyncio.wait_for(loop.sock_recv(manager, 200), 20) == b"STOPPING=1"
            assert await stopped == 0
        finally:
            engine.terminate()


def test_everything_in_the_runtime_directory_is_for_its_owner_alone(engine_process: EngineProcess) -> None:
    for path in (engine_process.runtime, *engine_process.runtime.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


async def test_memory_cannot_be_dumped(engine_process: EngineProcess) -> None:
    limits = Path(f"/proc/{engine_process.process.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


@pytest.mark.root
async def test_process_of_another_user_is_refused_before_its_request_is_read() -> None:
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        engine = EngineProcess(Path(folder) / "run")
        try:
            await engine.ready()
            for path in (Path(folder), engine.runtime, engine.socket):  # as if somebody had opened them all
                path.chmod(0o777)
            script = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
                "sys.stdout.buffer.write(s.recv(4096))"
            )
            answer = subprocess.run(
                ["/usr/bin/python3", "-c", script, str(engine.socket)],
                user=65534,
                group=65534,
                extra_groups=[],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert "ISDSC_NOT_PERMITTED" in answer.stdout, answer.stderr
            assert "user 65534" in answer.stdout
        finally:
            assert engine.terminate() == 0


# --- initiator and discovery ----------------------------------------------------------------------------------


async def test_without_an_initiator_name_there_are_no_sessions(engine_client: EngineClient) -> None:
    spec = SessionSpec(key=f"{TARGET}@127.0.0.1:1", target=TARGET, portal="127.0.0.1:1", isid=isid(0))
    with pytest.raises(BlockfleetError) as caught:
        await engine_client.open_session(spec)
    assert caught.value.code is Isdsc.INITIATOR_NODE_NOT_FOUND
    assert (await engine_client.observe()).sessions == ()


async def test_initiator_name_cannot_change_under_a_session(rig: Rig) -> None:
    await rig.login()
    with pytest.raises(BlockfleetError) as caught:
        await rig.engine.configure(InitiatorSpec(name="iqn.2026-11.com.example:other"))
    assert caught.value.code is Isdsc.SESSION_BUSY
    await rig.engine.configure(InitiatorSpec(name=HOST.upper(), alias="new alias"))
    assert (await rig.state()).initiator == InitiatorSpec(name=HOST, alias="new alias")


async def test_discovery_through_the_engine(rig: Rig) -> None:
    found = await rig.engine.discover(DiscoverySpec(portal=rig.portal(0)))
    assert sorted((e.target, e.portal, e.tag) for e in found) == sorted(
        [(TARGET, rig.portal(0), 1), (TARGET, rig.portal(1), 2)]
    )


# --- sessions ------------------------------------------------------------------------------------------------


async def test_session_logs_in_and_shows_its_units(rig: Rig) -> None:
    opened = await rig.login(1)
    assert opened.phase in ("connecting", "logged_in")
    await rig.logged_in(1)
    state = await rig.session(1)
    assert (state.isid, state.tag, state.logins, state.fault) == (isid(1), 2, 1, None)
    assert state.tsih == rig.target.sessions[0].tsih
    assert state.negotiated["ErrorRecoveryLevel"] == "0"
    assert [(u.lun, u.identity, u.size, u.block_size, u.device_type) for u in state.units] == [
        (3, IDENTITY, SIZE, 512, 0)
    ]
    assert not state.units[0].identity_is_weak


async def test_opening_the_same_session_again_disturbs_nothing(rig: Rig) -> None:
    await rig.login()
    await rig.logged_in(0)
    again = await rig.login()
    assert (again.phase, again.logins, again.relogin_pending) == ("logged_in", 1, False)
    assert rig.target.connections_seen == 1


async def test_new_options_wait_for_the_next_login(rig: Rig) -> None:
    await rig.login()
    await rig.logged_in(0)
    digests = LoginOptions(header_digest=("crc32c",), data_digest=("none",))
    pending = await rig.login(options=digests)
    assert pending.relogin_pending
    assert pending.negotiated["HeaderDigest"] == "None"
    await rig.engine.relogin(rig.key())
    state = (await rig.until(lambda s: s.sessions[0].logins == 2)).sessions[0]
    assert (state.relogin_pending, state.options) == (False, digests)
    assert state.negotiated["HeaderDigest"] == "CRC32C"


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"target": "not-a-name"}, Isdsc.INVALID_ISCSI_NAME, "target"),
        ({"portal": "127.0.0.1:0"}, Isdsc.NO_PORTAL_SPECIFIED, "portal"),
        ({"isid": "12"}, Isdsc.INVALID_SESSION_ID, "isid"),
        ({"key": "something else"}, Isdsc.INVALID_PARAMETER, "key"),
        (
            {"credentials": Credentials(user="u", secret="canary-same-secret", mutual_secret="canary-same-secret")},
            Isdsc.LOGIN_USER_INFO_BAD,
            "credentials",
        ),
        (
            {"credentials": Credentials(user="u", secret="canary-twelve-b", algorithms=("md4",))},
            Isdsc.INVALID_LOGON_AUTH_TYPE,
            "credentials.algorithms",
        ),
    ],
    ids=["target", "portal", "isid", "key", "same-secret-twice", "algorithm"],
)
async def test_bad_session_is_one_error_that_names_the_field(rig: Rig, change, code, field) -> None:
    good = SessionSpec(key=rig.key(), target=TARGET, portal=rig.portal(), isid=isid(0))
    with pytest.raises(BlockfleetError) as caught:
        await rig.engine.open_session(good.model_copy(update=change))
    assert (caught.value.code, caught.value.field) == (code, field)
    assert "canary" not in str(caught.value)
    assert (await rig.state()).sessions == ()


async def test_two_sessions_to_a_target_may_not_share_an_isid(rig: Rig) -> None:
    await rig.login(0)
    twin = SessionSpec(key=rig.key(1), target=TARGET, portal=rig.portal(1), isid=isid(0))
    with pytest.raises(BlockfleetError) as caught:
        await rig.engine.open_session(twin)
    assert (caught.value.code, caught.value.field) == (Isdsc.SESSION_ALREADY_EXISTS, "isid")


async def test_closing_logs_out_and_forgets_and_is_no_error_twice(rig: Rig) -> None:
    await rig.login()
    await rig.logged_in(0)
    await rig.engine.close_session(rig.key())
    assert (await rig.state()).sessions == ()
    assert rig.target.sessions == []
    await rig.engine.close_session(rig.key())


async def test_unit_that_appears_is_found_by_a_rescan(rig: Rig) -> None:
    await rig.login()
    await rig.logged_in(0)
    rig.target.nodes[TARGET].luns[5] = rig.target.units["other"]
    state = await rig.engine.rescan(rig.key())
    assert [unit.lun for unit in state.units] == [3, 5]


async def test_rescan_of_a_session_that_is_not_there(rig: Rig) -> None:
    with pytest.raises(BlockfleetError) as caught:
        await rig.engine.rescan("nothing")
    assert caught.value.code is Isdsc.INVALID_SESSION_ID


CHAP = Chap(user="host7", secret="canary-right-secret")


async def test_wrong_secret_fails_once_and_is_put_right_at_once(engine_client: EngineClient) -> None:
    await engine_client.configure(InitiatorSpec(name=HOST))
    async with TestTarget(two_portals(chap=CHAP)) as target:
        rig = Rig(engine_client, target)
        await rig.login(credentials=Credentials(user="host7", secret="canary-wrong-one", fingerprint="old"))
        failed = (await rig.until(lambda s: s.sessions[0].phase == "failed")).sessions[0]
        assert failed.fault is not None
        assert failed.fault.name == "ISDSC_AUTHENTICATION_FAILURE"
        assert failed.fault.code == 0xEFFF0009
        assert "canary" not in failed.model_dump_json()
        seen = target.connections_seen
        await asyncio.sleep(1.5)
        assert target.connections_seen == seen, "a refused login is not repeated soon"
        assert seen <= 2, "one login, and one with a single algorithm"
        await rig.login(credentials=Credentials(user="host7", secret="canary-right-secret", fingerprint="new"))
        good = (await rig.until(lambda s: s.sessions[0].phase == "logged_in", 5)).sessions[0]
        assert (good.credentials_fingerprint, good.fault) == ("new", None)
        failures = await rig.events("login_failed")
        assert len(failures) == 1
        assert failures[0].number == 10


async def test_secrets_are_nowhere_but_in_memory(
    engine_process: EngineProcess, engine_client: EngineClient
) -> None:
    await engine_client.configure(InitiatorSpec(name=HOST))
    async with TestTarget(two_portals(chap=CHAP)) as target:
        rig = Rig(engine_client, target)
        await rig.login(credentials=Credentials(user="host7", secret="canary-wrong-one"))
        await rig.until(lambda s: s.sessions[0].phase == "failed")
        pid = engine_process.process.pid
        places = [Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ")]
        places += [engine_process.log, *(p for p in engine_process.runtime.rglob("*") if p.is_file())]
        for place in places:
            assert b"canary" not in place.read_bytes(), place


async def test_refused_portal_is_retried_with_growing_pauses(rig: Rig) -> None:
    await rig.target.close_portal(0)
    await rig.login()
    state = (await rig.until(lambda s: s.sessions[0].fault is not None)).sessions[0]
    assert state.phase == "connecting"
    assert state.fault is not None
    assert state.fault.name == "ISDSC_CONNECTION_FAILED"
    assert "connection refused" in state.fault.message
    assert len(await rig.events("connect_failed")) == 1, "the same cause is told once"
    await rig.target.reopen_portal(0)
    await rig.logged_in(0)


async def test_portal_that_answers_garbage_is_no_reconnect_storm(rig: Rig) -> None:
    connections = 0

    async def garbage(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"\xff" * 4096)
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    portal = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    key = f"{TARGET}@{portal}"
    await rig.engine.open_session(SessionSpec(key=key, target=TARGET, portal=portal, isid=isid(7)))
    await rig.until(lambda s: s.sessions[0].fault is not None)
    await asyncio.sleep(2)
    state = (await rig.state()).sessions[0]
    assert state.phase == "connecting"
    assert connections <= 4
    await rig.engine.close_session(key)
    server.close()


async def test_black_holed_portal_costs_its_login_timeout_and_holds_nothing_up(rig: Rig) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        portal = f"127.0.0.1:{silent.getsockname()[1]}"
        key = f"{TARGET}@{portal}"
        spec = SessionSpec(
            key=key, target=TARGET, portal=portal, isid=isid(7), options=LoginOptions(login_timeout=0.5)
        )
        await rig.engine.open_session(spec)
        await rig.login(0)
        await rig.logged_in(0)
        stuck = await rig.until(lambda s: any(x.key == key and x.fault is not None for x in s.sessions), 5)
        fault = next(s.fault for s in stuck.sessions if s.key == key)
        assert fault is not None
        assert "no answer within 0.5 s" in fault.message
        async with asyncio.timeout(5):
            await rig.engine.close_session(key)


# --- volumes --------------------------------------------------------------------------------------------------


async def test_volume_is_written_and_read_back_through_nbd(rig: Rig, tmp_path: Path) -> None:
    await rig.login()
    await rig.logged_in(0)
    volume = await rig.publish()
    assert (volume.phase, volume.size, volume.block_size, volume.fault) == ("online", SIZE, 512, None)
    assert [(p.session, p.lun, p.phase) for p in volume.paths] == [(rig.key(0), 3, "active")]
    data = os.urandom(SIZE)
    (tmp_path / "in").write_bytes(data)
    await command("nbdcopy", "--flush", tmp_path / "in", uri(volume))
    await command("nbdcopy", uri(volume), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    after = await rig.volume()
    assert after.counters["written_bytes"] == SIZE
    assert after.counters["errors"] == 0
    assert list(rig.target.violations) == []


async def test_nbdinfo_sees_the_size_and_what_the_unit_can_do(rig: Rig) -> None:
    await rig.login()
    await rig.logged_in(0)
    info = await command("nbdinfo", uri(await rig.publish()))
    assert f"export-size: {SIZE}" in info
    for ability in ("can_flush: true", "can_fua: true", "can_trim: true", "can_zero: true", "is_read_only: false"):
        assert ability in info


async def test_read_only_volume_refuses_writes(rig: Rig) -> None:
    await rig.login()
    await rig.logged_in(0)
    volume = await rig.publish(read_only=True)
    assert volume.read_only
    assert "is_read_only: true" in await command("nbdinfo", uri(volume))


async def test_round_robin_uses_both_paths_and_fail_over_only_one(rig: Rig, tmp_path: Path) -> None:
    volume = await rig.two_paths(Policy.ROUND_ROBIN)
    (tmp_path / "in").write_bytes(os.urandom(SIZE))

    async def spread() -> list[int]:
        before = [p.counters["completed"] for p in (await rig.volume()).paths]
        await command("nbdcopy", tmp_path / "in", uri(volume))
        return [p.counters["completed"] - b for p, b in zip((await rig.volume()).paths, before, strict=True)]

    both = await spread()
    assert min(both) > 0
    assert abs(both[0] - both[1]) <= 2
    changed = await rig.publish(Policy.FAIL_OVER_ONLY)
    assert (changed.policy, sorted(p.phase for p in changed.paths)) == ("fail_over_only", ["active", "standby"])
    assert sorted(n > 0 for n in await spread()) == [False, True]


async def test_volume_may_be_published_before_any_session_shows_it(rig: Rig) -> None:
    waiting = await rig.publish()
    assert (waiting.phase, waiting.socket, waiting.size) == ("queueing", "", 0)
    assert waiting.fault is not None
    assert waiting.fault.name == "ISDSC_VOLUME_NOT_FOUND"
    await rig.login()
    ready = (await rig.until(lambda s: bool(s.volumes[0].socket))).volumes[0]
    assert (ready.phase, ready.size, ready.fault) == ("online", SIZE, None)


async def test_logical_unit_is_served_under_one_name_only(rig: Rig) -> None:
    await rig.publish()
    with pytest.raises(BlockfleetError) as caught:
        await rig.engine.publish(VolumeSpec(name="w", identity=IDENTITY, targets=(TARGET,)))
    assert caught.value.code is Isdsc.VOLUME_ALREADY_PERSISTENTLY_BOUND


async def test_identity_of_a_served_volume_cannot_change(rig: Rig) -> None:
    await rig.publish()
    with pytest.raises(BlockfleetError) as caught:
        await rig.engine.publish(VolumeSpec(name="v", identity="naa.5000000000000001", targets=(TARGET,)))
    assert (caught.value.code, caught.value.field) == (Isdsc.INVALID_PARAMETER, "identity")


async def test_withdrawn_volume_is_gone_and_its_sessions_stay(rig: Rig) -> None:
    volume = await rig.two_paths()
    await rig.engine.withdraw("v")
    assert not Path(volume.socket).exists()
    state = await rig.state()
    assert state.volumes == ()
    assert [s.phase for s in state.sessions] == ["logged_in", "logged_in"]
    await rig.engine.withdraw("v")
    assert (await rig.publish()).phase == "online"


async def test_closing_a_session_takes_its_path_and_i_o_goes_on(rig: Rig) -> None:
    await rig.two_paths()
    await rig.engine.close_session(rig.key(0))
    volume = await rig.volume()
    assert [p.session for p in volume.paths] == [rig.key(1)]
    assert volume.phase == "online"
    await command("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", uri(volume))


async def test_sigterm_logs_out_of_every_session(engine_process: EngineProcess, rig: Rig) -> None:
    volume = await rig.two_paths()
    engine_process.process.terminate()
    assert await asyncio.to_thread(engine_process.process.wait, 20) == 0
    assert rig.target.sessions == []
    assert list(rig.target.violations) == []
    assert not Path(volume.socket).exists()


async def test_agent_that_goes_away_leaves_sessions_and_volumes(rig: Rig, engine_process: EngineProcess) -> None:
    volume = await rig.two_paths()
    await rig.engine.close()
    await command("qemu-io", "-f", "raw", "-c", "write -P 9 0 4k", uri(volume))
    restarted = EngineClient(engine_process.socket)
    adopted = await restarted.observe()
    await restarted.close()
    assert [s.logins for s in adopted.sessions] == [1, 1]
    assert adopted.volumes[0].phase == "online"
    assert adopted.sessions[0].options == QUICK
