# SPDX-License-Identifier: GPL-3.0-or-later
"""The NBD servers that are measured: ours, in this or another checkout, and the peers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import PeerProcess, run, wait_for

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Checkout:
    """A source tree of the product and the interpreter that runs it."""

    root: Path

    @property
    def python(self) -> str:
        own = self.root / ".venv" / "bin" / "python"
        return str(own) if own.exists() else sys.executable

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.root / "agent" / "src")}


@dataclass(frozen=True)
class Unit:
    """Where the measured unit is."""

    target: str
    lun: int
    portal: str
    size: int

    @property
    def url(self) -> str:
        return f"iscsi://{self.portal}/{self.target}/{self.lun}"


class Server:
    """A process that serves NBD on ``socket``."""

    def __init__(self, process: PeerProcess, socket: Path, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self.socket = socket

    def cpu(self) -> float:
        """Seconds of CPU time that the process has used, all threads together."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self._process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def start_engine(checkout: Checkout, unit: Unit) -> Server:
    """Start a checkout's engine process and let it serve the unit."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    process = PeerProcess(
        [checkout.python, "-m", "blockfleet.engine.main", "--runtime-dir", str(folder)],
        folder / "log",
        checkout.environment,
    )
    _wait(process, folder / "engine.sock")
    socket = _ask(checkout, HERE / "publish.py", str(folder), unit.target, str(unit.lun), unit.portal).strip()
    return Server(process, Path(socket), folder)


def start_qemu_nbd(unit: Unit) -> Server:
    """Start qemu-nbd over libiscsi."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    socket = folder / "qemu.sock"
    command = ["qemu-nbd", "--persistent", "--shared=16", "-f", "raw", "-k", str(socket), unit.url]
    process = PeerProcess(command, folder / "log")
    _wait(process, socket)
    return Server(process, socket, folder)


def start_memory(checkout: Checkout, size: int) -> Server:
    """Start our NBD server alone over a disk in memory."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    socket = folder / "memory.sock"
    command = [checkout.python, str(HERE / "memory_export.py"), str(socket), str(size >> 20)]
    process = PeerProcess(command, folder / "log", checkout.environment)
    _wait(process, socket)
    return Server(process, socket, folder)


def start_nbdkit_memory(size: int) -> Server:
    """Start nbdkit over a disk in memory."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    socket = folder / "nbdkit.sock"
    process = PeerProcess(["nbdkit", "-f", "-U", str(socket), "memory", str(size)], folder / "log")
    _wait(process, socket)
    return Server(process, socket, folder)


def measure_initiator(checkout: Checkout, unit: Unit, length: int, depth: int, seconds: float) -> str:
    """Run our initiator's driver; return what it prints."""
    arguments = (unit.portal, unit.target, str(unit.lun), str(length), str(depth), str(seconds))
    return _ask(checkout, HERE / "initiator.py", *arguments)


def run_iscsi_perf(unit: Unit, length: int, depth: int, seconds: int) -> tuple[str, float]:
    """Run libiscsi's ``iscsi-perf``; return what it prints and the CPU seconds it used."""
    used = os.times()
    output = run("iscsi-perf", "-b", length // 512, "-m", depth, "-t", seconds, unit.url)
    now = os.times()
    return output, now.children_user + now.children_system - used.children_user - used.children_system


def _ask(checkout: Checkout, script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [checkout.python, str(script), *arguments],
        env=checkout.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} of {checkout.root} failed: {done.stderr[-2000:]}")
    return done.stdout


def _wait(process: PeerProcess, socket: Path) -> None:
    ready: Callable[[], bool] = socket.exists
    wait_for(lambda: not process.running or ready(), str(socket))
    if not process.running:
        raise RuntimeError(f"the server ended: {process.output[-2000:]}")
