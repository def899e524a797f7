# SPDX-License-Identifier: GPL-3.0-or-later
"""The login phase of the target (RFC 3720 chapters 5, 10.12, 10.13, 11, 12)."""

from __future__ import annotations

import base64
import hashlib

import pytest

SECRET, MUTUAL = "a secret of ours 1", "another secret 22"
CHAP = {"user": "alice", "secret": SECRET, "mutual_user": "the-target", "mutual_secret": MUTUAL}
HASHES = {"5": hashlib.md5, "6": hashlib.sha1, "7": hashlib.sha256, "8": hashlib.sha3_256}
TO_OPERATIONAL = 0x81


def chap_binary(text: str) -> bytes:
    assert text[:2] in ("0x", "0b")
    return bytes.fromhex(text[2:]) if text[1] == "x" else base64.b64decode(text[2:])


def chap_response(algorithm: str, identifier: str, secret: str, challenge: bytes) -> bytes:
    return HASHES[algorithm](bytes([int(identifier)]) + secret.encode() + challenge).digest()


async def test_final_response_ends_the_login_and_names_the_session(start, connect):
    target = await start()
    one = await connect(target)
    answer = await one.login()
    assert answer.tsih != 0
    assert answer.text["TargetPortalGroupTag"] == "1"
    assert answer.text["MaxRecvDataSegmentLength"] == "262144"
    assert answer.expcmdsn == one.cmdsn
    assert answer.maxcmdsn == one.cmdsn + 63
    assert [session.nexus.initiator for session in target.sessions] == [one.name]
    assert not target.violations


# offered by the initiator, wanted by the target, result by the function of RFC 3720 chapter 12
RESULTS = [
    ("MaxConnections", "8", "3", "3"),
    ("MaxConnections", "2", "3", "2"),
    ("InitialR2T", "No", "No", "No"),
    ("InitialR2T", "No", "Yes", "Yes"),
    ("InitialR2T", "Yes", "No", "Yes"),
    ("ImmediateData", "Yes", "No", "No"),
    ("ImmediateData", "No", "Yes", "No"),
    ("ImmediateData", "Yes", "Yes", "Yes"),
    ("MaxBurstLength", "16776192", "65536", "65536"),
    ("MaxBurstLength", "512", "65536", "512"),
    ("FirstBurstLength", "4096", "8192", "4096"),
    ("FirstBurstLength", "16384", "8192", "8192"),
    ("DefaultTime2Wait", "5", "3", "5"),
    ("DefaultTime2Wait", "1", "3", "3"),
    ("DefaultTime2Retain", "60", "30", "30"),
    ("DefaultTime2Retain", "0", "30", "0"),
    ("MaxOutstandingR2T", "16", "4", "4"),
    ("MaxOutstandingR2T", "2", "4", "2"),
    ("DataPDUInOrder", "No", "Yes", "Yes"),
    ("DataSequenceInOrder", "No", "Yes", "Yes"),
    ("ErrorRecoveryLevel", "2", "0", "0"),
    ("HeaderDigest", "CRC32C,None", "None", "None"),
    ("HeaderDigest", "None,CRC32C", "CRC32C,None", "None"),
    ("HeaderDigest", "CRC64,CRC32C", "None,CRC32C", "CRC32C"),
    ("DataDigest", "CRC32C", "None", "Reject"),
    ("OFMarker", "Yes", "No", "No"),
    ("OFMarkInt", "1~2048", None, "Irrelevant"),
    ("X-com.example.key", "7", None, "NotUnderstood"),
    ("Bogus", "7", None, "NotUnderstood"),
]


@pytest.mark.parametrize(("key", "offer", "wish", "result"), RESULTS)
async def test_result_of_a_key(start, connect, key, offer, wish, result):
    target = await start(keys={key: wish} if wish else {})
    one = await connect(target)
    answer = await one.login(**{key: offer})
    assert answer.text[key] == result


async def test_first_burst_never_exceeds_max_burst_whatever_the_order(start, connect):
    one = await connect(await start(keys={"MaxBurstLength": 4096, "FirstBurstLength": 65536}))
    answer = await one.login(FirstBurstLength="32768", MaxBurstLength="262144")
    assert (answer.text["FirstBurstLength"], answer.text["MaxBurstLength"]) == ("4096", "4096")


ILLEGAL = [
    ("MaxConnections", "0"),
    ("MaxConnections", "65536"),
    ("InitialR2T", "yes"),
    ("MaxBurstLength", "511"),
    ("MaxBurstLength", "16777216"),
    ("FirstBurstLength", "-1"),
    ("DefaultTime2Wait", "3601"),
    ("MaxOutstandingR2T", "0"),
    ("ErrorRecoveryLevel", "3"),
    ("MaxRecvDataSegmentLength", "511"),
    ("TargetPortalGroupTag", "1"),
]


@pytest.mark.parametrize(("key", "value"), ILLEGAL)
async def test_illegal_value_ends_the_login(start, connect, key, value):
    target = await start()
    one = await connect(target)
    answer = await one.login_step(
        {"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk", key: value}
    )
    assert answer.status == 0x0200
    assert await one.ended() == b""


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({}, 0x0207),
        ({"InitiatorName": "iqn.2026-11.com.example:host"}, 0x0207),
        ({"InitiatorName": "iqn.2026-11.com.example:host", "TargetName": "iqn.2026-11.com.example:none"}, 0x0203),
        ({"InitiatorName": "iqn.2026-11.com.example:host", "SessionType": "Other"}, 0x0209),
        ({"InitiatorName": "iqn.2026-11.com.example:guest", "TargetName": "iqn.2026-11.com.example:disk"}, 0x0202),
    ],
    ids=["no initiator name", "no target name", "unknown target", "session type", "initiator not allowed"],
)
async def test_refusal_has_its_status(start, connect, keys, status):
    target = await start(target={"initiators": ["iqn.2026-11.com.example:host"]})
    one = await connect(target)
    assert (await one.login_step(keys)).status == status
    assert await one.ended() == b""


async def test_version_that_is_too_new_is_refused(start, connect):
    one = await connect(await start())
    assert (await one.login_step({}, versions=0x0101)).status == 0x0205


async def test_join_of_a_session_that_is_not_there_is_refused(start, connect):
    one = await connect(await start())
    one.tsih = 77
    answer = await one.login_step({"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk"})
    assert answer.status == 0x020A


async def test_second_connection_joins_its_session_up_to_max_connections(start, connect, session):
    target = await start(keys={"MaxConnections": 2})
    one = await session(target, MaxConnections="4")
    statuses = []
    for cid in (1, 2):
        other = await connect(target)
        other.tsih, other.cid, other.cmdsn = one.tsih, cid, one.cmdsn
        answer = await other.login_step({"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk"})
        statuses.append(answer.status)
    assert statuses == [0, 0x0206]
    assert sorted(target.sessions[0].connections) == [0, 1]


@pytest.mark.parametrize("first", [0x05, 0x00, 0x01], ids=["data out", "nop out", "scsi command"])
async def test_first_pdu_that_is_no_login_request_ends_the_connection(start, connect, first):
    one = await connect(await start())
    one.send(first)
    assert await one.ended() == b""


async def test_other_request_during_login_is_refused(start, connect):
    one = await connect(await start())
    answer = await one.login_step(
        {"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk"}, flags=0x04
    )
    assert (answer.status, answer.flags) == (0, 0x04)
    one.send(0x00, itt=5, immediate=True)
    assert (await one.receive()).status == 0x020B


@pytest.mark.parametrize(
    "text",
    [b"InitiatorName\0", b"=x\0", b"InitiatorName=a", b"initiatorname=a\0", b"A" * 64 + b"=1\0", b"A=\xff\0"],
    ids=["no equals sign", "no key", "no final NUL", "lower case", "key of 64 bytes", "not UTF-8"],
)
async def test_malformed_text_is_refused(start, connect, text):
    one = await connect(await start())
    assert (await one.login_step(text)).status == 0x0200


async def test_key_sent_twice_is_refused(start, connect):
    one = await connect(await start())
    keys = {"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk", "MaxBurstLength": "4096"}
    assert (await one.login_step(keys, flags=0x04)).status == 0
    assert (await one.login_step({"MaxBurstLength": "8192"})).status == 0x0200


async def test_declaration_that_is_repeated_is_noted_and_a_changed_one_refused(start, connect, wire):
    target = await start()
    keys = {"InitiatorName": wire.NAME, "TargetName": wire.TARGET}
    one = await connect(target)
    assert (await one.login_step(keys, flags=0x04)).status == 0
    assert (await one.login_step({"InitiatorName": wire.NAME})).status == 0
    assert list(target.violations) == ["connection 1: InitiatorName is declared again"]
    other = await connect(target)
    assert (await other.login_step(keys, flags=0x04)).status == 0
    assert (await other.login_step({"InitiatorName": wire.NAME + "x"})).status == 0x0200


async def test_text_in_parts_is_put_together(start, connect):
    one = await connect(await start())
    text = f"InitiatorName={one.name}\0TargetName=iqn.2026-11.com.example:disk\0MaxBurstLength=5120\0".encode()
    for byte in range(0, 60, 20):
        answer = await one.login_step(text[byte : byte + 20], flags=0x44)
        assert (answer.data, answer.flags) == (b"", 0x04)
    answer = await one.login_step(text[60:])
    assert answer.text["MaxBurstLength"] == "5120"


async def test_long_answer_comes_in_parts(start, connect):
    one = await connect(await start(login_segment=16))
    answer = await one.login_step({"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk"})
    text = answer.data
    while answer.flags & 0x40:
        assert not answer.flags & 0x80
        assert len(answer.data) <= 16
        answer = await one.login_step({})
        text += answer.data
    assert answer.flags == 0x87
    assert text == b"TargetPortalGroupTag=1\0MaxRecvDataSegmentLength=262144\0"


async def test_offer_of_the_target_is_answered_before_the_login_ends(start, connect):
    target = await start(offers=[["DefaultTime2Wait", "7"]])
    one = await connect(target)
    answer = await one.login_step({"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk"})
    assert (answer.flags, answer.text["DefaultTime2Wait"]) == (0x04, "7")
    answer = await one.login_step({"DefaultTime2Wait": "9"})
    assert answer.flags == 0x87
    assert target.sessions[0].values["DefaultTime2Wait"] == 9


@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize("algorithm", ["5", "6", "7", "8"])
@pytest.mark.parametrize("mutual", [False, True], ids=["one-way", "mutual"])
async def test_chap(start, connect, algorithm, encoding, mutual):
    target = await start(target={"chap": {**CHAP, "encoding": encoding}})
    one = await connect(target)
    names = {"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk", "AuthMethod": "None,CHAP"}
    assert (await one.login_step(names, flags=TO_OPERATIONAL)).text["AuthMethod"] == "CHAP"
    answer = await one.login_step({"CHAP_A": f"9,{algorithm},5"}, flags=0x00)
    assert answer.text["CHAP_A"] == algorithm
    challenge = chap_binary(answer.text["CHAP_C"])
    proof = chap_response(algorithm, answer.text["CHAP_I"], SECRET, challenge)
    keys = {"CHAP_N": "alice", "CHAP_R": "0x" + proof.hex()}
    own = bytes(range(40, 60))
    if mutual:
        keys |= {"CHAP_I": "200", "CHAP_C": "0b" + base64.b64encode(own).decode()}
    answer = await one.login_step(keys, flags=TO_OPERATIONAL)
    assert (answer.status, answer.flags) == (0, TO_OPERATIONAL)
    if mutual:
        assert answer.text["CHAP_N"] == "the-target"
        assert chap_binary(answer.text["CHAP_R"]) == chap_response(algorithm, "200", MUTUAL, own)
    assert (await one.login_step({})).flags == 0x87


async def chap_refusal(one, *, method="CHAP", algorithms="5", **third):
    names = {"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk", "AuthMethod": method}
    answer = await one.login_step(names, flags=TO_OPERATIONAL)
    if answer.status:
        return answer.status
    answer = await one.login_step({"CHAP_A": algorithms}, flags=0x00)
    if answer.status:
        return answer.status
    challenge = chap_binary(answer.text["CHAP_C"])
    proof = chap_response("5", answer.text["CHAP_I"], third.pop("secret", SECRET), challenge)
    keys = {"CHAP_N": "alice", "CHAP_R": "0x" + proof.hex(), **third}
    if keys.get("CHAP_C") == "reflected":
        keys["CHAP_C"] = answer.text["CHAP_C"]
    return (await one.login_step(keys, flags=TO_OPERATIONAL)).status


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "None"},
        {"method": "KRB5"},
        {"algorithms": "6,99"},
        {"secret": "not the secret"},
        {"CHAP_N": "mallory"},
        {"CHAP_R": "0x00"},
        {"CHAP_R": "no binary"},
        {"CHAP_I": "3", "CHAP_C": "reflected"},
        {"CHAP_I": "256", "CHAP_C": "0x0102"},
        {"CHAP_I": "3"},
    ],
    ids=lambda wrong: " ".join(f"{key}={value}" for key, value in wrong.items()),
)
async def test_authentication_fails(start, connect, wrong):
    target = await start(target={"chap": {**CHAP, "algorithms": ["5"]}})
    one = await connect(target)
    assert await chap_refusal(one, **wrong) == 0x0201
    assert not target.sessions
    assert SECRET not in " ".join(target.notes)


async def test_login_without_the_security_stage_is_refused_where_chap_is_required(start, connect):
    one = await connect(await start(target={"chap": CHAP}))
    answer = await one.login_step({"InitiatorName": one.name, "TargetName": "iqn.2026-11.com.example:disk"})
    assert answer.status == 0x0201


async def test_discovery_has_credentials_of_its_own(start, connect, session):
    target = await start(discovery_chap=CHAP)
    one = await connect(target)
    answer = await one.login_step({"InitiatorName": one.name, "SessionType": "Discovery"})
    assert answer.status == 0x0201
    await session(target)


async def test_same_initiator_port_reinstates_its_session_and_ends_the_old_tasks(start, session, wire):
    target = await start()
    old = await session(target)
    old.command(wire.write10(0, 8), write=4096)
    assert (await old.receive()).opcode == 0x31
    task = next(iter(target.sessions[0].tasks.values()))
    new = await session(target)
    assert task.done
    assert task.aborted
    assert await old.ended() == b""
    assert len(target.sessions) == 1
    assert new.tsih != old.tsih


async def test_other_isid_is_another_session(start, session):
    target = await start()
    await session(target)
    await session(target, isid=bytes.fromhex("800000020000"))
    assert len(target.sessions) == 2


async def test_login_that_stalls_is_ended(start, connect):
    one = await connect(await start(login_timeout=0.05))
    assert await one.ended() == b""
