# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML files: what the command and a drop-in folder read."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import cast

import yaml
from tests.fuzz.harness.base import CANARY, Harness, speaks
from tests.fuzz.source import Source

from blockfleet.cli.files import STANDARD_INPUT, read_document
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.loading import load_document


def _speaks(text: bytes) -> bool:
    try:
        return speaks(yaml.safe_load(text))
    except Exception:  # noqa: BLE001 - whatever it is, it is no document, and what the error may show is not known
        return True


def test_one_input(data: bytes) -> None:
    """Read the bytes from standard input as a document."""
    source = Source(data)
    flavour = source.choose((b"", b"targets:\n- ", b"{", b"%YAML 1.1\n---\n", b"- " * 40, b"a: &a [1]\nb: *a\n"))
    body = source.rest()
    before = sys.stdin
    sys.stdin = cast("io.TextIOWrapper", SimpleNamespace(buffer=io.BytesIO(flavour + body)))
    try:
        load_document(read_document(STANDARD_INPUT))
    except BlockfleetError as error:
        assert CANARY not in str(error) or _speaks(flavour + body), "an error shows a secret"
        assert len(str(error)) < 2000
    finally:
        sys.stdin = before


HARNESS = Harness(
    "config",
    "YAML files",
    test_one_input,
    maximum_length=2048,
    tokens=(
        b"targets:\n", b"- name: iqn.2026-11.com.example:db\n", b"  portals: [192.0.2.1]\n", b"  chap:\n",
        b"!!python/",
        b"&a", b"*a", b"<<: ", b"? ", b"|\n", b">-\n", b"!!binary ", b"!!timestamp ", b"0o7", b"1:2:3", b"---\n",
        b"    secret: " + CANARY.encode() + b"\n", b"2026-13-45", b"\\x", b"\"", b"{", b"}", b"[", b"]", b"1_000",
    ),
)  # fmt: skip
