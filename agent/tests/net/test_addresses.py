# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a redirect may lead (row ROB-10)."""

from __future__ import annotations

import pytest

from blockfleet.model.portal import Portal
from blockfleet.net.addresses import redirect_allowed


@pytest.mark.parametrize(
    ("origin", "moved_to", "allowed"),
    [
        ("192.0.2.1", "192.0.2.2", True),
        ("192.0.2.1", "2001:db8::2", True),
        ("192.0.2.1", "127.0.0.1", False),
        ("192.0.2.1", "::1", False),
        ("192.0.2.1", "169.254.169.254", False),
        ("192.0.2.1", "fe80::1%eth0", False),
        ("192.0.2.1", "224.0.0.1", False),
        ("192.0.2.1", "ff02::1", False),
        ("192.0.2.1", "0.0.0.0", False),
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "::1", True),
        ("fe80::2%eth0", "fe80::1%eth0", True),
        ("array.example", "127.0.0.1", False),
    ],
)
def test_rob_10_a_redirect_leads_nowhere_that_no_portal_is(origin: str, moved_to: str, allowed: bool) -> None:
    assert redirect_allowed(Portal(origin), moved_to) is allowed
