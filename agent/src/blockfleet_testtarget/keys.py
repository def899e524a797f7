# SPDX-License-Identifier: GPL-3.0-or-later
"""Text keys of RFC 3720: their format (5.1), and the answers of a target to each (chapter 12)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

NOT_UNDERSTOOD = "NotUnderstood"
IRRELEVANT = "Irrelevant"
REJECT = "Reject"
NONE = "None"
RESERVED_ANSWERS = frozenset({NOT_UNDERSTOOD, IRRELEVANT, REJECT})

KEY_LIMIT = 63
VALUE_LIMIT = 255
TEXT_LIMIT = 65536  # of one exchange, over all its PDUs
LARGE_VALUES = frozenset({"CHAP_C", "CHAP_R", "TargetName", "TargetAddress", "SendTargets"})

Pairs = list[tuple[str, str]]

_NAME = re.compile(r"[A-Z][A-Za-z0-9.\-+@_#]*")
_DECIMAL = re.compile(r"0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,18}")


class TextError(ValueError):
    """The peer's text breaks the format or a rule of negotiation."""


def parse_text(text: bytes) -> Pairs:
    """Split a complete text into pairs; raises TextError when a rule of 5.1 is broken."""
    if not text:
        return []
    if text[-1] != 0:
        raise TextError("the last key=value pair has no terminating NUL")
    pairs: Pairs = []
    for item in text[:-1].split(b"\0"):
        try:
            name, separator, value = item.decode("utf-8").partition("=")
        except UnicodeDecodeError as error:
            raise TextError(f"text is not UTF-8: {error.reason}") from error
        if not separator:
            raise TextError(f"no '=' in {name[:KEY_LIMIT]!r}")
        if len(name) > KEY_LIMIT or not _NAME.fullmatch(name):
            raise TextError(f"illegal key name {name[:KEY_LIMIT]!r}")
        if len(value.encode()) > VALUE_LIMIT and name not in LARGE_VALUES:
            raise TextError(f"value of {name} is longer than {VALUE_LIMIT} bytes")
        pairs.append((name, value))
    return pairs


def format_text(pairs: Pairs) -> bytes:
    """Return pairs as they travel: each ends with one NUL."""
    return b"".join(f"{name}={value}".encode() + b"\0" for name, value in pairs)


def parse_number(text: str, low: int, high: int) -> int:
    """Return a numerical value within its range; raises TextError."""
    if not _DECIMAL.fullmatch(text):
        raise TextError(f"{text[:40]!r} is no number")
    value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
    if not low <= value <= high:
        raise TextError(f"{value} is not within {low} to {high}")
    return value


def parse_boolean(text: str) -> bool:
    """Return a boolean value; raises TextError."""
    if text not in ("Yes", "No"):
        raise TextError(f"{text[:40]!r} is neither Yes nor No")
    return text == "Yes"


@dataclass(frozen=True, slots=True)
class Numeric:
    """A numerical key: range, default, and how offer and own value make the result."""

    low: int
    high: int
    default: int
    result: Callable[[int, int], int]
    discovery: bool = False  # relevant in a discovery session too
    leading: bool = True  # leading connection only

    def parse(self, text: str) -> int:
        return parse_number(text, self.low, self.high)

    def show(self, value: int) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Boolean:
    """A boolean key; `result` is AND (min) or OR (max)."""

    default: int
    result: Callable[[int, int], int]
    discovery: bool = False
    leading: bool = True

    def parse(self, text: str) -> int:
        return int(parse_boolean(text))

    def show(self, value: int) -> str:
        return "Yes" if value else "No"


# Chapter 12 and appendix A: every operational key that two sides settle between them.
SETTLED: dict[str, Numeric | Boolean] = {
    "MaxConnections": Numeric(1, 65535, 1, min),
    "InitialR2T": Boolean(1, max),
    "ImmediateData": Boolean(1, min),
    "MaxBurstLength": Numeric(512, (1 << 24) - 1, 262144, min),
    "FirstBurstLength": Numeric(512, (1 << 24) - 1, 65536, min),
    "DefaultTime2Wait": Numeric(0, 3600, 2, max, discovery=True),
    "DefaultTime2Retain": Numeric(0, 3600, 20, min, discovery=True),
    "MaxOutstandingR2T": Numeric(1, 65535, 1, min),
    "DataPDUInOrder": Boolean(1, max),
    "DataSequenceInOrder": Boolean(1, max),
    "ErrorRecoveryLevel": Numeric(0, 2, 0, min, discovery=True),
    "OFMarker": Boolean(0, min, discovery=True, leading=False),
    "IFMarker": Boolean(0, min, discovery=True, leading=False),
}
DIGESTS = ("HeaderDigest", "DataDigest")
SEGMENT_LIMIT = "MaxRecvDataSegmentLength"
SEGMENT_DEFAULT = 8192
MARKER_INTERVALS = frozenset({"OFMarkInt", "IFMarkInt"})
INITIATOR_ONLY = frozenset({"InitiatorName", "InitiatorAlias", "TargetName", "SessionType"})
TARGET_ONLY = frozenset({"TargetAlias", "TargetAddress", "TargetPortalGroupTag"})
# What this target wants of each key when its configuration says nothing. All differ from the
# defaults of the RFC where that can be, so that a side that ignores an answer is found out.
WISHES: dict[str, str] = {
    "MaxConnections": "1",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxBurstLength": "1048576",
    "FirstBurstLength": "131072",
    "DefaultTime2Wait": "0",
    "DefaultTime2Retain": "20",
    "MaxOutstandingR2T": "4",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "ErrorRecoveryLevel": "0",
    "OFMarker": "No",
    "IFMarker": "No",
    "HeaderDigest": "CRC32C,None",
    "DataDigest": "CRC32C,None",
    SEGMENT_LIMIT: "262144",
}


def checked_wishes(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the wishes with changes applied; raises TextError for an unknown key or illegal value."""
    wishes = {**WISHES, **changes}
    for name, value in wishes.items():
        if name in SETTLED:
            SETTLED[name].parse(value)
        elif name in DIGESTS:
            if not set(value.split(",")) <= {"CRC32C", NONE}:
                raise TextError(f"{name}: only CRC32C and None exist")
        elif name == SEGMENT_LIMIT:
            parse_number(value, 512, (1 << 24) - 1)
        else:
            raise TextError(f"{name} is no key that a target can set")
    if wishes["OFMarker"] == "Yes" or wishes["IFMarker"] == "Yes":
        raise TextError("OFMarker, IFMarker: this target has no markers")
    return wishes


class Negotiation:
    """The operational parameters of one connection while they are being settled.

    `values` holds the result for every settled key (numbers, booleans as 0 or 1); `digests` the
    chosen digest by key; `peer_segment` the initiator's MaxRecvDataSegmentLength.
    """

    def __init__(self, wishes: Mapping[str, str], *, discovery: bool, leading: bool) -> None:
        self.wishes = wishes
        self.discovery = discovery
        self.leading = leading
        self.values = {name: rule.default for name, rule in SETTLED.items()}
        self.digests = dict.fromkeys(DIGESTS, NONE)
        self.peer_segment = SEGMENT_DEFAULT
        self.declared: set[str] = set()
        self.offered: dict[str, str] = {}

    def offer(self, name: str, value: str) -> tuple[str, str]:
        """Note an offer of our own, whose answer is then expected, and return it."""
        self.offered[name] = value
        return name, value

    def receive(self, name: str, value: str) -> str | None:
        """Take one operational key; return our answer, or None when none is due. Raises TextError."""
        if name in self.declared:
            raise TextError(f"{name} was declared before in this login")
        self.declared.add(name)
        if name == SEGMENT_LIMIT:
            self.peer_segment = parse_number(value, 512, (1 << 24) - 1)
            return None
        if name in self.offered:
            self._take_answer(name, value, self.offered.pop(name))
            return None
        return self._answer(name, value)

    def _answer(self, name: str, value: str) -> str | None:
        if name in TARGET_ONLY:
            raise TextError(f"{name} is never sent by an initiator")
        if value in RESERVED_ANSWERS:
            raise TextError(f"{name}={value} answers nothing that was offered")
        if name in MARKER_INTERVALS:
            return IRRELEVANT
        if name in DIGESTS:
            return self._choose_digest(name, value)
        rule = SETTLED.get(name)
        if rule is None:
            return NOT_UNDERSTOOD
        if self._irrelevant(name, rule):
            return IRRELEVANT
        if rule.leading and not self.leading:
            raise TextError(f"{name} is for the leading connection only")
        result = rule.result(rule.parse(value), rule.parse(self.wishes[name]))
        if name == "FirstBurstLength":
            limit = "MaxBurstLength"
            result = min(result, SETTLED[limit].parse(self.wishes[limit]))
            if limit in self.declared:
                result = min(result, self.values[limit])
        if name == "MaxOutstandingR2T" and self.wishes["ErrorRecoveryLevel"] != "0" and self._sequences_in_order():
            result = 1
        self.values[name] = result
        return rule.show(result)

    def _sequences_in_order(self) -> bool:
        # 12.19: with recovery only the last R2T may be retried, so there must be one at a time. A
        # key that has not come yet counts as its default.
        return self.wishes["DataSequenceInOrder"] == "Yes" or bool(self.values["DataSequenceInOrder"])

    def _irrelevant(self, name: str, rule: Numeric | Boolean) -> bool:
        if self.discovery:
            return not rule.discovery
        return (
            name == "FirstBurstLength"
            and {"InitialR2T", "ImmediateData"} <= self.declared
            and bool(self.values["InitialR2T"] and not self.values["ImmediateData"])
        )

    def _choose_digest(self, name: str, value: str) -> str:
        wanted = self.wishes[name].split(",")
        for choice in value.split(","):
            if choice in wanted:
                self.digests[name] = choice
                return choice
        return REJECT

    def _take_answer(self, name: str, value: str, offer: str) -> None:
        if value in RESERVED_ANSWERS:
            return
        if name in DIGESTS:
            if value not in offer.split(","):
                raise TextError(f"{name}={value} was not among those offered")
            self.digests[name] = value
            return
        rule = SETTLED.get(name)
        if rule is None:
            return
        answer = rule.parse(value)
        if rule.result(answer, rule.parse(offer)) != answer:
            raise TextError(f"{name}={value} cannot be the result of an offer of {offer}")
        self.values[name] = answer

    def settle(self) -> None:
        """Check what holds between keys once all are known; raises TextError."""
        if self.values["FirstBurstLength"] > self.values["MaxBurstLength"]:
            if "FirstBurstLength" in self.declared and "MaxBurstLength" in self.declared:
                raise TextError("FirstBurstLength is above MaxBurstLength")
            self.values["FirstBurstLength"] = self.values["MaxBurstLength"]
        if self.offered:
            raise TextError("no answer to " + ", ".join(sorted(self.offered)))
