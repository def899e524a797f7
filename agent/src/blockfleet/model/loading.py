# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a document or a change from plain data: one error that names the field, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from blockfleet.model.change import CHANGE_VERSION, Change
from blockfleet.model.desired import DOCUMENT_VERSION, Document
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.names import InvalidName

_Model = TypeVar("_Model", bound=BaseModel)

_SHOWN_LENGTH = 80
"""Characters of a refused value that an error repeats."""

_SPEAKABLE_IN_CHAP = frozenset({"algorithms", "allow_weak_secret"})
"""Fields of credentials whose value an error may repeat: a mistyped field may hold a secret."""

_CODES: dict[str, Isdsc] = {
    "missing": Isdsc.MISSING_PARAMETER,
    "short_secret": Isdsc.SHORT_CHAP_SECRET,
    "short_mutual_secret": Isdsc.SHORT_CHAP_SECRET,
    "chap_secret": Isdsc.INVALID_CHAP_SECRET,
    "equal_secrets": Isdsc.INVALID_CHAP_SECRET,
    "mutual_user_alone": Isdsc.INVALID_CHAP_SECRET,
    "no_portals": Isdsc.NO_PORTAL_SPECIFIED,
    "min_paths": Isdsc.PATH_COUNT_MISMATCH,
    "too_many_connections": Isdsc.TOO_MANY_CONNECTIONS,
    "all_in_standby": Isdsc.NO_PRIMARY_PATH_SPECIFIED,
    "duplicate_path": Isdsc.DUPLICATE_PATH_SPECIFIED,
    "primary_in_standby": Isdsc.NO_PRIMARY_PATH_SPECIFIED,
    "several_primaries": Isdsc.MULTIPLE_PRIMARY_PATHS_SPECIFIED,
    "unknown_path": Isdsc.INVALID_PATH_ID,
    "all_paths_in_standby": Isdsc.NO_PRIMARY_PATH_SPECIFIED,
    "duplicate_portal": Isdsc.TARGET_PORTAL_ALREADY_EXISTS,
    "duplicate_target": Isdsc.TARGET_ALREADY_EXISTS,
    "duplicate_static_target": Isdsc.TARGET_ALREADY_EXISTS,
    "duplicate_volume": Isdsc.VOLUME_ALREADY_PERSISTENTLY_BOUND,
    "duplicate_volume_identity": Isdsc.VOLUME_AMBIGUOUS,
    "duplicate_volume_unit": Isdsc.VOLUME_AMBIGUOUS,
}
"""Error types of pydantic and of the document's own rules; whatever is not here is DOCUMENT_INVALID."""

_FIELD_CODES: dict[str, Isdsc] = {
    "policy": Isdsc.INVALID_LOAD_BALANCE_POLICY,
    "connection_policy": Isdsc.INVALID_LOAD_BALANCE_POLICY,
    "user": Isdsc.INVALID_CHAP_USER_NAME,
    "mutual_user": Isdsc.INVALID_CHAP_USER_NAME,
    "secret": Isdsc.INVALID_CHAP_SECRET,
    "mutual_secret": Isdsc.INVALID_CHAP_SECRET,
}
"""Codes of fields whose every fault is the same to a program; they yield to :data:`_CODES`."""

_REMEDIES: dict[str, str] = {
    "missing": "give it",
    "extra_forbidden": "correct its name or remove it",
    "short_secret": "use a longer one, or set allow_weak_secret where the network is protected by IPsec",
    "short_mutual_secret": "use a longer one, or set allow_weak_secret where the network is protected by IPsec",
    "equal_secrets": "use another secret for one of the directions",
    "mutual_user_alone": "give both or neither",
    "no_portals": "list portals, or write 'all'",
    "min_paths": "lower min_paths or list more portals",
    "too_many_connections": "declare fewer",
    "all_in_standby": "let one of them be active",
    "duplicate_path": "remove one",
    "primary_in_standby": "let it be one of the two",
    "several_primaries": "let one of them be primary",
    "unknown_path": "correct the portal, or declare it",
    "all_paths_in_standby": "let one of them be active",
    "duplicate_portal": "remove one",
    "duplicate_target": "remove one",
    "duplicate_static_target": "remove one",
    "duplicate_volume": "remove one",
    "duplicate_volume_identity": "a logical unit can be one volume only; remove one",
    "duplicate_volume_unit": "a logical unit can be one volume only; remove one",
    "no_logical_unit": "give lun or identity",
}

_RULE_FIELDS: dict[str, str] = {
    "short_secret": "secret",
    "short_mutual_secret": "mutual_secret",
    "equal_secrets": "mutual_secret",
    "mutual_user_alone": "mutual_user",
    "no_portals": "portals",
    "min_paths": "min_paths",
    "too_many_connections": "connections",
    "all_in_standby": "connections",
    "duplicate_path": "paths",
    "primary_in_standby": "paths",
    "several_primaries": "paths",
    "unknown_path": "paths",
    "all_paths_in_standby": "paths",
    "duplicate_portal": "portals",
    "duplicate_target": "targets",
    "duplicate_static_target": "static",
    "duplicate_volume": "volumes",
    "duplicate_volume_identity": "volumes",
    "duplicate_volume_unit": "volumes",
}
"""The field at fault where a rule of a whole object was broken, to end the path with."""


def load_document(data: Any) -> Document:
    """Check plain data (as JSON or YAML gives it) and return the document.

    Raises :class:`BlockfleetError` for the first fault: ``field`` is its path, the message has the value unless
    it is, or might be, a secret.  A document of a newer version is DOCUMENT_TOO_NEW whatever else is in it.
    """
    _check_version(data, DOCUMENT_VERSION, "document")
    return _load(Document, data)


def load_change(data: Any) -> Change:
    """Check plain data and return the change; what is in ``change.document`` is checked by the merge.

    Raises :class:`BlockfleetError` like :func:`load_document`.
    """
    _check_version(data, CHANGE_VERSION, "change")
    return _load(Change, data)


def _check_version(data: Any, newest: int, what: str) -> None:
    if not isinstance(data, dict):
        raise BlockfleetError(
            Isdsc.DOCUMENT_INVALID, f"a {what} is an object, not {type(data).__name__}", remedy="write key: value"
        )
    version = data.get("version", newest)
    if isinstance(version, int) and not isinstance(version, bool) and version > newest:
        raise BlockfleetError(
            Isdsc.DOCUMENT_TOO_NEW,
            f"version: the {what} has version {version} and this agent reads up to {newest}",
            remedy=f"upgrade the agent, or write version {newest}",
            field="version",
        )


def _load(model: type[_Model], data: Any) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise error_from(error.errors(include_url=False)) from None


def error_from(details: list[ErrorDetails]) -> BlockfleetError:
    """Turn pydantic's list of faults into the one error that is reported."""
    fault = _most_telling(details)
    kind = fault["type"]
    path = [*_path(fault["loc"]), *fault.get("ctx", {}).get("at", ())]
    if kind in _RULE_FIELDS:
        path.append(_RULE_FIELDS[kind])
    field = join_path(path)
    last = next((part for part in reversed(path) if isinstance(part, str)), "")
    cause = fault.get("ctx", {}).get("error")
    code = _CODES.get(kind)
    if code is None and isinstance(cause, InvalidName):
        code = Isdsc.INVALID_ISCSI_NAME
    if code is None and kind != "extra_forbidden":
        code = _FIELD_CODES.get(last)
    text = _text(fault, cause)
    shown = _value(fault, path)
    if shown and shown not in text:
        text = f"{text} (given: {shown})"
    return BlockfleetError(
        code or Isdsc.DOCUMENT_INVALID,
        f"{field}: {text}" if field else text,
        remedy=_REMEDIES.get(kind, ""),
        field=field,
    )


def join_path(path: Iterable[str | int]) -> str:
    """Write a path the way people do: ``targets[0].chap.secret``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _most_telling(details: list[ErrorDetails]) -> ErrorDetails:
    """Of the first fault's alternatives (a field that may be text or a list), take the one that got furthest."""
    # A mistyped field makes its right spelling missing: the mistyped one is what the user has to find.
    unknown = [d for d in details if d["type"] == "extra_forbidden"]
    if unknown:
        return unknown[0]
    first = _path(details[0]["loc"])
    same = [d for d in details if _path(d["loc"])[: len(first)] == first]
    return max(same, key=lambda d: len(_path(d["loc"])))


def _path(location: tuple[str | int, ...]) -> list[str | int]:
    """Drop the names that pydantic gives to the alternatives of a union."""
    return [
        part[:_SHOWN_LENGTH] if isinstance(part, str) else part
        for part in location
        if not (isinstance(part, str) and ("[" in part or "(" in part))
    ]


_TEXTS: dict[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "bool_type": "must be yes or no",
}


def _text(fault: ErrorDetails, cause: Any) -> str:
    kind = fault["type"]
    if kind in _TEXTS:
        return _TEXTS[kind]
    if isinstance(cause, Exception):
        return str(cause)
    message = fault["msg"]
    return message[:1].lower() + message[1:] if message[1:2].islower() else message


# Where a mapping or a list is wanted and a scalar stands, the scalar may be anything, a secret too.
_UNSHOWN_FAULTS = frozenset(
    {"missing", "extra_forbidden", "model_type", "model_attributes_type", "dict_type", "tuple_type", "list_type"}
)


def _value(fault: ErrorDetails, path: list[str | int]) -> str:
    """Return the refused value where it may be shown: a scalar, of a known field, that is no credential."""
    value = fault["input"]
    if fault["type"] in _UNSHOWN_FAULTS or isinstance(value, dict | list | tuple | set | BaseModel):
        return ""
    if "chap" in path and not _SPEAKABLE_IN_CHAP.intersection(p for p in path if isinstance(p, str)):
        return ""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_LENGTH else shown[: _SHOWN_LENGTH - 3] + "..."
