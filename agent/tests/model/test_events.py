# SPDX-License-Identifier: GPL-3.0-or-later
"""Event numbers are those of the Microsoft guide where it has the event (Appendix B)."""

from __future__ import annotations

import pytest

from blockfleet.model.events import EVENTS, EventNumber


def test_every_number_of_the_guide_and_no_other_below_1000():
    assert {n for n in map(int, EventNumber) if n < 1000} == {*range(1, 63), *range(102, 122)}


def test_every_event_has_a_severity_and_a_text():
    assert set(EVENTS) == set(EventNumber)
    assert len({kind.name for kind in EVENTS.values()}) == len(EVENTS)
    assert all(kind.text and kind.severity in ("info", "warning", "error") for kind in EVENTS.values())


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "TCP"),
        (9, "SCSI"),
        (12, "redirect"),
        (17, "mutual secret"),
        (20, "lost"),
        (28, "R2T"),
        (34, "back"),
        (39, "reset"),
        (42, "StatSN"),
        (48, "ping"),
        (59, "closed the connection"),
        (62, "DataSequenceInOrder"),
        (103, "in time"),
        (113, "SendTargets"),
        (116, "in use"),
    ],
)
def test_a_number_means_what_the_guide_says(number, word):
    assert word in EVENTS[EventNumber(number)].text
