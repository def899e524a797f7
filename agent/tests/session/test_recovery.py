# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery within a command and within a connection, PDU by PDU, on a clock in the test's hand, both digests on
(RFC 3720 6.1.4.1, 6.1.4.2, 6.2.1, 6.3, 6.7, 6.8, 10.7.2, 10.16, 10.17): rows ERR1 of the conformance list.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from crc32c import crc32c
from tests.session.scripted_target import LUN, RESERVED, ScriptedTarget, Sent, header

from blockfleet.iscsi.events import ConnectionLost, LossKind
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.iscsi.session import Patience
from blockfleet.scsi.command import Outcome, ScsiCommand

READ, WRITE = b"\x28", b"\x2a"
F, A, S = 0x80, 0x40, 0x01
NOP_OUT, COMMAND, DATA_OUT, SNACK = 0x00, 0x01, 0x05, 0x10
DATA, STATUS, DATA_ACK = 0, 1, 2
SIZE = 1000
"""Bytes of a Data-In, so that each has padding."""


def pattern(length: int) -> bytes:
    return bytes(i * 11 + (i >> 8) & 0xFF for i in range(length))


def crc(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, "little")


class Target(ScriptedTarget):
    """A target at level 1 that checks and sends both digests; ``harm`` is done to what it sends next."""

    def __init__(self, **changes: object) -> None:
        keys = {
            "ErrorRecoveryLevel": "1",
            "HeaderDigest": "CRC32C",
            "DataDigest": "CRC32C",
            "MaxRecvDataSegmentLength": "2048",
            "InitialR2T": "Yes",
            "ImmediateData": "No",
        }
        settings = {
            "keys": {**keys, **changes.pop("keys", {})},  # type: ignore[dict-item]
            "offer": SessionOffer(error_recovery_level=2),
            "patience": Patience(noop_interval=0.0, recovery=2.0),
            **changes,
        }
        self.harm: int | None = None
        super().__init__(**settings)  # type: ignore[arg-type]

    def take(self) -> list[Sent]:
        stream = b"".join(bytes(part) for part in self.connection.take_output())
        pdus = []
        digest = 4 if self.connection.header_digest else 0
        while stream:
            end = 48 + 4 * stream[4]
            length = int.from_bytes(stream[5:8], "big")
            padded = length + (-length & 3)
            begin = end + digest
            assert not digest or stream[end:begin] == crc(stream[:end])
            pdus.append(Sent(stream[:end], stream[begin : begin + length]))
            assert not (digest and length) or stream[begin + padded : begin + padded + 4] == crc(
                stream[begin : begin + padded]
            )
            stream = stream[begin + padded + (digest if length else 0) :]
        return pdus

    def give(self, bhs: bytearray, data: bytes = b"") -> None:
        bhs[5:8] = len(data).to_bytes(3, "big")
        if not self.connection.header_digest:
            return super().give(bhs, data)
        padded = data + bytes(-len(data) % 4)
        stream = bytearray(bytes(bhs) + crc(bytes(bhs)) + padded + (crc(padded) if data else b""))
        harm, self.harm = self.harm, None
        if harm is not None:
            stream[harm] ^= 0x24
        self.feed(bytes(stream))
        return None

    def read(self, pieces: int) -> tuple[ScsiCommand, Sent, bytes]:
        command = self.execute(READ, read=pieces * SIZE)
        (sent,) = self.take()
        self.accept(sent)
        return command, sent, pattern(pieces * SIZE)

    def piece(self, sent: Sent, number: int, data: bytes, *, byte1: int = 0, **more: int) -> None:
        self.data_in(sent, number, number * SIZE, data[number * SIZE :][:SIZE], byte1=byte1, **more)

    def write(self, length: int) -> tuple[ScsiCommand, Sent]:
        command = self.execute(WRITE, write=pattern(length))
        (sent,) = self.take()
        self.accept(sent)
        return command, sent

    def acknowledge(self) -> None:
        """Tell ExpCmdSN and the next StatSN."""
        self.give(header(0x20, F, itt=RESERVED, ttt=RESERVED, **self.numbers(advance=False)))

    def lose_status(self) -> int:
        """Use a StatSN up that never arrives."""
        return self.numbers()["statsn"]

    def reject(self, reason: int, bad: Sent) -> None:
        self.give(header(0x3F, F, reason, itt=RESERVED, **self.numbers()), bad.bhs)

    def lost(self) -> ConnectionLost:
        (event,) = self.events()
        assert isinstance(event, ConnectionLost)
        return event


@pytest.fixture
def target() -> Target:
    return Target()


def run_of(pdu: Sent) -> tuple[int, int, int, int, int]:
    """Type, tag, Target Transfer Tag, BegRun and RunLength of a SNACK."""
    assert pdu.opcode == SNACK
    assert pdu.bhs[1] & F
    return pdu.bhs[1] & 0x0F, pdu.itt, pdu.ttt, pdu.offset, pdu.residual


def good(command: ScsiCommand, data: bytes | None = None) -> None:
    assert (command.outcome, command.status) == (Outcome.COMPLETE, 0), command.error
    if data is not None:
        assert bytes(command.data_in or b"") == data
        assert command.data_in_count == len(data)


# ---- data of a read


def test_ERR1_07_a_missing_data_in_is_asked_for_before_the_status_is_acknowledged(target: Target) -> None:
    command, sent, data = target.read(8)
    before = target.stat_sn
    for number in (0, 1, 2, 4):
        target.piece(sent, number, data)
    (snack,) = target.take()
    assert run_of(snack) == (DATA, sent.itt, RESERVED, 3, 1)
    assert (snack.lun, snack.expstatsn) == (LUN, before)
    for number in (5, 6, 7):
        target.piece(sent, number, data)
    target.respond(sent, datasn=8)
    assert command.outcome is Outcome.PENDING
    target.execute(READ, read=512)
    (other,) = target.take()
    assert other.expstatsn == before, "the status is not acknowledged"
    target.piece(sent, 3, data)
    good(command, data)
    target.execute(READ, read=512)
    assert target.take()[0].expstatsn == before + 1


@pytest.mark.parametrize("lost", [(0,), (5,), (1, 2), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_ERR1_07_what_a_response_tells_of_is_asked_for_run_by_run(target: Target, lost: tuple[int, ...]) -> None:
    command, sent, data = target.read(6)
    for number in range(6):
        if number not in lost:
            target.piece(sent, number, data)
    target.respond(sent, datasn=6)
    runs = [run_of(snack)[3:] for snack in target.take()]
    assert [number for first, count in runs for number in range(first, first + count)] == list(lost)
    assert len(runs) == 1 + sum(b - a > 1 for a, b in pairwise(lost))
    for number in lost:
        assert command.outcome is Outcome.PENDING
        target.piece(sent, number, data)
    good(command, data)
    assert target.take() == []


@pytest.mark.parametrize("place", [20, 50, 60, -1], ids=["header", "header digest", "data", "data digest"])
@pytest.mark.parametrize("length", [SIZE, 20_000], ids=["through staging", "in place"])
def test_ERR1_02_03_a_damaged_data_in_is_asked_for_and_never_delivered(
    target: Target, place: int, length: int
) -> None:
    command = target.execute(READ, read=3 * length)
    (sent,) = target.take()
    target.accept(sent)
    data = pattern(3 * length)
    target.data_in(sent, 0, 0, data[:length])
    target.harm = place
    target.data_in(sent, 1, length, data[length : 2 * length])
    damaged_data = place in (60, -1)
    if damaged_data:
        assert [run_of(snack)[3:] for snack in target.take()] == [(1, 1)]
    else:
        (ping,) = target.take()
        assert ping.opcode == NOP_OUT, "something must follow a damaged header"
    target.data_in(sent, 2, 2 * length, data[2 * length :], byte1=F | S)
    if not damaged_data:
        assert [run_of(snack)[3:] for snack in target.take()] == [(1, 1)]
    assert command.outcome is Outcome.PENDING
    target.data_in(sent, 1, length, data[length : 2 * length])
    good(command, data)
    counters = target.session.counters
    assert (counters.header_digest_errors, counters.data_digest_errors, counters.resyncs) == (
        (0, 1, 0) if damaged_data else (1, 0, 1)
    )


def test_ERR1_03_what_comes_damaged_again_is_asked_for_again(target: Target) -> None:
    command, sent, data = target.read(2)
    for _ in range(3):
        target.harm = 60
        target.piece(sent, 0, data)
        assert [run_of(snack)[3:] for snack in target.take()] == [(0, 1)]
    target.piece(sent, 1, data, byte1=F | S)
    target.piece(sent, 0, data)
    good(command, data)


def test_ERR1_17_what_comes_twice_counts_once(target: Target) -> None:
    command, sent, data = target.read(2)
    for number in (0, 0, 1):
        target.piece(sent, number, data)
    target.data_in(sent, 0, 0, b"\xff" * SIZE)
    target.respond(sent, datasn=2)
    good(command, data)
    target.stat_sn -= 1
    target.respond(sent, datasn=2)
    target.piece(sent, 1, data)
    assert target.take() == []
    assert target.events() == []
    assert target.session.counters.repeats == 4


@pytest.mark.parametrize(
    ("number", "offset", "length"),
    [(2, 500, 1000), (2, 2500, 1000), (3, 1500, 1000), (1 << 31, 1000, 1000)],
    ids=["over what came before", "beyond the buffer", "over what came later", "out of all reason"],
)
def test_DAT_30_data_over_other_data_or_out_of_bounds_end_the_connection(
    target: Target, number: int, offset: int, length: int
) -> None:
    command, sent, data = target.read(3)
    target.piece(sent, 0, data)
    target.data_in(sent, 4, 2000, data[2000:])
    target.data_in(sent, number, offset, bytes(length))
    assert target.lost().kind is LossKind.PROTOCOL
    assert command.outcome is Outcome.UNKNOWN


def test_DAT_30_a_hole_that_no_number_shows_is_no_success(target: Target) -> None:
    command, sent, data = target.read(3)
    target.piece(sent, 0, data)
    target.data_in(sent, 2, 2000, data[2000:])
    target.data_in(sent, 1, 1000, data[1000:1900])
    target.respond(sent, datasn=3)
    assert command.outcome is Outcome.ABORTED
    assert "1900 of 3000" in command.error


# ---- acknowledgement of data


@pytest.mark.parametrize("hole", [False, True], ids=["at once", "ERR1-13 after the hole is filled"])
def test_ERR1_13_data_are_acknowledged_when_all_before_are_there(target: Target, hole: bool) -> None:
    command, sent, data = target.read(4)
    target.piece(sent, 0, data)
    if not hole:
        target.piece(sent, 1, data)
    target.piece(sent, 2, data, byte1=A, ttt=0x77, lun=LUN)
    if hole:
        assert [run_of(snack)[0] for snack in target.take()] == [DATA]
        target.piece(sent, 1, data)
    (ack,) = target.take()
    assert run_of(ack) == (DATA_ACK, RESERVED, 0x77, 3, 0)
    assert ack.lun == LUN
    target.respond(sent, datasn=4)
    assert [run_of(snack)[3:] for snack in target.take()] == [(3, 1)], "ERR1-15: nothing below the acknowledged"
    target.piece(sent, 3, data)
    good(command, data)


# ---- responses


def test_ERR1_04_a_missing_response_is_asked_for_and_others_wait_for_it(target: Target) -> None:
    commands = [target.execute(b"\0") for _ in range(4)]
    sent = target.take()
    target.accept(*sent)
    first = target.lose_status()
    target.respond(sent[1])
    assert [run_of(snack) for snack in target.take()] == [(STATUS, RESERVED, RESERVED, first, 1)]
    second = target.lose_status()
    target.respond(sent[3])
    (snack,) = target.take()
    assert run_of(snack) == (STATUS, RESERVED, RESERVED, second, 1)
    assert snack.expstatsn == first
    assert target.done == []
    following, target.stat_sn = target.stat_sn, first
    target.respond(sent[0], 0x08)
    assert target.done == commands[:2]
    target.stat_sn = second
    target.respond(sent[2], 0x02, sense=b"\x70\0\5")
    assert target.done == commands
    assert [command.status for command in commands] == [8, 0, 2, 0]
    target.stat_sn = following
    target.execute(b"\0")
    assert target.take()[0].expstatsn == following


def test_ERR1_04_a_response_with_damaged_sense_is_asked_for(target: Target) -> None:
    command = target.execute(b"\0")
    sent = target.take()
    target.accept(*sent)
    number = target.stat_sn
    target.harm = 55
    target.respond(sent[0], 2, sense=b"\x70\0\3")
    assert [run_of(snack)[3:] for snack in target.take()] == [(number, 1)]
    assert command.outcome is Outcome.PENDING
    target.stat_sn = number
    target.respond(sent[0], 2, sense=b"\x70\0\3")
    assert (command.outcome, command.status, command.sense) == (Outcome.COMPLETE, 2, b"\x70\0\3")


def test_ERR1_05_a_damaged_asynchronous_message_acts_when_it_comes_whole(target: Target) -> None:
    number = target.stat_sn
    for damaged in (True, False):
        target.stat_sn = number
        target.harm = 55 if damaged else None
        target.give(header(0x32, F, itt=RESERVED, lun=LUN, **target.numbers()), b"\0\4\x70\0\6\0")
        assert len(target.events()) == (not damaged)
    assert [run_of(snack)[3:] for snack in target.take()] == [(number, 1)]


@pytest.mark.parametrize("how", ["NOP-In", "R2T"])
def test_NUM_12_the_next_statsn_that_is_shown_reveals_a_lost_response(target: Target, how: str) -> None:
    command, sent = target.write(4096)
    first = target.lose_status()
    if how == "NOP-In":
        target.acknowledge()
    else:
        target.r2t(sent, 0, 0, 512)
    assert [run_of(pdu)[3:] for pdu in target.take() if pdu.opcode == SNACK] == [(first, 1)]
    target.stat_sn = first
    target.respond(sent)
    good(command)


def test_ERR1_09_a_lost_last_response_is_found_by_a_ping(target: Target) -> None:
    command = target.execute(b"\0")
    sent = target.take()
    target.accept(*sent)
    target.acknowledge()
    number = target.lose_status()
    target.at(1.9)
    assert target.take() == []
    target.at(4)
    (ping,) = target.take()
    assert (ping.opcode, ping.immediate) == (NOP_OUT, True)
    target.give(header(0x20, F, itt=ping.itt, ttt=RESERVED, **target.numbers()))
    assert [run_of(snack) for snack in target.take()] == [(STATUS, RESERVED, RESERVED, number, 1)]
    following, target.stat_sn = target.stat_sn, number
    target.respond(sent[0])
    good(command)
    target.stat_sn = following
    assert target.session.control == {}


def test_ERR1_08_silence_alone_asks_for_no_r2t(target: Target) -> None:
    target.write(4096)
    target.acknowledge()
    target.at(20)
    assert {pdu.opcode for pdu in target.take()} == {NOP_OUT}


@pytest.mark.parametrize("jump", [8193, 1 << 30, 1 << 31])
def test_NUM_11_a_large_jump_of_statsn_ends_the_connection(target: Target, jump: int) -> None:
    target.execute(b"\0")
    sent = target.take()
    target.stat_sn = target.stat_sn + jump & RESERVED
    target.respond(sent[0])
    if jump < 1 << 31:
        assert target.lost().kind is LossKind.PROTOCOL
    else:
        assert target.session.counters.repeats == 1, "as far behind as ahead"


# ---- asking in vain


@pytest.mark.parametrize("what", ["data", "a response"])
def test_ERR1_23_asking_in_vain_is_bounded(target: Target, what: str) -> None:
    command, sent, data = target.read(3)
    if what == "data":
        target.piece(sent, 0, data)
        target.piece(sent, 2, data)
    else:
        target.lose_status()
        target.acknowledge()
    snacks = []
    for seconds in range(30):
        target.at(seconds)
        snacks += [pdu for pdu in target.take() if pdu.opcode == SNACK]
    assert 5 <= len(snacks) <= 9
    assert len({run_of(snack) for snack in snacks}) == 1
    assert target.lost().kind is LossKind.DIGEST
    assert command.outcome is Outcome.UNKNOWN, "no result is made up"


@pytest.mark.parametrize("order", ["response first", "Reject first"])
def test_ERR1_11_data_that_are_refused_fail_the_task_though_its_status_is_good(target: Target, order: str) -> None:
    command, sent, data = target.read(3)
    target.piece(sent, 0, data)
    target.piece(sent, 2, data)
    (snack,) = target.take()
    if order == "response first":
        target.respond(sent, datasn=3)
    target.reject(0x03, snack)
    if order == "Reject first":
        assert command.outcome is Outcome.PENDING
        target.respond(sent, datasn=3)
    assert (command.outcome, command.status, command.data_in_count) == (Outcome.COMPLETE, 2, 0)
    assert (command.sense[2] & 15, *command.sense[12:14]) == (0x0B, 0x47, 0x05)
    assert target.take() == []
    assert target.events() == []


def test_ERR1_20_a_data_snack_that_is_a_protocol_error_to_the_target_aborts_the_task(target: Target) -> None:
    command, sent, data = target.read(3)
    target.piece(sent, 1, data)
    (snack,) = target.take()
    target.reject(0x04, snack)
    (abort,) = target.take()
    assert (abort.opcode, abort.bhs[1] & 0x7F, abort.rtt) == (0x02, 1, sent.itt)
    target.give(header(0x22, F, 0, itt=abort.itt, **target.numbers()))
    assert command.outcome is Outcome.ABORTED
    target.at(10)
    assert [pdu for pdu in target.take() if pdu.opcode == SNACK] == []


def test_ERR1_20_a_status_that_is_refused_ends_the_connection(target: Target) -> None:
    command = target.execute(b"\0")
    target.accept(*target.take())
    target.lose_status()
    target.acknowledge()
    (snack,) = target.take()
    target.reject(0x03, snack)
    assert target.lost().kind is LossKind.DIGEST
    assert command.outcome is Outcome.UNKNOWN


# ---- writes


def test_ERR1_08_a_missing_r2t_is_asked_for_and_later_ones_wait(target: Target) -> None:
    command, sent = target.write(6144)
    target.r2t(sent, 1, 2048, 2048, ttt=0x11)
    (snack,) = target.take()
    assert run_of(snack) == (DATA, sent.itt, RESERVED, 0, 1)
    target.r2t(sent, 0, 0, 2048, ttt=0x10)
    outs = target.take()
    assert [(out.ttt, out.offset, out.data) for out in outs] == [
        (0x10, 0, pattern(6144)[:2048]),
        (0x11, 2048, pattern(6144)[2048:4096]),
    ]
    target.r2t(sent, 1, 2048, 2048, ttt=0x11)
    assert target.take() == [], "ERR1-17: a repeated R2T is dropped"
    target.r2t(sent, 2, 4096, 2048, ttt=0x12)
    assert [out.ttt for out in target.take()] == [0x12]
    target.respond(sent)
    good(command)


def test_ERR1_22_a_recovery_r2t_is_served_with_its_own_tag(target: Target) -> None:
    command, sent = target.write(4096)
    target.r2t(sent, 0, 0, 4096, ttt=0x10)
    assert [out.datasn for out in target.take()] == [0, 1]
    target.r2t(sent, 1, 2048, 1000, ttt=0x33)
    (out,) = target.take()
    assert (out.ttt, out.datasn, out.offset, out.final) == (0x33, 0, 2048, True)
    assert out.data == pattern(4096)[2048:3048]
    target.respond(sent)
    good(command)


def test_ERR1_20_an_r2t_that_the_target_gave_up_is_skipped(target: Target) -> None:
    command, sent = target.write(4096)
    target.r2t(sent, 1, 0, 2048, ttt=0x11)
    (snack,) = target.take()
    target.reject(0x04, snack)
    assert [(out.ttt, out.offset) for out in target.take()] == [(0x11, 0)]
    target.respond(sent)
    good(command)


# ---- commands


def test_RTY_a_command_that_is_not_acknowledged_is_sent_again_as_it_was(target: Target) -> None:
    lost, held = target.execute(READ, read=512), target.execute(b"\0")
    first, second = target.take()
    target.at(2.6)
    again = [pdu for pdu in target.take() if pdu.opcode == COMMAND]
    assert [pdu.bhs for pdu in again] == [first.bhs], "the target waits for the first alone"
    target.accept(first, second)
    target.data_in(first, 0, 0, pattern(512), byte1=F | S)
    target.respond(second)
    good(lost, pattern(512))
    good(held)
    assert target.session.counters.commands_retried == 1


def test_RTY_an_acknowledged_command_is_never_sent_again(target: Target) -> None:
    target.read(2)
    target.acknowledge()
    target.at(25)
    assert {pdu.opcode for pdu in target.take()} == {NOP_OUT}


@pytest.mark.parametrize("acknowledged", [False, True])
def test_ERR1_19_a_command_with_damaged_data_is_sent_again_with_its_cmdsn(acknowledged: bool) -> None:
    target = Target(keys={"InitialR2T": "Yes", "ImmediateData": "Yes"})
    command = target.execute(WRITE, write=pattern(1024))
    (sent,) = target.take()
    if acknowledged:
        target.accept(sent)
    target.reject(0x02, sent)
    again = target.take()
    if acknowledged:
        assert again == [], "the target asks by a recovery R2T"
    else:
        assert [(pdu.bhs[:28], pdu.data) for pdu in again] == [(sent.bhs[:28], sent.data)]
        target.accept(sent)
    target.respond(sent)
    good(command)


def test_ERR1_20_a_command_that_is_rejected_without_end_is_given_up(target: Target) -> None:
    command = target.execute(b"\0")
    for _ in range(12):
        for pdu in target.take():
            if pdu.opcode == COMMAND:
                target.reject(0x02, pdu)
    assert command.outcome is Outcome.ABORTED
    assert target.session.counters.commands_retried == 8


@pytest.mark.parametrize("length", [0, 47])
def test_ERR1_21_a_reject_whose_header_is_short_is_only_counted(target: Target, length: int) -> None:
    target.give(header(0x3F, F, 4, itt=RESERVED, **target.numbers()), bytes(length))
    assert target.events() == []


# ---- framing and pings


def test_ERR1_02_a_header_after_which_nothing_is_found_in_time_ends_the_connection(target: Target) -> None:
    command, sent, data = target.read(2)
    target.harm = 6
    target.piece(sent, 0, data)
    target.at(2.9)
    assert target.events() == []
    target.at(3.6)
    assert target.lost().kind is LossKind.DIGEST
    assert command.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("second", [False, True], ids=["the second is answered", "none is answered"])
def test_CTL_06_one_lost_ping_is_no_silence(second: bool) -> None:
    target = Target(patience=Patience(noop_interval=10.0, noop_timeout=4.0, recovery=2.0))
    target.at(10)
    assert [pdu.opcode for pdu in target.take()] == [NOP_OUT]
    target.at(12)
    (ping,) = target.take()
    if not second:
        target.give(header(0x20, F, itt=ping.itt, ttt=RESERVED, **target.numbers()))
        target.at(21)
        assert target.events() == []
        assert target.session.control == {}
    else:
        target.at(14.1)
        assert target.lost().kind is LossKind.KEEPALIVE


# ---- any order


@pytest.mark.parametrize("level", ["0", "1"])
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_DAT_28_offsets_in_any_order_where_that_was_agreed(level: str, order: tuple[int, ...]) -> None:
    offer = SessionOffer(error_recovery_level=1, data_pdu_in_order=False, data_sequence_in_order=False)
    keys = {"ErrorRecoveryLevel": level, "DataPDUInOrder": "No", "DataSequenceInOrder": "No"}
    target = Target(keys=keys, offer=offer)
    command, sent, data = target.read(3)
    for number, place in enumerate(order):
        target.data_in(sent, number, place * SIZE, data[place * SIZE :][:SIZE], byte1=F | S if number == 2 else 0)
    good(command, data)
    command, sent, data = target.read(3)
    for number, place in enumerate((2, 0)):
        target.data_in(sent, number, place * SIZE, data[place * SIZE :][:SIZE])
    target.respond(sent, datasn=2)
    assert command.outcome is Outcome.ABORTED, "a hole at the end is no success"


def test_DAT_28_offsets_out_of_order_end_the_connection_otherwise(target: Target) -> None:
    _, sent, data = target.read(3)
    target.data_in(sent, 0, SIZE, data[SIZE : 2 * SIZE])
    assert target.lost().kind is LossKind.PROTOCOL
