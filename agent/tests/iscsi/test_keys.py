# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of keys against RFC 3720 chapters 11 and 12 and appendix A, and RFC 7143 chapter 13."""

from __future__ import annotations

import pytest

from blockfleet.iscsi.keys import (
    KEYS,
    Function,
    Sender,
    Stage,
    ValueFault,
    check_length,
    read_boolean,
    read_list,
    read_number,
    write_value,
)
from blockfleet.iscsi.parameters import DISCOVERY_OFFER, Negotiated, SessionOffer

# Copied from the "Use", "Scope", "Default", "Result function" and range lines of the RFC.
NEGOTIATED = [
    ("HeaderDigest", "12.1", "IO", "CO", "None", "first", None),
    ("DataDigest", "12.1", "IO", "CO", "None", "first", None),
    ("MaxConnections", "12.2", "LO", "SW", 1, "minimum", (1, 65535)),
    ("InitialR2T", "12.10", "LO", "SW", True, "or", None),
    ("ImmediateData", "12.11", "LO", "SW", True, "and", None),
    ("MaxBurstLength", "12.13", "LO", "SW", 262144, "minimum", (512, 16777215)),
    ("FirstBurstLength", "12.14", "LO", "SW", 65536, "minimum", (512, 16777215)),
    ("DefaultTime2Wait", "12.15", "LO", "SW", 2, "maximum", (0, 3600)),
    ("DefaultTime2Retain", "12.16", "LO", "SW", 20, "minimum", (0, 3600)),
    ("MaxOutstandingR2T", "12.17", "LO", "SW", 1, "minimum", (1, 65535)),
    ("DataPDUInOrder", "12.18", "LO", "SW", True, "or", None),
    ("DataSequenceInOrder", "12.19", "LO", "SW", True, "or", None),
    ("ErrorRecoveryLevel", "12.20", "LO", "SW", 0, "minimum", (0, 2)),
]
DECLARED = [
    ("SendTargets", "FFPO", Sender.INITIATOR, Stage.OPERATIONAL),
    ("TargetName", "IO", Sender.INITIATOR, Stage.ANY),
    ("InitiatorName", "IO", Sender.INITIATOR, Stage.ANY),
    ("TargetAlias", "ALL", Sender.TARGET, Stage.ANY),
    ("InitiatorAlias", "ALL", Sender.INITIATOR, Stage.ANY),
    ("TargetAddress", "ALL", Sender.TARGET, Stage.ANY),
    ("TargetPortalGroupTag", "IO", Sender.TARGET, Stage.ANY),
    ("MaxRecvDataSegmentLength", "ALL", Sender.BOTH, Stage.OPERATIONAL),
    ("SessionType", "LO", Sender.INITIATOR, Stage.ANY),
]
IRRELEVANT_IN_DISCOVERY = {
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
}


@pytest.mark.parametrize("row", NEGOTIATED, ids=lambda row: row[0])
def test_negotiated_key_is_as_the_rfc_has_it(row: tuple) -> None:  # type: ignore[type-arg]
    name, section, use, scope, default, function, bounds = row
    key = KEYS[name]
    assert key.section == section
    assert key.use.value.startswith(use + ":")
    assert key.scope.value.startswith(scope + ":")
    assert key.default == default
    assert key.function.value.split()[0] == function
    assert (key.low, key.high) == (bounds or (0, 0))
    assert key.stage is Stage.OPERATIONAL
    assert key.senders is Sender.BOTH


@pytest.mark.parametrize("row", DECLARED, ids=lambda row: row[0])
def test_declared_key_is_as_the_rfc_has_it(row: tuple) -> None:  # type: ignore[type-arg]
    name, use, senders, stage = row
    key = KEYS[name]
    assert key.function is Function.DECLARATION
    assert key.use.value.startswith(use + ":")
    assert (key.senders, key.stage) == (senders, stage)


def test_KEY_34_keys_irrelevant_in_discovery() -> None:
    of_rfc_3720 = {name for name, key in KEYS.items() if not key.in_discovery and "RFC" not in key.section}
    assert of_rfc_3720 == IRRELEVANT_IN_DISCOVERY


def test_every_key_of_chapters_11_and_12_and_appendix_a_is_there() -> None:
    chapter_11 = {"AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"}
    appendix = {"OFMarker", "IFMarker", "OFMarkInt", "IFMarkInt"}
    rfc_7143 = {"TaskReporting", "iSCSIProtocolLevel", "X#NodeArchitecture"}
    chapter_12 = {row[0] for row in NEGOTIATED} | {row[0] for row in DECLARED}
    assert set(KEYS) == chapter_11 | appendix | rfc_7143 | chapter_12


def test_security_keys_belong_to_the_security_stage() -> None:
    assert {name for name, key in KEYS.items() if key.stage is Stage.SECURITY} == {
        "AuthMethod",
        "CHAP_A",
        "CHAP_I",
        "CHAP_C",
        "CHAP_N",
        "CHAP_R",
    }


@pytest.mark.parametrize(("text", "value"), [("512", 512), ("16777215", 16777215), ("0x200", 512), ("0X2aA", 682)])
def test_numbers_are_decimal_or_hexadecimal(text: str, value: int) -> None:
    assert read_number(KEYS["MaxBurstLength"], text) == value


@pytest.mark.parametrize(
    "text",
    ["511", "16777216", "-1", "+512", "", " 512", "512 ", "0512", "0x", "5e3", "1_000", "x", "\u0665\u0661\u0662"],
)
def test_KEY_20_illegal_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueFault):
        read_number(KEYS["MaxRecvDataSegmentLength"], text)


@pytest.mark.parametrize("text", ["yes", "NO", "1", "", "Yes,No", "true"])
def test_booleans_are_yes_and_no_in_this_case(text: str) -> None:
    with pytest.raises(ValueFault):
        read_boolean(KEYS["InitialR2T"], text)


@pytest.mark.parametrize("text", ["", ",", "None,", ",CRC32C", "None,,CRC32C"])
def test_lists_have_no_empty_values(text: str) -> None:
    with pytest.raises(ValueFault):
        read_list(KEYS["HeaderDigest"], text)


@pytest.mark.parametrize(
    ("name", "length", "fits"),
    [
        ("TargetAlias", 255, True),
        ("TargetAlias", 256, False),
        ("CHAP_C", 2050, True),
        ("CHAP_C", 2051, False),
        ("CHAP_N", 255, True),
        ("CHAP_N", 256, False),
        ("TargetAddress", 267, True),
        ("TargetAddress", 268, False),
    ],
)
def test_KEY_02_length_limit_of_values(name: str, length: int, fits: bool) -> None:
    if fits:
        check_length(KEYS[name], "x" * length)
    else:
        with pytest.raises(ValueFault):
            check_length(KEYS[name], "x" * length)


def test_KEY_02_limit_holds_for_each_value_of_a_list() -> None:
    check_length(KEYS["HeaderDigest"], ",".join(["x" * 255] * 8))
    with pytest.raises(ValueFault):
        check_length(KEYS["HeaderDigest"], "None," + "x" * 256)


def test_KEY_02_list_as_a_whole_is_bounded_too() -> None:
    with pytest.raises(ValueFault, match="8192"):
        check_length(KEYS["HeaderDigest"], ",".join(["x" * 255] * 33))


def test_values_are_written_as_the_rfc_spells_them() -> None:
    assert [write_value(v) for v in (True, False, 65536, ("CRC32C", "None"), "All")] == [
        "Yes",
        "No",
        "65536",
        "CRC32C,None",
        "All",
    ]


def test_defaults_of_a_session_are_those_of_chapter_12() -> None:
    text = Negotiated().as_text()
    assert text.pop("TargetMaxRecvDataSegmentLength") == "8192"
    assert text.pop("iSCSIProtocolLevel") == "0"
    assert text.pop("TaskReporting") == "RFC3720"
    expected = {row[0]: write_value(row[4]) for row in NEGOTIATED}
    assert text == expected | {"MaxRecvDataSegmentLength": "8192"}


def test_negotiated_values_by_their_key_names() -> None:
    text = Negotiated(header_digest=True, immediate_data=False, max_burst_length=131072).as_text()
    assert (text["HeaderDigest"], text["DataDigest"]) == ("CRC32C", "None")
    assert (text["ImmediateData"], text["MaxBurstLength"]) == ("No", "131072")


@pytest.mark.parametrize(
    "values",
    [
        {"max_connections": 0},
        {"max_connections": 65536},
        {"max_recv_data_segment_length": 511},
        {"max_burst_length": 1 << 24},
        {"default_time2wait": 3601},
        {"error_recovery_level": 3},
        {"max_outstanding_r2t": 0},
        {"first_burst_length": 65536, "max_burst_length": 65535},
        {"header_digest": ()},
        {"data_digest": ("CRC64",)},
        {"protocol_level": 32},
    ],
    ids=str,
)
def test_offer_that_no_target_may_be_given_is_refused(values: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=r"\w"):
        SessionOffer(**values)


def test_discovery_offers_no_digest() -> None:
    assert (DISCOVERY_OFFER.header_digest, DISCOVERY_OFFER.data_digest) == (("None",), ("None",))
