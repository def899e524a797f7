# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands where the agent stands, says what the test tells it to, and remembers what it was asked.

Answers are built from the agent's own models, and every change that comes in has to be one that the agent
would read: the modules are held to the contract from both sides.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from blockfleet.model.change import Change
from blockfleet.model.plan import Action, Diff, Plan, Problem, Report, ReportStatus, Summary

Answer = tuple[int, Any]
Speaker = Callable[[socket.socket], None]


@dataclass
class FakeAgent:
    """What it answers per route, and the requests it got."""

    path: Path
    answers: dict[str, Answer | Speaker] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def changes(self, route: str) -> list[Change]:
        """Return the changes that came in on ``route``, read as the agent reads them."""
        return [Change.model_validate(body) for asked, body in self.requests if asked == route]

    def routes(self) -> list[str]:
        return [route for route, _ in self.requests]


def plan(*actions: Action, **fields: Any) -> dict[str, Any]:
    """Return a plan as the agent sends it."""
    return Plan(
        changed=bool(actions), generation=3, actions=actions, summary=Summary.of(actions), **fields
    ).model_dump(mode="json")


def report(*actions: Action, **fields: Any) -> dict[str, Any]:
    """Return a report as the agent sends it; in sync unless told otherwise."""
    values = {"status": ReportStatus.IN_SYNC, "verified": True, "applied": bool(actions), "waited": 0.25}
    return Report(
        changed=bool(actions), generation=4, actions=actions, summary=Summary.of(actions), **(values | fields)
    ).model_dump(mode="json")


def login_action(portal: str = "192.0.2.10:3260", **fields: Any) -> Action:
    name = "iqn.2026-11.com.example:db"
    return Action(
        verb="login", kind="session", subject=f"{name}@{portal}", text=f"+ session {name} via {portal}", **fields
    )


def problem(message: str) -> Problem:
    return Problem(code=0xEFFF0009, name="ISDSC_AUTHENTICATION_FAILURE", message=message, subject="a session")


def error(status: int, **fields: Any) -> Answer:
    """Return an error answer of the agent."""
    body = {"code": 0xEFFF0056, "name": "ISDSC_INVALID_PARAMETER", "message": "", "field": "", "remedy": ""}
    return status, {"format_version": 1, "error": body | fields}


EMPTY_DIFF = Diff()


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    agent: FakeAgent


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.agent.requests.append((f"{self.command} {self.path}", body))
        answer = self.server.agent.answers.get(self.path, error(404, message=f"no route {self.path}"))
        self.close_connection = True
        if callable(answer):
            answer(self.connection)
            return
        status, data = answer
        raw = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = _answer

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing; the test has the requests."""


@contextlib.contextmanager
def running(path: Path) -> Iterator[FakeAgent]:
    """Serve a fake agent at ``path`` until the block ends."""
    agent = FakeAgent(path)
    with _Server(str(path), _Handler) as server:
        server.agent = agent
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield agent
        finally:
            server.shutdown()
            thread.join()
