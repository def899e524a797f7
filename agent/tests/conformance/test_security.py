# SPDX-License-Identifier: GPL-3.0-or-later
"""SEC: the security stage and CHAP (RFC 3720 8.2.1, chapter 11; RFC 1994)."""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import replace

import pytest
from tests.conformance import wire
from tests.conformance.conftest import (
    CHAP_BOTH,
    CHAP_USER,
    MUTUAL_SECRET,
    MUTUAL_USER,
    SECRET,
    USER,
    Listener,
    Rig,
)
from tests.conformance.raw_target import Peer
from tests.conformance.wire import Pdu

from blockfleet.model.isdsc import Isdsc
from blockfleet.model.secret import Secret
from blockfleet.net.nexus import Nexus

HASHES = {5: hashlib.md5, 6: hashlib.sha1, 7: hashlib.sha256, 8: hashlib.sha3_256}
"""CHAP_A to the hash function (IANA, PPP authentication algorithms)."""
CHALLENGE = bytes(range(0x40, 0x50))


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Work out CHAP_R (RFC 1994 4.1)."""
    return HASHES[algorithm](bytes([identifier]) + secret + challenge).digest()


async def step_one(rig: Rig, **changes: object) -> tuple[Peer, Pdu, Nexus, Listener]:
    """Choose CHAP; return the request with CHAP_A."""
    peer, nexus, listener = await rig.login(**{"credentials": CHAP_USER, **changes})
    await peer.answer_login(await peer.login_request(), wire.text("TargetPortalGroupTag=1", "AuthMethod=CHAP"))
    return peer, await peer.login_request(), nexus, listener


async def step_two(
    rig: Rig, algorithm: int = 7, identifier: int = 0x51, challenge: str = "0x" + CHALLENGE.hex(), **changes: object
) -> tuple[Peer, Pdu, Nexus, Listener]:
    """Send a challenge; return the request with CHAP_N and CHAP_R."""
    peer, request, nexus, listener = await step_one(rig, **changes)
    await peer.answer_login(request, challenging(algorithm, identifier, challenge))
    return peer, await peer.login_request(), nexus, listener


def challenging(algorithm: object, identifier: object, challenge: str) -> bytes:
    return wire.text(("CHAP_A", algorithm), ("CHAP_I", identifier), ("CHAP_C", challenge))


async def finish(peer: Peer, request: Pdu, listener: Listener, *said: tuple[str, object]) -> None:
    """End the security stage and log in."""
    assert (request.transit, request.csg, request.nsg) == (True, 0, 1)
    await peer.answer_login(request, wire.text(*said))
    await peer.operational(await peer.login_request(), {})
    await listener.until(lambda: listener.logins)


async def dropped(peer: Peer, listener: Listener, *codes: Isdsc) -> str:
    """Hold that the connection is closed soon, and why; return the error's text."""
    await peer.gone()
    error = await listener.failure()
    assert error.code in (codes or (Isdsc.PROTOCOL_ERROR,))
    assert not listener.logins
    return str(error)


async def test_SEC_02_the_method_is_a_list_and_chap_runs_when_it_is_chosen(rig: Rig) -> None:
    peer, request, _, listener = await step_two(rig)
    assert set(peer.requests[0].keys["AuthMethod"].split(",")) <= {"CHAP", "None"}
    await finish(peer, request, listener)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("None", Isdsc.AUTHENTICATION_FAILURE),
        ("Reject", Isdsc.AUTHENTICATION_FAILURE),
        ("KRB5", Isdsc.PROTOCOL_ERROR),
        ("CHAP,None", Isdsc.PROTOCOL_ERROR),
    ],
)
async def test_SEC_02_any_other_answer_fails(rig: Rig, answer: str, code: Isdsc) -> None:
    peer, _, listener = await rig.login(credentials=CHAP_USER)
    await peer.answer_login(await peer.login_request(), wire.text(("AuthMethod", answer)), flags=0)
    await dropped(peer, listener, code)


@pytest.mark.parametrize(
    ("said", "flags"),
    [("AuthMethod=None", 0x00), ("AuthMethod=None", 0x81), ("", 0x81), ("", 0x83), ("AuthMethod=None", 0x87)],
    ids=["None", "None and on", "on without a word", "to full feature phase", "from the next stage"],
)
async def test_SEC_03_required_chap_is_not_skipped(rig: Rig, said: str, flags: int) -> None:
    peer, _, listener = await rig.login(credentials=CHAP_USER)
    data = wire.text(said) if said else b""
    await peer.answer_login(await peer.login_request(), data, flags=flags, tsih=5)
    await dropped(peer, listener, Isdsc.PROTOCOL_ERROR, Isdsc.AUTHENTICATION_FAILURE)


async def test_SEC_03_a_stage_that_ends_before_the_response_is_refused(rig: Rig) -> None:
    peer, request, _, listener = await step_one(rig)
    await peer.answer_login(request, flags=0x81)
    await dropped(peer, listener, Isdsc.PROTOCOL_ERROR, Isdsc.AUTHENTICATION_FAILURE)


@pytest.mark.parametrize(
    ("algorithms", "text"), [((8, 7, 6, 5), "8,7,6,5"), ((5,), "5"), ((7, 5), "7,5"), ((6, 8, 5, 7), "6,8,5,7")]
)
async def test_SEC_04_the_algorithms_are_sent_alone_and_in_order(
    rig: Rig, algorithms: tuple[int, ...], text: str
) -> None:
    _, request, _, _ = await step_one(rig, credentials=replace(CHAP_USER, algorithms=algorithms))
    assert request.pairs == [("CHAP_A", text)]


async def test_SEC_04_md5_is_among_the_algorithms_unless_barred(rig: Rig) -> None:
    _, request, _, _ = await step_one(rig)
    assert "5" in request.keys["CHAP_A"].split(",")


@pytest.mark.parametrize("algorithm", ["99", "MD5", "0", "5,7", "", "05", "-5"])
async def test_SEC_05_an_algorithm_that_was_not_offered_is_refused(rig: Rig, algorithm: str) -> None:
    peer, request, _, listener = await step_one(rig)
    await peer.answer_login(request, challenging(algorithm, 1, "0x" + CHALLENGE.hex()))
    await dropped(peer, listener)


async def test_SEC_05_no_algorithm_is_refused(rig: Rig) -> None:
    peer, request, _, listener = await step_one(rig)
    await peer.answer_login(request, wire.text("CHAP_I=1", "CHAP_C=0x" + CHALLENGE.hex()))
    await dropped(peer, listener)


EARLY = [
    ["CHAP_A=7", "CHAP_I=1", "CHAP_C=0x41414141"],
    ["AuthMethod=CHAP", "CHAP_A=7", "CHAP_I=1", "CHAP_C=0x41414141"],
]


@pytest.mark.parametrize("said", EARLY, ids=["instead of AuthMethod", "with AuthMethod"])
async def test_SEC_06_a_challenge_before_its_step_is_refused(rig: Rig, said: list[str]) -> None:
    peer, _, listener = await rig.login(credentials=CHAP_USER)
    await peer.answer_login(await peer.login_request(), wire.text(*said), flags=0)
    await dropped(peer, listener)


OUT_OF_STEP = [
    ["CHAP_A=7", "CHAP_I=1", "CHAP_C=0x41414141", "CHAP_N=name"],
    ["CHAP_A=7", "CHAP_I=1", "CHAP_C=0x41414141", "CHAP_R=0x41"],
    ["CHAP_N=name", "CHAP_R=0x41"],
    ["AuthMethod=CHAP"],
]


@pytest.mark.parametrize("said", OUT_OF_STEP, ids=lambda said: " ".join(s.partition("=")[0] for s in said))
async def test_SEC_06_keys_of_another_step_are_refused(rig: Rig, said: list[str]) -> None:
    peer, request, _, listener = await step_one(rig)
    await peer.answer_login(request, wire.text(*said))
    await dropped(peer, listener)


async def test_SEC_06_a_second_challenge_is_refused(rig: Rig) -> None:
    peer, request, _, listener = await step_two(rig)
    await peer.answer_login(request, challenging(7, 2, "0x42424242"), flags=0)
    await dropped(peer, listener)


ENCODINGS = {
    "0x": "0x" + CHALLENGE.hex(),
    "0X": "0X" + CHALLENGE.hex().upper(),
    "0b": "0b" + base64.b64encode(CHALLENGE).decode(),
    "0B": "0B" + base64.b64encode(CHALLENGE).decode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_SEC_08_the_challenge_is_read_in_hexadecimal_and_base64(rig: Rig, encoding: str) -> None:
    _, request, _, _ = await step_two(rig, challenge=ENCODINGS[encoding])
    assert octets(request.keys["CHAP_R"]) == response(7, 0x51, SECRET, CHALLENGE)


def octets(value: str) -> bytes:
    """Read a binary value (5.1)."""
    assert value[:2] in ("0x", "0X", "0b", "0B")
    return base64.b64decode(value[2:]) if value[1] in "bB" else bytes.fromhex(value[2:])


@pytest.mark.parametrize("length", [1, 15, 16, 255, 1024])
async def test_SEC_09_challenges_of_1_to_1024_bytes_are_answered(rig: Rig, length: int) -> None:
    challenge = bytes(n * 7 & 255 for n in range(length))
    _, request, _, _ = await step_two(rig, challenge="0x" + challenge.hex())
    assert octets(request.keys["CHAP_R"]) == response(7, 0x51, SECRET, challenge)


BAD_CHALLENGES = [
    "0x123",
    "0x",
    "0xgg",
    "41424344",
    "",
    "0b=",
    "0b!!!!",
    "0bQ",
    "0x" + "41" * 1025,
    "0b" + "A" * 1372,
]


@pytest.mark.parametrize("challenge", BAD_CHALLENGES, ids=lambda text: text[:10] + str(len(text)))
async def test_SEC_10_a_malformed_challenge_is_refused(rig: Rig, challenge: str) -> None:
    peer, request, _, listener = await step_one(rig)
    await peer.answer_login(request, challenging(7, 1, challenge))
    await dropped(peer, listener)


@pytest.mark.parametrize("algorithm", HASHES)
@pytest.mark.parametrize("identifier", [0, 255])
async def test_SEC_11_the_response_is_the_hash_of_identifier_secret_and_challenge(
    rig: Rig, algorithm: int, identifier: int
) -> None:
    peer, request, _, listener = await step_two(rig, algorithm, identifier)
    assert request.keys["CHAP_N"] == USER
    assert octets(request.keys["CHAP_R"]) == response(algorithm, identifier, SECRET, CHALLENGE)
    assert len(octets(request.keys["CHAP_R"])) == {5: 16, 6: 20, 7: 32, 8: 32}[algorithm]
    await finish(peer, request, listener)


@pytest.mark.parametrize("name", ["u", "user with spaces", "Größe", "n" * 223, "n" * 255, "a=b,c"])
async def test_SEC_12_the_chap_name_is_sent_as_configured(rig: Rig, name: str) -> None:
    _, request, _, _ = await step_two(rig, credentials=replace(CHAP_USER, user=name))
    assert request.keys["CHAP_N"] == name


@pytest.mark.parametrize("which", ["secret", "mutual_secret"])
def test_SEC_14_a_secret_under_96_bits_is_refused(which: str) -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        replace(CHAP_BOTH, **{which: Secret("11 byte sec")})
    assert replace(CHAP_BOTH, allow_weak=True, **{which: Secret("11 byte sec")})


@pytest.mark.parametrize("algorithm", HASHES)
async def test_SEC_15_mutual_chap_challenges_the_target(rig: Rig, algorithm: int) -> None:
    peer, request, _, listener = await step_two(rig, algorithm, credentials=CHAP_BOTH)
    assert set(request.keys) == {"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"}
    assert len(octets(request.keys["CHAP_C"])) >= 16
    proof = response(algorithm, int(request.keys["CHAP_I"], 0), MUTUAL_SECRET, octets(request.keys["CHAP_C"]))
    await finish(peer, request, listener, ("CHAP_N", MUTUAL_USER), ("CHAP_R", "0x" + proof.hex()))


async def test_SEC_16_mutual_challenges_are_fresh(rig: Rig) -> None:
    seen: list[bytes] = []
    identifiers: set[str] = set()
    for _ in range(60):
        rig.discover(credentials=CHAP_BOTH)
        rig.discover(credentials=CHAP_BOTH)
        for peer in (await rig.target.accept(), await rig.target.accept()):
            await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=CHAP"))
            await peer.answer_login(await peer.login_request(), challenging(7, 1, "0x" + CHALLENGE.hex()))
            request = await peer.login_request()
            seen.append(octets(request.keys["CHAP_C"]))
            identifiers.add(request.keys["CHAP_I"])
            peer.reset()
    assert len(set(seen)) == 120
    assert len(identifiers) > 16


async def test_SEC_17_the_targets_challenge_is_not_used_for_our_own(rig: Rig) -> None:
    for _ in range(3):
        peer, request, _, _ = await step_two(rig, credentials=CHAP_BOTH)
        assert octets(request.keys["CHAP_C"]) != CHALLENGE
        peer.reset()


async def test_SEC_18_our_own_challenge_sent_back_is_refused(rig: Rig) -> None:
    _, request, _, _ = await step_two(rig, credentials=CHAP_BOTH)
    ours = request.keys["CHAP_C"]
    rig.nexus(credentials=CHAP_BOTH)
    peer = await rig.target.accept()
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=CHAP"))
    await peer.answer_login(await peer.login_request(), challenging(7, request.keys["CHAP_I"], ours))
    rest = await peer.gone()
    assert b"CHAP_R" not in rest


async def test_SEC_18_a_response_made_with_our_own_secret_is_a_reflection(rig: Rig) -> None:
    peer, request, _, listener = await step_two(rig, credentials=CHAP_BOTH)
    proof = response(7, int(request.keys["CHAP_I"], 0), SECRET, octets(request.keys["CHAP_C"]))
    await peer.answer_login(request, wire.text(("CHAP_N", MUTUAL_USER), ("CHAP_R", "0x" + proof.hex())))
    assert "reflection" in await dropped(peer, listener, Isdsc.AUTHENTICATION_FAILURE)


def test_SEC_18_one_secret_for_both_directions_is_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        replace(CHAP_BOTH, mutual_secret=Secret(SECRET))


@pytest.mark.parametrize("wrong", ["digest", "secret", "short", "long", "empty"])
async def test_SEC_20_a_wrong_response_of_the_target_ends_the_login(rig: Rig, wrong: str) -> None:
    peer, request, _, listener = await step_two(rig, credentials=CHAP_BOTH)
    identifier, challenge = int(request.keys["CHAP_I"], 0), octets(request.keys["CHAP_C"])
    proof = response(7, identifier, MUTUAL_SECRET, challenge)
    sent = {
        "digest": bytes(32),
        "secret": response(7, identifier, b"another secret of length", challenge),
        "short": proof[:-1],
        "long": proof + b"\0",
        "empty": b"",
    }[wrong]
    await peer.answer_login(request, wire.text(("CHAP_N", MUTUAL_USER), ("CHAP_R", "0x" + sent.hex())))
    await dropped(peer, listener, Isdsc.AUTHENTICATION_FAILURE, Isdsc.PROTOCOL_ERROR)


@pytest.mark.parametrize("said", [[], ["CHAP_N=target user"]], ids=["nothing", "only CHAP_N"])
async def test_SEC_21_a_target_that_does_not_prove_itself_is_refused(rig: Rig, said: list[str]) -> None:
    peer, request, _, listener = await step_two(rig, credentials=CHAP_BOTH)
    await peer.answer_login(request, wire.text(*said))
    await dropped(peer, listener, Isdsc.AUTHENTICATION_FAILURE, Isdsc.PROTOCOL_ERROR)


@pytest.mark.parametrize("expected", [MUTUAL_USER, None])
async def test_SEC_22_the_targets_chap_name_is_checked_where_one_is_set(rig: Rig, expected: str | None) -> None:
    peer, request, _, listener = await step_two(rig, credentials=replace(CHAP_BOTH, mutual_user=expected))
    proof = response(7, int(request.keys["CHAP_I"], 0), MUTUAL_SECRET, octets(request.keys["CHAP_C"]))
    said = ("CHAP_N", "another target"), ("CHAP_R", "0x" + proof.hex())
    if expected is None:
        await finish(peer, request, listener, *said)
    else:
        await peer.answer_login(request, wire.text(*said))
        await dropped(peer, listener, Isdsc.AUTHENTICATION_FAILURE)


async def test_SEC_23_a_refused_response_is_not_tried_again_soon(rig: Rig) -> None:
    peer, request, _, listener = await step_two(rig, 5)
    await peer.answer_login(request, flags=0, status=0x0201)
    assert "0201" in await dropped(peer, listener, Isdsc.AUTHENTICATION_FAILURE)
    assert listener.failures == [(listener.failures[0][0], False)]
    await rig.target.no_connection(0.8)


async def test_SEC_24_each_step_may_be_split_over_pdus(rig: Rig) -> None:
    peer, request, _, listener = await step_one(rig, credentials=CHAP_BOTH)
    data = challenging(7, 0x51, "0x" + CHALLENGE.hex())
    for at in range(0, len(data), 7):
        more = at + 7 < len(data)
        await peer.answer_login(request, data[at : at + 7], flags=0x40 if more else 0x00)
        request = await peer.login_request()
        assert more is (request.data == b"")
    proof = response(7, int(request.keys["CHAP_I"], 0), MUTUAL_SECRET, octets(request.keys["CHAP_C"]))
    data = wire.text(("CHAP_N", MUTUAL_USER), ("CHAP_R", "0x" + proof.hex()))
    await peer.answer_login(request, data[:20], flags=0x40)
    request = await peer.login_request()
    await peer.answer_login(request, data[20:], flags=0x00)
    await finish(peer, await peer.login_request(), listener)


async def test_SEC_26_a_target_that_stumbles_over_the_list_gets_md5_alone(rig: Rig) -> None:
    peer, request, _, listener = await step_one(rig)
    await peer.answer_login(request, flags=0, status=0x0200)
    peer = await rig.target.accept()
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=CHAP"))
    request = await peer.login_request()
    assert request.pairs == [("CHAP_A", "5")]
    await peer.answer_login(request, challenging(5, 3, "0x" + CHALLENGE.hex()))
    await finish(peer, await peer.login_request(), listener)


async def test_SEC_26_no_fallback_where_md5_is_barred(rig: Rig) -> None:
    peer, request, _, _ = await step_one(rig, credentials=replace(CHAP_USER, algorithms=(8, 7)))
    await peer.answer_login(request, flags=0, status=0x0200)
    peer = await rig.target.accept()
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=CHAP"))
    assert (await peer.login_request()).pairs == [("CHAP_A", "7")]


@pytest.mark.parametrize("method", ["KRB5", "SRP", "SPKM1", "SPKM2", "KRB5,SRP,SPKM1,CHAP"])
@pytest.mark.parametrize("secured", [True, False], ids=["CHAP offered", "None offered"])
async def test_SEC_27_methods_that_were_not_offered_are_not_accepted(rig: Rig, method: str, secured: bool) -> None:
    peer, _, listener = await rig.login(credentials=CHAP_USER if secured else None)
    request = await peer.login_request()
    assert not {"KRB5", "SRP", "SPKM1", "SPKM2"} & set(request.keys["AuthMethod"].split(","))
    await peer.answer_login(request, wire.text(("AuthMethod", method)), flags=0)
    await dropped(peer, listener)


@pytest.mark.parametrize("key", ["CHAP_C=0x41414141", "CHAP_A=5", "AuthMethod=None"])
async def test_SEC_28_a_security_key_in_the_operational_stage_is_refused(rig: Rig, key: str) -> None:
    peer, request, _, listener = await step_two(rig)
    await peer.answer_login(request)
    await peer.answer_login(await peer.login_request(), wire.text(key), flags=0x04)
    await dropped(peer, listener)


@pytest.mark.parametrize("key", ["MaxBurstLength=512", "HeaderDigest=CRC32C", "MaxRecvDataSegmentLength=512"])
async def test_SEC_28_an_operational_key_in_the_security_stage_is_refused(rig: Rig, key: str) -> None:
    peer, request, _, listener = await step_two(rig)
    await peer.answer_login(request, wire.text(key), flags=0)
    await dropped(peer, listener)


@pytest.mark.parametrize("good", [True, False])
async def test_SEC_29_no_secret_shows(rig: Rig, caplog: pytest.LogCaptureFixture, good: bool) -> None:
    caplog.set_level(logging.DEBUG)
    peer, request, nexus, listener = await step_two(rig, credentials=CHAP_BOTH)
    proof = response(7, int(request.keys["CHAP_I"], 0), MUTUAL_SECRET, octets(request.keys["CHAP_C"]))
    said = ("CHAP_N", MUTUAL_USER), ("CHAP_R", "0x" + (proof if good else bytes(32)).hex())
    if good:
        await finish(peer, request, listener, *said)
    else:
        await peer.answer_login(request, wire.text(*said))
        await dropped(peer, listener, Isdsc.AUTHENTICATION_FAILURE)
    shown = caplog.text + repr(nexus.parameters) + repr(vars(nexus)) + repr(listener.failures)
    for secret in (SECRET, MUTUAL_SECRET):
        assert secret.decode() not in shown
        assert secret.hex() not in shown


async def test_SEC_30_digests_are_compared_in_constant_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[bytes | str] = []
    real = hmac.compare_digest

    def noted(a: bytes, b: bytes) -> bool:
        compared.extend((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    peer, request, _, listener = await step_two(rig, credentials=CHAP_BOTH)
    proof = response(7, int(request.keys["CHAP_I"], 0), MUTUAL_SECRET, octets(request.keys["CHAP_C"]))
    await finish(peer, request, listener, ("CHAP_N", MUTUAL_USER), ("CHAP_R", "0x" + proof.hex()))
    assert compared.count(proof) >= 2
