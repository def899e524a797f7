# SPDX-License-Identifier: GPL-3.0-or-later
"""Portals and TargetAddress values (RFC 3720 12.8, 13)."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockfleet.model.portal import DEFAULT_PORT, InvalidPortal, Portal, parse_target_address


def test_LGN_45_default_port_is_3260() -> None:
    assert DEFAULT_PORT == 3260
    assert Portal.parse("192.0.2.1").port == 3260


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 3260),
        ("192.0.2.1:860", "192.0.2.1", 860),
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ("2001:DB8::1", "2001:db8::1", 3260),
        ("[2001:db8:0:0:0:0:0:1]", "2001:db8::1", 3260),
        ("[2001:db8::1]:3261", "2001:db8::1", 3261),
        ("[fe80::1%eth0]:3261", "fe80::1%eth0", 3261),
        ("fe80::1%eth0", "fe80::1%eth0", 3260),
        ("[::ffff:192.0.2.1]", str(ipaddress.ip_address("::ffff:192.0.2.1")), 3260),
        ("Storage.Example.COM", "storage.example.com", 3260),
        ("storage.example.com.:3261", "storage.example.com", 3261),
        ("san1", "san1", 3260),
        ("a" * 63 + ".example", "a" * 63 + ".example", 3260),
    ],
)
def test_portal_is_read(text: str, host: str, port: int) -> None:
    portal = Portal.parse(text)
    assert (portal.host, portal.port) == (host, port)
    assert Portal.parse(str(portal)) == portal


@pytest.mark.parametrize(
    ("portal", "text"),
    [
        (Portal("192.0.2.1", 3260), "192.0.2.1:3260"),
        (Portal("2001:db8::1", 3261), "[2001:db8::1]:3261"),
        (Portal("fe80::1%eth0", 3260), "[fe80::1%eth0]:3260"),
        (Portal("san.example.com", 3260), "san.example.com:3260"),
    ],
)
def test_portal_is_shown_so_that_it_can_be_read(portal: Portal, text: str) -> None:
    assert str(portal) == text
    assert Portal.parse(text) == portal


def test_spellings_of_one_address_are_one_portal() -> None:
    spellings = ["[2001:DB8:0::0001]", "2001:db8::1", "[2001:db8::1]:3260", "[2001:0db8:0000::1]:3260"]
    assert len({Portal.parse(text) for text in spellings}) == 1


@pytest.mark.parametrize(
    ("text", "is_address"),
    [("192.0.2.1", True), ("[fe80::1%eth0]", True), ("san.example.com", False), ("san1", False)],
)
def test_addresses_are_told_from_names(text: str, is_address: bool) -> None:
    assert Portal.parse(text).is_address is is_address


MALFORMED = [
    "",
    ":3260",
    "192.0.2.1:",
    "192.0.2.1:0",
    "192.0.2.1:65536",
    "192.0.2.1:70000",
    "192.0.2.1:-1",
    "192.0.2.1:+1",
    "192.0.2.1: 3260",
    "192.0.2.1:x",
    "192.0.2.1:\u0663\u0662",
    "192.0.2.1:99999999999999999999",
    "192.0.2.256",
    "192.0.2",
    "1.2.3.4.5",
    "[2001:db8::1",
    "[2001:db8::1]3260",
    "[2001:db8::1]x:3260",
    "[]:3260",
    "[192.0.2.1]:3260",
    "[san.example.com]:3260",
    "2001:db8::g",
    "-san.example.com",
    "san-.example.com",
    "san..example.com",
    "san example.com",
    "san/../etc",
    "san\n",
    "$(reboot)",
    "a" * 64 + ".example",
    ".".join(["a" * 60] * 5),
]


@pytest.mark.parametrize("text", MALFORMED, ids=repr)
def test_DSC_10_malformed_portals_are_refused(text: str) -> None:
    with pytest.raises(InvalidPortal) as caught:
        Portal.parse(text)
    assert str(caught.value).isprintable()


def test_portal_carries_no_portal_group_tag() -> None:
    with pytest.raises(InvalidPortal, match="portal group tag"):
        Portal.parse("192.0.2.1:3260,1")


@pytest.mark.parametrize(
    ("text", "portal", "tag"),
    [
        ("10.0.0.1:5003,1", Portal("10.0.0.1", 5003), 1),
        ("[1080:0:0:0:8:800:200C:417A],65", Portal("1080::8:800:200c:417a", 3260), 65),
        ("computingcenter.example.com,23", Portal("computingcenter.example.com", 3260), 23),
        ("192.0.2.1,0", Portal("192.0.2.1", 3260), 0),
        ("192.0.2.1,65535", Portal("192.0.2.1", 3260), 65535),
        ("192.0.2.1", Portal("192.0.2.1", 3260), None),
    ],
)
def test_target_address_is_read(text: str, portal: Portal, tag: int | None) -> None:
    assert parse_target_address(text) == (portal, tag)


@pytest.mark.parametrize("tag", ["", "x", "-1", "65536", "1,2", " 1", "99999999999999999999"])
def test_DSC_10_malformed_portal_group_tags_are_refused(tag: str) -> None:
    with pytest.raises(InvalidPortal, match="portal group tag"):
        parse_target_address(f"192.0.2.1:3260,{tag}")


@settings(deadline=None, database=None)
@given(st.text(max_size=60))
def test_text_of_any_kind_is_refused_or_read_back(text: str) -> None:
    try:
        portal = Portal.parse(text)
    except InvalidPortal:
        return
    assert 1 <= portal.port <= 65535
    assert Portal.parse(str(portal)) == portal


@pytest.mark.parametrize("zone", ["$(reboot)", "a b", "a\nb", "x" * 16, "", "../x"])
def test_a_zone_is_an_interface_and_nothing_else(zone: str) -> None:
    with pytest.raises(InvalidPortal):
        Portal.parse(f"[fe80::1%{zone}]")


def test_a_host_name_that_some_resolvers_read_as_an_address_is_refused() -> None:
    with pytest.raises(InvalidPortal):
        Portal.parse("0x7f.0x1")
