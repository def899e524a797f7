# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents and secrets that a user hands to the command: files, standard input, a prompt; never arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
import yaml

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

STANDARD_INPUT = Path("-")

MAXIMUM_FILE = 1 << 20
"""Bytes of a document; the agent takes no more."""

MAXIMUM_DEPTH = 32
"""Levels of a document; the agent takes no more."""


def read_document(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON document; ``-`` is standard input.

    Raises :class:`BlockfleetError`; a syntax error names line and column, never what is written there, which
    may be a secret.
    """
    text = _read(path)
    try:
        _bound(path, text)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _invalid(path, f"{place}{_sentence(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(path, f"it is not YAML ({type(error).__name__})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise _invalid(path, f"a document is an object, not {type(data).__name__}")
    return data


def read_secret(path: Path | None, prompt: str) -> str:
    """Read a secret from a file or standard input, or ask for it on the terminal; one final newline is cut."""
    if path is None:
        if not sys.stdin.isatty():
            raise BlockfleetError(
                Isdsc.MISSING_PARAMETER,
                f"cannot ask for the {prompt}: this is not a terminal",
                remedy="give a file that holds it, or - for standard input",
            )
        return str(typer.prompt(prompt, hide_input=True, err=True))
    return _read(path).removesuffix("\n").removesuffix("\r")


def _read(path: Path) -> str:
    try:
        if path == STANDARD_INPUT:
            data = sys.stdin.buffer.read(MAXIMUM_FILE + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAXIMUM_FILE + 1)
        if len(data) > MAXIMUM_FILE:
            raise _invalid(path, f"it is longer than {MAXIMUM_FILE} bytes")
        return data.decode()
    except OSError as error:
        raise _invalid(path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise _invalid(path, "it is not UTF-8 text") from None


def _bound(path: Path, text: str) -> None:
    """Refuse depth, aliases and tags before anything is built.

    Depth and aliases make a small text a large object, and a tag may ask for what its value is not.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        line = event.start_mark.line + 1 if event.start_mark else 0
        if depth > MAXIMUM_DEPTH:
            raise _invalid(path, f"line {line}: deeper than {MAXIMUM_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise _invalid(path, f"line {line}: aliases (*name) are not taken; write it out")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _invalid(path, f"line {line}: tags (!!name) are not taken; write the plain value")


def _sentence(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong without the parts that PyYAML quotes from the text."""
    problem = error.problem or error.context or "it is not YAML"
    return problem.partition("'")[0].strip() or "it is not YAML"


def _invalid(path: Path, reason: str) -> BlockfleetError:
    name = "standard input" if path == STANDARD_INPUT else str(path)
    return BlockfleetError(Isdsc.DOCUMENT_INVALID, f"cannot read {name}: {reason}", field=name)
