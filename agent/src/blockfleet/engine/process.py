# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a process an engine: one per runtime directory, no core dumps, enough descriptors."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
from pathlib import Path

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

LOCK_NAME = "engine.lock"
DESCRIPTORS = 65536
"""Descriptors that the engine asks for: one a session, one a volume and one a client of a volume."""

_PR_SET_DUMPABLE = 4


class RuntimeLock:
    """Holds a runtime directory for this process; the kernel lets go of it when the process ends, however."""

    def __init__(self, descriptor: int, unclean: bool) -> None:
        self._descriptor = descriptor
        self.unclean = unclean
        """The process that held it last was killed: it has not called :meth:`release`."""

    @classmethod
    def acquire(cls, runtime: Path) -> RuntimeLock:
        """Take the lock, creating the directory (mode 0700) where it is missing.

        Raises ``STATE_LOCKED`` naming the holder, or ``INITIATOR_ERROR`` where the directory cannot be used.
        """
        try:
            runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(
                runtime / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600
            )
        except OSError as error:
            raise BlockfleetError(
                Isdsc.INITIATOR_ERROR,
                f"cannot use the runtime directory {runtime}: {error.strerror}",
                remedy="give --runtime-dir a directory that this user may write to",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise BlockfleetError(
                Isdsc.STATE_LOCKED,
                f"another engine ({holder or 'starting'}) already runs on {runtime}",
                remedy="stop it, or give this one another --runtime-dir",
            ) from None
        unclean = os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        return cls(descriptor, unclean)

    def release(self) -> None:
        """Say that the end is clean and let go; the file stays, so that nobody locks one that is about to go."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def forbid_dumps() -> None:
    """Keep memory, which holds CHAP secrets, out of core dumps and away from ptrace (prctl(2))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_DUMPABLE)")


def raise_descriptor_limit() -> None:
    """Lift the soft limit of open files to the hard one, :data:`DESCRIPTORS` at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
