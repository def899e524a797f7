# Copyright (c) The Blockfleet authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

# Private to this collection: it may change or disappear in any release.
"""Ask the agent on this host, over HTTP on its Unix socket, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import socket
import time
import typing as t

FORMAT_VERSION = 1
"""The format of the agent's answers that this collection reads."""

MAXIMUM_ANSWER = 64 * 1024 * 1024
"""Bytes of one answer that are read at most; a host with thousands of volumes stays far below."""

_CHUNK = 65536

_UPDATE_HINT = "bring the agent and the collection to the same release"
_LOG_HINT = "look at 'journalctl -u blockfleetd' and run the task again, which is safe"

INSTALL_HINT = (
    "install and start the agent with the role blockfleet.iscsi.agent,"
    " or start it with 'systemctl start blockfleetd' where it is installed"
)


class AgentError(Exception):
    """The agent could not be asked, gave no usable answer, or refused.

    ``str()`` of it is fit for the user: what failed, why, and what to do.
    """

    def details(self) -> dict[str, t.Any]:
        """Return what a program may want to know about the error; empty where nothing is known."""
        return {}


class AgentNotRunning(AgentError):
    """Nobody listens on the socket."""


class AgentForbidden(AgentError):
    """The socket is there, but this user may not open it."""


class AgentSilent(AgentError):
    """The agent did not finish its answer in time."""


class AgentGarbled(AgentError):
    """What came back is not an answer of the agent."""


class AgentRefused(AgentError):
    """The agent answered with an error of its own: its stable code, name, field and remedy."""

    def __init__(self, status: int, error: dict[str, t.Any]) -> None:
        self.status = status
        self.code = error.get("code")
        self.name = str(error.get("name") or "")
        self.field = str(error.get("field") or "")
        self.remedy = str(error.get("remedy") or "")
        self.message = str(error.get("message") or "the agent refused the request without a reason")
        super().__init__(self.message)

    def details(self) -> dict[str, t.Any]:
        return {
            "code": self.code,
            "name": self.name,
            "field": self.field,
            "remedy": self.remedy,
            "http_status": self.status,
        }


class _BoundedSocket(socket.socket):
    """A Unix socket on which no single wait, and so no dripping peer, goes beyond a deadline."""

    deadline = 0.0

    def bound(self) -> None:
        """Let the next wait last until the deadline; raises :class:`socket.timeout` where it has passed."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise socket.timeout("deadline passed")
        self.settimeout(remaining)

    def recv_into(self, *arguments: t.Any, **keywords: t.Any) -> int:
        self.bound()
        return super().recv_into(*arguments, **keywords)

    def sendall(self, *arguments: t.Any, **keywords: t.Any) -> None:
        self.bound()
        super().sendall(*arguments, **keywords)


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection whose transport is a Unix socket; ``timeout`` bounds all of it together."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._transport = _BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._transport.deadline = time.monotonic() + timeout

    def connect(self) -> None:
        self._transport.bound()
        try:
            self._transport.connect(self._path)
        except socket.timeout:
            raise
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AgentNotRunning(
                "the Blockfleet agent is not running on this host"
                f" (no answer at {self._path}: {error.strerror}): {INSTALL_HINT}"
            ) from None
        except PermissionError:
            raise AgentForbidden(
                f"this user may not talk to the agent at {self._path}: run the task with become: true,"
                " or give agent_socket the path of the socket that this user may use"
            ) from None
        except OSError as error:
            raise AgentNotRunning(
                f"cannot open {self._path}: {error}: give agent_socket the path of the agent's socket"
            ) from None
        self.sock = self._transport

    def close(self) -> None:
        super().close()
        self._transport.close()


class AgentClient:
    """One agent, by the path of its socket; every request is a connection of its own.

    ``timeout`` is how many seconds the agent has for an answer, beyond any waiting that the request asks for.
    """

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        self._path = path
        self._timeout = timeout

    def get(self, route: str) -> dict[str, t.Any]:
        """Read one route; raises :class:`AgentError`."""
        return self._exchange("GET", route, None, self._timeout)

    def plan(self, change: dict[str, t.Any]) -> dict[str, t.Any]:
        """Ask what ``change`` would do; nothing changes."""
        return _checked_plan("/v1/plan", self._exchange("POST", "/v1/plan", change, self._timeout))

    def apply(self, change: dict[str, t.Any]) -> dict[str, t.Any]:
        """Carry out ``change``; the agent waits for the host to follow, as the change's options say."""
        patience = self._timeout + float(change.get("options", {}).get("wait_timeout", 0))
        report = _checked_plan("/v1/apply", self._exchange("POST", "/v1/apply", change, patience))
        status = report.get("status")
        if status not in ("in_sync", "not_verified", "partial"):
            raise AgentGarbled(
                f"the agent's report has the status {status!r}, which this collection does not know: {_UPDATE_HINT}"
            )
        return report

    def discover(self, portals: list[str] | None, patience: float) -> dict[str, t.Any]:
        """Ask ``portals`` (all declared ones for ``None``) for their targets; ``patience`` is extra seconds."""
        return self._exchange("POST", "/v1/discover", {"portals": portals}, self._timeout + patience)

    def _exchange(self, method: str, route: str, body: dict[str, t.Any] | None, timeout: float) -> dict[str, t.Any]:
        connection = _UnixConnection(self._path, timeout)
        try:
            status, raw = _roundtrip(connection, method, route, body)
        except socket.timeout:
            raise AgentSilent(
                f"the agent at {self._path} did not answer {method} {route} within {timeout:g} s:"
                " look at 'journalctl -u blockfleetd', and give it more time with agent_timeout"
            ) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise AgentGarbled(
                f"the answer of the agent at {self._path} to {method} {route} broke off or is no HTTP"
                f" ({error.__class__.__name__}): {_LOG_HINT}"
            ) from None
        finally:
            connection.close()
        return _decoded(f"the agent at {self._path} answered {method} {route} with HTTP {status}", status, raw)


def _roundtrip(
    connection: _UnixConnection, method: str, route: str, body: dict[str, t.Any] | None
) -> tuple[int, bytes]:
    """Send one request and read its answer whole."""
    headers = {"Accept": "application/json"}
    payload = None
    if body is not None:
        payload = json.dumps(body).encode("utf-8")
        headers["Content-Type"] = "application/json"
    connection.request(method, route, body=payload, headers=headers)
    response = connection.getresponse()
    chunks: list[bytes] = []
    size = 0
    while True:
        chunk = response.read(_CHUNK)
        if not chunk:
            break
        size += len(chunk)
        if size > MAXIMUM_ANSWER:
            raise http.client.HTTPException(f"answer above {MAXIMUM_ANSWER} bytes")
        chunks.append(chunk)
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return response.status, b"".join(chunks)


def _decoded(context: str, status: int, raw: bytes) -> dict[str, t.Any]:
    """Return the JSON object of an answer; raises for errors and for anything that is not an answer."""
    try:
        answer = json.loads(raw.decode("utf-8"))
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise AgentGarbled(
            f"{context} and something that is not a JSON object: is agent_socket the socket of blockfleetd?"
        )
    version = answer.get("format_version")
    if version != FORMAT_VERSION:
        raise AgentGarbled(
            f"{context} in format {version!r}, and this collection reads format {FORMAT_VERSION}: {_UPDATE_HINT}"
        )
    error = answer.get("error")
    if isinstance(error, dict):
        raise AgentRefused(status, error)
    if not http.client.OK <= status < http.client.MULTIPLE_CHOICES:
        raise AgentGarbled(f"{context} and no reason: {_LOG_HINT}")
    return answer


def _checked_plan(route: str, plan: dict[str, t.Any]) -> dict[str, t.Any]:
    """Refuse a plan without the parts that ``changed``, ``diff`` and ``actions`` are taken from."""
    for key, kind in _PLAN_SHAPE:
        if not isinstance(plan.get(key), kind):
            raise AgentGarbled(f"the agent's answer to {route} has no usable {key!r}: {_UPDATE_HINT}")
    return plan


_PLAN_SHAPE = (("changed", bool), ("actions", list), ("diff", dict), ("warnings", list), ("problems", list))
