# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy between an initiator and a target that knows where each PDU begins and ends, and does harm by rule.

It follows the login of each connection, so that it knows the digests; what it corrupts keeps the digest that it was
sent with.  It shares nothing with the product.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.peers.process import split_portal
from tests.proxy.pdu import HEADER_LENGTH, Agreement, WirePdu, read_pdu

_BUFFER = 1 << 20
"""Bytes that are read ahead of what was passed on."""
_LENGTHS = frozenset(range(4, 8))
"""Bytes of a header with its lengths: who gets them wrong cannot find the next PDU."""


class Direction(enum.StrEnum):
    """Which way a PDU goes."""

    TO_TARGET = "to target"
    TO_INITIATOR = "to initiator"


class Action(enum.StrEnum):
    """What is done to a PDU, or to its connection because of it."""

    CORRUPT_HEADER = "corrupt header"
    CORRUPT_DATA = "corrupt data"
    DROP = "drop"
    DELAY = "delay"
    """Wait with it, and with all that is behind it on the connection in this direction."""
    DUPLICATE = "duplicate"
    RESET = "reset"
    BLACK_HOLE = "black hole"
    """From this PDU on nothing passes, either way, nor does either side learn that the other has gone."""


@dataclass
class Rule:
    """Do ``action`` to one in ``one_in`` of the PDUs that match, drawn by chance, ``times`` times at most.

    PDUs of the login are left alone unless ``opcodes`` names them.  Data are corrupted only where there are any.
    ``seconds`` is for DELAY.  ``keep_lengths`` spares the bytes of a header that say how long the PDU is.
    """

    action: Action
    direction: Direction | None = None
    opcodes: frozenset[int] | None = None
    one_in: int = 1
    times: int | None = None
    seconds: float = 0.0
    keep_lengths: bool = False
    where: Callable[[WirePdu], bool] | None = None
    done: int = 0

    def chosen(self, pdu: WirePdu, direction: Direction, in_login: bool, chance: random.Random) -> bool:
        """Whether it is this PDU's turn; counts it if so."""
        if self.times is not None and self.done >= self.times:
            return False
        if self.direction not in {None, direction}:
            return False
        if in_login if self.opcodes is None else pdu.opcode not in self.opcodes:
            return False
        if self.action is Action.CORRUPT_DATA and not pdu.data_length:
            return False
        if self.where is not None and not self.where(pdu):
            return False
        if chance.randrange(self.one_in):
            return False
        self.done += 1
        return True


@dataclass(eq=False)
class _Connection:
    """The two sockets of one connection."""

    initiator: asyncio.StreamWriter
    target: asyncio.StreamWriter
    agreement: Agreement = field(default_factory=Agreement)
    in_login: bool = True
    silent: bool = False

    def reset(self) -> None:
        for writer in (self.initiator, self.target):
            _set_linger(writer)
            writer.transport.abort()


class PduProxy:
    """Listens at ``portal`` on the loopback interface and passes everything on to a target's portal.

    ``passed`` counts the PDUs that went through whole, by direction and opcode, ``deeds`` what was done to the
    others.  ``rules`` may be changed at any time; the first whose turn it is acts.  The same seed and the same
    PDUs make the same choices.
    """

    def __init__(self, target: str, rules: Iterable[Rule] = (), *, seed: int = 1) -> None:
        self.target = target
        self.rules = list(rules)
        self.passed: Counter[tuple[Direction, int]] = Counter()
        self.deeds: Counter[tuple[Action, Direction, int]] = Counter()
        self.accepted = 0
        self.portal = ""
        self._chance = random.Random(seed)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> PduProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_BUFFER)
        address, port = self._server.sockets[0].getsockname()
        self.portal = f"{address}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.reset_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def count(self, action: Action) -> int:
        """Return how often something was done."""
        return sum(count for (done, _, _), count in self.deeds.items() if done is action)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    def reset_connections(self) -> None:
        """Reset all connections, both sides of them."""
        for connection in list(self._connections):
            connection.reset()

    # --- one connection --------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port = split_portal(self.target)
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port, limit=_BUFFER)
        except OSError:
            _set_linger(writer)
            writer.transport.abort()
            return
        connection = _Connection(writer, far_writer)
        self._connections.add(connection)
        pumps = [
            asyncio.create_task(self._pump(connection, reader, far_writer, Direction.TO_TARGET)),
            asyncio.create_task(self._pump(connection, far_reader, writer, Direction.TO_INITIATOR)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            self._connections.discard(connection)
            for side in (writer, far_writer):
                side.transport.abort()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        """Pass PDUs on until one side ends the connection, and let the other side know in the same way."""
        try:
            while True:
                pdu = await read_pdu(reader, connection.agreement)
                if connection.in_login:
                    connection.agreement.hear(pdu)
                rule = self._rule(pdu, direction, connection.in_login)
                connection.in_login = connection.in_login and not pdu.ends_login
                if rule is None:
                    if not connection.silent:
                        self.passed[direction, pdu.opcode] += 1
                        writer.write(pdu.encode())
                else:
                    self.deeds[rule.action, direction, pdu.opcode] += 1
                    await self._act(rule, connection, pdu, writer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            with contextlib.suppress(OSError):
                if not connection.silent:
                    writer.write_eof()
        except ConnectionError:
            if not connection.silent:
                connection.reset()

    def _rule(self, pdu: WirePdu, direction: Direction, in_login: bool) -> Rule | None:
        return next((rule for rule in self.rules if rule.chosen(pdu, direction, in_login, self._chance)), None)

    async def _act(self, rule: Rule, connection: _Connection, pdu: WirePdu, writer: asyncio.StreamWriter) -> None:
        match rule.action:
            case Action.RESET:
                connection.reset()
                raise ConnectionResetError
            case Action.BLACK_HOLE:
                connection.silent = True
            case Action.DELAY:
                await asyncio.sleep(rule.seconds)
            case Action.CORRUPT_HEADER:
                kept = _LENGTHS if rule.keep_lengths else frozenset()
                self._flip(pdu.header, [place for place in range(HEADER_LENGTH) if place not in kept])
            case Action.CORRUPT_DATA:
                self._flip(pdu.data, range(pdu.data_length))
            case Action.DROP | Action.DUPLICATE:
                pass
        copies = {Action.DROP: 0, Action.DUPLICATE: 2}.get(rule.action, 1)
        if not connection.silent:
            writer.write(pdu.encode() * copies)

    def _flip(self, part: bytearray, places: Iterable[int]) -> None:
        """Change one byte to another value."""
        part[self._chance.choice(list(places))] ^= self._chance.randrange(1, 256)


def _set_linger(writer: asyncio.StreamWriter) -> None:
    """Let the end of a connection be a reset."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
