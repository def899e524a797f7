# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs real playbooks with the collection of this checkout and returns what the tasks returned."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RECAP = re.compile(r"ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)")


@dataclass(frozen=True)
class TaskResult:
    """What one task came to."""

    outcome: str
    task: str
    result: dict[str, Any]
    diff: Any
    warnings: list[str]

    @property
    def changed(self) -> bool:
        return bool(self.result.get("changed"))

    @property
    def message(self) -> str:
        return str(self.result.get("msg", ""))

    @property
    def texts(self) -> list[str]:
        """The plan as people see it."""
        return [action["text"] for action in self.result.get("actions", [])]


@dataclass(frozen=True)
class Run:
    """One run of ansible-playbook."""

    returncode: int
    output: str
    results: list[TaskResult] = field(default_factory=list)

    def __getitem__(self, index: int) -> TaskResult:
        assert len(self.results) > index, self.output
        return self.results[index]

    @property
    def recap(self) -> dict[str, int]:
        found = RECAP.search(self.output)
        assert found is not None, self.output
        return dict(zip(("ok", "changed", "unreachable", "failed"), map(int, found.groups()), strict=True))


class Playbook:
    """Runs plays on this machine as the managed host, with the agent at ``socket``."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self._folder = folder
        self._socket = socket
        self._runs = 0
        self.limit = 110.0
        """Seconds that a run may take: it ends before the test's own limit does, so that its output is seen."""
        self.environment: dict[str, str] = {}

    def task(self, module: str, options: dict[str, Any], **keywords: Any) -> dict[str, Any]:
        return {"name": module, f"blockfleet.iscsi.{module}": options, **keywords}

    def run(self, *tasks: dict[str, Any], arguments: tuple[str, ...] = (), variables: Any = None) -> Run:
        """Run the tasks in one play; the action group tells every module where the agent is."""
        self._runs += 1
        play_path = self._folder / f"play-{self._runs}.yml"
        record = self._folder / f"record-{self._runs}.jsonl"
        record.touch()
        play = {
            "name": "Test",
            "hosts": "localhost",
            "gather_facts": False,
            "module_defaults": {"group/blockfleet.iscsi.iscsi": {"agent_socket": str(self._socket)}},
            "vars": variables or {},
            "tasks": list(tasks),
        }
        play_path.write_text(yaml.safe_dump([play], sort_keys=False))
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "-i",
                "localhost,",
                "-c",
                "local",
                "-e",
                f"ansible_python_interpreter={sys.executable}",
                *arguments,
                str(play_path),
            ],
            env=self._environment(record),
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.limit,
            check=False,
        )
        results = [TaskResult(**json.loads(line)) for line in record.read_text().splitlines()]
        return Run(done.returncode, done.stdout, results)

    def one(self, module: str, options: dict[str, Any], *arguments: str, **keywords: Any) -> TaskResult:
        """Run one task, whether it fails or not, and return its result."""
        run = self.run(self.task(module, options, **keywords), arguments=arguments)
        return run[0]

    def _environment(self, record: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self._folder),
            "ANSIBLE_HOME": str(self._folder / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self._folder / "local-tmp"),
            "ANSIBLE_REMOTE_TEMP": str(self._folder / "remote-tmp"),
            "ANSIBLE_COLLECTIONS_PATH": str(collections_path()),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "record",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "PLAYBOOK_RECORD": str(record),
            **self.environment,
        }


def collections_path() -> Path:
    """Return the folder in which this checkout is the collection blockfleet.iscsi."""
    done = subprocess.run(
        [str(ROOT / "tests/collection/link")], stdout=subprocess.PIPE, text=True, check=True, timeout=10
    )
    return Path(done.stdout.strip())
