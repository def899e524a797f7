# SPDX-License-Identifier: GPL-3.0-or-later
"""Medians, ratios and spreads; a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tests.bench.rows import PEERS, Row, Sample

FORMAT_VERSION = 1


@dataclass
class Result:
    """The samples of one row, round by round; ``before`` are those of another checkout in the same rounds."""

    row: Row
    ours: list[Sample] = field(default_factory=list)
    peer: list[Sample] = field(default_factory=list)
    before: list[Sample] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over the rounds of ours to the peer's: what both met in one round cancels out."""
        return statistics.median(self._ratios(self.peer))

    @property
    def spread(self) -> float:
        """How far the rounds' ratios lie apart, as part of their median."""
        ratios = self._ratios(self.peer)
        return (max(ratios) - min(ratios)) / self.ratio

    @property
    def change(self) -> float | None:
        """Median over the rounds of ours to the other checkout's."""
        return statistics.median(self._ratios(self.before)) if self.before else None

    def _ratios(self, others: list[Sample]) -> list[float]:
        return [ours.rate / other.rate for ours, other in zip(self.ours, others, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Return the row as it goes into the file: rates in operations a second, CPU in microseconds each."""
        shown: dict[str, Any] = {
            "name": self.row.name,
            "group": self.row.group,
            "work": self.row.work,
            "bytes": self.row.length,
            "depth": self.row.depth,
            "peer_name": PEERS[self.row.group],
            "ours": round(_rate(self.ours), 1),
            "peer": round(_rate(self.peer), 1),
            "ratio": round(self.ratio, 3),
            "spread": round(self.spread, 3),
            "cpu_ours": round(_cpu(self.ours), 2),
            "cpu_peer": round(_cpu(self.peer), 2),
            "rounds": [[round(a.rate, 1), round(b.rate, 1)] for a, b in zip(self.ours, self.peer, strict=True)],
        }
        if self.change is not None:
            shown |= {
                "before": round(_rate(self.before), 1),
                "cpu_before": round(_cpu(self.before), 2),
                "change": round(self.change, 3),
            }
        return shown


def _rate(samples: list[Sample]) -> float:
    return statistics.median(sample.rate for sample in samples)


def _cpu(samples: list[Sample]) -> float:
    return 1e6 * statistics.median(sample.cpu for sample in samples)


def write_json(path: Path, results: list[Result], options: dict[str, Any]) -> None:
    """Write all rows to a file."""
    document = {
        "format_version": FORMAT_VERSION,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "options": options,
        "rows": [result.as_json() for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def earlier_ratios(path: Path) -> dict[str, float]:
    """Return the ratios by row of an earlier run's file."""
    document = json.loads(path.read_text())
    if document.get("format_version") != FORMAT_VERSION:
        raise SystemExit(f"{path} has format version {document.get('format_version')}, not {FORMAT_VERSION}")
    return {row["name"]: row["ratio"] for row in document["rows"]}


def table(results: list[Result], earlier: dict[str, float]) -> Table:
    """Lay the rows out; ``earlier`` are ratios of another run, by row."""
    shown = Table(title="operations a second, medians; CPU of the serving process in µs an operation")
    compared = any(result.before for result in results)
    for heading in ("row", "peer"):
        shown.add_column(heading, no_wrap=True)
    headings = ["ours", "theirs", "ratio", "spread", "CPU ours", "CPU theirs"]
    headings += ["before", "ours/before", "CPU before"] * compared + ["ratio then"] * bool(earlier)
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    group = ""
    for result in results:
        row = result.as_json()
        if group not in ("", row["group"]):
            shown.add_section()
        group = row["group"]
        colour = "green" if result.ratio >= 1 else "yellow" if result.ratio >= 0.8 else "red"
        cells = [row["name"], row["peer_name"], f"{row['ours']:,.0f}", f"{row['peer']:,.0f}"]
        cells += [f"[{colour}]{row['ratio']:.2f}[/]", f"{row['spread']:.0%}"]
        cells += [f"{row['cpu_ours']:.1f}", f"{row['cpu_peer']:.1f}"]
        if compared:
            cells += [f"{row['before']:,.0f}", f"{row['change']:.2f}", f"{row['cpu_before']:.1f}"]
        if earlier:
            cells.append(f"{earlier[row['name']]:.2f}" if row["name"] in earlier else "")
        shown.add_row(*cells)
    return shown


def show(results: list[Result], earlier: dict[str, float]) -> None:
    """Print the table."""
    Console(width=None if os.isatty(1) else 160).print(table(results, earlier))
