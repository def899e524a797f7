# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench measures what it says, and compares only what was measured in one round."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from tests.bench.__main__ import main, order_of
from tests.bench.report import Result
from tests.bench.rows import QUICK, ROWS, Row, Sample


def samples(*rates: float) -> list[Sample]:
    return [Sample(rate, 1 / rate) for rate in rates]


def test_ratio_is_the_median_of_the_rounds_and_not_of_the_sides():
    """A machine that is twice as slow in one round is so for both sides."""
    result = Result(Row("volume", "read", 4096, 1), samples(100, 50, 90), samples(200, 100, 100))
    assert result.ratio == 0.5
    assert result.spread == pytest.approx((0.9 - 0.5) / 0.5)
    row = result.as_json()
    assert (row["ours"], row["peer"]) == (90, 100)
    assert row["cpu_ours"] == pytest.approx(1e6 / 90, abs=0.01)
    assert "before" not in row


def test_other_checkout_is_compared_round_by_round():
    row = Result(Row("volume", "read", 4096, 1), samples(100, 300), samples(1, 1), samples(200, 200)).as_json()
    assert (row["before"], row["change"]) == (200, 1.0)


@pytest.mark.parametrize("sides", [["ours", "peer"], ["ours", "before", "peer"]], ids=len)
def test_each_side_is_as_often_in_each_place_and_after_each_other_side(sides):
    rounds = [order_of(sides, turn) for turn in range(2 * len(sides))]
    for place in range(len(sides)):
        assert Counter(order[place] for order in rounds) == dict.fromkeys(sides, 2)
    follows = Counter(pair for order in rounds for pair in itertools.pairwise(order))
    assert follows == dict.fromkeys(itertools.permutations(sides, 2), 2)


def test_rows_are_named_apart_and_the_quick_ones_are_among_them():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(QUICK) < set(ROWS)
    assert "volume write 64 KiB depth 8" in names


def test_pattern_that_finds_no_row_is_told_what_there_is(capsys):
    with pytest.raises(SystemExit, match="volume read 4 KiB depth 1"):
        main(["--rows", "nothing like this"])
    del capsys


@pytest.mark.peer
@pytest.mark.parametrize(
    "pattern",
    [
        "^initiator read 64 KiB depth 8$",
        "^volume read 4 KiB depth 32$",
        "^volume write 64 KiB depth 8$",
        "^export read 4 KiB depth 32$",
    ],
)
def test_one_row_of_each_kind_is_measured_on_both_sides(pattern, tmp_path, capsys):
    file = tmp_path / "bench.json"
    arguments = ["--rows", pattern, "--rounds", "1", "--seconds", "0.5", "--json", str(file)]
    assert main(arguments) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["ours"] > 100
    assert row["peer"] > 100
    assert 0 < row["cpu_ours"] < 10_000
    assert 0 < row["cpu_peer"] < 10_000
    assert row["name"] in capsys.readouterr().out
    assert main([*arguments, "--against", str(file)]) == 0
    assert "ratio then" in capsys.readouterr().out
