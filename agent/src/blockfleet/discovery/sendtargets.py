# SPDX-License-Identifier: GPL-3.0-or-later
"""SendTargets discovery (RFC 3720 3.3, appendix D): ask one portal which targets it knows."""

from __future__ import annotations

from blockfleet.discovery.found import FoundPortal, collect
from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.model.portal import Portal
from blockfleet.net.discovery_session import send_targets


async def discover(
    initiator_name: str,
    portal: Portal,
    credentials: ChapCredentials | None,
    *,
    isid: bytes,
    timeout: float,
) -> tuple[FoundPortal, ...]:
    """Log in to the discovery service at ``portal`` with credentials of its own, and return what it shows.

    All addresses of a host name are tried; ``timeout`` is in seconds.  Raises :class:`BlockfleetError` naming
    the portal and the cause: not reachable, no answer in time, refused, not an iSCSI target.
    """
    records = await send_targets(initiator_name, portal, credentials, isid=isid, timeout=timeout)
    return collect(
        (FoundPortal(record.name, address, tag) for record in records for address, tag in record.portals),
        f"portal {portal}",
    )
