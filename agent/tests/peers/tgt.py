# SPDX-License-Identifier: GPL-3.0-or-later
"""tgtd, the Linux SCSI target framework's user-space target: each has ports and a control socket of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import PeerProcess, accepts, free_port, run, split_portal, wait_for

_START_ATTEMPTS = 5
_CONNECTION = re.compile(r"Initiator: (\S+)(?: alias: .*)?\s+IP Address: (\S+)")


@dataclass(frozen=True)
class Account:
    """A CHAP user and its secret."""

    user: str
    secret: str


@dataclass(frozen=True)
class Connection:
    """A connection as tgtd shows it."""

    session: int
    initiator: str
    address: str


class Tgt:
    """A tgtd; what it was told outlives ``restart``, as it would with a configuration file.

    ``portals`` are ``address:port`` texts; port 0 is replaced by a free one, which stays the same for ever.  All
    targets are seen through all portals, and all portals are of group 1.  ``parent`` is where its folder is made,
    ``environment`` is added to the one that it runs in.
    """

    def __init__(
        self,
        portals: Sequence[str] = ("127.0.0.1:0",),
        options: str = "",
        parent: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tgt-", dir=parent))
        self._asked = tuple(portals)
        self._options = options
        self._environment = os.environ | {"TGT_IPC_SOCKET": str(self.folder / "ctl")} | dict(environment or {})
        self._told: list[tuple[str, ...]] = []
        self._targets: dict[str, int] = {}
        self._process: PeerProcess | None = None
        self.portals: tuple[str, ...] = ()
        self._first: tuple[str, ...] = ()
        self._start_somewhere()

    # --- life ----------------------------------------------------------------------------------------------

    def _start_somewhere(self) -> None:
        """Start on free ports, again if somebody was faster in taking one of them."""
        for _ in range(_START_ATTEMPTS):
            self._first = self.portals = tuple(map(with_port, self._asked))
            if self._start():
                return
        raise AssertionError(f"tgtd does not start: {self.log}")

    def _start(self) -> bool:
        portals = ",".join(f"portal={portal}" for portal in self._first)
        options = f"{portals},{self._options}" if self._options else portals
        process = PeerProcess(["tgtd", "-f", "--iscsi", options], self.folder / "log", self._environment)
        wait_for(lambda: not process.running or self._is_up(), "tgtd")
        self._process = process
        return process.running

    def _is_up(self) -> bool:
        return bool(list(self.folder.glob("ctl.*"))) and all(map(accepts, self._first))

    def kill9(self) -> None:
        """Kill it as a crash would."""
        assert self._process is not None
        self._process.kill()

    def pause(self) -> None:
        """Stop it in its tracks: connections stay, nothing answers."""
        assert self._process is not None
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        assert self._process is not None
        self._process.send(signal.SIGCONT)

    def restart(self) -> None:
        """Start it again, on the same ports, with the same targets and disks."""
        if self._process is not None:
            self._process.kill()
        for control in self.folder.glob("ctl.*"):
            control.unlink()
        assert self._start(), f"tgtd does not start again: {self.log}"
        for command in self._told:
            self._admin(*command)

    def close(self) -> None:
        """End it and remove its disks."""
        if self._process is not None:
            self._process.kill()
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    # --- targets -------------------------------------------------------------------------------------------

    def add_target(
        self, name: str, *, account: Account | None = None, mutual: Account | None = None, initiators: str = "ALL"
    ) -> int:
        """Make a target that demands ``account`` of initiators and proves itself by ``mutual``."""
        tid = len(self._targets) + 1
        self._tell("target", "new", "--tid", str(tid), "--targetname", name)
        for known, outgoing in ((account, ()), (mutual, ("--outgoing",))):
            if known is not None:
                self._tell("account", "new", "--user", known.user, "--password", known.secret)
                self._tell("account", "bind", "--tid", str(tid), "--user", known.user, *outgoing)
        self._tell("target", "bind", "--tid", str(tid), "--initiator-address", initiators)
        self._targets[name] = tid
        return tid

    def add_unit(self, target: str, size: int, lun: int = 1, **parameters: str | int) -> Path:
        """Add a disk in a sparse file; ``parameters`` are tgtadm's, as ``scsi_id``, ``scsi_sn``, ``readonly``."""
        path = self.folder / f"{self._targets[target]}-{lun}.img"
        if not path.exists():
            with path.open("wb") as image:
                image.truncate(size)
        where = ("--tid", str(self._targets[target]), "--lun", str(lun))
        block = parameters.pop("block_size", None)
        self._tell(
            "logicalunit",
            "new",
            *where,
            "--backing-store",
            str(path),
            *(("--blocksize", str(block)) if block else ()),
        )
        if parameters:
            values = ",".join(f"{name}={value}" for name, value in parameters.items())
            self._tell("logicalunit", "update", *where, "--params", values)
        return path

    def share_unit(self, target: str, path: Path, lun: int = 1, **parameters: str | int) -> None:
        """Show the disk of another target in this one too."""
        where = ("--tid", str(self._targets[target]), "--lun", str(lun))
        self._tell("logicalunit", "new", *where, "--backing-store", str(path))
        if parameters:
            values = ",".join(f"{name}={value}" for name, value in parameters.items())
            self._tell("logicalunit", "update", *where, "--params", values)

    def remove_unit(self, target: str, lun: int = 1) -> None:
        """Take a unit away under its initiators' feet."""
        self._tell("logicalunit", "delete", "--tid", str(self._targets[target]), "--lun", str(lun))

    def set(self, target: str, name: str, value: str) -> None:
        """Set a target parameter, as ``HeaderDigest`` to ``CRC32C`` or ``RedirectAddress``."""
        self._tell("target", "update", "--tid", str(self._targets[target]), "--name", name, "--value", value)

    def add_portal(self, portal: str) -> str:
        """Listen at one more portal; port 0 is replaced by a free one."""
        portal = with_port(portal)
        self._tell("portal", "new", "--param", f"portal={portal}")
        self.portals += (portal,)
        return portal

    def remove_portal(self, portal: str) -> None:
        """Stop listening at a portal."""
        self._tell("portal", "delete", "--param", f"portal={portal}")
        self.portals = tuple(known for known in self.portals if known != portal)

    def connections(self, target: str) -> list[Connection]:
        """Return the connections of a target."""
        shown = self._admin("conn", "show", "--tid", str(self._targets[target]))
        found = []
        for session in re.split(r"^Session: ", shown, flags=re.MULTILINE)[1:]:
            number = int(session.split(maxsplit=1)[0])
            found += [Connection(number, name, address) for name, address in _CONNECTION.findall(session)]
        return found

    def drop_connections(self, target: str) -> None:
        """Close every connection of a target from its side; tgtd takes new ones at once."""
        tid = str(self._targets[target])
        for connection in self.connections(target):
            self._admin("conn", "delete", "--tid", tid, "--sid", str(connection.session), "--cid", "0")

    def _tell(self, mode: str, operation: str, *arguments: str) -> None:
        self._admin(mode, operation, *arguments)
        self._told.append((mode, operation, *arguments))

    def _admin(self, mode: str, operation: str, *arguments: str) -> str:
        return run(
            *("tgtadm", "--lld", "iscsi", "--mode", mode, "--op", operation, *arguments),
            environment=self._environment,
        )


def with_port(portal: str) -> str:
    """Replace port 0 by a free one."""
    address, port = split_portal(portal)
    shown = f"[{address}]" if ":" in address else address
    return f"{shown}:{port or free_port(address)}"
