# SPDX-License-Identifier: GPL-3.0-or-later
"""What a logical unit says of itself: INQUIRY, VPD, REPORT LUNS, MODE SENSE, READ CAPACITY, RTPG, sense."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.harness.base import Harness
from tests.fuzz.source import Source

from blockfleet.scsi import alua, capacity, condition, designation, inquiry, lun, mode, sense, vpd

_PAGES = (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2)


def _inquiry(data: bytes) -> None:
    found = inquiry.parse(data)
    if found is not None:
        text = found.vendor + found.product + found.revision
        assert text.isascii()
        assert text.isprintable() or not text
        assert isinstance(found.is_present or found.is_management, bool)


def _designators(data: bytes) -> None:
    found = vpd.designators(data)
    assert len(found) <= vpd.MAXIMUM_DESIGNATORS
    assert sum(len(one.value) for one in found) <= len(data)
    identity = designation.strongest(found)
    assert identity.isascii()
    assert " " not in identity
    assert identity.isprintable() or not identity
    assert len(identity.partition(".")[2]) <= designation.MAXIMUM_TEXT
    for number in (vpd.target_port_group(found), vpd.relative_target_port(found)):
        assert number is None or 0 <= number <= 0xFFFF


def _pages(data: bytes) -> None:
    assert len(vpd.supported_pages(data)) <= 256
    assert vpd.serial_number(data).isascii()
    limits = vpd.block_limits(data)
    assert limits.maximum_write_same >= 0
    assert isinstance(vpd.is_rotational(data), bool)
    assert isinstance(vpd.provisioning(data).unmap, bool)


def _luns(data: bytes) -> None:
    found = lun.parse_report_luns(data)
    assert len(found) == len(set(found)) <= min(lun.MAXIMUM_LUNS, len(data) // 8)
    assert all(lun.describe(one) for one in found)


def _modes(data: bytes) -> None:
    for parse in (mode.parse_6, mode.parse_10):
        found = parse(data)
        assert found is None or found.write_cache in (None, True, False)


def _capacity(data: bytes) -> None:
    for parse in (capacity.parse_10, capacity.parse_16):
        found = parse(data)
        if found is not None:
            assert 0 <= found.protection <= 8
            assert found.blocks >= 1
            assert not found.is_usable or found.size >= found.block_size


def _groups(data: bytes) -> None:
    found = alua.parse(data)
    assert len(found.groups) <= alua.MAXIMUM_GROUPS
    assert sum(len(group.ports) for group in found.groups) <= len(data)
    assert 0 < found.transition <= 255


def _sense(data: bytes) -> None:
    found = sense.parse(data)
    if found is not None:
        assert len(sense.describe(found)) < 200
    for status in (0x00, 0x02, 0x08, 0x18, 0x28, data[0] if data else 0xFF):
        disposition = condition.classify(status, data)
        assert disposition.cause
        assert disposition.action is not condition.Action.DONE or not disposition.error


_PARSERS: tuple[Callable[[bytes], None], ...] = (
    _inquiry,
    _designators,
    _pages,
    _luns,
    _modes,
    _capacity,
    _groups,
    _sense,
)


def test_one_input(data: bytes) -> None:
    """Let the first byte choose the parser; VPD pages get a header of their kind unless it says otherwise."""
    source = Source(data)
    kind = source.number()
    parse = _PARSERS[kind % len(_PARSERS)]
    body = source.rest()
    if parse in (_designators, _pages) and kind < 0x80:
        page = _PAGES[kind // len(_PARSERS) % len(_PAGES)] if parse is _pages else 0x83
        body = bytes((0, page)) + len(body).to_bytes(2, "big") + body
    parse(body)


HARNESS = Harness("scsi", "SCSI parameter and sense data", test_one_input)
