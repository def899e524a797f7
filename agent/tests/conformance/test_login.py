# SPDX-License-Identifier: GPL-3.0-or-later
"""LGN: format, stages, identity and status codes of the login phase (RFC 3720 5.3, 10.12, 10.13)."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conformance import wire
from tests.conformance.conftest import CHAP_USER, INITIATOR, ISID, TARGET, Issued, Rig
from tests.conformance.raw_target import Peer

from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.net.nexus import NexusPhase
from blockfleet.scsi.command import Outcome
from blockfleet.store.state import StateStore

OWN_ADDRESS = f"127.38.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF or 1}"
"""A loopback address that no other run of this suite listens at: the default port is wanted there."""

REFUSALS = {
    0x0200: Isdsc.INITIATOR_ERROR,
    0x0201: Isdsc.AUTHENTICATION_FAILURE,
    0x0202: Isdsc.AUTHORIZATION_FAILURE,
    0x0203: Isdsc.NOT_FOUND,
    0x0204: Isdsc.TARGET_REMOVED,
    0x0205: Isdsc.UNSUPPORTED_VERSION,
    0x0206: Isdsc.TOO_MANY_CONNECTIONS,
    0x0207: Isdsc.MISSING_PARAMETER,
    0x0208: Isdsc.CANT_INCLUDE_IN_SESSION,
    0x0209: Isdsc.SESSION_TYPE_NOT_SUPPORTED,
    0x020A: Isdsc.INVALID_SESSION_ID,
    0x020B: Isdsc.INITIATOR_ERROR,
    0x0300: Isdsc.TARGET_ERROR,
    0x0301: Isdsc.SERVICE_UNAVAILABLE,
    0x0302: Isdsc.OUT_OF_RESOURCES,
}
"""Status-Class and Status-Detail (10.13.5) to the code that is reported."""


async def rounds(peer: Peer, count: int) -> None:
    """Log in with ``count`` exchanges, the first and the last of the operational stage included."""
    request = await peer.pass_security()
    said = peer.answers(request, {})
    for _ in range(count - 2):
        await peer.answer_login(request, wire.text(said.pop(0)), flags=0x04)
        request = await peer.login_request()
    await peer.answer_login(request, wire.text(*said), tsih=0x51AB)
    peer.full_feature = True


async def test_LGN_01_nothing_but_login_requests_before_the_full_feature_phase(rig: Rig) -> None:
    peer, nexus, listener = await rig.login(noop_interval=0.05)
    early = Issued(nexus)
    assert (await early.end()).outcome is Outcome.REFUSED
    await rounds(peer, 6)
    await listener.until(lambda: listener.logins)
    assert all(request.opcode == wire.LOGIN and request.immediate for request in peer.requests)


@pytest.mark.parametrize("opcode", [wire.NOP_IN, wire.ASYNC, wire.RESPONSE, wire.TEXT_RESPONSE])
@pytest.mark.parametrize("late", [False, True], ids=["first answer", "second answer"])
async def test_LGN_02_any_other_pdu_in_login_ends_the_connection(rig: Rig, opcode: int, late: bool) -> None:
    peer, _, listener = await rig.login()
    if late:
        await peer.pass_security()
    else:
        await peer.login_request()
    await peer.raw(peer.numbered(opcode, itt=wire.NONE_TAG, ttt=wire.NONE_TAG))
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_LGN_03_the_first_request_names_the_initiator(rig: Rig) -> None:
    peer, _, _ = await rig.login()
    first = await peer.login_request()
    assert first.keys["InitiatorName"] == INITIATOR
    rig.discover()
    discovery = await (await rig.target.accept()).login_request()
    assert discovery.keys["InitiatorName"] == INITIATOR


async def test_LGN_04_the_first_request_of_a_normal_session_names_the_target(rig: Rig) -> None:
    peer, _, _ = await rig.login()
    assert (await peer.login_request()).keys["TargetName"] == TARGET


async def test_LGN_05_the_session_type_is_declared_at_once_and_no_answer_is_waited_for(rig: Rig) -> None:
    rig.discover()
    peer = await rig.target.accept()
    first = await peer.login_request()
    assert first.keys["SessionType"] == "Discovery"
    await peer.answer_login(first, wire.text("AuthMethod=None"))
    await peer.operational(await peer.login_request(), {})
    assert (await peer.recv()).opcode == wire.TEXT
    other, _, _ = await rig.login()
    assert (await other.login_request()).keys.get("SessionType", "Normal") == "Normal"


async def test_LGN_07_the_isid_is_legal_and_the_same_in_each_login(rig: Rig) -> None:
    peer, _, listener = await rig.session()
    peer.reset()
    again = await rig.target.accept()
    await again.log_in()
    await listener.until(lambda: listener.logins == 2)
    seen = {request.isid for request in peer.requests + again.requests}
    assert seen == {int.from_bytes(ISID, "big")}
    assert ISID[0] >> 6 in (0, 1, 2)


def test_LGN_07_the_isid_of_a_path_outlives_the_process(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        store = StateStore.open(tmp_path / "state")
        seen.append([store.isid(TARGET, f"192.0.2.{n}:3260") for n in (1, 2, 3)])
        store.close()
    assert seen[0] == seen[1]
    for isid in map(bytes.fromhex, seen[0]):
        # Type 10b is "random": the six bits under it are reserved (10.12.5).
        assert isid[0] == 0x80


async def test_LGN_08_sessions_to_one_portal_group_have_isids_of_their_own(rig: Rig, tmp_path: Path) -> None:
    store = StateStore.open(tmp_path / "state")
    portals = [rig.target, await rig.listen(), await rig.listen()]
    seen = []
    for target in (TARGET, TARGET + "2"):
        for portal in portals:
            isid = bytes.fromhex(store.isid(target, portal.portal))
            peer, _, listener = await rig.login(portal, target=target, isid=isid)
            await peer.log_in(tag=1)
            await listener.until(lambda listener=listener: listener.logins)
            seen.append(peer.requests[0].isid)
    store.close()
    assert len(set(seen[:3])) == 3
    assert seen[:3] == seen[3:]


async def test_LGN_09_a_leading_login_has_tsih_0(rig: Rig) -> None:
    peer, _, _ = await rig.login()
    assert (await peer.login_request()).tsih == 0


async def test_LGN_11_a_successful_leading_login_without_a_tsih_is_refused(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    await peer.operational(await peer.pass_security(), {}, tsih=0)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR
    assert (await Issued(nexus).end()).outcome is Outcome.REFUSED


async def test_LGN_13_tsih_cid_and_isid_are_constant_in_a_login(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    await rounds(peer, 4)
    await listener.until(lambda: listener.logins)
    assert len(peer.requests) == 4
    assert len({(r.tsih, r.cid, r.isid) for r in peer.requests}) == 1


async def test_LGN_14_both_versions_are_0(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    await rounds(peer, 4)
    await listener.until(lambda: listener.logins)
    assert {r.bhs[2:4] for r in peer.requests} == {b"\0\0"}


async def test_LGN_15_an_active_version_that_was_not_offered_is_refused(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    request = await peer.login_request()
    answer = peer.numbered(wire.LOGIN_RESPONSE, 0x81, 1, 1, wire.text("AuthMethod=None"), itt=request.itt)
    await peer.raw(answer)
    await peer.gone()
    error = await listener.failure()
    assert error.code is Isdsc.UNSUPPORTED_VERSION


async def test_LGN_16_cmdsn_stands_still_in_login_and_the_first_command_has_it(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    await rounds(peer, 4)
    await listener.until(lambda: listener.logins)
    Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    assert {r.cmdsn for r in peer.requests} == {command.cmdsn}


@pytest.mark.parametrize("start", [0, 1, 0x7FFFFFFE, 0xFFFFFFFF], ids=hex)
async def test_LGN_17_statsn_starts_where_the_first_response_says(rig: Rig, start: int) -> None:
    peer, nexus, listener = await rig.login()
    peer.stat_sn = start
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    assert peer.requests[1].expstatsn == wire.serial_add(start)
    Issued(nexus)
    assert (await peer.expect(wire.COMMAND)).expstatsn == wire.serial_add(start, 2)


async def test_LGN_19_all_requests_of_a_login_have_one_task_tag(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    await rounds(peer, 3)
    await listener.until(lambda: listener.logins)
    assert len({r.itt for r in peer.requests}) == 1


async def test_LGN_20_a_response_with_a_foreign_task_tag_is_refused(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    request = await peer.login_request()
    await peer.answer_login(request, wire.text("AuthMethod=None"), itt=request.itt + 1)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_LGN_21_only_legal_stage_transitions_are_asked_for(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    await rounds(peer, 5)
    await listener.until(lambda: listener.logins)
    asked = [(r.csg, r.nsg) for r in peer.requests if r.transit]
    assert set(asked) <= {(0, 1), (0, 3), (1, 3)}
    assert [r.csg for r in peer.requests] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("answer", [0x83, 0x84, 0x87], ids=["0 to 3", "1 to 0", "1 to 3"])
async def test_LGN_22_a_later_stage_than_asked_for_is_refused(rig: Rig, answer: int) -> None:
    peer, _, listener = await rig.login()
    request = await peer.login_request()
    assert (request.csg, request.nsg) == (0, 1)
    await peer.answer_login(request, wire.text("AuthMethod=None"), flags=answer, tsih=1)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_LGN_22_an_earlier_stage_than_asked_for_is_gone_on_in(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text(*peer.answers(request, {})), flags=0x04)
    request = await peer.login_request()
    assert (request.csg, request.nsg, request.transit) == (1, 3, True)
    await peer.answer_login(request, tsih=9)
    await listener.until(lambda: listener.logins)


async def test_LGN_23_a_transition_that_was_not_asked_for_is_refused(rig: Rig) -> None:
    rig.nexus(credentials=CHAP_USER)
    peer = await rig.target.accept()
    request = await peer.login_request()
    assert not request.transit
    await peer.answer_login(request, wire.text("AuthMethod=CHAP"), flags=0x81)
    await peer.gone()


async def test_LGN_25_an_offer_with_t_0_is_answered_with_t_1(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    said = [pair for pair in peer.answers(request, {}) if pair[0] != "DefaultTime2Wait"]
    await peer.answer_login(request, wire.text(*said, ("DefaultTime2Retain2", "5")), flags=0x04)
    request = await peer.login_request()
    assert request.keys == {"DefaultTime2Retain2": "NotUnderstood"}
    assert (request.transit, request.nsg) == (True, 3)
    await peer.answer_login(request, tsih=9)
    await listener.until(lambda: listener.logins)


@pytest.mark.parametrize("flags", [0x04, 0x08, 0x0C])
async def test_LGN_26_the_response_is_of_the_requests_stage(rig: Rig, flags: int) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=None"), flags=flags)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_LGN_27_stage_2_is_refused(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=None"), flags=0x82)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_LGN_28_login_begins_in_the_security_stage_and_a_demand_for_authentication_is_reported(
    rig: Rig,
) -> None:
    peer, _, listener = await rig.login()
    request = await peer.login_request()
    assert request.csg == 0
    await peer.answer_login(request, flags=0, status=0x0201)
    assert (await listener.failure()).code is Isdsc.AUTHENTICATION_FAILURE


async def test_LGN_29_the_portal_group_is_taken_from_the_first_response(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    await peer.log_in(tag=7)
    await listener.until(lambda: listener.logins)
    assert nexus.portal_group_tag == 7
    await rig.target.no_connection(0.1)


@pytest.mark.parametrize("status", REFUSALS, ids=lambda s: f"{s:04x}")
async def test_LGN_31_a_status_class_but_0_closes_the_connection(rig: Rig, status: int) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), flags=0, status=status)
    await peer.gone()
    error = await listener.failure()
    assert error.code is REFUSALS[status]
    assert f"{status:04x}" in str(error)


@pytest.mark.parametrize("status", [0x0202, 0x0203, 0x0204, 0x0205, 0x0207, 0x0209], ids=lambda s: f"{s:04x}")
async def test_LGN_32_what_the_initiator_got_wrong_is_not_repeated_unchanged(rig: Rig, status: int) -> None:
    peer, nexus, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), flags=0, status=status)
    await listener.failure()
    assert listener.failures[0][1] is False
    assert nexus.phase is NexusPhase.FAILED
    await rig.target.no_connection(0.8)


async def test_LGN_33_a_target_error_is_tried_again_with_growing_delays(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockfleet.iscsi.reconnect.FIRST", 0.1)
    peer, _, listener = await rig.login()
    for _ in range(3):
        await peer.answer_login(await peer.login_request(), flags=0, status=0x0301)
        peer = await rig.target.accept()
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    first, second, third = (b - a for a, b in zip(rig.target.times, rig.target.times[1:], strict=False))
    assert 0.1 <= first < second < third < 1.0


@pytest.mark.parametrize(
    ("status", "retried"), [(0x02FF, False), (0x03FF, True), (0x0700, False)], ids=["02ff", "03ff", "0700"]
)
async def test_LGN_34_an_unknown_status_counts_as_its_class(rig: Rig, status: int, retried: bool) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), flags=0, status=status)
    error = await listener.failure()
    assert listener.failures[0][1] is retried
    assert f"{status:04x}" in str(error)
    if retried:
        await rig.target.accept()
    else:
        await rig.target.no_connection(0.8)


async def test_LGN_35_the_numbers_of_a_refusal_mean_nothing(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    absurd = {"statsn": 0xDEADBEEF, "expcmdsn": 0x80000000, "maxcmdsn": 0x7FFFFFFF}
    await peer.answer_login(await peer.login_request(), flags=0, status=0x0301, **absurd)
    peer = await rig.target.accept()
    peer.window = 1
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    first, second = Issued(nexus), Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    assert (command.expstatsn, command.cmdsn) == (peer.stat_sn, peer.requests[0].cmdsn)
    await peer.quiet()
    await peer.raw(peer.response(command.itt))
    await first.good()
    await peer.raw(peer.response((await peer.expect(wire.COMMAND)).itt))
    await second.good()


@pytest.mark.parametrize(("status", "kept"), [(0x0101, False), (0x0102, True)], ids=["temporary", "permanent"])
async def test_LGN_37_only_a_permanent_redirect_is_remembered(rig: Rig, status: int, kept: bool) -> None:
    other = await rig.listen()
    peer, _, listener = await rig.login()
    await peer.answer_login(
        await peer.login_request(), wire.text(("TargetAddress", other.portal)), flags=0, status=status
    )
    there = await (await other.accept()).log_in()
    await listener.until(lambda: listener.logins)
    there.reset()
    if kept:
        again = await other.accept()
        again.reset()
    await rig.target.accept()


ADDRESSES = ["127.0.0.1:{port}", "127.0.0.1:{port},1", "localhost:{port}", "[::1]:{port6}", "[::1]:{port6},65535"]


@pytest.mark.parametrize("form", ADDRESSES)
async def test_LGN_38_a_redirect_is_followed_in_each_form_of_address(rig: Rig, form: str) -> None:
    other, other6 = await rig.listen(), await rig.listen("::1")
    peer, _, listener = await rig.login()
    address = form.format(port=other.port, port6=other6.port)
    await peer.answer_login(
        await peer.login_request(), wire.text(("TargetAddress", address)), flags=0, status=0x0101
    )
    await (await (other6 if "::1" in form else other).accept()).log_in()
    await listener.until(lambda: listener.logins)


async def test_LGN_38_an_address_without_a_port_means_3260(rig: Rig) -> None:
    other = await rig.listen(OWN_ADDRESS, 3260)
    peer, _, listener = await rig.login()
    await peer.answer_login(
        await peer.login_request(), wire.text(("TargetAddress", OWN_ADDRESS)), flags=0, status=0x0101
    )
    await (await other.accept()).log_in()
    await listener.until(lambda: listener.logins)


@pytest.mark.parametrize("hops", ["itself", "two", "chain"])
async def test_LGN_39_redirects_are_followed_a_small_number_of_times(rig: Rig, hops: str) -> None:
    targets = [rig.target] + [await rig.listen() for _ in range({"itself": 0, "two": 1, "chain": 8}[hops])]
    at = 0
    _, listener = rig.nexus()

    async def redirect() -> None:
        nonlocal at
        while True:
            peer = await targets[at % len(targets)].accept(60)
            request = await peer.login_request()
            at += 1
            moved = targets[at % len(targets)].portal
            await peer.answer_login(request, wire.text(("TargetAddress", moved)), flags=0, status=0x0101)

    rig.background(redirect())
    error = await listener.failure()
    assert error.code is Isdsc.TARGET_MOVED_TEMPORARILY
    assert "redirects" in str(error)
    assert at <= 10


@pytest.mark.parametrize("data", [b"", b"TargetAddress=\0", b"TargetAddress=:0,\0", b"\xff"], ids=repr)
async def test_LGN_40_a_redirect_to_nowhere_fails_and_changes_nothing(rig: Rig, data: bytes) -> None:
    peer, nexus, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), data, flags=0, status=0x0101)
    await peer.gone()
    assert "redirect" in str(await listener.failure())
    nexus.set_parameters(replace(nexus.parameters, initiator_alias="tried again at once"))
    await (await rig.target.accept()).login_request()


async def test_LGN_41_no_request_is_longer_than_the_first_limit_of_8192_bytes(rig: Rig) -> None:
    name = "iqn.2026-11.com.example:" + "n" * 199
    peer, _, listener = await rig.login(
        initiator_name=name, target="iqn.2026-11.com.example:" + "t" * 199, initiator_alias="a" * 255
    )
    await rounds(peer, 5)
    await listener.until(lambda: listener.logins)
    assert peer.requests[0].keys["InitiatorName"] == name
    assert all(len(request.data) <= 8192 and not request.more for request in peer.requests)


async def test_LGN_43_c_together_with_t_is_refused(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=None"), flags=0xC1)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


@pytest.mark.parametrize("how", ["silent", "stalls", "drips"])
async def test_LGN_44_login_is_bounded_in_time(rig: Rig, how: str) -> None:
    started = asyncio.get_running_loop().time()
    peer, _, listener = await rig.login(login_timeout=0.6)
    request = await peer.login_request()
    if how == "stalls":
        await peer.answer_login(request, wire.text("AuthMethod=None", "TargetPortalGroupTag=1"))
        await peer.login_request()
    elif how == "drips":

        async def drip() -> None:
            for byte in peer.numbered(wire.LOGIN_RESPONSE, 0x81, itt=request.itt):
                await peer.raw(bytes([byte]))
                await asyncio.sleep(0.1)

        rig.background(drip())
    await peer.gone(1.5)
    error = await listener.failure()
    assert error.code is Isdsc.CONNECTION_FAILED
    assert "0.6 s" in str(error)
    assert 0.5 < asyncio.get_running_loop().time() - started < 1.5


async def test_LGN_45_the_default_port_is_3260(rig: Rig) -> None:
    target = await rig.listen(OWN_ADDRESS, 3260)
    rig.nexus(portal=Portal.parse(OWN_ADDRESS))
    await (await target.accept()).login_request()
