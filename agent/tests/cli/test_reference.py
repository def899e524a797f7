# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference pages say what the command and the API do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.api.recording import RecordingControl, StillEngine

from blockfleet.api.access import Access, Gate
from blockfleet.api.app import create_app
from blockfleet.cli.main import VERBS
from blockfleet.cli.reference import page

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


def test_the_page_of_the_command_is_its_help():
    assert (REFERENCE / "cli.md").read_text() == page(), (
        "run: python -m blockfleet.cli.reference > docs/reference/cli.md"
    )


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_verb_has_json_and_help(cli, verb):
    outcome = cli(verb.__name__, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out
    assert verb.__doc__.splitlines()[0] in outcome.out


def test_the_page_of_the_api_has_every_route_and_no_other():
    described = create_app(RecordingControl(), StillEngine(), Gate(Access.CHANGE)).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    written = set(re.findall(r"^\| `((?:GET|POST) [^`]+)`", (REFERENCE / "api.md").read_text(), re.MULTILINE))
    assert written == routes
