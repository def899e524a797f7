# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors as the API shows them: one shape, one table of HTTP statuses, never a word of the input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import error_from
from blockfleet.model.plan import FORMAT_VERSION

_STATUS_BY_CODE: Mapping[Isdsc, int] = {
    **dict.fromkeys((Isdsc.NOT_PERMITTED, Isdsc.AUTHORIZATION_FAILURE), 403),
    **dict.fromkeys(
        (
            Isdsc.NOT_FOUND,
            Isdsc.TARGET_NOT_FOUND,
            Isdsc.PORTAL_NOT_FOUND,
            Isdsc.VOLUME_NOT_FOUND,
            Isdsc.INITIATOR_NODE_NOT_FOUND,
            Isdsc.INVALID_SESSION_ID,
        ),
        404,
    ),
    **dict.fromkeys(
        (
            Isdsc.DISRUPTION_REFUSED,
            Isdsc.SESSION_BUSY,
            Isdsc.DEVICE_BUSY_ON_SESSION,
            Isdsc.VOLUME_AMBIGUOUS,
            Isdsc.IDENTITY_MISMATCH,
        ),
        409,
    ),
    **dict.fromkeys(
        (
            Isdsc.DOCUMENT_INVALID,
            Isdsc.DOCUMENT_TOO_NEW,
            Isdsc.INVALID_PARAMETER,
            Isdsc.MISSING_PARAMETER,
            Isdsc.INVALID_ISCSI_NAME,
            Isdsc.INVALID_PORT_NUMBER,
            Isdsc.INVALID_LOAD_BALANCE_POLICY,
            Isdsc.LB_POLICY_NOT_SUPPORTED,
            Isdsc.INVALID_CHAP_SECRET,
            Isdsc.INVALID_TARGET_CHAP_SECRET,
            Isdsc.INVALID_INITIATOR_CHAP_SECRET,
            Isdsc.INVALID_CHAP_USER_NAME,
            Isdsc.SHORT_CHAP_SECRET,
            Isdsc.NO_PORTAL_SPECIFIED,
            Isdsc.PATH_COUNT_MISMATCH,
            Isdsc.TARGET_PORTAL_ALREADY_EXISTS,
            Isdsc.TARGET_ALREADY_EXISTS,
            Isdsc.VOLUME_ALREADY_PERSISTENTLY_BOUND,
            Isdsc.REQUEST_NOT_SUPPORTED,
        ),
        422,
    ),
    **dict.fromkeys(
        (
            Isdsc.STATE_UNUSABLE,
            Isdsc.STATE_LOCKED,
            Isdsc.ENGINE_NOT_RUNNING,
            Isdsc.SERVICE_NOT_RUNNING,
            Isdsc.OUT_OF_RESOURCES,
        ),
        503,
    ),
}

_STATUS_OF_THE_REST = 502
"""Something below the agent, a target or the engine, did not do what it was asked."""

_CODE_BY_STATUS: Mapping[int, Isdsc] = {
    403: Isdsc.NOT_PERMITTED,
    404: Isdsc.NOT_FOUND,
    503: Isdsc.OUT_OF_RESOURCES,
}


class ErrorBody(BaseModel):
    """What went wrong."""

    code: int = Field(description="Stable number: the Microsoft guide's, or one from 0xEFFF8001 of our own")
    name: str = Field(description="The number's name, with the prefix ISDSC_")
    message: str = Field(description="What, why and what to do, for people; never holds a secret")
    field: str = Field("", description="Path of the field at fault, such as targets[0].chap.secret")
    remedy: str = Field("", description="What to do about it; also the end of the message")


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    format_version: int = FORMAT_VERSION
    error: ErrorBody


def http_status(code: Isdsc) -> int:
    """Return the HTTP status that an error goes out with."""
    return _STATUS_BY_CODE.get(code, _STATUS_OF_THE_REST)


def answer_of(error: BlockfleetError) -> dict[str, Any]:
    """Return an error as the JSON object of an answer."""
    body = ErrorBody(
        code=int(error.code),
        name=str(error.code),
        message=str(error),
        field=error.field,
        remedy=error.remedy,
    )
    return ErrorAnswer(error=body).model_dump()


def raw_answer(status: int, phrase: str, message: str) -> bytes:
    """Return a whole HTTP response for what is refused before HTTP is spoken, ending the connection."""
    error = BlockfleetError(_CODE_BY_STATUS.get(status, Isdsc.INVALID_PARAMETER), message)
    body = json.dumps(answer_of(error)).encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


_MALFORMED = "json_invalid"
"""pydantic's type of the fault that a text is not JSON."""


def _validation_error(faults: Sequence[ErrorDetails]) -> BlockfleetError:
    """Make one error of what validation found; locations begin with the part of the request they are in."""
    if faults[0]["type"] == _MALFORMED:
        reason = faults[0]["ctx"]["error"]
        return BlockfleetError(
            Isdsc.INVALID_PARAMETER,
            f"cannot take the request body: it is not JSON ({reason})",
            remedy="send an object as GET /openapi.json describes it",
        )
    within = [fault.copy() for fault in faults]
    for fault in within:
        fault["loc"] = fault["loc"][1:]
    return error_from(within)


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of an application leave it in the one shape."""

    def respond(error: BlockfleetError, status: int | None = None) -> JSONResponse:
        return JSONResponse(answer_of(error), status or http_status(error.code))

    @app.exception_handler(BlockfleetError)
    async def refused(_: Request, error: BlockfleetError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = error.errors()
        malformed = faults[0]["type"] == _MALFORMED
        return respond(_validation_error(faults), 400 if malformed else 422)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODE_BY_STATUS.get(error.status_code, Isdsc.INVALID_PARAMETER)
        wrapped = BlockfleetError(
            code,
            f"cannot answer {request.method} {request.url.path[:200]}: {error.detail}",
            remedy="GET /openapi.json lists the routes",
        )
        return respond(wrapped, error.status_code)

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        wrapped = BlockfleetError(
            Isdsc.NON_SPECIFIC_ERROR,
            f"the agent failed with {type(error).__name__}",
            remedy="its journal has the details; please report this as a defect",
        )
        return respond(wrapped, 500)
