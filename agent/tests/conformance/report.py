# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/rfc3720.md, generated from ``rows.yaml`` and the tests that pytest collects here.

``python -m tests.conformance.report`` in ``agent`` writes it; with ``--check`` it only tells whether the file is
up to date, by its exit status.  A test belongs to the row that its name begins with: ``test_LGN_01_...`` to LGN-01.
A row is passed where it has tests, since the suite fails where one of them does; it is failed where one of its
tests is marked as failing, with the reason given there; otherwise it is planned.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
AGENT = HERE.parents[1]
DOCUMENT = AGENT.parent / "docs" / "rfc3720.md"
COMMAND = "cd agent && ../.venv/bin/python -m tests.conformance.report"

GROUPS = {
    "LGN": "Login phase",
    "KEY": "Key negotiation",
    "SEC": "Security stage and CHAP",
    "DSC": "Discovery sessions and SendTargets",
    "NUM": "Numbering and windows",
    "DAT": "Data transfer",
    "RSP": "Responses",
    "TMF": "Task management",
    "CTL": "NOP, events, text, logout",
    "ERR0": "Session recovery",
    "ERR1": "Error recovery within a connection",
    "MCS": "Several connections and connection recovery",
    "ROB": "Hostile and broken targets",
    "NEW": "After RFC 3720",
    "X": "Further requirements",
}
_ROW_OF_TEST = re.compile(r"test_([A-Z]+\d?)_(\d+)_")


class Inconsistent(Exception):
    """Rows and tests do not fit together; the message says where."""


@dataclass
class Row:
    """One requirement, with what was collected for it."""

    id: str
    section: str
    level: str
    priority: int
    requirement: str
    planned: str = ""
    tests: dict[str, str] = field(default_factory=dict)
    """Test functions and their files."""
    cases: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.failures:
            return "failed: " + "; ".join(self.failures)
        return "passed" if self.tests else "planned: " + self.planned

    @property
    def kind(self) -> str:
        return self.verdict.partition(":")[0]


class _Collector:
    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def collect() -> list[pytest.Item]:
    """Return the test cases of this folder; raises :class:`Inconsistent` where collection fails."""
    collector = _Collector()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(
            ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(AGENT), str(HERE)], [collector]
        )
    if status != pytest.ExitCode.OK:
        raise Inconsistent(said.getvalue())
    return collector.items


def rows() -> list[Row]:
    """Return all rows with their tests; raises :class:`Inconsistent`."""
    known = {entry["id"]: Row(**entry) for entry in yaml.safe_load((HERE / "rows.yaml").read_text())}
    for item in collect():
        found = _ROW_OF_TEST.match(item.name)
        if found is None:
            continue
        row = known.get(f"{found[1]}-{found[2]}")
        if row is None:
            raise Inconsistent(f"{item.nodeid} is of no row in rows.yaml")
        row.tests[item.name.partition("[")[0]] = item.path.name
        row.cases += 1
        failing = item.get_closest_marker("xfail")
        if failing is not None and failing.kwargs["reason"] not in row.failures:
            row.failures.append(failing.kwargs["reason"])
    for row in known.values():
        if bool(row.tests) == bool(row.planned):
            raise Inconsistent(f"{row.id} needs either tests or the reason why it is planned")
    return list(known.values())


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / of:.0f} %)" if of else "0"


def _summary(all_rows: list[Row]) -> list[str]:
    lines = [
        "| priority | requirements | passed | failed | planned | passed of those tested |",
        "|---|---|---|---|---|---|",
    ]
    for priority in (1, 2, 3, None):
        chosen = [row for row in all_rows if priority in (None, row.priority)]
        kinds = Counter(row.kind for row in chosen)
        tested = kinds["passed"] + kinds["failed"]
        lines.append(
            f"| {priority or 'all'} | {len(chosen)} | {_share(kinds['passed'], len(chosen))} | {kinds['failed']}"
            f" | {kinds['planned']} | {_share(kinds['passed'], tested)} |"
        )
    return lines


def _group(title: str, chosen: list[Row]) -> list[str]:
    lines = [
        "",
        f"## {title}",
        "",
        "| id | section | level | requirement | verdict | tests |",
        "|---|---|---|---|---|---|",
    ]
    for row in chosen:
        file = next(iter(row.tests.values()), "")
        shown = f"[{file}](../agent/tests/conformance/{file}), {row.cases}" if file else ""
        level = row.level.replace("*", r"\*")
        lines.append(
            f"| {row.id} | {row.section} | {level}, {row.priority} | {row.requirement} | {row.verdict} | {shown} |"
        )
    return lines


def document(all_rows: list[Row]) -> str:
    """Return the text of the document."""
    lines = [
        "# Requirements of RFC 3720 on the initiator",
        "",
        f"Generated by `{COMMAND}`; do not edit.",
        "",
        "Each requirement is driven from outside, over TCP, by a target in the test's hand. That target is written from",
        "the RFC by byte offset and shares no key, state, codec or constant with the initiator. Where it makes sense a",
        "test runs with each combination of header and data digest. Beside the session under test another one is up",
        "that must not notice anything. The tests of a row have its id in their names: `pytest -k LGN_01`.",
        "",
        "Sections are those of RFC 3720 unless another RFC is named. Levels: M a MUST, M\\* derived from one or from",
        "what targets are known to do, S a SHOULD; the number behind it is the priority. The last column counts cases.",
        "*Passed* rows have tests, and the suite fails when one of them does. *Failed* rows have a test that is known",
        "to fail, with its reason. *Planned* rows have none yet.",
        "",
        *_summary(all_rows),
    ]
    for group, title in GROUPS.items():
        lines += _group(title, [row for row in all_rows if row.id.partition("-")[0] == group])
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the document, or with ``--check`` compare it."""
    try:
        text = document(rows())
    except Inconsistent as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    if arguments == ["--check"]:
        if DOCUMENT.exists() and DOCUMENT.read_text() == text:
            return 0
        print(f"{DOCUMENT} is out of date: {COMMAND}", file=sys.stderr)  # noqa: T201
        return 1
    DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
