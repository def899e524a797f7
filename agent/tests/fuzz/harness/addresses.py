# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, portals, target addresses and LUNs, from peers and from people."""

from __future__ import annotations

from tests.fuzz.harness.base import Harness
from tests.fuzz.source import Source

from blockfleet.model import names
from blockfleet.model.portal import InvalidPortal, Portal, parse_target_address
from blockfleet.scsi import lun


def _name(text: str) -> None:
    try:
        name = names.normalise(text)
    except names.InvalidName as error:
        assert len(str(error)) < 1000
        return
    assert names.normalise(name) == name
    assert len(name.encode()) <= names.MAXIMUM_LENGTH
    assert name.isprintable()
    assert not set("/\\ \0\n\r%$`'\"") & set(name)


def _address(text: str) -> None:
    try:
        portal, tag = parse_target_address(text)
    except InvalidPortal as error:
        assert len(str(error)) < 1000
        return
    assert 1 <= portal.port <= 65535
    assert tag is None or 0 <= tag <= 65535
    assert parse_target_address(str(portal)) == (portal, None)


def _portal(text: str) -> None:
    try:
        portal = Portal.parse(text)
    except InvalidPortal:
        return
    assert Portal.parse(str(portal)) == portal
    assert portal.host.isprintable()
    assert not set("/\\ \0\n\r$`'\"") & set(portal.host)


def _lun(text: str) -> None:
    number = int.from_bytes(text.encode("utf-8", "replace")[:8], "big")
    described = lun.decode(number)
    assert lun.describe(number)
    if described.number is not None and described.form in (lun.Form.PERIPHERAL, lun.Form.EXTENDED):
        assert lun.decode(lun.encode(described.number)).number == described.number


_PARTS = (_name, _address, _portal, _lun)


def test_one_input(data: bytes) -> None:
    """Let the first byte say what the text that follows shall be."""
    source = Source(data)
    source.choose(_PARTS)(source.rest().decode("utf-8", "replace"))


HARNESS = Harness(
    "addresses",
    "names, portals, addresses, LUNs",
    test_one_input,
    maximum_length=512,
    tokens=(b"iqn.2026-11.com.example:", b"eui.", b"naa.", b"[::1]", b"[fe80::1%eth0]:3260", b",65535", b"0x7f.1"),
)
