# SPDX-License-Identifier: GPL-3.0-or-later
"""CTL: NOP, asynchronous messages, text in full feature phase, logout (RFC 3720 10.9 to 10.19)."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig, at_every_level
from tests.conformance.raw_target import Peer

from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

Session = tuple[Peer, Nexus, Listener]


def now() -> float:
    return asyncio.get_running_loop().time()


async def ask(peer: Peer, ttt: int = 0x1234, data: bytes = b"") -> None:
    """Send a NOP-In that wants an answer."""
    await peer.raw(peer.unnumbered(wire.NOP_IN, data=data, itt=wire.NONE_TAG, ttt=ttt, lun=LUN))


@at_every_level
async def test_CTL_01_a_nop_in_with_a_tag_is_answered(session: Session) -> None:
    peer, nexus, _ = session
    await ask(peer, data=b"ping data of the target")
    answer = await peer.expect(wire.NOP_OUT, 1.0)
    assert (answer.ttt, answer.lun, answer.itt) == (0x1234, LUN, wire.NONE_TAG)
    assert (answer.immediate, answer.bhs[1], answer.expstatsn) == (True, 0x80, peer.stat_sn)
    Issued(nexus)
    assert (await peer.expect(wire.COMMAND)).cmdsn == answer.cmdsn


@at_every_level
async def test_CTL_01_also_under_load_and_with_the_window_closed(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    peer.window = 8
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    for _ in range(50):
        Issued(nexus, WRITE_10, write=bytes(4096))
    for _ in range(8):
        await peer.expect(wire.COMMAND)
    await ask(peer)
    await peer.expect(wire.NOP_OUT, 1.0)


@pytest.mark.parametrize("wrong", ["nothing", "data", "tag"])
@at_every_level
async def test_CTL_03_the_reply_to_a_ping_is_matched_and_a_wrong_one_is_not_fatal(rig: Rig, wrong: str) -> None:
    peer, _, listener = await rig.session(noop_interval=0.1, noop_timeout=0.6)
    ping = await peer.expect(wire.NOP_OUT)
    itt = wire.serial_add(ping.itt, 77) if wrong == "tag" else ping.itt
    data = b"other data" if wrong == "data" else ping.data
    await peer.raw(peer.numbered(wire.NOP_IN, data=data, itt=itt, ttt=wire.NONE_TAG))
    if wrong == "tag":
        await peer.raw(peer.numbered(wire.NOP_IN, data=data, itt=ping.itt, ttt=wire.NONE_TAG))
    again = await peer.expect(wire.NOP_OUT, 1.0)
    assert again.expstatsn == peer.stat_sn
    assert not listener.losses


@at_every_level
async def test_CTL_04_our_own_ping_is_exact(rig: Rig, digests: tuple[str, str]) -> None:
    peer, _, _ = await rig.session(digests=digests, noop_interval=0.1)
    ping = await peer.expect(wire.NOP_OUT)
    assert (ping.ttt, ping.lun, ping.immediate) == (wire.NONE_TAG, 0, True)
    assert ping.itt != wire.NONE_TAG
    assert len(ping.data) <= 4096
    assert (ping.bhs[1], ping.bhs[2:4]) == (0x80, b"\0\0")
    assert not any(ping.bhs[32:48])


@at_every_level
async def test_CTL_05_statsn_is_confirmed_alone_when_nothing_else_goes_out(
    rig: Rig, digests: tuple[str, str]
) -> None:
    rig.hurry(quiet=0.15)
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.response(itt))
    await issued.good()
    confirmation = await peer.expect(wire.NOP_OUT, 1.0)
    assert (confirmation.itt, confirmation.ttt) == (wire.NONE_TAG, wire.NONE_TAG)
    assert (confirmation.immediate, confirmation.lun, confirmation.data) == (True, 0, b"")
    assert confirmation.expstatsn == peer.stat_sn
    await peer.quiet(0.4)  # once is enough
    Issued(nexus)
    assert (await peer.expect(wire.COMMAND)).cmdsn == confirmation.cmdsn
    assert not listener.losses


@at_every_level
async def test_CTL_05_pings_that_come_often_enough_confirm_it(rig: Rig) -> None:
    rig.hurry(quiet=0.15)
    peer, _, _ = await rig.session(noop_interval=0.1)
    for _ in range(4):
        ping = await peer.expect(wire.NOP_OUT, 1.0)
        assert (ping.itt != wire.NONE_TAG, ping.expstatsn) == (True, peer.stat_sn)
        await peer.answer(ping)


async def test_CTL_06_a_ping_without_an_answer_fails_the_connection(rig: Rig) -> None:
    peer, nexus, listener = await rig.session(noop_interval=0.2, noop_timeout=0.3)
    issued = Issued(nexus)
    began = now()
    await peer.expect(wire.COMMAND)
    await peer.expect(wire.NOP_OUT)
    await peer.gone(2.0)
    assert 0.45 < now() - began < 1.5
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)


@at_every_level
async def test_CTL_07_data_that_flow_are_a_sign_of_life(rig: Rig) -> None:
    peer, nexus, listener = await rig.session(noop_interval=0.1, noop_timeout=0.3)
    issued = Issued(nexus, READ_10, read=20 * 512)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.expect(wire.NOP_OUT)
    for sn in range(19):
        await peer.raw(peer.data_in(itt, sn, sn * 512, bytes(512)))
        await asyncio.sleep(0.05)
    await peer.raw(peer.last_data_in(itt, 19, 19 * 512, bytes(512)))
    await issued.good()
    assert not listener.losses


@pytest.mark.parametrize("seconds", [1, 5])
@at_every_level
async def test_CTL_09_a_request_to_log_out_is_followed(rig: Rig, seconds: int) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.asynchronous(1, p3=seconds))
    logout = await peer.expect(wire.LOGOUT, min(seconds, 2))
    assert logout.bhs[1] in (0x80, 0x81)
    late = Issued(nexus)
    await peer.quiet()
    assert (await late.end()).outcome in (Outcome.REFUSED, Outcome.NOT_SENT)
    await peer.raw(peer.response(command.itt))
    await issued.good()
    await peer.answer(logout)
    await peer.gone()
    await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)


@at_every_level
async def test_CTL_10_a_command_rejected_while_logging_out_may_be_repeated(rig: Rig) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.asynchronous(1, p3=3))
    logout = await peer.expect(wire.LOGOUT)
    await peer.raw(peer.reject(0x0C, command))
    # ABORTED says that it does not run and may be issued anew, which is what the layer above then does.
    assert (await issued.end()).outcome is Outcome.ABORTED
    plug = await peer.recv()
    assert (plug.opcode, plug.cmdsn, plug.immediate) == (wire.NOP_OUT, command.cmdsn, False)
    await peer.answer(logout)
    await peer.gone()
    await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)


@pytest.mark.parametrize("event", [2, 3])
async def test_CTL_11_a_dropped_connection_waits_as_told(rig: Rig, event: int) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus)
    cid = peer.requests[0].cid
    await peer.expect(wire.COMMAND)
    told = now()
    await peer.raw(peer.asynchronous(event, p1=cid, p2=1, p3=2))
    await peer.gone()
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    again = await rig.target.accept()
    assert 1.0 <= rig.target.times[-1] - told < 2.0
    await again.log_in()
    await listener.until(lambda: listener.logins == 2)
    assert again.requests[0].tsih == 0


@at_every_level
async def test_CTL_11_another_connections_drop_is_not_ours(session: Session) -> None:
    peer, nexus, listener = session
    await peer.raw(peer.asynchronous(2, p1=peer.requests[0].cid + 9, p2=1, p3=2))
    issued = Issued(nexus)
    await peer.answer(await peer.expect(wire.COMMAND))
    await issued.good()
    assert not listener.losses


async def test_CTL_12_a_dropped_session_is_recovered_after_the_wait(rig: Rig) -> None:
    peer, _, listener = await rig.session()
    told = now()
    await peer.raw(peer.asynchronous(3, p2=1, p3=2))
    await peer.gone()
    again = await (await rig.target.accept()).log_in()
    assert 1.0 <= rig.target.times[-1] - told < 2.0
    await listener.until(lambda: listener.logins == 2)
    assert again.requests[0].isid == peer.requests[0].isid


@at_every_level
async def test_CTL_13_a_request_to_negotiate_gets_a_text_request(session: Session) -> None:
    peer, _, listener = session
    await peer.raw(peer.asynchronous(4, p3=3))
    request = await peer.expect(wire.TEXT, 1.0)
    assert (request.final, request.ttt) == (True, wire.NONE_TAG)
    await peer.raw(peer.numbered(wire.TEXT_RESPONSE, itt=request.itt, ttt=wire.NONE_TAG))
    await peer.quiet(0.03)
    assert not listener.losses


@pytest.mark.parametrize("data", [b"\xff\xff\x70", b"\0", b"", b"\0\x12" + bytes(18)], ids=repr)
async def test_CTL_15_sense_in_an_event_stays_within_its_segment(session: Session, data: bytes) -> None:
    peer, nexus, listener = session
    await peer.raw(peer.asynchronous(0, data=data))
    await listener.until(lambda: listener.events)
    assert listener.events[0][2] == data[2:]
    issued = Issued(nexus)
    await peer.answer(await peer.expect(wire.COMMAND))
    await issued.good()


async def negotiate(peer: Peer, *said: str) -> None:
    """Ask for a negotiation, answer the request that follows, and wait until the answer was read."""
    await peer.raw(peer.asynchronous(4, p3=3))
    request = await peer.expect(wire.TEXT)
    await peer.raw(peer.numbered(wire.TEXT_RESPONSE, data=wire.text(*said), itt=request.itt, ttt=wire.NONE_TAG))
    await ask(peer)
    await peer.expect(wire.NOP_OUT)


@at_every_level
async def test_CTL_16_a_negotiation_of_several_pdus_keeps_tag_and_lun(rig: Rig) -> None:
    peer, _, _ = await rig.session()
    await peer.raw(peer.asynchronous(4, p3=3))
    first = await peer.expect(wire.TEXT)
    await peer.raw(
        peer.numbered(wire.TEXT_RESPONSE, 0x00, data=wire.text("TargetAlias=new"), itt=first.itt, ttt=7, lun=LUN)
    )
    second = await peer.expect(wire.TEXT)
    assert (second.itt, second.ttt, second.lun) == (first.itt, 7, LUN)
    assert second.immediate == first.immediate
    assert {name for request in (first, second) for name, _ in request.pairs} <= {
        "MaxRecvDataSegmentLength", "InitiatorAlias", "SendTargets",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["rejected", "silent"])
@at_every_level
async def test_CTL_17_a_negotiation_that_fails_changes_nothing(rig: Rig, how: str) -> None:
    rig.hurry(text=0.2)
    peer, nexus, listener = await rig.session()
    await peer.raw(peer.asynchronous(4, p3=3))
    request = await peer.expect(wire.TEXT)
    if how == "rejected":
        await peer.raw(peer.reject(0x0B, request))
    else:
        await asyncio.sleep(0.35)
    Issued(nexus, WRITE_10, write=bytes(8192))
    assert len((await peer.expect(wire.COMMAND)).data) == 4096
    await peer.raw(peer.asynchronous(4, p3=3))
    assert (await peer.expect(wire.TEXT)).ttt == wire.NONE_TAG
    assert not listener.losses


@at_every_level
async def test_CTL_18_a_limit_that_the_target_declares_anew_holds_from_then_on(rig: Rig) -> None:
    peer, nexus, _ = await rig.session()
    await negotiate(peer, "MaxRecvDataSegmentLength=1024")
    Issued(nexus, WRITE_10, write=bytes(8192))
    command = await peer.expect(wire.COMMAND)
    assert len(command.data) == 1024
    await peer.raw(peer.r2t(command.itt, 1, 0, 1024, 4096, lun=LUN))
    assert [len((await peer.expect(wire.DATA_OUT)).data) for _ in range(4)] == [1024] * 4


@at_every_level
async def test_CTL_19_the_logout_request_is_exact(rig: Rig, digests: tuple[str, str]) -> None:
    peer, nexus, _ = await rig.session(digests=digests)
    stopping = rig.background(nexus.stop())
    logout = await peer.expect(wire.LOGOUT)
    assert (logout.bhs[1], logout.bhs[2:4], logout.immediate) == (0x80, b"\0\0", True)
    assert (logout.data, logout.ahs, logout.expstatsn) == (b"", b"", peer.stat_sn)
    assert not any(logout.bhs[8:16] + logout.bhs[20:24] + logout.bhs[32:48])
    assert logout.itt != wire.NONE_TAG
    await peer.answer(logout)
    await peer.gone()
    await stopping


@pytest.mark.parametrize("how", ["answered", "silent", "reset"])
@at_every_level
async def test_CTL_21_after_logout_the_connection_is_closed(rig: Rig, how: str) -> None:
    rig.hurry(logout=0.3)
    peer, nexus, _ = await rig.session()
    began = now()
    stopping = rig.background(nexus.stop())
    logout = await peer.expect(wire.LOGOUT)
    if how == "answered":
        await peer.answer(logout)
    elif how == "reset":
        peer.reset()
    if how != "reset":
        await peer.gone(2.0)
    await stopping
    assert now() - began < 2.0
    await rig.target.no_connection(0.05)


@pytest.mark.parametrize("response", [1, 2, 3])
@at_every_level
async def test_CTL_22_a_logout_that_fails_ends_in_session_recovery(rig: Rig, response: int) -> None:
    peer, nexus, listener = await rig.session()
    rig.background(nexus.relogin())
    logout = await peer.expect(wire.LOGOUT)
    await peer.raw(peer.numbered(wire.LOGOUT_RESPONSE, 0x80, response, itt=logout.itt, time2wait=1, time2retain=3))
    told = now()
    await peer.gone()
    again = await (await rig.target.accept()).log_in()
    assert rig.target.times[-1] - told >= (1.0 if response == 3 else 0.0)
    await listener.until(lambda: listener.logins == 2)
    assert again.requests[0].tsih == 0


@at_every_level
async def test_CTL_23_the_times_of_a_good_logout_mean_nothing_at_level_0(rig: Rig) -> None:
    peer, nexus, _ = await rig.session()
    rig.background(nexus.relogin())
    logout = await peer.expect(wire.LOGOUT)
    told = now()
    await peer.log_out(logout, time2wait=3, time2retain=10)
    await rig.target.accept()
    assert rig.target.times[-1] - told < 1.0


@at_every_level
async def test_CTL_24_responses_before_that_of_the_logout_count(rig: Rig, digests: tuple[str, str]) -> None:
    peer, nexus, _ = await rig.session(digests=digests)
    done, read = Issued(nexus), Issued(nexus, READ_10, read=512)
    first, second = await peer.expect(wire.COMMAND), await peer.expect(wire.COMMAND)
    stopping = rig.background(nexus.stop())
    logout = await peer.expect(wire.LOGOUT)
    await peer.raw(peer.response(first.itt, 0x28))
    await peer.raw(peer.last_data_in(second.itt, 0, 0, bytes(512)))
    await peer.answer(logout)
    await stopping
    assert ((await done.end()).outcome, (await done.end()).status) == (Outcome.COMPLETE, 0x28)
    await read.good()
