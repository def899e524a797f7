# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the reference page of the command from its own help: ``python -m blockfleet.cli.reference``."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from blockfleet.cli.main import GROUPS, VERBS, run

_HEAD = """\
# The command `blockfleet`

Made from the command's own help by `python -m blockfleet.cli.reference`; do not edit.

Secrets are never arguments: they come from a document, from a file (`--secret-file`), from standard input (`-`)
or from a prompt. With `--json` every verb prints one object with a `format_version`; an error is then an object
with an `error` on standard output beside the line on standard error. Colours are on a terminal only, and not
where `NO_COLOR` is set.

| exit code | meaning |
|---|---|
| 0 | in sync, or done |
| 1 | error: one line on standard error says what, why and what to do |
| 2 | changes are pending, the host has drifted or is not as declared |
| 3 | applied, but the host did not become what was asked for in time |
| 4 | applied; every target has its `min_paths`, but some paths are missing |
"""

_WIDTH = "100"


def page() -> str:
    """Return the page, in Markdown."""
    sections = [_HEAD, _section("blockfleet")]
    sections += [_section(f"blockfleet {verb.__name__}", verb.__name__) for verb in VERBS]
    for name, (_, verbs) in GROUPS.items():
        sections += [_section(f"blockfleet {name} {verb.__name__}", name, verb.__name__) for verb in verbs]
    return "\n".join(sections)


def _section(title: str, *arguments: str) -> str:
    return f"## {title}\n\n```\n{_help(*arguments)}\n```\n"


def _help(*arguments: str) -> str:
    """Return the help of one verb as a terminal of a fixed width shows it."""
    written = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    try:
        with contextlib.redirect_stdout(written):
            run([*arguments, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in written.getvalue().strip().splitlines())


if __name__ == "__main__":
    sys.stdout.write(page())
