# SPDX-License-Identifier: GPL-3.0-or-later
"""The paths of volumes as people see them: where each leads, how it stands, and what it carried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from blockfleet.cli.tables import phase_text, table_of
from blockfleet.model.desired import Policy
from blockfleet.model.plan import VolumeStatus

_COLUMNS = ("VOLUME", "PORTAL", "LUN", "STATE", "POLICY", "ROLE", "COMMANDS", "IN FLIGHT", "FAILED", "LOST")


def have_several_paths(volumes: Iterable[VolumeStatus]) -> bool:
    """Tell whether any volume has more than one path."""
    return any(len(volume.paths) > 1 for volume in volumes)


def paths_table(volumes: Iterable[VolumeStatus]) -> Table:
    """Return one row a path: commands that it was given, that ended badly on it, and how often it was lost."""
    table = table_of(*_COLUMNS)
    for volume in volumes:
        for path in volume.paths:
            counters: Mapping[str, int] = path.get("counters", {})
            table.add_row(
                volume.name,
                str(path["session"]).rpartition("@")[2],
                str(path.get("lun", "-")),
                phase_text(str(path["phase"])),
                volume.policy,
                Text(_role(path, volume.policy)),
                *(str(counters.get(name, 0)) for name in ("issued", "in_flight", "failed", "losses")),
            )
    return table


def _role(path: Mapping[str, Any], policy: str) -> str:
    words = ["primary"] if path.get("primary") else []
    words += ["in reserve"] if path.get("standby") else []
    words += ["preferred by the target"] if path.get("preferred") else []
    words += [f"weight {path.get('weight', 0)}"] if policy == Policy.WEIGHTED_PATH or path.get("weight") else []
    return ", ".join(words) or "-"
