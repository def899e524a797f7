# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input gets one error: its code, the path of the field, the value where it is no secret, the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_change, load_document

T = "iqn.2026-11.com.example:db"
INVALID, BAD_SECRET = Isdsc.DOCUMENT_INVALID, Isdsc.INVALID_CHAP_SECRET
SECRET = "canary-canary-canary"


def target(**fields):
    return {"targets": [{"name": T, **fields}]}


def chap(**fields):
    return target(chap={"user": "host", "secret": SECRET, **fields})


def volume(**fields):
    return {"volumes": [{"name": "v", "target": T, "lun": 0, **fields}]}


CASES = {
    "malformed-iqn": (
        {"targets": [{"name": "iqn.2026-13.com.example:x"}]},
        Isdsc.INVALID_ISCSI_NAME,
        "targets[0].name",
        ["iqn.2026-13.com.example:x", "write iqn.YYYY-MM"],
    ),
    "port-0": (
        target(portals=["192.0.2.1:0"]),
        INVALID,
        "targets[0].portals[0]",
        ["from 1 to 65535"],
    ),
    "port-70000": (
        {"discovery": {"portals": [{"portal": "192.0.2.1:70000"}]}},
        INVALID,
        "discovery.portals[0].portal",
        ["70000", "from 1 to 65535"],
    ),
    "portals-of-another-kind": (target(portals="every"), INVALID, "targets[0].portals", ["'every'"]),
    "no-portals": (target(portals=[]), Isdsc.NO_PORTAL_SPECIFIED, "targets[0].portals", ["write 'all'"]),
    "unknown-policy": (
        target(policy="least_queue"),
        Isdsc.INVALID_LOAD_BALANCE_POLICY,
        "targets[0].policy",
        ["least_queue", "round_robin"],
    ),
    "short-secret": (chap(secret="11-bytes-xx"), Isdsc.SHORT_CHAP_SECRET, "targets[0].chap.secret", ["12 bytes"]),
    "short-mutual-secret": (
        chap(mutual_secret="short"),
        Isdsc.SHORT_CHAP_SECRET,
        "targets[0].chap.mutual_secret",
        ["allow_weak_secret"],
    ),
    "same-secret-both-ways": (
        chap(mutual_secret=SECRET),
        BAD_SECRET,
        "targets[0].chap.mutual_secret",
        ["another secret"],
    ),
    "secret-too-long": (chap(secret="x" * 256), BAD_SECRET, "targets[0].chap.secret", ["255 bytes"]),
    "secret-is-a-number": (
        chap(secret=123456789012),
        BAD_SECRET,
        "targets[0].chap.secret",
        ["text"],
    ),
    "user-missing": (target(chap={"secret": SECRET}), Isdsc.MISSING_PARAMETER, "targets[0].chap.user", ["missing"]),
    "user-empty": (chap(user=""), Isdsc.INVALID_CHAP_USER_NAME, "targets[0].chap.user", []),
    "user-too-long-in-bytes": (chap(user="ü" * 128), Isdsc.INVALID_CHAP_USER_NAME, "targets[0].chap.user", ["255"]),
    "user-not-printable": (chap(user="a\nb"), Isdsc.INVALID_CHAP_USER_NAME, "targets[0].chap.user", ["printable"]),
    "mutual-user-not-printable": (
        chap(mutual_user="\0", mutual_secret="another-secret-1"),
        Isdsc.INVALID_CHAP_USER_NAME,
        "targets[0].chap.mutual_user",
        ["printable"],
    ),
    "secret-with-half-a-character": (
        chap(secret=SECRET + "\ud800"),
        BAD_SECRET,
        "targets[0].chap.secret",
        ["UTF-8"],
    ),
    "alias-not-printable": ({"initiator": {"alias": "a\nb"}}, INVALID, "initiator.alias", ["printable"]),
    "alias-too-long-in-bytes": ({"initiator": {"alias": "ü" * 128}}, INVALID, "initiator.alias", ["255"]),
    "mutual-user-alone": (
        chap(mutual_user="t"),
        BAD_SECRET,
        "targets[0].chap.mutual_user",
        ["both"],
    ),
    "mistyped-secret": (
        target(chap={"user": "host", "secert": SECRET}),
        INVALID,
        "targets[0].chap.secert",
        ["no such field"],
    ),
    "chap-is-text": (target(chap=SECRET), INVALID, "targets[0].chap", ["must be an object"]),
    "secret-in-a-wrong-place": (
        target(portals=[{"secret": SECRET}]),
        INVALID,
        "targets[0].portals[0]",
        [],
    ),
    "duplicate-portals": (
        target(portals=["192.0.2.1", "192.0.2.1:3260"]),
        Isdsc.TARGET_PORTAL_ALREADY_EXISTS,
        "targets[0].portals",
        ["192.0.2.1:3260 appears twice"],
    ),
    "duplicate-ipv6-spellings": (
        {"discovery": {"portals": [{"portal": "[2001:db8::1]"}, {"portal": "2001:DB8:0::1"}]}},
        Isdsc.TARGET_PORTAL_ALREADY_EXISTS,
        "discovery.portals",
        ["appears twice"],
    ),
    "duplicate-targets": (
        {"targets": [{"name": T}, {"name": T.upper()}]},
        Isdsc.TARGET_ALREADY_EXISTS,
        "targets",
        [T],
    ),
    "volume-that-matches-two": (
        {"volumes": [{"name": "a", "target": T, "lun": 0}, {"name": "b", "target": T, "lun": 0}]},
        Isdsc.VOLUME_AMBIGUOUS,
        "volumes",
        ["LUN 0"],
    ),
    "volume-of-nothing": ({"volumes": [{"name": "v", "target": T}]}, INVALID, "volumes[0]", ["lun"]),
    "volume-name": (volume(name="../v"), INVALID, "volumes[0].name", ["../v", "1 to 64"]),
    "lun-yes": (volume(lun=True), INVALID, "volumes[0].lun", ["number"]),
    "lun-16384": (volume(lun=16384), INVALID, "volumes[0].lun", ["16384", "16383"]),
    "identity-by-pattern": (
        volume(identity="naa.6 *"),
        INVALID,
        "volumes[0].identity",
        [],
    ),
    "unknown-field": ({"luns": [1]}, INVALID, "luns", ["no such field"]),
    "min-paths-beyond-portals": (
        target(portals=["192.0.2.1"], min_paths=2),
        Isdsc.PATH_COUNT_MISMATCH,
        "targets[0].min_paths",
        ["lists 1 portals"],
    ),
    "newer-version": ({"version": 2, "what": "ever"}, Isdsc.DOCUMENT_TOO_NEW, "version", ["upgrade the agent"]),
    "version-text": ({"version": "one"}, INVALID, "version", []),
    "list": ([], INVALID, "", ["object"]),
    "digest": (
        target(login={"header_digest": ["md5"]}),
        INVALID,
        "targets[0].login.header_digest[0]",
        ["crc32c"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_error_names_the_field_and_what_to_do(name):
    data, code, field, says = CASES[name]
    with pytest.raises(BlockfleetError) as caught:
        load_document(data)
    error = caught.value
    assert (str(error.code), error.field) == (str(code), field)
    for text in says:
        assert text in str(error)
    assert SECRET not in f"{error!s}{error!r}{error.__cause__}{error.remedy}"
    assert "11-bytes" not in str(error)
    assert "123456789012" not in str(error)


def test_a_whole_document_is_read_in_canonical_form():
    document = load_document(
        {
            "discovery": {"portals": [{"portal": "192.0.2.10"}], "static": [{"target": T, "portals": ["::1"]}]},
            "targets": [{"name": T.upper(), "portals": ["[2001:DB8::10]:860"]}],
            "volumes": [{"name": "db01", "target": T, "identity": "naa.6000"}],
        }
    )
    assert document.discovery.portals[0].portal == "192.0.2.10:3260"
    assert document.discovery.static[0].portals == ("[::1]:3260",)
    assert (document.targets[0].name, document.targets[0].portals) == (T, ("[2001:db8::10]:860",))


def test_a_secret_shows_nowhere_in_a_document():
    document = load_document(chap(mutual_secret="canary-mutual-canary"))
    assert "canary" not in f"{document!r}{document!s}{document.model_dump()}{document.model_dump_json()}"


def test_a_weak_secret_is_taken_when_it_is_said_to_be_wanted():
    assert load_document(chap(secret="short", allow_weak_secret=True)).targets[0].chap is not None


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        ({"version": 2}, Isdsc.DOCUMENT_TOO_NEW, "version"),
        ({"mode": "patch"}, INVALID, "mode"),
        ({"documnet": {}}, INVALID, "documnet"),
        ({"options": {"wait_timeout": -1}}, INVALID, "options.wait_timeout"),
        ({"absent": {"targets": ["db"]}}, Isdsc.INVALID_ISCSI_NAME, "absent.targets[0]"),
        ({"exclusive": ["everything"]}, INVALID, "exclusive[0]"),
    ],
)
def test_a_bad_change_is_refused_the_same_way(data, code, field):
    with pytest.raises(BlockfleetError) as caught:
        load_change(data)
    assert (caught.value.code, caught.value.field) == (code, field)


@pytest.mark.parametrize(
    "data", [{"targets": "s3cr3t-canary"}, {"targets": ["s3cr3t-canary"]}, {"initiator": "s3cr3t-canary"}]
)
def test_a_scalar_where_a_mapping_belongs_is_not_shown(data: dict[str, Any]) -> None:
    with pytest.raises(BlockfleetError) as refused:
        load_document(data)
    assert "canary" not in str(refused.value)
