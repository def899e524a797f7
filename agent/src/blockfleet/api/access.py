# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of a Unix socket, and what the socket lets it do.

The kernel vouches for a peer's process, user and groups as they were when it connected (``SO_PEERCRED``,
``SO_PEERGROUPS``); they are judged before a byte of the request is read, and what a socket permits is one
table that is consulted before a body is read.
"""

from __future__ import annotations

import array
import enum
import errno
import os
import socket
import struct
from dataclasses import dataclass, field

_CREDENTIALS = struct.Struct("iII")
"""``struct ucred``: pid, uid, gid (unix(7))."""

_SO_PEERGROUPS = 59
"""``asm-generic/socket.h``; the module ``socket`` has no name for it."""

_GROUP_ROOM = 1024
"""Bytes for supplementary groups, the most that ``getsockopt`` of Python takes: 256 groups."""


class Access(enum.Enum):
    """What a socket is for."""

    READ = "read"
    """Look, and ask what a change would do."""
    CHANGE = "change"
    """Everything."""


_READ_METHODS = frozenset({"GET", "HEAD"})
_READ_ROUTES = frozenset({("POST", "/v1/plan")})


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel knows it."""

    pid: int
    uid: int
    groups: frozenset[int]

    def __str__(self) -> str:
        return f"uid={self.uid} pid={self.pid}"


@dataclass(frozen=True, slots=True)
class Gate:
    """Whom one socket admits, and to what.

    ``owner`` is the user that the agent runs as; ``group`` may read, where one is named.
    """

    access: Access
    group: int | None = None
    owner: int = field(default_factory=os.geteuid)

    def admits(self, peer: Peer) -> bool:
        """Tell whether the peer may talk at all: root, the owner, and on the read socket the group."""
        if peer.uid in (0, self.owner):
            return True
        return self.access is Access.READ and self.group is not None and self.group in peer.groups

    def permits(self, method: str, path: str) -> bool:
        """Tell whether a request is within the socket's access; what is not listed is a change."""
        return self.access is Access.CHANGE or method in _READ_METHODS or (method, path) in _READ_ROUTES


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who connected.

    A peer with more supplementary groups than fit counts as being in none of them, so that it is rather
    refused than admitted.  Raises OSError for what is not a connected Unix socket.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    groups = array.array("I")
    try:
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP_ROOM))
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
    return Peer(pid, uid, frozenset([gid, *groups]))
