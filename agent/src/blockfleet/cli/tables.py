# SPDX-License-Identifier: GPL-3.0-or-later
"""The look of tables and states."""

from __future__ import annotations

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

GOOD, DOUBTFUL, BAD, FAINT, STRONG = "green", "yellow", "red", "dim", "bold"

_PHASE_STYLES = {
    "logged_in": GOOD,
    "online": GOOD,
    "active": GOOD,
    "standby": GOOD,
    "connecting": DOUBTFUL,
    "recovering": DOUBTFUL,
    "closing": DOUBTFUL,
    "leaving": DOUBTFUL,
    "degraded": DOUBTFUL,
    "queueing": DOUBTFUL,
    "fencing": DOUBTFUL,
}

_LONG = frozenset({"TARGET", "CAUSE"})
"""Columns that are folded, character by character, where a terminal is too narrow."""

_NUMBERS = frozenset({"SIZE", "COMMANDS", "IN FLIGHT", "LUN", "FAILED", "LOST"})


def table_of(*columns: str) -> Table:
    """Return an empty table; columns of numbers are aligned to the right."""
    table = Table(box=None, header_style=FAINT, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        justify: JustifyMethod = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in _LONG)
    return table


def phase_text(phase: str) -> Text:
    """Write a phase in the colour of how good it is."""
    return Text(phase.replace("_", " "), _PHASE_STYLES.get(phase, BAD))
