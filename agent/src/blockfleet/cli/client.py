# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the agent on this host, over HTTP on its Unix sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

CHANGE_SOCKET = "agent.sock"
READ_SOCKET = "read.sock"

ANSWER_TIMEOUT = 60.0
"""Seconds that the agent has for an answer, beyond any wait that the request asks for."""

MAXIMUM_ANSWER = 64 << 20
"""Bytes of one answer; a host with thousands of volumes stays far below."""

_START = "start the agent (systemctl start blockfleetd), or name its folder with --runtime-dir"

Json = dict[str, Any]


class _Connection(http.client.HTTPConnection):
    """HTTP/1.1 whose transport is a Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("blockfleet", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        transport = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            transport.settimeout(self.timeout)
            transport.connect(str(self._path))
        except OSError:
            transport.close()
            raise
        self.sock = transport


class AgentClient:
    """The agent whose sockets are in ``runtime``; every request is a connection of its own.

    What only reads goes to the reading socket where this user may not open the other.  Every call raises
    :class:`BlockfleetError`: ``AGENT_NOT_RUNNING``, ``NOT_PERMITTED``, ``SERVICE_DID_NOT_RESPOND``, or what the
    agent answered.
    """

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime

    def get(self, route: str, params: Mapping[str, int] | None = None) -> Json:
        """Read a route."""
        target = f"{route}?{urlencode(params)}" if params else route
        return _ask(self._readable(), "GET", target)

    def plan(self, change: Json) -> Json:
        """Ask what a change would do."""
        return _ask(self._readable(), "POST", "/v1/plan", change)

    def post(self, route: str, body: Json, wait: float = 0.0) -> Json:
        """Send what may change something; ``wait`` is how long the agent may take by the request itself."""
        return _ask(self._runtime / CHANGE_SOCKET, "POST", route, body, ANSWER_TIMEOUT + wait)

    def follow(self, after: int) -> Generator[Json, None, None]:
        """Yield events behind a sequence number, the kept ones first, until the agent stops."""
        return _lines(self._readable(), "GET", f"/v1/events?{urlencode({'after': after})}")

    def stream(self, route: str, body: Json) -> Generator[Json, None, None]:
        """Send what is answered line by line, and yield the lines."""
        return _lines(self._runtime / CHANGE_SOCKET, "POST", route, body)

    def _readable(self) -> Path:
        change, read = self._runtime / CHANGE_SOCKET, self._runtime / READ_SOCKET
        return change if os.access(change, os.W_OK) or not os.access(read, os.W_OK) else read


def _lines(path: Path, method: str, target: str, body: Json | None = None) -> Generator[Json, None, None]:
    with _exchange(path, method, target, body, timeout=None, accept="application/x-ndjson") as answer:
        if answer.status != http.client.OK:
            raise _refusal(answer.status, _object(answer))
        for line in answer:
            yield json.loads(line)


def _ask(path: Path, method: str, target: str, body: Json | None = None, timeout: float = ANSWER_TIMEOUT) -> Json:
    with _exchange(path, method, target, body, timeout=timeout) as answer:
        found = _object(answer)
    if answer.status != http.client.OK:
        raise _refusal(answer.status, found)
    return found


@contextlib.contextmanager
def _exchange(
    path: Path,
    method: str,
    target: str,
    body: Json | None = None,
    *,
    timeout: float | None,
    accept: str = "application/json",
) -> Iterator[http.client.HTTPResponse]:
    """Send a request and yield its answer, whose body is still to be read."""
    headers = {"Accept": accept}
    if body is not None:
        headers["Content-Type"] = "application/json"
    with contextlib.closing(_Connection(path, timeout)) as connection:
        try:
            # An agent that refuses a body answers before it has read all of it, and closes.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, target, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as answer:
                yield answer
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(path, error) from None


def _object(answer: http.client.HTTPResponse) -> Json:
    try:
        body = json.loads(answer.read(MAXIMUM_ANSWER))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise BlockfleetError(
            Isdsc.PROTOCOL_ERROR,
            f"the answer of the agent (HTTP {answer.status}) is not a JSON object",
            remedy="bring the agent and this command to the same release",
        )
    return body


def _refusal(status: int, body: Json) -> BlockfleetError:
    """Make the agent's error ours again."""
    error = body.get("error")
    if not isinstance(error, dict):
        return BlockfleetError(Isdsc.PROTOCOL_ERROR, f"the agent answered with HTTP {status}")
    known = {int(code): code for code in Isdsc}
    remedy = str(error.get("remedy", ""))
    message = str(error.get("message", "")).removesuffix(f": {remedy}")
    code = known.get(error.get("code", 0), Isdsc.NON_SPECIFIC_ERROR)
    return BlockfleetError(code, message, remedy=remedy, field=str(error.get("field", "")))


def _unreachable(path: Path, error: Exception) -> BlockfleetError:
    what = f"cannot reach the agent at {path}"
    match error:
        case TimeoutError():
            return BlockfleetError(
                Isdsc.SERVICE_DID_NOT_RESPOND, f"{what}: no answer in time", remedy="look at its journal"
            )
        case PermissionError():
            return BlockfleetError(
                Isdsc.NOT_PERMITTED,
                f"{what}: permission denied",
                remedy="run this as root; reading is also open to the group that blockfleetd --group names",
            )
        case FileNotFoundError():
            reason = "its socket is not there"
        case ConnectionRefusedError():
            reason = "nobody listens on its socket"
        case _:
            reason = f"it closed the connection ({str(error) or type(error).__name__})"
    return BlockfleetError(Isdsc.AGENT_NOT_RUNNING, f"{what}: {reason}", remedy=_START)
