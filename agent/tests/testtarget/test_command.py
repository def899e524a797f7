# SPDX-License-Identifier: GPL-3.0-or-later
"""The command blockfleet-testtarget, its control socket, and the target in a thread."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from blockfleet_testtarget.config import ConfigError, parse_address, parse_size, read_config
from blockfleet_testtarget.control import ControlServer
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.main import build_config, build_parser
from blockfleet_testtarget.threaded import ThreadedTestTarget

COMMAND = [sys.executable, "-m", "blockfleet_testtarget.main"]


def run_command(*options):
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def launch():
    """Start the command with a portal on a free port; return process and its ready line."""
    running = []

    def begin(*options, **popen):
        process = subprocess.Popen(
            [*COMMAND, "--portal", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True, **popen
        )
        running.append(process)
        return process, json.loads(process.stdout.readline())

    yield begin
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(path, **request):
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(path))
        control.sendall(json.dumps(request).encode() + b"\n")
        with control.makefile("rb") as lines:
            return json.loads(lines.readline())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_says_where_it_listens_and_ends_at_a_signal(launch, tmp_path, number):
    ready = tmp_path / "ready"
    process, line = launch("--ready-file", str(ready), "--target", "iqn.2026-11.com.example:named")
    assert line["targets"] == ["iqn.2026-11.com.example:named"]
    assert json.loads(ready.read_text()) == line
    host, port = parse_address(line["portals"][0])
    socket.create_connection((host, port)).close()
    process.send_signal(number)
    assert process.wait(10) == 0


def test_command_tells_a_descriptor(launch):
    read, write = os.pipe()
    _, line = launch("--ready-fd", str(write), pass_fds=[write])
    os.close(write)
    with os.fdopen(read) as stream:
        assert json.loads(stream.read()) == line


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--lun", "0:disk:1M"], "write N:ram:SIZE or N:file:PATH"),
        (["--lun", "0:ram:lots"], "'lots' is no size"),
        (["--portal", "127.0.0.1:70000"], "there is no port 70000"),
        (["--chap-user", "alice"], "go together"),
        (["--config", "/nonexistent.yaml"], "No such file"),
    ],
)
def test_wrong_option_ends_the_command_with_2_and_one_line(options, part):
    done = run_command(*options)
    assert done.returncode == 2
    assert part in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_port_in_use_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run_command("--portal", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 2
    assert "in use" in done.stderr


def test_options_make_the_configuration(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a secret of ours\n")
    document = tmp_path / "target.yaml"
    document.write_text("portals: ['[::1]:0']\nkeys: {InitialR2T: yes}\ncommand_window: 7\n")
    options = ["--config", str(document), "--portal", "127.0.0.1:3261", "--lun", "0:ram:1M", "--lun", "5:ram:2G"]
    options += ["--chap-user", "alice", "--chap-secret-file", str(secret)]
    config = build_config(build_parser().parse_args(options))
    assert [(portal.host, portal.port) for portal in config.portals] == [("::1", 0), ("127.0.0.1", 3261)]
    assert (config.keys, config.command_window, config.record_pdus) == ({"InitialR2T": "Yes"}, 7, 0)
    (target,) = config.targets
    assert {lun: config.units[name].size for lun, name in target.luns.items()} == {0: 1 << 20, 5: 2 << 30}
    assert (target.chap.user, target.chap.secret) == ("alice", "a secret of ours")
    assert "a secret" not in repr(config)


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({"colour": 1}, "colour: unknown field"),
        ({"targets": [{"name": "iqn.a", "luns": {0: "none"}}]}, "there is no unit 'none'"),
        ({"units": {"a": {"block_size": 1000}}}, "units.a.block_size"),
        ({"units": {"a": {"naa": "12"}}}, "units.a.naa"),
        ({"units": {"a": {"kind": "file"}}}, "units.a.path"),
        ({"command_window": "wide"}, "command_window: 'wide' is not of type int"),
        ({"targets": [{"name": "iqn.a", "keys": {"Bogus": 1}}]}, "Bogus is no key"),
        ({"targets": [{"name": "iqn.a", "keys": {"ErrorRecoveryLevel": 3}}]}, "3 is not within 0 to 2"),
        ({"data_ack": "always"}, "none of never, last, bursts"),
        ({"sequence_timeout": 0}, "sequence_timeout"),
        ({"targets": [{"name": "iqn.a"}, {"name": "iqn.a"}]}, "iqn.a is there twice"),
        ({"discovery_chap": {"user": "u", "secret": "s", "algorithms": [9]}}, "only 5, 6, 7, 8 exist"),
        ({"portals": []}, "portals: there is none"),
    ],
)
def test_wrong_configuration_names_the_field(document, part):
    with pytest.raises(ConfigError) as caught:
        read_config(document)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("64K", 65536), ("8MiB", 8 << 20), ("1g", 1 << 30), (4096, 4096)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:81", ("::1", 81)),
        ("host", ("host", 3260)),
        ("[::1]", ("::1", 3260)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address


def test_control_socket_of_the_command_arms_faults(launch, tmp_path):
    path = tmp_path / "control"
    launch("--control", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert ask(path, op="arm", fault="refuse_login", status=0x0301, times=3) == {"ok": True, "armed": True}
    listed = ask(path, op="faults")
    assert listed["armed"] == [{"fault": "refuse_login", "struck": 0, "times": 3}]
    assert "ghost_write" in listed["known"]
    assert ask(path, op="disarm") == {"ok": True, "disarmed": 1}
    assert ask(path, op="arm", fault="set_size", size="32M") == {"ok": True, "armed": False}
    status = ask(path, op="status")
    assert [unit["size"] for unit in status["units"].values()] == [32 << 20]


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (b"no json\n", "Expecting value"),
        (b"[]\n", "a request is a JSON object"),
        (b'{"op": "explode"}\n', "there is no op 'explode'"),
        (b'{"op": "arm", "fault": "nothing"}\n', "there is no fault 'nothing'"),
        (b'{"op": "add_unit"}\n', "name"),
    ],
)
async def test_control_answers_what_is_wrong_and_goes_on(start, tmp_path, request_, part):
    target = await start()
    async with ControlServer(target, tmp_path / "c"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "c")
        writer.write(request_)
        answer = json.loads(await reader.readline())
        assert answer["ok"] is False
        assert part in answer["error"]
        writer.write(b'{"op": "add_unit", "name": "more", "size": "1M"}\n')
        assert json.loads(await reader.readline()) == {"ok": True}
        assert target.units["more"].blocks == 2048
        writer.close()
        await writer.wait_closed()


async def test_status_shows_sessions(start, session):
    target = await start()
    await session(target)
    (shown,) = ControlServer(target, None).answer(b'{"op": "status"}\n')["sessions"]
    assert shown["initiator"] == "iqn.2026-11.com.example:host"
    assert (shown["isid"], shown["connections"], shown["tasks"]) == ("800000010000", [0], 0)


def test_target_in_a_thread_of_its_own(config_of):
    with ThreadedTestTarget(config_of()) as target:
        host, port = parse_address(target.addresses[0])
        hole = target.arm(build_fault("black_hole", {}))
        with socket.create_connection((host, port), timeout=5) as peer:
            peer.sendall(b"\x05" + bytes(47))
            deadline = time.monotonic() + 5
            while not target.call(lambda inner: len(inner.connections)):
                assert time.monotonic() < deadline
            target.disarm(hole)
            assert peer.recv(100) == b""
        assert "the first PDU has opcode 0x05" in target.call(lambda inner: inner.violations[0])
        with pytest.raises(LookupError):
            target.call(lambda inner: inner.units["none"])
