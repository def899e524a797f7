# SPDX-License-Identifier: GPL-3.0-or-later
"""Text keys: the codec, joining over PDUs, values, CHAP's binary values, and negotiation by any target."""

from __future__ import annotations

from tests.fuzz.harness.base import Harness
from tests.fuzz.source import Source

from blockfleet.iscsi.chap import ChapProtocolError, decode_binary
from blockfleet.iscsi.keys import KEYS, Function, Kind, Stage, ValueFault, read_boolean, read_list, read_number
from blockfleet.iscsi.negotiation import MAXIMUM_WARNINGS, NegotiationError, Negotiator, Phase
from blockfleet.iscsi.parameters import Negotiated, SessionOffer
from blockfleet.iscsi.text import (
    MAXIMUM_NEGOTIATION_TEXT,
    PairStream,
    TextError,
    TextJoiner,
    decode_pair,
    decode_text,
    encode_text,
)

_OFFERS = (
    SessionOffer(),
    SessionOffer(header_digest=("CRC32C",), data_digest=("CRC32C", "None"), error_recovery_level=2),
    SessionOffer(max_connections=8, immediate_data=False, initial_r2t=True, protocol_level=2),
    SessionOffer(data_pdu_in_order=False, data_sequence_in_order=False, task_reporting=("FastAbort", "RFC3720")),
)
_READERS = {Kind.NUMBER: read_number, Kind.BOOLEAN: read_boolean, Kind.LIST: read_list}
_ANSWERS = (
    "Yes", "No", "None", "CRC32C", "Reject", "Irrelevant", "NotUnderstood", "0", "1", "2", "512", "8192", "65535",
    "16777215", "16777216", "0x200", "-1", "4294967296", "CRC32C,None", "None,CRC32C", "RFC3720", "?", "",
)  # fmt: skip
_NAMES = tuple(name for name, key in KEYS.items() if name != "AuthMethod" and key.function is not Function.EXCHANGE)
"""Keys that a negotiation is given; those of authentication are the login's."""


def _codec(source: Source) -> None:
    data = source.rest()
    try:
        pairs = decode_text(data)
    except TextError:
        return
    again = decode_text(encode_text(pairs))
    assert again == pairs
    assert len(encode_text(pairs)) <= len(data)


def _joined(source: Source) -> None:
    joiner = TextJoiner()
    stream = PairStream()
    held = 0
    try:
        while source.left:
            more = source.flag()
            part = source.take(source.number()) * source.choose((1, 1, 1, 50))
            held += len(part)
            assert held <= 2 * MAXIMUM_NEGOTIATION_TEXT, "more text was taken than any negotiation has"
            for raw in stream.feed(part):
                assert b"\0" not in raw
            joiner.add(part, more=more)
    except TextError:
        return


def _values(source: Source) -> None:
    key = source.choose(tuple(KEYS.values()))
    value = source.rest().decode("utf-8", "replace")
    try:
        decoded = decode_binary(key.name, value)
        assert 1 <= len(decoded) <= 1024
    except ChapProtocolError:
        pass
    try:
        if key.kind in _READERS:
            _READERS[key.kind](key, value)
    except ValueFault:
        pass


def _negotiation(source: Source) -> None:
    offer, phase = source.choose(_OFFERS), source.choose(tuple(Phase))
    session = None if phase is Phase.LEADING_LOGIN else Negotiated(max_connections=4)
    discovery = source.flag()
    negotiator = Negotiator(offer, phase=phase, discovery=discovery, session=session)
    try:
        negotiator.offers()
        while source.left:
            pairs = []
            for _ in range(source.number() % 8):
                known = source.number()
                name = _NAMES[known % len(_NAMES)] if known < 250 else f"X-{known}"
                value = source.choose((*_ANSWERS, None))
                if value is None:
                    value = source.take(source.number() % 64).decode("latin-1")
                pairs.append((name, value))
            negotiator.receive(pairs, source.choose((Stage.OPERATIONAL, Stage.SECURITY)))
        result = negotiator.finish()
    except NegotiationError:
        return
    finally:
        assert len(negotiator.warnings) <= MAXIMUM_WARNINGS
    if phase is Phase.LEADING_LOGIN and not discovery:
        assert result.error_recovery_level <= offer.error_recovery_level
        assert 512 <= result.max_burst_length <= offer.max_burst_length
        assert result.max_connections <= offer.max_connections
        assert result.first_burst_length <= result.max_burst_length
        assert not (result.immediate_data and not offer.immediate_data)
    assert result.header_digest or "None" in offer.header_digest or phase is Phase.FULL_FEATURE


def _pair(source: Source) -> None:
    try:
        key, value = decode_pair(source.rest())
    except TextError:
        return
    assert "\0" not in key + value
    assert "\n" not in key + value


_PARTS = (_codec, _joined, _values, _negotiation, _pair)


def test_one_input(data: bytes) -> None:
    """Let the first byte say which of the readers gets the rest."""
    source = Source(data)
    source.choose(_PARTS)(source)


HARNESS = Harness(
    "text",
    "text keys, their values, negotiation",
    test_one_input,
    tokens=(*(name.encode() + b"=" for name in KEYS), b"\0", b"0x", b"0b", b"Yes\0", b"None,CRC32C"),
)
