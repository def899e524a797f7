# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole session with the independent test target, recorded, and played again with its stream cut anywhere."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.events import AsyncNotice, Event, LoggedIn, LoggedOut
from blockfleet.iscsi.login import LoginMachine, LoginParameters
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.iscsi.session import Patience, Session
from blockfleet.model.secret import Secret
from blockfleet.scsi.command import ScsiCommand
from blockfleet_testtarget.config import read_config
from blockfleet_testtarget.faults.acts import AsyncMessage, Ping
from blockfleet_testtarget.threaded import ThreadedTestTarget

TARGET = "iqn.2026-11.com.example:recorded"
CHAP = {
    "user": "alice",
    "secret": "initiator-secret-1",
    "mutual_user": "disk",
    "mutual_secret": "the-target-secret",
}
BLOCK = 512
BLOCKS = 64
NOW = 100.0
PATIENCE = 10.0
"""Seconds that a recording waits for the target."""

Act = Callable[[str], None]


@dataclass
class Traffic:
    """What was heard and said, and what came of it.  Only ``heard`` is put in again when it is played."""

    heard: list[bytes] = field(default_factory=list)
    """Bytes from the target, one entry a step."""
    said: list[bytes] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    ended: list[tuple[Any, ...]] = field(default_factory=list)


class Player:
    """The initiator of one session and the steps of its user; ``hear`` gives it the target's bytes of a step."""

    def __init__(self, hear: Callable[[Player, int], None], act: Act, large: int) -> None:
        self.traffic = Traffic()
        self._hear = hear
        self._act = act
        self._large = large
        self._random = 0
        self._step = 0
        self.answers: list[str] = []
        self.session = Session(Patience(noop_interval=0.0), NOW, 7)
        credentials = ChapCredentials(
            CHAP["user"], Secret(CHAP["secret"]), CHAP["mutual_user"], Secret(CHAP["mutual_secret"]), (7,)
        )
        machine = LoginMachine(
            LoginParameters(
                initiator_name="iqn.2026-11.com.example:host",
                target_name=TARGET,
                isid=bytes.fromhex("80aabbcc0001"),
                cmd_sn=7,
                credentials=credentials,
                offer=SessionOffer(
                    header_digest=("CRC32C",),
                    data_digest=("CRC32C",),
                    max_burst_length=1024,
                    first_burst_length=512,
                ),
            ),
            self._random_bytes,
        )
        self.connection = Connection(self.session, 0, machine, _wake, NOW + PATIENCE)
        self.session.add_connection(self.connection)

    def _random_bytes(self, count: int) -> bytes:
        self._random += 1
        return hashlib.sha512(b"%d" % self._random).digest()[:count]

    # -- the stream

    def feed(self, data: bytes) -> None:
        """Take bytes of the target."""
        at = 0
        while at < len(data):
            buffer = self.connection.get_buffer(-1)
            count = min(len(buffer), len(data) - at)
            buffer[:count] = data[at : at + count]
            at += count
            self.connection.received(count, NOW)
        while self.session.events:
            self.traffic.events.append(self.session.events.popleft())

    def take(self) -> bytes:
        """Return what is to be sent."""
        said = b"".join(bytes(part) for part in self.connection.take_output())
        self.traffic.said[-1] += said
        return said

    # -- the session

    def run(self) -> Traffic:
        """Go through all steps."""
        self.connection.connecting()
        for step in self._steps():
            self.traffic.said.append(b"")
            step()
            self._hear(self, self._step)
            self._step += 1
        return self.traffic

    def _steps(self) -> Iterator[Callable[[], None]]:
        data = bytes(range(256)) * (4 * BLOCK // 256)
        yield lambda: self.connection.connected(NOW)
        yield lambda: self._execute(_write(2, 4), write=data)
        yield lambda: self._execute(_read(2, 4), read=len(data))
        yield lambda: self._execute(_read(0, self._large), read=self._large * BLOCK)
        yield self._two_at_once
        yield lambda: self._execute(_read(BLOCKS, 1), read=BLOCK)
        yield lambda: self.session.ping(NOW)
        yield lambda: self._act("ping")
        yield lambda: self._act("async")
        yield lambda: self.session.send_text(b"SendTargets=\0", NOW, _ignore, self.answers.append)
        yield lambda: self.session.logout(NOW)

    def _two_at_once(self) -> None:
        self._execute(bytes(16))
        self._execute(_read(2, 1), read=BLOCK)

    def _execute(self, cdb: bytes, *, read: int = 0, write: bytes = b"") -> None:
        buffer = bytearray(b"\xee" * read)
        command = ScsiCommand(
            0,
            cdb,
            self._ended,
            data_in=memoryview(buffer) if read else None,
            data_out=memoryview(write) if write else None,
        )
        self.session.execute(command, NOW)

    def _ended(self, command: ScsiCommand) -> None:
        data = b"" if command.data_in is None else bytes(command.data_in)
        self.traffic.ended.append(
            (command.cdb, command.outcome, command.status, command.sense, command.residual, command.error, data)
        )

    def done(self, step: int) -> bool:
        """Whether the target has sent all that this step is for."""
        kinds = [type(event) for event in self.traffic.events]
        commands = (0, 1, 2, 3, 5, 6)
        if step == 0:
            return LoggedIn in kinds
        if step < len(commands):
            return len(self.traffic.ended) == commands[step]
        return (
            not self.session.control,
            bool(self.traffic.said[-1]),
            AsyncNotice in kinds,
            bool(self.answers),
            LoggedOut in kinds,
        )[step - len(commands)]


def record(large: int = 8) -> Traffic:
    """Record a session in which one read has ``large`` blocks."""
    config = read_config(
        {
            "portals": ["127.0.0.1:0"],
            "units": {"disk": {"size": BLOCKS * BLOCK}},
            "targets": [{"name": TARGET, "luns": {0: "disk"}, "chap": CHAP}],
            "keys": {"InitialR2T": "Yes", "ImmediateData": "Yes"},
            "login_attention": False,
        }
    )
    with ThreadedTestTarget(config) as target:
        host, _, port = target.addresses[0].rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as link:
            heard: list[bytes] = []

            def act(kind: str) -> None:
                target.arm(Ping() if kind == "ping" else AsyncMessage(event=0))

            def hear(player: Player, step: int) -> None:
                heard.append(b"")
                link.sendall(player.take())
                while not player.done(step):
                    data = link.recv(1 << 16)
                    assert data, f"the target left in step {step}: {player.traffic.events}"
                    heard[step] += data
                    player.feed(data)
                    link.sendall(player.take())

            traffic = Player(hear, act, large).run()
    traffic.heard = heard
    return traffic


def play(recorded: Traffic, cut: Callable[[bytes], Iterator[bytes]], large: int = 8) -> Traffic:
    """Play a session again, each step's bytes cut by ``cut``."""

    def hear(player: Player, step: int) -> None:
        player.take()
        for piece in cut(recorded.heard[step]):
            player.feed(piece)
            player.take()
        assert player.done(step), f"step {step} is not over"

    traffic = Player(hear, _nothing, large).run()
    traffic.heard = recorded.heard
    return traffic


def _read(block: int, count: int) -> bytes:
    return b"\x88\0" + block.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"


def _write(block: int, count: int) -> bytes:
    return b"\x8a\0" + block.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"


def _wake() -> None:
    """Output is taken after every piece."""


def _nothing(_kind: str) -> None:
    """What the target did of its own accord is in the recording."""


def _ignore(_data: bytes) -> None:
    """The names of targets are no matter here."""
