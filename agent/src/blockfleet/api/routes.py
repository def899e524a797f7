# SPDX-License-Identifier: GPL-3.0-or-later
"""The routes: each hands a request to the control plane and its answer back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

import blockfleet
from blockfleet.api.access import Access
from blockfleet.api.control import Control, Observer
from blockfleet.api.metrics import CONTENT_TYPE, Metrics
from blockfleet.api.tracing import NDJSON, TRACE_ROUTE, TraceRequest, lines
from blockfleet.engine.interface import EngineEvent, EngineState
from blockfleet.model.change import Change
from blockfleet.model.desired import SECRET_FIELDS, PortalText, TargetName
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_change
from blockfleet.model.plan import (
    FORMAT_VERSION,
    DesiredView,
    DiscoveryReport,
    EngineView,
    HostStatus,
    Plan,
    Report,
)

API_VERSION = 1

MAXIMUM_EVENTS = 1000
"""Events in one answer."""

_STREAM_INTERVAL = 0.25
"""Seconds between two looks for new events while a client follows them."""

audit = logging.getLogger("blockfleet.audit")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class DiscoverRequest(_Request):
    """Which portals to ask."""

    portals: tuple[PortalText, ...] | None = Field(
        None, max_length=64, description="Portals to ask; null: the declared ones"
    )


class RescanRequest(_Request):
    """What to look at again."""

    target: TargetName | None = Field(None, description="Target to rescan; null: all")


class VersionAnswer(BaseModel):
    """Who answers."""

    format_version: int = FORMAT_VERSION
    agent_version: str
    api_version: int = API_VERSION
    engine: EngineView


class ObservedAnswer(EngineState):
    """What the engine does, as it says itself."""

    format_version: int = FORMAT_VERSION


class EventsAnswer(BaseModel):
    """Events, oldest first."""

    format_version: int = FORMAT_VERSION
    events: list[EngineEvent]


_CHANGE_BODY = Body(
    description="The change; an empty object asks for what the present desired state still lacks",
    openapi_examples={
        "nothing": {"summary": "What is left to do", "value": {}},
        "login": {
            "summary": "Log in at two portals",
            "value": {
                "document": {
                    "targets": [
                        {
                            "name": "iqn.2026-11.com.example:db",
                            "portals": ["192.0.2.10:3260", "[2001:db8::10]:3260"],
                            "min_paths": 2,
                        }
                    ]
                }
            },
        },
    },
)
ChangeBody = Annotated[Change, BeforeValidator(load_change), _CHANGE_BODY]


def _names_a_secret(part: Any) -> bool:
    if isinstance(part, dict):
        return any(
            (key in SECRET_FIELDS and isinstance(value, str)) or _names_a_secret(value)
            for key, value in part.items()
        )
    return isinstance(part, list) and any(map(_names_a_secret, part))


class Routes:
    """The routes of one socket, bound to a control plane."""

    def __init__(
        self, control: Control, engine: Observer, metrics: Metrics, stopping: asyncio.Event, access: Access
    ) -> None:
        self._access = access
        self._control = control
        self._engine = engine
        self._metrics = metrics
        self._stopping = stopping

    def router(self) -> APIRouter:
        """Return the routes for an application."""
        router = APIRouter()
        for method, path, handler, model in (
            ("GET", "/v1/version", self.version, VersionAnswer),
            ("GET", "/v1/status", self.status, HostStatus),
            ("GET", "/v1/desired", self.desired, DesiredView),
            ("GET", "/v1/observed", self.observed, ObservedAnswer),
            ("POST", "/v1/plan", self.plan, Plan),
            ("POST", "/v1/apply", self.apply, Report),
            ("GET", "/v1/drift", self.drift, Plan),
            ("POST", "/v1/discover", self.discover, DiscoveryReport),
            ("POST", "/v1/rescan", self.rescan, HostStatus),
            ("GET", "/v1/events", self.events, EventsAnswer),
        ):
            router.add_api_route(path, handler, methods=[method], response_model=model, name=handler.__name__)
        router.add_api_route(
            "/metrics", self.metrics, methods=["GET"], response_class=Response, response_model=None
        )
        router.add_api_route("/v1/trace", self.trace, methods=["POST"], **TRACE_ROUTE)
        return router

    async def version(self) -> VersionAnswer:
        """Tell who answers, and whether the engine can be reached."""
        try:
            state = await self._engine.observe()
        except BlockfleetError:
            view = EngineView(reachable=False)
        else:
            view = EngineView(reachable=True, instance=state.instance, version=state.version, pid=state.pid)
        return VersionAnswer(agent_version=blockfleet.__version__, engine=view)

    async def status(self) -> HostStatus:
        """Look at the host: targets, sessions, volumes, paths, conditions and problems."""
        return await self._control.status()

    async def desired(self) -> DesiredView:
        """Return the desired state; in place of each secret stands its keyed fingerprint."""
        return await self._control.desired_view()

    async def observed(self) -> dict[str, Any]:
        """Return the engine's own state: sessions with what they negotiated, logical units, volumes."""
        state = await self._engine.observe()
        return {"format_version": FORMAT_VERSION, **state.model_dump()}

    async def plan(self, change: ChangeBody) -> Plan:
        """Say what a change would do.  Applying the same change then does exactly that."""
        if self._access is Access.READ and _names_a_secret(change.document):
            # An empty plan would tell a reader that the secret it guessed is the stored one.
            raise BlockfleetError(
                Isdsc.NOT_PERMITTED,
                "cannot plan a change with a secret on this socket",
                remedy="ask on the socket that may change things",
            )
        with self._timed("plan"):
            return await self._control.plan(_unless_empty(change))

    async def apply(self, change: ChangeBody, request: Request) -> Report:
        """Carry a change out, wait for the host to reach it (``options.wait_timeout``), and report."""
        with self._timed("apply"), _audited("apply", request) as outcome:
            report = await self._control.apply(_unless_empty(change))
            outcome.append(
                f"changed={report.changed} actions={len(report.actions)}"
                f" generation={report.generation} status={report.status}"
            )
            return report

    async def drift(self) -> Plan:
        """Return what would put right how the host differs from what was last applied."""
        with self._timed("drift"):
            return await self._control.drift()

    async def discover(self, wanted: DiscoverRequest, request: Request) -> DiscoveryReport:
        """Ask portals for their targets now.  Nothing that is declared changes by it."""
        with self._timed("discover"), _audited("discover", request) as outcome:
            report = await self._control.discover(wanted.portals)
            outcome.append(f"targets={len(report.targets)} problems={len(report.problems)}")
            return report

    async def rescan(self, wanted: RescanRequest, request: Request) -> HostStatus:
        """Ask the sessions of a target, or all, for their logical units again."""
        with self._timed("rescan"), _audited("rescan", request) as outcome:
            status = await self._control.rescan(wanted.target)
            outcome.append(f"target={wanted.target or 'all'}")
            return status

    async def events(
        self,
        request: Request,
        after: Annotated[int, Query(ge=0, le=2**53, description="Sequence number to begin behind")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAXIMUM_EVENTS, description="Most events in an answer")] = 100,
    ) -> Any:
        """Return kept events; with ``Accept: application/x-ndjson``, those and then each as it happens."""
        if NDJSON in request.headers.get("accept", ""):
            return StreamingResponse(self._follow(after), media_type=NDJSON)
        return EventsAnswer(events=list(await self._control.events(after, limit)))

    async def trace(self, wanted: TraceRequest, request: Request) -> StreamingResponse:
        """Stream the PDUs of a target's sessions as lines of JSON, each a batch, until the client goes.

        The PDUs hold what is read and written, and, if that is asked for, CHAP responses.
        """
        batches = self._engine.trace(wanted)
        with _audited("trace", request) as outcome:
            first = await anext(batches)
            outcome.append(f"target={wanted.target} data={wanted.data} with_chap={wanted.with_chap}")
        return StreamingResponse(lines(first, batches, self._stopping), media_type=NDJSON)

    async def metrics(self) -> Response:
        """Return the host's metrics in the Prometheus text format."""
        status = await self._control.status()
        try:
            drift = await self._control.drift()
        except BlockfleetError:
            drift = None
        return Response(self._metrics.exposition(status, drift), media_type=CONTENT_TYPE)

    async def _follow(self, after: int) -> AsyncIterator[bytes]:
        """Yield events as lines of JSON until the client goes or the agent stops."""
        while not self._stopping.is_set():
            for event in await self._control.events(after, MAXIMUM_EVENTS):
                after = event.sequence
                yield event.model_dump_json().encode() + b"\n"
            try:
                await asyncio.wait_for(self._stopping.wait(), _STREAM_INTERVAL)
            except TimeoutError:
                continue

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._metrics.took(operation, time.monotonic() - began)


def _unless_empty(change: Change) -> Change | None:
    return None if change == Change() else change


@contextmanager
def _audited(operation: str, request: Request) -> Iterator[list[str]]:
    """Leave one line of who asked for what and what came of it; the caller appends the outcome."""
    outcome: list[str] = []
    peer = request.state.peer
    try:
        yield outcome
    except BlockfleetError as error:
        audit.warning("%s by %s: refused (%s)", operation, peer, error.code)
        raise
    audit.info("%s by %s: %s", operation, peer, " ".join(outcome))
