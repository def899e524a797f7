# SPDX-License-Identifier: GPL-3.0-or-later
"""CRC32C digests against the examples of RFC 3720 appendix B.4 (conformance row ERR1-01)."""

from __future__ import annotations

import pytest

from blockfleet.iscsi.digest import data_digest, digest, digest_of, matches

READ_10 = bytes.fromhex(
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
)

B4 = [
    pytest.param(bytes(32), "aa36918a", id="ERR1-01-zeroes"),
    pytest.param(b"\xff" * 32, "43aba862", id="ERR1-01-ones"),
    pytest.param(bytes(range(32)), "4e79dd46", id="ERR1-01-incrementing"),
    pytest.param(bytes(range(31, -1, -1)), "5cdb3f11", id="ERR1-01-decrementing"),
    pytest.param(READ_10, "563a96d9", id="ERR1-01-SCSI-read"),
]


@pytest.mark.parametrize(("segment", "wire"), B4)
def test_digest_of_the_rfc_examples(segment: bytes, wire: str) -> None:
    assert digest(segment).hex() == wire
    assert digest(memoryview(bytearray(segment))).hex() == wire
    assert matches(segment, bytes.fromhex(wire))


@pytest.mark.parametrize(("segment", "wire"), B4)
def test_digest_of_a_segment_in_parts_is_that_of_the_whole(segment: bytes, wire: str) -> None:
    assert digest_of([segment[:5], segment[5:5], segment[5:]]).hex() == wire


def test_one_changed_bit_shows() -> None:
    changed = bytearray(READ_10)
    changed[20] ^= 0x10
    assert not matches(changed, bytes.fromhex("563a96d9"))


@pytest.mark.parametrize("length", [29, 30, 31, 32])
def test_data_digest_covers_the_zero_padding(length: int) -> None:
    # 32 bytes of zeroes have the digest of appendix B.4 however many of them are padding.
    assert data_digest(bytes(length)).hex() == "aa36918a"
