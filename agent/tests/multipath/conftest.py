# SPDX-License-Identifier: GPL-3.0-or-later
"""A scripted session, a scripted clock and a device over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blockfleet.model.desired import Policy
from blockfleet.multipath.device import MultipathDevice
from blockfleet.multipath.events import Event, EventKind
from blockfleet.multipath.path import Path
from blockfleet.scsi import cdb
from blockfleet.scsi.command import Outcome, ScsiCommand


class ScriptedSession:
    """Takes commands and ends them as the test says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = True
        self.sent: list[ScsiCommand] = []
        self.log: list[str] = []

    def execute(self, command: ScsiCommand) -> None:
        if not self.open:
            command.outcome = Outcome.REFUSED
            command.error = "not logged in"
            command.on_done(command)
            return
        assert command.outcome == Outcome.PENDING
        self.log.append(command.cdb.hex())
        self.sent.append(command)

    def end(
        self, outcome: Outcome = Outcome.COMPLETE, status: int = 0, sense: bytes = b"", *, at: int = 0
    ) -> ScsiCommand:
        command = self.sent.pop(at)
        command.outcome = outcome
        command.status = status
        command.sense = sense
        command.on_done(command)
        return command

    def check(self, numbers: str, *, at: int = 0) -> ScsiCommand:
        key, code, qualifier = bytes.fromhex(numbers.replace("/", ""))
        sense = bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0])
        return self.end(status=2, sense=sense, at=at)

    def lose(self, outcome: Outcome = Outcome.UNKNOWN) -> None:
        self.open = False
        while self.sent:
            self.end(outcome)


class Lab:
    """A device with scripted sessions around it."""

    def __init__(self) -> None:
        self.clock = 1000.0
        self.events: list[Event] = []
        self.done: list[ScsiCommand] = []
        self.sessions: dict[str, ScriptedSession] = {}
        self.paths: dict[str, Path] = {}
        self.device: MultipathDevice
        self.random = 0.5

    def build(
        self, names: str = "ab", policy: Policy = Policy.FAIL_OVER_ONLY, *, limit: int = 8, **options: float
    ) -> Lab:
        self.device = MultipathDevice(
            policy,
            now=lambda: self.clock,
            random=lambda: self.random,
            on_event=self.events.append,
            **options,  # type: ignore[arg-type]
        )
        for name in names:
            session = self.sessions[name] = ScriptedSession(name)
            path = self.paths[name] = Path(session, ord(name) << 48, name, limit=limit)
            self.device.add_path(path)
            self.device.path_up(path)
        self.events.clear()
        return self

    def send(self, command: bytes, data_out: bytes | None = None) -> ScsiCommand:
        sent = ScsiCommand(0, command, self.done.append, data_out=memoryview(data_out) if data_out else None)
        self.device.execute(sent)
        return sent

    def read(self, lba: int = 0, blocks: int = 1) -> ScsiCommand:
        return self.send(cdb.read_10(lba, blocks))

    def write(self, lba: int = 0, blocks: int = 1) -> ScsiCommand:
        return self.send(cdb.write_10(lba, blocks), b"x")

    def sent(self, name: str) -> list[ScsiCommand]:
        return self.sessions[name].sent

    def seen(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def back(self, name: str) -> None:
        """The session is logged in again and the unit behind it is the right one."""
        self.sessions[name].open = True
        assert self.device.path_up(self.paths[name], self.paths[name].generation)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, calling the device whenever it asked to be called."""
        end = self.clock + seconds
        for _ in range(10_000):
            at = self.device.deadline()
            if at is None or at > end:
                break
            self.clock = max(self.clock, at)
            self.device.advance(self.clock)
        else:
            raise AssertionError("the device asks to be called without end")
        self.clock = end


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture
def outcome_of() -> Callable[[ScsiCommand], tuple[str, int]]:
    return lambda command: (Outcome(command.outcome).name, command.status)
