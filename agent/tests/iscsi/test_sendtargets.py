# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers to SendTargets: the examples of RFC 3720 appendix D, and hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.iscsi import sendtargets
from blockfleet.iscsi.sendtargets import SendTargetsError, SendTargetsReader, TargetRecord
from blockfleet.model.portal import Portal

HERE = Portal("192.0.2.99", 3261)
DISK = "iqn.1993-11.com.example:diskarray.sn.8675309"
OTHER = "iqn.1993-11.com.example:diskarray.sn.1234567"


def lines(*pairs: str) -> bytes:
    return b"".join(pair.encode() + b"\0" for pair in pairs)


def read(*pairs: str, tag: int | None = 7) -> tuple[TargetRecord, ...]:
    reader = SendTargetsReader(HERE, tag)
    reader.feed(lines(*pairs))
    return reader.finish()


def test_DSC_08_target_without_address_is_at_the_portal_that_was_asked() -> None:
    assert read(f"TargetName={DISK}") == (TargetRecord(DISK, ((HERE, 7),)),)


def test_DSC_09_addresses_belong_to_the_name_before_them() -> None:
    found = read(
        f"TargetName={DISK}",
        "TargetAddress=10.1.0.45:3000,1",
        "TargetAddress=10.1.1.45:3000,2",
        f"TargetName={OTHER}",
        "TargetAddress=10.1.0.45:3000,1",
        "TargetAddress=10.1.1.45:3000,2",
    )
    portals = ((Portal("10.1.0.45", 3000), 1), (Portal("10.1.1.45", 3000), 2))
    assert found == (TargetRecord(DISK, portals), TargetRecord(OTHER, portals))


def test_DSC_09_portal_groups_of_the_third_example() -> None:
    found = read(
        f"TargetName={DISK}",
        "TargetAddress=10.1.0.45:3000,1",
        "TargetAddress=10.1.1.46:3000,1",
        "TargetAddress=10.1.0.47:3000,2",
        "TargetAddress=10.1.1.48:3000,2",
        "TargetAddress=10.1.1.49:3000,3",
    )
    assert [(portal.host, tag) for portal, tag in found[0].portals] == [
        ("10.1.0.45", 1),
        ("10.1.1.46", 1),
        ("10.1.0.47", 2),
        ("10.1.1.48", 2),
        ("10.1.1.49", 3),
    ]


@pytest.mark.parametrize(
    ("text", "portal", "tag"),
    [
        ("10.0.0.1:5003,1", Portal("10.0.0.1", 5003), 1),
        ("[1080:0:0:0:8:800:200C:417A],65", Portal("1080::8:800:200c:417a", 3260), 65),
        ("[1080::8:800:200C:417A]:5003,1", Portal("1080::8:800:200c:417a", 5003), 1),
        ("computingcenter.example.com,23", Portal("computingcenter.example.com", 3260), 23),
        ("[fe80::1%eth0]:3260,0", Portal("fe80::1%eth0", 3260), 0),
        ("192.0.2.1", Portal("192.0.2.1", 3260), None),
    ],
)
def test_DSC_10_address_forms(text: str, portal: Portal, tag: int | None) -> None:
    assert read(f"TargetName={DISK}", f"TargetAddress={text}")[0].portals == ((portal, tag),)


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.1:0,1",
        "192.0.2.1:65536,1",
        "192.0.2.1:x,1",
        "[2001:db8::1:3260,1",
        "192.0.2.1:3260,65536",
        "192.0.2.1:3260,x",
        "192.0.2.1:3260,",
        "",
        "$(reboot),1",
        "x" * 300,
    ],
)
def test_DSC_10_bad_address_is_skipped_with_a_warning_and_the_rest_kept(text: str) -> None:
    reader = SendTargetsReader(HERE)
    reader.feed(lines(f"TargetName={DISK}", f"TargetAddress={text}", "TargetAddress=192.0.2.2:3260,1"))
    assert reader.finish() == (TargetRecord(DISK, ((Portal("192.0.2.2"), 1),)),)
    assert (len(reader.warnings), reader.dropped) == (1, 1)


def test_DSC_10_target_with_bad_addresses_only_is_not_taken_to_be_here() -> None:
    assert read(f"TargetName={DISK}", "TargetAddress=192.0.2.1:0,1") == ()


LEGAL_223 = "iqn.2026-11.com.example:" + "x" * (223 - len("iqn.2026-11.com.example:"))
HOSTILE = [
    pytest.param(LEGAL_223 + "x", id="DSC-11-224-bytes"),
    pytest.param("../../etc/passwd", id="DSC-11-path"),
    pytest.param("iqn.2026-11.com.example:../../etc", id="DSC-11-path-in-name"),
    pytest.param("iqn.2026-11.com.example:a\nb", id="DSC-11-newline"),
    pytest.param("iqn.2026-11.com.example:\x1b[2J", id="DSC-11-escape-sequence"),
    pytest.param("iqn.2026-11.com.example:$(id)", id="DSC-11-shell"),
    pytest.param("iqn.2026-11.com.example:a b", id="DSC-11-blank"),
    pytest.param("", id="DSC-11-empty"),
    pytest.param("iqn", id="DSC-11-half-a-name"),
    pytest.param("iqn.2026-11.com.example:\u202etxt", id="DSC-11-right-to-left-override"),
    pytest.param("n" * 9000, id="DSC-11-longer-than-any-value"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_is_dropped_with_its_addresses_and_the_rest_kept(name: str) -> None:
    reader = SendTargetsReader(HERE, 7)
    reader.feed(
        lines(
            f"TargetName={DISK}",
            "TargetAddress=192.0.2.1:3260,1",
            f"TargetName={name}",
            "TargetAddress=203.0.113.66:3260,1",
            f"TargetName={OTHER}",
        )
    )
    assert reader.finish() == (
        TargetRecord(DISK, ((Portal("192.0.2.1"), 1),)),
        TargetRecord(OTHER, ((HERE, 7),)),
    )
    assert len(reader.warnings) == 1
    assert reader.warnings[0].isprintable()
    assert len(reader.warnings[0]) < 300


def test_DSC_11_names_of_all_forms_are_taken_and_normalised() -> None:
    names = [
        LEGAL_223,
        "eui.02004567A425678D",
        "naa.52004567BA64678D",
        "naa.62004567BA64678D0123456789ABCDEF",
        "IQN.2026-11.com.Example:Disk",
    ]
    assert [record.name for record in read(*(f"TargetName={name}" for name in names))] == [
        name.lower() for name in names
    ]


def test_DSC_12_address_before_any_name_is_ignored_with_a_warning() -> None:
    reader = SendTargetsReader(HERE)
    reader.feed(lines("TargetAddress=192.0.2.1:3260,1", f"TargetName={DISK}"))
    assert reader.finish() == (TargetRecord(DISK, ((HERE, None),)),)
    assert "before any TargetName" in reader.warnings[0]


def test_DSC_12_duplicates_are_merged() -> None:
    found = read(
        f"TargetName={DISK}",
        "TargetAddress=192.0.2.1:3260,1",
        "TargetAddress=192.0.2.1,1",
        f"TargetName={OTHER}",
        f"TargetName={DISK.upper()}",
        "TargetAddress=192.0.2.1:3260,1",
        "TargetAddress=192.0.2.2:3260,1",
    )
    assert found == (
        TargetRecord(DISK, ((Portal("192.0.2.1"), 1), (Portal("192.0.2.2"), 1))),
        TargetRecord(OTHER, ((HERE, 7),)),
    )


def test_DSC_12_empty_answer_is_no_target_and_no_error() -> None:
    reader = SendTargetsReader(HERE)
    reader.feed(b"")
    assert reader.finish() == ()
    assert reader.warnings == []


def test_other_keys_are_ignored_with_a_warning() -> None:
    reader = SendTargetsReader(HERE)
    reader.feed(lines(f"TargetName={DISK}", "TargetAlias=x", "TargetAddress=192.0.2.1:3260,1"))
    assert reader.finish() == (TargetRecord(DISK, ((Portal("192.0.2.1"), 1),)),)
    assert "TargetAlias" in reader.warnings[0]


@pytest.mark.parametrize("word", ["Reject", "NotUnderstood", "Irrelevant"])
def test_refusal_is_an_error(word: str) -> None:
    with pytest.raises(SendTargetsError, match=word):
        read(f"SendTargets={word}")


def test_link_local_address_without_zone_takes_that_of_the_connection() -> None:
    reader = SendTargetsReader(Portal("fe80::5%eth1"))
    reader.feed(
        lines(
            f"TargetName={DISK}",
            "TargetAddress=[fe80::1]:3260,1",
            "TargetAddress=[2001:db8::1]:3260,1",
            "TargetAddress=[fe80::2%eth9]:3260,1",
            "TargetAddress=192.0.2.1:3260,1",
        )
    )
    assert [portal.host for portal, _ in reader.finish()[0].portals] == [
        "fe80::1%eth1",
        "2001:db8::1",
        "fe80::2%eth9",
        "192.0.2.1",
    ]


@given(st.lists(st.integers(1, 60), min_size=1))
def test_DSC_04_answer_cut_anywhere_reads_the_same(cuts: list[int]) -> None:
    pairs = []
    for number in range(40):
        pairs += [f"TargetName=iqn.2026-11.com.example:{number}", f"TargetAddress=192.0.2.{number}:3260,{number}"]
    whole = lines(*pairs)
    reader = SendTargetsReader(HERE)
    position = 0
    for cut in cuts:
        reader.feed(whole[position : position + cut])
        position += cut
    reader.feed(whole[position:])
    found = reader.finish()
    assert found == read(*pairs)
    assert [record.portals[0][1] for record in found] == list(range(40))


def test_DSC_04_5000_targets_over_many_responses() -> None:
    whole = lines(*(f"TargetName=iqn.2026-11.com.example:{number:05}" for number in range(5000)))
    reader = SendTargetsReader(HERE)
    for start in range(0, len(whole), 1000):
        reader.feed(whole[start : start + 1000])
    assert [record.name[-5:] for record in reader.finish()] == [f"{number:05}" for number in range(5000)]


def test_DSC_16_what_was_read_before_the_connection_was_lost_is_kept() -> None:
    reader = SendTargetsReader(HERE)
    reader.feed(lines(f"TargetName={DISK}") + b"TargetName=iqn.1993-11.com.exam")
    assert [record.name for record in reader.records()] == [DISK]
    with pytest.raises(SendTargetsError, match="zero byte"):
        reader.finish()


@pytest.mark.parametrize(
    ("limit", "value", "pairs"),
    [
        ("MAXIMUM_TARGETS", 3, [f"TargetName=iqn.2026-11.com.example:{n}" for n in range(4)]),
        ("MAXIMUM_ADDRESSES", 3, [f"TargetName={DISK}"] + [f"TargetAddress=192.0.2.{n},1" for n in range(4)]),
        ("MAXIMUM_ANSWER", 64, [f"TargetName={DISK}", "TargetName=iqn.2026-11.com.example:x"]),
    ],
)
def test_ROB_11_answer_is_bounded(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, pairs: list[str]
) -> None:
    monkeypatch.setattr(sendtargets, limit, value)
    with pytest.raises(SendTargetsError, match=str(value)):
        read(*pairs)


def test_ROB_11_addresses_of_a_target_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendtargets, "MAXIMUM_PORTALS", 2)
    found = read(f"TargetName={DISK}", *(f"TargetAddress=192.0.2.{n},1" for n in range(4)))
    assert len(found[0].portals) == 2


def test_ROB_11_warnings_are_bounded_and_counted() -> None:
    reader = SendTargetsReader(HERE)
    reader.feed(lines(*(f"TargetName=bad {number}" for number in range(1000))))
    assert reader.finish() == ()
    assert (len(reader.warnings), reader.dropped) == (sendtargets.MAXIMUM_WARNINGS, 1000)


def test_ROB_11_pair_that_never_ends_is_bounded() -> None:
    reader = SendTargetsReader(HERE)
    with pytest.raises(SendTargetsError, match="longer"):
        reader.feed(b"TargetName=" + b"x" * 100_000)
