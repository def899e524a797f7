# SPDX-License-Identifier: GPL-3.0-or-later
"""Negotiation of operational parameters, in login and in the Full Feature Phase (RFC 3720 5.2 to 5.4, 12).

The rules of each key are in :mod:`blockfleet.iscsi.keys`; this module applies them.  It takes keys in any
order, over any number of PDUs, and nothing takes effect before :meth:`Negotiator.finish`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from blockfleet.iscsi.constants import DEFAULT_MRDSL
from blockfleet.iscsi.keys import (
    CRC32C,
    IRRELEVANT,
    KEYS,
    NONE,
    NOT_UNDERSTOOD,
    REJECT,
    REPEATABLE,
    RESERVED_ANSWERS,
    Function,
    Key,
    Kind,
    Sender,
    Stage,
    Use,
    ValueFault,
    check_length,
    read_boolean,
    read_list,
    read_number,
    write_value,
)
from blockfleet.iscsi.parameters import Negotiated, SessionOffer
from blockfleet.iscsi.text import MAXIMUM_SIMPLE_VALUE, Pair

MAXIMUM_KEYS = 2048
"""Pairs that are taken from a peer in one negotiation."""

MAXIMUM_WARNINGS = 32
"""Oddities of a peer that are kept for people to read."""


class NegotiationError(Exception):
    """The peer broke a rule of negotiation; the connection must be dropped (RFC 3720 5.3)."""


class OfferRefused(NegotiationError):
    """The target takes none of the values that are acceptable here; it broke no rule."""


class Phase(enum.Enum):
    """Which negotiation it is."""

    LEADING_LOGIN = "login of the first connection of a session"
    ADDED_LOGIN = "login of a further or reinstated connection"
    FULL_FEATURE = "text negotiation in the Full Feature Phase"


_ALLOWED_USES: dict[Phase, frozenset[Use]] = {
    Phase.LEADING_LOGIN: frozenset({Use.LEADING, Use.LOGIN, Use.ALL}),
    Phase.ADDED_LOGIN: frozenset({Use.LOGIN, Use.ALL}),
    Phase.FULL_FEATURE: frozenset({Use.FULL_FEATURE, Use.ALL}),
}

_COMBINE: dict[Function, Callable[[Any, Any], Any]] = {
    Function.MINIMUM: min,
    Function.MAXIMUM: max,
    Function.AND: lambda a, b: a and b,
    Function.OR: lambda a, b: a or b,
}


def may_go_unanswered(name: str, value: str) -> bool:
    """Whether a target's offer needs no answer of ours to have its result.

    That is so for a boolean that determines its result by itself (RFC 3720 5.2.2), for the obsolete keys, and,
    since nothing depends on it, for a key that is not understood.
    """
    key = KEYS.get(name)
    if key is None or key.function is Function.REFUSED:
        return True
    return (key.function, value) in {(Function.AND, "No"), (Function.OR, "Yes")}


class Negotiator:
    """One negotiation, seen from the initiator.

    ``session`` is what the session runs on already; it is needed for every phase but the leading login, and
    gives the values that cannot change any more.
    """

    def __init__(
        self,
        offer: SessionOffer,
        *,
        phase: Phase = Phase.LEADING_LOGIN,
        discovery: bool = False,
        session: Negotiated | None = None,
    ) -> None:
        if (phase is Phase.LEADING_LOGIN) != (session is None):
            raise ValueError("session belongs to every phase but the leading login")
        self._offer = offer
        self._phase = phase
        self._discovery = discovery
        self._session = session
        self._offered: dict[str, Any] = {}
        self._seen: set[str] = set()
        self._results: dict[str, Any] = {}
        self._refusals: dict[str, str] = {}
        self._count = 0
        self.tag: int | None = None
        """TargetPortalGroupTag, once it was declared."""
        self.target_alias = ""
        self.target_addresses: list[str] = []
        """TargetAddress values as they came, unread."""
        self.warnings: list[str] = []

    def lower_recovery_level(self, level: int) -> bool:
        """Offer no higher ErrorRecoveryLevel than ``level``, before :meth:`offers`; False where none was to be."""
        if self._phase is not Phase.LEADING_LOGIN or self._offer.error_recovery_level <= level:
            return False
        self._offer = replace(self._offer, error_recovery_level=level)
        return True

    @property
    def recovery_level_in_doubt(self) -> int:
        """The ErrorRecoveryLevel that was offered, and that a refusal may thus be about; 0 for none."""
        return int(self._offered.get("ErrorRecoveryLevel", 0))

    def offers(self) -> list[Pair]:
        """Return our offers and declarations, in the order of the table; to be sent once."""
        pairs: list[Pair] = []
        for key in KEYS.values():
            if not self._is_relevant(key) or not key.attribute:
                continue
            value = self._own(key)
            if value is None:
                continue
            if key.function is not Function.DECLARATION:
                self._offered[key.name] = value
            pairs.append((key.name, write_value(value)))
        return pairs

    def receive(self, pairs: list[Pair], stage: Stage = Stage.OPERATIONAL) -> list[Pair]:
        """Take the target's pairs and return the answers that they ask for.

        Raises :class:`NegotiationError`.
        """
        answers: list[Pair] = []
        for name, value in pairs:
            try:
                answer = self._receive_one(name, value, stage)
            except ValueFault as fault:
                raise NegotiationError(str(fault)) from None
            if answer is not None:
                answers.append((name, answer))
        return answers

    def finish(self) -> Negotiated:
        """Return what the negotiation amounts to.

        A key that was not answered, or answered with ``Reject``, ``Irrelevant`` or ``NotUnderstood``, gets
        its default, narrowed by our offer.  Raises :class:`NegotiationError` where the outcome breaks a rule.
        """
        values: dict[str, Any] = dict(self._results)
        for name, offered in self._offered.items():
            if name not in values:
                values[name] = self._default(KEYS[name], offered)
        declared = values.pop("MaxRecvDataSegmentLength", None)
        changes: dict[str, Any] = {KEYS[name].attribute: value for name, value in values.items()}
        for attribute in ("header_digest", "data_digest"):
            if attribute in changes:
                changes[attribute] = changes[attribute] == CRC32C
        changes["max_recv_data_segment_length"] = self._offer.max_recv_data_segment_length
        if declared is not None:
            changes["target_max_recv_data_segment_length"] = declared
        return self._checked(replace(self._base(), **changes), values)

    def _base(self) -> Negotiated:
        """Return what holds before this negotiation; a new connection starts from the connection defaults."""
        if self._session is None:
            return Negotiated()
        if self._phase is Phase.FULL_FEATURE:
            return self._session
        return replace(
            self._session,
            header_digest=False,
            data_digest=False,
            target_max_recv_data_segment_length=DEFAULT_MRDSL,
        )

    def _checked(self, result: Negotiated, values: dict[str, Any]) -> Negotiated:
        if self._phase is not Phase.LEADING_LOGIN or self._discovery:
            return result
        if result.first_burst_length > result.max_burst_length:
            if "FirstBurstLength" in self._results:
                raise NegotiationError(
                    f"FirstBurstLength {result.first_burst_length} is above MaxBurstLength"
                    f" {result.max_burst_length}"
                )
            result = replace(result, first_burst_length=result.max_burst_length)
        if (
            result.error_recovery_level > 0
            and result.data_sequence_in_order
            and values.get("MaxOutstandingR2T", 1) != 1
        ):
            raise NegotiationError(
                f"MaxOutstandingR2T is {result.max_outstanding_r2t} with ErrorRecoveryLevel"
                f" {result.error_recovery_level} and DataSequenceInOrder=Yes (RFC 3720 12.19)"
            )
        return result

    def _is_relevant(self, key: Key) -> bool:
        """Whether a key can mean anything in this negotiation, and may thus be offered."""
        if key.use not in _ALLOWED_USES[self._phase] or (self._discovery and not key.in_discovery):
            return False
        unsolicited = self._offer.immediate_data or not self._offer.initial_r2t
        return key.name != "FirstBurstLength" or unsolicited

    def _own(self, key: Key) -> Any:
        """Return our value of a key, None where we have none."""
        value = getattr(self._offer, key.attribute) if key.attribute else None
        one_r2t = self._offer.error_recovery_level > 0 and self._offer.data_sequence_in_order
        return 1 if key.name == "MaxOutstandingR2T" and one_r2t else value

    def _receive_one(self, name: str, value: str, stage: Stage) -> str | None:
        self._count += 1
        if self._count > MAXIMUM_KEYS:
            raise NegotiationError(f"more than {MAXIMUM_KEYS} keys in one negotiation")
        if name in self._seen and name not in REPEATABLE:
            raise NegotiationError(f"{name} was negotiated already")
        self._seen.add(name)
        key = KEYS.get(name)
        if key is None:
            return self._unknown(name, value)
        if Sender.TARGET not in key.senders:
            if value == NOT_UNDERSTOOD:
                # LIO says so of InitiatorAlias on a connection that joins a session; nothing depends on it.
                self._warn(f"the target answered {name} with {value}")
                return None
            raise NegotiationError(f"{name} is not the target's to send")
        if self._phase is not Phase.FULL_FEATURE and not key.stage & stage:
            raise NegotiationError(f"{name} is not allowed in this stage of login")
        check_length(key, value)
        if name in self._offered:
            self._take_answer(key, value)
            return None
        if value in RESERVED_ANSWERS:
            raise NegotiationError(f"{name}={value} answers nothing that was offered")
        if key.use not in _ALLOWED_USES[self._phase]:
            return self._out_of_place(key)
        if key.function is Function.DECLARATION:
            self._declare(key, value)
            return None
        return self._answer(key, value)

    def _unknown(self, name: str, value: str) -> str:
        if value in RESERVED_ANSWERS:
            raise NegotiationError(f"{name}={value} answers nothing that was offered")
        return NOT_UNDERSTOOD if len(value.encode()) <= MAXIMUM_SIMPLE_VALUE else REJECT

    def _out_of_place(self, key: Key) -> str | None:
        if self._phase is Phase.FULL_FEATURE:
            raise NegotiationError(f"{key.name} cannot be negotiated in the Full Feature Phase")
        if key.function is Function.DECLARATION:
            return None
        return IRRELEVANT

    def _declare(self, key: Key, value: str) -> None:
        if key.name == "MaxRecvDataSegmentLength":
            self._results[key.name] = read_number(key, value)
        elif key.name == "TargetPortalGroupTag":
            self.tag = read_number(key, value)
        elif key.name == "TargetAlias":
            self.target_alias = value
        elif key.name == "TargetAddress":
            self.target_addresses.append(value)

    def _take_answer(self, key: Key, value: str) -> None:
        """Take the answer to an offer of ours (RFC 3720 5.2.1, 5.2.2)."""
        offered = self._offered[key.name]
        if value in RESERVED_ANSWERS:
            self._refusals[key.name] = value
            if value != IRRELEVANT:
                self._warn(f"the target answered {key.name} with {value}")
            return
        if key.kind is Kind.LIST:
            if value not in offered:
                raise NegotiationError(f"{key.name}={value[:40]!r} was not offered")
            self._results[key.name] = value
            return
        answer = read_boolean(key, value) if key.kind is Kind.BOOLEAN else read_number(key, value)
        if _COMBINE[key.function](answer, offered) != answer:
            raise NegotiationError(
                f"{key.name}={value} is not a possible answer to {write_value(offered)} ({key.function.value})"
            )
        self._results[key.name] = answer

    def _answer(self, key: Key, value: str) -> str:
        """Answer an offer of the target's."""
        if key.function is Function.REFUSED:
            return key.refusal
        if not self._is_relevant(key):
            return IRRELEVANT
        own = self._own(key)
        if own is None:
            own = key.supported
        if key.kind is Kind.LIST:
            supported = own if own is not None else (key.default,)
            chosen = next((entry for entry in read_list(key, value) if entry in supported), None)
            if chosen is None:
                self._warn(f"{key.name}={value[:40]!r} from the target has nothing that is supported here")
                return REJECT
            self._results[key.name] = chosen
            return chosen
        theirs = read_boolean(key, value) if key.kind is Kind.BOOLEAN else read_number(key, value)
        result = _COMBINE[key.function](theirs, key.default if own is None else own)
        self._results[key.name] = result
        return write_value(result)

    def _default(self, key: Key, offered: Any) -> Any:
        """Return what an offer without a proper answer comes to."""
        if key.name == "iSCSIProtocolLevel" and self._refusals.get(key.name) == NOT_UNDERSTOOD:
            return 0
        if key.kind is not Kind.LIST:
            return _COMBINE[key.function](key.default, offered)
        if key.default == NONE and NONE not in offered:
            reason = self._refusals.get(key.name, "no answer")
            raise OfferRefused(f"{key.name}={write_value(offered)} is required here; the target gave {reason}")
        return key.default

    def _warn(self, text: str) -> None:
        if len(self.warnings) < MAXIMUM_WARNINGS:
            self.warnings.append(text)
