# SPDX-License-Identifier: GPL-3.0-or-later
"""iSCSI names: forms, limits and normalisation (RFC 3720 3.2.6, RFC 3722, RFC 3980)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockfleet.model.names import MAXIMUM_LENGTH, InvalidName, normalise

PREFIX = "iqn.2026-11.com.example:"


@pytest.mark.parametrize(
    "name",
    [
        # The examples of RFC 3720 3.2.6.3.1, 12.4 and 12.5 and of RFC 3980.
        "iqn.2001-04.com.example",
        "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
        "iqn.2001-04.com.example:storage.tape1.sys1.xyz",
        "iqn.2001-04.com.example:storage.disk2.sys1.xyz",
        "iqn.1993-11.com.disk-vendor:diskarrays.sn.45678",
        "iqn.1992-04.com.os-vendor.plan9:cdrom.12345",
        "eui.02004567a425678d",
        "naa.52004567ba64678d",
        "naa.62004567ba64678d0123456789abcdef",
        PREFIX + "x" * (MAXIMUM_LENGTH - len(PREFIX)),
    ],
)
def test_legal_name_is_its_own_canonical_form(name: str) -> None:
    assert normalise(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("IQN.2026-11.COM.Example:Disk-A", "iqn.2026-11.com.example:disk-a"),
        ("EUI.02004567A425678D", "eui.02004567a425678d"),
        # RFC 3722: case folding (B.2), NFKC and characters mapped to nothing (B.1).
        (PREFIX + "STRASSE\u00dc", PREFIX + "strasse\u00fc"),
        (PREFIX + "stra\u00dfe", PREFIX + "strasse"),
        (PREFIX + "u\u0308", PREFIX + "\u00fc"),
        (PREFIX + "\uff21\uff22", PREFIX + "ab"),
        (PREFIX + "soft\u00adhyphen", PREFIX + "softhyphen"),
        (PREFIX + "\u03a3", PREFIX + "\u03c3"),
    ],
)
def test_DSC_11_names_are_normalised(text: str, name: str) -> None:
    assert normalise(text) == name
    assert normalise(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "iqn",
        "iqn.",
        "disk",
        "iqn.2026-13.com.example",
        "iqn.2026-00.com.example",
        "iqn.26-11.com.example",
        "iqn.2026-11",
        "iqn.2026-11.",
        "iqn.2026-11.-com.example",
        "iqn.2026-11.com.example-:x",
        "iqn.2026-11.com..example",
        "iqn.2026-11.com.example:",
        "eui.02004567A425678",
        "eui.02004567A425678D0",
        "eui.02004567A425678G",
        "naa.52004567BA64678",
        "naa.52004567BA64678D0",
        "xyz.2026-11.com.example",
        PREFIX + "x" * (MAXIMUM_LENGTH - len(PREFIX) + 1),
        PREFIX + "\u00fc" * 100,
    ],
)
def test_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        normalise(text)


@pytest.mark.parametrize("char", list("\0\t\n\r\x1b\x7f /\\_,;*?!'\"`$%&()[]{}<>|~=+#@^"))
def test_DSC_11_ascii_beyond_letters_digits_dash_dot_and_colon_is_refused(char: str) -> None:
    with pytest.raises(InvalidName):
        normalise(PREFIX + "a" + char + "b")


@pytest.mark.parametrize(
    "char",
    [
        pytest.param("\u00a0", id="C.1.2-no-break-space"),
        pytest.param("\u3000", id="C.1.2-ideographic-space"),
        pytest.param("\u0085", id="C.2.2-control"),
        pytest.param("\ue000", id="C.3-private-use"),
        pytest.param("\ufffe", id="C.4-non-character"),
        pytest.param("\ufffd", id="C.6-replacement"),
        pytest.param("\u2ff0", id="C.7-ideographic-description"),
        pytest.param("\u202e", id="C.8-right-to-left-override"),
        pytest.param("\U000e0041", id="C.9-tag"),
        pytest.param("\u3002", id="RFC-3722-ideographic-full-stop"),
        pytest.param("\u0221", id="A.1-unassigned"),
        pytest.param("\uff0f", id="NFKC-makes-a-slash"),
    ],
)
def test_characters_that_rfc_3722_prohibits_are_refused(char: str) -> None:
    with pytest.raises(InvalidName):
        normalise(PREFIX + "a" + char + "b")


def test_length_counts_bytes_of_utf_8() -> None:
    fits = PREFIX + "\u00fc" * ((MAXIMUM_LENGTH - len(PREFIX)) // 2)
    assert normalise(fits) == fits
    with pytest.raises(InvalidName, match="223 bytes"):
        normalise(fits + "\u00fc")


@pytest.mark.parametrize("text", ["\x1b[2Jiqn", "iqn.2026-11.com.example:\nx", "x" * 10_000, "\u202ex"])
def test_message_shows_the_text_harmlessly(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        normalise(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@settings(deadline=None, database=None)
@given(st.one_of(st.text(max_size=40), st.text(max_size=40).map(PREFIX.__add__)))
def test_text_of_any_kind_is_refused_or_has_a_canonical_form(text: str) -> None:
    try:
        name = normalise(text)
    except InvalidName:
        return
    assert normalise(name) == name
    assert len(name.encode()) <= MAXIMUM_LENGTH
    assert not set(name) & set("/\\\0\n\r \x1b'\"$`")
    assert name == name.lower()
