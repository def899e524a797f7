# SPDX-License-Identifier: GPL-3.0-or-later
"""A managed host made of processes: the engine and the agent, in folders of their own, as the user of the tests."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.peers.process import PeerProcess, wait_for

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import VolumeSpec
from blockfleet.model.desired import Policy


def program(name: str) -> str:
    """Return a command of the environment that the tests run in."""
    return str(Path(sys.executable).with_name(name))


class AgentHost:
    """An engine and an agent; each can be stopped, killed and started on its own."""

    def __init__(self, runtime: Path, state: Path, logs: Path) -> None:
        self.runtime = runtime
        self.state = state
        self._logs = logs
        self._engine: PeerProcess | None = None
        self._agent: PeerProcess | None = None
        for folder in (runtime, state):
            folder.mkdir(mode=0o700)

    @property
    def socket(self) -> Path:
        return self.runtime / "agent.sock"

    @property
    def log(self) -> str:
        return "".join(process.output for process in (self._engine, self._agent) if process is not None)

    def start(self) -> None:
        self.start_engine()
        self.start_agent()

    def start_engine(self) -> None:
        command = [program("blockfleet-engine"), "--runtime-dir", str(self.runtime)]
        self._engine = PeerProcess(command, self._logs / "engine.log")
        wait_for(lambda: self._answers(self.runtime / "engine.sock"), "the engine")

    def start_agent(self, *options: str) -> None:
        folders = ("--runtime-dir", str(self.runtime), "--state-dir", str(self.state))
        command = [program("blockfleetd"), *folders, *options]
        self._agent = PeerProcess(command, self._logs / "agent.log")
        wait_for(lambda: self._answers(self.socket), "the agent")
        wait_for(lambda: self.get("/v1/version")["engine"]["reachable"], "the agent's engine")

    def restart_agent(self, *options: str) -> None:
        """Stop the agent and start it with other options; the engine goes on."""
        assert self._agent is not None
        self._agent.stop()
        self.start_agent(*options)

    def engine_forgets(self, key: str) -> None:
        """End a session behind the agent's back."""
        self._behind_the_agent(lambda engine: engine.close_session(key))

    def engine_spreads_otherwise(self, volume: str) -> None:
        """Let a volume use its paths in turn, behind the agent's back."""

        async def spread(engine: EngineClient) -> None:
            state = next(v for v in (await engine.observe()).volumes if v.name == volume)
            spec = VolumeSpec(
                name=volume, identity=state.identity, targets=state.targets, policy=Policy.ROUND_ROBIN
            )
            await engine.publish(spec)

        self._behind_the_agent(spread)

    def _behind_the_agent(self, act: Callable[[EngineClient], Awaitable[None]]) -> None:
        async def run() -> None:
            client = EngineClient(self.runtime / "engine.sock")
            try:
                await act(client)
            finally:
                await client.close()

        asyncio.run(run())

    def stop(self) -> None:
        """Stop both, the agent first."""
        for process in (self._agent, self._engine):
            if process is not None:
                process.stop()

    def _answers(self, path: Path) -> bool:
        for process in (self._engine, self._agent):
            assert process is None or process.running, self.log
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                return False
        return True

    def ask(self, method: str, route: str, body: Any = None) -> Any:
        """Ask the agent, without any code of the project in between."""
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(str(self.socket))
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, route, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        assert response.status == 200, answer
        return answer

    def get(self, route: str) -> Any:
        return self.ask("GET", route)

    def logins(self, target: str) -> dict[str, int]:
        """Return, for every session of a target that is logged in, its portal and how often it has logged in."""
        return {
            session["portal"]: session["logins"]
            for session in self.get("/v1/observed")["sessions"]
            if session["target"] == target and session["phase"] == "logged_in"
        }
