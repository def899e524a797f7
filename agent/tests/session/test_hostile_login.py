# SPDX-License-Identifier: GPL-3.0-or-later
"""What a target may do to a login and to discovery, case by case of the list of faults (B32, B34, B40, C41 to C49).

That a secret changes while a session is logged in (C48), and is put back where it is wrong, is a matter of the
reconciler and tested there, as is that a secret shows nowhere in a whole agent (C49).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from tests.iscsi.scripted_login import TARGET, Script, parameters
from tests.session.conftest import Bounds
from tests.session.scripted_target import header

from blockfleet.discovery.found import FoundPortal, collect
from blockfleet.iscsi.chap import ChallengeMemory, ChapCredentials
from blockfleet.iscsi.connection import Connection
from blockfleet.iscsi.events import ConnectionLost, LossKind
from blockfleet.iscsi.login import LoginMachine
from blockfleet.iscsi.login_failure import FailureKind, login_error
from blockfleet.iscsi.reconnect import BackOff
from blockfleet.iscsi.sendtargets import SendTargetsError, SendTargetsReader
from blockfleet.iscsi.session import Patience, Session
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_document
from blockfleet.model.portal import Portal
from blockfleet.model.secret import Secret

pytestmark = pytest.mark.usefixtures("bounded")

SECRET, MUTUAL_SECRET = "canary-insecret-1", "canary-outsecret-2"
ONE_WAY = ChapCredentials("host", Secret(SECRET), algorithms=(7,))
MUTUAL = ChapCredentials("host", Secret(SECRET), "disk", Secret(MUTUAL_SECRET), algorithms=(7,))
TAG = "TargetPortalGroupTag=1"
CHALLENGE = bytes(range(16))
STEP_2 = ("CHAP_A=7", "CHAP_I=77", f"CHAP_C=0x{CHALLENGE.hex()}")
MAXIMUM_ROUNDS = 2500
"""Responses after which a login that goes on is one without end."""


def failed(script: Script, kind: FailureKind) -> str:
    """Hold that the login has ended with an error that shows no secret, and return its text."""
    machine = script.machine
    assert machine.result is None
    assert machine.failure is not None
    assert machine.failure.kind is kind
    text = str(login_error(machine.failure, TARGET, Portal("192.0.2.1")))
    assert SECRET not in text
    assert MUTUAL_SECRET not in text
    assert len(text) < 1000
    return text


def response(secret: str, identifier: int, challenge: bytes) -> str:
    """RFC 1994 4.1 with SHA-256."""
    return "0x" + hashlib.sha256(bytes([identifier]) + secret.encode() + challenge).hexdigest()


# ---- 32: negotiation


def at_stage(stage: int) -> Script:
    script = Script()
    if stage:
        script.skip_security()
    return script


STAGES = pytest.mark.parametrize("stage", [0, 1], ids=["security", "operational"])


@STAGES
@pytest.mark.parametrize(
    "data",
    [
        b"MaxBurstLength\0",
        b"=\0",
        b"X-a=" + b"v" * 65536 + b"\0",
        b"k" * 65536 + b"=v\0",
        b"X-a=1\0X-a=1\0",
        b"TargetAlias=a\0TargetAlias=b\0",
        b"\0" * 65536,
    ],
    ids=["no =", "no key", "64 KiB value", "64 KiB key", "twice", "twice but other", "64 KiB of NUL"],
)
def test_b32_text_that_is_none_ends_the_login(data: bytes, stage: int) -> None:
    script = at_stage(stage)
    assert script.answer(data=data) is None
    failed(script, FailureKind.PROTOCOL)


@pytest.mark.parametrize(
    "pair",
    [
        "HeaderDigest=CRC32C",
        "DataDigest=SHA1",
        "MaxBurstLength=0",
        "MaxBurstLength=16777216",
        "MaxConnections=65536",
        "ErrorRecoveryLevel=3",
        "InitialR2T=Maybe",
        "MaxOutstandingR2T=-1",
        "DefaultTime2Wait=999999999999999999999",
    ],
)
def test_b32_a_value_that_was_not_offered_or_cannot_be_ends_the_login(pair: str) -> None:
    script = Script(parameters(offer=parameters().offer.__class__(header_digest=("None",))))
    script.skip_security()
    assert script.answer(pair, t=True, nsg=3, tsih=1) is None
    failed(script, FailureKind.PROTOCOL)


@STAGES
@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (lambda script, _: script.answer(c=True), 255),
        (lambda script, _: script.answer(data=b"X" * 8192, c=True), 8),
        (lambda script, _: script.answer(), 16),
        (lambda script, number: script.answer(f"X-com.example.{number}=1"), 16),
        (lambda script, number: script.answer(*(f"X-com.example.{number}.{n}=1" for n in range(200))), 16),
    ],
    ids=["C without text", "C with 8 KiB", "nothing", "a key a round", "200 keys a round"],
)
def test_b32_a_login_without_end_is_cut_off(
    answer: Callable[[Script, int], object], limit: int, stage: int
) -> None:
    script = at_stage(stage)
    rounds = 0
    while answer(script, rounds) is not None:
        rounds += 1
        assert rounds < MAXIMUM_ROUNDS
    failed(script, FailureKind.PROTOCOL)
    assert rounds <= limit


def test_b32_a_target_that_never_lets_the_stage_end_is_cut_off() -> None:
    """The T bit of the initiator is answered without one."""
    script = at_stage(1)
    rounds = 0
    while script.answer(t=False) is not None:
        rounds += 1
        assert rounds <= 16
    failed(script, FailureKind.PROTOCOL)


@STAGES
@pytest.mark.parametrize("version", [1, 0xFF])
def test_b32_another_version_ends_the_login(version: int, stage: int) -> None:
    script = at_stage(stage)
    assert script.answer(version=version) is None
    failed(script, FailureKind.VERSION)


def test_b32_tsih_0_at_the_end_is_no_session() -> None:
    script = at_stage(1)
    assert script.answer(t=True, nsg=3, tsih=0) is None
    failed(script, FailureKind.PROTOCOL)


# ---- 34: SendTargets


def discovered(answer: bytes, chunk: int = 8192) -> SendTargetsReader:
    reader = SendTargetsReader(Portal("192.0.2.7"), 1)
    for at in range(0, len(answer), chunk):
        reader.feed(answer[at : at + chunk])
    reader.finish()
    return reader


@pytest.mark.parametrize(("count", "chunk"), [(10_000, 8192), (1000, 512), (100, 1)])
def test_b34_ten_thousand_targets_are_found_in_memory_for_what_they_are(
    count: int, chunk: int, bounded: Bounds
) -> None:
    bounded.peak = (1 << 20) + 1000 * count
    answer = b"".join(
        b"TargetName=iqn.2026-11.com.example:t%05d\0TargetAddress=192.0.2.%d:3260,1\0" % (n, n % 200 + 1)
        for n in range(count)
    )
    records = discovered(answer, chunk).records()
    assert [record.name for record in records] == [f"iqn.2026-11.com.example:t{n:05d}" for n in range(count)]
    assert all(len(record.portals) == 1 for record in records)


@pytest.mark.parametrize("data", [b"TargetName=" + b"x" * (1 << 20), b"x" * (1 << 20)], ids=["value", "key"])
def test_b34_a_mebibyte_without_an_end_is_refused(data: bytes) -> None:
    with pytest.raises(SendTargetsError):
        discovered(data)


@pytest.mark.parametrize(
    "name",
    [
        "iqn.2026-11.com.example:../../etc",
        "iqn.2026-11.com.example:a\nnode.startup=automatic",
        "iqn.2026-11.com.example:" + "a" * 200,
        "iqn.2026-11.com.example:a\u202eb",
        "iqn.2026-11.com.example:a b",
        "iqn.2026-11.com.example:$(id)",
        "../iqn",
        "",
    ],
    ids=["path", "newline", "224 bytes", "bidi", "blank", "shell", "no name", "empty"],
)
def test_b34_a_hostile_name_is_dropped_with_its_addresses_and_nothing_else(name: str) -> None:
    """Newline injection into what is stored: CVE-2026-44943."""
    answer = (
        b"TargetName=iqn.2026-11.com.example:before\0TargetName="
        + name.encode()
        + b"\0TargetAddress=192.0.2.66,1\0TargetName=IQN.2026-11.com.example:AFTER\0TargetAddress=192.0.2.9,1\0"
    )
    reader = discovered(answer)
    records = reader.records()
    assert [record.name for record in records] == [
        "iqn.2026-11.com.example:before",
        "iqn.2026-11.com.example:after",
    ]
    found = [FoundPortal(record.name, portal, tag) for record in records for portal, tag in record.portals]
    assert "192.0.2.66" not in str(collect(found, "the portal"))
    assert reader.warnings
    assert all(warning.isprintable() for warning in reader.warnings)


# ---- 40: time


def test_b40_a_login_that_comes_byte_by_byte_has_its_time() -> None:
    """A byte a second is progress of TCP and none of the login."""
    now, timeout = 100.0, 10.0
    session = Session(Patience(noop_interval=0.0), now, 7)
    connection = Connection(
        session, 1, LoginMachine(parameters(cid=1, cmd_sn=7), bytes), lambda: None, now + timeout
    )
    session.add_connection(connection)
    connection.connecting()
    connection.connected(now)
    answer = header(0x23, 0x81, itt=0x5A5A0001, dsl=8192)
    seconds = 0
    while not session.events:
        assert seconds < 20
        connection.get_buffer(-1)[:1] = bytes(answer[seconds : seconds + 1])
        connection.received(1, now)
        now += 1.0
        seconds += 1
        session.advance(now)
    (event,) = session.events
    assert isinstance(event, ConnectionLost)
    assert event.kind is LossKind.LOGIN_TIMEOUT
    assert seconds == timeout


# ---- CHAP


def challenged(credentials: ChapCredentials) -> Script:
    """A login up to the third step: our response is sent."""
    script = Script(parameters(credentials=credentials))
    script.answer(TAG, "AuthMethod=CHAP")
    script.answer(*STEP_2)
    return script


def no_credentials() -> Script:
    script = Script(parameters(credentials=None))
    script.answer(TAG, "AuthMethod=Reject", t=True)
    return script


def refused() -> Script:
    script = challenged(ONE_WAY)
    script.answer(status=0x0201)
    return script


def wrong_reverse_secret() -> Script:
    script = challenged(MUTUAL)
    sent = script.last.text
    proof = response("another-secret-3", int(sent["CHAP_I"]), bytes.fromhex(sent["CHAP_C"][2:]))
    script.answer("CHAP_N=disk", f"CHAP_R={proof}", t=True)
    return script


def wrong_reverse_name() -> Script:
    script = challenged(MUTUAL)
    sent = script.last.text
    proof = response(MUTUAL_SECRET, int(sent["CHAP_I"]), bytes.fromhex(sent["CHAP_C"][2:]))
    script.answer("CHAP_N=other", f"CHAP_R={proof}", t=True)
    return script


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (no_credentials, FailureKind.AUTHENTICATION),
        (refused, FailureKind.AUTHENTICATION),
        (wrong_reverse_secret, FailureKind.TARGET_AUTHENTICATION),
        (wrong_reverse_name, FailureKind.TARGET_AUTHENTICATION),
    ],
    ids=["no credentials", "wrong name or secret", "wrong reverse secret", "wrong reverse name"],
)
def test_c41_a_login_that_is_not_authenticated_fails_and_is_not_repeated_soon(
    run: Callable[[], Script], kind: FailureKind
) -> None:
    script = run()
    failed(script, kind)
    assert script.machine.failure is not None
    assert not script.machine.failure.retry
    back_off = BackOff(lambda: 0.0)
    delays = [back_off.refused() for _ in range(20)]
    assert min(delays) >= 30.0
    assert sum(delays[:10]) > 3000.0, "no storm that locks an account"


def test_c41_the_right_answers_log_in() -> None:
    script = challenged(MUTUAL)
    sent = script.last.text
    proof = response(MUTUAL_SECRET, int(sent["CHAP_I"]), bytes.fromhex(sent["CHAP_C"][2:]))
    script.answer("CHAP_N=disk", f"CHAP_R={proof}", t=True)
    script.accept()
    assert script.machine.result is not None
    assert script.machine.result.mutual


def test_c42_our_own_response_sent_back_is_refused() -> None:
    script = challenged(MUTUAL)
    ours = script.last.text["CHAP_R"]
    script.answer("CHAP_N=disk", f"CHAP_R={ours}", t=True)
    failed(script, FailureKind.TARGET_AUTHENTICATION)


def test_c42_our_own_secret_used_by_the_target_is_refused() -> None:
    script = challenged(MUTUAL)
    sent = script.last.text
    proof = response(SECRET, int(sent["CHAP_I"]), bytes.fromhex(sent["CHAP_C"][2:]))
    script.answer("CHAP_N=disk", f"CHAP_R={proof}", t=True)
    assert "reflection" in str(script.machine.failure)
    failed(script, FailureKind.TARGET_AUTHENTICATION)


def test_c42_our_challenge_on_another_connection_is_not_answered() -> None:
    memory, scripts = ChallengeMemory(), [Script(parameters(credentials=MUTUAL)) for _ in range(2)]
    for number, script in enumerate(scripts):
        script.machine = LoginMachine(
            parameters(credentials=MUTUAL), lambda length, n=number: bytes([0xA0 + n]) * length, memory
        )
        script.machine.start()
        script.answer(TAG, "AuthMethod=CHAP")
    scripts[0].answer(*STEP_2)
    ours = scripts[0].last.text["CHAP_C"]
    assert scripts[1].answer("CHAP_A=7", "CHAP_I=1", f"CHAP_C={ours}") is None
    failed(scripts[1], FailureKind.TARGET_AUTHENTICATION)


@pytest.mark.parametrize("algorithm", ["5", "6", "8", "0", "07", "65543", "", "7,5", "Reject"])
def test_c44_an_algorithm_that_policy_bars_or_nobody_offered_is_refused(algorithm: str) -> None:
    script = Script(parameters(credentials=ONE_WAY))
    script.answer(TAG, "AuthMethod=CHAP")
    assert script.last.text == {"CHAP_A": "7"}
    assert script.answer(f"CHAP_A={algorithm}", "CHAP_I=1", "CHAP_C=0x0011") is None
    assert script.machine.result is None
    assert script.machine.failure is not None
    assert len(script.requests) == 2, "no response left this host"


@pytest.mark.parametrize("credentials", [ONE_WAY, MUTUAL], ids=["one way", "mutual"])
@pytest.mark.parametrize(
    "answers",
    [
        [(("AuthMethod=None", TAG), {"t": True, "nsg": 1})],
        [(("AuthMethod=None", TAG), {})],
        [((TAG,), {"t": True, "nsg": 1})],
        [((TAG,), {"t": True, "nsg": 3, "tsih": 1})],
        [((), {"csg": 1, "nsg": 3, "t": True, "tsih": 1})],
        [((TAG, "AuthMethod=CHAP"), {}), ((), {"t": True, "nsg": 1})],
    ],
    ids=["None at once", "None", "no method", "full feature phase", "another stage", "after the method"],
)
def test_c46_a_target_that_skips_chap_is_refused(
    credentials: ChapCredentials, answers: list[tuple[tuple[str, ...], dict[str, object]]]
) -> None:
    script = Script(parameters(credentials=credentials))
    for pairs, options in answers:
        script.answer(*pairs, **options)  # type: ignore[arg-type]
    assert script.machine.result is None
    assert script.machine.failure is not None


@pytest.mark.parametrize(
    "chap",
    [
        {"secret": "canary-1234"},
        {"secret": SECRET, "mutual_secret": "canary-1234"},
        {"secret": SECRET, "mutual_secret": SECRET},
        {"secret": "canary" * 50},
    ],
    ids=["short", "short reverse", "one for both", "300 bytes"],
)
def test_c47_secrets_that_are_weak_are_refused_where_they_are_written(
    chap: dict[str, str], bounded: Bounds
) -> None:
    bounded.peak = 16 << 20  # validators are built when they are first used
    document = {
        "targets": [
            {
                "name": "iqn.2026-11.com.example:db",
                "portals": ["192.0.2.10"],
                "chap": {"user": "host", "mutual_user": "disk", **chap},
            }
        ]
    }
    with pytest.raises(BlockfleetError) as caught:
        load_document(document)
    assert caught.value.code in (Isdsc.SHORT_CHAP_SECRET, Isdsc.INVALID_CHAP_SECRET)
    assert "canary" not in str(caught.value)
    assert (caught.value.field or "").startswith("targets[0].chap")


def test_c49_no_text_of_a_login_shows_a_secret() -> None:
    for run in (no_credentials, refused, wrong_reverse_secret, wrong_reverse_name):
        script = run()
        shown = [repr(script.machine.failure), repr(ONE_WAY), repr(MUTUAL), repr(parameters(credentials=MUTUAL))]
        sent = b"".join(request.wire for request in script.requests)
        assert not any("canary" in text for text in shown)
        assert b"canary" not in sent
