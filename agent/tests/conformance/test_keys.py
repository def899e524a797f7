# SPDX-License-Identifier: GPL-3.0-or-later
"""KEY: negotiation of each key (RFC 3720 chapters 5 and 12)."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Rig
from tests.conformance.raw_target import ABSENT, DECLARED_LIMIT, Peer
from tests.conformance.wire import Pdu

from blockfleet.model.isdsc import Isdsc
from blockfleet.net.nexus import Nexus

MIB = bytes(range(256)) * 4096


async def logged_in(rig: Rig, **answers: str) -> tuple[Peer, Nexus]:
    """Log in with these answers; ``ABSENT`` gives none."""
    peer, nexus, _ = await rig.session(answers)
    return peer, nexus


async def refused(rig: Rig, **answers: str) -> Peer:
    """Hold that these answers end the login and the connection, soon and with a cause."""
    peer, _, listener = await rig.login()
    await peer.operational(await peer.pass_security(), answers)
    await peer.gone()
    error = await listener.failure()
    assert error.code is Isdsc.PROTOCOL_ERROR
    assert not listener.logins
    return peer


async def answer_to(rig: Rig, *offers: str) -> dict[str, str]:
    """Let the target originate keys in the operational stage and return what is answered to them."""
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    named = {offer.partition("=")[0] for offer in offers}
    said = [pair for pair in peer.answers(request, {}) if pair[0] not in named]
    assert not named & {name for name, _ in request.pairs}, "the initiator had offered it"
    await peer.answer_login(request, wire.text(*said, *offers), flags=0x04)
    request = await peer.login_request()
    await peer.answer_login(request, tsih=4)
    await listener.until(lambda: listener.logins)
    return request.keys


async def write_of(peer: Peer, nexus: Nexus, data: bytes) -> list[Pdu]:
    """Start a write and return everything that comes without an R2T."""
    Issued(nexus, WRITE_10, write=data)
    got = [await peer.expect(wire.COMMAND)]
    while not got[-1].final:
        got.append(await peer.recv())
    await peer.quiet()
    return got


async def test_KEY_01_each_pair_ends_with_one_nul(rig: Rig) -> None:
    peer, _ = await logged_in(rig)
    for request in peer.requests:
        assert request.data.endswith(b"\0")
        assert b"\0\0" not in request.data
        assert wire.text(*request.pairs) == request.data


async def test_KEY_02_8192_bytes_of_text_over_several_pdus_are_taken(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    rest = wire.text(*peer.answers(request, {}))
    names = [f"X-com.example.{n:02}" for n in range(30)]
    data = rest + wire.text(*(f"{name}={'v' * 240}" for name in names))
    data += wire.text("X-com.example.fill=" + "f" * (8192 - len(data) - 20))
    assert len(data) == 8192
    for at in range(0, len(data), 1001):
        more = at + 1001 < len(data)
        await peer.answer_login(request, data[at : at + 1001], flags=0x44 if more else 0x04)
        request = await peer.login_request()
        if more:
            assert request.data == b""
    assert request.keys == dict.fromkeys([*names, "X-com.example.fill"], "NotUnderstood")
    await peer.answer_login(request, tsih=4)
    await listener.until(lambda: listener.logins)


async def test_KEY_02_a_value_of_over_255_bytes_is_not_taken(rig: Rig) -> None:
    assert await answer_to(rig, "X-com.example.long=" + "v" * 300) == {"X-com.example.long": "Reject"}


async def test_KEY_02_a_key_name_of_over_63_bytes_is_refused(rig: Rig) -> None:
    await refused(rig, MaxRecvDataSegmentLength="8192\0X-" + "k" * 62 + "=1")


MALFORMED = [
    b"HeaderDigest\0",
    b"=None\0",
    b"HeaderDigest=None",
    b"HeaderDigest=No\x01ne\0",
    b"Header\nDigest=None\0",
    b"\xff\xfe=1\0",
    b"X-a=1\0\0\0\0\0\0\0X-b=2\0",
]


@pytest.mark.parametrize("data", MALFORMED, ids=repr)
async def test_KEY_04_malformed_text_is_refused(rig: Rig, data: bytes) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.pass_security(), data, flags=0x04)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_KEY_05_unknown_keys_are_not_understood_and_login_goes_on(rig: Rig) -> None:
    answers = await answer_to(rig, "X-com.example.foo=1", "Bogus=7")
    assert answers == {"X-com.example.foo": "NotUnderstood", "Bogus": "NotUnderstood"}


@pytest.mark.parametrize(
    ("key", "answer", "result"),
    [
        ("HeaderDigest", "Reject", ("header_digest", False)),
        ("MaxConnections", "Irrelevant", ("max_connections", 1)),
        ("FirstBurstLength", "Irrelevant", ("first_burst_length", 65536)),
        ("MaxOutstandingR2T", "Reject", ("max_outstanding_r2t", 1)),
    ],
)
async def test_KEY_06_reserved_answers_mean_the_default(
    rig: Rig, key: str, answer: str, result: tuple[str, object]
) -> None:
    _, nexus = await logged_in(rig, **{key: answer})
    assert getattr(nexus.negotiated, result[0]) == result[1]


@pytest.mark.parametrize("value", ["Reject", "Irrelevant", "NotUnderstood"])
async def test_KEY_06_a_reserved_answer_that_is_proposed_is_refused(rig: Rig, value: str) -> None:
    await refused(rig, MaxRecvDataSegmentLength=value)


@pytest.mark.parametrize("value", ["Reject", "NotUnderstood"])
async def test_KEY_06_a_digest_that_is_required_and_refused_fails_the_login(rig: Rig, value: str) -> None:
    peer, _, listener = await rig.login(header_digest=("crc32c",))
    await peer.operational(await peer.pass_security(), {"HeaderDigest": value})
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.LOGIN_FAILED


async def test_KEY_07_a_standard_key_that_is_not_understood_gets_its_default(rig: Rig) -> None:
    _, nexus = await logged_in(rig, ErrorRecoveryLevel="NotUnderstood", MaxBurstLength="NotUnderstood")
    assert nexus.negotiated is not None
    assert nexus.negotiated.error_recovery_level == 0
    assert nexus.negotiated.max_burst_length == 262144
    assert nexus.result is not None
    assert len(nexus.result.warnings) == 2


@pytest.mark.parametrize("again", ["ImmediateData=Yes", "ImmediateData=No", "MaxBurstLength=1024"])
async def test_KEY_08_a_key_that_comes_twice_is_refused(rig: Rig, again: str) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text(*peer.answers(request, {})), flags=0x04)
    await peer.answer_login(await peer.login_request(), wire.text(again), flags=0x04)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_KEY_08_a_key_that_comes_twice_in_one_pdu_is_refused(rig: Rig) -> None:
    await refused(rig, ImmediateData="Yes\0ImmediateData=No")


async def test_KEY_10_what_the_target_originates_is_answered_in_the_same_key(rig: Rig) -> None:
    answers = await answer_to(rig, "iSCSIProtocolLevel=2", "IFMarker=Yes", "TaskReporting=FastAbort,RFC3720")
    assert set(answers) == {"iSCSIProtocolLevel", "IFMarker", "TaskReporting"}
    assert answers["TaskReporting"] == "FastAbort"


@pytest.mark.parametrize("answer", ["CRC64", "crc32c", "Yes"])
async def test_KEY_11_a_choice_that_was_not_offered_is_refused(rig: Rig, answer: str) -> None:
    await refused(rig, HeaderDigest=answer)


@pytest.mark.parametrize("method", ["SRP", "CHAP", "KRB5"])
async def test_KEY_11_a_method_that_was_not_offered_is_refused(rig: Rig, method: str) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), wire.text(("AuthMethod", method)), flags=0)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_KEY_12_the_first_known_entry_of_a_list_is_chosen(rig: Rig) -> None:
    answers = await answer_to(rig, "TaskReporting=Foo,RFC3720,FastAbort")
    assert answers == {"TaskReporting": "RFC3720"}


async def test_KEY_12_a_discovery_session_chooses_from_what_the_target_originates(rig: Rig) -> None:
    rig.discover()
    peer = await rig.target.accept()
    request = await peer.pass_security()
    offered = request.keys
    if "HeaderDigest" in offered:
        assert offered["HeaderDigest"] == "None"


@pytest.mark.parametrize("key", ["HeaderDigest", "DataDigest"])
async def test_KEY_13_a_list_is_no_answer_to_a_list(rig: Rig, key: str) -> None:
    await refused(rig, **{key: "CRC32C,None"})


@pytest.mark.parametrize("first", ["none", "crc32c"])
async def test_KEY_14_digests_are_offered_in_order_and_begin_with_the_full_feature_phase(
    rig: Rig, digests: tuple[str, str], first: str
) -> None:
    order = (first, "crc32c" if first == "none" else "none")
    peer, nexus, _ = await rig.session(digests=digests, header_digest=order, data_digest=order)
    expected = "None,CRC32C" if first == "none" else "CRC32C,None"
    assert (peer.offers["HeaderDigest"], peer.offers["DataDigest"]) == (expected, expected)
    read = Issued(nexus, READ_10, read=1001)
    write = Issued(nexus, WRITE_10, write=b"w" * 1003)
    command, written = await peer.expect(wire.COMMAND), await peer.expect(wire.COMMAND)
    assert written.data == b"w" * 1003
    await peer.raw(peer.last_data_in(command.itt, 0, 0, b"r" * 1001))
    await read.good()
    assert bytes(read.buffer) == b"r" * 1001
    await peer.raw(peer.response(written.itt))
    await write.good()


@pytest.mark.parametrize("answer", ["1", ABSENT])
async def test_KEY_16_no_more_connections_than_agreed(rig: Rig, answer: str) -> None:
    await logged_in(rig, MaxConnections=answer)
    await rig.target.no_connection(0.1)


@pytest.mark.parametrize("answer", ["4", "65535", "0", "65536", "x", "-1"])
async def test_KEY_16_an_illegal_number_of_connections_is_refused(rig: Rig, answer: str) -> None:
    await refused(rig, MaxConnections=answer)


@pytest.mark.parametrize(("answer", "waits"), [("Yes", True), (ABSENT, True), ("No", False)])
async def test_KEY_17_initialr2t_is_the_or_of_both(rig: Rig, answer: str, waits: bool) -> None:
    peer, nexus = await logged_in(rig, InitialR2T=answer, ImmediateData="No", FirstBurstLength="2048")
    assert peer.offers["InitialR2T"] == "No"
    got = await write_of(peer, nexus, MIB[:8192])
    assert (len(got) == 1) is waits


@pytest.mark.parametrize("answer", ["maybe", "yes", "1"])
async def test_KEY_17_a_boolean_that_is_none_is_refused(rig: Rig, answer: str) -> None:
    await refused(rig, InitialR2T=answer)


@pytest.mark.parametrize(("answer", "immediate"), [("No", 0), ("Yes", 1000), (ABSENT, 1000)])
async def test_KEY_18_immediatedata_is_the_and_of_both(rig: Rig, answer: str, immediate: int) -> None:
    peer, nexus = await logged_in(rig, ImmediateData=answer)
    assert peer.offers["ImmediateData"] == "Yes"
    (command,) = await write_of(peer, nexus, MIB[:1000])
    assert len(command.data) == immediate


@pytest.mark.parametrize(
    ("declared", "limit"), [("512", 512), ("16777215", 65536), (ABSENT, 8192), ("0x400", 1024), ("1000", 1000)]
)
async def test_KEY_19_no_data_pdu_is_longer_than_the_target_declared(rig: Rig, declared: str, limit: int) -> None:
    peer, nexus = await logged_in(rig, MaxRecvDataSegmentLength=declared, MaxBurstLength="65536")
    issued = Issued(nexus, WRITE_10, write=MIB[: 65536 + 4096])
    command = await peer.expect(wire.COMMAND)
    assert len(command.data) == min(limit, 16384)
    at = len(command.data)
    await peer.raw(peer.r2t(command.itt, 7, 0, at, 49152, lun=LUN))
    sizes = []
    while True:
        pdu = await peer.expect(wire.DATA_OUT)
        sizes.append(len(pdu.data))
        if pdu.final:
            break
    assert sum(sizes) == 49152
    assert max(sizes) == min(limit, 49152)
    assert issued.running


async def test_KEY_19_our_own_limit_is_declared_and_stays(rig: Rig) -> None:
    peer, nexus = await logged_in(rig)
    own = int(peer.offers["MaxRecvDataSegmentLength"])
    assert own > DECLARED_LIMIT
    read = Issued(nexus, READ_10, read=own)
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.last_data_in(command.itt, 0, 0, b"z" * own))
    await read.good()


@pytest.mark.parametrize("value", ["511", "0", "16777216", "-1", "x", "", "1e4", "0x", "99999999999999999999999"])
async def test_KEY_20_an_illegal_limit_is_refused(rig: Rig, value: str) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    said = [pair for pair in peer.answers(request, {}) if pair[0] != "MaxRecvDataSegmentLength"]
    await peer.answer_login(request, wire.text(*said, ("MaxRecvDataSegmentLength", value)), tsih=3)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


@pytest.mark.parametrize(("answer", "result"), [("512", 512), (ABSENT, 65536), ("1536", 1536)])
async def test_KEY_22_unsolicited_data_stay_within_firstburstlength(rig: Rig, answer: str, result: int) -> None:
    peer, nexus = await logged_in(rig, FirstBurstLength=answer, InitialR2T="No", MaxBurstLength="131072")
    got = await write_of(peer, nexus, MIB[:100000])
    assert sum(len(pdu.data) for pdu in got) == result


@pytest.mark.parametrize(
    "answers",
    [
        {"FirstBurstLength": "524288"},
        {"FirstBurstLength": "16384", "MaxBurstLength": "8192"},
        {"FirstBurstLength": "511"},
        {"FirstBurstLength": "0"},
    ],
    ids=["above the offer", "above MaxBurstLength", "511", "0"],
)
async def test_KEY_22_an_illegal_firstburstlength_is_refused(rig: Rig, answers: dict[str, str]) -> None:
    await refused(rig, **answers)


async def test_KEY_22_irrelevant_without_any_unsolicited_data(rig: Rig) -> None:
    peer, nexus = await logged_in(rig, InitialR2T="Yes", ImmediateData="No", FirstBurstLength="Irrelevant")
    (command,) = await write_of(peer, nexus, MIB[:8192])
    assert command.data == b""


@pytest.mark.parametrize(("answer", "result"), [("0", 0), ("3600", 3600), (ABSENT, 2)])
async def test_KEY_23_time2wait_is_the_greater(rig: Rig, answer: str, result: int) -> None:
    _, nexus = await logged_in(rig, DefaultTime2Wait=answer)
    assert nexus.negotiated is not None
    assert nexus.negotiated.default_time2wait == result


async def test_KEY_23_an_illegal_time2wait_is_refused(rig: Rig) -> None:
    await refused(rig, DefaultTime2Wait="3601")


async def test_KEY_23_reconnecting_waits_for_as_long_as_agreed(rig: Rig) -> None:
    peer, _ = await logged_in(rig, DefaultTime2Wait="1")
    cut = asyncio.get_running_loop().time()
    peer.reset()
    await rig.target.accept()
    assert rig.target.times[-1] - cut >= 1.0


@pytest.mark.parametrize(("answer", "result"), [("0", 0), ("5", 5), (ABSENT, 20)])
async def test_KEY_24_time2retain_is_the_smaller(rig: Rig, answer: str, result: int) -> None:
    peer, nexus = await logged_in(rig, DefaultTime2Retain=answer)
    assert nexus.negotiated is not None
    assert nexus.negotiated.default_time2retain == result
    peer.reset()
    again = await (await rig.target.accept()).login_request()
    assert again.tsih == 0  # reinstatement: no task is reassigned


@pytest.mark.parametrize("answer", ["3600", "3601", "-1"])
async def test_KEY_24_an_illegal_time2retain_is_refused(rig: Rig, answer: str) -> None:
    await refused(rig, DefaultTime2Retain=answer)


@pytest.mark.parametrize("granted", [1, 3, 8])
async def test_KEY_25_as_many_r2ts_as_agreed_are_served_in_order(rig: Rig, granted: int) -> None:
    peer, nexus = await logged_in(rig, MaxOutstandingR2T=str(granted), ImmediateData="No")
    issued = Issued(nexus, WRITE_10, write=MIB[: 1024 * granted])
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(b"".join(peer.r2t(itt, 100 + n, n, 1024 * n, 1024, lun=LUN) for n in range(granted)))
    for n in range(granted):
        pdu = await peer.expect(wire.DATA_OUT)
        assert (pdu.ttt, pdu.offset, pdu.data) == (100 + n, 1024 * n, MIB[1024 * n : 1024 * n + 1024])
    await peer.raw(peer.response(itt))
    await issued.good()


@pytest.mark.parametrize("answer", ["0", "65536", "9"])
async def test_KEY_25_an_illegal_number_of_r2ts_is_refused(rig: Rig, answer: str) -> None:
    await refused(rig, MaxOutstandingR2T=answer)


async def test_KEY_26_no_is_no_answer_to_datapduinorder_yes(rig: Rig) -> None:
    peer = await refused(rig, DataPDUInOrder="No")
    assert peer.offers["DataPDUInOrder"] == "Yes"


async def test_KEY_26_disorder_where_order_was_agreed_is_an_error(rig: Rig) -> None:
    peer, nexus = await logged_in(rig, DataPDUInOrder="Yes")
    read = Issued(nexus, READ_10, read=2048)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 1024, bytes(1024)))
    await peer.gone()
    assert (await read.end()).outcome != 1


@pytest.mark.parametrize("answer", ["0", ABSENT])
async def test_KEY_29_error_recovery_level_0_is_the_smaller(rig: Rig, answer: str) -> None:
    _, nexus = await logged_in(rig, ErrorRecoveryLevel=answer)
    assert nexus.negotiated is not None
    assert nexus.negotiated.error_recovery_level == 0


@pytest.mark.parametrize("answer", ["1", "2", "3", "-1"])
async def test_KEY_29_a_level_above_the_offer_is_refused(rig: Rig, answer: str) -> None:
    peer = await refused(rig, ErrorRecoveryLevel=answer)
    assert peer.offers["ErrorRecoveryLevel"] == "0"


@pytest.mark.parametrize("tag", ["65536", "x", "-1", ""])
async def test_KEY_31_an_illegal_portal_group_tag_is_refused(rig: Rig, tag: str) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(
        await peer.login_request(), wire.text("AuthMethod=None", ("TargetPortalGroupTag", tag)), flags=0
    )
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_KEY_31_an_initiator_sends_no_portal_group_tag(rig: Rig) -> None:
    peer, _ = await logged_in(rig)
    assert not any(name == "TargetPortalGroupTag" for request in peer.requests for name, _ in request.pairs)


@pytest.mark.parametrize("alias", ["Größe ∞", "a" * 255, "$(reboot)"])
async def test_KEY_32_an_alias_is_taken_and_not_answered(rig: Rig, alias: str) -> None:
    peer, nexus, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text(*peer.answers(request, {}), ("TargetAlias", alias)), flags=0x04)
    request = await peer.login_request()
    assert request.data == b""
    await peer.answer_login(request, tsih=2)
    await listener.until(lambda: listener.logins)
    assert nexus.result is not None
    assert nexus.result.target_alias == alias


async def test_KEY_34_keys_without_a_meaning_in_discovery_are_irrelevant_there(rig: Rig) -> None:
    rig.discover()
    peer = await rig.target.accept()
    request = await peer.pass_security()
    without = {
        "MaxConnections", "InitialR2T", "ImmediateData", "MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T",
        "DataPDUInOrder", "DataSequenceInOrder",
    }  # fmt: skip
    assert not without & {name for name, _ in request.pairs}
    said = wire.text(*peer.answers(request, {}), "MaxBurstLength=65536", "ImmediateData=Yes")
    await peer.answer_login(request, said, flags=0x04)
    request = await peer.login_request()
    assert request.keys == {"MaxBurstLength": "Irrelevant", "ImmediateData": "Irrelevant"}
    await peer.answer_login(request, tsih=2)
    peer.full_feature = True
    await peer.expect(wire.TEXT)


async def test_KEY_36_a_discovery_login_has_no_extension_keys(rig: Rig) -> None:
    rig.discover()
    peer = await rig.target.accept()
    await peer.log_in()
    await peer.expect(wire.TEXT)
    assert not [name for request in peer.requests for name, _ in request.pairs if name[:2] in ("X-", "X#")]


async def test_KEY_37_a_login_that_fails_late_leaves_nothing_behind(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text("HeaderDigest=CRC32C", "MaxRecvDataSegmentLength=512"), flags=0x04)
    request = await peer.login_request()
    await peer.answer_login(request, wire.text("DataDigest=CRC32C"), flags=0x04)
    request = await peer.login_request()
    await peer.answer_login(request, wire.text("MaxBurstLength=1"), flags=0x04)
    await peer.gone()
    peer = await rig.target.accept()
    await peer.log_in({"MaxRecvDataSegmentLength": ABSENT})
    await listener.until(lambda: listener.logins)
    (command,) = await write_of(peer, nexus, MIB[:16384])
    assert len(command.data) == 8192


async def test_KEY_38_one_key_in_each_pdu_will_do(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    said = peer.answers(request, {})
    assert len(said) >= 13
    for pair in reversed(said):
        last = pair == said[0]
        assert request.transit
        await peer.answer_login(request, wire.text(pair), flags=0x87 if last else 0x04, tsih=5 if last else 0)
        if not last:
            request = await peer.login_request()
            assert request.data == b""
    await listener.until(lambda: listener.logins)
