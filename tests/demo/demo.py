# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: a real playbook against a real target, through the agent and the engine, every step checked."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from nbd_copy import round_trip
from targets import STARTERS, TARGET, USER, DemoTarget, wait_for

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import session_key

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
DATA = 64 << 20
RECAP = re.compile(r"changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)")
IN_SYNC, PENDING = 0, 2
"""Exit codes of the command blockfleet."""


def fail(message: str) -> NoReturn:
    """End the demonstration."""
    sys.exit(f"demo: FAILED: {message}")


class Demo:
    """One run of the demonstration in a folder of its own, which it removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.step_number = 0
        self.began = time.monotonic()
        for name in ("secret", "mutual-secret"):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(secrets.token_hex(8))
        os.environ |= {
            "BLOCKFLEET_RUNTIME": str(self.runtime),
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
            "ANSIBLE_LOCAL_TEMP": str(folder / "ansible"),
            "ANSIBLE_REMOTE_TEMP": str(folder / "ansible"),
            "ANSIBLE_HOME": str(folder / "ansible-home"),
            "COLUMNS": os.environ.get("COLUMNS", "120"),
        }

    # -- what the steps use

    def step(self, title: str) -> None:
        """Print a heading."""
        self.step_number += 1
        seconds = time.monotonic() - self.began
        print(f"\n=== {self.step_number}. {title}  [{seconds:.0f} s]", flush=True)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program whose output goes to a file."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """End what was started, the last first."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def playbook(self, target: DemoTarget, record: str, *arguments: str) -> tuple[int, list[list[str]]]:
        """Run the playbook; return how many tasks changed and what each did."""
        variables = {
            "ansible_python_interpreter": sys.executable,
            "agent_socket": str(self.runtime / "agent.sock"),
            "target": TARGET,
            "portals": target.portals,
            "lun": target.lun,
            "chap_user": USER,
            "chap_algorithms": target.algorithms,
            "secret_file": str(self.folder / "secret"),
            "mutual_secret_file": str(self.folder / "mutual-secret"),
            "record": str(self.folder / record),
        }
        command = [str(BIN / "ansible-playbook"), "-i", "localhost,", str(HERE / "site.yml")]
        run = subprocess.run(
            [*command, *arguments, "-e", json.dumps(variables)], check=False, stdout=subprocess.PIPE, text=True
        )
        print(run.stdout, end="", flush=True)
        recap = RECAP.search(run.stdout)
        if run.returncode or recap is None:
            fail(f"ansible-playbook ended with status {run.returncode}")
        return int(recap[1]), json.loads((self.folder / record).read_text())

    def blockfleet(self, *arguments: str, expect: int = IN_SYNC) -> None:
        """Run the command line and check its exit code."""
        print(f"$ blockfleet {' '.join(arguments)}", flush=True)
        code = subprocess.run([str(BIN / "blockfleet"), *arguments], check=False).returncode
        print(f"(exit code {code})", flush=True)
        if code != expect:
            fail(f"blockfleet {arguments[0]} ended with {code}, not {expect}")

    # -- the steps

    def run(self, kind: str) -> None:
        """Go through all steps; ends the program where one does not hold."""
        self.step(f"Start: target ({kind}), engine and agent, as {os.environ.get('USER', 'this user')}")
        target = STARTERS[kind](self.folder, self.start)
        self._start_services()
        print(f"target {TARGET} at {' and '.join(target.portals)}, mutual CHAP")

        self.step("Check mode predicts the first run")
        predicted_count, predicted = self.playbook(target, "predicted", "--check")

        self.step("First run: the host is brought to its declared state")
        changed, done = self.playbook(target, "first")
        if (changed, done) != (predicted_count, predicted):
            fail(f"check mode predicted {predicted}, the run did {done}")
        print(f"predicted {predicted_count} changed tasks with {sum(map(len, predicted))} actions; the run did the same")

        self.step("Second run: nothing to do")
        changed, _ = self.playbook(target, "second", "--diff")
        if changed:
            fail(f"the second run changed {changed} tasks")

        self.step("Drift: a session is ended behind the agent's back")
        self.blockfleet("drift")
        asyncio.run(self._end_session(target.portals[1]))
        self.blockfleet("drift", expect=PENDING)

        self.step("Drift is put right")
        self.blockfleet("apply")
        self.blockfleet("drift")

        self.step(f"{DATA >> 20} MiB written and read back through the volume's NBD socket")
        began = time.monotonic()
        written, read = round_trip(self.runtime / "volumes" / "db01.sock", "db01", DATA)
        print(f"written sha256 {written}\nread    sha256 {read}\n{time.monotonic() - began:.1f} s")
        if written != read:
            fail("the checksums differ")

        self.step("Status")
        self.blockfleet("status")

    def _start_services(self) -> None:
        runtime = ["--runtime-dir", str(self.runtime)]
        engine = self.start("engine", str(BIN / "blockfleet-engine"), *runtime)
        wait_for("the engine", (self.runtime / "engine.sock").exists, engine)
        # Without automatic repair, so that the drift below can be seen before it is put right.
        agent = self.start(
            "agent", str(BIN / "blockfleetd"), *runtime, "--state-dir", str(self.folder / "state"), "--no-repair"
        )
        wait_for("the agent", (self.runtime / "agent.sock").exists, agent)

    async def _end_session(self, portal: str) -> None:
        key = session_key(TARGET, portal)
        print(f"(telling the engine, not the agent, to log out of {portal})", flush=True)
        client = EngineClient(self.runtime / "engine.sock")
        try:
            await client.close_session(key)
        finally:
            await client.close()


def main() -> None:
    """Run the demonstration and clean up."""
    kind = os.environ.get("DEMO_TARGET", "embedded")
    if kind not in STARTERS:
        sys.exit(f"demo: DEMO_TARGET is {kind!r}: use {' or '.join(STARTERS)}")
    # The folder is not in the checkout: a Unix socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="blockfleet-demo-"))
    demo = Demo(folder)
    complete = False
    try:
        demo.run(kind)
        complete = True
    finally:
        demo.stop()
        if complete or not any(folder.glob("*.log")):
            shutil.rmtree(folder)
        else:
            print(f"demo: the programs' logs are in {folder}", file=sys.stderr)
    print(f"\ndemo: passed in {time.monotonic() - demo.began:.0f} s")


if __name__ == "__main__":
    main()
