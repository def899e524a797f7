# SPDX-License-Identifier: GPL-3.0-or-later
"""The document about conformance says what the tests say."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conformance.report import AGENT, HERE, rows

SHARED = re.compile(r"(from|import) blockfleet\.iscsi\.(?!chap import ChapCredentials$)", re.MULTILINE)


def test_the_document_is_up_to_date() -> None:
    command = [sys.executable, "-m", "tests.conformance.report", "--check"]
    run = subprocess.run(command, cwd=AGENT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_suite_shares_no_protocol_code_with_the_initiator() -> None:
    """What a nexus takes as its parameters is all that comes from there.

    That the test target shares nothing with the initiator either is a contract of the import linter.
    """
    for path in HERE.glob("*.py"):
        assert not SHARED.search(path.read_text()), path


def test_a_row_that_is_not_passed_says_why_in_words_that_can_be_checked() -> None:
    for row in rows():
        assert row.kind == "passed" or len(row.verdict) > len(row.kind) + 20, row
