# SPDX-License-Identifier: GPL-3.0-or-later
"""The one table of text keys: type, range, default, result function, use and who may send them.

RFC 3720 chapters 11 and 12 and appendix A; RFC 7143 chapter 13 for the keys that it adds.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from blockfleet.iscsi.constants import RFC_7144_LEVEL
from blockfleet.iscsi.text import MAXIMUM_SIMPLE_VALUE, MAXIMUM_VALUE

NONE: Final = "None"
CRC32C: Final = "CRC32C"
CHAP: Final = "CHAP"

FAST_ABORT: Final = "FastAbort"
TASK_REPORTING: Final = (FAST_ABORT, "ResponseFence", "RFC3720")
"""Values of TaskReporting, the best one first (RFC 7143 13.23)."""

NOT_UNDERSTOOD: Final = "NotUnderstood"
IRRELEVANT: Final = "Irrelevant"
REJECT: Final = "Reject"
RESERVED_ANSWERS = frozenset({NOT_UNDERSTOOD, IRRELEVANT, REJECT})
"""Answers that are no value; proposing one is a protocol error (RFC 3720 5.2)."""

MAXIMUM_CHAP_BINARY = 1024
"""Bytes of CHAP_C and CHAP_R (RFC 3720 11.1.4)."""

_CHAP_TEXT = 2 + 2 * MAXIMUM_CHAP_BINARY
_ADDRESS_TEXT = 253 + len("[]:65535,65535")


class Kind(enum.Enum):
    """Value types (RFC 3720 5.1)."""

    LIST = "list-of-values"
    NUMBER = "numerical-value"
    RANGE = "numeric-range"
    BOOLEAN = "boolean-value"
    NAME = "iSCSI-name-value"
    TEXT = "text-value"
    ADDRESS = "domainname[:port][,portal-group-tag]"
    BINARY = "large-binary-value"


class Function(enum.Enum):
    """How a result comes about (RFC 3720 5.2.1, 5.2.2, chapter 12)."""

    FIRST = "first of the proposer's list that the acceptor supports"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    AND = "and"
    OR = "or"
    DECLARATION = "declared, not answered"
    EXCHANGE = "step of an authentication method"
    REFUSED = "obsolete: always refused"


class Use(enum.Enum):
    """When a key may be sent (RFC 3720 chapter 12)."""

    LEADING = "LO: only in the login of a session's first connection"
    LOGIN = "IO: only in login"
    ALL = "ALL: in login and in the Full Feature Phase"
    FULL_FEATURE = "FFPO: only in the Full Feature Phase"


class Stage(enum.Flag):
    """Login stages that a key is allowed in (RFC 3720 5.3)."""

    SECURITY = enum.auto()
    OPERATIONAL = enum.auto()
    ANY = SECURITY | OPERATIONAL


class Sender(enum.Flag):
    """Who may send a key."""

    INITIATOR = enum.auto()
    TARGET = enum.auto()
    BOTH = INITIATOR | TARGET


class Scope(enum.Enum):
    """What a value holds for."""

    SESSION = "SW: session-wide"
    CONNECTION = "CO: connection-only"


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table."""

    name: str
    kind: Kind
    function: Function
    use: Use
    section: str
    """Section of RFC 3720, or of the RFC that is named."""
    scope: Scope = Scope.SESSION
    senders: Sender = Sender.BOTH
    stage: Stage = Stage.OPERATIONAL
    default: int | bool | str | None = None
    low: int = 0
    high: int = 0
    """Bounds of a number."""
    in_discovery: bool = True
    """False: Irrelevant when SessionType=Discovery."""
    attribute: str = ""
    """Field of ``SessionOffer`` and ``Negotiated`` that holds the value."""
    maximum_length: int = MAXIMUM_SIMPLE_VALUE
    """Bytes of a value, or of one value of a list."""
    refusal: str = ""
    """What a ``REFUSED`` key is answered with."""
    supported: int | tuple[str, ...] | None = None
    """What a target is granted that asks for a key which was not offered; ``default`` where this is None."""


_LIST, _NUMBER, _BOOLEAN, _NAME = Kind.LIST, Kind.NUMBER, Kind.BOOLEAN, Kind.NAME
_LO, _IO, _ALL, _FFPO = Use.LEADING, Use.LOGIN, Use.ALL, Use.FULL_FEATURE
_CO = Scope.CONNECTION
_MIN, _MAX, _AND, _OR, _FIRST = (
    Function.MINIMUM,
    Function.MAXIMUM,
    Function.AND,
    Function.OR,
    Function.FIRST,
)
_DECLARED, _STEP, _REFUSED = Function.DECLARATION, Function.EXCHANGE, Function.REFUSED
_I, _T = Sender.INITIATOR, Sender.TARGET
_SECURITY = Stage.SECURITY
_ANY = Stage.ANY
_16_MIB = (1 << 24) - 1

# fmt: off
_TABLE = (
    Key("AuthMethod", _LIST, _FIRST, _IO, "11.1", _CO, stage=_SECURITY),
    Key("CHAP_A", _LIST, _STEP, _IO, "11.1.4", _CO, stage=_SECURITY),
    Key("CHAP_I", _NUMBER, _STEP, _IO, "11.1.4", _CO, stage=_SECURITY, high=255),
    Key("CHAP_C", Kind.BINARY, _STEP, _IO, "11.1.4", _CO, stage=_SECURITY, maximum_length=_CHAP_TEXT),
    Key("CHAP_N", Kind.TEXT, _STEP, _IO, "11.1.4", _CO, stage=_SECURITY),
    Key("CHAP_R", Kind.BINARY, _STEP, _IO, "11.1.4", _CO, stage=_SECURITY, maximum_length=_CHAP_TEXT),

    Key("HeaderDigest", _LIST, _FIRST, _IO, "12.1", _CO, default=NONE, attribute="header_digest"),
    Key("DataDigest", _LIST, _FIRST, _IO, "12.1", _CO, default=NONE, attribute="data_digest"),
    Key("MaxConnections", _NUMBER, _MIN, _LO, "12.2", default=1, low=1, high=65535, in_discovery=False,
        attribute="max_connections"),
    Key("SendTargets", Kind.TEXT, _DECLARED, _FFPO, "12.3", senders=_I),
    Key("TargetName", _NAME, _DECLARED, _IO, "12.4", senders=_I, stage=_ANY),
    Key("InitiatorName", _NAME, _DECLARED, _IO, "12.5", senders=_I, stage=_ANY),
    Key("TargetAlias", Kind.TEXT, _DECLARED, _ALL, "12.6", senders=_T, stage=_ANY),
    Key("InitiatorAlias", Kind.TEXT, _DECLARED, _ALL, "12.7", senders=_I, stage=_ANY),
    Key("TargetAddress", Kind.ADDRESS, _DECLARED, _ALL, "12.8", senders=_T, stage=_ANY,
        maximum_length=_ADDRESS_TEXT),
    Key("TargetPortalGroupTag", _NUMBER, _DECLARED, _IO, "12.9", senders=_T, stage=_ANY, high=65535),
    Key("InitialR2T", _BOOLEAN, _OR, _LO, "12.10", default=True, in_discovery=False, attribute="initial_r2t"),
    Key("ImmediateData", _BOOLEAN, _AND, _LO, "12.11", default=True, in_discovery=False,
        attribute="immediate_data"),
    Key("MaxRecvDataSegmentLength", _NUMBER, _DECLARED, _ALL, "12.12", _CO, default=8192, low=512,
        high=_16_MIB, attribute="max_recv_data_segment_length"),
    Key("MaxBurstLength", _NUMBER, _MIN, _LO, "12.13", default=262144, low=512, high=_16_MIB,
        in_discovery=False, attribute="max_burst_length"),
    Key("FirstBurstLength", _NUMBER, _MIN, _LO, "12.14", default=65536, low=512, high=_16_MIB,
        in_discovery=False, attribute="first_burst_length"),
    Key("DefaultTime2Wait", _NUMBER, _MAX, _LO, "12.15", default=2, high=3600,
        attribute="default_time2wait"),
    Key("DefaultTime2Retain", _NUMBER, _MIN, _LO, "12.16", default=20, high=3600,
        attribute="default_time2retain"),
    Key("MaxOutstandingR2T", _NUMBER, _MIN, _LO, "12.17", default=1, low=1, high=65535, in_discovery=False,
        attribute="max_outstanding_r2t"),
    Key("DataPDUInOrder", _BOOLEAN, _OR, _LO, "12.18", default=True, in_discovery=False,
        attribute="data_pdu_in_order"),
    Key("DataSequenceInOrder", _BOOLEAN, _OR, _LO, "12.19", default=True, in_discovery=False,
        attribute="data_sequence_in_order"),
    Key("ErrorRecoveryLevel", _NUMBER, _MIN, _LO, "12.20", default=0, high=2,
        attribute="error_recovery_level"),
    Key("SessionType", Kind.TEXT, _DECLARED, _LO, "12.21", senders=_I, stage=_ANY),

    Key("OFMarker", _BOOLEAN, _REFUSED, _IO, "A.3.1", _CO, refusal="No"),
    Key("IFMarker", _BOOLEAN, _REFUSED, _IO, "A.3.1", _CO, refusal="No"),
    Key("OFMarkInt", Kind.RANGE, _REFUSED, _IO, "A.3.2", _CO, refusal=REJECT),
    Key("IFMarkInt", Kind.RANGE, _REFUSED, _IO, "A.3.2", _CO, refusal=REJECT),

    Key("TaskReporting", _LIST, _FIRST, _LO, "RFC 7143 13.23", default="RFC3720", in_discovery=False,
        attribute="task_reporting", supported=TASK_REPORTING),
    Key("iSCSIProtocolLevel", _NUMBER, _MIN, _LO, "RFC 7143 13.24", default=1, high=31, in_discovery=False,
        attribute="protocol_level", supported=RFC_7144_LEVEL),
    Key("X#NodeArchitecture", _LIST, _DECLARED, _LO, "RFC 7143 13.26", in_discovery=False),
)
# fmt: on

KEYS: dict[str, Key] = {key.name: key for key in _TABLE}
"""Every key that is understood, by name; all others are answered ``NotUnderstood``."""

REPEATABLE = frozenset({"TargetAddress"})
"""Keys that may be declared more than once (RFC 3720 5.3)."""

_NUMERICAL = re.compile(r"0|[1-9][0-9]{0,19}|0[xX][0-9a-fA-F]{1,16}")
_BOOLEANS = {"Yes": True, "No": False}


class ValueFault(Exception):
    """A value that its key does not allow; the message names the key and the fault."""


def read_number(key: Key, text: str) -> int:
    """Read a numerical-value in decimal or hexadecimal, within the bounds of its key."""
    if not _NUMERICAL.fullmatch(text):
        raise ValueFault(f"{key.name}={text[:40]!r} is no number")
    value = int(text, 0)
    if not key.low <= value <= key.high:
        raise ValueFault(f"{key.name}={text} is not in {key.low}..{key.high}")
    return value


def read_boolean(key: Key, text: str) -> bool:
    """Read Yes or No."""
    if text not in _BOOLEANS:
        raise ValueFault(f"{key.name}={text[:40]!r} is neither Yes nor No")
    return _BOOLEANS[text]


def read_list(key: Key, text: str) -> tuple[str, ...]:
    """Read a list-of-values, none of them empty."""
    values = tuple(text.split(","))
    if not all(values):
        raise ValueFault(f"{key.name}={text[:40]!r} has an empty value in its list")
    return values


def check_length(key: Key, text: str) -> None:
    """Raise :class:`ValueFault` for a value that is longer than its key allows."""
    if len(text.encode()) > MAXIMUM_VALUE:
        raise ValueFault(f"{key.name} is longer than {MAXIMUM_VALUE} bytes")
    parts = text.split(",") if key.kind is Kind.LIST else (text,)
    if max(len(part.encode()) for part in parts) > key.maximum_length:
        raise ValueFault(f"a value of {key.name} is longer than {key.maximum_length} bytes")


def write_value(value: int | bool | str | tuple[str, ...]) -> str:
    """Return the text of a value as it is sent."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return ",".join(value) if isinstance(value, tuple) else str(value)
