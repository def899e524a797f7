# SPDX-License-Identifier: GPL-3.0-or-later
"""LIO, the iSCSI target of the Linux kernel, in a virtual machine; ``tests/e2e/vm/build`` makes its image.

Unlike the user-space targets it knows error recovery levels 1 and 2 and several connections a session.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cpio import archive
from tests.peers.process import PeerProcess, free_port, wait_for
from tests.peers.tgt import Account

IMAGE = Path(__file__).parents[3] / "build" / "vm"
READY_TIMEOUT = 90.0
"""Seconds from the start of the machine to its targets; an emulated processor takes 6 to 10 if left alone."""
CONTROL_TIMEOUT = 30.0
"""Seconds that a command in the guest may take."""
LAST_LINES = 80
"""Lines of the console that a failure shows."""
GUEST_ADDRESS = "10.0.2.15"
_FIRST_PORT = 3260
_SYSTEM = "/sys/kernel/config/target"
_START_ATTEMPTS = 3
_FAULTS = ("BUG:", "WARNING:", "Oops:", "refcount_t:", "Kernel panic", "blocked for more than")
_LOGGED = "loglevel=5"
"""What the kernel says on the console: warnings, and what is worse."""


@dataclass(frozen=True)
class LioDisk:
    """A disk in the guest's memory, seen by ``name``.

    Disks of one ``ram`` (0 to 7) share their bytes and, where it is the same, their identity, which comes from
    ``serial`` (hexadecimal digits).  ``write_delay`` is in seconds: a write reaches the bytes so much later, and is
    answered then.  A disk with ``write_cache`` is a file with bytes of its own.
    """

    name: str
    size: int = 16 << 20
    ram: int = 0
    write_delay: float = 0.0
    write_cache: bool = False
    serial: str = "b10cf1ee70000001"


@dataclass(frozen=True)
class LioTarget:
    """A target with its disks by LUN and the keys that it offers.

    ``initiators`` are let in, with CHAP where there is an ``account``; without any, everybody is.  ``portals``
    says at which of the machine's portals it is seen.
    """

    name: str
    luns: dict[int, str]
    portals: tuple[int, ...] = (0,)
    initiators: tuple[str, ...] = ()
    account: Account | None = None
    mutual: Account | None = None
    error_recovery_level: int = 0
    max_connections: int = 1
    header_digest: str = "CRC32C,None"
    data_digest: str = "CRC32C,None"
    parameters: tuple[tuple[str, str], ...] = ()
    """Further keys, as ``("MaxBurstLength", "65536")``."""


class Lio:
    """A machine that runs until ``close``; it is ready when the constructor returns.

    ``portals`` are ``address:port`` texts on the loopback interface, as many as the targets ask for.  Inside, all
    of them are ports of ``GUEST_ADDRESS``, and that is what SendTargets shows.
    """

    def __init__(self, targets: Sequence[LioTarget], disks: Sequence[LioDisk] = (LioDisk("disk"),)) -> None:
        assert (IMAGE / "guest.cpio").exists(), "no image of the guest: run tests/e2e/vm/build as root"
        self.folder = Path(tempfile.mkdtemp(prefix="lio-"))
        self.targets = tuple(targets)
        self.portals: tuple[str, ...] = ()
        self._control: socket.socket | None = None
        self._process: PeerProcess | None = None
        self._looked_at = 0
        initial = self.folder / "initrd"
        initial.touch(mode=0o600)
        script = _configuration(self.targets, disks).encode()
        initial.write_bytes((IMAGE / "guest.cpio").read_bytes() + archive({"configure": (0o600, script)}))
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine and forget it."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
        shutil.rmtree(self.folder)

    @property
    def log(self) -> str:
        """What the guest's kernel and first process said."""
        console = self.folder / "console"
        return console.read_text(errors="replace") if console.exists() else ""

    @property
    def last_words(self) -> str:
        """The end of ``log``."""
        return "\n".join(self.log.splitlines()[-LAST_LINES:])

    # --- while it runs -------------------------------------------------------------------------------------

    def control(self, command: str, within: float = CONTROL_TIMEOUT) -> str:
        """Run a line of shell in the guest and return what it printed; AssertionError where it fails."""
        assert self._control is not None
        assert "\n" not in command
        self._control.settimeout(within)
        self._control.sendall(command.encode() + b"\n")
        answer = bytearray()
        while not (b"\x04" in answer and answer.endswith(b"\n")):
            part = self._control.recv(65536)
            assert part, f"the guest has gone: {self.last_words}"
            answer += part
        output, _, status = bytes(answer).decode(errors="replace").rpartition("\x04")
        assert int(status) == 0, f"{command} exited with {int(status)}: {output}"
        return output

    def configure(
        self,
        target: str,
        *,
        error_recovery_level: int = 0,
        max_connections: int = 1,
        header_digest: str = "CRC32C,None",
        data_digest: str = "CRC32C,None",
        **parameters: str,
    ) -> None:
        """Change what a target offers from the next login on; sessions that there are stay as they are."""
        keys = {
            "ErrorRecoveryLevel": str(error_recovery_level),
            "MaxConnections": str(max_connections),
            "HeaderDigest": header_digest,
            "DataDigest": data_digest,
        } | parameters
        group = _group(target)
        (named,) = (one.initiators for one in self.targets if one.name == target)
        # LIO answers ErrorRecoveryLevel with this; an initiator's own is a copy that is made with its entry.
        places = [group, *(f"{group}/acls/{initiator}" for initiator in named)]
        lines = [f"echo {error_recovery_level} > {place}/attrib/default_erl" for place in places]
        lines += [f"echo '{value}' > {group}/param/{name}" for name, value in keys.items()]
        self.control(" && ".join(lines))

    def faults(self) -> list[str]:
        """Return what the guest's kernel has found wrong with itself since it was asked last.

        A machine that has ended, as it does when its kernel cannot go on, has that for a fault.
        """
        gone = []
        try:
            self.control("true")
        except (AssertionError, OSError) as error:
            gone = [f"the guest does not answer: {str(error) or type(error).__name__}".splitlines()[0]]
        log = self.log
        said, self._looked_at = log[self._looked_at :].splitlines(), len(log)
        return [line for line in said if any(mark in line for mark in _FAULTS)] + gone

    def drop_sessions(self, target: str) -> None:
        """Close the portals of a target with every session, and open them again."""
        enable = f"{_group(target)}/enable"
        self.control(f"echo 0 > {enable} && echo 1 > {enable}")

    def session(self, target: str, initiator: str) -> str:
        """Return what LIO shows of the session of an initiator that the target names."""
        return self.control(f"cat {_group(target)}/acls/{initiator}/info")

    def writes_held(self, disk: str) -> int:
        """Return how many writes a disk with a delay has taken that its bytes have not seen yet."""
        return int(self.control(f"dmsetup status {disk}").split()[4])

    # --- start ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        ports = 1 + max(portal for target in self.targets for portal in target.portals)
        for _ in range(_START_ATTEMPTS):
            self.portals = tuple(f"127.0.0.1:{free_port()}" for _ in range(ports))
            process = self._process = PeerProcess(self._command(), self.folder / "qemu.log")
            wait_for(
                lambda p=process: not p.running or "READY" in self.log or "FAILED" in self.log,  # type: ignore[misc]
                "LIO",
                READY_TIMEOUT,
            )
            if "READY" in self.log:
                self._control = socket.socket(socket.AF_UNIX)
                self._control.connect(str(self.folder / "control"))
                self._looked_at = len(self.log)
                return
            process.kill()
            # Somebody else was faster in taking a port: then, and only then, is another attempt worth it.
            if "Could not set up host forwarding rule" not in process.output:
                break
        raise AssertionError(f"LIO does not start: {self.log} {(self.folder / 'qemu.log').read_text()}")

    def _command(self) -> list[str]:
        forwards = "".join(
            f",hostfwd=tcp:{portal}-:{_FIRST_PORT + number}" for number, portal in enumerate(self.portals)
        )
        # "max" without la57 spares the boot a second pass over its page tables.
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024", "-smp", "2"),
            *("-display", "none", "-no-reboot", "-nodefaults", "-monitor", "none"),
            *("-kernel", str(IMAGE / "vmlinuz"), "-initrd", str(self.folder / "initrd")),
            *("-append", f"console=ttyS0 {_LOGGED} oops=panic panic=-1 mitigations=off"),
            *("-serial", f"file:{self.folder / 'console'}"),
            *("-serial", f"unix:{self.folder / 'control'},server=on,wait=off"),
            *("-netdev", f"user,id=n0,restrict=off{forwards}", "-device", "virtio-net-pci,netdev=n0,romfile="),
        ]


def _group(target: str) -> str:
    return f"{_SYSTEM}/iscsi/{target}/tpgt_1"


def _configuration(targets: Sequence[LioTarget], disks: Sequence[LioDisk]) -> str:
    """Return the shell script that makes disks and targets through configfs."""
    places = {
        disk.name: f"{_SYSTEM}/core/{'fileio' if disk.write_cache else 'iblock'}_{number}/{disk.name}"
        for number, disk in enumerate(disks)
    }
    lines = [line for disk in disks for line in _disk_lines(disk, places[disk.name])]
    lines.append(f"mkdir {_SYSTEM}/iscsi")
    lines += [line for target in targets for line in _target_lines(target, places)]
    return "\n".join([*lines, ""])


def _disk_lines(disk: LioDisk, place: str) -> list[str]:
    lines = [f"mkdir -p {place}"]
    if disk.write_cache:
        lines.append(f"echo fd_dev_name=/d/{disk.name},fd_dev_size={disk.size},fd_buffered_io=1 > {place}/control")
    else:
        back = f"/dev/ram{disk.ram} 0"
        table = f"delay {back} 0 {back} {int(disk.write_delay * 1000)}" if disk.write_delay else f"linear {back}"
        lines += [
            f"dmsetup create {disk.name} --noudevsync --noudevrules --table '0 {disk.size // 512} {table}'",
            f"dmsetup mknodes {disk.name}",
            f"echo udev_path=/dev/mapper/{disk.name} > {place}/control",
        ]
    return [*lines, f"echo 1 > {place}/enable", f"echo {disk.serial} > {place}/wwn/vpd_unit_serial"]


def _target_lines(target: LioTarget, places: dict[str, str]) -> list[str]:
    group = _group(target.name)
    keys = {
        "ErrorRecoveryLevel": str(target.error_recovery_level),
        "MaxConnections": str(target.max_connections),
        "HeaderDigest": target.header_digest,
        "DataDigest": target.data_digest,
    } | dict(target.parameters)
    attributes = {
        "authentication": int(target.account is not None),
        # LIO answers the key with this, not with the key's own setting.
        "default_erl": target.error_recovery_level,
        "generate_node_acls": int(not target.initiators),
        "cache_dynamic_acls": int(not target.initiators),
        "demo_mode_write_protect": 0,
    }
    lines = [f"mkdir -p {group}"]
    lines += [f"echo {value} > {group}/attrib/{name}" for name, value in attributes.items()]
    lines += [f"echo '{value}' > {group}/param/{name}" for name, value in keys.items()]
    for lun, disk in target.luns.items():
        lines += [f"mkdir {group}/lun/lun_{lun}", f"ln -s {places[disk]} {group}/lun/lun_{lun}/unit"]
    for initiator in target.initiators:
        lines += _initiator_lines(target, group, f"{group}/acls/{initiator}")
    # With 0.0.0.0, SendTargets would show the port that was asked in place of each port.
    lines += [f"mkdir {group}/np/{GUEST_ADDRESS}:{_FIRST_PORT + number}" for number in target.portals]
    return [*lines, f"echo 1 > {group}/enable"]


def _initiator_lines(target: LioTarget, group: str, place: str) -> list[str]:
    lines = [f"mkdir {place}"]
    accounts = {"": target.account, "_mutual": target.mutual}
    for suffix, account in accounts.items():
        if account is not None:
            lines += [
                f"echo -n '{account.user}' > {place}/auth/userid{suffix}",
                f"echo -n '{account.secret}' > {place}/auth/password{suffix}",
            ]
    for lun in target.luns:
        lines += [f"mkdir {place}/lun_{lun}", f"ln -s {group}/lun/lun_{lun} {place}/lun_{lun}/unit"]
    return lines
