# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents keep their word: links lead somewhere, files and make targets that they name exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".venv", "build", ".git", "collections", ".ansible", ".pytest_cache", "node_modules"}
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)\s]*)?\)")
MAKE = re.compile(r"`(?:[A-Z_]+=\S+ )?make ([a-z0-9-]+)")
TREE_PATH = re.compile(r"`((?:agent|plugins|roles|docs|tests|playbooks|molecule|changelogs|meta)/[A-Za-z0-9_./-]*)`")


def documents() -> list[Path]:
    """Return the project's Markdown files."""
    return [p for p in ROOT.rglob("*.md") if not SKIPPED & set(p.relative_to(ROOT).parts)]


def faults(path: Path, make_targets: set[str]) -> list[str]:
    """Return what one document says that is not so."""
    text = path.read_text()
    name = path.relative_to(ROOT)
    found = []
    for target, _ in LINK.findall(text):
        if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
            found.append(f"{name}: link to {target}, which is not there")
    found += [f"{name}: `make {t}` is no target of the Makefile" for t in MAKE.findall(text) if t not in make_targets]
    found += [f"{name}: names {p}, which is not there" for p in TREE_PATH.findall(text) if not (ROOT / p).exists()]
    return found


def main() -> int:
    """Print every fault; the exit status says whether there was one."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = [fault for path in documents() for fault in faults(path, targets)]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
