# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of the control protocol between agent and engine, each side's as the other one sees it."""

from __future__ import annotations

import json

from pydantic import TypeAdapter
from tests.fuzz.harness.base import CANARY, Harness, speaks
from tests.fuzz.source import Source

from blockfleet.engine import protocol
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

_PROTOCOL = {Isdsc.PROTOCOL_ERROR, Isdsc.INVALID_PARAMETER}


def _request(line: bytes) -> None:
    request = protocol.decode_request(line)
    assert 0 <= request.id <= protocol.MAXIMUM_ID
    method = protocol.METHODS.get(request.method)
    models = [method.params] if method else [protocol.HelloParams, protocol.EventsParams]
    for model in models:
        params = protocol.validate_params(model, request.params)
        assert CANARY not in repr(params) or speaks(request.params), "a secret shows"
        protocol.encode_request(request.id, request.method, params)


def _answer(line: bytes) -> None:
    answer = protocol.decode_answer(line)
    if answer.error is not None:
        protocol.encode_error(answer.id, answer.error)
    elif answer.event is not None:
        protocol.encode_event(answer.id, answer.event)
    else:
        for method in protocol.METHODS.values():
            _result(method.reply, answer)


def _result(adapter: TypeAdapter[object], answer: protocol.Answer) -> None:
    try:
        result = protocol.decode_result(adapter, answer.result)
    except BlockfleetError as error:
        assert error.code is Isdsc.PROTOCOL_ERROR
        return
    protocol.encode_result(answer.id, adapter, result)


def _parameters(data: bytes) -> None:
    """Put what may be JSON at the place of the parameters of a right method."""
    source = Source(data)
    method = source.choose((*protocol.METHODS, protocol.HELLO, protocol.EVENTS))
    _request(b'{"id":%d,"method":"%s","params":%s}' % (source.number(2), method.encode(), source.rest()))


_PARTS = (_request, _answer, _parameters)


def test_one_input(data: bytes) -> None:
    """Let the first byte say whose line it is."""
    source = Source(data)
    part = source.choose(_PARTS)
    line = source.rest()
    try:
        part(line)
    except BlockfleetError as error:
        assert error.code in _PROTOCOL, error
        assert CANARY not in str(error) or _speaks(line), "an error shows a secret"


def _speaks(line: bytes) -> bool:
    try:
        return speaks(json.loads(line[line.find(b"{") :]))
    except ValueError:
        return True


_FIELDS = (
    "id", "method", "params", "result", "error", "event", "key", "target", "portal", "isid", "credentials", "user",
    "secret", "mutual_secret", "name", "identity", "lun", "protocols", "after", "code", "message", "remedy",
    "field",
    "patience", "policy", "paths", "volumes", "sessions", "instance", "version", CANARY,
)  # fmt: skip

HARNESS = Harness(
    "control",
    "the engine's control protocol",
    test_one_input,
    tokens=(
        *(json.dumps(field).encode() for field in _FIELDS),
        b":{",
        b":[",
        b"null",
        b"true",
        b"1e400",
        b"\\ud800",
    ),
)
