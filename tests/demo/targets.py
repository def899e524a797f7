# SPDX-License-Identifier: GPL-3.0-or-later
"""The targets that the demonstration can run against: the embedded one, and tgt."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TARGET = "iqn.2026-11.com.example:db"
USER = "demo-host"
MUTUAL_USER = "demo-array"
SIZE_MIB = 256
PATIENCE = 20.0
"""Seconds for a program to come up."""


@dataclass(frozen=True)
class DemoTarget:
    """A target that runs: its portals (one IPv4, one IPv6), the LUN to use, and CHAP as it knows it."""

    portals: list[str]
    lun: int
    algorithms: list[str]


def wait_for(what: str, ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until ``ready()``; ends the demonstration where the program dies or does not come up."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None:
            sys.exit(f"demo: {what} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"demo: {what} did not come up within {PATIENCE:g} s")
        time.sleep(0.05)


def free_port(host: str) -> int:
    """Return a TCP port that nobody uses on ``host``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def start_embedded(folder: Path, start: Callable[..., subprocess.Popen[bytes]]) -> DemoTarget:
    """Start ``blockfleet-testtarget``."""
    portals = [f"127.0.0.1:{free_port('127.0.0.1')}", f"[::1]:{free_port('::1')}"]
    ready = folder / "target.ready"
    arguments = ["--target", TARGET, "--lun", f"0:ram:{SIZE_MIB}M", "--ready-file", str(ready)]
    for portal in portals:
        arguments += ["--portal", portal]
    arguments += ["--chap-user", USER, "--chap-secret-file", str(folder / "secret")]
    arguments += ["--mutual-user", MUTUAL_USER, "--mutual-secret-file", str(folder / "mutual-secret")]
    process = start("target", str(Path(sys.executable).parent / "blockfleet-testtarget"), *arguments)
    wait_for("the test target", ready.exists, process)
    return DemoTarget(portals, 0, ["sha3-256", "sha256", "sha1", "md5"])


def start_tgt(folder: Path, start: Callable[..., subprocess.Popen[bytes]]) -> DemoTarget:
    """Start ``tgtd`` in the foreground on ports of its own, with one file-backed LUN."""
    tgtd = shutil.which("tgtd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if tgtd is None:
        sys.exit("demo: DEMO_TARGET=tgt needs tgtd: install the Debian package tgt")
    port4, port6 = free_port("127.0.0.1"), free_port("::1")
    os.environ["TGT_IPC_SOCKET"] = str(folder / "tgtd.ipc")
    portals = [f"127.0.0.1:{port4}", f"[::1]:{port6}"]
    process = start("tgtd", tgtd, "-f", "--iscsi", ",".join(f"portal={portal}" for portal in portals))
    admin = shutil.which("tgtadm", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or "tgtadm"

    def tgtadm(*arguments: str) -> bool:
        command = [admin, "--lld", "iscsi", *arguments]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def must(*arguments: str) -> None:
        if not tgtadm(*arguments):
            sys.exit(f"demo: tgtadm {' '.join(arguments[:4])} failed")

    wait_for("tgtd", lambda: tgtadm("--op", "show", "--mode", "system"), process)
    disk = folder / "disk"
    with disk.open("wb") as image:
        image.truncate(SIZE_MIB << 20)
    must("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET)
    must("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(disk))
    for user, secret in ((USER, "secret"), (MUTUAL_USER, "mutual-secret")):
        password = (folder / secret).read_text()
        must("--op", "new", "--mode", "account", "--user", user, "--password", password)
    must("--op", "bind", "--mode", "account", "--tid", "1", "--user", USER)
    must("--op", "bind", "--mode", "account", "--tid", "1", "--user", MUTUAL_USER, "--outgoing")
    must("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
    return DemoTarget(portals, 1, ["md5"])


STARTERS = {"embedded": start_embedded, "tgt": start_tgt}
