# SPDX-License-Identifier: GPL-3.0-or-later
"""How I/O may be spread over the connections of a session or the paths of a volume, by name."""

from __future__ import annotations

import enum

MAXIMUM_CONNECTIONS = 8
"""Connections of one session, and MaxConnections as it is offered where more than one is wanted."""

MAXIMUM_WEIGHT = 65535
"""Heaviest weight of a connection or path; 0 is the lightest."""


class LoadBalancePolicy(enum.StrEnum):
    """How I/O is spread (Microsoft guide, "Load Balance Policies")."""

    FAIL_OVER_ONLY = "fail_over_only"
    ROUND_ROBIN = "round_robin"
    ROUND_ROBIN_WITH_SUBSET = "round_robin_with_subset"
    WEIGHTED_PATH = "weighted_path"
    LEAST_QUEUE_DEPTH = "least_queue_depth"


DEFAULT_CONNECTION_POLICY = LoadBalancePolicy.ROUND_ROBIN
"""What spreads commands over connections unless another policy is declared."""
