# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the login phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockfleet_testtarget.codec import Op, Pdu
from blockfleet_testtarget.faults.base import Fault, FaultError, register
from blockfleet_testtarget.keys import TextError, parse_text

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.target import TestTarget


@dataclass(slots=True, kw_only=True)
class LoginFault(Fault):
    """Base of faults that answer the first Login Request of a connection.

    `target` is compared with the TargetName of the request, since nothing is negotiated yet.
    """

    def receiving(self, connection: Connection, pdu: Pdu) -> bool:
        login = connection.login
        if pdu.opcode != Op.LOGIN_REQUEST or login is None or login.first is not None:
            return False
        try:
            keys = dict(parse_text(bytes(pdu.data)))
        except TextError:
            keys = {}
        connection.initiator_name = keys.get("InitiatorName", "")
        connection.target_name = keys.get("TargetName", "")
        connection.cid = pdu.cid
        if not self.strikes(connection):
            return False
        self.answer(connection, pdu)
        return True

    def answer(self, connection: Connection, pdu: Pdu) -> None:
        """Give the answer."""


@register
@dataclass(slots=True, kw_only=True)
class RefuseLogin(LoginFault):
    """Refuse logins with a status: class in the upper byte, detail in the lower (10.13.5)."""

    name: ClassVar[str] = "refuse_login"
    status: int = 0x0301

    def answer(self, connection: Connection, pdu: Pdu) -> None:
        if connection.login is not None:
            connection.login.refuse(pdu, self.status, cause="fault: refuse_login")


@register
@dataclass(slots=True, kw_only=True)
class Redirect(LoginFault):
    """Send initiators elsewhere: `address` is a TargetAddress; empty leaves the key out."""

    name: ClassVar[str] = "redirect"
    address: str = ""
    permanent: bool = False

    def answer(self, connection: Connection, pdu: Pdu) -> None:
        pairs = [("TargetAddress", self.address)] if self.address else []
        status = 0x0102 if self.permanent else 0x0101
        if connection.login is not None:
            connection.login.refuse(pdu, status, pairs, cause=f"fault: redirect to {self.address}")


@register
@dataclass(slots=True, kw_only=True)
class AnswerKey(Fault):
    """Give another answer to a key in the operational stage; an empty `value` leaves it out.

    What the target itself does is still according to its own result.
    """

    name: ClassVar[str] = "answer_key"
    times: int = 0
    key: str = ""
    value: str = ""

    def armed(self, endpoint: TestTarget) -> bool:
        del endpoint
        if not self.key:
            raise FaultError("answer_key: which key?")
        return True

    def answering(self, connection: Connection, name: str, value: str | None) -> str | None:
        if name == self.key and self.strikes(connection):
            return self.value or None
        return value


@register
@dataclass(slots=True, kw_only=True)
class SendKey(Fault):
    """Send a key of our own in a stage (0 security, 1 operational), whatever it is.

    With `expect` the login waits for the initiator's answer as after any offer. The same key twice,
    or one that was settled, is a redeclaration.
    """

    name: ClassVar[str] = "send_key"
    key: str = ""
    value: str = ""
    stage: int = 1
    expect: bool = False

    def adding(self, connection: Connection, stage: int) -> list[tuple[str, str]]:
        login = connection.login
        if stage != self.stage or login is None or not self.strikes(connection):
            return []
        if self.expect and login.negotiation is not None:
            return [login.negotiation.offer(self.key, self.value)]
        return [(self.key, self.value)]
