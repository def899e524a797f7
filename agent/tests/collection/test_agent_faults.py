# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent that is slow, half gone, or none: every case ends in time, with a message that says what to do."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.collection.fake_agent import FakeAgent, Speaker, error, plan, report


@pytest.fixture
def client_module(plugins: Path) -> Any:
    """The client as the modules import it."""
    from ansible_collections.blockfleet.iscsi.plugins.module_utils import _agent_client

    return _agent_client


@pytest.fixture
def client(client_module: Any, agent: FakeAgent) -> Any:
    return client_module.AgentClient(str(agent.path), timeout=5.0)


def saying(*parts: bytes, pause: float = 0.0) -> Speaker:
    """Send the parts, a pause between them, and end the connection."""

    def speak(connection: socket.socket) -> None:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                return  # the client has given up, as it should
            time.sleep(pause)

    return speak


def http(body: bytes, length: int | None = None, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


GOOD = json.dumps(plan()).encode()
NOT_AN_ANSWER = {
    "connection closed without a word": saying(b""),
    "half a status line": saying(b"HTTP/1."),
    "not HTTP": saying(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "headers without an end": saying(b"HTTP/1.1 200 OK\r\nContent-Len"),
    "half a body": saying(http(GOOD[:20], length=len(GOOD))),
    "no JSON": saying(http(b"<html>")),
    "JSON, but no object": saying(http(b"[1]")),
    "no UTF-8": saying(http(b'{"\xff": 1}')),
    "no format version": saying(http(b"{}")),
    "newer format": saying(http(json.dumps({**plan(), "format_version": 2}).encode())),
    "error without a reason": saying(http(b'{"format_version": 1}', status="500 Internal Server Error")),
    "plan without actions": saying(http(b'{"format_version": 1, "changed": false}')),
    "plan whose changed is a word": saying(http(json.dumps({**plan(), "changed": "no"}).encode())),
    "negative length": saying(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    "endless header": saying(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000),
}


@pytest.mark.parametrize("speaker", NOT_AN_ANSWER.values(), ids=NOT_AN_ANSWER.keys())
def test_what_is_no_answer_is_refused_with_a_remedy(
    agent: FakeAgent, client: Any, client_module: Any, speaker: Speaker
) -> None:
    agent.answers["/v1/plan"] = speaker
    with pytest.raises(client_module.AgentGarbled) as caught:
        client.plan({})
    assert any(hint in str(caught.value) for hint in ("journalctl", "same release", "agent_socket"))


def test_an_unknown_report_status_is_not_taken_for_success(
    agent: FakeAgent, client: Any, client_module: Any
) -> None:
    agent.answers["/v1/apply"] = (200, {**report(), "status": "splendid"})
    with pytest.raises(client_module.AgentGarbled, match="'splendid'"):
        client.apply({})


@pytest.mark.parametrize(
    "speaker",
    [
        saying(b"", pause=3.0),
        saying(http(GOOD)[:90], pause=3.0),
        saying(*[bytes([b]) for b in http(GOOD)], pause=0.04),
    ],
    ids=["silent", "stops in the middle", "drips"],
)
def test_an_answer_that_does_not_come_ends_in_time(agent: FakeAgent, client_module: Any, speaker: Speaker) -> None:
    agent.answers["/v1/plan"] = speaker
    began = time.monotonic()
    with pytest.raises(client_module.AgentSilent, match=r"within 0\.5 s.*agent_timeout"):
        client_module.AgentClient(str(agent.path), timeout=0.5).plan({})
    assert time.monotonic() - began < 2.5


def test_the_time_that_a_change_may_wait_is_added(agent: FakeAgent, client_module: Any) -> None:
    agent.answers["/v1/apply"] = saying(b"", http(json.dumps(report()).encode()), pause=0.8)
    answer = client_module.AgentClient(str(agent.path), timeout=0.3).apply({"options": {"wait_timeout": 5}})
    assert answer["status"] == "in_sync"


def test_an_answer_without_end_is_cut_off(
    agent: FakeAgent, client: Any, client_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAXIMUM_ANSWER", 100_000)
    agent.answers["/v1/status"] = saying(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 300_000)
    with pytest.raises(client_module.AgentGarbled):
        client.get("/v1/status")


def test_an_error_of_the_agent_keeps_its_number_field_and_remedy(
    agent: FakeAgent, client: Any, client_module: Any
) -> None:
    agent.answers["/v1/plan"] = error(422, code=0xEFFF8006, message="too new", field="version", remedy="upgrade")
    with pytest.raises(client_module.AgentRefused, match="too new") as caught:
        client.plan({})
    assert caught.value.details() == {
        "code": 0xEFFF8006,
        "name": "ISDSC_INVALID_PARAMETER",
        "field": "version",
        "remedy": "upgrade",
        "http_status": 422,
    }


def test_a_socket_that_nobody_listens_on_means_the_agent_is_not_running(
    client_module: Any, runtime_dir: Path
) -> None:
    path = runtime_dir / "left-behind.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(client_module.AgentNotRunning, match=r"role blockfleet\.iscsi\.agent"):
        client_module.AgentClient(str(path)).get("/v1/status")


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Be somebody who may not open root's socket; as an ordinary user already, we take our own rights away."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_socket_that_is_not_for_us_says_become(
    agent: FakeAgent, client_module: Any, runtime_dir: Path, ordinary_user: None
) -> None:
    if os.geteuid() != 65534:
        runtime_dir.chmod(0)
    try:
        with pytest.raises(client_module.AgentForbidden, match="become: true"):
            client_module.AgentClient(str(agent.path)).get("/v1/status")
    finally:
        if os.geteuid() != 65534:
            runtime_dir.chmod(0o700)


def test_a_path_that_is_too_long_for_a_socket_is_said_to_be_so(client_module: Any) -> None:
    with pytest.raises(client_module.AgentError, match="agent_socket"):
        client_module.AgentClient("/run/" + "x" * 200).get("/v1/status")
