# SPDX-License-Identifier: GPL-3.0-or-later
"""What a target may do to a session in full feature phase, case by case of the list of faults (B21 to B40).

Each case is bounded in memory and time, leads to an error that says what it was, and leaves no command without an
end.  What is right after a fault is the RFC's: at level 0 the connection ends, at levels 1 and 2 a number that is
missing may be asked for first.
"""

from __future__ import annotations

import pytest
from crc32c import crc32c
from tests.session.scripted_target import LUN, RESERVED, Make, ScriptedTarget, Sent, header

from blockfleet.iscsi.constants import TaskFunction
from blockfleet.iscsi.events import AsyncNotice, ConnectionDropped, ConnectionLost, LogoutAsked, LossKind
from blockfleet.iscsi.parameters import SessionOffer
from blockfleet.iscsi.session import Patience
from blockfleet.scsi.command import Outcome, ScsiCommand

pytestmark = pytest.mark.usefixtures("bounded")

READ, WRITE = b"\x28", b"\x2a"
NOP_OUT, COMMAND, SNACK = 0x00, 0x01, 0x10
NOP_IN, RESPONSE, TASK_RESPONSE, TEXT_RESPONSE, DATA_IN, LOGOUT_RESPONSE = 0x20, 0x21, 0x22, 0x24, 0x25, 0x26
R2T, ASYNC, REJECT = 0x31, 0x32, 0x3F
TARGETS_OPCODES = (0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F)
"""RFC 3720 10.2.1.2."""
FOREVER = 140_000.0
"""Seconds: more than Time2Wait and Time2Retain can be together."""
MRDSL = 65536

LEVELS = pytest.mark.parametrize("level", ["0", "1", "2"])


def at_level(make: Make, level: str, **keys: str) -> ScriptedTarget:
    return make(
        keys={"ErrorRecoveryLevel": level, **keys},
        offer=SessionOffer(error_recovery_level=2, max_recv_data_segment_length=MRDSL),
        patience=Patience(noop_interval=0.0, recovery=2.0),
    )


def ended(target: ScriptedTarget) -> str:
    """Hold that the connection was given up at once and once, and return why."""
    assert not target.connection.takes_data
    losses = [event for event in target.events() if isinstance(event, ConnectionLost | ConnectionDropped)]
    assert len(losses) == 1
    assert not target.take()
    return losses[0].detail


def settled(target: ScriptedTarget, *commands: ScsiCommand) -> None:
    """Hold that every command ends, and none as if it had worked, though nothing is recovered."""
    target.connection.closed("reset")
    target.at(FOREVER)
    assert target.session.over
    assert [id(command) for command in target.done] == [id(command) for command in commands]
    assert all(command.outcome in (Outcome.UNKNOWN, Outcome.NOT_SENT) for command in commands)
    assert target.session.next_deadline() == float("inf")


def reading(target: ScriptedTarget, size: int = 1024) -> tuple[ScsiCommand, Sent]:
    command = target.execute(READ, read=size)
    (sent,) = target.take()
    target.accept(sent)
    return command, sent


def writing(target: ScriptedTarget, size: int = 4096) -> tuple[ScsiCommand, Sent]:
    command = target.execute(WRITE, write=bytes(size))
    (sent,) = target.take()
    target.accept(sent)
    return command, sent


def ping(target: ScriptedTarget) -> list[Sent]:
    """Ask whether the connection lives: the answer, or nothing."""
    target.give(header(NOP_IN, itt=RESERVED, ttt=0x77, lun=LUN, **target.numbers(advance=False)))
    return [pdu for pdu in target.take() if pdu.opcode == NOP_OUT]


# ---- 21, 22, 23: lengths and opcodes


@LEVELS
@pytest.mark.parametrize("length", [0xFFFFFF, MRDSL + 1])
@pytest.mark.parametrize("opcode", TARGETS_OPCODES)
def test_b21_a_segment_over_our_limit_ends_the_connection_by_its_header(
    make: Make, opcode: int, length: int, level: str
) -> None:
    target = at_level(make, level)
    command, sent = reading(target)
    target.feed(bytes(header(opcode, itt=sent.itt, dsl=length, **target.numbers())))
    assert "MaxRecvDataSegmentLength" in ended(target)
    settled(target, command)


@LEVELS
@pytest.mark.parametrize("opcode", TARGETS_OPCODES)
def test_b22_additional_headers_of_1020_bytes_are_taken_off_whole_or_end_the_connection(
    make: Make, opcode: int, level: str
) -> None:
    """RFC 3720 has none for a target's PDUs; those of SCSI are passed by, and what is behind is the next PDU."""
    target = at_level(make, level)
    command, sent = reading(target, 0 if opcode == RESPONSE else 1024)
    target.feed(bytes(header(opcode, itt=sent.itt, ttt=RESERVED, ahs=255, **target.numbers())) + bytes(1020))
    if opcode in (RESPONSE, DATA_IN):
        assert len(ping(target)) == 1
    else:
        assert ended(target)
    if opcode == RESPONSE:
        assert (command.outcome, command.status) == (Outcome.COMPLETE, 0)
    else:
        settled(target, command)


@LEVELS
@pytest.mark.parametrize("opcode", sorted(set(range(64)) - set(TARGETS_OPCODES)))
def test_b23_an_opcode_that_no_target_has_ends_the_connection(make: Make, opcode: int, level: str) -> None:
    target = at_level(make, level)
    command, sent = reading(target)
    target.give(header(opcode, itt=sent.itt, **target.numbers()))
    assert f"{opcode:#04x}" in ended(target)
    settled(target, command)


@LEVELS
def test_b23_reserved_bits_of_a_response_change_nothing(make: Make, level: str) -> None:
    target = at_level(make, level)
    command, sent = reading(target, 0)
    bhs = header(RESPONSE, itt=sent.itt, lun=(1 << 64) - 1, ttt=RESERVED, **target.numbers())
    bhs[0] |= 0xC0
    bhs[1] |= 0x61
    target.give(bhs)
    assert (command.outcome, command.status) == (Outcome.COMPLETE, 0)
    assert not target.events()


# ---- 24, 25: data of a read


@LEVELS
@pytest.mark.parametrize("tag", [0x00FACADE, RESERVED])
def test_b24_data_for_no_task_touch_nothing(make: Make, tag: int, level: str) -> None:
    """At levels 1 and 2 they may be an answer to a SNACK that came late (RFC 3720 6.2.1), and are dropped."""
    target = at_level(make, level)
    command, _ = reading(target)
    for _ in range(100 if level != "0" else 1):
        target.give(header(DATA_IN, 0x80, itt=tag, ttt=RESERVED, **target.numbers(advance=False)), b"\x01" * 1024)
    if level == "0":
        assert ended(target)
    else:
        assert len(ping(target)) == 1
    assert bytes(command.data_in or b"") == b"\xee" * 1024
    settled(target, command)


@LEVELS
@pytest.mark.parametrize(
    ("offset", "length"),
    [(RESERVED - 3, 8), (0xFFFFFE00, 512), (1024, 512), (768, 512)],
    ids=["wrap", "overflow", "beyond", "over the end"],
)
@pytest.mark.parametrize("size", [1024, 100 * 1024], ids=["staged", "in place"])
def test_b25_data_beyond_the_buffer_end_the_connection(
    make: Make, offset: int, length: int, size: int, level: str
) -> None:
    target = at_level(make, level)
    command, sent = reading(target, size)
    scale = 1 if offset > size else size // 1024
    length = min(length * size // 1024, MRDSL)
    target.data_in(sent, 0, offset * scale, b"\x01" * length)
    assert ended(target)
    assert bytes(command.data_in or b"") == b"\xee" * size
    settled(target, command)


@LEVELS
@pytest.mark.parametrize("offsets", [(0, 256), (0, 0), (512, 0)], ids=["overlap", "twice", "hole"])
def test_b25_data_over_other_data_or_past_a_hole_are_no_success(
    make: Make, offsets: tuple[int, int], level: str
) -> None:
    target = at_level(make, level)
    command, sent = reading(target)
    for number, offset in enumerate(offsets):
        if target.connection.takes_data:
            target.data_in(sent, number, offset, bytes(512), byte1=0x81 if number else 0)
    assert ended(target)
    settled(target, command)


@LEVELS
@pytest.mark.parametrize("gap", [1, 2, 1 << 20, (1 << 31) - 1, 1 << 31, RESERVED])
def test_b25_a_gap_in_datasn_is_asked_for_within_bounds_or_ends_the_connection(
    make: Make, gap: int, level: str
) -> None:
    target = at_level(make, level)
    command, sent = reading(target, 4096)
    target.data_in(sent, gap, 512, bytes(512))
    asked = [pdu for pdu in target.take() if pdu.opcode == SNACK]
    assert len(asked) <= 1
    if level == "0":
        assert not asked
    target.at(60)
    target.take()
    settled(target, command)


# ---- 26: R2T


@LEVELS
@pytest.mark.parametrize(
    ("offset", "length"),
    [(2048, 4096), (4096, 1), (RESERVED, 4096), (0, RESERVED), (0, 16385), (0, 0)],
    ids=["past the end", "behind it", "offset wraps", "length wraps", "over MaxBurstLength", "nothing"],
)
def test_b26_an_r2t_for_what_is_not_there_is_not_served(make: Make, offset: int, length: int, level: str) -> None:
    target = at_level(make, level, ImmediateData="No", InitialR2T="Yes", MaxBurstLength="16384")
    command, sent = writing(target, 4096 if length != 16385 else 32768)
    target.r2t(sent, 0, offset, length)
    assert ended(target)
    settled(target, command)


@LEVELS
def test_b26_an_r2t_for_a_read_is_not_served(make: Make, level: str) -> None:
    target = at_level(make, level)
    command, sent = reading(target)
    target.r2t(sent, 0, 0, 512)
    assert ended(target)
    settled(target, command)


@LEVELS
@pytest.mark.parametrize("numbers", ["the same", "new"])
def test_b26_data_are_not_sent_over_and_over(make: Make, numbers: str, level: str) -> None:
    """Another number is recovery where that was agreed on, but not without end; the target reads nothing."""
    target = at_level(make, level, ImmediateData="No", InitialR2T="Yes", MaxBurstLength="65536")
    command, sent = writing(target, 65536)
    asked = 0
    while target.connection.takes_data and asked < 10_000:
        target.r2t(sent, asked if numbers == "new" else 0, 0, 65536)
        asked += 1
    if numbers == "new" or level == "0":
        assert asked == (2 if level == "0" else 9)
        assert ended(target)
    else:
        assert sum(len(pdu.data) for pdu in target.take()) == 65536
    settled(target, command)


# ---- 27, 28: numbers


@LEVELS
@pytest.mark.parametrize("jump", [RESERVED, 1, 1 << 31, (1 << 31) - 1, (1 << 31) + 1, 1 << 20])
def test_b27_a_statsn_that_jumps_completes_nothing_out_of_turn(make: Make, jump: int, level: str) -> None:
    target = at_level(make, level)
    command, sent = reading(target, 0)
    numbers = target.numbers()
    target.give(header(RESPONSE, itt=sent.itt, **{**numbers, "statsn": numbers["statsn"] + jump & RESERVED}))
    assert command.outcome is not Outcome.COMPLETE
    asked = [pdu for pdu in target.take() if pdu.opcode == SNACK]
    assert len(asked) == (level != "0" and jump == 1)
    target.at(60)
    target.take()
    settled(target, command)


@LEVELS
@pytest.mark.parametrize("below", [2, 100, 1 << 30])
def test_b28_a_maxcmdsn_below_expcmdsn_is_no_window(make: Make, below: int, level: str) -> None:
    target = at_level(make, level)
    command, sent = reading(target, 0)
    numbers = target.numbers()
    target.give(header(RESPONSE, itt=sent.itt, **{**numbers, "maxcmdsn": numbers["expcmdsn"] - below & RESERVED}))
    assert command.outcome is Outcome.COMPLETE
    assert len(ping(target)) == 1
    target.execute(b"\0")
    assert len([pdu for pdu in target.take() if pdu.opcode == COMMAND]) == 1


@LEVELS
def test_b28_in_a_window_that_never_opens_pings_pass_and_commands_end_in_time(make: Make, level: str) -> None:
    target = make(
        keys={"ErrorRecoveryLevel": level},
        offer=SessionOffer(error_recovery_level=2),
        patience=Patience(noop_interval=0.0),
        window=0,
    )
    commands = [target.execute(b"\0", timeout=5.0) for _ in range(1000)]
    assert not target.take()
    assert len(ping(target)) == 1
    target.at(6.0)
    assert not target.take()
    assert [command.outcome for command in commands] == [Outcome.NOT_SENT] * 1000


# ---- 29, 30: responses


@LEVELS
@pytest.mark.parametrize(
    ("flags", "residual"),
    [(0x82, 1025), (0x82, RESERVED), (0x86, 0), (0x86, 512)],
    ids=["underflow of more than asked", "underflow of 4 GiB", "both flags", "both flags and a count"],
)
def test_b29_a_residual_that_cannot_be_ends_the_connection(
    make: Make, flags: int, residual: int, level: str
) -> None:
    target = at_level(make, level)
    command, sent = reading(target)
    target.respond(sent, byte1=flags, residual=residual)
    assert ended(target)
    settled(target, command)


@LEVELS
@pytest.mark.parametrize(
    ("segment", "sense"),
    [
        (b"", b""),
        (b"\x00", b""),
        (b"\x00\x12", b""),
        (b"\x00\x12\x70", b"\x70"),
        (b"\xff\xff\x70\x00", b"\x70\x00"),
        (b"\x00\x00\x70\x00", b""),
        (b"\x00\x02\x70\x00\x05\x06", b"\x70\x00"),
    ],
    ids=["none", "half a length", "length alone", "1 of 18", "2 of 65535", "0 of 2", "2 of 4"],
)
def test_b30_sense_is_what_is_in_the_segment_and_no_more(
    make: Make, segment: bytes, sense: bytes, level: str
) -> None:
    target = at_level(make, level)
    command, sent = reading(target, 0)
    target.give(header(RESPONSE, 0x80, 0, 2, itt=sent.itt, **target.numbers()), segment)
    assert (command.outcome, command.status, command.sense) == (Outcome.COMPLETE, 2, sense)
    assert len(ping(target)) == 1


# ---- 36, 37: Reject and asynchronous messages


@LEVELS
@pytest.mark.parametrize("reason", [*range(1, 0x0D), 0x0D, 0x80, 0xFF])
@pytest.mark.parametrize("kind", ["read", "write", "ping", "function", "text", "logout", "nothing"])
def test_b36_a_reject_of_any_reason_ends_what_it_is_about_or_the_connection(
    make: Make, reason: int, kind: str, level: str
) -> None:
    target = at_level(make, level, ImmediateData="No", InitialR2T="Yes")
    answers: list[object] = []
    commands: list[ScsiCommand] = []
    if kind in ("read", "write"):
        commands.append(
            target.execute(READ, read=512) if kind == "read" else target.execute(WRITE, write=bytes(512))
        )
    elif kind == "ping":
        target.session.ping(target.now)
    elif kind == "function":
        target.session.manage_task(TaskFunction.LOGICAL_UNIT_RESET, LUN, target.now, answers.append)
    elif kind == "text":
        target.session.send_text(b"SendTargets=All\0", target.now, lambda _: None, answers.append)
    elif kind == "logout":
        target.session.logout(target.now)
    rejected = 0
    for _ in range(100):
        sent = target.take()
        if not target.connection.takes_data or (not sent and rejected):
            break
        bad = bytes(sent[-1].bhs) if sent else bytes(48)
        target.give(header(REJECT, 0x80, reason, itt=RESERVED, **target.numbers()), bad)
        rejected += 1
        target.at(3.0 * rejected)
    assert rejected < 50, "the same request is sent again without end"
    target.connection.closed("reset")
    target.at(FOREVER)
    assert target.session.over
    assert all(command.outcome not in (Outcome.PENDING, Outcome.COMPLETE) for command in commands)
    assert len(target.done) == len(commands)
    assert len(answers) == (kind in ("function", "text"))


@LEVELS
@pytest.mark.parametrize("event", [0, 1, 2, 3, 4, 255, 5, 100, 254])
def test_b37_each_asynchronous_event_is_told_acted_on_or_an_error(make: Make, event: int, level: str) -> None:
    target = at_level(make, level)
    command, _ = reading(target)
    bhs = header(ASYNC, itt=RESERVED, lun=LUN, **target.numbers())
    bhs[36:38] = bytes((event, 0x33))
    bhs[38:44] = (target.connection.cid).to_bytes(2, "big") + b"\0\1\0\5"
    target.give(bhs, b"\0\x12" + b"\x70".ljust(18, b"\0") if event == 0 else b"")
    events, sent = target.events(), target.take()
    if event in (0, 255):
        assert [(one.code, one.vendor_code) for one in events if isinstance(one, AsyncNotice)] == [(event, 0x33)]
    elif event == 1:
        assert [type(one) for one in events] == [LogoutAsked]
    elif event in (2, 3):
        assert [one.kind for one in events if isinstance(one, ConnectionLost)] == [LossKind.DROPPED] or level == "2"
        assert not target.connection.takes_data
    elif event == 4:
        assert [pdu.opcode for pdu in sent] == [0x04]
    else:
        assert not target.connection.takes_data
    settled(target, command)


@LEVELS
def test_b37_a_flood_of_events_leaves_nothing_behind_but_what_is_told(make: Make, level: str) -> None:
    target = at_level(make, level)
    for _ in range(5000):
        bhs = header(ASYNC, itt=RESERVED, lun=LUN, **target.numbers())
        bhs[36:38] = b"\xff\x01"
        target.give(bhs)
        assert len(target.events()) == 1
    assert len(ping(target)) == 1


# ---- 38: digests


def crc(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, "little")


def with_digests(bhs: bytearray, data: bytes) -> bytearray:
    bhs[5:8] = len(data).to_bytes(3, "big")
    return bytearray(bytes(bhs) + crc(bytes(bhs)) + data + (crc(data) if data else b""))


@LEVELS
@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "last PDU"])
@pytest.mark.parametrize(
    "at", [4, 20, 48, 52, 300, 564], ids=["length", "tag", "CRC", "data", "inside", "data CRC"]
)
def test_b38_a_wrong_bit_completes_nothing_by_itself(make: Make, at: int, last: bool, level: str) -> None:
    target = make(
        keys={"ErrorRecoveryLevel": level, "HeaderDigest": "CRC32C", "DataDigest": "CRC32C"},
        offer=SessionOffer(header_digest=("CRC32C",), data_digest=("CRC32C",), error_recovery_level=2),
        patience=Patience(noop_interval=0.0, recovery=2.0),
    )
    command = target.execute(READ, read=1024)
    (sent,) = target.take_digested(True)
    target.accept(sent)
    stream = bytearray()
    for number in (0, 1):
        numbers = target.numbers(advance=number == 1)
        bhs = header(
            DATA_IN, 0x81 * number, itt=sent.itt, ttt=RESERVED, datasn=number, offset=512 * number, **numbers
        )
        pdu = with_digests(bhs, b"\x5a" * 512)
        assert len(pdu) == 568
        if number == last:
            pdu[at] ^= 0x10
        stream += pdu
    target.feed(bytes(stream))
    assert command.outcome is not Outcome.COMPLETE
    if level == "0":
        assert [event.kind for event in target.events()] == [LossKind.DIGEST]
    settled(target, command)
