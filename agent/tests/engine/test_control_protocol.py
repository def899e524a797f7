# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of the control protocol as bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.engine import protocol
from blockfleet.engine.interface import Credentials, Engine, EngineState, SessionSpec
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

SPEC = SessionSpec(
    key="iqn.2026-11.com.example:t@192.0.2.1:3260",
    target="iqn.2026-11.com.example:t",
    portal="192.0.2.1:3260",
    isid="80a1b2c3d4e5",
    credentials=Credentials(user="host7", secret="canary-forward-1", mutual_secret="canary-reverse-2"),
)


def test_request_reveals_secrets_because_the_engine_needs_them() -> None:
    fields = json.loads(protocol.encode_request(3, "open_session", SPEC))
    assert fields["id"] == 3
    assert fields["params"]["credentials"]["secret"] == "canary-forward-1"
    assert fields["params"]["credentials"]["mutual_secret"] == "canary-reverse-2"
    assert fields["params"]["isid"] == "80a1b2c3d4e5"


def test_request_read_back_is_the_specification_with_secrets_hidden_again() -> None:
    request = protocol.decode_request(protocol.encode_request(3, "open_session", SPEC))
    spec = protocol.validate_params(SessionSpec, request.params)
    assert spec == SPEC
    assert "canary" not in repr(spec)
    assert "canary" not in spec.model_dump_json()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\xff\xfe{}\n",
        b"[]\n",
        b'"open_session"\n',
        b"{}\n",
        b'{"id":1}\n',
        b'{"id":-1,"method":"observe"}\n',
        b'{"id":true,"method":"observe"}\n',
        b'{"id":1.5,"method":"observe"}\n',
        b'{"id":9007199254740992,"method":"observe"}\n',
        b'{"id":1,"method":7}\n',
        b'{"id":1,"method":"observe","params":[]}\n',
        b'{"id":1,"method":"observe","extra":0}\n',
        b'{"id":1,"method":"' + b"m" * 65 + b'"}\n',
        b'{"id":1,"method":"observe","params":' + b"[" * 100_000 + b"\n",
        b'{"id":1,"method":"withdraw","params":{"name":"\\uD800"}}\n',
    ],
    ids=lambda line: repr(line[:40]),
)
def test_malformed_request_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(BlockfleetError) as caught:
        protocol.decode_request(line)
    assert caught.value.code is Isdsc.PROTOCOL_ERROR


@pytest.mark.parametrize("text", ["\\ud800", "\\uDFFF x", "\\udc00\\ud800"])
def test_answer_with_half_a_character_is_a_protocol_error(text: str) -> None:
    """Nothing that is stored or served could be written as UTF-8."""
    with pytest.raises(BlockfleetError) as caught:
        protocol.decode_answer(b'{"id":1,"result":["%s"]}\n' % text.encode())
    assert caught.value.code is Isdsc.PROTOCOL_ERROR


def test_answer_with_a_whole_character_in_two_halves_is_read() -> None:
    assert protocol.decode_answer(b'{"id":1,"result":"\\ud83d\\ude00"}\n').result == "\U0001f600"


@given(st.binary(max_size=200))
@pytest.mark.parametrize("decode", [protocol.decode_request, protocol.decode_answer])
def test_any_bytes_are_a_line_or_a_protocol_error(decode, line: bytes) -> None:
    code = Isdsc.PROTOCOL_ERROR
    try:
        decode(line)
    except BlockfleetError as error:
        code = error.code
    assert code is Isdsc.PROTOCOL_ERROR


def test_validation_error_names_the_field_and_never_the_value() -> None:
    params = SPEC.model_dump(mode="json") | {"credentials": {"user": "u", "secret": ["canary-typed-wrongly"]}}
    with pytest.raises(BlockfleetError) as caught:
        protocol.validate_params(SessionSpec, params)
    assert caught.value.code is Isdsc.INVALID_PARAMETER
    assert caught.value.field == "credentials.secret"
    assert "canary" not in str(caught.value)


def test_error_keeps_code_message_remedy_and_field() -> None:
    sent = BlockfleetError(
        Isdsc.AUTHENTICATION_FAILURE, "cannot log in: (0201)", remedy="check chap.secret", field="a.b"
    )
    line = protocol.encode_error(4, sent)
    assert json.loads(line)["error"] == {
        "code": 0xEFFF0009,
        "name": "ISDSC_AUTHENTICATION_FAILURE",
        "message": "cannot log in: (0201)",
        "remedy": "check chap.secret",
        "field": "a.b",
    }
    got = protocol.decode_answer(line).error
    assert got is not None
    assert (got.code, str(got), got.remedy, got.field) == (
        Isdsc.AUTHENTICATION_FAILURE,
        "cannot log in: (0201): check chap.secret",
        "check chap.secret",
        "a.b",
    )


def test_error_code_of_a_newer_engine_is_non_specific() -> None:
    line = b'{"id":1,"error":{"code":4026499999,"name":"ISDSC_NEW","message":"m","remedy":"","field":""}}\n'
    error = protocol.decode_answer(line).error
    assert error is not None
    assert error.code is Isdsc.NON_SPECIFIC_ERROR


def test_request_over_the_limit_is_not_sent() -> None:
    with pytest.raises(BlockfleetError, match="1048576"):
        protocol.encode_request(1, "withdraw", protocol.NameParams(name="x" * protocol.MAXIMUM_REQUEST))


def test_every_call_of_the_engine_has_a_row() -> None:
    calls = {name for name in vars(Engine) if not name.startswith("_")}
    assert set(protocol.METHODS) == calls - set(protocol.SUBSCRIPTIONS)


def test_result_that_does_not_fit_is_a_protocol_error() -> None:
    with pytest.raises(BlockfleetError) as caught:
        protocol.decode_result(protocol.METHODS["observe"].reply, {"instance": "x"})
    assert caught.value.code is Isdsc.PROTOCOL_ERROR


def test_result_round_trip() -> None:
    state = EngineState(instance="i", version="1")
    line = protocol.encode_result(9, protocol.METHODS["observe"], state)
    answer = protocol.decode_answer(line)
    assert answer.id == 9
    assert protocol.decode_result(protocol.METHODS["observe"].reply, answer.result) == state
