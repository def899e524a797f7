# SPDX-License-Identifier: GPL-3.0-or-later
"""Sense data (SPC-4 4.5) and what is done about each condition."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfleet.scsi import condition, sense
from blockfleet.scsi.condition import Action, Attention, classify
from blockfleet.scsi.sense import SenseKey
from blockfleet.scsi.status import Status, status_name

TGT_NEXUS_SENSE = bytes.fromhex("700006000000000a00000000290000000000")
TGT_NO_UNIT_SENSE = bytes.fromhex("700005000000000a00000000250000000000")


def fixed(key: int, code: int = 0, qualifier: int = 0, *, response: int = 0x70) -> bytes:
    return bytes([response, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0])


def test_fixed_format_as_tgt_sends_it_after_login() -> None:
    parsed = sense.parse(TGT_NEXUS_SENSE)
    assert parsed == sense.Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
    assert str(parsed) == "unit attention: power on, reset, or bus device reset occurred (06/29/00)"


def test_fixed_format_with_information() -> None:
    data = bytes.fromhex("f00003000012340a00000000110000000000")
    assert sense.parse(data) == sense.Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, False, 0x1234)


def test_descriptor_format_with_information() -> None:
    data = bytes.fromhex("72 03 11 0b 00 00 00 1402 06 0000 000000 0000 0a 80 00 0000000100000005")
    assert sense.parse(data) == sense.Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x0B, False, (1 << 32) + 5)


def test_deferred_in_both_formats() -> None:
    for data in (fixed(3, 0x0C, response=0x71), bytes.fromhex("73030c0000000000")):
        parsed = sense.parse(data)
        assert parsed is not None
        assert parsed.deferred
        assert "deferred" in str(parsed)


@pytest.mark.parametrize("data", [b"", b"\x70", b"\x70\0", b"\x00" * 18, b"\x7f" * 18, b"\x6f" * 18])
def test_sense_that_is_none(data: bytes) -> None:
    assert sense.parse(data) is None


def test_sense_cut_short_keeps_its_key() -> None:
    """A length byte that promises more, or less, than is there."""
    assert sense.parse(b"\x70\0\x06") == sense.Sense(SenseKey.UNIT_ATTENTION)
    assert sense.parse(fixed(5, 0x24)[:12]) == sense.Sense(SenseKey.ILLEGAL_REQUEST)
    lying = bytearray(fixed(5, 0x24))
    lying[7] = 2
    assert sense.parse(bytes(lying)) == sense.Sense(SenseKey.ILLEGAL_REQUEST)


def test_unnamed_codes_show_their_numbers() -> None:
    assert str(sense.Sense(SenseKey.HARDWARE_ERROR, 0xEE, 0x01)) == "hardware error (04/EE/01)"


@given(st.binary(max_size=300))
def test_no_sense_data_raises(data: bytes) -> None:
    parsed = sense.parse(data)
    assert parsed is None or str(parsed)
    for status in (*Status, 0x77):
        assert classify(status, data).action in Action


STATUSES = [
    (Status.GOOD, Action.DONE, 0),
    (Status.CONDITION_MET, Action.DONE, 0),
    (Status.BUSY, Action.BACK_OFF, errno.EIO),
    (Status.TASK_SET_FULL, Action.BACK_OFF, errno.EIO),
    (Status.ACA_ACTIVE, Action.BACK_OFF, errno.EIO),
    (Status.RESERVATION_CONFLICT, Action.FAIL, errno.EIO),
    (Status.TASK_ABORTED, Action.RETRY, errno.EIO),
    (0x77, Action.FAIL, errno.EIO),
]


@pytest.mark.parametrize(("status", "action", "error"), STATUSES)
def test_status_row(status: int, action: Action, error: int) -> None:
    row = classify(status, b"")
    assert (row.action, row.error) == (action, error)
    assert row.cause == status_name(status)


N = Attention.NONE
ROWS = [
    ("00/00/00", Action.DONE, 0, N),
    ("01/17/01", Action.DONE, 0, N),
    ("01/38/07", Action.DONE, 0, Attention.SPACE),
    ("02/04/00", Action.BACK_OFF, errno.EIO, N),
    ("02/04/01", Action.BACK_OFF, errno.EIO, N),
    ("02/04/02", Action.FAIL, errno.EIO, N),
    ("02/04/0a", Action.NOT_READY, errno.EIO, Attention.ALUA),
    ("02/04/0b", Action.NOT_READY, errno.EIO, Attention.ALUA),
    ("02/04/0c", Action.NOT_READY, errno.EIO, Attention.ALUA),
    ("02/3a/00", Action.FAIL, errno.EIO, N),
    ("03/11/00", Action.FAIL, errno.EIO, N),
    ("03/0c/00", Action.FAIL, errno.EIO, N),
    ("04/44/00", Action.FAIL, errno.EIO, N),
    ("05/20/00", Action.FAIL, errno.EOPNOTSUPP, N),
    ("05/21/00", Action.FAIL, errno.EIO, Attention.CAPACITY),
    ("05/24/00", Action.FAIL, errno.EIO, N),
    ("05/25/00", Action.LOST, errno.EIO, Attention.IDENTITY | Attention.LUNS),
    ("06/28/00", Action.ATTENTION, errno.EIO, Attention.IDENTITY | Attention.CAPACITY),
    (
        "06/29/00",
        Action.ATTENTION,
        errno.EIO,
        Attention.IDENTITY | Attention.CAPACITY | Attention.RESERVATIONS | Attention.CACHE,
    ),
    (
        "06/29/01",
        Action.ATTENTION,
        errno.EIO,
        Attention.IDENTITY | Attention.CAPACITY | Attention.RESERVATIONS | Attention.CACHE,
    ),
    ("06/29/03", Action.ATTENTION, errno.EIO, Attention.IDENTITY | Attention.CAPACITY | Attention.RESERVATIONS),
    ("06/29/07", Action.ATTENTION, errno.EIO, Attention.IDENTITY | Attention.CAPACITY | Attention.RESERVATIONS),
    ("06/2a/01", Action.ATTENTION, errno.EIO, Attention.MODE),
    ("06/2a/03", Action.ATTENTION, errno.EIO, Attention.RESERVATIONS),
    ("06/2a/06", Action.ATTENTION, errno.EIO, Attention.ALUA),
    ("06/2a/09", Action.ATTENTION, errno.EIO, Attention.CAPACITY),
    ("06/38/07", Action.ATTENTION, errno.EIO, Attention.SPACE),
    ("06/3f/03", Action.ATTENTION, errno.EIO, Attention.IDENTITY | Attention.LUNS),
    ("06/3f/0e", Action.ATTENTION, errno.EIO, Attention.IDENTITY | Attention.LUNS),
    ("06/5d/00", Action.ATTENTION, errno.EIO, N),
    ("07/27/00", Action.FAIL, errno.EPERM, N),
    ("07/27/07", Action.FAIL, errno.ENOSPC, Attention.SPACE),
    ("0b/47/05", Action.RETRY, errno.EIO, N),
    ("0b/00/00", Action.RETRY, errno.EIO, N),
    ("0d/00/00", Action.FAIL, errno.ENOSPC, N),
    ("0e/1d/00", Action.FAIL, errno.EIO, N),
]


@pytest.mark.parametrize(("numbers", "action", "error", "attention"), ROWS, ids=[r[0] for r in ROWS])
def test_sense_row(numbers: str, action: Action, error: int, attention: Attention) -> None:
    row = classify(Status.CHECK_CONDITION, fixed(*bytes.fromhex(numbers.replace("/", ""))))
    assert (row.action, row.error, row.attention) == (action, error, attention)
    assert numbers.upper() in row.cause


def test_every_sense_key_has_a_row() -> None:
    assert {key for key, code, _ in condition.BY_SENSE if code is None} == set(SenseKey)


def test_a_unit_that_is_gone_as_tgt_says_it() -> None:
    assert classify(Status.CHECK_CONDITION, TGT_NO_UNIT_SENSE).action is Action.LOST


def test_a_deferred_error_is_about_lost_writes_not_about_this_command() -> None:
    row = classify(Status.CHECK_CONDITION, fixed(3, 0x0C, response=0x71))
    assert (row.action, row.attention) == (Action.ATTENTION, Attention.CACHE)


def test_check_condition_without_sense_is_retried() -> None:
    assert classify(Status.CHECK_CONDITION, b"").action is Action.RETRY
