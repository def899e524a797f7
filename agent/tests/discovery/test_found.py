# SPDX-License-Identifier: GPL-3.0-or-later
"""What a discovery yields, whoever it asked."""

from __future__ import annotations

import pytest

from blockfleet.discovery.found import MAXIMUM_FOUND, FoundPortal, collect
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal

A, B = "iqn.2026-11.com.example:a", "iqn.2026-11.com.example:b"


def test_answer_is_sorted_whatever_the_order_of_the_source() -> None:
    found = [
        FoundPortal(B, Portal("192.0.2.1"), 1),
        FoundPortal(A, Portal("192.0.2.9"), 2),
        FoundPortal(A, Portal("192.0.2.1", 3261), 2),
        FoundPortal(A, Portal("192.0.2.1"), 3),
    ]
    expected = tuple(reversed(found))
    assert collect(found, "x") == expected
    assert collect(expected, "x") == expected


def test_pair_of_target_and_portal_is_there_once_and_a_known_tag_wins() -> None:
    portal = Portal("192.0.2.1")
    assert collect([FoundPortal(A, portal, None), FoundPortal(A, portal, 7)], "x") == (FoundPortal(A, portal, 7),)
    assert collect([FoundPortal(A, portal, 7), FoundPortal(A, portal, None)], "x") == (FoundPortal(A, portal, 7),)


def test_answer_over_the_limit_is_an_error_not_a_part_of_it() -> None:
    flood = [FoundPortal(A, Portal("192.0.2.1", 1 + n)) for n in range(MAXIMUM_FOUND)]
    assert len(collect(flood, "x")) == MAXIMUM_FOUND
    with pytest.raises(BlockfleetError, match=r"portal 192\.0\.2\.1:3260 shows more than 16384") as caught:
        collect([*flood, FoundPortal(B, Portal("192.0.2.1"))], "portal 192.0.2.1:3260")
    assert caught.value.code is Isdsc.OUT_OF_RESOURCES
