# SPDX-License-Identifier: GPL-3.0-or-later
"""Immediate, unsolicited and solicited data (RFC 3720 3.2.4, 10.7, 10.8): rows DAT of the conformance list."""

from __future__ import annotations

import pytest
from crc32c import crc32c
from tests.session.scripted_target import LUN, RESERVED, Make, ScriptedTarget, Sent, header

from blockfleet.iscsi.events import ConnectionLost, LossKind
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.scsi.command import Outcome

READ = b"\x28"
WRITE = b"\x2a"
F, S, UNDERFLOW, OVERFLOW = 0x80, 0x01, 0x02, 0x04


def pattern(length: int) -> bytes:
    return bytes(i * 7 + (i >> 8) & 0xFF for i in range(length))


def lost(target: ScriptedTarget) -> ConnectionLost:
    (event,) = target.events()
    assert isinstance(event, ConnectionLost)
    return event


def reassemble(pdus: list[Sent], size: int) -> bytes:
    """Lay the Data-Out payloads where they say they belong; nothing may overlap."""
    out, seen = bytearray(size), bytearray(size)
    for pdu in pdus:
        at = pdu.offset if pdu.opcode == 0x05 else 0
        assert not any(seen[at : at + len(pdu.data)])
        out[at : at + len(pdu.data)] = pdu.data
        seen[at : at + len(pdu.data)] = b"\1" * len(pdu.data)
    return bytes(out)


def test_dat_01_and_02_read_write_and_no_data_flags_length_and_lun(target: ScriptedTarget) -> None:
    target.execute(READ, read=4096)
    target.execute(WRITE, write=pattern(512))
    target.execute(b"\0")
    read, write, none = target.take()
    assert (read.bhs[1], write.bhs[1], none.bhs[1]) == (0x80 | 0x40 | 1, 0x80 | 0x20 | 1, 0x80 | 1)
    assert (read.edtl, write.edtl, none.edtl) == (4096, 512, 0)
    assert {read.lun, write.lun, none.lun} == {LUN}


def test_dat_03_a_cdb_over_16_bytes_travels_in_an_extended_cdb_ahs(target: ScriptedTarget) -> None:
    cdb = bytes(range(32))
    target.execute(cdb, read=512)
    (command,) = target.take()
    ahs = command.bhs[48:]
    assert command.bhs[4] == 5, "TotalAHSLength in words: 4 bytes of AHS header and 16 of CDB"
    assert command.bhs[32:48] == cdb[:16]
    assert (int.from_bytes(ahs[:2], "big"), ahs[2]) == (17, 1)
    assert ahs[4:20] == cdb[16:]


@pytest.mark.parametrize(
    ("initial_r2t", "immediate", "final", "with_command", "unsolicited"),
    [
        ("Yes", "No", True, 0, 0),
        ("Yes", "Yes", True, 2048, 0),
        ("No", "No", False, 0, 6144),
        ("No", "Yes", False, 2048, 4096),
    ],
    ids=["DAT-06", "DAT-07", "DAT-08", "DAT-09"],
)
def test_dat_05_data_before_r2t_by_initialr2t_and_immediatedata(
    make: Make, initial_r2t: str, immediate: str, final: bool, with_command: int, unsolicited: int
) -> None:
    target = make(
        keys={
            "InitialR2T": initial_r2t,
            "ImmediateData": immediate,
            "MaxRecvDataSegmentLength": "2048",
            "FirstBurstLength": "6144",
            "MaxBurstLength": "16384",
        }
    )
    data = pattern(1 << 20)
    target.execute(WRITE, write=data)
    command, *outs = target.take()
    assert command.final is final
    assert command.data == data[:with_command]
    assert sum(len(pdu.data) for pdu in outs) == unsolicited
    assert all(pdu.ttt == RESERVED and pdu.itt == command.itt for pdu in outs)
    assert [pdu.datasn for pdu in outs] == list(range(len(outs)))
    assert [pdu.final for pdu in outs] == [False] * (len(outs) - 1) + [True] * bool(outs)
    if outs:
        assert outs[0].offset == with_command


def test_dat_05_a_write_that_fits_leaves_no_burst_open(make: Make) -> None:
    target = make(keys={"InitialR2T": "No", "ImmediateData": "Yes", "MaxRecvDataSegmentLength": "8192"})
    target.execute(WRITE, write=pattern(4096))
    (command,) = target.take()
    assert command.final
    assert len(command.data) == 4096


def test_dat_11_unsolicited_data_go_in_the_order_of_the_commands(make: Make) -> None:
    target = make(keys={"InitialR2T": "No", "ImmediateData": "No", "FirstBurstLength": "1024"})
    for _ in range(8):
        target.execute(WRITE, write=pattern(1024))
    sent = target.take()
    order = [pdu.itt for pdu in sent if pdu.opcode == 0x01]
    assert [pdu.itt for pdu in sent if pdu.opcode == 0x05] == order


def test_dat_12_an_r2t_is_served_whole_in_segments_of_the_targets_size(make: Make) -> None:
    target = make(keys={"ImmediateData": "No", "MaxRecvDataSegmentLength": "1024"})
    data = pattern(8192)
    target.execute(WRITE, write=data)
    (command,) = target.take()
    target.r2t(command, 0, 2048, 2048, ttt=0x1234)
    first, second = target.take()
    assert (first.ttt, second.ttt) == (0x1234, 0x1234)
    assert (first.lun, first.datasn, second.datasn) == (LUN, 0, 1)
    assert (first.offset, second.offset) == (2048, 3072)
    assert (first.final, second.final) == (False, True)
    assert first.data + second.data == data[2048:4096]


def test_dat_14_r2ts_are_served_in_arrival_order_across_tasks(target: ScriptedTarget) -> None:
    target.execute(WRITE, write=pattern(100_000))
    target.execute(WRITE, write=pattern(100_000))
    one, two = (pdu for pdu in target.take() if pdu.opcode == 0x01)
    target.r2t(two, 0, 90_000, 1000, ttt=2)
    target.r2t(one, 0, 90_000, 1000, ttt=1)
    assert [pdu.ttt for pdu in target.take()] == [2, 1]


def test_dat_15_r2ts_out_of_offset_order_are_served_as_they_come(make: Make) -> None:
    target = make(keys={"ImmediateData": "No", "MaxOutstandingR2T": "4"})
    data = pattern(4096)
    target.execute(WRITE, write=data)
    (command,) = target.take()
    for number, offset in enumerate((3072, 2048, 1024, 0)):
        target.r2t(command, number, offset, 1024, ttt=number)
    outs = target.take()
    assert [pdu.offset for pdu in outs] == [3072, 2048, 1024, 0]
    assert reassemble(outs, 4096) == data


@pytest.mark.parametrize(
    ("offset", "length", "ttt", "number"),
    [
        (0, 0, 7, 0),
        (4000, 1000, 7, 0),
        (0xFFFFFFFF, 1, 7, 0),
        (0, 300_000, 7, 0),
        (0, 512, RESERVED, 0),
        (0, 512, 7, 1),
    ],
    ids=["length 0", "past the end", "offset overflow", "over MaxBurstLength", "DAT-18 reserved TTT", "DAT-20 gap"],
)
def test_dat_17_a_bad_r2t_is_not_served(make: Make, offset: int, length: int, ttt: int, number: int) -> None:
    target = make(keys={"ImmediateData": "No", "MaxBurstLength": "16384"})
    command = target.execute(WRITE, write=pattern(4096))
    (sent,) = target.take()
    target.r2t(sent, number, offset, length, ttt=ttt)
    assert not target.take()
    assert lost(target).kind is LossKind.PROTOCOL
    assert command.outcome is Outcome.UNKNOWN


def test_dat_19_an_r2t_for_a_read_or_for_no_task_is_not_served(make: Make) -> None:
    for tag in (None, 0x7777):
        target = make()
        target.execute(READ, read=4096)
        (command,) = target.take()
        if tag is not None:
            command.bhs = command.bhs[:16] + tag.to_bytes(4, "big") + command.bhs[20:]
        target.r2t(command, 0, 0, 512)
        assert not target.take()
        assert lost(target).kind is LossKind.PROTOCOL


def test_dat_23_zero_length_data_in_is_legal_also_with_status(target: ScriptedTarget) -> None:
    command = target.execute(READ, read=1024)
    (sent,) = target.take()
    target.data_in(sent, 0, 0, b"")
    target.data_in(sent, 1, 0, pattern(1024))
    target.data_in(sent, 2, 1024, b"", byte1=F | S)
    assert command.outcome is Outcome.COMPLETE
    assert bytes(command.data_in or b"") == pattern(1024)


def test_dat_24_status_in_data_in_ends_the_command_with_its_residual(target: ScriptedTarget) -> None:
    command = target.execute(READ, read=1024)
    (sent,) = target.take()
    target.data_in(sent, 0, 0, pattern(512), byte1=F | S | UNDERFLOW, residual=512)
    assert (command.outcome, command.status) == (Outcome.COMPLETE, 0)
    assert (command.data_in_count, command.residual) == (512, 512)


def test_dat_25_status_without_final_is_an_error(target: ScriptedTarget) -> None:
    target.execute(READ, read=512)
    (sent,) = target.take()
    target.data_in(sent, 0, 0, pattern(512), byte1=S)
    assert lost(target).kind is LossKind.PROTOCOL


def test_dat_27_a_segment_over_our_limit_is_refused_before_it_is_stored(make: Make) -> None:
    target = make(offer=SessionOffer(max_recv_data_segment_length=4096))
    target.execute(READ, read=1 << 16)
    (sent,) = target.take()
    target.data_in(sent, 0, 0, pattern(4100))
    assert lost(target).kind is LossKind.PROTOCOL


@pytest.mark.parametrize("numbers", [(0, 2), (0, 0), (1, 0)], ids=["gap", "repeat", "disorder"])
def test_dat_29_datasn_out_of_order_ends_the_session_at_erl_0(
    target: ScriptedTarget, numbers: tuple[int, int]
) -> None:
    command = target.execute(READ, read=1024)
    (sent,) = target.take()
    for data_sn in numbers:
        target.data_in(sent, data_sn, 512 * data_sn % 1024, pattern(512))
    assert lost(target).kind is LossKind.PROTOCOL
    assert command.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0xFFFFFFFC, 8), (1024, 512), (768, 512), (512, 4)],
    ids=["wrap", "beyond", "over", "hole"],
)
@pytest.mark.parametrize("size", [1024, 100_000], ids=["staged", "in place"])
def test_dat_30_data_outside_the_buffer_is_never_stored(
    target: ScriptedTarget, offset: int, length: int, size: int
) -> None:
    command = target.execute(READ, read=size)
    (sent,) = target.take()
    scale = size // 1024
    target.data_in(sent, 0, min(offset * scale, RESERVED), pattern(length * scale))
    assert lost(target).kind is LossKind.PROTOCOL
    assert bytes(command.data_in or b"") == b"\xee" * size


@pytest.mark.parametrize("length", range(1, 10))
def test_dat_32_padding_is_neither_delivered_nor_missed(target: ScriptedTarget, length: int) -> None:
    read = target.execute(READ, read=length)
    target.execute(WRITE, write=pattern(length))
    sent, written = target.take()
    assert written.data == pattern(length)
    target.data_in(sent, 0, 0, pattern(length), byte1=F | S)
    assert bytes(read.data_in or b"") == pattern(length)


def test_dat_33_reserved_bits_from_the_target_are_ignored(target: ScriptedTarget) -> None:
    command = target.execute(READ, read=512)
    (sent,) = target.take()
    target.data_in(sent, 0, 0, pattern(512))
    bhs = header(0x21 | 0xC0, 0xE1, itt=sent.itt, **target.numbers())
    bhs[8:16] = b"\xff" * 8
    target.give(bhs)
    assert command.outcome is Outcome.COMPLETE


@pytest.mark.parametrize(
    "digests", [("None", "None"), ("CRC32C", "None"), ("None", "CRC32C"), ("CRC32C", "CRC32C")]
)
def test_rob_17_a_stream_cut_anywhere_gives_the_same_result(make: Make, digests: tuple[str, str]) -> None:

    sizes = (5, 20_000)

    def stream(target: ScriptedTarget) -> bytes:
        """Build two reads' answers, the second long enough to be received in place."""
        out = b""
        for sent, size in zip(target.take_digested(digests[0] == "CRC32C"), sizes, strict=True):
            bhs = header(0x25, F | S, itt=sent.itt, ttt=RESERVED, dsl=size, **target.numbers())
            data = pattern(size) + bytes(-size % 4)
            out += bytes(bhs) + (crc32c(bytes(bhs)).to_bytes(4, "little") if digests[0] == "CRC32C" else b"")
            out += data + (crc32c(data).to_bytes(4, "little") if digests[1] == "CRC32C" else b"")
        return out

    for cut in [*range(1, 130), 8_191, 8_192, 12_345, 20_100]:
        target = make(keys={"HeaderDigest": digests[0], "DataDigest": digests[1]})
        commands = [target.execute(READ, read=size) for size in sizes]
        whole = stream(target)
        target.feed(whole[:cut])
        target.feed(whole[cut:])
        assert [command.outcome for command in commands] == [Outcome.COMPLETE] * 2
        assert [bytes(command.data_in or b"") for command in commands] == [pattern(size) for size in sizes]


@pytest.mark.parametrize("where", ["header", "header digest", "data", "data digest"])
def test_err1_02_and_03_a_digest_error_ends_the_session_at_erl_0(make: Make, where: str) -> None:

    target = make(keys={"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"})
    command = target.execute(READ, read=8)
    (sent,) = target.take_digested(True)
    bhs = header(0x25, F | S, itt=sent.itt, ttt=RESERVED, dsl=8, **target.numbers())
    pdu = bytearray(bytes(bhs) + crc32c(bytes(bhs)).to_bytes(4, "little") + pattern(8))
    pdu += crc32c(pattern(8)).to_bytes(4, "little")
    pdu[{"header": 20, "header digest": 49, "data": 55, "data digest": 61}[where]] ^= 0x10
    target.feed(bytes(pdu))
    assert lost(target).kind is LossKind.DIGEST
    assert command.outcome is Outcome.UNKNOWN
    assert target.session.counters.digest_errors == 1
