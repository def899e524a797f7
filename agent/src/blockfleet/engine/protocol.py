# SPDX-License-Identifier: GPL-3.0-or-later
"""The control protocol between agent and engine: lines of JSON over a Unix socket, bytes in and out only.

A client's first request is ``hello``; after that each line is a request ``{"id", "method", "params"}`` and each
answer carries its id: ``{"id", "result"}``, ``{"id", "error"}``, or, for every part of a subscription,
``{"id", "event"}`` or ``{"id", "trace"}``.  Answers may come in another order than the requests.

CHAP secrets cross this socket inside requests and nowhere else: only :func:`encode_request` reveals them, and
no answer has a field for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from blockfleet.engine.interface import (
    DiscoveredPortal,
    DiscoverySpec,
    Engine,
    EngineEvent,
    EngineState,
    InitiatorSpec,
    SessionSpec,
    SessionState,
    TraceBatch,
    TraceSpec,
    VolumeSpec,
    VolumeState,
)
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

PROTOCOL_VERSION = 1
MAXIMUM_REQUEST = 1 << 20
"""Bytes of one request line, its newline included."""
MAXIMUM_REPLY = 16 << 20
"""Bytes of one answer line, its newline included."""
MAXIMUM_ID = 2**53 - 1
"""Largest integer that every JSON implementation keeps exactly (RFC 8259 section 6)."""

WHOLE_CONNECTION = 0
"""The id of the handshake and of an error that ends the connection; calls have ids from 1."""

_HALF_A_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""What a character beyond 16 bits is escaped as twice; JSON allows one alone, which is no text."""

HELLO = "hello"
EVENTS = "events"
TRACE = "trace"


_Model = TypeVar("_Model", bound=BaseModel)


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class NoParams(_Params):
    """Parameters of a method that takes none."""


class KeyParams(_Params):
    """The session that a method is about."""

    key: str


class NameParams(_Params):
    """The volume that a method is about."""

    name: str


class HelloParams(_Params):
    """Protocol versions that the client speaks."""

    protocols: tuple[int, ...] = Field(min_length=1, max_length=16)


class EventsParams(_Params):
    """Where a subscription begins: behind this sequence number."""

    after: int = Field(default=0, ge=0, le=MAXIMUM_ID)


class HelloReply(_Params):
    """Who answers, and in which version of the protocol."""

    protocol: int
    instance: str
    version: str
    pid: int


@dataclass(frozen=True, slots=True)
class Method:
    """One call of :class:`~blockfleet.engine.interface.Engine` on the wire."""

    params: type[BaseModel]
    reply: TypeAdapter[Any]
    call: Callable[[Engine, Any], Awaitable[Any]]
    patience: float
    """Seconds that a client waits for the answer, beyond any time the parameters name."""


METHODS: Mapping[str, Method] = {
    "observe": Method(NoParams, TypeAdapter(EngineState), lambda engine, _: engine.observe(), 10.0),
    "configure": Method(InitiatorSpec, TypeAdapter(None), lambda engine, spec: engine.configure(spec), 10.0),
    "discover": Method(
        DiscoverySpec,
        TypeAdapter(tuple[DiscoveredPortal, ...]),
        lambda engine, spec: engine.discover(spec),
        10.0,
    ),
    "open_session": Method(
        SessionSpec, TypeAdapter(SessionState), lambda engine, spec: engine.open_session(spec), 10.0
    ),
    "relogin": Method(KeyParams, TypeAdapter(None), lambda engine, params: engine.relogin(params.key), 60.0),
    "close_session": Method(
        KeyParams, TypeAdapter(None), lambda engine, params: engine.close_session(params.key), 60.0
    ),
    "rescan": Method(KeyParams, TypeAdapter(SessionState), lambda engine, params: engine.rescan(params.key), 60.0),
    "publish": Method(VolumeSpec, TypeAdapter(VolumeState), lambda engine, spec: engine.publish(spec), 60.0),
    "withdraw": Method(NameParams, TypeAdapter(None), lambda engine, params: engine.withdraw(params.name), 60.0),
}
"""Every call but the subscriptions and the ``hello`` of the handshake."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A call whose answer is a stream: one empty result, then a line for each part under the name of the call."""

    params: type[BaseModel]
    call: Callable[[Engine, Any], AsyncGenerator[Any, None]]
    encode: Callable[[int, Any], bytes]


@dataclass(frozen=True, slots=True)
class Request:
    """A request line, read but not yet validated against its method."""

    id: int
    method: str
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer line: exactly one of ``error``, ``event`` and ``trace`` is set, or none and ``result`` counts."""

    id: int
    result: Any = None
    error: BlockfleetError | None = None
    event: EngineEvent | None = None
    trace: TraceBatch | None = None


def encode_request(request_id: int, method: str, params: BaseModel) -> bytes:
    """Write a request line; the one place where secrets are revealed."""
    fields = {"id": request_id, "method": method, "params": params.model_dump(mode="python")}
    line = json.dumps(fields, separators=(",", ":"), default=_reveal).encode() + b"\n"
    if len(line) > MAXIMUM_REQUEST:
        raise BlockfleetError(
            Isdsc.BUFFER_TOO_SMALL,
            f"the request {method} has {len(line)} bytes, more than the {MAXIMUM_REQUEST} that an engine takes",
            remedy="ask for less at once",
        )
    return line


def _reveal(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    raise TypeError(f"{type(value).__name__} has no form on the control socket")


def decode_request(line: bytes) -> Request:
    """Read a request line.  Raises :class:`BlockfleetError` (``PROTOCOL_ERROR``), never with its content."""
    fields = _decode_object(line, "request")
    if not set(fields) <= {"id", "method", "params"}:
        raise _protocol_error("a request has fields other than id, method and params")
    method, params = fields.get("method"), fields.get("params", {})
    if not isinstance(method, str) or len(method) > 64:
        raise _protocol_error("a request names no method")
    if not isinstance(params, dict):
        raise _protocol_error("the params of a request are not an object")
    return Request(_identifier(fields), method, params)


def validate_params(model: type[_Model], params: Mapping[str, Any]) -> _Model:
    """Check parameters against their model; raises ``INVALID_PARAMETER`` with the field, never the value."""
    try:
        return model.model_validate(params)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        field = ".".join(str(part)[:64] for part in first["loc"])
        raise BlockfleetError(
            Isdsc.INVALID_PARAMETER,
            f"{field or 'the parameters'}: {first['msg']}",
            remedy="use an agent and an engine of the same version",
            field=field,
        ) from None


def encode_result(request_id: int, method: Method | TypeAdapter[Any], result: Any) -> bytes:
    """Write an answer with a result; raises ``BUFFER_TOO_SMALL`` when it is over :data:`MAXIMUM_REPLY`."""
    adapter = method.reply if isinstance(method, Method) else method
    line = b'{"id":%d,"result":%b}\n' % (request_id, adapter.dump_json(result))
    if len(line) > MAXIMUM_REPLY:
        raise BlockfleetError(
            Isdsc.BUFFER_TOO_SMALL,
            f"the answer has {len(line)} bytes, more than the {MAXIMUM_REPLY} of the control protocol",
            remedy="spread the targets over more engines",
        )
    return line


def encode_error(request_id: int, error: BlockfleetError) -> bytes:
    """Write an answer with an error."""
    fields = {
        "code": int(error.code),
        "name": str(error.code),
        "message": _bare_message(error),
        "remedy": error.remedy,
        "field": error.field,
    }
    return json.dumps({"id": request_id, "error": fields}, separators=(",", ":")).encode() + b"\n"


def encode_event(request_id: int, event: EngineEvent) -> bytes:
    """Write one event of a subscription."""
    return b'{"id":%d,"event":%b}\n' % (request_id, event.model_dump_json().encode())


def encode_trace(request_id: int, batch: TraceBatch) -> bytes:
    """Write one batch of a trace."""
    return b'{"id":%d,"trace":%b}\n' % (request_id, batch.model_dump_json(exclude_defaults=True).encode())


SUBSCRIPTIONS: Mapping[str, Subscription] = {
    EVENTS: Subscription(EventsParams, lambda engine, params: engine.events(params.after), encode_event),
    TRACE: Subscription(TraceSpec, lambda engine, spec: engine.trace(spec), encode_trace),
}


def decode_answer(line: bytes) -> Answer:
    """Read an answer line.  Raises :class:`BlockfleetError` (``PROTOCOL_ERROR``)."""
    fields = _decode_object(line, "answer")
    request_id = _identifier(fields)
    if "error" in fields:
        return Answer(request_id, error=_decode_error(fields["error"]))
    if "event" in fields:
        try:
            return Answer(request_id, event=EngineEvent.model_validate(fields["event"]))
        except ValidationError:
            raise _protocol_error("an event does not have the fields of this version") from None
    if "trace" in fields:
        try:
            return Answer(request_id, trace=TraceBatch.model_validate(fields["trace"]))
        except ValidationError:
            raise _protocol_error("a trace does not have the fields of this version") from None
    if "result" not in fields:
        raise _protocol_error("an answer has neither result, error, event nor trace")
    return Answer(request_id, result=fields["result"])


def decode_result(adapter: TypeAdapter[Any], result: Any) -> Any:
    """Turn a result into its type; raises ``PROTOCOL_ERROR`` when it does not fit."""
    try:
        return adapter.validate_python(result)
    except ValidationError:
        raise _protocol_error("an answer does not have the fields of this version") from None


def _decode_object(line: bytes, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise _protocol_error(f"a line is not a JSON {what}") from None
    if not isinstance(fields, dict):
        raise _protocol_error(f"a line is not a JSON object with a {what}")
    if _HALF_A_CHARACTER.search(line):
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _protocol_error("text that UTF-8 cannot write") from None
    return fields


def _identifier(fields: Mapping[str, Any]) -> int:
    value = fields.get("id")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAXIMUM_ID:
        raise _protocol_error(f"an id is not an integer from 0 to {MAXIMUM_ID}")
    return value


def _decode_error(fields: Any) -> BlockfleetError:
    if not isinstance(fields, dict):
        raise _protocol_error("the error of an answer is not an object")
    number = fields.get("code")
    try:
        code = Isdsc(number if isinstance(number, int) else 0)
    except ValueError:
        code = Isdsc.NON_SPECIFIC_ERROR
    return BlockfleetError(
        code,
        str(fields.get("message", "")),
        remedy=str(fields.get("remedy", "")),
        field=str(fields.get("field", "")),
    )


def _bare_message(error: BlockfleetError) -> str:
    return str(error).removesuffix(f": {error.remedy}") if error.remedy else str(error)


def _protocol_error(message: str) -> BlockfleetError:
    return BlockfleetError(
        Isdsc.PROTOCOL_ERROR,
        f"control protocol: {message}",
        remedy="use an agent and an engine of the same version",
    )
