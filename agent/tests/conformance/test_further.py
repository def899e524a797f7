# SPDX-License-Identifier: GPL-3.0-or-later
"""X: further MUSTs of RFC 3720 for an initiator at ErrorRecoveryLevel 0 that no other row names."""

from __future__ import annotations

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig
from tests.conformance.raw_target import Peer

from blockfleet.model.isdsc import Isdsc
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

Session = tuple[Peer, Nexus, Listener]


async def test_X_01_an_overlong_data_segment_is_refused_before_its_ahs_has_come(rig: Rig) -> None:
    peer, _, listener = await rig.session()
    await peer.raw(wire.header(wire.RESPONSE, ahs=255, dsl=0xFFFFFF))
    await peer.gone()
    await listener.loss()


@pytest.mark.parametrize("offer", ["iSCSIProtocolLevel=5", "TaskReporting=RFC3720"])
async def test_X_02_a_response_that_ends_login_must_not_ask_for_an_answer(rig: Rig, offer: str) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text(*peer.answers(request, {}), offer), tsih=3)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_X_03_the_first_login_request_acknowledges_nothing_and_reserved_fields_are_0(rig: Rig) -> None:
    peer, _, _ = await rig.login()
    request = await peer.login_request()
    assert request.expstatsn == 0
    assert not any(request.bhs[22:24] + request.bhs[32:48])
    assert request.ahs == b""


@pytest.mark.parametrize("value", ["0x1000", "0X1000", "4096"])
async def test_X_04_numbers_are_read_in_decimal_and_hexadecimal(rig: Rig, value: str) -> None:
    _, nexus, _ = await rig.session({"MaxBurstLength": value, "FirstBurstLength": value})
    assert nexus.negotiated is not None
    assert (nexus.negotiated.max_burst_length, nexus.negotiated.first_burst_length) == (4096, 4096)


async def test_X_05_residual_flags_mean_nothing_without_status(session: Session) -> None:
    peer, nexus, _ = session
    issued = Issued(nexus, READ_10, read=1024)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 0, bytes(512), wire.UNDERFLOW | wire.OVERFLOW, residual=77))
    await peer.raw(peer.last_data_in(itt, 1, 512, bytes(512)))
    assert (await issued.good()).residual == 0


@pytest.mark.parametrize("code", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("status", [0x00, 0x02])
async def test_X_06_a_target_failure_is_never_success(session: Session, code: int, status: int) -> None:
    peer, nexus, _ = session
    issued = Issued(nexus, READ_10, read=512)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 0, bytes(512), wire.F))
    await peer.raw(peer.response(itt, status, code=code, expdatasn=1))
    assert (await issued.end()).outcome is not Outcome.COMPLETE


async def test_X_07_a_nop_in_without_a_transfer_tag_is_not_answered(session: Session) -> None:
    peer, _, listener = session
    await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=wire.NONE_TAG))
    await peer.quiet()
    assert not listener.losses


async def test_X_08_nothing_but_the_logout_follows_the_logout_request(rig: Rig, digests: tuple[str, str]) -> None:
    rig.hurry(logout=1.0)
    peer, nexus, _ = await rig.session(digests=digests, noop_interval=0.05, noop_timeout=5.0)
    stopping = rig.background(nexus.stop())
    logout = await peer.recv()
    while logout.opcode == wire.NOP_OUT:
        logout = await peer.recv()
    assert logout.opcode == wire.LOGOUT
    late = Issued(nexus)
    assert (await late.end()).outcome is Outcome.REFUSED
    await peer.quiet(0.3)
    await peer.answer(logout)
    await stopping


async def test_X_09_a_bidirectional_command_carries_its_read_length_in_an_ahs(session: Session) -> None:
    peer, nexus, _ = session
    issued = Issued(nexus, WRITE_10, read=700, write=bytes(300))
    command = await peer.expect(wire.COMMAND)
    assert command.edtl == 300
    assert command.ahs == bytes([0, 5, 2, 0]) + (700).to_bytes(4, "big")
    await peer.raw(peer.data_in(command.itt, 0, 0, b"r" * 700, wire.F))
    await peer.raw(peer.response(command.itt, expdatasn=1))
    await issued.good()
    assert bytes(issued.buffer) == b"r" * 700


async def test_X_10_a_scsi_event_reaches_the_user_with_its_lun(session: Session) -> None:
    peer, _, listener = session
    sense = wire.sense(0x06, 0x3F, 0x0E)
    await peer.raw(peer.numbered(wire.ASYNC, data=sense, itt=wire.NONE_TAG, lun=LUN, event=0))
    await listener.until(lambda: listener.events)
    assert listener.events == [(0, LUN, sense[2:])]


async def test_X_11_an_event_of_the_vendor_is_no_error(session: Session) -> None:
    peer, nexus, listener = session
    await peer.raw(peer.numbered(wire.ASYNC, data=b"\0\0vendor data", itt=wire.NONE_TAG, event=255, vcode=9))
    issued = Issued(nexus)
    await peer.answer(await peer.expect(wire.COMMAND))
    await issued.good()
    assert not listener.losses


async def test_X_12_a_logout_response_to_no_request_is_an_error(rig: Rig) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus)
    await peer.raw(peer.numbered(wire.LOGOUT_RESPONSE, itt=(await peer.expect(wire.COMMAND)).itt))
    await peer.gone()
    await listener.loss()
    assert (await issued.end()).outcome is Outcome.UNKNOWN


async def test_X_13_f_and_c_together_in_a_text_response_are_an_error(rig: Rig) -> None:
    peer, _, listener = await rig.session()
    await peer.raw(peer.asynchronous(4, p3=3))
    request = await peer.expect(wire.TEXT)
    await peer.raw(peer.numbered(wire.TEXT_RESPONSE, 0xC0, data=b"a", itt=request.itt, ttt=wire.NONE_TAG))
    await peer.gone()
    await listener.loss()


async def test_X_14_a_target_that_wants_no_security_may_leave_authmethod_unanswered(rig: Rig) -> None:
    peer, _, listener = await rig.login()
    await peer.answer_login(await peer.login_request(), wire.text("TargetPortalGroupTag=1"))
    await peer.operational(await peer.login_request(), {})
    await listener.until(lambda: listener.logins)


@pytest.mark.parametrize("key", ["InitiatorName=iqn.2026-11.com.example:x", "TargetName=iqn.2026-11.com.example:x"])
async def test_X_15_keys_that_only_an_initiator_sends_are_refused_from_a_target(rig: Rig, key: str) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text(*peer.answers(request, {}), key), flags=0x04)
    await peer.gone()
    assert (await listener.failure()).code is Isdsc.PROTOCOL_ERROR


async def test_X_16_login_pdus_carry_no_digest_in_a_second_login_either(rig: Rig, digests: tuple[str, str]) -> None:
    peer, _, _ = await rig.session(digests=digests)
    peer.reset()
    again = await rig.target.accept()
    request = await again.pass_security()
    assert again.requests[0].keys["TargetName"]
    await again.answer_login(request, wire.text(*again.answers(request, {})), flags=0x04)
    assert (await again.login_request()).data == b""
