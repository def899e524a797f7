# SPDX-License-Identifier: GPL-3.0-or-later
"""Negotiation key by key: the classic stimuli (lower, equal, higher, illegal, absent) and the general rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.iscsi.keys import Stage
from blockfleet.iscsi.negotiation import (
    MAXIMUM_KEYS,
    NegotiationError,
    Negotiator,
    OfferRefused,
    Phase,
    may_go_unanswered,
)
from blockfleet.iscsi.parameters import DISCOVERY_OFFER, Negotiated, SessionOffer

# Every value differs from the default and from what the targets below answer.
OFFER = SessionOffer(
    header_digest=("CRC32C", "None"),
    data_digest=("None", "CRC32C"),
    max_connections=4,
    initial_r2t=False,
    immediate_data=True,
    max_recv_data_segment_length=200704,
    max_burst_length=524288,
    first_burst_length=131072,
    default_time2wait=3,
    default_time2retain=40,
    max_outstanding_r2t=6,
    data_pdu_in_order=False,
    data_sequence_in_order=False,
    error_recovery_level=1,
)


def negotiate(*pairs: tuple[str, str], offer: SessionOffer = OFFER, **options: Any) -> Negotiated:
    negotiator = Negotiator(offer, **options)
    negotiator.offers()
    assert negotiator.receive(list(pairs)) == []
    return negotiator.finish()


def test_every_operational_key_is_offered_once() -> None:
    assert dict(Negotiator(OFFER).offers()) == {
        "HeaderDigest": "CRC32C,None",
        "DataDigest": "None,CRC32C",
        "MaxConnections": "4",
        "InitialR2T": "No",
        "ImmediateData": "Yes",
        "MaxRecvDataSegmentLength": "200704",
        "MaxBurstLength": "524288",
        "FirstBurstLength": "131072",
        "DefaultTime2Wait": "3",
        "DefaultTime2Retain": "40",
        "MaxOutstandingR2T": "6",
        "DataPDUInOrder": "No",
        "DataSequenceInOrder": "No",
        "ErrorRecoveryLevel": "1",
    }


ANSWERS = [
    # key, attribute, answer, result
    pytest.param("MaxConnections", "max_connections", "1", 1, id="KEY-16-lower"),
    pytest.param("MaxConnections", "max_connections", "4", 4, id="KEY-16-equal"),
    pytest.param("InitialR2T", "initial_r2t", "Yes", True, id="KEY-17-Yes-to-No"),
    pytest.param("InitialR2T", "initial_r2t", "No", False, id="KEY-17-No-to-No"),
    pytest.param("ImmediateData", "immediate_data", "No", False, id="KEY-18-No-to-Yes"),
    pytest.param("ImmediateData", "immediate_data", "Yes", True, id="KEY-18-Yes-to-Yes"),
    pytest.param("MaxBurstLength", "max_burst_length", "262145", 262145, id="KEY-21-lower"),
    pytest.param("FirstBurstLength", "first_burst_length", "512", 512, id="KEY-22-lowest"),
    pytest.param("DefaultTime2Wait", "default_time2wait", "3600", 3600, id="KEY-23-higher"),
    pytest.param("DefaultTime2Wait", "default_time2wait", "3", 3, id="KEY-23-equal"),
    pytest.param("DefaultTime2Retain", "default_time2retain", "0", 0, id="KEY-24-none"),
    pytest.param("DefaultTime2Retain", "default_time2retain", "5", 5, id="KEY-24-lower"),
    pytest.param("MaxOutstandingR2T", "max_outstanding_r2t", "1", 1, id="KEY-25-lower"),
    pytest.param("DataPDUInOrder", "data_pdu_in_order", "Yes", True, id="KEY-26-Yes-to-No"),
    pytest.param("DataPDUInOrder", "data_pdu_in_order", "No", False, id="KEY-26-No-to-No"),
    pytest.param("DataSequenceInOrder", "data_sequence_in_order", "No", False, id="KEY-27-No-to-No"),
    pytest.param("ErrorRecoveryLevel", "error_recovery_level", "0", 0, id="KEY-29-lower"),
    pytest.param("ErrorRecoveryLevel", "error_recovery_level", "1", 1, id="KEY-29-equal"),
    pytest.param("HeaderDigest", "header_digest", "CRC32C", True, id="KEY-14-header-CRC32C"),
    pytest.param("HeaderDigest", "header_digest", "None", False, id="KEY-14-header-None"),
    pytest.param("DataDigest", "data_digest", "CRC32C", True, id="KEY-14-data-CRC32C"),
    pytest.param("DataDigest", "data_digest", "None", False, id="KEY-14-data-None"),
]


@pytest.mark.parametrize(("key", "attribute", "answer", "result"), ANSWERS)
def test_legal_answer_becomes_the_result(key: str, attribute: str, answer: str, result: object) -> None:
    assert getattr(negotiate((key, answer)), attribute) == result


ILLEGAL_ANSWERS = [
    pytest.param("MaxConnections", "0", id="KEY-16-zero"),
    pytest.param("MaxConnections", "65536", id="KEY-16-too-big"),
    pytest.param("MaxConnections", "5", id="KEY-16-higher"),
    pytest.param("MaxBurstLength", "524289", id="KEY-21-higher"),
    pytest.param("MaxBurstLength", "511", id="KEY-21-too-small"),
    pytest.param("FirstBurstLength", "131073", id="KEY-22-higher"),
    pytest.param("FirstBurstLength", "0", id="KEY-22-zero"),
    pytest.param("DefaultTime2Wait", "0", id="KEY-23-lower-than-offered"),
    pytest.param("DefaultTime2Wait", "3601", id="KEY-23-too-big"),
    pytest.param("DefaultTime2Retain", "41", id="KEY-24-higher"),
    pytest.param("MaxOutstandingR2T", "7", id="KEY-25-higher"),
    pytest.param("MaxOutstandingR2T", "0", id="KEY-25-zero"),
    pytest.param("ErrorRecoveryLevel", "2", id="KEY-29-higher"),
    pytest.param("ErrorRecoveryLevel", "3", id="KEY-29-illegal"),
    pytest.param("HeaderDigest", "CRC64", id="KEY-11-unoffered"),
    pytest.param("HeaderDigest", "crc32c", id="KEY-11-other-case"),
    pytest.param("HeaderDigest", "CRC32C,None", id="KEY-13-list"),
    pytest.param("ImmediateData", "true", id="KEY-18-no-boolean"),
    pytest.param("MaxBurstLength", "x", id="KEY-21-no-number"),
    pytest.param("MaxBurstLength", "512~1024", id="KEY-21-range"),
    pytest.param("MaxRecvDataSegmentLength", "511", id="KEY-20-too-small"),
    pytest.param("MaxRecvDataSegmentLength", "0", id="KEY-20-zero"),
    pytest.param("MaxRecvDataSegmentLength", "16777216", id="KEY-20-too-big"),
    pytest.param("MaxRecvDataSegmentLength", "-1", id="KEY-20-negative"),
    pytest.param("MaxRecvDataSegmentLength", "x", id="KEY-20-no-number"),
    pytest.param("MaxRecvDataSegmentLength", "Reject", id="KEY-20-reserved-word"),
    pytest.param("TargetPortalGroupTag", "65536", id="KEY-31-too-big"),
    pytest.param("TargetPortalGroupTag", "x", id="KEY-31-no-number"),
    pytest.param("TargetAlias", "x" * 256, id="KEY-32-too-long"),
]


@pytest.mark.parametrize(("key", "value"), ILLEGAL_ANSWERS)
def test_illegal_answer_ends_the_negotiation(key: str, value: str) -> None:
    negotiator = Negotiator(OFFER)
    negotiator.offers()
    with pytest.raises(NegotiationError, match=key):
        negotiator.receive([(key, value)])


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        pytest.param({"initial_r2t": True}, "InitialR2T", "No", id="KEY-17-No-to-Yes"),
        pytest.param({"immediate_data": False}, "ImmediateData", "Yes", id="KEY-18-Yes-to-No"),
        pytest.param({"data_pdu_in_order": True}, "DataPDUInOrder", "No", id="KEY-26-No-to-Yes"),
        pytest.param({"data_sequence_in_order": True}, "DataSequenceInOrder", "No", id="KEY-27-No-to-Yes"),
    ],
)
def test_answer_that_the_boolean_function_cannot_give_ends_the_negotiation(
    change: dict[str, bool], key: str, value: str
) -> None:
    negotiator = Negotiator(replace(OFFER, **change))
    negotiator.offers()
    with pytest.raises(NegotiationError, match=key):
        negotiator.receive([(key, value)])


def test_without_any_answer_the_defaults_hold_narrowed_by_the_offer() -> None:
    result = negotiate()
    assert result == Negotiated(
        header_digest=False,
        data_digest=False,
        max_connections=1,
        initial_r2t=True,
        immediate_data=True,
        max_recv_data_segment_length=200704,
        target_max_recv_data_segment_length=8192,
        max_burst_length=262144,
        first_burst_length=65536,
        default_time2wait=3,
        default_time2retain=20,
        max_outstanding_r2t=1,
        data_pdu_in_order=True,
        data_sequence_in_order=True,
        error_recovery_level=0,
    )


def test_absent_answer_never_exceeds_an_offer_below_the_default() -> None:
    offer = replace(OFFER, max_burst_length=65536, first_burst_length=4096, default_time2retain=7)
    result = negotiate(offer=offer)
    assert (result.max_burst_length, result.first_burst_length, result.default_time2retain) == (65536, 4096, 7)


@pytest.mark.parametrize("word", ["Reject", "Irrelevant", "NotUnderstood"])
@pytest.mark.parametrize(
    ("key", "attribute", "default"),
    [
        ("HeaderDigest", "header_digest", False),
        ("MaxConnections", "max_connections", 1),
        ("MaxBurstLength", "max_burst_length", 262144),
        ("FirstBurstLength", "first_burst_length", 65536),
        ("ErrorRecoveryLevel", "error_recovery_level", 0),
        ("InitialR2T", "initial_r2t", True),
    ],
)
def test_KEY_06_KEY_07_reserved_words_leave_the_default(
    key: str, attribute: str, default: object, word: str
) -> None:
    assert getattr(negotiate((key, word)), attribute) == default


@pytest.mark.parametrize("word", ["Reject", "NotUnderstood"])
def test_KEY_07_refusal_of_a_standard_key_is_reported(word: str) -> None:
    negotiator = Negotiator(OFFER)
    negotiator.offers()
    negotiator.receive([("MaxBurstLength", word)])
    assert negotiator.warnings == [f"the target answered MaxBurstLength with {word}"]


@pytest.mark.parametrize("answer", [(), (("HeaderDigest", "Reject"),), (("HeaderDigest", "NotUnderstood"),)])
def test_KEY_06_digest_that_is_required_here_is_not_given_up(answer: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(OfferRefused, match="HeaderDigest=CRC32C is required"):
        negotiate(*answer, offer=replace(OFFER, header_digest=("CRC32C",)))


def test_KEY_19_segment_lengths_are_declared_per_direction() -> None:
    result = negotiate(("MaxRecvDataSegmentLength", "512"))
    assert result.target_max_recv_data_segment_length == 512
    assert result.max_recv_data_segment_length == 200704


def test_KEY_19_declaration_is_not_answered() -> None:
    negotiator = Negotiator(OFFER)
    negotiator.offers()
    assert negotiator.receive([("MaxRecvDataSegmentLength", "16777215"), ("TargetAlias", "Disk \u2116 1")]) == []
    assert negotiator.target_alias == "Disk \u2116 1"
    assert negotiator.finish().target_max_recv_data_segment_length == 16777215


def test_KEY_22_first_burst_above_max_burst_ends_the_negotiation_in_any_order() -> None:
    pairs = [("FirstBurstLength", "131072"), ("MaxBurstLength", "65536")]
    for order in (pairs, pairs[::-1]):
        with pytest.raises(NegotiationError, match="above MaxBurstLength"):
            negotiate(*order)


def test_KEY_22_first_burst_without_answer_is_held_below_max_burst() -> None:
    assert negotiate(("MaxBurstLength", "4096")).first_burst_length == 4096


def test_KEY_22_first_burst_is_not_offered_where_it_is_irrelevant() -> None:
    negotiator = Negotiator(replace(OFFER, initial_r2t=True, immediate_data=False))
    assert "FirstBurstLength" not in dict(negotiator.offers())
    assert negotiator.receive([("FirstBurstLength", "1024")]) == [("FirstBurstLength", "Irrelevant")]


# Offers that the target makes: a negotiator that was not asked for its own plays a target-first exchange.
TARGET_OFFERS = [
    pytest.param("MaxOutstandingR2T", "4", "4", id="KEY-10-minimum-theirs"),
    pytest.param("MaxOutstandingR2T", "60", "6", id="KEY-10-minimum-ours"),
    pytest.param("DefaultTime2Retain", "60", "40", id="KEY-10-minimum-retain"),
    pytest.param("DefaultTime2Wait", "5", "5", id="KEY-10-maximum-theirs"),
    pytest.param("DefaultTime2Wait", "0", "3", id="KEY-10-maximum-ours"),
    pytest.param("DataPDUInOrder", "No", "No", id="KEY-10-or-No"),
    pytest.param("DataPDUInOrder", "Yes", "Yes", id="KEY-10-or-Yes"),
    pytest.param("ImmediateData", "No", "No", id="KEY-10-and-No"),
    pytest.param("ImmediateData", "Yes", "Yes", id="KEY-10-and-Yes"),
    pytest.param("HeaderDigest", "Foo,None,CRC32C", "None", id="KEY-12-first-supported"),
    pytest.param("HeaderDigest", "CRC32C,None", "CRC32C", id="KEY-12-first"),
    pytest.param("HeaderDigest", "Foo,Bar", "Reject", id="KEY-12-none-supported"),
    pytest.param("X-com.example.foo", "1", "NotUnderstood", id="KEY-05-private-key"),
    pytest.param("Bogus", "7", "NotUnderstood", id="KEY-05-unknown-key"),
    pytest.param("X-com.example.long", "x" * 300, "Reject", id="KEY-02-over-long-value"),
    pytest.param("OFMarker", "Yes", "No", id="NEW-04-OFMarker"),
    pytest.param("IFMarker", "No", "No", id="NEW-04-IFMarker"),
    pytest.param("OFMarkInt", "2048~8192", "Reject", id="NEW-04-OFMarkInt"),
    pytest.param("IFMarkInt", "2048", "Reject", id="NEW-04-IFMarkInt"),
    pytest.param("iSCSIProtocolLevel", "3", "2", id="NEW-02-not-offered"),
    pytest.param("iSCSIProtocolLevel", "1", "1", id="NEW-02-lower"),
    pytest.param("TaskReporting", "Other,ResponseFence,FastAbort", "ResponseFence", id="NEW-05-not-offered"),
    pytest.param("TaskReporting", "FastAbort,RFC3720", "FastAbort", id="NEW-05-not-offered"),
]


@pytest.mark.parametrize(("key", "value", "answer"), TARGET_OFFERS)
def test_offer_of_the_target_is_answered(key: str, value: str, answer: str) -> None:
    assert Negotiator(OFFER).receive([(key, value)]) == [(key, answer)]


def test_answer_to_the_target_is_the_result() -> None:
    negotiator = Negotiator(OFFER)
    negotiator.receive([("MaxOutstandingR2T", "4"), ("DefaultTime2Wait", "5"), ("HeaderDigest", "Foo,CRC32C")])
    result = negotiator.finish()
    assert (result.max_outstanding_r2t, result.default_time2wait, result.header_digest) == (4, 5, True)


def test_NEW_03_node_architecture_is_declared_and_not_answered() -> None:
    assert Negotiator(OFFER).receive([("X#NodeArchitecture", "ExampleOS/1.0")]) == []


@pytest.mark.parametrize("word", ["Reject", "Irrelevant", "NotUnderstood"])
@pytest.mark.parametrize("key", ["MaxBurstLength", "X-com.example.foo", "OFMarker"])
def test_reserved_words_may_not_be_proposed(key: str, word: str) -> None:
    with pytest.raises(NegotiationError, match="answers nothing"):
        Negotiator(OFFER).receive([(key, word)])


@pytest.mark.parametrize("value", ["0", "65536", "x"])
def test_illegal_offer_of_the_target_ends_the_negotiation(value: str) -> None:
    with pytest.raises(NegotiationError, match="MaxOutstandingR2T"):
        Negotiator(OFFER).receive([("MaxOutstandingR2T", value)])


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([("ImmediateData", "Yes"), ("ImmediateData", "No")], id="KEY-08-answered-twice"),
        pytest.param([("ImmediateData", "No"), ("ImmediateData", "No")], id="KEY-08-same-value-twice"),
        pytest.param([("MaxRecvDataSegmentLength", "512")] * 2, id="KEY-08-declared-twice"),
        pytest.param([("TargetPortalGroupTag", "1"), ("TargetPortalGroupTag", "2")], id="KEY-08-tag-twice"),
        pytest.param([("Bogus", "1")] * 2, id="KEY-08-unknown-twice"),
        pytest.param([("MaxBurstLength", "Reject"), ("MaxBurstLength", "4096")], id="KEY-08-after-Reject"),
    ],
)
def test_renegotiation_ends_the_negotiation(pairs: list[tuple[str, str]]) -> None:
    for split in (1, 2):
        negotiator = Negotiator(OFFER)
        negotiator.offers()
        with pytest.raises(NegotiationError, match="already"):  # noqa: PT012 - in one PDU and in two
            negotiator.receive(pairs[:split])
            negotiator.receive(pairs[split:])


def test_target_address_may_be_repeated() -> None:
    negotiator = Negotiator(OFFER)
    negotiator.receive([("TargetAddress", "192.0.2.1:3260"), ("TargetAddress", "192.0.2.2:3260")])
    assert negotiator.target_addresses == ["192.0.2.1:3260", "192.0.2.2:3260"]


@pytest.mark.parametrize("key", ["InitiatorName", "TargetName", "SessionType", "InitiatorAlias", "SendTargets"])
def test_keys_of_the_initiator_are_not_the_targets_to_send(key: str) -> None:
    with pytest.raises(NegotiationError, match="not the target's"):
        Negotiator(OFFER).receive([(key, "x")])


@pytest.mark.parametrize("key", ["AuthMethod", "CHAP_A", "CHAP_C"])
def test_SEC_28_security_key_in_the_operational_stage_ends_the_negotiation(key: str) -> None:
    with pytest.raises(NegotiationError, match="not allowed in this stage"):
        Negotiator(OFFER).receive([(key, "5")], Stage.OPERATIONAL)


@pytest.mark.parametrize("key", ["MaxBurstLength", "HeaderDigest", "MaxRecvDataSegmentLength", "OFMarker"])
def test_SEC_28_operational_key_in_the_security_stage_ends_the_negotiation(key: str) -> None:
    with pytest.raises(NegotiationError, match="not allowed in this stage"):
        Negotiator(OFFER).receive([(key, "512")], Stage.SECURITY)


def test_declaration_that_the_target_does_not_understand_is_reported_and_no_error() -> None:
    """LIO answers InitiatorAlias so on the second connection of a session."""
    negotiator = Negotiator(OFFER)
    negotiator.offers()
    assert negotiator.receive([("InitiatorAlias", "NotUnderstood")], Stage.SECURITY) == []
    assert negotiator.receive([("MaxConnections", "3")]) == []
    assert negotiator.finish().max_connections == 3
    assert negotiator.warnings == ["the target answered InitiatorAlias with NotUnderstood"]


def test_count_of_keys_is_bounded() -> None:
    negotiator = Negotiator(OFFER)
    negotiator.receive([(f"X-{n}", "1") for n in range(MAXIMUM_KEYS)])
    with pytest.raises(NegotiationError, match="more than"):
        negotiator.receive([("X-more", "1")])


def test_KEY_28_recovery_with_ordered_sequences_offers_one_r2t() -> None:
    offer = replace(OFFER, error_recovery_level=2, data_sequence_in_order=True, max_outstanding_r2t=8)
    negotiator = Negotiator(offer)
    assert dict(negotiator.offers())["MaxOutstandingR2T"] == "1"
    with pytest.raises(NegotiationError, match="MaxOutstandingR2T"):
        negotiator.receive([("ErrorRecoveryLevel", "1"), ("MaxOutstandingR2T", "8")])


def test_KEY_28_target_that_orders_sequences_with_many_r2ts_and_recovery_is_refused() -> None:
    with pytest.raises(NegotiationError, match="DataSequenceInOrder"):
        negotiate(("ErrorRecoveryLevel", "1"), ("DataSequenceInOrder", "Yes"), ("MaxOutstandingR2T", "2"))


def test_KEY_28_many_r2ts_are_fine_without_recovery() -> None:
    result = negotiate(("ErrorRecoveryLevel", "0"), ("DataSequenceInOrder", "Yes"), ("MaxOutstandingR2T", "2"))
    assert (result.error_recovery_level, result.max_outstanding_r2t) == (0, 2)


def test_KEY_34_discovery_offers_only_what_is_relevant_there() -> None:
    assert {name for name, _ in Negotiator(DISCOVERY_OFFER, discovery=True).offers()} == {
        "HeaderDigest",
        "DataDigest",
        "MaxRecvDataSegmentLength",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "ErrorRecoveryLevel",
    }


@pytest.mark.parametrize(
    ("key", "value"), [("MaxBurstLength", "65536"), ("ImmediateData", "Yes"), ("MaxConnections", "2")]
)
def test_KEY_34_irrelevant_keys_from_the_target_are_answered_so_in_discovery(key: str, value: str) -> None:
    negotiator = Negotiator(DISCOVERY_OFFER, discovery=True)
    negotiator.offers()
    assert negotiator.receive([(key, value)]) == [(key, "Irrelevant")]


SESSION = Negotiated(
    header_digest=True,
    max_connections=3,
    target_max_recv_data_segment_length=65536,
    max_burst_length=131072,
    error_recovery_level=2,
)


def test_KEY_35_added_connection_offers_no_leading_only_key() -> None:
    negotiator = Negotiator(OFFER, phase=Phase.ADDED_LOGIN, session=SESSION)
    assert [name for name, _ in negotiator.offers()] == [
        "HeaderDigest",
        "DataDigest",
        "MaxRecvDataSegmentLength",
    ]


def test_KEY_35_added_connection_keeps_the_session_and_starts_its_own_values_anew() -> None:
    result = negotiate(("DataDigest", "CRC32C"), phase=Phase.ADDED_LOGIN, session=SESSION)
    assert (result.max_connections, result.max_burst_length, result.error_recovery_level) == (3, 131072, 2)
    assert (result.header_digest, result.data_digest) == (False, True)
    assert result.target_max_recv_data_segment_length == 8192


def test_KEY_35_leading_only_key_of_the_target_is_answered_irrelevant_on_an_added_connection() -> None:
    negotiator = Negotiator(OFFER, phase=Phase.ADDED_LOGIN, session=SESSION)
    assert negotiator.receive([("MaxBurstLength", "65536")]) == [("MaxBurstLength", "Irrelevant")]


def test_declaration_on_an_added_connection_is_not_answered() -> None:
    negotiator = Negotiator(OFFER, phase=Phase.ADDED_LOGIN, session=SESSION)
    assert negotiator.receive([("X#NodeArchitecture", "ExampleOS/1.0")]) == []


def test_full_feature_phase_negotiates_the_segment_length_only() -> None:
    negotiator = Negotiator(
        replace(OFFER, max_recv_data_segment_length=65536), phase=Phase.FULL_FEATURE, session=SESSION
    )
    assert negotiator.offers() == [("MaxRecvDataSegmentLength", "65536")]
    assert negotiator.receive([("MaxRecvDataSegmentLength", "4096"), ("X-com.example.a", "1")]) == [
        ("X-com.example.a", "NotUnderstood")
    ]
    assert negotiator.finish() == replace(
        SESSION, max_recv_data_segment_length=65536, target_max_recv_data_segment_length=4096
    )


@pytest.mark.parametrize("key", ["HeaderDigest", "MaxBurstLength", "TargetPortalGroupTag"])
def test_login_only_keys_are_refused_in_the_full_feature_phase(key: str) -> None:
    negotiator = Negotiator(OFFER, phase=Phase.FULL_FEATURE, session=SESSION)
    with pytest.raises(NegotiationError, match="Full Feature Phase"):
        negotiator.receive([(key, "512")])


def test_phase_and_session_go_together() -> None:
    with pytest.raises(ValueError, match="session"):
        Negotiator(OFFER, phase=Phase.ADDED_LOGIN)
    with pytest.raises(ValueError, match="session"):
        Negotiator(OFFER, session=SESSION)


def test_NEW_02_protocol_level_when_offered() -> None:
    offer = replace(OFFER, protocol_level=2)
    assert ("iSCSIProtocolLevel", "2") in Negotiator(offer).offers()
    for answer, level in [("0", 0), ("1", 1), ("2", 2), ("NotUnderstood", 0), ("Reject", 1)]:
        assert negotiate(("iSCSIProtocolLevel", answer), offer=offer).protocol_level == level
    assert negotiate(offer=offer).protocol_level == 1


def test_NEW_05_task_reporting_falls_back_to_rfc_3720() -> None:
    offer = replace(OFFER, task_reporting=("FastAbort", "ResponseFence"))
    assert negotiate(("TaskReporting", "ResponseFence"), offer=offer).task_reporting == "ResponseFence"
    assert negotiate(("TaskReporting", "NotUnderstood"), offer=offer).task_reporting == "RFC3720"
    assert negotiate(offer=offer).task_reporting == "RFC3720"


@pytest.mark.parametrize(
    ("name", "value", "may"),
    [
        ("InitialR2T", "Yes", True),
        ("InitialR2T", "No", False),
        ("ImmediateData", "No", True),
        ("ImmediateData", "Yes", False),
        ("MaxBurstLength", "65536", False),
        ("OFMarker", "Yes", True),
        ("X-com.example.a", "1", True),
    ],
)
def test_answers_that_rfc_3720_5_2_2_leaves_optional(name: str, value: str, may: bool) -> None:
    assert may_go_unanswered(name, value) is may


def _as_target(offer: SessionOffer) -> list[tuple[str, str]]:
    """What a target with these wishes answers to OFFER, by RFC 3720 chapter 12 (min, max, and, or)."""
    return [
        ("MaxConnections", str(min(4, offer.max_connections))),
        ("InitialR2T", "Yes" if offer.initial_r2t else "No"),
        ("ImmediateData", "Yes" if offer.immediate_data else "No"),
        ("DefaultTime2Wait", str(max(3, offer.default_time2wait))),
        ("DefaultTime2Retain", str(min(40, offer.default_time2retain))),
        ("DataPDUInOrder", "Yes" if offer.data_pdu_in_order else "No"),
        ("MaxRecvDataSegmentLength", str(offer.max_recv_data_segment_length)),
    ]


@given(
    st.builds(
        SessionOffer,
        max_connections=st.integers(1, 65535),
        initial_r2t=st.booleans(),
        immediate_data=st.booleans(),
        default_time2wait=st.integers(0, 3600),
        default_time2retain=st.integers(0, 3600),
        data_pdu_in_order=st.booleans(),
        max_recv_data_segment_length=st.integers(512, 16777215),
    ),
    st.randoms(use_true_random=False),
    st.integers(0, 7),
)
def test_KEY_38_result_does_not_depend_on_order_or_on_the_number_of_pdus(
    target: SessionOffer, random: Any, cut: int
) -> None:
    pairs = _as_target(target)
    straight = negotiate(*pairs)
    random.shuffle(pairs)
    negotiator = Negotiator(OFFER)
    negotiator.offers()
    assert negotiator.receive(pairs[:cut]) + negotiator.receive(pairs[cut:]) == []
    assert negotiator.finish() == straight
    assert straight.max_connections == min(4, target.max_connections)
    assert straight.default_time2wait == max(3, target.default_time2wait)
    assert straight.immediate_data is target.immediate_data


@given(st.lists(st.tuples(st.sampled_from(["MaxBurstLength", "HeaderDigest", "A", "OFMarkInt"]), st.text())))
def test_values_of_any_kind_are_answered_or_end_the_negotiation(pairs: list[tuple[str, str]]) -> None:
    negotiator = Negotiator(OFFER)
    try:
        answers = negotiator.receive(pairs)
    except NegotiationError:
        return
    assert len(answers) == len(pairs)
