# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of the house that no linter knows: licence headers, sizes of files and functions, one licence a folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAXIMUM_LINES = 700
MAXIMUM_FUNCTION = 60
SOURCE_SUFFIXES = {".py", ".sh"}
BSD_FOLDER = "plugins/module_utils/"


def tracked() -> list[Path]:
    """Return the files that git knows, those about to be added too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def licence_faults(path: Path, text: str) -> list[str]:
    """Return what is wrong with a source file's licence line."""
    name = str(path.relative_to(ROOT))
    wanted = "BSD-2-Clause" if name.startswith(BSD_FOLDER) else "GPL-3.0-or-later"
    head = "\n".join(text.splitlines()[:8])
    if not text.strip() or f"SPDX-License-Identifier: {wanted}" in head:
        return []
    return [f"{name}: wants 'SPDX-License-Identifier: {wanted}' in its first lines"]


def size_faults(path: Path, text: str) -> list[str]:
    """Return what is too long in a Python file: the file, or a function that is not a test."""
    name = str(path.relative_to(ROOT))
    faults = []
    if len(text.splitlines()) > MAXIMUM_LINES:
        faults.append(f"{name}: {len(text.splitlines())} lines, at most {MAXIMUM_LINES}")
    if "tests/" in name or name.startswith("plugins/modules/"):
        return faults
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAXIMUM_FUNCTION:
                faults.append(f"{name}:{node.lineno}: {node.name} has {length} lines, at most {MAXIMUM_FUNCTION}")
    return faults


def main() -> int:
    """Print every fault; the exit status says whether there was one."""
    faults: list[str] = []
    for path in tracked():
        script = not path.suffix and path.read_bytes()[:2] == b"#!"
        if path.suffix not in SOURCE_SUFFIXES and not script:
            continue
        text = path.read_text()
        faults += licence_faults(path, text)
        if path.suffix == ".py":
            faults += size_faults(path, text)
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
