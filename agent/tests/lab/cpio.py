# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives that the kernel unpacks at boot behind one another (Linux, driver-api/early-userspace/buffer-format)."""

from __future__ import annotations

from collections.abc import Mapping

_ALIGNMENT = 4
_REGULAR = 0o100000
_END = "TRAILER!!!"


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return a "newc" archive of files of root's, each with its permissions and its bytes."""
    made = bytearray()
    for number, (name, (permissions, data)) in enumerate(files.items(), 1):
        made += _entry(number, name, _REGULAR | permissions, data)
    return bytes(made + _entry(0, _END, 0, b""))


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    path = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and special device in two parts each, name, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + path) + _padded(data)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % _ALIGNMENT)
