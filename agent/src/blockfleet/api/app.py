# SPDX-License-Identifier: GPL-3.0-or-later
"""The application behind one API socket."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI

from blockfleet.api.access import Gate
from blockfleet.api.bounds import AccessBound, BodyBound
from blockfleet.api.control import Control, Observer
from blockfleet.api.errors import ErrorAnswer, install_error_handlers
from blockfleet.api.metrics import Metrics
from blockfleet.api.routes import Routes

_DESCRIPTION = """\
Declared iSCSI storage of one host: look at it, ask what a change would do, and carry the change out.

The API is served on two Unix sockets. `agent.sock` takes everything, from root and the agent's own user;
`read.sock` takes `GET` and `POST /v1/plan`, also from a group. Secrets go in and never come out.
"""

_ERRORS = {
    400: "The body is not JSON, or nests too deep",
    403: "This socket does not permit it",
    404: "What is named is not there",
    409: "It would disturb a user, or the host contradicts the request",
    413: "The body is too long",
    422: "A field is invalid; nothing was changed",
    502: "A target or the engine failed",
    503: "The engine is not running, or the agent is degraded",
}


def create_app(control: Control, engine: Observer, gate: Gate, *, metrics: Metrics | None = None) -> FastAPI:
    """Build the application of the socket that ``gate`` guards.

    ``metrics`` is shared between the sockets of one agent.  ``app.state.stopping`` is an event that ends
    streams; set it before the server is stopped.
    """
    stopping = asyncio.Event()
    routes = Routes(control, engine, metrics or Metrics(), stopping, gate.access)
    app = FastAPI(
        title="Blockfleet agent",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses={status: {"description": text, "model": ErrorAnswer} for status, text in _ERRORS.items()},
    )
    app.state.stopping = stopping
    app.include_router(routes.router())
    install_error_handlers(app)
    app.add_middleware(BodyBound)
    app.add_middleware(AccessBound, gate=gate)
    return app
