# SPDX-License-Identifier: GPL-3.0-or-later
"""istgt: a target with several connections a session, digests and mutual CHAP, from a configuration of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import PeerProcess, accepts, wait_for
from tests.peers.tgt import Account, with_port

_START_ATTEMPTS = 5

_GLOBAL = """\
[Global]
  NodeBase "iqn.2026-11.com.example.istgt"
  PidFile {folder}/pid
  AuthFile {folder}/auth.conf
  MediaDirectory {folder}
  LogFacility "local7"
  Timeout 30
  NopInInterval {nop_interval}
  DiscoveryAuthMethod {discovery}
  DiscoveryAuthGroup AuthGroup{discovery_group}
  MaxSessions 32
  MaxConnections 4
  MaxR2T 32
  MaxOutstandingR2T 16
  DefaultTime2Wait 2
  DefaultTime2Retain 60
  FirstBurstLength {first_burst}
  MaxBurstLength {max_burst}
  MaxRecvDataSegmentLength {max_segment}
  InitialR2T Yes
  ImmediateData Yes
  DataPDUInOrder Yes
  DataSequenceInOrder Yes
  ErrorRecoveryLevel 0

[UnitControl]
  AuthMethod CHAP Mutual
  AuthGroup AuthGroup{control_group}
  Portal UC1 {control}
  Netmask 127.0.0.1

[PortalGroup1]
{portals}

[InitiatorGroup1]
  InitiatorName "ALL"
  Netmask 127.0.0.0/8
  Netmask [::1]
"""
_UNIT = """
[LogicalUnit{tag}]
  TargetName {name}
  TargetAlias "{alias}"
  Mapping PortalGroup1 InitiatorGroup1
  AuthMethod {method}
  AuthGroup AuthGroup{tag}
  UseDigest {digest}
  UnitType Disk
  UnitInquiry "EXAMPLE" "istgt disk" "0001" "{serial}"
  QueueDepth 64
  LUN0 Storage {path} {size}MB
"""
_DISCOVERY_GROUP = 9999
_CONTROL_GROUP = 10000


@dataclass(frozen=True)
class _Target:
    name: str
    size: int
    account: Account | None
    mutual: Account | None
    digest: str
    serial: str


class Istgt:
    """An istgt; it reads its targets when it starts, so add them before ``start``.

    ``portals`` and ``environment`` are as those of :class:`~tests.peers.tgt.Tgt`; all portals are in group 1.
    """

    def __init__(
        self,
        portals: Sequence[str] = ("127.0.0.1:0",),
        *,
        first_burst: int = 262144,
        max_burst: int = 1048576,
        max_segment: int = 262144,
        nop_interval: int = 20,
        discovery_account: Account | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="istgt-"))
        self.portals: tuple[str, ...] = ()
        self._asked = tuple(portals)
        self._control = ""
        self._discovery_account = discovery_account
        self._environment = os.environ | dict(environment or {})
        self._settings = {
            "first_burst": first_burst,
            "max_burst": max_burst,
            "max_segment": max_segment,
            "nop_interval": nop_interval,
        }
        self._targets: list[_Target] = []
        self._process: PeerProcess | None = None

    def add_target(
        self,
        name: str,
        size: int,
        *,
        account: Account | None = None,
        mutual: Account | None = None,
        digest: str = "Auto",
        serial: str = "",
    ) -> Path:
        """Add a target with one disk at LUN 0; ``digest`` is istgt's ``UseDigest``, as ``Header Data``."""
        serial = serial or f"{len(self._targets) + 1:08d}"
        self._targets.append(_Target(name, size, account, mutual, digest, serial))
        path = self._image(len(self._targets))
        with path.open("wb") as image:
            image.truncate(size)
        return path

    def start(self) -> None:
        """Start it, the first time on free ports, later on those it had."""
        attempts = 1 if self.portals else _START_ATTEMPTS
        for _ in range(attempts):
            if attempts > 1:
                self.portals = tuple(map(with_port, self._asked))
                self._control = with_port("127.0.0.1:0")
            self._configure()
            process = PeerProcess(
                ["istgt", "-D", "-c", str(self.folder / "istgt.conf"), "-p", str(self.folder / "pid")],
                self.folder / "log",
                self._environment,
            )
            wait_for(lambda p=process: not p.running or all(map(accepts, self.portals)), "istgt")
            if process.running:
                self._process = process
                return
        raise AssertionError(f"istgt does not start: {self.log}")

    def stop(self) -> None:
        """End it, as politely as it lets itself be ended."""
        if self._process is not None:
            self._process.stop()

    def kill9(self) -> None:
        """Kill it as a crash would."""
        assert self._process is not None
        self._process.kill()

    def restart(self) -> None:
        """Start it again on the same ports."""
        if self._process is not None:
            self._process.kill()
        self.start()

    def close(self) -> None:
        """End it and remove its disks."""
        if self._process is not None:
            self._process.kill()
        shutil.rmtree(self.folder)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _image(self, tag: int) -> Path:
        return self.folder / f"{tag}.img"

    def _configure(self) -> None:
        text = _GLOBAL.format(
            folder=self.folder,
            discovery="CHAP" if self._discovery_account else "Auto",
            discovery_group=_DISCOVERY_GROUP,
            control_group=_CONTROL_GROUP,
            control=self._control,
            portals="\n".join(f"  Portal DA{n} {portal}" for n, portal in enumerate(self.portals, 1)),
            **self._settings,
        )
        accounts = [_group(_CONTROL_GROUP, Account("control", "controlsecret"), None)]
        accounts.append(_group(_DISCOVERY_GROUP, self._discovery_account, None))
        for tag, target in enumerate(self._targets, 1):
            text += _UNIT.format(
                tag=tag,
                name=target.name,
                alias=f"disk {tag}",
                method="CHAP Mutual" if target.mutual else "CHAP" if target.account else "None",
                digest=target.digest,
                serial=target.serial,
                path=self._image(tag),
                size=target.size >> 20,
            )
            accounts.append(_group(tag, target.account, target.mutual))
        (self.folder / "istgt.conf").write_text(text)
        authentication = self.folder / "auth.conf"
        authentication.touch(mode=0o600)
        authentication.write_text("\n".join(accounts))


def _group(tag: int, account: Account | None, mutual: Account | None) -> str:
    known = account or Account("nobody", "nobodysecret")
    line = f'  Auth "{known.user}" "{known.secret}"'
    if mutual is not None:
        line += f' "{mutual.user}" "{mutual.secret}"'
    return f"[AuthGroup{tag}]\n{line}\n"
