# SPDX-License-Identifier: GPL-3.0-or-later
"""One agent to a state folder: an advisory lock that goes with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

LOCK_FILE = "lock"


class FolderLock:
    """Held from construction to :meth:`release`; raises BlockfleetError STATE_LOCKED naming the holder."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_FILE
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise BlockfleetError(
                Isdsc.STATE_LOCKED,
                f"another agent (process {holder}) uses {folder}",
                remedy="stop it, or give this one a --state-dir of its own",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another agent in; releasing twice is no error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
