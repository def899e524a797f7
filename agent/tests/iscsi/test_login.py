# SPDX-License-Identifier: GPL-3.0-or-later
"""The login phase against a scripted target: format, stages, identity (RFC 3720 5.3, 10.12, 10.13)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.iscsi.scripted_login import INITIATOR, ISID, ITT, OFFER, TARGET, Script, parameters

from blockfleet.iscsi.login import LoginMachine, SessionType
from blockfleet.iscsi.login_failure import FailureKind
from blockfleet.iscsi.parameters import DISCOVERY_OFFER, Negotiated

DISCOVERY = {"target_name": None, "session_type": SessionType.DISCOVERY, "offer": DISCOVERY_OFFER}
SESSION = Negotiated(max_connections=4, max_burst_length=131072)
ADDED = {"tsih": 0x1234, "leading": False, "session": SESSION}


def failure_kind(script: Script) -> FailureKind:
    assert script.machine.result is None
    assert script.machine.failure is not None
    return script.machine.failure.kind


# The first request


def test_LGN_01_LGN_14_first_request_is_an_immediate_login_request_of_version_0() -> None:
    script = Script()
    assert len(script.requests) == 1
    assert script.last.wire[0] == 0x43
    assert script.last.versions == (0, 0)
    assert script.last.wire[4] == 0


def test_LGN_03_LGN_04_first_request_names_initiator_and_target() -> None:
    assert Script(parameters(initiator_alias="web 4")).last.text == {
        "InitiatorName": INITIATOR,
        "InitiatorAlias": "web 4",
        "TargetName": TARGET,
        "SessionType": "Normal",
        "AuthMethod": "None",
    }


def test_LGN_05_discovery_declares_its_session_type_and_may_omit_the_target() -> None:
    assert Script(parameters(**DISCOVERY)).last.text == {
        "InitiatorName": INITIATOR,
        "SessionType": "Discovery",
        "AuthMethod": "None",
    }


def test_LGN_09_leading_login_uses_tsih_0() -> None:
    assert Script().last.tsih == 0


def test_LGN_10_MCS_01_added_login_carries_the_tsih_and_both_names_and_no_session_type() -> None:
    request = Script(parameters(**ADDED, cid=9, cmd_sn=500)).last
    assert (request.tsih, request.cid, request.cmd_sn, request.isid) == (0x1234, 9, 500, ISID)
    assert request.text == {"InitiatorName": INITIATOR, "TargetName": TARGET, "AuthMethod": "None"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"isid": bytes(5)}, id="LGN-07-ISID-of-5-bytes"),
        pytest.param({"isid": b"\xc0" + bytes(5)}, id="LGN-07-reserved-ISID-type"),
        pytest.param({"tsih": 1}, id="LGN-09-leading-with-TSIH"),
        pytest.param({"leading": False, "session": SESSION}, id="LGN-10-added-without-TSIH"),
        pytest.param({"leading": False, "tsih": 1}, id="added-without-session"),
        pytest.param({"target_name": None}, id="LGN-04-normal-without-target"),
        pytest.param({"target_name": "IQN.2026-11.com.example:x"}, id="LGN-03-name-not-normalised"),
        pytest.param({"initiator_name": "web4"}, id="LGN-03-no-iSCSI-name"),
        pytest.param({"initiator_alias": "a\0b"}, id="KEY-32-alias-with-null"),
        pytest.param({"initiator_alias": "x" * 256}, id="KEY-32-alias-too-long"),
        pytest.param({"task_tag": 0xFFFFFFFF}, id="reserved-task-tag"),
    ],
)
def test_contradictions_are_refused_before_anything_is_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parameters(**changes)


# A whole login


def test_login_without_authentication_as_in_appendix_c() -> None:
    script = Script()
    assert (script.last.transit, script.last.stages) == (True, (0, 1))
    request = script.answer("TargetPortalGroupTag=1", "AuthMethod=None", t=True)
    assert request is not None
    assert (request.transit, request.stages) == (True, (1, 3))
    assert request.text["MaxConnections"] == "4"
    script.accept(
        "HeaderDigest=None",
        "DataDigest=CRC32C",
        "MaxConnections=2",
        "InitialR2T=Yes",
        "ImmediateData=No",
        "MaxRecvDataSegmentLength=65536",
        "MaxBurstLength=262144",
        "FirstBurstLength=32768",
        "DefaultTime2Wait=5",
        "DefaultTime2Retain=15",
        "MaxOutstandingR2T=3",
        "DataPDUInOrder=Yes",
        "DataSequenceInOrder=Yes",
        "ErrorRecoveryLevel=0",
        "TargetAlias=Disk 1",
    )
    result = script.machine.result
    assert result is not None
    assert result.negotiated == Negotiated(
        header_digest=False,
        data_digest=True,
        max_connections=2,
        initial_r2t=True,
        immediate_data=False,
        max_recv_data_segment_length=131072,
        target_max_recv_data_segment_length=65536,
        max_burst_length=262144,
        first_burst_length=32768,
        default_time2wait=5,
        default_time2retain=15,
        max_outstanding_r2t=3,
    )
    assert (result.tsih, result.tag, result.target_alias) == (0x1234, 1, "Disk 1")
    assert (result.exp_cmd_sn, result.max_cmd_sn) == (123, 154)
    assert (result.chap_algorithm, result.mutual, result.warnings) == (None, False, ())


def test_LGN_13_LGN_16_LGN_19_identity_is_the_same_in_every_request() -> None:
    script = Script()
    script.answer("AuthMethod=None", "TargetPortalGroupTag=1")
    script.answer(t=True)
    script.answer("MaxOutstandingR2T=1")
    script.answer("MaxBurstLength=65536")
    script.accept()
    assert len(script.requests) == 5
    assert {(r.isid, r.tsih, r.cid, r.itt, r.cmd_sn, r.versions) for r in script.requests} == {
        (ISID, 0, 3, ITT, 123, (0, 0))
    }
    assert {r.wire[0] for r in script.requests} == {0x43}


@pytest.mark.parametrize("first", [0, 1, 0x7FFFFFFE, 0xFFFFFFFE, 0xFFFFFFFF])
def test_LGN_17_stat_sn_starts_where_the_target_says_and_wraps(first: int) -> None:
    script = Script(stat_sn=first)
    script.skip_security()
    script.answer()
    script.accept()
    assert [r.exp_stat_sn for r in script.requests[1:]] == [(first + n) & 0xFFFFFFFF for n in (1, 2)]
    assert script.machine.result is not None
    assert script.machine.result.exp_stat_sn == (first + 3) & 0xFFFFFFFF


def test_stat_sn_that_jumps_during_login_is_reported_and_followed() -> None:
    script = Script(stat_sn=10)
    script.skip_security()
    script.stat_sn = 77
    script.accept()
    assert script.machine.result is not None
    assert script.machine.result.exp_stat_sn == 78
    assert any("StatSN" in warning for warning in script.machine.result.warnings)


def test_LGN_10_added_login_keeps_the_session_values() -> None:
    script = Script(parameters(**ADDED))
    request = script.skip_security()
    assert set(request.text) == {"HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength"}
    script.accept("HeaderDigest=None", "DataDigest=None", tsih=0)
    result = script.machine.result
    assert result is not None
    assert result.tsih == 0x1234
    assert (result.negotiated.max_connections, result.negotiated.max_burst_length) == (4, 131072)


def test_LGN_21_stage_pairs_of_requests_are_legal() -> None:
    script = Script()
    script.answer("AuthMethod=None")
    script.answer(t=True)
    script.answer()
    script.answer()
    script.accept()
    assert {r.stages for r in script.requests if r.transit} == {(0, 1), (1, 3)}
    assert [r.stages[0] for r in script.requests] == [0, 0, 1, 1, 1]


def test_LGN_25_key_proposed_with_t_0_is_answered_in_the_next_request() -> None:
    script = Script()
    script.skip_security()
    request = script.answer("OFMarker=Yes", "X-com.example.a=1")
    assert request is not None
    assert (request.transit, request.stages) == (True, (1, 3))
    assert request.text == {"OFMarker": "No", "X-com.example.a": "NotUnderstood"}
    script.accept()
    assert script.machine.result is not None


def test_KEY_05_unknown_key_in_the_security_stage_is_answered_there() -> None:
    script = Script()
    request = script.answer("AuthMethod=None", "X-com.example.a=1")
    assert request is not None
    assert (request.stages[0], request.text) == (0, {"X-com.example.a": "NotUnderstood"})


def test_KEY_38_one_key_per_pdu_over_15_rounds() -> None:
    script = Script()
    script.skip_security()
    for pair in [
        "HeaderDigest=CRC32C",
        "DataDigest=None",
        "MaxConnections=1",
        "InitialR2T=No",
        "ImmediateData=Yes",
        "MaxRecvDataSegmentLength=4096",
        "MaxBurstLength=16384",
        "FirstBurstLength=8192",
        "DefaultTime2Wait=1",
        "DefaultTime2Retain=0",
        "MaxOutstandingR2T=2",
        "DataPDUInOrder=Yes",
        "DataSequenceInOrder=Yes",
        "ErrorRecoveryLevel=0",
        "TargetAlias=x",
    ]:
        request = script.answer(pair)
        assert request is not None
        assert (request.transit, request.data) == (True, b"")
    script.accept()
    assert script.machine.result is not None
    assert script.machine.result.negotiated.max_burst_length == 16384


def test_LGN_41_long_text_is_sent_in_parts_that_wait_for_empty_answers() -> None:
    script = Script()
    script.skip_security()
    keys = [f"X-com.example.key{number:04}=1" for number in range(300)]
    request = script.answer(*keys)
    parts = [request]
    assert request is not None
    while parts[-1] is not None and parts[-1].more:
        assert not parts[-1].transit
        assert len(parts[-1].data) == 8192
        parts.append(script.answer())
    joined = b"".join(part.data for part in parts if part is not None)
    assert joined.count(b"=NotUnderstood\0") == 300
    assert len(parts) == 2
    assert script.last.transit
    script.accept()
    assert script.machine.result is not None


@pytest.mark.parametrize("reply", [{"data": b"A=1\0"}, {"c": True}, {"t": True}], ids=str)
def test_LGN_41_incomplete_text_that_is_not_answered_empty_is_a_protocol_error(reply: dict[str, Any]) -> None:
    script = Script()
    script.skip_security()
    request = script.answer(*(f"X-com.example.key{number:04}=1" for number in range(300)))
    assert request is not None
    assert request.more
    assert script.answer(**reply) is None
    assert failure_kind(script) is FailureKind.PROTOCOL


def test_text_of_the_target_in_parts_is_joined_and_each_part_answered_empty() -> None:
    script = Script()
    script.skip_security()
    whole = b"MaxBurstLength=65536\0MaxConnections=3\0"
    for start in range(0, len(whole) - 7, 7):
        request = script.answer(data=whole[start : start + 7], c=True)
        assert request is not None
        assert (request.data, request.more) == (b"", False)
        cut = start + 7
    script.answer(data=whole[cut:])
    script.accept()
    assert script.machine.result is not None
    negotiated = script.machine.result.negotiated
    assert (negotiated.max_burst_length, negotiated.max_connections) == (65536, 3)


# What a target must not do

BAD_RESPONSES: list[Any] = [
    pytest.param({"opcode": 0x20}, id="LGN-02-NOP-In"),
    pytest.param({"opcode": 0x21}, id="LGN-02-SCSI-Response"),
    pytest.param({"opcode": 0x24}, id="LGN-02-Text-Response"),
    pytest.param({"opcode": 0x32}, id="LGN-02-Async-Message"),
    pytest.param({"opcode": 0x3F}, id="LGN-02-Reject"),
    pytest.param({"opcode": 0x03}, id="LGN-02-Login-Request"),
    pytest.param({"itt": ITT + 1}, id="LGN-20-foreign-task-tag"),
    pytest.param({"itt": 0xFFFFFFFF}, id="LGN-20-reserved-task-tag"),
    pytest.param({"t": True, "nsg": 2}, id="LGN-27-reserved-next-stage"),
    pytest.param({"csg": 2}, id="LGN-27-reserved-current-stage"),
    pytest.param({"t": True, "c": True}, id="LGN-43-C-and-T"),
    pytest.param({"ahs_words": 1}, id="additional-header-segment"),
    pytest.param({"data": b"MaxBurstLength"}, id="KEY-04-no-equals"),
    pytest.param({"data": b"=1\0"}, id="KEY-04-no-key"),
    pytest.param({"data": b"TargetAlias=x"}, id="KEY-04-no-final-null"),
    pytest.param({"data": b"TargetAlias=\x01\0"}, id="KEY-04-control-byte"),
    pytest.param({"data": b"", "length": 8}, id="data-missing"),
]


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("response", BAD_RESPONSES)
def test_broken_response_ends_the_login(response: dict[str, Any], stage: int) -> None:
    script = Script()
    if stage:
        script.skip_security()
    assert script.answer(**response) is None
    assert failure_kind(script) is FailureKind.PROTOCOL
    assert script.machine.failure is not None
    assert script.machine.failure.retry
    assert script.machine.failure.status == 0


def test_machine_that_has_ended_takes_no_more() -> None:
    script = Script()
    script.answer(opcode=0x20)
    ended = script.machine.failure
    assert script.answer("AuthMethod=None", t=True) is None
    assert script.machine.failure is ended


@pytest.mark.parametrize("stage", [0, 1])
def test_LGN_15_other_version_is_refused(stage: int) -> None:
    script = Script()
    if stage:
        script.skip_security()
    script.answer(version=1)
    assert failure_kind(script) is FailureKind.VERSION


def test_LGN_22_later_stage_than_asked_is_refused() -> None:
    script = Script()
    script.answer("AuthMethod=None", t=True, nsg=3)
    assert failure_kind(script) is FailureKind.PROTOCOL


@pytest.mark.parametrize("nsg", [0, 1])
def test_LGN_22_transition_that_goes_nowhere_is_refused(nsg: int) -> None:
    script = Script()
    script.skip_security()
    script.answer(t=True, nsg=nsg)
    assert failure_kind(script) is FailureKind.PROTOCOL


@pytest.mark.parametrize("csg", [0, 3])
def test_LGN_26_response_of_another_stage_is_refused(csg: int) -> None:
    script = Script()
    script.skip_security()
    script.answer(csg=csg)
    assert failure_kind(script) is FailureKind.PROTOCOL


@pytest.mark.parametrize("changes", [{}, DISCOVERY], ids=["normal", "discovery"])
def test_LGN_11_tsih_0_in_the_final_response_of_a_new_session_is_refused(changes: dict[str, Any]) -> None:
    script = Script(parameters(**changes))
    script.skip_security()
    script.accept(tsih=0)
    assert failure_kind(script) is FailureKind.PROTOCOL


@pytest.mark.parametrize(
    "pair", ["MaxOutstandingR2T=0", "HeaderDigest=CRC64", "InitiatorName=x", "AuthMethod=None", "CHAP_C=0x12"]
)
def test_KEY_37_illegal_key_late_in_login_ends_it(pair: str) -> None:
    script = Script()
    script.skip_security()
    script.answer()
    script.answer("MaxBurstLength=65536")
    assert script.answer(pair) is None
    assert failure_kind(script) is FailureKind.PROTOCOL


def test_KEY_08_key_in_both_stages_ends_the_login() -> None:
    script = Script()
    script.skip_security()
    script.answer("TargetPortalGroupTag=1")
    assert failure_kind(script) is FailureKind.PROTOCOL


def test_SEC_28_operational_key_in_the_security_stage_ends_the_login() -> None:
    script = Script()
    script.answer("AuthMethod=None", "MaxBurstLength=65536")
    assert failure_kind(script) is FailureKind.PROTOCOL


def test_offer_in_a_final_response_that_wants_an_answer_is_refused() -> None:
    script = Script()
    script.skip_security()
    script.accept("TaskReporting=FastAbort,RFC3720")
    assert failure_kind(script) is FailureKind.PROTOCOL


def test_final_response_with_keys_that_need_no_answer_is_taken() -> None:
    script = Script()
    script.skip_security()
    script.accept("OFMarker=No", "X-com.example.a=1", "TargetAlias=x")
    assert script.machine.result is not None


@pytest.mark.parametrize("stage", [0, 1])
def test_rounds_of_a_stage_are_bounded(stage: int) -> None:
    script = Script()
    if stage:
        script.skip_security()
    for _ in range(16):
        assert script.answer() is not None
    assert script.answer() is None
    assert failure_kind(script) is FailureKind.PROTOCOL


def test_ROB_03_text_that_never_ends_is_bounded() -> None:
    script = Script()
    script.skip_security()
    for _ in range(7):
        assert script.answer(data=b"X" * 8192, c=True) is not None
    assert script.answer(data=b"X" * 8192, c=True) is None
    assert failure_kind(script) is FailureKind.PROTOCOL


def test_ROB_03_empty_parts_that_never_end_are_bounded() -> None:
    script = Script()
    script.skip_security()
    sent = 0
    while script.answer(c=True) is not None:
        sent += 1
        assert sent < 1000
    assert failure_kind(script) is FailureKind.PROTOCOL


@given(st.binary(max_size=60), st.binary(max_size=80))
def test_no_bytes_make_the_machine_raise(bhs: bytes, data: bytes) -> None:
    machine = LoginMachine(parameters(), bytes)
    machine.start()
    machine.receive(bhs, data)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["AuthMethod=None", "TargetPortalGroupTag=1", "MaxBurstLength=65536", "X-a=1", ""]),
            st.booleans(),
            st.booleans(),
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
def test_no_sequence_of_responses_logs_in_without_a_final_response(
    steps: list[tuple[str, bool, bool, int, int]],
) -> None:
    script = Script()
    for pair, transit, more, csg, nsg in steps:
        before = script.last
        script.answer(*([pair] if pair else []), t=transit, c=more, csg=csg, nsg=nsg, tsih=1)
        if script.machine.result is not None:
            assert (transit, csg, nsg) == (True, 1, 3)
            assert before.transit
            assert before.stages == (1, 3)
            return


# Portal groups


def test_LGN_29_portal_group_is_checked_where_one_is_expected() -> None:
    script = Script(parameters(expected_tag=1))
    script.answer("AuthMethod=None", "TargetPortalGroupTag=7", t=True)
    assert failure_kind(script) is FailureKind.PORTAL_GROUP
    assert "portal group 7, not 1" in str(script.machine.failure)


def test_LGN_29_portal_group_is_reported_where_none_is_expected() -> None:
    script = Script()
    script.answer("AuthMethod=None", "TargetPortalGroupTag=7", t=True)
    script.accept()
    assert script.machine.result is not None
    assert script.machine.result.tag == 7


def test_missing_portal_group_tag_is_reported_and_forgiven() -> None:
    script = Script(parameters(expected_tag=1))
    script.answer("AuthMethod=None", t=True)
    script.accept()
    assert script.machine.result is not None
    assert script.machine.result.tag is None
    assert "TargetPortalGroupTag" in script.machine.result.warnings[0]


def test_digest_that_policy_requires_and_the_target_refuses() -> None:
    offer = type(OFFER)(header_digest=("CRC32C",))
    script = Script(parameters(offer=offer))
    script.skip_security()
    script.accept("HeaderDigest=Reject")
    assert failure_kind(script) is FailureKind.NEGOTIATION
    assert script.machine.failure is not None
    assert not script.machine.failure.retry


def test_KEY_34_discovery_login() -> None:
    script = Script(parameters(**DISCOVERY))
    request = script.answer("AuthMethod=None", t=True)
    assert request is not None
    assert request.text["HeaderDigest"] == "None"
    request = script.answer("MaxBurstLength=65536")
    assert request is not None
    assert request.text == {"MaxBurstLength": "Irrelevant"}
    script.accept("MaxRecvDataSegmentLength=4096")
    assert script.machine.result is not None
    assert script.machine.result.negotiated.target_max_recv_data_segment_length == 4096
    assert script.machine.result.warnings == ()
