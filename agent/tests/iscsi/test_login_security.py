# SPDX-License-Identifier: GPL-3.0-or-later
"""The security stage of login: methods, CHAP step by step as in RFC 3720 appendix C, and no way around it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from tests.iscsi.scripted_login import INITIATOR, TARGET, Script, parameters

from blockfleet.iscsi.chap import ChallengeMemory, ChapCredentials
from blockfleet.iscsi.login import LoginMachine
from blockfleet.iscsi.login_failure import FailureKind, login_error
from blockfleet.model.portal import Portal
from blockfleet.model.secret import Secret

SECRET = b"insecret123456"
MUTUAL_SECRET = b"outsecret123456"
ONE_WAY = ChapCredentials("inuser", Secret(SECRET))
MUTUAL = ChapCredentials("inuser", Secret(SECRET), "outuser", Secret(MUTUAL_SECRET))
STEP_2 = ("CHAP_A=5", "CHAP_I=77", "CHAP_C=0x00ff10")
TAG = "TargetPortalGroupTag=1"


def md5(identifier: int, secret: bytes, challenge: bytes) -> str:
    return "0x" + hashlib.md5(bytes([identifier]) + secret + challenge).hexdigest()


def script(credentials: ChapCredentials | None = ONE_WAY, **changes: Any) -> Script:
    return Script(parameters(credentials=credentials, **changes))


def challenged(credentials: ChapCredentials = ONE_WAY) -> Script:
    """A login up to the third step: our response is sent."""
    run = script(credentials)
    run.answer(TAG, "AuthMethod=CHAP")
    run.answer(*STEP_2)
    return run


def kind(run: Script) -> FailureKind:
    assert run.machine.result is None
    assert run.machine.failure is not None
    return run.machine.failure.kind


def test_appendix_c_one_way_chap() -> None:
    run = script()
    first = run.last
    assert (first.transit, first.stages) == (False, (0, 0))
    assert first.text["AuthMethod"] == "CHAP"
    second = run.answer(TAG, "AuthMethod=CHAP")
    assert second is not None
    assert (second.transit, second.stages[0], second.text) == (False, 0, {"CHAP_A": "8,7,6,5"})
    third = run.answer(*STEP_2)
    assert third is not None
    assert (third.transit, third.stages) == (True, (0, 1))
    assert third.text == {"CHAP_N": "inuser", "CHAP_R": md5(77, SECRET, b"\x00\xff\x10")}
    fourth = run.answer(t=True)
    assert fourth is not None
    assert (fourth.transit, fourth.stages) == (True, (1, 3))
    run.accept()
    assert run.machine.result is not None
    assert (run.machine.result.chap_algorithm, run.machine.result.mutual) == (5, False)


def test_appendix_c_mutual_chap() -> None:
    run = challenged(MUTUAL)
    third = run.last.text
    assert list(third) == ["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"]
    value = md5(int(third["CHAP_I"]), MUTUAL_SECRET, bytes.fromhex(third["CHAP_C"][2:]))
    fourth = run.answer("CHAP_N=outuser", f"CHAP_R={value}", t=True)
    assert fourth is not None
    assert fourth.stages == (1, 3)
    run.accept()
    assert run.machine.result is not None
    assert (run.machine.result.chap_algorithm, run.machine.result.mutual) == (5, True)


def test_SEC_24_steps_may_be_split_over_pdus() -> None:
    run = script(MUTUAL)
    run.answer(TAG, "AuthMethod=CHAP")
    for pair in STEP_2[:2]:
        request = run.answer(pair, c=True)
        assert request is not None
        assert request.data == b""
    third = run.answer(STEP_2[2])
    assert third is not None
    value = md5(int(third.text["CHAP_I"]), MUTUAL_SECRET, bytes.fromhex(third.text["CHAP_C"][2:]))
    run.answer("CHAP_N=outuser", c=True)
    # The proof may come before the stage ends, in a round of its own.
    request = run.answer(f"CHAP_R={value}")
    assert request is not None
    assert (request.transit, request.data) == (True, b"")
    run.answer(t=True)
    run.accept()
    assert run.machine.result is not None
    assert run.machine.result.mutual


def test_SEC_24_target_may_take_its_time_before_it_ends_the_stage() -> None:
    run = challenged()
    request = run.answer()
    assert request is not None
    assert (request.transit, request.stages, request.data) == (True, (0, 1), b"")
    run.answer(t=True)
    run.accept()
    assert run.machine.result is not None


def test_method_may_be_answered_after_an_empty_round() -> None:
    run = script()
    request = run.answer(TAG)
    assert request is not None
    assert (request.transit, request.data) == (False, b"")
    request = run.answer("AuthMethod=CHAP")
    assert request is not None
    assert request.text == {"CHAP_A": "8,7,6,5"}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        pytest.param("Reject", FailureKind.AUTHENTICATION, id="SEC-02-Reject"),
        pytest.param("None", FailureKind.AUTHENTICATION, id="SEC-03-None"),
        pytest.param("NotUnderstood", FailureKind.AUTHENTICATION, id="SEC-03-NotUnderstood"),
        pytest.param("Irrelevant", FailureKind.AUTHENTICATION, id="SEC-03-Irrelevant"),
        pytest.param("KRB5", FailureKind.PROTOCOL, id="SEC-02-KRB5"),
        pytest.param("SRP", FailureKind.PROTOCOL, id="KEY-11-SRP"),
        pytest.param("KRB5,SRP,SPKM1,CHAP", FailureKind.PROTOCOL, id="SEC-27-list"),
        pytest.param("chap", FailureKind.PROTOCOL, id="SEC-02-other-case"),
    ],
)
def test_method_that_is_not_chap_is_refused_where_chap_is_required(method: str, expected: FailureKind) -> None:
    run = script()
    assert run.answer(TAG, f"AuthMethod={method}") is None
    assert kind(run) is expected


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("nsg", [1, 3])
def test_SEC_03_target_that_leaves_the_stage_before_chap_is_done_is_refused(step: int, nsg: int) -> None:
    run = script()
    if step == 2:
        run.answer(TAG, "AuthMethod=CHAP")
    assert run.answer(t=True, nsg=nsg) is None
    assert kind(run) is FailureKind.PROTOCOL  # T was not asked for


def test_SEC_03_target_that_never_chooses_a_method_is_refused() -> None:
    run = script()
    rounds = 0
    while run.answer() is not None:
        rounds += 1
    assert rounds == 16
    assert all(not request.transit for request in run.requests)
    assert kind(run) is FailureKind.PROTOCOL


def test_SEC_03_operational_stage_cannot_be_entered_by_the_targets_word() -> None:
    run = script()
    run.answer(TAG, "AuthMethod=CHAP", csg=1)
    assert kind(run) is FailureKind.PROTOCOL


def test_SEC_02_none_is_accepted_where_policy_lets() -> None:
    run = script(authentication_optional=True)
    assert run.last.text["AuthMethod"] == "CHAP,None"
    request = run.answer(TAG, "AuthMethod=None")
    assert request is not None
    assert (request.transit, request.stages) == (True, (0, 1))
    run.answer(t=True)
    run.accept()
    assert run.machine.result is not None
    assert run.machine.result.chap_algorithm is None


def test_SEC_03_optional_authentication_still_needs_a_choice() -> None:
    run = script(authentication_optional=True)
    assert run.answer(TAG, t=True, nsg=1) is None
    assert run.machine.failure is not None


@pytest.mark.parametrize("pairs", [("AuthMethod=Reject",), ("AuthMethod=NotUnderstood",)])
def test_target_that_wants_authentication_without_credentials(pairs: tuple[str, ...]) -> None:
    run = script(None)
    assert run.answer(TAG, *pairs, t=True) is None
    assert kind(run) is FailureKind.AUTHENTICATION
    assert run.machine.failure is not None
    text = str(login_error(run.machine.failure, TARGET, Portal("192.0.2.1")))
    assert "no credentials are set" in text
    assert "check chap.user" in text


def test_target_that_chooses_chap_unoffered_is_refused() -> None:
    run = script(None)
    run.answer(TAG, "AuthMethod=CHAP")
    assert kind(run) is FailureKind.PROTOCOL


def test_target_without_authentication_may_skip_the_method() -> None:
    run = script(None)
    request = run.answer(TAG, t=True)
    assert request is not None
    assert request.stages == (1, 3)


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(STEP_2, id="SEC-06-before-AuthMethod"),
        pytest.param(("AuthMethod=CHAP", *STEP_2), id="SEC-06-with-AuthMethod"),
        pytest.param(("AuthMethod=CHAP", "CHAP_A=5"), id="SEC-06-algorithm-with-AuthMethod"),
        pytest.param(("AuthMethod=CHAP", "AuthMethod=CHAP"), id="KEY-08-AuthMethod-twice"),
    ],
)
def test_keys_out_of_step_end_the_login(pairs: tuple[str, ...]) -> None:
    run = script()
    assert run.answer(TAG, *pairs) is None
    assert kind(run) is FailureKind.PROTOCOL


@pytest.mark.parametrize("pair", ["CHAP_N=x", "CHAP_R=0x12"])
def test_SEC_06_step_4_keys_in_step_2_end_the_login(pair: str) -> None:
    run = script()
    run.answer(TAG, "AuthMethod=CHAP")
    assert run.answer(*STEP_2, pair) is None
    assert kind(run) is FailureKind.PROTOCOL


def test_KEY_08_method_negotiated_again_ends_the_login() -> None:
    run = script()
    run.answer(TAG, "AuthMethod=CHAP")
    assert run.answer("AuthMethod=CHAP") is None
    assert kind(run) is FailureKind.PROTOCOL


@pytest.mark.parametrize("stage_ends", [False, True])
def test_SEC_28_chap_key_after_the_stage_ends_the_login(stage_ends: bool) -> None:
    run = challenged()
    run.answer(t=True)
    assert run.answer("CHAP_C=0x1234", t=stage_ends, nsg=3 if stage_ends else 0, tsih=1) is None
    assert kind(run) is FailureKind.PROTOCOL


def test_SEC_21_target_that_does_not_prove_itself_is_refused() -> None:
    run = challenged(MUTUAL)
    assert run.answer(t=True) is None
    assert kind(run) is FailureKind.TARGET_AUTHENTICATION
    assert run.machine.failure is not None
    assert not run.machine.failure.retry


def test_SEC_20_wrong_proof_of_the_target_is_refused() -> None:
    run = challenged(MUTUAL)
    assert run.answer("CHAP_N=outuser", f"CHAP_R=0x{'12' * 16}", t=True) is None
    assert kind(run) is FailureKind.TARGET_AUTHENTICATION
    assert run.machine.failure is not None
    error = login_error(run.machine.failure, TARGET, Portal("192.0.2.1"), field="targets[0].chap.mutual_secret")
    assert error.code.name == "AUTHENTICATION_FAILURE"
    assert "the target's CHAP response is wrong" in str(error)


def test_SEC_18_reflected_response_is_named_so() -> None:
    run = challenged(MUTUAL)
    sent = run.last.text
    value = md5(int(sent["CHAP_I"]), SECRET, bytes.fromhex(sent["CHAP_C"][2:]))
    run.answer("CHAP_N=outuser", f"CHAP_R={value}", t=True)
    assert kind(run) is FailureKind.TARGET_AUTHENTICATION
    assert "reflection" in str(run.machine.failure)


def test_SEC_18_challenge_reflected_between_parallel_logins_is_not_answered() -> None:
    memory = ChallengeMemory()
    runs = [script(MUTUAL), script(MUTUAL)]
    for number, run in enumerate(runs):
        run.machine = LoginMachine(
            parameters(credentials=MUTUAL), lambda length, n=number: bytes([0xA0 + n]) * length, memory
        )
        run.machine.start()
        run.answer(TAG, "AuthMethod=CHAP")
    runs[0].answer(*STEP_2)
    ours = runs[0].last.text["CHAP_C"]
    assert runs[1].answer("CHAP_A=5", "CHAP_I=1", f"CHAP_C={ours}") is None
    assert kind(runs[1]) is FailureKind.TARGET_AUTHENTICATION


def test_ROB_12_repeated_challenge_is_reported() -> None:
    memory = ChallengeMemory()
    warnings = []
    for _ in range(2):
        run = script()
        run.machine = LoginMachine(parameters(credentials=ONE_WAY), bytes, memory)
        run.machine.start()
        run.answer(TAG, "AuthMethod=CHAP")
        run.answer(*STEP_2)
        run.answer(t=True)
        run.accept()
        assert run.machine.result is not None
        warnings.append(run.machine.result.warnings)
    assert warnings == [(), ("the target repeated a CHAP challenge",)]


def test_SEC_23_refused_response_is_an_authentication_failure_that_is_not_retried() -> None:
    run = challenged()
    run.answer(status=0x0201)
    failure = run.machine.failure
    assert failure is not None
    assert (failure.kind, failure.retry, failure.retry_single_algorithm) == (
        FailureKind.AUTHENTICATION,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("status", "after_response", "blamed"),
    [
        pytest.param(0x0201, False, True, id="SEC-26-list-refused-0201"),
        pytest.param(0x0200, False, True, id="SEC-26-list-refused-0200"),
        pytest.param(0x0301, False, False, id="SEC-26-target-down"),
        pytest.param(0x0101, False, False, id="SEC-26-redirected"),
        pytest.param(0x0200, True, True, id="SEC-26-response-malformed-to-the-target"),
        pytest.param(0x0201, True, False, id="SEC-26-wrong-secret"),
        pytest.param(0x0202, True, False, id="SEC-26-not-allowed"),
    ],
)
def test_fallback_to_one_algorithm(status: int, after_response: bool, blamed: bool) -> None:
    run = script()
    run.answer(TAG, "AuthMethod=CHAP")
    if after_response:
        run.answer("CHAP_A=7", *STEP_2[1:])
    run.answer(status=status)
    assert run.machine.failure is not None
    assert run.machine.failure.retry_single_algorithm is blamed


def test_SEC_26_fallback_offers_the_last_algorithm_alone_and_falls_no_further() -> None:
    login = parameters(credentials=ONE_WAY.with_last_algorithm())
    run = Script(login)
    request = run.answer(TAG, "AuthMethod=CHAP")
    assert request is not None
    assert request.text == {"CHAP_A": "5"}
    run.answer(status=0x0201)
    assert run.machine.failure is not None
    assert not run.machine.failure.retry_single_algorithm


def test_SEC_26_nothing_falls_back_before_algorithms_were_offered() -> None:
    run = script()
    run.answer(status=0x0201)
    assert run.machine.failure is not None
    assert not run.machine.failure.retry_single_algorithm


@pytest.mark.parametrize("step", [0, 1, 2])
def test_redirection_is_followed_before_and_after_authentication(step: int) -> None:
    run = script()
    if step > 0:
        run.answer(TAG, "AuthMethod=CHAP")
    if step > 1:
        run.answer(*STEP_2)
    run.answer("TargetAddress=192.0.2.50:3270", status=0x0101)
    assert run.machine.failure is not None
    assert run.machine.failure.redirect == (Portal("192.0.2.50", 3270), None)


def test_SEC_29_nothing_that_is_sent_or_shown_has_a_secret() -> None:
    run = challenged(MUTUAL)
    run.answer("CHAP_N=outuser", f"CHAP_R=0x{'12' * 16}", t=True)
    shown = repr(parameters(credentials=MUTUAL)) + repr(run.machine.failure)
    sent = b"".join(request.wire for request in run.requests)
    for secret in (SECRET, MUTUAL_SECRET):
        assert secret.decode() not in shown
        assert secret not in sent
        assert secret.hex().encode() not in sent


def test_first_request_says_who_asks_with_chap_too() -> None:
    assert script().last.text == {
        "InitiatorName": INITIATOR,
        "TargetName": TARGET,
        "SessionType": "Normal",
        "AuthMethod": "CHAP",
    }
