# SPDX-License-Identifier: GPL-3.0-or-later
"""``blockfleet trace``, from the command through a real agent and a real engine to a target and back."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.agent.conftest import AgentProcess
from tests.engine.conftest import EngineProcess
from tests.engine.rig import TARGET, two_portals
from tests.peers.capture import Recording

from blockfleet.cli import tracefile
from blockfleet.engine.interface import TraceBatch, TraceRecord
from blockfleet_testtarget.target import TestTarget

LOGIN_REQUEST, COMMAND, DATA_IN = 0x03, 0x01, 0x25


@dataclass
class Host:
    """An agent, an engine and a target, with one session between them."""

    runtime: Path
    engine: EngineProcess
    target: TestTarget

    @property
    def port(self) -> int:
        return int(self.target.portals[0].address.rpartition(":")[2])

    async def start(self, *arguments: str | Path) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "blockfleet.cli.main", "--runtime-dir", str(self.runtime)),
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str | Path) -> tuple[int, bytes, str]:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out, err.decode()

    async def rescan(self) -> None:
        """Let PDUs pass: REPORT LUNS, INQUIRY and the like."""
        code, _, err = await self.run("rescan")
        assert code == 0, err


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Host]:
    folder.mkdir(mode=0o700)
    engine = EngineProcess(folder)
    agent = AgentProcess(folder)
    try:
        await engine.ready()
        await agent.ready()
        async with TestTarget(two_portals()) as target:
            host = Host(agent.runtime, engine, target)
            code, _, err = await host.run("login", TARGET, "--portal", target.portals[0].address)
            assert code == 0, err
            yield host
            await agent.terminate()
            if engine.process.poll() is None:
                await asyncio.to_thread(engine.terminate)
    finally:
        for process in (agent.process, engine.process):
            if process.poll() is None:
                process.kill()
            process.wait(10)


ONE_LOOP = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with running(tmp_path_factory.mktemp("host") / "h") as found:
        yield found


async def grown(file: Path, beyond: int) -> None:
    async with asyncio.timeout(20):
        while not file.exists() or file.stat().st_size <= beyond:
            await asyncio.sleep(0.02)


@ONE_LOOP
@pytest.mark.peer
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_file_is_whole_after_ctrl_c_and_the_summary_says_how_to_read_it(
    host: Host, tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "t.pcapng"
    process = await host.start("trace", TARGET, "--write", file)
    await grown(file, 400)
    size = file.stat().st_size
    await host.rescan()
    await grown(file, size)
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (0, b"")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = await asyncio.to_thread(Recording(file, [host.port]).check)
    assert {LOGIN_REQUEST, COMMAND, DATA_IN} <= {pdu.opcode for pdu in found}
    first, second = err.decode().splitlines()
    assert first.startswith(f"{len(found)} PDUs, ")
    assert second == f"read it with: tshark -r {file} -d tcp.port=={host.port},iscsi"


@ONE_LOOP
@pytest.mark.peer
async def test_standard_output_can_be_piped_into_tshark(host: Host, tmp_path: Path) -> None:
    tracing = asyncio.create_task(host.run("trace", TARGET, "--write", "-", "--seconds", "2"))
    await asyncio.sleep(0.5)
    await host.rescan()
    code, out, err = await tracing
    assert (code, err.count("read it with")) == (0, 1)
    (tmp_path / "piped").write_bytes(out)
    await asyncio.to_thread(Recording(tmp_path / "piped", [host.port]).check)


@ONE_LOOP
async def test_without_a_file_each_pdu_is_a_line(host: Host) -> None:
    code, out, err = await host.run("trace", TARGET, "--seconds", "0.3")
    assert code == 0, err
    lines = out.decode().splitlines()
    assert f"> 127.0.0.1:{host.port}: connected, session {TARGET}@" in lines[0]
    assert "Login Request, Stage" in lines[1]
    assert f" 127.0.0.1:{host.port} > 127.0.0.1:" in lines[2]
    assert "Login Response" in lines[2]
    assert lines[2].endswith("(before the trace)")
    assert "1 connection" in err


@ONE_LOOP
async def test_with_json_each_pdu_is_an_object_and_the_counts_come_last(host: Host) -> None:
    code, out, err = await host.run("trace", TARGET, "--seconds", "0.3", "--json")
    assert (code, err) == (0, "")
    *records, last = map(json.loads, out.decode().splitlines())
    assert {record["format_version"] for record in records} == {1}
    assert records[0]["kind"] == "opened"
    assert records[1]["name"] == "Login Request"
    assert records[1]["fields"]["CID"] == 0
    pdus = sum(record["kind"] == "pdu" for record in records)
    assert last["trace"]["pdus"] == pdus
    assert last["trace"]["dropped"] == 0


@ONE_LOOP
async def test_what_cannot_be_traced_leaves_an_older_file_alone(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "old"
    file.write_text("precious")
    code, _, err = await host.run("trace", "iqn.2026-11.com.example:none", "--write", file)
    assert (code, file.read_text()) == (1, "precious")
    assert "there is no session to it" in err


async def test_a_trace_that_the_engine_cannot_finish_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "t.pcapng"
    async with running(tmp_path / "h") as host:
        process = await host.start("trace", TARGET, "--write", file)
        await grown(file, 400)
        host.engine.process.kill()
        _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert "ended early" in err.decode()


def test_data_is_a_number_all_or_none(cli, agent, tmp_path: Path) -> None:
    for given, wanted in (("all", None), ("none", 0), ("512", 512)):
        cli("trace", TARGET, "--write", str(tmp_path / "t"), "--data", given)
        assert agent.engine.traced[-1].data == wanted
    assert cli("trace", TARGET, "--write", str(tmp_path / "t"), "--data", "-1").code == 1
    assert len(agent.engine.traced) == 3


def test_the_terminal_needs_no_data(cli, agent) -> None:
    assert cli("trace", TARGET, "--data", "all").code == 0
    assert agent.engine.traced[-1].data == 0


def test_a_file_that_cannot_be_written_is_named(cli, agent, tmp_path: Path) -> None:
    outcome = cli("trace", TARGET, "--write", str(tmp_path / "none" / "t"))
    assert (outcome.code, "No such file" in outcome.err) == (1, True)
    assert agent.engine.traces_open <= 1


def test_what_was_dropped_is_told(cli, agent) -> None:
    assert "3 PDUs (144 B) dropped" in cli("trace", TARGET).err


@pytest.mark.parametrize(
    ("ports", "command"),
    [
        ({3260}, "tshark -r 'a file'"),
        ({3260, 860, 13260}, "tshark -r 'a file' -d tcp.port==860,iscsi -d tcp.port==13260,iscsi"),
    ],
)
def test_tshark_is_told_of_ports_that_it_does_not_know(ports: set[int], command: str) -> None:
    assert tracefile.reading_command(Path("a file"), ports) == command


@pytest.mark.peer
@pytest.mark.parametrize(
    "ends", [("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "fe80::9%eth0")], ids=["IPv4", "IPv6"]
)
@pytest.mark.parametrize("length", [1, 65494, 65495, 65496, 131000])
def test_frames_have_right_addresses_checksums_and_sequence(
    tmp_path: Path, ends: tuple[str, str], length: int
) -> None:
    local, remote = (ends[0], 50000), (ends[1], 3260)
    data = bytes(i * 7 & 0xFF for i in range(length))

    def pdu(inbound: bool, offset: int) -> TraceRecord:
        return TraceRecord(
            kind="pdu",
            connection=7,
            time=1_700_000_000_123_456,
            inbound=inbound,
            offset=offset,
            length=length,
            data=base64.b64encode(data).decode(),
        )

    records = (
        TraceRecord(kind="opened", connection=7, time=1_700_000_000_000_001, local=local, remote=remote),
        pdu(False, 0),
        pdu(True, 0),
        pdu(False, length),
        TraceRecord(kind="closed", connection=7, time=1_700_000_001_000_000, reset=True),
    )
    with (tmp_path / "t").open("wb") as stream:
        file = tracefile.TraceFile(stream, TARGET)
        file.write(TraceBatch(records=records))
        file.finish(3, 0, 1_700_000_001_000_000)
    recording = Recording(tmp_path / "t", [])
    fields = [
        part
        for name in ("frame.time_epoch", "ip.src", "ipv6.src", "tcp.dstport", "tcp.len")
        for part in ("-e", name)
    ]
    rows = [line.split("\t") for line in recording.decode("-T", "fields", *fields).splitlines()]
    assert rows[0][0] == "1700000000.000001000"
    assert rows[3][0] == "1700000000.123456000"
    assert {row[1] or row[2] for row in rows} == {end.partition("%")[0] for end in ends}
    assert sum(int(row[4]) for row in rows) == 3 * length
    checks = ("-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE")
    wrong = "tcp.checksum.status == Bad || ip.checksum.status == Bad || tcp.analysis.flags"
    assert not recording.decode(*checks, "-Y", wrong).strip()
