# SPDX-License-Identifier: GPL-3.0-or-later
"""IP packets for the PDUs of a trace: what tcpdump would have seen, one PDU after the other.

Addresses, ports and times are the connection's own; sequence numbers count the bytes of each direction from the
beginning of the connection or, where the trace began later, from its login on.  They begin with another number for
each connection: by that a reader tells a connection from an earlier one between the same ports.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAXIMUM_PAYLOAD = 65535 - 40
"""TCP payload of an IPv4 packet of the greatest length (RFC 791 3.1); an IPv6 packet takes as much."""

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_PSEUDO = struct.Struct(">HH")
_TCP = struct.Struct(">HHIIBBHHH")

_PROTOCOL = 6
_HOPS = 64
_WINDOW = 65535
_SYN_OPTIONS = struct.pack(">BBHBBBB", 2, 4, MAXIMUM_PAYLOAD, 1, 3, 3, 14)
"""MSS (RFC 9293 3.2), NOP, and a window scale (RFC 7323 2.2) for a window that no burst fills."""

_FIN, _SYN, _RST, _PSH, _ACK = 0x01, 0x02, 0x04, 0x08, 0x10

_MODULO = 1 << 32
_APART = 0x9E3779B1
"""Between the initial sequence numbers of two connections; odd, so that all of them differ."""

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as far as it was kept, and how long it was."""

    data: bytes
    length: int


class Conversation:
    """One TCP connection between this host and a target; ``number`` is the connection's in its trace."""

    def __init__(self, number: int, local: Endpoint, remote: Endpoint) -> None:
        ends = [(ipaddress.ip_address(host.partition("%")[0]).packed, port) for host, port in (local, remote)]
        self._ends = tuple(ends)
        self._next = [0, 0]
        """Next sequence number of each direction, outbound first, counted from the initial one."""
        self._initial = number * _APART

    def opening(self) -> Iterator[Packet]:
        """Yield the handshake, by which a reader knows who connected and where sequence numbers begin."""
        yield self._packet(False, 0, _SYN, options=_SYN_OPTIONS)
        self._next[False] = 1
        yield self._packet(True, 0, _SYN | _ACK, options=_SYN_OPTIONS)
        self._next[True] = 1
        yield self._packet(False, 1, _ACK)

    def pdu(self, inbound: bool, offset: int, length: int, kept: bytes) -> Iterator[Packet]:
        """Yield a PDU whose first byte is the ``offset``-th of its direction, in as many packets as it needs."""
        for start in range(0, length, MAXIMUM_PAYLOAD):
            size = min(length - start, MAXIMUM_PAYLOAD)
            flags = _ACK | (_PSH if start + size == length else 0)
            yield self._packet(inbound, 1 + offset + start, flags, kept=kept[start : start + size], size=size)
        self._next[inbound] = 1 + offset + length

    def closing(self, reset: bool) -> Iterator[Packet]:
        """Yield the end of the connection."""
        yield self._packet(False, self._next[False], _RST | _ACK if reset else _FIN | _ACK)

    def _packet(
        self,
        inbound: bool,
        sequence: int,
        flags: int,
        *,
        kept: bytes = b"",
        size: int = 0,
        options: bytes = b"",
    ) -> Packet:
        (source, source_port), (destination, destination_port) = self._ends[:: -1 if inbound else 1]
        acknowledged = self._initial + self._next[not inbound] if flags & _ACK else 0
        header = _TCP.size + len(options)

        def tcp(checksum: int) -> bytes:
            return (
                _TCP.pack(
                    source_port,
                    destination_port,
                    (self._initial + sequence) % _MODULO,
                    acknowledged % _MODULO,
                    header // 4 << 4,
                    flags,
                    _WINDOW,
                    checksum,
                    0,
                )
                + options
            )

        length = header + size
        # Of a packet that was cut the checksum cannot be known, nor will a reader look at it.
        pseudo = source + destination + _PSEUDO.pack(_PROTOCOL, length)
        segment = tcp(_checksum(pseudo + tcp(0) + kept)) + kept
        network = _network(source, destination, length)
        return Packet(network + segment, len(network) + length)


def _network(source: bytes, destination: bytes, length: int) -> bytes:
    if len(source) == 16:
        return _IPV6.pack(6 << 28, length, _PROTOCOL, _HOPS, source, destination)
    fields = (0x45, 0, _IPV4.size + length, 0, 0x4000, _HOPS, _PROTOCOL)
    checksum = _checksum(_IPV4.pack(*fields, 0, source, destination))
    return _IPV4.pack(*fields, checksum, source, destination)


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071): the ones' complement sum is the number modulo 65535."""
    if len(data) & 1:
        data += b"\0"
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF
