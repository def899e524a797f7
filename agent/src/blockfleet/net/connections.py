# SPDX-License-Identifier: GPL-3.0-or-later
"""The connections of one session: which are wanted, and what is there to see of each."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from blockfleet.model.portal import Portal

MAXIMUM_CONNECTIONS = 8
"""Connections of one session, and MaxConnections as it is offered where more than one is wanted."""


class ConnectionPhase(enum.StrEnum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    LOGGED_IN = "logged_in"
    RECOVERING = "recovering"
    """Lost; its tasks go on elsewhere, or here after it is back."""
    LEAVING = "leaving"
    """Takes no new commands; logged out when those that it has are done."""
    FAILED = "failed"
    """The last login of it failed; tried again later."""


@dataclass(frozen=True, slots=True)
class ConnectionSpec:
    """A further connection of a session, besides the leading one.

    ``weight`` and ``standby`` matter to the load balance policies that look at them.  Two connections may go to the
    same portal.
    """

    portal: Portal
    weight: int = 0
    standby: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection as it is; ``bytes_in`` and ``bytes_out`` count the data of SCSI commands.

    ``cid`` is None before the first login of a further connection; ``error`` is why it is not logged in.
    """

    cid: int | None
    portal: Portal
    phase: ConnectionPhase
    weight: int
    standby: bool
    commands: int
    in_flight: int
    bytes_in: int
    bytes_out: int
    error: str = ""
