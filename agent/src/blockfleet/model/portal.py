# SPDX-License-Identifier: GPL-3.0-or-later
"""Network portals: an address or host name, a TCP port, and the portal group tag where it is known."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

DEFAULT_PORT = 3260
"""The well-known port of iSCSI (RFC 3720 13, IANA)."""

_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""An interface name or number, as it stands behind the % of a link-local address."""

_HOST_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)


class InvalidPortal(ValueError):
    """The text is not a portal; the message names the text, the fault and the remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Portal:
    """A host (IPv4, IPv6 with optional zone, or name, without brackets) and a port.

    Two spellings of one IP address are equal: addresses are kept in their canonical form.
    """

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Portal:
        """Read ``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or a bare IPv6 address."""
        return parse_target_address(text, allow_tag=False)[0]

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address, not a name that has to be resolved."""
        return _address(self.host) is not None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target_address(text: str, *, allow_tag: bool = True) -> tuple[Portal, int | None]:
    """Read a TargetAddress value ``host[:port][,tag]`` (RFC 3720 12.8); the tag is 0..65535 or None.

    Raises :class:`InvalidPortal`.
    """
    shown = repr(text[:80])
    body, comma, tag_text = text.partition(",")
    tag: int | None = None
    if comma:
        if not allow_tag:
            raise InvalidPortal(f"portal {shown} must not carry a portal group tag: remove the part after ','")
        tag = _number(tag_text, 0, 65535, f"portal group tag in {shown}")
    if body.startswith("["):
        host, bracket, rest = body[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidPortal(f"portal {shown} has an unfinished '[': write [IPv6]:port")
        if not isinstance(_address(host), ipaddress.IPv6Address):
            raise InvalidPortal(f"portal {shown} has no IPv6 address between its brackets")
        port_text = rest[1:] if rest else None
    elif body.count(":") > 1:
        host, port_text = body, None
        if _address(host) is None:
            raise InvalidPortal(f"portal {shown} is not an IPv6 address: write [IPv6]:port")
    else:
        host, colon, number = body.partition(":")
        port_text = number if colon else None
    port = DEFAULT_PORT if port_text is None else _number(port_text, 1, 65535, f"port in {shown}")
    return Portal(_canonical_host(host, shown), port), tag


def _number(text: str, low: int, high: int, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and low <= int(text) <= high):
        raise InvalidPortal(f"{what} must be a number from {low} to {high}, not {text[:20]!r}")
    return int(text)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    zone = getattr(address, "scope_id", None)
    return None if zone is not None and not _ZONE.fullmatch(zone) else address


def _canonical_host(host: str, shown: str) -> str:
    address = _address(host)
    if address is not None:
        return str(address)
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise InvalidPortal(f"portal {shown} has neither an IP address nor a host name before its port")
    # Some resolvers read numbers, also hexadecimal ones, as an IPv4 address.
    if labels[-1].isdigit() or labels[-1].lower().startswith("0x"):
        raise InvalidPortal(f"portal {shown} has a malformed IPv4 address")
    return host.removesuffix(".").lower()
