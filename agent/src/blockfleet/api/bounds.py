# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands before the routes: the socket's access, the size of a body and the depth of its JSON."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from blockfleet.api.access import Gate
from blockfleet.api.errors import answer_of
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAXIMUM_BODY = 1 << 20
"""Bytes of a request body: a document of several thousand targets."""

MAXIMUM_DEPTH = 32
"""Levels of arrays and objects in a request body; a document has fewer than ten."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)
"""A string (to the end where it is unfinished) or a bracket; possessive, so the scan is linear."""


def nesting(body: bytes | bytearray) -> int:
    """Return how deep the arrays and objects of a JSON text nest, without parsing it."""
    depth = deepest = 0
    for match in _TOKEN.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


class AccessBound:
    """Refuses what the socket does not permit, before anything of the body is read."""

    def __init__(self, app: Application, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http" and not self._gate.permits(scope["method"], scope["path"]):
            error = BlockfleetError(
                Isdsc.NOT_PERMITTED,
                f"cannot {scope['method']} {scope['path'][:200]}: this socket is for reading",
                remedy="use agent.sock, as root or the agent's own user",
            )
            await JSONResponse(answer_of(error), 403, {"connection": "close"})(scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyBound:
    """Reads the body up to its limits and hands it on whole; refuses what is larger or deeper unparsed."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        declared = int(dict(scope["headers"]).get(b"content-length", b"0"))
        more = True
        while more and declared <= MAXIMUM_BODY and len(body) <= MAXIMUM_BODY:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if declared > MAXIMUM_BODY or len(body) > MAXIMUM_BODY:
            await _refuse(413, f"the body is longer than {MAXIMUM_BODY} bytes", scope, receive, send)
        elif nesting(body) > MAXIMUM_DEPTH:
            await _refuse(400, f"the body nests deeper than {MAXIMUM_DEPTH} levels", scope, receive, send)
        else:
            await self._app(scope, _replay(bytes(body), receive), send)


async def _refuse(status: int, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    error = BlockfleetError(
        Isdsc.INVALID_PARAMETER, f"cannot take the request: {reason}", remedy="send a smaller document"
    )
    await JSONResponse(answer_of(error), status, {"connection": "close"})(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read as one message, then whatever the connection says next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
