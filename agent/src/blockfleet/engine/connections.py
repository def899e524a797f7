# SPDX-License-Identifier: GPL-3.0-or-later
"""The connections of a session between the control protocol and the transport."""

from __future__ import annotations

from collections.abc import Sequence

from blockfleet.balance.policy import SELECTORS
from blockfleet.engine.interface import ConnectionPhase, ConnectionSet, ConnectionState
from blockfleet.model.load_balance import LoadBalancePolicy
from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionPhase as NetPhase
from blockfleet.net.connections import ConnectionSpec, ConnectionStatus

_PHASES = {
    NetPhase.CONNECTING: ConnectionPhase.CONNECTING,
    NetPhase.LOGGED_IN: ConnectionPhase.LOGGED_IN,
    NetPhase.RECOVERING: ConnectionPhase.RECOVERING,
    NetPhase.LEAVING: ConnectionPhase.LEAVING,
    NetPhase.FAILED: ConnectionPhase.FAILED,
}


def further_connections(wanted: ConnectionSet, own: Portal) -> tuple[ConnectionSpec, ...]:
    """Return what the transport is asked for besides the leading connection; ``own`` is the session's portal."""
    return tuple(
        ConnectionSpec(
            portal=Portal.parse(connection.portal) if connection.portal else own,
            weight=connection.weight,
            standby=connection.standby,
        )
        for connection in wanted.further
    )


def connection_states(
    statuses: Sequence[ConnectionStatus], policy: LoadBalancePolicy
) -> tuple[ConnectionState, ...]:
    """Describe connections; which of them the policy uses is what the policy says of those that are logged in."""
    selector = SELECTORS[policy]()
    selector.update([status for status in statuses if status.phase is NetPhase.LOGGED_IN])
    return tuple(
        ConnectionState(
            cid=status.cid,
            portal=str(status.portal),
            phase=_PHASES[status.phase],
            active=status.phase is NetPhase.LOGGED_IN and selector.is_active(status),
            weight=status.weight,
            standby=status.standby,
            commands=status.commands,
            in_flight=status.in_flight,
            bytes_in=status.bytes_in,
            bytes_out=status.bytes_out,
            error=status.error,
        )
        for status in statuses
    )
