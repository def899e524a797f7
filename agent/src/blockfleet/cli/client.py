# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the agent on this host, over HTTP on its Unix sockets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

CHANGE_SOCKET = "agent.sock"
READ_SOCKET = "read.sock"

ANSWER_TIMEOUT = 60.0
"""Seconds that the agent has for an answer, beyond any wait that the request asks for."""

_START = "start the agent (systemctl start blockfleetd), or name its folder with --runtime-dir"
_ENDLESS = httpx.Timeout(ANSWER_TIMEOUT, read=None)


class AgentClient:
    """The agent whose sockets are in ``runtime``; every request is a connection of its own.

    What only reads goes to the reading socket where this user may not open the other.  Every call raises
    :class:`BlockfleetError`: ``AGENT_NOT_RUNNING``, ``NOT_PERMITTED``, ``SERVICE_DID_NOT_RESPOND``, or what the
    agent answered.
    """

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime

    def get(self, route: str, params: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Read a route."""
        return self._ask("GET", route, self._readable(), params=params)

    def plan(self, change: dict[str, Any]) -> dict[str, Any]:
        """Ask what a change would do."""
        return self._ask("POST", "/v1/plan", self._readable(), json=change)

    def post(self, route: str, body: dict[str, Any], wait: float = 0.0) -> dict[str, Any]:
        """Send what may change something; ``wait`` is how long the agent may take by the request itself."""
        timeout = httpx.Timeout(ANSWER_TIMEOUT + wait)
        return self._ask("POST", route, self._runtime / CHANGE_SOCKET, json=body, timeout=timeout)

    def follow(self, after: int) -> Iterator[dict[str, Any]]:
        """Yield events behind a sequence number, the kept ones first, until the agent stops."""
        path = self._readable()
        headers = {"Accept": "application/x-ndjson"}
        try:
            with (
                self._http(path, _ENDLESS) as http,
                http.stream("GET", "/v1/events", params={"after": after}, headers=headers) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    raise _refusal(answer)
                for line in answer.iter_lines():
                    yield json.loads(line)
        except httpx.HTTPError as error:
            raise _unreachable(path, error) from None

    def _readable(self) -> Path:
        change, read = self._runtime / CHANGE_SOCKET, self._runtime / READ_SOCKET
        return change if os.access(change, os.W_OK) or not os.access(read, os.W_OK) else read

    def _http(self, path: Path, timeout: httpx.Timeout) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(path))
        return httpx.Client(transport=transport, base_url="http://blockfleet", timeout=timeout)

    def _ask(
        self,
        method: str,
        route: str,
        path: Path,
        *,
        params: Mapping[str, int] | None = None,
        json: dict[str, Any] | None = None,
        timeout: httpx.Timeout | None = None,
    ) -> dict[str, Any]:
        try:
            with self._http(path, timeout or httpx.Timeout(ANSWER_TIMEOUT)) as http:
                answer = http.request(method, route, params=params, json=json)
        except httpx.HTTPError as error:
            raise _unreachable(path, error) from None
        if answer.status_code != httpx.codes.OK:
            raise _refusal(answer)
        return _object(answer)


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise BlockfleetError(
            Isdsc.PROTOCOL_ERROR,
            f"the answer of the agent (HTTP {answer.status_code}) is not a JSON object",
            remedy="bring the agent and this command to the same release",
        )
    return body


def _refusal(answer: httpx.Response) -> BlockfleetError:
    """Make the agent's error ours again."""
    error = _object(answer).get("error")
    if not isinstance(error, dict):
        return BlockfleetError(Isdsc.PROTOCOL_ERROR, f"the agent answered with HTTP {answer.status_code}")
    known = {int(code): code for code in Isdsc}
    remedy = str(error.get("remedy", ""))
    message = str(error.get("message", "")).removesuffix(f": {remedy}")
    code = known.get(error.get("code", 0), Isdsc.NON_SPECIFIC_ERROR)
    return BlockfleetError(code, message, remedy=remedy, field=str(error.get("field", "")))


def _unreachable(path: Path, error: httpx.HTTPError) -> BlockfleetError:
    what = f"cannot reach the agent at {path}"
    if isinstance(error, httpx.TimeoutException):
        return BlockfleetError(
            Isdsc.SERVICE_DID_NOT_RESPOND, f"{what}: no answer in time", remedy="look at its journal"
        )
    if path.exists() and not os.access(path, os.W_OK):
        return BlockfleetError(
            Isdsc.NOT_PERMITTED,
            f"{what}: permission denied",
            remedy="run this as root; reading is also open to the group that blockfleetd --group names",
        )
    reason = "its socket is not there" if not path.exists() else str(error) or type(error).__name__
    return BlockfleetError(Isdsc.AGENT_NOT_RUNNING, f"{what}: {reason}", remedy=_START)
