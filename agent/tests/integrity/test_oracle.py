# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle itself: what it lets pass and what it finds, told by hand, and for all short histories."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integrity.oracle import BLOCK, Oracle, Stamp, decode, encode, mark

VOLUME = b"volume-0123456ab"


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(VOLUME)


def written(oracle: Oracle, lba: int, *, acknowledge: bool = True, fua: bool = False) -> bytes:
    block = oracle.intend(lba)
    if acknowledge:
        oracle.acknowledged(lba, oracle.register(lba).submitted, durable=fua)
    return block


def test_block_says_what_it_is_and_begins_with_its_mark() -> None:
    block = encode(VOLUME, Stamp(lba=77, writer=3, version=12, epoch=5))
    assert len(block) == BLOCK
    assert decode(VOLUME, block) == Stamp(77, 3, 12, 5)
    assert block.startswith(mark(VOLUME, 77, 3, 12))
    assert not block.startswith(mark(VOLUME, 77, 3, 13))


@pytest.mark.parametrize("at", [8, 30, 47, 55, 57, 2000, 4095])
def test_one_changed_bit_is_found(oracle: Oracle, at: int) -> None:
    block = bytearray(written(oracle, 4))
    block[at] ^= 0x10
    oracle.check(4, oracle.glance(4), bytes(block))
    assert len(oracle.violations) == 1


def test_torn_block_is_found(oracle: Oracle) -> None:
    old, new = written(oracle, 4), written(oracle, 4)
    oracle.check(4, oracle.glance(4), new[:512] + old[512:])
    assert "torn" in oracle.violations[0]


def test_block_may_be_torn_only_while_a_write_runs(oracle: Oracle) -> None:
    old = written(oracle, 4)
    before = oracle.glance(4)
    new = written(oracle, 4)
    torn = new[:512] + old[512:]
    oracle.check(4, before, torn)
    running = written(oracle, 4, acknowledge=False)
    oracle.check(4, oracle.glance(4), running[:512] + new[512:])
    assert (oracle.violations, oracle.mixed) == ([], 2)
    oracle.acknowledged(4, 3)
    oracle.check(4, oracle.glance(4), running[:512] + new[512:])
    assert len(oracle.violations) == 1


def test_never_written_block_is_zeroes_and_later_is_not(oracle: Oracle) -> None:
    oracle.check(9, oracle.glance(9), bytes(BLOCK))
    assert oracle.violations == []
    written(oracle, 9)
    oracle.check(9, oracle.glance(9), bytes(BLOCK))
    assert oracle.violations == ["LBA 9: shows version 0 after version 1 was acknowledged or read"]


def test_ghost_is_an_older_version_after_a_newer_was_acknowledged(oracle: Oracle) -> None:
    lost = written(oracle, 1, acknowledge=False)
    written(oracle, 1)
    oracle.check(1, oracle.glance(1), lost)
    assert oracle.violations == ["LBA 1: shows version 1 after version 2 was acknowledged or read"]


def test_ghost_is_an_older_version_after_a_newer_was_read(oracle: Oracle) -> None:
    old = written(oracle, 1)
    new = written(oracle, 1, acknowledge=False)
    oracle.check(1, oracle.glance(1), old)
    oracle.check(1, oracle.glance(1), new)
    assert oracle.violations == []
    oracle.check(1, oracle.glance(1), old)
    assert len(oracle.violations) == 1


def test_read_that_ran_beside_a_write_may_show_either_version(oracle: Oracle) -> None:
    old = written(oracle, 1)
    before = oracle.glance(1)
    new = written(oracle, 1)
    oracle.check(1, before, old)
    oracle.check(1, before, new)
    assert oracle.violations == []


def test_version_that_failed_may_show_until_a_newer_one_is_acknowledged(oracle: Oracle) -> None:
    old = written(oracle, 1)
    failed = written(oracle, 1, acknowledge=False)
    oracle.failed(1, 2)
    oracle.check(1, oracle.glance(1), old)
    oracle.check(1, oracle.glance(1), failed)
    assert oracle.violations == []
    written(oracle, 1)
    oracle.check(1, oracle.glance(1), failed)
    assert len(oracle.violations) == 1


@pytest.mark.parametrize(
    ("stamp", "volume"),
    [
        (Stamp(6, 1, 1, 1), VOLUME),
        (Stamp(5, 2, 1, 1), VOLUME),
        (Stamp(5, 1, 2, 1), VOLUME),
        (Stamp(5, 1, 1, 1), VOLUME[::-1]),
    ],
    ids=["another LBA", "another writer", "a version that was never written", "another volume"],
)
def test_block_that_does_not_belong_here_is_found(oracle: Oracle, stamp: Stamp, volume: bytes) -> None:
    written(oracle, 5)
    oracle.check(5, oracle.glance(5), encode(volume, stamp))
    assert len(oracle.violations) == 1


def test_power_failure_may_lose_what_no_acknowledged_flush_covers(oracle: Oracle) -> None:
    flushed = written(oracle, 1)
    oracle.flushed(oracle.flush_begins())
    written(oracle, 1)
    oracle.flush_begins()  # is never answered
    oracle.power_failed()
    oracle.check(1, oracle.glance(1), flushed)
    assert oracle.violations == []
    oracle.check(1, oracle.glance(1), bytes(BLOCK))
    assert len(oracle.violations) == 1


def test_flush_does_not_cover_what_was_acknowledged_after_it_began(oracle: Oracle) -> None:
    old = written(oracle, 1)
    epoch = oracle.flush_begins()
    written(oracle, 1)
    oracle.flushed(epoch)
    oracle.power_failed()
    oracle.check(1, oracle.glance(1), old)
    assert oracle.violations == []


def test_failed_flush_leaves_its_writes_to_the_next(oracle: Oracle) -> None:
    old, _new = written(oracle, 1), written(oracle, 1)
    oracle.flush_failed(oracle.flush_begins())
    oracle.flushed(oracle.flush_begins())
    oracle.power_failed()
    oracle.check(1, oracle.glance(1), old)
    assert len(oracle.violations) == 1


def test_fua_outlives_a_power_failure(oracle: Oracle) -> None:
    old, _new = written(oracle, 1), written(oracle, 1, fua=True)
    oracle.power_failed()
    oracle.check(1, oracle.glance(1), old)
    assert len(oracle.violations) == 1


STEPS = st.sampled_from(["write", "lost write", "read", "flush", "lost flush", "power"])


@given(st.lists(STEPS, max_size=12), st.randoms(use_true_random=False))
def test_journal_tells_another_oracle_the_same(steps: list[str], random) -> None:
    journal = io.StringIO()
    first = Oracle(VOLUME, journal=journal)
    blocks = [bytes(BLOCK)]
    for step in steps:
        if step == "write":
            blocks = [written(first, 3, fua=random.random() < 0.2)]
        elif step == "lost write":
            blocks.append(written(first, 3, acknowledge=False))
        elif step == "read":
            at = random.randrange(len(blocks))
            first.check(3, first.glance(3), blocks[at])
            blocks = blocks[at:]
        elif step == "power":
            first.power_failed()
        else:
            epoch = first.flush_begins()
            if step == "flush":
                first.flushed(epoch)
            else:
                first.flush_failed(epoch)
    assert first.violations == []
    second = Oracle(VOLUME)
    second.replay(journal.getvalue().splitlines())
    assert second.register(3) == first.register(3)
    assert (second.epoch, second.glance(3)) == (first.epoch, first.glance(3))


@given(st.lists(st.booleans(), min_size=1, max_size=10), st.data())
def test_of_all_versions_only_those_from_the_last_acknowledged_on_may_show(
    acknowledged: list[bool], data: st.DataObject
) -> None:
    oracle = Oracle(VOLUME)
    versions = [bytes(BLOCK)] + [written(oracle, 2, acknowledge=ack) for ack in acknowledged]
    last = max((n for n, ack in enumerate(acknowledged, 1) if ack), default=0)
    shown = data.draw(st.integers(0, len(acknowledged)))
    oracle.check(2, oracle.glance(2), versions[shown])
    assert bool(oracle.violations) is (shown < last)
