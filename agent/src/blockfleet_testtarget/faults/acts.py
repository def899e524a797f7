# SPDX-License-Identifier: GPL-3.0-or-later
"""What the target does at once, of its own accord, to sessions and portals."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockfleet_testtarget.codec import AsyncEvent
from blockfleet_testtarget.faults.base import Fault, FaultError, register
from blockfleet_testtarget.faults.commands import parse_sense
from blockfleet_testtarget.scsi.inquiry import lun_field

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.target import TestTarget


@dataclass(slots=True, kw_only=True)
class Act(Fault):
    """Base of what is done at once to every matching connection in full feature phase."""

    def armed(self, endpoint: TestTarget) -> bool:
        for connection in list(endpoint.connections):
            if connection.session is not None and self.matches(connection):
                self.struck += 1
                self.act(connection)
        return False

    def act(self, connection: Connection) -> None:
        """Do it."""


@register
@dataclass(slots=True, kw_only=True)
class DropNow(Act):
    """Close connections now, by RST with `reset`."""

    name: ClassVar[str] = "drop_now"
    reset: bool = True

    def act(self, connection: Connection) -> None:
        if self.reset:
            connection.reset("fault: drop_now")
        else:
            connection.close("fault: drop_now")


@register
@dataclass(slots=True, kw_only=True)
class AsyncMessage(Act):
    """Send an Asynchronous Message with its event code, parameters, and sense for event 0."""

    name: ClassVar[str] = "async"
    event: int = 1
    parameter1: int = 0
    parameter2: int = 0
    parameter3: int = 5
    vcode: int = 0
    lun: int = 0
    sense: str = "06/29/00"

    def act(self, connection: Connection) -> None:
        scsi = self.event == AsyncEvent.SCSI
        connection.send_async(
            self.event,
            (self.parameter1, self.parameter2, self.parameter3),
            parse_sense(self.sense) if scsi else None,
            vcode=self.vcode,
            lun=self.lun,
        )


@register
@dataclass(slots=True, kw_only=True)
class Ping(Act):
    """Send NOP-Ins that want an answer."""

    name: ClassVar[str] = "ping"
    count: int = 1
    lun: int = 0

    def act(self, connection: Connection) -> None:
        for _ in range(self.count):
            connection.ping(lun_field(self.lun))


@register
@dataclass(slots=True, kw_only=True)
class SendRaw(Act):
    """Send the bytes in `hex`, as they are."""

    name: ClassVar[str] = "send_raw"
    hex: str = ""

    def act(self, connection: Connection) -> None:
        connection.emit_bytes(bytes.fromhex(self.hex))


@register
@dataclass(slots=True, kw_only=True)
class CloseWindow(Fault):
    """Do not let MaxCmdSN of the sessions that are there grow until disarmed."""

    name: ClassVar[str] = "close_window"

    def armed(self, endpoint: TestTarget) -> bool:
        self._set(endpoint, frozen=True)
        return True

    def disarmed(self, endpoint: TestTarget) -> None:
        self._set(endpoint, frozen=False)

    def _set(self, endpoint: TestTarget, *, frozen: bool) -> None:
        for session in endpoint.sessions:
            for connection in session.connections.values():
                if self.matches(connection):
                    session.frozen = frozen
                    connection.tell_window()


@register
@dataclass(slots=True, kw_only=True)
class ClosePortal(Fault):
    """Stop to listen at a portal and reset its connections, until disarmed."""

    name: ClassVar[str] = "close_portal"
    portal: int = 0

    def armed(self, endpoint: TestTarget) -> bool:
        if not 0 <= self.portal < len(endpoint.portals):
            raise FaultError(f"there is no portal {self.portal}")
        endpoint.spawn(endpoint.close_portal(self.portal))
        return True

    def disarmed(self, endpoint: TestTarget) -> None:
        endpoint.spawn(endpoint.reopen_portal(self.portal))


@register
@dataclass(slots=True, kw_only=True)
class Flood(Act):
    """Send `count` NOP-Ins that want an answer, in batches of 100, without waiting for any."""

    name: ClassVar[str] = "flood"
    count: int = 10000

    def act(self, connection: Connection) -> None:
        self._batch(connection, self.count)

    def _batch(self, connection: Connection, left: int) -> None:
        if not left or not connection.writable:
            return
        batch = min(left, 100)
        for _ in range(batch):
            connection.ping()
        asyncio.get_running_loop().call_soon(self._batch, connection, left - batch)
