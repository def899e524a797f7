# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd notification protocol (sd_notify(3)): ready, stopping, watchdog."""

from __future__ import annotations

import asyncio
import os
import socket


def notify(*assignments: str) -> bool:
    """Tell the service manager ``READY=1``, ``STATUS=...``; false when none listens (no NOTIFY_SOCKET).

    A socket name that begins with ``@`` is in the abstract namespace.  A manager that has gone is no error of
    the service: false again.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(address)
            channel.sendall("\n".join(assignments).encode())
        except OSError:
            return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1``, half of what the manager allows; None when it does not watch us."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    watched = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not (microseconds.isascii() and microseconds.isdigit()) or watched != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000 or None


async def keep_alive() -> None:
    """Send ``WATCHDOG=1`` from the running event loop until cancelled, so that a stuck loop is noticed."""
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
