# SPDX-License-Identifier: GPL-3.0-or-later
"""Peer programs as child processes: started, waited for, and ended by their process id alone."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_TIMEOUT = 20.0
"""Seconds that a peer has to come up."""
STOP_TIMEOUT = 10.0
"""Seconds that a peer has to end before it is killed."""


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port of ``address`` on which nobody listened a moment ago."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def split_portal(portal: str) -> tuple[str, int]:
    """Split ``address:port`` or ``[address]:port``."""
    address, _, port = portal.rpartition(":")
    return address.strip("[]"), int(port)


def accepts(portal: str) -> bool:
    """Whether somebody takes a connection at a portal."""
    address, port = split_portal(portal)
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def wait_for(condition: Callable[[], bool], what: str, within: float = START_TIMEOUT) -> None:
    """Poll until ``condition`` holds; AssertionError after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.02)


class PeerProcess:
    """One child with its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._child.kill()
        self._child.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._child.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask to end with a signal, then insist."""
        if not self.running:
            return
        self._child.send_signal(number)
        try:
            self._child.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()


def run(
    *command: object, within: float = 60.0, error: bool = False, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program to its end and return what it printed; it has to succeed, or fail where ``error``."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within,
        check=False,
        env=environment,
    )
    assert (done.returncode != 0) is error, f"{command[0]} exited with {done.returncode}: {done.stdout}"
    return done.stdout
