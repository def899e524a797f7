# SPDX-License-Identifier: GPL-3.0-or-later
"""One API connection: its peer is judged when it connects, and every phase of it has a deadline."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from blockfleet.api.access import Gate, peer_of
from blockfleet.api.errors import raw_answer

log = logging.getLogger("blockfleet.api")

MAXIMUM_CONNECTIONS = 64
"""Connections on one socket; more are turned away at once."""

REQUEST_DEADLINE = 10.0
"""Seconds from connecting, or from the first byte of a further request, to the last byte of that request."""

ANSWER_DEADLINE = 30.0
"""Seconds that a client may leave an answer unread once the socket's buffer is full."""

IDLE_DEADLINE = 15
"""Seconds that a connection is kept between two requests."""

MAXIMUM_HEAD = 16384
"""Bytes of a request line and its headers."""


class ApiConnection(H11Protocol):
    """HTTP/1.1 for a peer that the gate admits; ``scope["state"]["peer"]`` tells the routes who it is."""

    gate: Gate

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._admitted = False
        self._request_deadline: asyncio.TimerHandle | None = None
        self._answer_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Judge the peer before a byte of it is read."""
        try:
            peer = peer_of(transport.get_extra_info("socket"))
        except OSError as error:
            log.warning("dropped a connection whose peer the kernel does not name: %s", error)
            transport.abort()
            return
        if not self.gate.admits(peer):
            log.warning("refused %s on the %s socket: not permitted", peer, self.gate.access.value)
            transport.write(raw_answer(403, "Forbidden", f"uid {peer.uid} is not permitted on this socket"))
            transport.close()
            return
        if len(self.connections) >= MAXIMUM_CONNECTIONS:
            log.warning("turned %s away: %d connections are open", peer, MAXIMUM_CONNECTIONS)
            transport.write(
                raw_answer(503, "Service Unavailable", "too many connections are open; try again later")
            )
            transport.close()
            return
        self._admitted = True
        self.app_state = {**self.app_state, "peer": peer}
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its deadlines."""
        self._request_came()
        self._answer_read()
        if self._admitted:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; the deadline runs until its last byte is there."""
        if not self._admitted:
            return
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._await_request()
        else:
            self._request_came()

    def pause_writing(self) -> None:
        """Give a client that does not read its answer a deadline."""
        super().pause_writing()
        self._answer_deadline = self.loop.call_later(ANSWER_DEADLINE, self._answer_unread)

    def resume_writing(self) -> None:
        """Take the deadline away again."""
        self._answer_read()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the shape of every other error."""
        if not self.transport.is_closing():
            self.transport.write(raw_answer(400, "Bad Request", msg))
            self.transport.close()

    def _await_request(self) -> None:
        if self._request_deadline is None and not self.transport.is_closing():
            self._request_deadline = self.loop.call_later(REQUEST_DEADLINE, self._request_late)

    def _request_came(self) -> None:
        if self._request_deadline is not None:
            self._request_deadline.cancel()
            self._request_deadline = None

    def _request_late(self) -> None:
        self._request_deadline = None
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = f"the request was not complete within {REQUEST_DEADLINE:g} s"
            self.transport.write(raw_answer(408, "Request Timeout", message))
        self.transport.close()

    def _answer_read(self) -> None:
        if self._answer_deadline is not None:
            self._answer_deadline.cancel()
            self._answer_deadline = None

    def _answer_unread(self) -> None:
        self._answer_deadline = None
        log.warning("dropped a connection whose client left its answer unread")
        self.transport.abort()


def connection_type(gate: Gate) -> type[ApiConnection]:
    """Return the connection class of a socket with this gate, as uvicorn wants it: ready to be called."""
    return type("ApiConnection", (ApiConnection,), {"gate": gate})
