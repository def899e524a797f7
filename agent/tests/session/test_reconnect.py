# SPDX-License-Identifier: GPL-3.0-or-later
"""Back-off grows, is capped, is spread, starts again after success (ERR0-04), is rare after refusals (LGN-32)."""

from __future__ import annotations

from blockfleet.iscsi.reconnect import BackOff


def test_err0_04_delays_double_up_to_five_seconds() -> None:
    back_off = BackOff(lambda: 0.0)
    assert [back_off.failed() for _ in range(9)] == [0.5, 1, 2, 4, 5, 5, 5, 5, 5]


def test_err0_04_a_hundred_failures_are_still_bounded() -> None:
    back_off = BackOff(lambda: 0.999)
    assert max(back_off.failed() for _ in range(100)) < 6.3


def test_err0_04_delays_are_spread_by_up_to_a_quarter() -> None:
    least, most = BackOff(lambda: 0.0), BackOff(lambda: 1.0)
    assert most.failed() == 1.25 * least.failed()


def test_err0_04_a_success_starts_the_delays_again() -> None:
    back_off = BackOff(lambda: 0.0)
    for _ in range(5):
        back_off.failed()
        back_off.refused()
    back_off.succeeded()
    assert (back_off.failed(), back_off.refused()) == (0.5, 30)


def test_sec_23_a_refused_login_is_tried_again_after_half_a_minute_at_the_soonest() -> None:
    back_off = BackOff(lambda: 0.0)
    assert [back_off.refused() for _ in range(7)] == [30, 60, 120, 240, 480, 600, 600]
