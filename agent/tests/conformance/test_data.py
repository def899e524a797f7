# SPDX-License-Identifier: GPL-3.0-or-later
"""DAT: commands and the transfer of their data (RFC 3720 3.2.4, 10.3, 10.7, 10.8)."""

from __future__ import annotations

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig, at_every_level
from tests.conformance.raw_target import Peer
from tests.conformance.wire import Pdu

from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

Session = tuple[Peer, Nexus, Listener]
PATTERN = bytes(n * 31 + (n >> 8) & 255 for n in range(1 << 18))


async def sequence(peer: Peer) -> list[Pdu]:
    """Take Data-Out PDUs up to the one with F."""
    got = [await peer.expect(wire.DATA_OUT)]
    while not got[-1].final:
        got.append(await peer.expect(wire.DATA_OUT))
    return got


def check_sequence(got: list[Pdu], command: Pdu, ttt: int, offset: int, length: int, limit: int) -> None:
    """Hold one sequence of Data-Out PDUs to RFC 3720 10.7."""
    at = offset
    for number, pdu in enumerate(got):
        assert (pdu.itt, pdu.ttt, pdu.lun) == (command.itt, ttt, command.lun)
        assert (pdu.datasn, pdu.offset) == (number, at)
        assert 0 < len(pdu.data) <= limit
        assert pdu.data == PATTERN[at : at + len(pdu.data)]
        at += len(pdu.data)
    assert at == offset + length


async def recovered(rig: Rig, peer: Peer, listener: Listener, *commands: Issued) -> None:
    """Hold that the connection is dropped soon, no command looks as if it had worked, and it comes back."""
    await peer.gone()
    await listener.loss()
    for issued in commands:
        assert (await issued.end()).outcome is Outcome.UNKNOWN
    await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)


@at_every_level
async def test_DAT_01_direction_bits_match_the_transfer(rig: Rig, session: Session) -> None:
    peer, nexus, _ = session
    cases = [({}, 0), ({"read": 4096}, wire.READ), ({"write": b"x" * 512}, wire.WRITE)]
    cases.append(({"read": 512, "write": b"y" * 512}, wire.READ | wire.WRITE))
    for options, bits in cases:
        Issued(nexus, READ_10, **options)  # type: ignore[arg-type]
        command = await peer.expect(wire.COMMAND)
        assert command.bhs[1] & 0x60 == bits
        assert command.bhs[1] & 0x18 == 0
        assert command.bhs[1] & 7 <= 4
        assert bool(bits) is bool(command.edtl)


@pytest.mark.parametrize("size", [1, 511, 512, 65536, 262144])
@at_every_level
async def test_DAT_02_the_expected_length_is_that_of_the_buffer(rig: Rig, size: int) -> None:
    peer, nexus, _ = await rig.session()
    Issued(nexus, READ_10, read=size, lun=0x0102 << 48)
    command = await peer.expect(wire.COMMAND)
    assert (command.edtl, command.lun) == (size, 0x0102 << 48)
    assert command.bhs[32:48] == READ_10.ljust(16, b"\0")
    Issued(nexus, WRITE_10, write=PATTERN[:size])
    assert (await peer.expect(wire.COMMAND)).edtl == size


@pytest.mark.parametrize("length", [17, 18, 20, 32])
async def test_DAT_03_a_long_cdb_goes_into_an_additional_header_segment(session: Session, length: int) -> None:
    peer, nexus, _ = session
    cdb = bytes([0x7F, 0, 0, 0, 0, 0, 0, length - 8]) + bytes(range(8, length))
    issued = Issued(nexus, cdb, read=512)
    command = await peer.expect(wire.COMMAND)
    assert command.bhs[32:48] == cdb[:16]
    assert command.ahs[:4] == bytes([0, length - 15, 1, 0])
    assert command.ahs[4 : 4 + length - 16] == cdb[16:]
    assert len(command.ahs) == 4 + (length - 16 + 3) // 4 * 4
    assert not any(command.ahs[4 + length - 16 :])
    await peer.raw(peer.last_data_in(command.itt, 0, 0, PATTERN[:512]))
    await issued.good()


@at_every_level
async def test_DAT_03_a_short_cdb_has_none(session: Session) -> None:
    peer, nexus, _ = session
    Issued(nexus, bytes(16), read=512)
    assert (await peer.expect(wire.COMMAND)).ahs == b""


UNSOLICITED = [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")]


@pytest.mark.parametrize(("immediate", "r2t"), UNSOLICITED)
@pytest.mark.parametrize("size", [100, 16384, 40000])
@at_every_level
async def test_DAT_05_f_is_0_only_where_data_follow_without_r2t(
    rig: Rig, immediate: str, r2t: str, size: int
) -> None:
    peer, nexus, _ = await rig.session({"ImmediateData": immediate, "InitialR2T": r2t})
    Issued(nexus, WRITE_10, write=PATTERN[:size])
    command = await peer.expect(wire.COMMAND)
    inside = min(size, 4096) if immediate == "Yes" else 0
    follow = min(size, 16384) - inside if r2t == "No" else 0
    assert len(command.data) == inside
    assert command.final is (follow == 0)
    if follow:
        check_sequence(await sequence(peer), command, wire.NONE_TAG, inside, follow, 4096)
    await peer.quiet()


@at_every_level
async def test_DAT_06_no_data_before_an_r2t(rig: Rig) -> None:
    peer, nexus, _ = await rig.session({"ImmediateData": "No", "InitialR2T": "Yes"})
    Issued(nexus, WRITE_10, write=PATTERN[:8192])
    command = await peer.expect(wire.COMMAND)
    assert (command.data, command.final) == (b"", True)
    await peer.quiet(0.4)


@pytest.mark.parametrize(("limit", "first", "inside"), [("512", "16384", 512), ("8192", "1024", 1024)])
@at_every_level
async def test_DAT_07_immediate_data_alone(
    rig: Rig, digests: tuple[str, str], limit: str, first: str, inside: int
) -> None:
    answers = {"InitialR2T": "Yes", "MaxRecvDataSegmentLength": limit, "FirstBurstLength": first}
    peer, nexus, _ = await rig.session({**answers, "MaxBurstLength": "262144"}, digests)
    issued = Issued(nexus, WRITE_10, write=PATTERN)
    command = await peer.expect(wire.COMMAND)
    assert (len(command.data), command.final) == (inside, True)
    await peer.quiet()
    assert await peer.take_write(command, 200000) == PATTERN
    await issued.good()


@pytest.mark.parametrize("size", [4096, 16384, 100000])
@at_every_level
async def test_DAT_08_one_unsolicited_burst(rig: Rig, digests: tuple[str, str], size: int) -> None:
    peer, nexus, _ = await rig.session({"ImmediateData": "No", "InitialR2T": "No"}, digests)
    Issued(nexus, WRITE_10, write=PATTERN[:size])
    command = await peer.expect(wire.COMMAND)
    assert (command.data, command.final) == (b"", False)
    check_sequence(await sequence(peer), command, wire.NONE_TAG, 0, min(size, 16384), 4096)
    await peer.quiet()


@at_every_level
async def test_DAT_09_immediate_and_unsolicited_data_together(rig: Rig, digests: tuple[str, str]) -> None:
    answers = {"InitialR2T": "No", "FirstBurstLength": "1536", "MaxBurstLength": "2048"}
    peer, nexus, _ = await rig.session({**answers, "MaxRecvDataSegmentLength": "512"}, digests)
    issued = Issued(nexus, WRITE_10, write=PATTERN[:4096])
    command = await peer.expect(wire.COMMAND)
    assert (command.data, command.final) == (PATTERN[:512], False)
    check_sequence(await sequence(peer), command, wire.NONE_TAG, 512, 1024, 512)
    await peer.raw(peer.r2t(command.itt, 5, 0, 1536, 2048, lun=LUN))
    check_sequence(await sequence(peer), command, 5, 1536, 2048, 512)
    await peer.raw(peer.r2t(command.itt, 6, 1, 3584, 512, lun=LUN))
    check_sequence(await sequence(peer), command, 6, 3584, 512, 512)
    await peer.raw(peer.response(command.itt))
    await issued.good()


@at_every_level
async def test_DAT_11_unsolicited_data_come_in_the_order_of_the_commands(rig: Rig) -> None:
    peer, nexus, _ = await rig.session({"ImmediateData": "No", "InitialR2T": "No"})
    for _ in range(8):
        Issued(nexus, WRITE_10, write=PATTERN[:12000])
    seen: list[int] = []
    tags: list[int] = []
    while len(tags) < 8 or seen.count(tags[-1]) < 3:
        pdu = await peer.recv()
        (tags if pdu.opcode == wire.COMMAND else seen).append(pdu.itt)
    assert seen == [tag for tag in tags for _ in range(3)]


@at_every_level
async def test_DAT_12_an_r2t_is_served_whole(rig: Rig, digests: tuple[str, str]) -> None:
    answers = {"ImmediateData": "No", "MaxRecvDataSegmentLength": "1024"}
    peer, nexus, _ = await rig.session(answers, digests)
    issued = Issued(nexus, WRITE_10, write=PATTERN[:5000])
    command = await peer.expect(wire.COMMAND)
    for sn, (offset, length, pieces) in enumerate([(0, 2048, 2), (2048, 2047, 2), (4095, 905, 1)]):
        await peer.raw(peer.r2t(command.itt, 0xABC0 + sn, sn, offset, length, lun=LUN))
        got = await sequence(peer)
        assert len(got) == pieces
        check_sequence(got, command, 0xABC0 + sn, offset, length, 1024)
        await peer.quiet(0.02)
    await peer.raw(peer.response(command.itt))
    await issued.good()


@pytest.mark.parametrize("length", [1, 512, 4095, 4096])
@at_every_level
async def test_DAT_13_an_r2t_within_the_limit_gets_one_pdu(rig: Rig, length: int) -> None:
    peer, nexus, _ = await rig.session({"ImmediateData": "No"})
    Issued(nexus, WRITE_10, write=PATTERN[:8192])
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.r2t(command.itt, 1, 0, 1000, length, lun=LUN))
    (pdu,) = await sequence(peer)
    assert (pdu.offset, pdu.data, pdu.datasn) == (1000, PATTERN[1000 : 1000 + length], 0)


@at_every_level
async def test_DAT_14_r2ts_are_served_in_the_order_of_their_arrival(rig: Rig) -> None:
    peer, nexus, _ = await rig.session({"ImmediateData": "No"})
    issued = [Issued(nexus, WRITE_10, write=PATTERN[:8192]) for _ in range(2)]
    first, second = await peer.expect(wire.COMMAND), await peer.expect(wire.COMMAND)
    await peer.raw(peer.r2t(second.itt, 2, 0, 0, 8192, lun=LUN) + peer.r2t(first.itt, 1, 0, 0, 8192, lun=LUN))
    check_sequence(await sequence(peer), second, 2, 0, 8192, 4096)
    check_sequence(await sequence(peer), first, 1, 0, 8192, 4096)
    assert all(one.running for one in issued)


BAD_R2TS = {
    "past the end": (0, 4096, 4097),
    "begins past the end": (0, 8192, 1),
    "nothing": (0, 0, 0),
    "over MaxBurstLength": (0, 0, 4097),
    "32 bits overflow": (0, 0xFFFFFFFC, 8),
    "whole 32 bits": (0, 0, 0xFFFFFFFF),
}


@pytest.mark.parametrize("case", BAD_R2TS)
async def test_DAT_17_an_r2t_out_of_bounds_is_not_served(rig: Rig, digests: tuple[str, str], case: str) -> None:
    sn, offset, length = BAD_R2TS[case]
    peer, nexus, listener = await rig.session(
        {"ImmediateData": "No", "MaxBurstLength": "4096", "FirstBurstLength": "4096"}, digests
    )
    issued = Issued(nexus, WRITE_10, write=PATTERN[:8192])
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.r2t(command.itt, 1, sn, offset, length, lun=LUN))
    assert await peer.gone() == b""
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    await listener.loss()


@at_every_level
async def test_DAT_18_an_r2t_with_the_reserved_tag_is_a_protocol_error(rig: Rig) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No"})
    issued = Issued(nexus, WRITE_10, write=PATTERN[:4096])
    await peer.raw(peer.r2t((await peer.expect(wire.COMMAND)).itt, wire.NONE_TAG, 0, 0, 4096, lun=LUN))
    await recovered(rig, peer, listener, issued)


@pytest.mark.parametrize("wrong", ["tag", "read", "lun"])
async def test_DAT_19_an_r2t_that_fits_no_write_is_not_served(rig: Rig, wrong: str) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No"})
    issued = Issued(nexus, READ_10, read=4096) if wrong == "read" else Issued(nexus, WRITE_10, write=PATTERN[:4096])
    itt = (await peer.expect(wire.COMMAND)).itt
    lun = LUN + (1 << 48) if wrong == "lun" else LUN
    await peer.raw(peer.r2t(itt + (wrong == "tag"), 1, 0, 0, 4096, lun=lun))
    await recovered(rig, peer, listener, issued)


@pytest.mark.parametrize("sn", [1, 2, 0xFFFFFFFF])
async def test_DAT_20_a_gap_in_r2tsn_is_noticed(rig: Rig, sn: int) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No"})
    issued = Issued(nexus, WRITE_10, write=PATTERN[:8192])
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.r2t(command.itt, 1, 0, 0, 1024, lun=LUN))
    await sequence(peer)
    await peer.raw(peer.r2t(command.itt, 2, wire.serial_add(sn, 1), 1024, 1024, lun=LUN))
    await recovered(rig, peer, listener, issued)


@at_every_level
async def test_DAT_21_more_r2ts_than_agreed_do_no_harm(rig: Rig) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No", "MaxOutstandingR2T": "1"})
    Issued(nexus, WRITE_10, write=PATTERN[:3072])
    command = await peer.expect(wire.COMMAND)
    await peer.raw(b"".join(peer.r2t(command.itt, 10 + n, n, 1024 * n, 1024, lun=LUN) for n in range(3)))
    if not listener.losses:
        for n in range(3):
            check_sequence(await sequence(peer), command, 10 + n, 1024 * n, 1024, 4096)


@at_every_level
async def test_DAT_23_a_data_in_without_data_is_legal(session: Session) -> None:
    peer, nexus, _ = session
    issued = Issued(nexus, READ_10, read=1000)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 0, b""))
    await peer.raw(peer.data_in(itt, 1, 0, PATTERN[:600]))
    await peer.raw(peer.data_in(itt, 2, 600, b""))
    await peer.raw(peer.last_data_in(itt, 3, 600, PATTERN[600:1000]))
    await issued.good()
    assert bytes(issued.buffer) == PATTERN[:1000]


@at_every_level
async def test_DAT_23_a_data_in_with_nothing_but_status_is_legal(session: Session) -> None:
    peer, nexus, _ = session
    issued = Issued(nexus, READ_10, read=1000)
    itt = (await peer.expect(wire.COMMAND)).itt
    flags = wire.F | wire.STATUS | wire.UNDERFLOW
    await peer.raw(peer.numbered(wire.DATA_IN, flags, itt=itt, ttt=wire.NONE_TAG, residual=1000))
    command = await issued.good()
    assert (command.data_in_count, command.residual) == (0, 1000)


@at_every_level
async def test_DAT_24_status_may_come_with_the_last_data(session: Session) -> None:
    peer, nexus, _ = session
    issued = Issued(nexus, READ_10, read=3000)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 0, PATTERN[:2000]))
    flags = wire.F | wire.STATUS | wire.UNDERFLOW
    await peer.raw(
        peer.numbered(
            wire.DATA_IN,
            flags,
            data=PATTERN[2000:2500],
            itt=itt,
            ttt=wire.NONE_TAG,
            datasn=1,
            offset=2000,
            residual=500,
        )
    )
    command = await issued.good()
    assert (command.data_in_count, command.residual) == (2500, 500)
    assert bytes(issued.buffer) == PATTERN[:2500] + b"\xee" * 500
    Issued(nexus)
    await peer.expect(wire.COMMAND)


@at_every_level
async def test_DAT_25_status_without_f_is_an_error(rig: Rig) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus, READ_10, read=512)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.numbered(wire.DATA_IN, wire.STATUS, data=PATTERN[:512], itt=itt, ttt=wire.NONE_TAG))
    await recovered(rig, peer, listener, issued)


@pytest.mark.parametrize("status", [0x02, 0x08, 0x18, 0x28])
@at_every_level
async def test_DAT_26_an_exception_status_with_data_is_never_good(rig: Rig, status: int) -> None:
    peer, nexus, _ = await rig.session()
    issued = Issued(nexus, READ_10, read=512)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.last_data_in(itt, 0, 0, PATTERN[:512], status))
    command = await issued.end()
    assert (command.outcome, command.status) != (Outcome.COMPLETE, 0)


@pytest.mark.parametrize("over", [1, 4, 0xFFFFFF])
@at_every_level
async def test_DAT_27_a_data_in_over_our_limit_ends_the_connection(
    rig: Rig, digests: tuple[str, str], over: int
) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    limit = int(peer.offers["MaxRecvDataSegmentLength"])
    issued = Issued(nexus, READ_10, read=limit + 8)
    itt = (await peer.expect(wire.COMMAND)).itt
    bhs = wire.header(wire.DATA_IN, 0, itt=itt, ttt=wire.NONE_TAG, dsl=min(limit + over, 0xFFFFFF))
    await peer.raw(bytes(bhs) + (wire.digest(bytes(bhs)) if peer.header_digest else b""))
    await recovered(rig, peer, listener, issued)


DISORDER = {"a gap": [0, 1, 3], "a repeat": [0, 1, 1], "swapped": [0, 2, 1], "not from 0": [1]}


@pytest.mark.parametrize("case", DISORDER)
async def test_DAT_29_datasn_out_of_order_is_noticed(rig: Rig, digests: tuple[str, str], case: str) -> None:
    peer, nexus, listener = await rig.session(digests=digests)
    issued = Issued(nexus, READ_10, read=4096)
    itt = (await peer.expect(wire.COMMAND)).itt
    for sn in DISORDER[case]:
        await peer.raw(peer.data_in(itt, sn, sn * 1000, PATTERN[sn * 1000 : sn * 1000 + 1000]))
    await recovered(rig, peer, listener, issued)


OUTSIDE = {
    "past the end": (4000, 97),
    "begins past the end": (5000, 4),
    "32 bits overflow": (0xFFFFFFFC, 8),
    "a hole": (8, 8),
    "overlap": None,
}


@pytest.mark.parametrize("case", OUTSIDE)
@at_every_level
async def test_DAT_30_data_outside_the_buffer_are_not_placed(rig: Rig, case: str) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus, READ_10, read=4096)
    itt = (await peer.expect(wire.COMMAND)).itt
    place = OUTSIDE[case]
    if place is None:
        await peer.raw(peer.data_in(itt, 0, 0, PATTERN[:1000]) + peer.data_in(itt, 1, 500, PATTERN[:1000]))
    else:
        await peer.raw(peer.data_in(itt, 0, place[0], b"\x99" * place[1]))
    await recovered(rig, peer, listener, issued)
    kept = PATTERN[:1000] if place is None else b""
    assert bytes(issued.buffer) == kept.ljust(4096, b"\xee")


@pytest.mark.parametrize("sent", [4096, 3000])
@at_every_level
async def test_DAT_31_no_f_at_the_end_of_data_never_makes_short_data_good(rig: Rig, sent: int) -> None:
    peer, nexus, _ = await rig.session()
    issued = Issued(nexus, READ_10, read=4096)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.data_in(itt, 0, 0, PATTERN[:sent]))
    await peer.raw(peer.response(itt, expdatasn=1))
    command = await issued.end()
    assert (command.outcome is Outcome.COMPLETE) is (sent == 4096)


@pytest.mark.parametrize("size", range(1, 10))
async def test_DAT_32_padding_is_not_data(session: Session, size: int) -> None:
    peer, nexus, _ = session
    read = Issued(nexus, READ_10, read=size + 4)
    itt = (await peer.expect(wire.COMMAND)).itt
    head = bytearray(wire.header(wire.DATA_IN, 0x83, itt=itt, ttt=wire.NONE_TAG, **peer.numbers({}, True)))
    head[44:48] = (4).to_bytes(4, "big")
    await peer.raw(peer.pack(head, PATTERN[:size]))
    assert (await read.good()).data_in_count == size
    assert bytes(read.buffer) == PATTERN[:size] + b"\xee" * 4
    write = Issued(nexus, WRITE_10, write=PATTERN[:size])
    command = await peer.expect(wire.COMMAND)
    assert command.data == PATTERN[:size]
    await peer.raw(peer.response(command.itt))
    await write.good()


@at_every_level
async def test_DAT_33_reserved_bits_are_ignored(session: Session) -> None:
    peer, nexus, listener = session

    def marked(bhs: bytearray, *ones: tuple[int, int]) -> bytearray:
        bhs[0] |= 0xC0
        for at, bits in ones:
            bhs[at] |= bits
        return bhs

    write = Issued(nexus, WRITE_10, write=PATTERN[:8192])
    itt = (await peer.expect(wire.COMMAND)).itt
    numbers = peer.numbers({"itt": itt, "ttt": 9, "offset": 4096, "desired": 4096, "lun": LUN}, False)
    r2t = marked(wire.header(wire.R2T, **numbers), (1, 0x7F), (2, 0xFF), (3, 0xFF))
    await peer.raw(peer.pack(r2t))
    await sequence(peer)
    numbers = peer.numbers({"itt": itt, "lun": 0xFFFFFFFFFFFFFFFF, "residual": 0xFFFF, "offset": 0xFFFF}, True)
    await peer.raw(peer.pack(marked(wire.header(wire.RESPONSE, **numbers), (1, 0x61))))
    assert (await write.good()).residual == 0
    read = Issued(nexus, READ_10, read=4)
    itt = (await peer.expect(wire.COMMAND)).itt
    numbers = peer.numbers({"itt": itt, "ttt": wire.NONE_TAG, "lun": 0xFFFFFFFF}, True)
    await peer.raw(peer.pack(marked(wire.header(wire.DATA_IN, 0x81, **numbers), (1, 0x38), (2, 0xFF)), b"data"))
    await read.good()
    numbers = peer.numbers({"itt": wire.NONE_TAG, "ttt": 4}, False)
    nop = marked(wire.header(wire.NOP_IN, **numbers), (1, 0x7F), (2, 0xFF), (3, 0xFF), (36, 0xFF), (47, 0xFF))
    await peer.raw(peer.pack(nop))
    assert (await peer.expect(wire.NOP_OUT)).ttt == 4
    assert not listener.losses


@at_every_level
async def test_DAT_33_reserved_bits_are_sent_as_0(session: Session) -> None:
    peer, nexus, _ = session
    Issued(nexus, WRITE_10, write=PATTERN[:8192])
    command = await peer.expect(wire.COMMAND)
    assert (command.bhs[0], command.bhs[1] & 0x18, command.bhs[2:4]) == (0x01, 0, b"\0\0")
    await peer.raw(peer.r2t(command.itt, 1, 0, 4096, 4096, lun=LUN))
    (out,) = await sequence(peer)
    assert (out.bhs[0], out.bhs[1], out.bhs[2:4]) == (0x05, 0x80, b"\0\0")
    assert not any(out.bhs[24:28] + out.bhs[32:36] + out.bhs[44:48])
