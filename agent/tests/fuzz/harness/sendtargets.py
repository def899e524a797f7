# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to SendTargets, cut anywhere, and what discovery makes of it."""

from __future__ import annotations

import contextlib

from tests.fuzz.harness.base import Harness
from tests.fuzz.source import Source

from blockfleet.discovery.found import MAXIMUM_FOUND, FoundPortal, collect
from blockfleet.iscsi.sendtargets import MAXIMUM_WARNINGS, SendTargetsError, SendTargetsReader
from blockfleet.model import names
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.portal import Portal, parse_target_address

_ASKED = (Portal("192.0.2.7", 3260), Portal("fe80::1%eth0", 860), Portal("target.example", 3260))
_WORDS = (
    b"TargetName=", b"TargetAddress=", b"iqn.2026-11.com.example:", b"eui.0123456789abcdef", b"192.0.2.1", b":3260",
    b",1", b"[2001:db8::1]", b"[fe80::2]", b"\0", b"../", b"\n", b"SendTargets=Reject", b"X-a=b", b"\xc3\xa9",
    b"%eth0", b"=",
)  # fmt: skip


def test_one_input(data: bytes) -> None:
    """Feed an answer made of words and raw bytes in chunks of any size."""
    source = Source(data)
    portal = source.choose(_ASKED)
    reader = SendTargetsReader(portal, source.choose((None, 0, 65535)))
    chunk = source.choose((1, 3, 64, 8192))
    answer = bytearray()
    while source.left:
        kind = source.number()
        answer += _WORDS[kind % len(_WORDS)] if kind < 200 else source.take(kind - 199)
    with contextlib.suppress(SendTargetsError):
        for at in range(0, len(answer), chunk):
            reader.feed(bytes(answer[at : at + chunk]))
        reader.finish()
    _check(reader, len(answer))


def _check(reader: SendTargetsReader, size: int) -> None:
    records = reader.records()
    # A name has 13 bytes at least, an address 15 with its key: what is found cannot be more than what was sent.
    assert len(records) * 13 <= size
    assert len(reader.warnings) <= min(reader.dropped, MAXIMUM_WARNINGS)
    for record in records:
        assert names.normalise(record.name) == record.name
        for portal, tag in record.portals:
            text = f"{portal},{tag}" if tag is not None else str(portal)
            assert parse_target_address(text) == (portal, tag)
            assert portal.host.isprintable()
    found = [FoundPortal(record.name, portal, tag) for record in records for portal, tag in record.portals]
    with contextlib.suppress(BlockfleetError):
        assert len(collect(found, "the test")) <= MAXIMUM_FOUND
    assert all(warning.isprintable() for warning in reader.warnings), reader.warnings


HARNESS = Harness("sendtargets", "answers to SendTargets", test_one_input, tokens=_WORDS)
