# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect, what each socket permits, and what a hostile client can make the agent hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockfleet.api import connection
from blockfleet.api.access import Access, Gate, Peer, peer_of
from blockfleet.api.bounds import MAXIMUM_BODY, MAXIMUM_DEPTH, nesting
from blockfleet.api.server import listen
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

HEAD = b"POST /v1/apply HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\n"


async def _exchange(path, *parts: bytes) -> tuple[int, dict]:
    """Send raw bytes and return the status and body of the answer."""
    loop = asyncio.get_running_loop()
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.setblocking(False)
        await loop.sock_connect(raw, str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                await loop.sock_sendall(raw, part)
        with contextlib.suppress(ConnectionResetError):  # unread data was thrown away behind the answer
            while piece := await asyncio.wait_for(loop.sock_recv(raw, 65536), 20):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("path", ["/v1/apply", "/v1/discover", "/v1/rescan", "/v1/desired", "/metrics", "/x"])
async def test_the_read_socket_refuses_what_is_not_reading(reader, sockets, path):
    answer = await reader.post(path, json={})
    assert answer.status_code == 403
    assert answer.json()["error"]["name"] == "ISDSC_NOT_PERMITTED"
    assert sockets.control.asked == []


async def test_the_read_socket_plans(reader, sockets):
    assert (await reader.post("/v1/plan", json={})).status_code == 200
    assert sockets.control.asked == [("plan", None)]


@pytest.mark.parametrize("path", ["/v1/status", "/v1/desired", "/v1/observed", "/v1/drift", "/metrics"])
async def test_the_read_socket_shows(reader, path):
    assert (await reader.get(path)).status_code == 200


async def test_a_change_is_refused_before_its_body_came(sockets):
    status, answer = await _exchange(sockets.read, HEAD + b"Content-Length: 500\r\n\r\n{")
    assert (status, answer["error"]["name"]) == (403, "ISDSC_NOT_PERMITTED")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_the_read_socket_refuses_other_methods(reader, method):
    assert (await reader.request(method, "/v1/status")).status_code == 403


async def test_a_declared_body_of_100_mib_is_refused_unread(sockets):
    status, answer = await _exchange(sockets.change, HEAD + b"Content-Length: 104857600\r\n\r\n")
    assert status == 413
    assert str(MAXIMUM_BODY) in answer["error"]["message"]


async def test_a_chunked_body_of_100_mib_is_cut_off(sockets):
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    status, _ = await _exchange(sockets.change, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 1600)
    assert status == 413
    assert sockets.control.asked == []


async def test_json_of_depth_10000_is_refused_unparsed(api, sockets):
    body = b'{"document": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001
    answer = await api.post("/v1/plan", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert str(MAXIMUM_DEPTH) in answer.json()["error"]["message"]
    assert sockets.control.asked == []


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (b"", 0),
        (b"1", 0),
        (b'{"a": [1, {"b": []}]}', 4),
        (b'["[[[[", "\\"[[["]', 1),
        (b"[][][]", 1),
        (b'["unfinished [[[[', 1),
    ],
)
def test_nesting_counts_brackets_outside_strings(text, depth):
    assert nesting(text) == depth


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\', b"[", b'"a'], ids=repr)
def test_nesting_takes_linear_time_on_hostile_text(unit):
    text = (b'"' + unit * MAXIMUM_BODY)[:MAXIMUM_BODY]
    began = time.process_time()
    nesting(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /v1/ap", HEAD + b"Content-Length: 50\r\n\r\n{"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_a_request_that_hangs_is_ended(sockets, monkeypatch, start):
    monkeypatch.setattr(connection, "REQUEST_DEADLINE", 0.2)
    status, answer = await _exchange(sockets.change, start)
    assert status == 408
    assert "not complete" in answer["error"]["message"]


async def test_a_slow_trickle_does_not_move_the_deadline(sockets, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_DEADLINE", 0.3)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.setblocking(False)
        await loop.sock_connect(raw, str(sockets.change))
        await loop.sock_sendall(raw, HEAD + b"Content-Length: 5000\r\n\r\n")
        answer = asyncio.ensure_future(loop.sock_recv(raw, 65536))
        for _ in range(200):
            if answer.done():
                break
            with contextlib.suppress(BrokenPipeError):
                await loop.sock_sendall(raw, b" ")
            await asyncio.sleep(0.05)
        assert (await asyncio.wait_for(answer, 5)).startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_does_not_read_its_answer_is_dropped(sockets, monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_DEADLINE", 0.2)
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, str(sockets.change))
    try:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: agent\r\n\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await asyncio.wait_for(_ask_for_ever(raw, request), 60)
    finally:
        raw.close()


async def _ask_for_ever(raw, request):
    while True:
        await asyncio.get_running_loop().sock_sendall(raw, request)
        await asyncio.sleep(0.01)


async def test_connections_beyond_the_limit_are_turned_away_and_come_back(sockets, monkeypatch):
    monkeypatch.setattr(connection, "MAXIMUM_CONNECTIONS", 5)
    idle = [await asyncio.open_unix_connection(str(sockets.change)) for _ in range(5)]
    await _until(lambda: len(sockets.servers[0].server_state.connections) == 5)
    status, answer = await _exchange(sockets.change)
    assert status == 503
    assert "too many connections" in answer["error"]["message"]
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()
    await _until(lambda: not sockets.servers[0].server_state.connections)
    async with sockets.client(sockets.change) as client:
        assert (await client.get("/v1/status")).status_code == 200


async def _until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition never came true")


@pytest.mark.parametrize(
    ("access", "group", "peer", "admitted"),
    [
        (Access.CHANGE, None, Peer(1, 0, frozenset()), True),
        (Access.CHANGE, None, Peer(1, 7, frozenset()), True),
        (Access.CHANGE, None, Peer(1, 8, frozenset({7})), False),
        (Access.CHANGE, 50, Peer(1, 8, frozenset({50})), False),
        (Access.READ, 50, Peer(1, 8, frozenset({8, 50})), True),
        (Access.READ, 50, Peer(1, 8, frozenset({8})), False),
        (Access.READ, None, Peer(1, 8, frozenset({8})), False),
        (Access.READ, None, Peer(1, 7, frozenset()), True),
    ],
)
def test_the_gate_admits_root_the_owner_and_the_reading_group(access, group, peer, admitted):
    assert Gate(access, group, owner=7).admits(peer) is admitted


def test_the_kernel_tells_who_connected(tmp_path):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.groups == frozenset(os.getgroups()) | {os.getegid()}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_refused_by_the_kernels_word_whatever_the_mode(sockets, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    sockets.change.chmod(0o666)
    script = (
        "import os,socket,sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "print(s.makefile('rb').read().decode())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(sockets.change), stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(child.communicate(), 20)
    assert b"HTTP/1.1 403 " in output
    assert b"uid 65534 is not permitted" in output


def test_sockets_have_their_permissions_from_the_first_moment(tmp_path):
    modes = []
    original = socket.socket.listen

    class Watched(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            modes.append(stat.S_IMODE(Path(self.getsockname()).stat().st_mode))
            original(self, backlog)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", Watched)
        listen(tmp_path / "a.sock", Gate(Access.CHANGE)).close()
        listen(tmp_path / "r.sock", Gate(Access.READ, group=os.getegid())).close()
    assert modes == [0o600, 0o660]


def test_a_dead_socket_is_replaced(tmp_path):
    path = tmp_path / "agent.sock"
    listen(path, Gate(Access.CHANGE)).close()
    with listen(path, Gate(Access.CHANGE)):
        assert stat.S_ISSOCK(path.stat().st_mode)


def test_a_live_socket_is_left_alone(tmp_path):
    path = tmp_path / "agent.sock"
    with listen(path, Gate(Access.CHANGE)), pytest.raises(BlockfleetError, match="another agent") as caught:
        listen(path, Gate(Access.CHANGE))
    assert caught.value.code is Isdsc.STATE_LOCKED


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path):
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(BlockfleetError, match="not a socket"):
        listen(path, Gate(Access.CHANGE))
    assert path.read_text() == "precious"


async def test_a_reader_cannot_guess_a_secret_by_asking_for_plans(reader, api, sockets):
    chap = {"user": "host", "secret": "a guess of 12+"}
    change = {"document": {"targets": [{"name": "iqn.2026-11.com.example:db", "chap": chap}]}}
    answer = await reader.post("/v1/plan", json=change)
    assert answer.status_code == 403
    assert "guess" not in answer.text
    assert sockets.control.asked == []
    assert (await api.post("/v1/plan", json=change)).status_code == 200
    chap["secret"] = {"set": True, "fingerprint": "01234567"}
    assert (await reader.post("/v1/plan", json=change)).status_code == 200
