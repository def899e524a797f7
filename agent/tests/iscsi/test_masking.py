# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace shows a CHAP login but for the response (RFC 3720 11.1.4)."""

from __future__ import annotations

import pytest

from blockfleet.iscsi.masking import LoginMask

SECURITY, CONTINUED = 0x00, 0x40


def login(text: bytes, *, opcode: int = 0x43, flags: int = SECURITY) -> bytes:
    head = bytes((opcode, flags, 0, 0, 0)) + len(text).to_bytes(3, "big")
    return head.ljust(48, b"\x11") + text + bytes(-len(text) % 4)


@pytest.mark.parametrize("opcode", [0x43, 0x23], ids=["request", "response"])
def test_sec_the_response_is_masked_and_all_else_stays(opcode: int) -> None:
    text = b"CHAP_N=host\0CHAP_R=0x0123456789abcdef\0CHAP_I=7\0CHAP_C=0xfeed\0"
    masked = LoginMask()(login(text, opcode=opcode))
    wanted = b"CHAP_N=host\0CHAP_R=" + b"*" * 18 + b"\0CHAP_I=7\0CHAP_C=0xfeed\0"
    assert masked == login(wanted, opcode=opcode)


@pytest.mark.parametrize("cut", range(1, 40))
def test_sec_a_response_that_goes_on_in_the_next_pdu_is_masked_wherever_it_is_cut(cut: int) -> None:
    text = b"CHAP_N=host\0CHAP_R=0x0123456789abcdef\0X=y\0"
    mask = LoginMask()
    first, second = mask(login(text[:cut], flags=CONTINUED)), mask(login(text[cut:]))
    joined = first[48 : 48 + cut] + second[48 : 48 + len(text) - cut]
    assert joined == b"CHAP_N=host\0CHAP_R=" + b"*" * 18 + b"\0X=y\0"


def test_sec_a_pair_without_its_end_does_not_hide_the_next_response() -> None:
    mask = LoginMask()
    mask(login(b"AuthMethod=CHAP"))
    assert b"0xaa" not in mask(login(b"CHAP_R=0xaa\0"))


@pytest.mark.parametrize(
    "pdu", [login(b"CHAP_R=0x12\0", opcode=0x04), login(b"CHAP_R=0x12\0")[:40], b""], ids=["text", "part", "none"]
)
def test_what_is_no_login_pdu_is_left_alone(pdu: bytes) -> None:
    assert LoginMask()(pdu) == pdu
