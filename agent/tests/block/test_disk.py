# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk over SCSI: how requests become commands, what is durable when, and which errno comes back."""

from __future__ import annotations

import errno
import random
from dataclasses import replace
from typing import Any

import pytest

from blockfleet.block.device import BlockRequest, Operation
from blockfleet.block.limits import Limits, whole_units
from blockfleet.scsi.command import Outcome
from blockfleet.scsi.vpd import BlockLimits, Provisioning

READ, WRITE, FLUSH, TRIM, ZERO = Operation
R10, W10, R16, W16, SYNC, SYNC16, UNMAP, SAME = 0x28, 0x2A, 0x88, 0x8A, 0x35, 0x91, 0x42, 0x93


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def test_a_write_and_a_read_are_one_command_each(bench: Any) -> None:
    bench.build()
    data = pattern(4096)
    bench.submit(WRITE, 8192, data=data)
    request = bench.submit(READ, 8192, 4096)
    assert bytes(request.buffer) == data
    assert [c.hex() for c in bench.unit.cdbs] == ["2a000000001000000800", "28000000001000000800"]
    assert [r.error for r in bench.done] == [0, 0]
    assert bench.unit.commands[0].lun == 3 << 48


def test_a_request_beyond_the_units_limit_is_cut_and_ends_once(bench: Any) -> None:
    bench.build()
    data = pattern(150 * 512)
    bench.submit(WRITE, 512, data=data)
    request = bench.submit(READ, 512, len(data))
    assert bytes(request.buffer) == data
    assert [int.from_bytes(c[7:9], "big") for c in bench.unit.cdbs] == [64, 64, 22] * 2
    assert len(bench.done) == 2


def test_a_cut_request_ends_when_its_last_command_does(bench: Any) -> None:
    bench.build()
    bench.unit.hold = True
    bench.submit(READ, 0, 100 * 512)
    first, second = bench.unit.commands
    bench.unit.run(second)
    assert bench.done == []
    bench.unit.run(first)
    assert len(bench.done) == 1


def test_one_failed_command_fails_the_whole_request(bench: Any) -> None:
    bench.build()
    bench.unit.fail(R10, "03/11/00")
    request = bench.submit(READ, 0, 100 * 512)
    assert request.error == errno.EIO
    assert len(bench.done) == 1


def test_a_disk_of_more_than_2_tib_uses_16_byte_commands(bench: Any) -> None:
    bench.build(blocks=(1 << 32) + 8)
    bench.submit(READ, (1 << 32) * 512, 512)
    bench.submit(WRITE, (1 << 32) * 512, data=bytes(512), fua=True)
    bench.submit(READ, 0, 100 * 512)
    bench.submit(FLUSH)
    assert [c.hex() for c in bench.unit.cdbs] == [
        "88000000000100000000000000010000",
        "8a080000000100000000000000010000",
        "88000000000000000000000000400000",
        "88000000000000000040000000240000",
        "91000000000000000000000000000000",
    ]


def test_a_disk_of_exactly_2_tib_still_fits_10_byte_commands(bench: Any) -> None:
    bench.build(blocks=1 << 32)
    bench.submit(READ, ((1 << 32) - 1) * 512, 512)
    assert bench.unit.cdbs[0].hex() == "2800ffffffff00000100"


@pytest.mark.parametrize(
    ("operation", "offset", "length", "error"),
    [
        (READ, 4096 * 512, 512, errno.EINVAL),
        (READ, 4095 * 512, 1024, errno.EINVAL),
        (WRITE, 4095 * 512, 1024, errno.ENOSPC),
        (TRIM, 4095 * 512, 1024, errno.EINVAL),
        (ZERO, 4095 * 512, 1024, errno.ENOSPC),
        (READ, 1, 512, errno.EINVAL),
        (READ, 0, 511, errno.EINVAL),
        (WRITE, 256, 512, errno.EINVAL),
        (TRIM, 0, 100, errno.EINVAL),
        (READ, -512, 512, errno.EINVAL),
        (READ, 0, -512, errno.EINVAL),
        (READ, 0, 0, 0),
        (TRIM, 0, 0, 0),
        (9, 0, 512, errno.EOPNOTSUPP),
    ],
)
def test_what_a_disk_does_not_take(bench: Any, operation: int, offset: int, length: int, error: int) -> None:
    """NBD: writes past the end are ENOSPC, everything else past the end EINVAL."""
    bench.build()
    data = bytes(length) if operation == WRITE else None
    assert bench.submit(operation, offset, length, data).error == error
    assert bench.unit.cdbs == []
    assert len(bench.done) == 1


def test_a_buffer_of_another_length_is_refused(bench: Any) -> None:
    bench.build()
    for buffer in (None, memoryview(bytearray(511))):
        request = BlockRequest(READ, 0, 512, bench.done.append, buffer=buffer)
        bench.disk.submit(request)
        assert request.error == errno.EINVAL


@pytest.mark.parametrize("how", ["asked for", "write protected"])
@pytest.mark.parametrize("operation", [WRITE, TRIM, ZERO])
def test_read_only(bench: Any, how: str, operation: int) -> None:
    bench.build(read_only=how == "asked for")
    if how == "write protected":
        bench.disk.update(replace(bench.profile, read_only=True))
    data = bytes(512) if operation == WRITE else None
    assert bench.submit(operation, 0, 512, data).error == errno.EPERM
    assert bench.disk.geometry.read_only
    assert not bench.disk.geometry.can_trim
    assert bench.submit(READ, 0, 512).error == 0


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ("03/11/00", errno.EIO),
        ("04/44/00", errno.EIO),
        ("05/24/00", errno.EIO),
        ("05/20/00", errno.EOPNOTSUPP),
        ("07/27/00", errno.EPERM),
        ("07/27/07", errno.ENOSPC),
        ("06/29/00", errno.EIO),
        ("0b/00/00", errno.EIO),
    ],
)
def test_errno_by_condition(bench: Any, numbers: str, error: int) -> None:
    bench.build()
    bench.unit.fail(W10, numbers)
    assert bench.submit(WRITE, 0, data=bytes(512)).error == error


@pytest.mark.parametrize("outcome", [Outcome.NOT_SENT, Outcome.ABORTED, Outcome.UNKNOWN, Outcome.REFUSED])
def test_what_was_not_answered_is_an_io_error(bench: Any, outcome: Outcome) -> None:
    bench.build()
    bench.unit.end(R10, outcome=outcome)
    assert bench.submit(READ, 0, 512).error == errno.EIO


def test_good_with_too_little_data_is_an_io_error(bench: Any) -> None:
    bench.build()
    bench.unit.end(R10, outcome=Outcome.COMPLETE, data_in_count=256, residual=256)
    assert bench.submit(READ, 0, 512).error == errno.EIO
    bench.unit.end(R10, outcome=Outcome.COMPLETE, data_in_count=256)
    assert bench.submit(READ, 0, 512).error == errno.EIO
    bench.unit.end(W10, outcome=Outcome.COMPLETE, residual=512)
    assert bench.submit(WRITE, 0, data=bytes(512)).error == errno.EIO


def test_recovered_data_are_data(bench: Any) -> None:
    bench.build()
    sense = bytes.fromhex("7201170100000000")
    bench.unit.end(R10, outcome=Outcome.COMPLETE, status=2, sense=sense, data_in_count=512)
    assert bench.submit(READ, 0, 512).error == 0


def test_an_errno_does_not_stick_to_a_request_that_is_used_again(bench: Any) -> None:
    bench.build()
    bench.unit.fail(R10, "03/11/00")
    request = bench.submit(READ, 0, 512)
    assert request.error == errno.EIO
    bench.disk.submit(request)
    assert request.error == 0


# --- durability -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "commands"), [(True, [SYNC]), (None, [SYNC]), (False, [])])
def test_flush_by_write_cache(bench: Any, cache: bool | None, commands: list[int]) -> None:
    bench.build(write_cache=cache)
    assert bench.submit(FLUSH).error == 0
    assert bench.unit.opcodes() == commands


def test_flush_covers_the_whole_unit(bench: Any) -> None:
    bench.build()
    bench.submit(FLUSH)
    assert bench.unit.cdbs[0].hex() == "35000000000000000000"


@pytest.mark.parametrize(("cache", "error"), [(True, errno.EIO), (None, 0)])
def test_flush_that_the_unit_does_not_know(bench: Any, cache: bool | None, error: int) -> None:
    """A unit that has no SYNCHRONIZE CACHE has no cache either, unless it said that it has."""
    bench.build(write_cache=cache)
    bench.unit.fail(SYNC, "05/20/00")
    assert bench.submit(FLUSH).error == error


def test_fua_is_a_bit_where_the_unit_takes_it(bench: Any) -> None:
    bench.build()
    bench.submit(WRITE, 0, data=bytes(1024), fua=True)
    bench.submit(WRITE, 0, data=bytes(100 * 512), fua=True)
    assert {c[1] for c in bench.unit.cdbs} == {0x08}
    assert bench.unit.opcodes() == [W10] * 3


@pytest.mark.parametrize("length", [1024, 100 * 512], ids=["one command", "cut"])
def test_fua_is_a_flush_of_the_range_where_the_unit_does_not(bench: Any, length: int) -> None:
    bench.build(dpofua=False)
    bench.unit.hold = True
    bench.submit(WRITE, 4096, data=bytes(length), fua=True)
    for command in list(bench.unit.commands):
        bench.unit.run(command)
    assert bench.done == []
    flush = bench.unit.commands[-1]
    assert flush.cdb == bytes.fromhex(f"350000000008 00 {length // 512:04x} 00")
    bench.unit.run(flush)
    assert [r.error for r in bench.done] == [0]


def test_fua_without_a_volatile_cache_needs_no_flush(bench: Any) -> None:
    bench.build(dpofua=False, write_cache=False)
    bench.submit(WRITE, 0, data=bytes(512), fua=True)
    assert bench.unit.opcodes() == [W10]


def test_fua_whose_flush_fails_is_an_error(bench: Any) -> None:
    bench.build(dpofua=False)
    bench.unit.fail(SYNC, "03/0c/00")
    assert bench.submit(WRITE, 0, data=bytes(512), fua=True).error == errno.EIO


@pytest.mark.parametrize("operation", [TRIM, ZERO])
def test_fua_holds_for_trim_and_zeroes(bench: Any, operation: int) -> None:
    bench.build()
    assert bench.submit(operation, 0, 4096, fua=True).error == 0
    assert bench.unit.opcodes()[-1] == SYNC


def test_flush_fails_after_the_cache_was_lost_until_somebody_knows(bench: Any) -> None:
    """Acknowledged and unflushed writes may be gone: every flush fails, not just the next one."""
    bench.build()
    bench.submit(WRITE, 0, data=bytes(512))
    assert bench.disk.unflushed
    assert bench.disk.cache_lost()
    assert [bench.submit(FLUSH).error for _ in range(3)] == [errno.EIO] * 3
    bench.disk.acknowledge_loss()
    assert bench.submit(FLUSH).error == 0


def test_a_lost_cache_without_unflushed_writes_is_no_loss(bench: Any) -> None:
    bench.build()
    bench.submit(WRITE, 0, data=bytes(512))
    bench.submit(FLUSH)
    bench.submit(WRITE, 0, data=bytes(512), fua=True)
    assert not bench.disk.cache_lost()
    assert bench.submit(FLUSH).error == 0
    bench.build(write_cache=False)
    bench.submit(WRITE, 0, data=bytes(512))
    assert not bench.disk.cache_lost()


def test_a_cache_lost_during_a_flush_fails_that_flush(bench: Any) -> None:
    bench.build()
    bench.submit(WRITE, 0, data=bytes(512))
    bench.unit.hold = True
    flush = bench.submit(FLUSH)
    bench.disk.cache_lost()
    bench.unit.run(bench.unit.commands[-1])
    assert flush.error == errno.EIO


def test_a_flush_does_not_count_for_writes_acknowledged_after_it_was_sent(bench: Any) -> None:
    bench.build()
    bench.submit(WRITE, 0, data=bytes(512))
    bench.unit.hold = True
    bench.submit(FLUSH)
    flush = bench.unit.commands[-1]
    bench.unit.hold = False
    bench.submit(WRITE, 512, data=bytes(512))
    bench.unit.run(flush)
    assert bench.disk.unflushed


# --- trim and zeroes --------------------------------------------------------------------------------------


def test_trim_is_unmap_within_the_units_limit(bench: Any) -> None:
    bench.build()
    assert bench.submit(TRIM, 512, 250 * 512).error == 0
    assert [c.data_out[8:20].hex() for c in bench.unit.commands] == [
        "000000000000000100000064",
        "000000000000006500000064",
        "00000000000000c900000032",
    ]
    assert not any(bench.unit.medium[512 : 251 * 512])
    assert bench.unit.medium[251 * 512] == 0xA5


def test_the_residual_that_tgt_reports_for_a_parameter_list_is_no_error(bench: Any) -> None:
    bench.build()
    bench.unit.end(UNMAP, outcome=Outcome.COMPLETE, residual=24)
    assert bench.submit(TRIM, 0, 512).error == 0
    bench.unit.fail(UNMAP, "05/24/00")
    assert bench.submit(TRIM, 0, 512).error == errno.EIO


@pytest.mark.parametrize(
    "changes",
    [
        {"thin": False},
        {"provisioning": Provisioning()},
        {"limits": BlockLimits(maximum_unmap_blocks=10)},
        {"limits": BlockLimits(maximum_unmap_descriptors=1)},
    ],
    ids=["not thin", "no LBPU", "no descriptors", "no blocks"],
)
def test_trim_is_not_offered_where_the_unit_cannot(bench: Any, changes: dict[str, Any]) -> None:
    bench.build(**changes)
    assert not bench.disk.geometry.can_trim
    assert bench.submit(TRIM, 0, 4096).error == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("first", "count", "granularity", "alignment", "expected"),
    [
        (0, 100, 1, 0, (0, 100)),
        (3, 20, 8, 0, (8, 8)),
        (3, 20, 8, 3, (3, 16)),
        (1, 6, 8, 0, (8, 0)),
        (8, 8, 8, 0, (8, 8)),
        (0, 9, 8, 4, (4, 0)),
    ],
)
def test_trim_keeps_to_whole_units(
    first: int, count: int, granularity: int, alignment: int, expected: tuple[int, int]
) -> None:
    """SBC-3 4.7.3.4: units begin at LBA = n * granularity + alignment."""
    limits = Limits(64, 64, 64, granularity, alignment, 4096)
    assert whole_units(first, count, limits) == expected


@pytest.mark.parametrize(("may_unmap", "flags"), [(False, 0), (True, 0x08)])
def test_zeroes_are_write_same_and_unmap_only_when_allowed(bench: Any, may_unmap: bool, flags: int) -> None:
    bench.build()
    assert bench.submit(ZERO, 512, 200 * 512, may_unmap=may_unmap).error == 0
    assert [(c[0], c[1], int.from_bytes(c[10:14], "big")) for c in bench.unit.cdbs] == [
        (SAME, flags, 128),
        (SAME, flags, 72),
    ]
    assert not any(bench.unit.medium[512 : 201 * 512])


@pytest.mark.parametrize(
    "provisioning",
    [Provisioning(True, True, False), Provisioning(True, False, True)],
    ids=["reads other than zeroes", "no LBPWS"],
)
def test_zeroes_are_not_unmapped_where_that_would_not_read_as_zeroes(
    bench: Any, provisioning: Provisioning
) -> None:
    bench.build(provisioning=provisioning)
    bench.submit(ZERO, 0, 4096, may_unmap=True)
    assert bench.unit.cdbs[0][1] == 0


@pytest.mark.parametrize("numbers", ["05/20/00", "05/24/00"])
def test_zeroes_are_written_where_write_same_is_unknown(bench: Any, numbers: str) -> None:
    bench.build()
    bench.unit.fail(SAME, numbers)
    assert bench.submit(ZERO, 0, 100 * 512).error == 0
    assert bench.unit.opcodes() == [SAME, W10, W10]
    assert not any(bench.unit.medium[: 100 * 512])
    bench.submit(ZERO, 0, 512)
    assert bench.unit.opcodes()[3:] == [W10]
    assert len(bench.done) == 2


def test_zeroes_are_written_in_full_when_only_a_part_was_refused(bench: Any) -> None:
    bench.build()
    bench.unit.hold = True
    bench.submit(ZERO, 0, 300 * 512)
    first, second, third = list(bench.unit.commands)
    bench.unit.run(first)
    bench.unit.fail(SAME, "05/24/00")
    bench.unit.run(second)
    bench.unit.hold = False
    bench.unit.run(third)
    assert [r.error for r in bench.done] == [0]
    assert not any(bench.unit.medium[: 300 * 512])


def test_zeroes_that_fail_are_an_error(bench: Any) -> None:
    bench.build()
    bench.unit.fail(SAME, "07/27/07")
    assert bench.submit(ZERO, 0, 4096).error == errno.ENOSPC


# --- geometry ---------------------------------------------------------------------------------------------


def test_geometry(bench: Any) -> None:
    geometry = bench.build().disk.geometry
    assert (geometry.size, geometry.block_size, geometry.preferred_block_size) == (4096 * 512, 512, 4096)
    assert geometry.can_trim
    assert geometry.can_fua
    assert geometry.maximum_transfer == 32 << 20


def test_growing_and_shrinking(bench: Any) -> None:
    bench.build()
    bench.disk.update(replace(bench.profile, blocks=8192))
    assert bench.submit(READ, 5000 * 512, 512).error == 0
    bench.disk.update(replace(bench.profile, blocks=100))
    assert bench.submit(READ, 100 * 512, 512).error == errno.EINVAL
    assert bench.disk.geometry.size == 100 * 512


def test_another_block_size_is_another_disk(bench: Any) -> None:
    bench.build()
    with pytest.raises(ValueError, match="block size"):
        bench.disk.update(replace(bench.profile, block_size=4096))
