# SPDX-License-Identifier: GPL-3.0-or-later
"""CHAP as the initiator runs it (RFC 3720 8.2.1, 11.1.4; RFC 1994).  Responses are computed with hashlib here."""

from __future__ import annotations

import base64
import hashlib
import itertools
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.iscsi import chap
from blockfleet.iscsi.chap import (
    REMEMBERED_CHALLENGES,
    ChallengeMemory,
    ChapCredentials,
    ChapInitiator,
    ChapProtocolError,
    TargetAuthenticationError,
    decode_binary,
)
from blockfleet.model.secret import Secret

SECRET = b"insecret123456"
MUTUAL_SECRET = b"outsecret123456"
ONE_WAY = ChapCredentials("host 1 \u00e4", Secret(SECRET))
MUTUAL = ChapCredentials("inuser", Secret(SECRET), "outuser", Secret(MUTUAL_SECRET))
HASHES = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}
LENGTHS = {5: 16, 6: 20, 7: 32, 8: 32}

Pairs = list[tuple[str, str]]


def counting_bytes() -> Callable[[int], bytes]:
    """Bytes that never repeat, for a script: the first call gives 01 01 ..., the second 02 02 ..."""
    numbers = itertools.count(1)
    return lambda length: bytes([next(numbers) & 0xFF]) * length


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    return hashlib.new(HASHES[algorithm], bytes([identifier]) + secret + challenge).digest()


def begun(credentials: ChapCredentials, memory: ChallengeMemory | None = None) -> ChapInitiator:
    initiator = ChapInitiator(credentials, counting_bytes(), memory)
    initiator.first()
    return initiator


def challenge_keys(algorithm: int | str = 5, identifier: int | str = 9, challenge: str = "0x1234") -> Pairs:
    return [("CHAP_A", str(algorithm)), ("CHAP_I", str(identifier)), ("CHAP_C", challenge)]


def test_SEC_04_algorithms_are_offered_alone_and_in_order() -> None:
    assert ChapInitiator(ONE_WAY, counting_bytes()).first() == [("CHAP_A", "8,7,6,5")]
    weaker = ChapCredentials("a", Secret(SECRET), algorithms=(7, 5))
    assert ChapInitiator(weaker, counting_bytes()).first() == [("CHAP_A", "7,5")]


@pytest.mark.parametrize("algorithm", HASHES)
def test_SEC_11_response_is_the_hash_of_identifier_secret_and_challenge(algorithm: int) -> None:
    challenge = bytes(range(200, 240))
    initiator = begun(ONE_WAY)
    answer = initiator.receive(challenge_keys(algorithm, 255, "0x" + challenge.hex()))
    expected = response(algorithm, 255, SECRET, challenge)
    assert len(expected) == LENGTHS[algorithm]
    # SEC-12: the name is sent literally.
    assert answer == [("CHAP_N", "host 1 \u00e4"), ("CHAP_R", "0x" + expected.hex())]
    assert initiator.done
    assert initiator.algorithm == algorithm


@pytest.mark.parametrize("length", [1, 16, 17, 1024])
@pytest.mark.parametrize("form", ["0x", "0X", "0b", "0B"])
def test_SEC_08_SEC_09_challenges_in_hexadecimal_and_base64(form: str, length: int) -> None:
    challenge = bytes(n * 7 & 0xFF for n in range(length))
    text = challenge.hex() if form in {"0x", "0X"} else base64.b64encode(challenge).decode()
    answer = dict(begun(ONE_WAY).receive(challenge_keys(7, 1, form + text)))
    assert answer["CHAP_R"] == "0x" + response(7, 1, SECRET, challenge).hex()


def test_SEC_08_base64_without_its_padding_is_read() -> None:
    assert decode_binary("CHAP_C", "0bAQIDBA") == bytes([1, 2, 3, 4])


ILLEGAL_CHALLENGES = [
    pytest.param("", id="SEC-10-empty"),
    pytest.param("0x", id="SEC-10-no-digits"),
    pytest.param("0b", id="SEC-10-no-base64"),
    pytest.param("0x123", id="SEC-10-odd-digits"),
    pytest.param("0x12zz", id="SEC-10-no-hexadecimal"),
    pytest.param("1234", id="SEC-10-no-prefix"),
    pytest.param("x1234", id="SEC-10-half-a-prefix"),
    pytest.param("0x12 34", id="SEC-10-blank"),
    pytest.param("0x-1", id="SEC-10-sign"),
    pytest.param("0bAQIDB", id="SEC-10-impossible-length"),
    pytest.param("0bAQID*A==", id="SEC-10-no-base64-letter"),
    pytest.param("0bAQIDBA=", id="SEC-10-wrong-padding"),
    pytest.param("0bAQ=DBA==", id="SEC-10-padding-inside"),
    pytest.param("0b====", id="SEC-10-only-padding"),
    pytest.param("0x" + "ab" * 1025, id="SEC-10-1025-bytes"),
    pytest.param("0b" + base64.b64encode(bytes(1025)).decode(), id="SEC-10-1025-bytes-base64"),
    pytest.param("0x" + "ab" * 4000, id="SEC-10-far-too-long"),
]


@pytest.mark.parametrize("challenge", ILLEGAL_CHALLENGES)
def test_illegal_challenge_ends_the_exchange(challenge: str) -> None:
    with pytest.raises(ChapProtocolError):
        begun(ONE_WAY).receive(challenge_keys(challenge=challenge))


@given(st.text(max_size=40))
def test_binary_values_of_any_kind_are_read_or_refused(text: str) -> None:
    try:
        value = decode_binary("CHAP_C", text)
    except ChapProtocolError:
        return
    assert 1 <= len(value) <= 1024


@pytest.mark.parametrize("algorithm", ["99", "MD5", "0", "5,7", "", "05", "0x5", "4", "9", "\u0665"])
def test_SEC_05_algorithm_that_was_not_offered_ends_the_exchange(algorithm: str) -> None:
    with pytest.raises(ChapProtocolError):
        begun(ONE_WAY).receive(challenge_keys(algorithm))


def test_SEC_05_algorithm_that_is_barred_ends_the_exchange() -> None:
    credentials = ChapCredentials("a", Secret(SECRET), algorithms=(8, 7))
    with pytest.raises(ChapProtocolError, match="not offered"):
        begun(credentials).receive(challenge_keys(5))


@pytest.mark.parametrize("identifier", ["256", "-1", "x", "", "1.0"])
def test_identifier_is_one_octet(identifier: str) -> None:
    with pytest.raises(ChapProtocolError):
        begun(ONE_WAY).receive(challenge_keys(identifier=identifier))


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([("CHAP_I", "1"), ("CHAP_C", "0x12")], id="SEC-05-no-algorithm"),
        pytest.param([("CHAP_A", "5")], id="SEC-06-algorithm-alone"),
        pytest.param([*challenge_keys(), ("CHAP_N", "x")], id="SEC-06-name-in-step-2"),
        pytest.param([*challenge_keys(), ("CHAP_R", "0x12")], id="SEC-06-response-in-step-2"),
        pytest.param([("CHAP_N", "x"), ("CHAP_R", "0x12")], id="SEC-06-step-4-in-step-2"),
        pytest.param([*challenge_keys(), ("CHAP_I", "2")], id="SEC-06-identifier-twice"),
    ],
)
def test_keys_out_of_step_end_the_exchange(pairs: Pairs) -> None:
    with pytest.raises(ChapProtocolError):
        begun(ONE_WAY).receive(pairs)


def test_SEC_06_keys_before_the_first_step_end_the_exchange() -> None:
    with pytest.raises(ChapProtocolError):
        ChapInitiator(ONE_WAY, counting_bytes()).receive(challenge_keys())


@pytest.mark.parametrize("credentials", [ONE_WAY, MUTUAL], ids=["one-way", "mutual"])
def test_ROB_12_second_round_ends_the_exchange(credentials: ChapCredentials) -> None:
    initiator = begun(credentials)
    initiator.receive(challenge_keys())
    with pytest.raises(ChapProtocolError):
        initiator.receive(challenge_keys(challenge="0x5678"))


def test_target_that_proves_itself_unasked_ends_the_exchange() -> None:
    initiator = begun(ONE_WAY)
    initiator.receive(challenge_keys())
    with pytest.raises(ChapProtocolError):
        initiator.receive([("CHAP_N", "x"), ("CHAP_R", "0x" + "12" * 16)])


def mutual_step(algorithm: int = 5) -> tuple[ChapInitiator, int, bytes]:
    initiator = begun(MUTUAL)
    answer = dict(initiator.receive(challenge_keys(algorithm)))
    assert list(answer) == ["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"]
    return initiator, int(answer["CHAP_I"]), bytes.fromhex(answer["CHAP_C"][2:])


@pytest.mark.parametrize("algorithm", HASHES)
def test_SEC_15_target_proves_itself(algorithm: int) -> None:
    initiator, identifier, challenge = mutual_step(algorithm)
    assert len(challenge) >= 16
    assert initiator.responded
    assert not initiator.done
    value = response(algorithm, identifier, MUTUAL_SECRET, challenge)
    assert initiator.receive([("CHAP_N", "outuser"), ("CHAP_R", "0x" + value.hex())]) == []
    assert initiator.done


def test_SEC_15_response_that_another_implementation_sent_is_accepted() -> None:
    # Captured from istgt 0.4 with these secrets, CHAP_I=0 and the challenge 00 01 .. 0f.
    initiator = ChapInitiator(MUTUAL, lambda length: bytes(range(length)))
    initiator.first()
    initiator.receive(challenge_keys(5, 213))
    initiator.receive([("CHAP_N", "outuser"), ("CHAP_R", "0xE4558B25AB5934B70A594A512DB3977C")])
    assert initiator.done


def wrong_responses() -> list[object]:
    _, identifier, challenge = mutual_step()
    right = response(5, identifier, MUTUAL_SECRET, challenge)
    return [
        pytest.param(right[:-1] + bytes([right[-1] ^ 1]), id="SEC-20-one-bit"),
        pytest.param(response(5, identifier, b"another secret", challenge), id="SEC-20-other-secret"),
        pytest.param(response(5, identifier ^ 1, MUTUAL_SECRET, challenge), id="SEC-20-other-identifier"),
        pytest.param(right[:-1], id="SEC-20-short"),
        pytest.param(right + b"\0", id="SEC-20-long"),
        pytest.param(response(7, identifier, MUTUAL_SECRET, challenge), id="SEC-20-other-algorithm"),
    ]


@pytest.mark.parametrize("value", wrong_responses())
def test_wrong_response_of_the_target_is_refused(value: bytes) -> None:
    initiator, _, _ = mutual_step()
    with pytest.raises(TargetAuthenticationError, match="response is wrong"):
        initiator.receive([("CHAP_N", "outuser"), ("CHAP_R", "0x" + value.hex())])
    assert not initiator.done


@pytest.mark.parametrize("pairs", [[("CHAP_N", "outuser")], [("CHAP_R", "0x" + "12" * 16)]], ids=str)
def test_SEC_20_half_an_answer_ends_the_exchange(pairs: Pairs) -> None:
    initiator, _, _ = mutual_step()
    with pytest.raises(ChapProtocolError):
        initiator.receive(pairs)


def test_SEC_18_response_made_with_our_own_secret_is_a_reflection() -> None:
    initiator, identifier, challenge = mutual_step()
    value = response(5, identifier, SECRET, challenge)
    with pytest.raises(TargetAuthenticationError, match="reflection"):
        initiator.receive([("CHAP_N", "outuser"), ("CHAP_R", "0x" + value.hex())])


def test_SEC_18_challenge_reflected_on_another_connection_is_not_answered() -> None:
    memory = ChallengeMemory()
    first = begun(MUTUAL, memory)
    ours = dict(first.receive(challenge_keys()))["CHAP_C"]
    second = ChapInitiator(MUTUAL, lambda length: b"\x77" * length, memory)
    second.first()
    with pytest.raises(TargetAuthenticationError, match="reflected"):
        second.receive(challenge_keys(challenge=ours))


def test_SEC_22_name_of_the_target_is_checked() -> None:
    initiator, identifier, challenge = mutual_step()
    value = response(5, identifier, MUTUAL_SECRET, challenge)
    with pytest.raises(TargetAuthenticationError, match="name"):
        initiator.receive([("CHAP_N", "someone else"), ("CHAP_R", "0x" + value.hex())])


def test_SEC_22_any_name_will_do_where_none_is_expected() -> None:
    credentials = ChapCredentials("inuser", Secret(SECRET), None, Secret(MUTUAL_SECRET))
    initiator = begun(credentials)
    answer = dict(initiator.receive(challenge_keys()))
    value = response(5, int(answer["CHAP_I"]), MUTUAL_SECRET, bytes.fromhex(answer["CHAP_C"][2:]))
    initiator.receive([("CHAP_N", "whoever"), ("CHAP_R", "0x" + value.hex())])
    assert initiator.done


def test_SEC_16_challenges_are_taken_from_the_randomness_that_was_passed_in() -> None:
    asked: list[int] = []

    def random_bytes(length: int) -> bytes:
        asked.append(length)
        return bytes([len(asked)]) * length

    seen = set()
    for _ in range(100):
        initiator = ChapInitiator(MUTUAL, random_bytes)
        initiator.first()
        seen.add(dict(initiator.receive(challenge_keys(8)))["CHAP_C"])
    assert len(seen) == 100
    assert set(asked) == {1, 32}


def test_SEC_17_own_challenge_is_never_the_targets() -> None:
    initiator = ChapInitiator(MUTUAL, lambda length: b"\x55" * length)
    initiator.first()
    with pytest.raises(ChapProtocolError, match="randomness"):
        initiator.receive(challenge_keys(challenge="0x" + "55" * 16))


def test_ROB_12_repeated_challenges_are_counted() -> None:
    memory = ChallengeMemory()
    for number in range(3):
        initiator = begun(ONE_WAY, memory)
        initiator.receive(challenge_keys())
        assert initiator.repeated_challenge is (number > 0)
    assert memory.repeated == 2


def test_memory_of_challenges_is_bounded() -> None:
    memory = ChallengeMemory()
    for number in range(REMEMBERED_CHALLENGES + 1):
        memory.sent(number.to_bytes(16))
    assert not memory.is_ours((0).to_bytes(16))
    assert memory.is_ours((1).to_bytes(16))
    assert memory.is_ours(REMEMBERED_CHALLENGES.to_bytes(16))


def test_SEC_30_responses_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[object, object]] = []
    genuine = chap.hmac.compare_digest
    monkeypatch.setattr(chap.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or genuine(a, b))
    initiator, identifier, challenge = mutual_step()
    value = response(5, identifier, MUTUAL_SECRET, challenge)
    initiator.receive([("CHAP_N", "outuser"), ("CHAP_R", "0x" + value.hex())])
    assert (value, value) in compared
    assert (value, response(5, identifier, SECRET, challenge)) in compared


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("a", Secret(b"elevenbytes")), id="SEC-14-short-secret"),
        pytest.param(("a", Secret(SECRET), None, Secret(b"elevenbytes")), id="SEC-14-short-mutual-secret"),
        pytest.param(("a", Secret(SECRET), None, Secret(SECRET)), id="SEC-18-same-secret-both-ways"),
        pytest.param(("a", Secret(SECRET), "b"), id="mutual-user-without-secret"),
        pytest.param(("", Secret(SECRET)), id="no-user"),
        pytest.param(("a\nb", Secret(SECRET)), id="control-character"),
        pytest.param(("a" * 256, Secret(SECRET)), id="user-too-long"),
        pytest.param(("a", Secret(SECRET), None, None, ()), id="no-algorithm"),
        pytest.param(("a", Secret(SECRET), None, None, (5, 4)), id="unknown-algorithm"),
        pytest.param(("a", Secret(SECRET), None, None, (5, 5)), id="algorithm-twice"),
    ],
)
def test_credentials_that_the_rfc_forbids_are_refused(arguments: tuple) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="CHAP") as caught:
        ChapCredentials(*arguments)
    assert "elevenbytes" not in str(caught.value)


def test_SEC_14_short_secret_is_allowed_where_the_network_is_protected() -> None:
    assert ChapCredentials("a", Secret(b"short"), allow_weak=True).secret.reveal() == b"short"


def test_SEC_29_secrets_do_not_show() -> None:
    shown = repr(MUTUAL) + str(MUTUAL) + repr(vars(begun(MUTUAL)))
    assert SECRET.decode() not in shown
    assert MUTUAL_SECRET.decode() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(MUTUAL)
