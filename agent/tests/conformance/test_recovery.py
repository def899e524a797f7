# SPDX-License-Identifier: GPL-3.0-or-later
"""ERR0, and what ERR1 comes to at ErrorRecoveryLevel 0: session recovery (RFC 3720 chapter 6)."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from tests.conformance import wire
from tests.conformance.conftest import DIGESTS, LUN, READ_10, WRITE_10, Issued, Listener, Rig
from tests.conformance.raw_target import Peer

from blockfleet.net.nexus import Nexus, NexusPhase
from blockfleet.scsi.command import Outcome

Session = tuple[Peer, Nexus, Listener]
PATTERN = bytes(n * 29 + (n >> 8) & 255 for n in range(1 << 17))
WITH_HEADER_DIGEST = [pair for pair in DIGESTS if pair[0] == "CRC32C"]
WITH_DATA_DIGEST = [pair for pair in DIGESTS if pair[1] == "CRC32C"]


async def recovered(rig: Rig, peer: Peer, listener: Listener, *commands: Issued) -> Peer:
    """Hold that the session is recovered: dropped, its commands given back as unknown, reinstated."""
    await peer.gone()
    await listener.loss()
    for issued in commands:
        assert (await issued.end()).outcome is Outcome.UNKNOWN
    again = await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)
    return again


async def test_ERR0_01_session_recovery_logs_in_with_the_same_isid_and_tsih_0(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    load = [
        Issued(nexus, READ_10, read=4096) if n % 2 else Issued(nexus, WRITE_10, write=bytes(512)) for n in range(90)
    ]
    for _ in range(20):
        await peer.expect(wire.COMMAND)
    peer.reset()
    await listener.loss()
    outcomes = [(await issued.end()).outcome for issued in load]
    assert outcomes == [Outcome.UNKNOWN] * 64 + [Outcome.NOT_SENT] * 26
    again = await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)
    first = again.requests[0]
    assert (first.isid, first.tsih) == (peer.requests[0].isid, 0)
    good = Issued(nexus)
    await again.answer(await again.expect(wire.COMMAND))
    await good.good()


async def test_ERR0_02_no_login_while_the_session_is_up(rig: Rig) -> None:
    peer, nexus, listener = await rig.session()
    rig.background(peer.serve())
    for _ in range(20):
        await Issued(nexus).good()
    await rig.target.no_connection(0.1)
    peer.reset()
    await rig.target.accept()
    assert nexus.phase is NexusPhase.RECOVERING
    assert len(listener.losses) == 1


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_ERR0_03_time2wait_is_waited_for(rig: Rig, how: str) -> None:
    peer, _, listener = await rig.session({"DefaultTime2Wait": "1"})
    cut = asyncio.get_running_loop().time()
    if how == "reset":
        peer.reset()
    else:
        peer.writer.close()
    await listener.loss()
    await rig.target.accept()
    assert 1.0 <= rig.target.times[-1] - cut < 2.0


async def test_ERR0_04_attempts_back_off_and_start_again_after_a_success(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockfleet.iscsi.reconnect.FIRST", 0.02)
    monkeypatch.setattr("blockfleet.iscsi.reconnect.LONGEST", 0.3)
    peer, _, listener = await rig.login()
    for _ in range(8):
        peer.reset()
        peer = await rig.target.accept()
    gaps = [b - a for a, b in zip(rig.target.times, rig.target.times[1:], strict=False)]
    assert all(later > earlier for earlier, later in itertools.pairwise(gaps[:5]))
    assert all(gap < 0.3 * 1.25 + 0.2 for gap in gaps)
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    peer.reset()
    peer = await rig.target.accept()
    peer.reset()
    await rig.target.accept()
    assert rig.target.times[-1] - rig.target.times[-2] < gaps[-1]


CUTS = {"in the header": 20, "in the payload": 48 + 300, "in the padding": 48 + 1001 + 1, "in the digest": -2}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_ERR0_07_a_connection_cut_inside_a_pdu_delivers_nothing_of_it(
    rig: Rig, digests: tuple[str, str], cut: str, how: str
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus, READ_10, read=1001)
    itt = (await peer.expect(wire.COMMAND)).itt
    whole = peer.last_data_in(itt, 0, 0, PATTERN[:1001])
    await peer.raw(whole[: CUTS[cut]])
    await asyncio.sleep(0.01)
    if how == "reset":
        peer.reset()
    else:
        peer.writer.close()
    await recovered(rig, peer, listener, issued)


async def test_ERR0_07_a_write_that_fails_is_noticed(rig: Rig) -> None:
    peer, nexus, listener = await rig.session(noop_interval=0.2, noop_timeout=0.2)
    # A target that reads no more: the send buffers fill up, and nothing comes back.
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    load = [Issued(nexus, WRITE_10, write=bytes(65536)) for _ in range(60)]
    await listener.until(lambda: listener.losses, 3.0)
    assert {(await issued.end()).outcome for issued in load} == {Outcome.UNKNOWN}


FORMAT_ERRORS = {
    "data segment over the limit": {"dsl": 0xFFFFFF},
    "ahs that no response has": {"ahs": 1},
}


@pytest.mark.parametrize("case", FORMAT_ERRORS)
async def test_ERR0_08_a_format_error_recovers_the_session(rig: Rig, digests: tuple[str, str], case: str) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    bhs = bytes(wire.header(wire.RESPONSE, itt=itt, **peer.numbers({}, True), **FORMAT_ERRORS[case]))
    whole = bhs + bytes(4 * bhs[4])
    await peer.raw(whole + (wire.digest(whole) if peer.header_digest else b""))
    if case.startswith("ahs"):
        # A segment of unknown type is passed over (10.2.2.1): the response still counts.
        await issued.good()
    else:
        await recovered(rig, peer, listener, issued)


async def test_ERR0_08_a_target_that_always_breaks_the_format_is_not_hammered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, _, listener = await rig.login()
    for _ in range(3):
        await peer.login_request()
        await peer.raw(bytes(48))
        await peer.gone()
        peer = await rig.target.accept()
    gaps = [b - a for a, b in zip(rig.target.times, rig.target.times[1:], strict=False)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert gaps[0] >= 0.4
    assert len(listener.failures) == 3


@pytest.mark.parametrize("opcode", [0x3E, 0x01, 0x00, 0x05, 0x23, 0x27, 0x1C])
async def test_ERR0_09_an_opcode_that_no_target_sends_is_an_error(
    rig: Rig, digests: tuple[str, str], opcode: int
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus)
    await peer.expect(wire.COMMAND)
    await peer.raw(peer.numbered(opcode, itt=wire.NONE_TAG, ttt=wire.NONE_TAG))
    await recovered(rig, peer, listener, issued)


RESERVED = ["task response 7", "task response 8", "async event 9", "logout response 4"]


@pytest.mark.parametrize("code", RESERVED)
async def test_ERR0_10_a_reserved_code_is_reported_as_a_protocol_error(rig: Rig, code: str) -> None:
    peer, nexus, listener = await rig.session()
    if code.startswith("task"):
        rig.background(nexus.lun_reset(LUN, 2.0))
        request = await peer.expect(wire.TASK_REQUEST)
        await peer.raw(peer.numbered(wire.TASK_RESPONSE, 0x80, int(code[-1]), itt=request.itt))
    elif code.startswith("logout"):
        rig.background(nexus.relogin())
        request = await peer.expect(wire.LOGOUT)
        await peer.raw(peer.numbered(wire.LOGOUT_RESPONSE, 0x80, 4, itt=request.itt))
    else:
        await peer.raw(peer.asynchronous(9))
    await peer.gone()
    error = await listener.loss()
    assert code.rpartition(" ")[2] in str(error)


@pytest.mark.parametrize("case", ["response", "reject"])
async def test_ERR0_10_reserved_codes_of_other_fields_are_protocol_errors(rig: Rig, case: str) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.response(command.itt, code=0x02) if case == "response" else peer.reject(0x0D, command))
    await peer.gone()
    await listener.loss()
    assert (await issued.end()).outcome is Outcome.UNKNOWN


VECTORS = {
    "zeros": (bytes(32), "aa36918a"),
    "ones": (b"\xff" * 32, "43aba862"),
    "rising": (bytes(range(32)), "4e79dd46"),
    "falling": (bytes(range(31, -1, -1)), "5cdb3f11"),
}
"""RFC 3720 B.4."""


@pytest.mark.parametrize("name", VECTORS)
async def test_ERR1_01_digests_on_the_wire_are_those_of_the_rfc(rig: Rig, name: str) -> None:
    data, expected = VECTORS[name]
    peer, nexus, _ = await rig.session(digests=("CRC32C", "CRC32C"))
    Issued(nexus, WRITE_10, write=data)
    head = await peer.reader.readexactly(52)
    assert int.from_bytes(head[5:8], "big") == 32
    assert (await peer.reader.readexactly(36))[32:].hex() == expected
    assert wire.digest(data).hex() == expected
    read = Issued(nexus, READ_10, read=32)
    itt = (await peer.expect(wire.COMMAND)).itt
    pdu = peer.last_data_in(itt, 0, 0, data)
    assert pdu[-4:].hex() == expected
    await peer.raw(pdu)
    await read.good()


async def test_ERR1_01_the_digest_of_the_read_command_of_the_rfc() -> None:
    pdu = bytes.fromhex(
        "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 0000001828000000 00000000 02000000 00000000"
    )
    assert wire.digest(pdu).hex() == "563a96d9"


@pytest.mark.parametrize("digests", WITH_HEADER_DIGEST, ids="-".join)
@pytest.mark.parametrize("at", [48, 51, 1, 6, 16, 32], ids=lambda at: f"byte {at}")
async def test_ERR1_02_a_header_digest_error_closes_the_connection(
    rig: Rig, digests: tuple[str, str], at: int
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    pdu = peer.response(itt)
    pdu[at] ^= 0x04
    await peer.raw(pdu)
    await recovered(rig, peer, listener, issued)


@pytest.mark.parametrize("digests", WITH_DATA_DIGEST, ids="-".join)
@pytest.mark.parametrize("size", [5, 1000, 100000])
async def test_ERR1_03_a_data_digest_error_on_data_in_is_never_success(
    rig: Rig, digests: tuple[str, str], size: int
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus, READ_10, read=size)
    itt = (await peer.expect(wire.COMMAND)).itt
    pdu = peer.last_data_in(itt, 0, 0, PATTERN[:size])
    pdu[48 + 4 * peer.header_digest + size // 2] ^= 0x10
    await peer.raw(pdu)
    await recovered(rig, peer, listener, issued)
    assert nexus.counters["digest_errors"] == 1


@pytest.mark.parametrize("digests", WITH_DATA_DIGEST, ids="-".join)
async def test_ERR1_04_a_data_digest_error_on_a_response_recovers_the_session(
    rig: Rig, digests: tuple[str, str]
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus)
    pdu = peer.response((await peer.expect(wire.COMMAND)).itt, 2, wire.sense(5, 0x24, 0))
    pdu[-6] ^= 1
    await peer.raw(pdu)
    await recovered(rig, peer, listener, issued)
    assert issued.command.sense == b""


@pytest.mark.parametrize("digests", WITH_DATA_DIGEST, ids="-".join)
@pytest.mark.parametrize("kind", ["async", "reject", "nop"])
async def test_ERR1_05_a_data_digest_error_on_an_unsolicited_pdu_is_not_acted_on(
    rig: Rig, digests: tuple[str, str], kind: str
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    pdu = {
        "async": lambda: peer.asynchronous(0, data=wire.sense(6, 0x29, 0)),
        "reject": lambda: peer.reject(0x05, command),
        "nop": lambda: peer.unnumbered(wire.NOP_IN, data=b"ping", itt=wire.NONE_TAG, ttt=5),
    }[kind]()
    pdu[-5] ^= 0x80
    await peer.raw(pdu)
    await recovered(rig, peer, listener, issued)
    assert not listener.events


async def test_ERR1_09_a_lost_last_response_shows_by_the_next_numbered_pdu(rig: Rig) -> None:
    peer, nexus, listener = await rig.session(noop_interval=0.2)
    issued = Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    peer.response(itt)  # numbered, and lost on its way
    await peer.answer(await peer.expect(wire.NOP_OUT))
    await recovered(rig, peer, listener, issued)


async def test_ERR1_14_the_a_bit_is_ignored(session: Session) -> None:
    peer, nexus, listener = session
    issued = Issued(nexus, READ_10, read=2048)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 0, PATTERN[:1024], wire.F | wire.ACKNOWLEDGE))
    await peer.quiet(0.05)
    await peer.raw(peer.last_data_in(itt, 1, 1024, PATTERN[1024:2048], b1=wire.ACKNOWLEDGE))
    await issued.good()
    await peer.quiet(0.03)
    assert not listener.losses


@pytest.mark.parametrize("kind", ["status", "data", "r2t"])
async def test_ERR1_17_what_comes_twice_counts_once(rig: Rig, kind: str) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No"})
    if kind == "r2t":
        issued = Issued(nexus, WRITE_10, write=PATTERN[:2048])
        itt = (await peer.expect(wire.COMMAND)).itt
        await peer.raw(peer.r2t(itt, 1, 0, 0, 1024, lun=LUN) * 2)
        assert len(await peer.gone()) in (0, 48 + 1024)
    elif kind == "data":
        issued = Issued(nexus, READ_10, read=2048)
        itt = (await peer.expect(wire.COMMAND)).itt
        await peer.raw(peer.data_in(itt, 0, 0, PATTERN[:1024]) * 2)
        await peer.gone()
    else:
        done, issued = Issued(nexus), Issued(nexus)
        itt = (await peer.expect(wire.COMMAND)).itt
        await peer.expect(wire.COMMAND)
        await peer.raw(peer.response(itt) * 2)
        await done.good()
        await peer.quiet(0.03)
        assert (done.ends, issued.running, listener.losses) == (1, True, [])
        return
    await listener.loss()
    assert (await issued.end()).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("cdb", [READ_10, bytes.fromhex("7f") + bytes(range(31))], ids=["no AHS", "AHS"])
@pytest.mark.parametrize("reason", [0x02, 0x05, 0x06, 0x09, 0x0A])
async def test_ERR1_19_the_place_of_a_rejected_command_is_filled(
    rig: Rig, digests: tuple[str, str], reason: int, cdb: bytes
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus, cdb, read=512)
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.reject(reason, command))
    plug = await peer.recv()
    assert (plug.cmdsn, plug.immediate) == (command.cmdsn, False)
    assert (await issued.end()).outcome is Outcome.ABORTED
    await peer.answer(plug)
    good = Issued(nexus)
    follower = await peer.expect(wire.COMMAND)
    assert follower.cmdsn == wire.serial_add(command.cmdsn)
    await peer.answer(follower)
    await good.good()
    assert not listener.losses


@pytest.mark.parametrize("reason", range(0x02, 0x0D))
async def test_ERR1_20_a_reject_of_data_out_is_only_diagnostic(rig: Rig, reason: int) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No"})
    issued = Issued(nexus, WRITE_10, write=PATTERN[:512])
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.r2t(itt, 1, 0, 0, 512, lun=LUN))
    out = await peer.expect(wire.DATA_OUT)
    await peer.raw(peer.reject(reason, out))
    await peer.quiet(0.02)
    assert issued.running
    await peer.raw(peer.response(itt, 2, wire.sense(0x0B, 0x47, 0x05)))
    assert (await issued.end()).status == 2
    assert not listener.losses


@pytest.mark.parametrize("reason", [0x04, 0x05, 0x09])
async def test_ERR1_20_a_rejected_function_is_answered_so(rig: Rig, reason: int) -> None:
    peer, nexus, _ = await rig.session()
    waiting = rig.background(nexus.target_warm_reset(2.0))
    await peer.raw(peer.reject(reason, await peer.expect(wire.TASK_REQUEST)))
    assert await waiting == 255


@pytest.mark.parametrize("case", ["nothing", "short", "never sent", "all ones"])
async def test_ERR1_21_the_header_in_a_reject_is_read_with_care(session: Session, case: str) -> None:
    peer, nexus, listener = session
    issued = Issued(nexus)
    command = await peer.expect(wire.COMMAND)
    foreign = bytearray(command.bhs)
    foreign[16:20] = b"\x12\x34\x56\x78"
    data = {"nothing": b"", "short": command.bhs[:47], "never sent": bytes(foreign), "all ones": b"\xff" * 48}[case]
    await peer.raw(peer.reject(0x05, None, data) * 1)
    await peer.quiet(0.03)
    assert issued.running
    await peer.raw(peer.response(command.itt))
    await issued.good()
    assert not listener.losses
