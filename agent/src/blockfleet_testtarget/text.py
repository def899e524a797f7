# SPDX-License-Identifier: GPL-3.0-or-later
"""Text requests in the full feature phase, SendTargets above all (RFC 3720 10.10, 10.11, appendix D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockfleet_testtarget.codec import CONTINUE, FINAL, NO_TAG, Op, Pdu, RejectReason, target_header
from blockfleet_testtarget.keys import (
    NOT_UNDERSTOOD,
    REJECT,
    SEGMENT_LIMIT,
    TEXT_LIMIT,
    Pairs,
    TextError,
    format_text,
    parse_number,
    parse_text,
)
from blockfleet_testtarget.tasks import ProtocolError

if TYPE_CHECKING:
    from blockfleet_testtarget.connection import Connection


class TextExchange:
    """The one text exchange that a connection may have open, and the rest of a long answer."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._gathered = b""
        self._rest = b""
        self._tag = NO_TAG
        self._itt = NO_TAG

    def is_open(self, itt: int) -> bool:
        """Whether an exchange with this tag is under way."""
        return self._tag != NO_TAG and self._itt == itt

    def receive(self, pdu: Pdu) -> None:
        """Take a Text Request; raises ProtocolError."""
        if pdu.ttt == NO_TAG:
            self._gathered, self._rest, self._tag = b"", b"", NO_TAG
        elif pdu.ttt != self._tag or pdu.itt != self._itt:
            raise ProtocolError("Text Request with a stale tag", RejectReason.INVALID_FIELD)
        self._itt = pdu.itt
        if pdu.continued and pdu.final:
            raise ProtocolError("Text Request with C and F", RejectReason.PROTOCOL_ERROR)
        if self._rest:
            if len(pdu.data):
                raise ProtocolError("text while the answer is under way", RejectReason.NEGOTIATION_RESET)
            self._send_part(pdu)
            return
        self._gathered += bytes(pdu.data)
        if len(self._gathered) > TEXT_LIMIT:
            raise ProtocolError("text is too long", RejectReason.LONG_OPERATION)
        if pdu.continued:
            self._send(pdu, b"", flags=0)
            return
        try:
            pairs = parse_text(self._gathered)
            self._gathered = b""
            self._rest = format_text(self._answers(pairs))
        except TextError as error:
            raise ProtocolError(str(error), RejectReason.PROTOCOL_ERROR) from error
        self._send_part(pdu)

    def _send_part(self, pdu: Pdu) -> None:
        limit = min(self.connection.peer_segment, self.connection.endpoint.config.text_segment)
        part, self._rest = self._rest[:limit], self._rest[limit:]
        if self._rest:
            self._send(pdu, part, flags=0 if part.endswith(b"\0") else CONTINUE)
        else:
            self._send(pdu, part, flags=FINAL if pdu.final else 0)

    def _send(self, pdu: Pdu, data: bytes, *, flags: int) -> None:
        connection = self.connection
        if flags & FINAL:
            self._tag = NO_TAG
        elif self._tag == NO_TAG and connection.session is not None:
            self._tag = connection.session.new_tag()
        header = target_header(
            Op.TEXT_RESPONSE,
            flags=flags,
            length=len(data),
            lun=pdu.lun,
            itt=pdu.itt,
            ttt=self._tag,
            statsn=connection.take_statsn(),
            window=connection.window(),
        )
        connection.send_status(header, data)

    def _answers(self, pairs: Pairs) -> Pairs:
        answers: Pairs = []
        for name, value in pairs:
            if name == "SendTargets":
                answers += self._send_targets(value)
            elif name == SEGMENT_LIMIT:
                self.connection.peer_segment = parse_number(value, 512, (1 << 24) - 1)
            elif name == "InitiatorAlias":
                continue
            else:
                answers.append((name, REJECT if name in _LOGIN_ONLY else NOT_UNDERSTOOD))
        return answers

    def _send_targets(self, value: str) -> Pairs:
        connection = self.connection
        session, endpoint = connection.session, connection.endpoint
        if session is None:
            return []
        if session.node is None:
            wanted = value if value != "All" else ""
            if not value:
                return [("SendTargets", REJECT)]
        else:
            if value == "All":
                return [("SendTargets", REJECT)]
            wanted = value or session.node.name
        pairs: Pairs = []
        for node in endpoint.nodes.values():
            if (wanted and node.name != wanted) or not endpoint.may_see(node, connection.initiator_name):
                continue
            pairs.append(("TargetName", node.name))
            pairs += [("TargetAddress", address) for address in endpoint.addresses(node, connection)]
        return pairs


_LOGIN_ONLY = frozenset(
    {
        "MaxConnections",
        "InitialR2T",
        "ImmediateData",
        "MaxBurstLength",
        "FirstBurstLength",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "MaxOutstandingR2T",
        "DataPDUInOrder",
        "DataSequenceInOrder",
        "ErrorRecoveryLevel",
        "HeaderDigest",
        "DataDigest",
        "SessionType",
        "InitiatorName",
        "TargetName",
        "AuthMethod",
    }
)
