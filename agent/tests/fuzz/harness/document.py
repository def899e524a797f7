# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents and changes as the API takes them: JSON of any shape, laid over a desired state."""

from __future__ import annotations

import json
from typing import Any

from tests.fuzz.harness.base import CANARY, Harness, speaks
from tests.fuzz.source import Source

from blockfleet.api.bounds import MAXIMUM_DEPTH, nesting
from blockfleet.engine.interface import Credentials
from blockfleet.engine.parameters import chap_credentials
from blockfleet.iscsi.login import LoginParameters
from blockfleet.model.desired import Document
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.loading import load_change, load_document
from blockfleet.model.merge import merge, plain

BASE: dict[str, Any] = {
    "discovery": {"portals": [{"portal": "192.0.2.10"}]},
    "targets": [
        {
            "name": "iqn.2026-11.com.example:db",
            "portals": ["192.0.2.10:3260"],
            "chap": {"user": "host", "secret": CANARY},
        }
    ],
    "volumes": [{"name": "db01", "target": "iqn.2026-11.com.example:db", "lun": 0}],
}
_STATES: tuple[Document, ...] = (load_document({}), load_document(BASE))


def _document(data: Any) -> None:
    document = load_document(data)
    assert load_document(plain(document)) == document
    assert CANARY not in repr(document) or speaks(data), "a secret shows"
    _log_in(document)


def _log_in(document: Document) -> None:
    """What a document may say must be something that a login can: nobody is there to be told later."""
    name = document.initiator.name or "iqn.2026-11.com.example:host"
    for target in document.targets:
        chap = target.chap
        given = Credentials.model_validate(chap.model_dump(exclude={"allow_weak_secret"})) if chap else None
        LoginParameters(
            initiator_name=name,
            initiator_alias=document.initiator.alias or "",
            target_name=target.name,
            isid=bytes(6),
            credentials=chap_credentials(given),
        )


def _change(data: Any) -> None:
    change = load_change(data)
    for state in _STATES:
        after = merge(state, change)
        assert merge(after, change) == after, "the same change twice is not the same"
        assert load_document(plain(after)) == after


def test_one_input(data: bytes) -> None:
    """Take JSON within the limits of the API as a document, a change, or the document of a change."""
    source = Source(data)
    kind = source.number() % 4
    body = source.rest()
    depth = nesting(body)
    if depth > MAXIMUM_DEPTH:
        return
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    try:
        if kind == 0:
            _document(value)
        elif kind == 1:
            _change(value)
        else:
            _change({"version": 1, "mode": "merge" if kind == 2 else "replace", "document": value})
    except BlockfleetError as error:
        assert CANARY not in str(error) or speaks(value), "an error shows a secret"
        json.dumps([str(error), error.field, error.remedy], ensure_ascii=False).encode()


_WORDS = (
    "version", "discovery", "portals", "portal", "targets", "name", "login", "chap", "user", "secret",
    "mutual_user",
    "mutual_secret", "algorithms", "allow_weak_secret", "volumes", "lun", "identity", "attach", "policy",
    "min_paths",
    "lifetime", "static", "isns", "initiator", "alias", "mode", "merge", "replace", "document", "absent",
    "exclusive",
    "disruptive", "all", "iqn.2026-11.com.example:db", "192.0.2.10", CANARY, "header_digest", "round_robin",
)  # fmt: skip

HARNESS = Harness(
    "document",
    "documents and changes of the API",
    test_one_input,
    tokens=(
        *(json.dumps(word).encode() for word in _WORDS),
        b":{",
        b":[",
        b"null",
        b"true",
        b"-1",
        b"1e400",
        b"\\ud800",
    ),
)
