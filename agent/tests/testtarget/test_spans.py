# SPDX-License-Identifier: GPL-3.0-or-later
"""What is missing of a transfer is found whatever came in whatever order."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from blockfleet_testtarget.spans import Spans

SIZE = 40
ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))


@given(st.lists(ranges, max_size=12), ranges)
def test_holes_are_the_bytes_that_were_not_added(added, asked):
    spans, there = Spans(), set()
    for start, end in added:
        spans.add(start, end)
        there |= set(range(start, end))
    holes = spans.holes(*asked)
    assert [byte for start, end in holes for byte in range(start, end)] == [
        byte for byte in range(*asked) if byte not in there
    ]
    assert all(start < end for start, end in holes)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(holes))
