# SPDX-License-Identifier: GPL-3.0-or-later
"""The login phase, target side (RFC 3720 chapter 5, 10.12, 10.13)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from blockfleet_testtarget.chap import Chap, ChapError, ChapExchange
from blockfleet_testtarget.codec import CONTINUE, MASK32, TRANSIT, Op, Pdu, target_header
from blockfleet_testtarget.keys import (
    INITIATOR_ONLY,
    NONE,
    SEGMENT_LIMIT,
    TEXT_LIMIT,
    WISHES,
    Negotiation,
    Pairs,
    TextError,
    format_text,
    parse_text,
)
from blockfleet_testtarget.scsi.alua import TargetPort
from blockfleet_testtarget.scsi.nexus import Nexus
from blockfleet_testtarget.session import Session
from blockfleet_testtarget.tasks import ProtocolError

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection
    from blockfleet_testtarget.node import TargetNode

SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3
ROUND_LIMIT = 64
_PAIRS_OF_STAGES = frozenset({(0, 1), (0, 3), (1, 3)})


class LoginStatus(enum.IntEnum):
    """Status class and detail (10.13.5)."""

    SUCCESS = 0x0000
    MOVED_TEMPORARILY = 0x0101
    MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION = 0x0201
    AUTHORIZATION = 0x0202
    NOT_FOUND = 0x0203
    REMOVED = 0x0204
    VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    NOT_IN_SESSION = 0x0208
    SESSION_TYPE = 0x0209
    NO_SUCH_SESSION = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    UNAVAILABLE = 0x0301
    NO_RESOURCES = 0x0302


class LoginRefusedError(Exception):
    """The login is refused with a status."""

    def __init__(self, status: int, cause: str) -> None:
        super().__init__(cause)
        self.status = status


class Login:
    """The login phase of one connection, from its first request to the final response."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.first: Pdu | None = None
        self.stage = SECURITY
        self.discovery = False
        self.node: TargetNode | None = None
        self.chap: Chap | None = None
        self.exchange: ChapExchange | None = None
        self.authenticated = False
        self.joining: Session | None = None
        self.negotiation: Negotiation | None = None
        self.declared: dict[str, str] = {}
        self._gathered = b""
        self._parts: list[bytes] = []
        self._grant = 0
        self._rounds = 0
        self._introduced = False
        self._sent: set[str] = set()
        self._offers = list(connection.endpoint.config.offers)

    # ---- requests

    def receive(self, pdu: Pdu) -> None:
        """Take a PDU of the login phase; raises ProtocolError when it is not to be answered."""
        try:
            self._check(pdu)
            self._gather(pdu)
        except LoginRefusedError as error:
            self.connection.violation(f"login refused: {error}")
            self.refuse(pdu, error.status, cause=str(error))
        except ChapError as error:
            self.refuse(pdu, LoginStatus.AUTHENTICATION, cause=f"authentication failed: {error}")
        except TextError as error:
            self.connection.violation(f"negotiation: {error}")
            self.refuse(pdu, LoginStatus.INITIATOR_ERROR, cause=str(error))

    def _gather(self, pdu: Pdu) -> None:
        if self._parts:
            if len(pdu.data):
                raise LoginRefusedError(LoginStatus.INITIATOR_ERROR, "text while the answer is under way")
            self._send_part(pdu)
            return
        self._gathered += bytes(pdu.data)
        if len(self._gathered) > TEXT_LIMIT:
            raise LoginRefusedError(LoginStatus.INITIATOR_ERROR, "login text is too long")
        if pdu.continued:
            self._send(pdu, b"", flags=self.stage << 2)
            return
        pairs, self._gathered = parse_text(self._gathered), b""
        self._process(pdu, pairs)

    def _check(self, pdu: Pdu) -> None:
        if pdu.opcode != Op.LOGIN_REQUEST:
            if self.first is None:
                raise ProtocolError(f"the first PDU has opcode {pdu.opcode:#04x}")
            raise LoginRefusedError(LoginStatus.INVALID_DURING_LOGIN, f"opcode {pdu.opcode:#04x} during login")
        self._rounds += 1
        if self._rounds > ROUND_LIMIT:
            raise LoginRefusedError(LoginStatus.INITIATOR_ERROR, "too many login requests")
        if self.first is None:
            self._check_first(pdu)
        else:
            for name in ("itt", "isid", "tsih", "cid"):
                if getattr(pdu, name) != getattr(self.first, name):
                    raise LoginRefusedError(LoginStatus.INITIATOR_ERROR, f"{name} changed during login")
            if pdu.expstatsn != self.connection.statsn:
                self.connection.violation(f"ExpStatSN {pdu.expstatsn} where {self.connection.statsn} is due")
        if pdu.continued and pdu.flags & TRANSIT:
            raise LoginRefusedError(LoginStatus.INITIATOR_ERROR, "C and T bits together")
        if pdu.current_stage != self.stage:
            raise LoginRefusedError(
                LoginStatus.INITIATOR_ERROR, f"stage {pdu.current_stage} is not the current one"
            )
        if pdu.flags & TRANSIT and (self.stage, pdu.next_stage) not in _PAIRS_OF_STAGES:
            raise LoginRefusedError(LoginStatus.INITIATOR_ERROR, f"no way from {self.stage} to {pdu.next_stage}")

    def _check_first(self, pdu: Pdu) -> None:
        self.first = pdu.detach()
        if not pdu.immediate:
            self.connection.violation("Login Request without the I bit")
        self.connection.cid = pdu.cid
        if pdu.tsih:
            self.connection.number_apart()
        self.stage = pdu.current_stage
        if pdu.bhs[3] > 0:
            raise LoginRefusedError(LoginStatus.VERSION, f"version {pdu.bhs[3]} is the lowest offered")
        if self.stage not in (SECURITY, OPERATIONAL):
            raise LoginRefusedError(LoginStatus.INITIATOR_ERROR, f"login begins in stage {self.stage}")

    def _process(self, pdu: Pdu, pairs: Pairs) -> None:
        answers: Pairs = []
        rest: Pairs = []
        for name, value in pairs:
            if name in self.declared and not name.startswith("CHAP_"):
                self._repeated(name, value)
            self.declared[name] = value
            if name not in INITIATOR_ONLY:
                rest.append((name, value))
        if not self._introduced:
            self._identify()
            answers += self._introduction()
            self._introduced = True
        if self.stage == SECURITY:
            answers += self._security(rest)
        else:
            answers += self._operational(rest)
        self._answer(pdu, answers)

    def _repeated(self, name: str, value: str) -> None:
        # Declarations that are repeated in every request break 12.4 and 12.5, but initiators do it.
        if name not in INITIATOR_ONLY or value != self.declared[name]:
            raise TextError(f"{name} was sent before in this login")
        self.connection.violation(f"{name} is declared again")

    # ---- who is it

    def _identify(self) -> None:
        connection = self.connection
        endpoint, first = connection.endpoint, self.first
        initiator = self.declared.get("InitiatorName", "")
        if not initiator or first is None:
            raise LoginRefusedError(LoginStatus.MISSING_PARAMETER, "no InitiatorName")
        connection.initiator_name = initiator
        kind = self.declared.get("SessionType", "Normal")
        if kind not in ("Normal", "Discovery"):
            raise LoginRefusedError(LoginStatus.SESSION_TYPE, f"session type {kind[:40]!r}")
        self.discovery = kind == "Discovery"
        name = self.declared.get("TargetName", "")
        if self.discovery:
            self.chap = endpoint.config.discovery_chap
        else:
            if not name:
                raise LoginRefusedError(LoginStatus.MISSING_PARAMETER, "no TargetName")
            node = endpoint.nodes.get(name)
            if node is None or connection.portal.group not in node.ports:
                raise LoginRefusedError(LoginStatus.NOT_FOUND, f"no target {name[:223]} at this portal")
            if not endpoint.may_see(node, initiator):
                raise LoginRefusedError(LoginStatus.AUTHORIZATION, f"{initiator[:223]} may not use {node.name}")
            self.node, self.chap = node, node.chap
            connection.target_name = node.name
        wishes = WISHES if self.node is None else self.node.wishes
        self._join(first, initiator)
        self.negotiation = Negotiation(wishes, discovery=self.discovery, leading=self.joining is None)
        if self.joining is not None:
            self.negotiation.values = dict(self.joining.values)
        if self.chap is not None and self.stage != SECURITY:
            raise LoginRefusedError(LoginStatus.AUTHENTICATION, "authentication is required")

    def _join(self, first: Pdu, initiator: str) -> None:
        if not first.tsih:
            return
        session = self.connection.endpoint.find_session(first.tsih)
        mine = session is not None and session.node is self.node and session.node is not None
        if session is None or not mine or session.nexus[:2] != (initiator, first.isid):
            raise LoginRefusedError(LoginStatus.NO_SUCH_SESSION, f"there is no session {first.tsih}")
        if session.nexus.port.group_tag != self.connection.portal.group:
            raise LoginRefusedError(LoginStatus.NOT_IN_SESSION, "the session is in another portal group")
        others = [cid for cid in session.connections if cid != first.cid]
        if len(others) >= session.values["MaxConnections"]:
            raise LoginRefusedError(LoginStatus.TOO_MANY_CONNECTIONS, f"{len(others)} connections are open")
        self.joining = session

    def _introduction(self) -> Pairs:
        if self.node is None:
            return []
        pairs = [("TargetPortalGroupTag", str(self.connection.portal.group))]
        if self.node.alias:
            pairs.append(("TargetAlias", self.node.alias))
        return pairs

    # ---- stages

    def _security(self, pairs: Pairs) -> Pairs:
        answers: Pairs = []
        steps: dict[str, str] = {}
        for name, value in pairs:
            if name == "AuthMethod":
                answers.append(("AuthMethod", self._choose_method(value)))
            elif name.startswith("CHAP_"):
                if name in steps:
                    raise TextError(f"{name} twice in one request")
                steps[name] = value
            else:
                raise TextError(f"{name} is no key of the security stage")
        if steps:
            if self.exchange is None or answers:
                raise ChapError("CHAP keys before AuthMethod=CHAP was answered")
            answers += self.exchange.receive(steps)
            self.authenticated = self.exchange.done
        return answers

    def _choose_method(self, value: str) -> str:
        offers = value.split(",")
        if self.chap is None:
            if NONE not in offers:
                raise LoginRefusedError(LoginStatus.AUTHENTICATION, "nothing to authenticate with")
            return NONE
        if "CHAP" not in offers:
            raise LoginRefusedError(LoginStatus.AUTHENTICATION, f"CHAP is required, offered was {value[:80]!r}")
        self.exchange = ChapExchange(self.chap)
        return "CHAP"

    def _operational(self, pairs: Pairs) -> Pairs:
        negotiation = self.negotiation
        if negotiation is None:
            raise TextError("operational keys before the initiator is known")
        answers: Pairs = []
        for name, value in pairs:
            answer = negotiation.receive(name, value)
            answer = self._bent(name, answer)
            if answer is not None:
                answers.append((name, answer))
        if SEGMENT_LIMIT not in self._sent:
            self._sent.add(SEGMENT_LIMIT)
            declared = self._bent(SEGMENT_LIMIT, negotiation.wishes[SEGMENT_LIMIT])
            if declared is not None:
                answers.append((SEGMENT_LIMIT, declared))
        offers, self._offers = self._offers, []
        for name, value in offers:
            if name not in negotiation.declared:
                answers.append(negotiation.offer(name, value))
        return answers

    def _bent(self, name: str, value: str | None) -> str | None:
        for fault in self.connection.endpoint.faults:
            value = fault.answering(self.connection, name, value)
        return value

    # ---- responses

    def _may_move(self) -> bool:
        if self.stage == SECURITY:
            return self.chap is None or self.authenticated
        return self.negotiation is not None and not self.negotiation.offered

    def _answer(self, pdu: Pdu, answers: Pairs) -> None:
        flags = self.stage << 2
        for fault in list(self.connection.endpoint.faults):
            answers += fault.adding(self.connection, self.stage)
        self.connection.endpoint.prune()
        if pdu.flags & TRANSIT:
            if self._may_move():
                flags |= TRANSIT | pdu.next_stage
            elif self.stage == SECURITY and self.exchange is None:
                raise LoginRefusedError(LoginStatus.AUTHENTICATION, "authentication is required")
        self._grant = flags
        text = format_text(answers)
        size = self.connection.endpoint.config.login_segment
        cuts = range(0, max(len(text), 1), size)
        self._parts = [text[cut : cut + size] for cut in cuts]
        self._send_part(pdu)

    def _send_part(self, pdu: Pdu) -> None:
        part = self._parts.pop(0)
        if self._parts:
            self._send(pdu, part, flags=CONTINUE | (self.stage << 2))
            return
        flags = self._grant
        if flags & TRANSIT and flags & 3 == FULL_FEATURE:
            self._complete(pdu, part)
            return
        self._send(pdu, part, flags=flags)
        if flags & TRANSIT:
            self.stage = flags & 3

    def _send(self, pdu: Pdu, data: bytes, *, flags: int, tsih: int | None = None) -> None:
        connection, first = self.connection, self.first or pdu
        if self.joining is not None:
            window = (self.joining.expcmdsn, self.joining.max_cmdsn())
        else:
            size = connection.endpoint.config.command_window
            window = (first.cmdsn, (first.cmdsn + size - 1) & MASK32)
        handle = first.tsih if tsih is None else tsih
        header = target_header(
            Op.LOGIN_RESPONSE,
            flags=flags,
            length=len(data),
            lun=first.isid + handle.to_bytes(2, "big"),
            itt=pdu.itt,
            statsn=connection.take_statsn(),
            window=window,
        )
        connection.send(header, data)

    def refuse(self, pdu: Pdu, status: int, pairs: Pairs | None = None, cause: str = "") -> None:
        """End the login with a status and close the connection."""
        first = self.first or pdu
        data = format_text(pairs or [])
        header = target_header(
            Op.LOGIN_RESPONSE,
            flags=self.stage << 2,
            length=len(data),
            lun=first.isid + first.tsih.to_bytes(2, "big"),
            itt=pdu.itt,
            word36=status << 16,
        )
        self.connection.send(header, data)
        self.connection.endpoint.note(f"login refused with {status:04x}: {cause}")
        self.connection.close(cause or f"login refused with {status:04x}")

    def _complete(self, pdu: Pdu, part: bytes) -> None:
        connection, negotiation = self.connection, self.negotiation
        if negotiation is None:
            raise TextError("login ends before the initiator is known")
        negotiation.settle()
        session = self.joining or self._new_session(negotiation)
        if self.joining is not None:
            self.joining.replace_connection(connection, self.first.expstatsn if self.first is not None else 0)
        self._send(pdu, part, flags=self._grant, tsih=session.tsih)
        session.add_connection(connection)
        connection.header_digest = negotiation.digests["HeaderDigest"] != NONE
        connection.data_digest = negotiation.digests["DataDigest"] != NONE
        connection.peer_segment = negotiation.peer_segment
        connection.enter_full_feature(session, int(negotiation.wishes[SEGMENT_LIMIT]))
        connection.endpoint.note(f"login of {connection.initiator_name} to {connection.target_name or 'discovery'}")

    def _new_session(self, negotiation: Negotiation) -> Session:
        connection, first = self.connection, self.first
        if first is None:
            raise TextError("no first request")
        endpoint = connection.endpoint
        group = connection.portal.group
        port = TargetPort("", group, 0, group) if self.node is None else self.node.ports[group]
        nexus = Nexus(connection.initiator_name, first.isid, port)
        # Session reinstatement (5.3.5): the old session's tasks end before this login does.
        for old in list(endpoint.sessions):
            if self.node is not None and old.nexus == nexus:
                old.close(cause="session reinstated")
        session = Session(endpoint, self.node, nexus, endpoint.new_tsih(), negotiation.values)
        session.begin(first.cmdsn)
        endpoint.sessions.append(session)
        return session
