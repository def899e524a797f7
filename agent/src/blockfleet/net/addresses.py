# SPDX-License-Identifier: GPL-3.0-or-later
"""From a portal to a TCP connection: every address of a name is tried."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal

STAGGER = 0.25
"""Seconds after which the next address is tried while the one before has not answered (RFC 8305 section 5)."""

MAXIMUM_ADDRESSES = 8
"""Addresses of one host name that are tried."""


async def resolve(portal: Portal) -> list[str]:
    """Return the IP addresses of a portal in the resolver's order, with their zones.

    Raises :class:`BlockfleetError` (DNS_NAME_UNRESOLVED).
    """
    if portal.is_address:
        return [portal.host]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BlockfleetError(
            Isdsc.DNS_NAME_UNRESOLVED,
            f"cannot find an address for portal {portal}: {error.strerror or error}",
            remedy="check the host name and the resolver",
        ) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return addresses[:MAXIMUM_ADDRESSES]


async def connect(portal: Portal, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
    """Connect to a portal; the first of its addresses that answers wins, the other attempts are given up.

    Raises :class:`BlockfleetError` (CONNECTION_FAILED) naming why each address failed.  The caller bounds the time.
    """
    loop = asyncio.get_running_loop()
    addresses = await resolve(portal)
    failures: list[str] = []
    attempts: dict[asyncio.Task[socket.socket], str] = {}
    waiting = list(addresses)
    try:
        while waiting or attempts:
            if waiting:
                address = waiting.pop(0)
                attempts[asyncio.ensure_future(_open(address, portal.port))] = address
            done, _ = await asyncio.wait(
                attempts, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                address = attempts.pop(attempt)
                error = attempt.exception()
                if error is None:
                    await loop.create_connection(protocol, sock=attempt.result())
                    return
                failures.append(f"{address}: {_reason(error)}" if len(addresses) > 1 else _reason(error))
    finally:
        await _give_up(attempts)
    raise BlockfleetError(
        Isdsc.CONNECTION_FAILED,
        f"cannot connect to portal {portal}: {'; '.join(failures)}",
        remedy="check the address, the port and that the target serves it",
    )


async def _give_up(attempts: dict[asyncio.Task[socket.socket], str]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(result, socket.socket):
            result.close()


async def _open(address: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    # A zone ("%eth0") becomes the scope number of the socket address here.
    family, kind, number, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind, number)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()  # asyncio's own text repeats the address in place of the cause
    return str(error)


def redirect_allowed(origin: Portal, moved_to: str) -> bool:
    """Tell whether a redirect to an IP address may be followed: never to one that no portal has.

    A target on the network must not send this host to its own loopback, to a multicast address or to the
    unspecified one.
    """
    address = ipaddress.ip_address(moved_to)
    if address.is_multicast or address.is_unspecified:
        return False
    if address.is_loopback or address.is_link_local:
        if not origin.is_address:
            return False
        start = ipaddress.ip_address(origin.host)
        return start.is_loopback if address.is_loopback else start.is_link_local
    return True
