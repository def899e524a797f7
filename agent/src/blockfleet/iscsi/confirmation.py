# SPDX-License-Identifier: GPL-3.0-or-later
"""Confirming StatSN when nothing else is sent that would (RFC 3720 3.2.2.2, 10.18).

A target keeps status, and at higher recovery levels data, until ExpStatSN covers them.  Every request confirms;
only where no command follows for long, and pings are off or rarer than that, a NOP-Out goes out for this alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet.iscsi.pdu import NopOut

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.session import Session

QUIET = 5.0
"""Seconds without a command after which status is confirmed by itself."""


class Confirmation:
    """What the last look at a connection saw, and what was confirmed last; a Login Response needs nothing."""

    __slots__ = ("confirmed", "seen", "since")

    def __init__(self) -> None:
        self.seen = (0, 0)
        self.since = 0.0
        self.confirmed = 0


def scan(session: Session, connection: Connection, now: float) -> None:
    """Confirm StatSN where a connection has been quiet since it advanced."""
    if 0 < session.patience.noop_interval <= QUIET:
        return
    state = connection.confirmation
    seen = (connection.exp_stat_sn, connection.commands)
    if seen != state.seen:
        state.seen = seen
        state.since = now
    elif state.confirmed != connection.exp_stat_sn and now - state.since >= QUIET:
        state.confirmed = connection.exp_stat_sn
        # The reserved Initiator Task Tag: no answer is wanted.
        pdu = NopOut(immediate=True, cmd_sn=session.cmd_sn, exp_stat_sn=connection.exp_stat_sn)
        connection.send(pdu.encode())
