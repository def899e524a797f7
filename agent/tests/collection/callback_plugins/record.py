# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes every task result of a playbook run as a line of JSON, so that tests look at data, not at text."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record
type: aggregate
short_description: Record task results as lines of JSON
description:
  - Writes to the file that the environment variable PLAYBOOK_RECORD names.
"""


class CallbackModule(CallbackBase):
    """Records results in the order in which they come."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._path = Path(os.environ["PLAYBOOK_RECORD"])

    def _record(self, outcome: str, result: object) -> None:
        entry = {
            "outcome": outcome,
            "task": result.task.get_name(),
            # What the stock callbacks show, after the censoring that they do.
            "result": json.loads(self._dump_results(result.result)),
            "warnings": [str(warning) for warning in result.result.get("warnings", [])],
            "diff": json.loads(json.dumps(result.result.get("diff"), default=str)),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def v2_runner_on_ok(self, result: object) -> None:
        self._record("ok", result)

    def v2_runner_on_failed(self, result: object, ignore_errors: bool = False) -> None:
        self._record("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_unreachable(self, result: object) -> None:
        self._record("unreachable", result)

    def v2_runner_on_skipped(self, result: object) -> None:
        self._record("skipped", result)
