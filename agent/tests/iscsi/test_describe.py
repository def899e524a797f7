# SPDX-License-Identifier: GPL-3.0-or-later
"""PDUs in words: every field where RFC 3720 chapter 10 has it."""

from __future__ import annotations

import pytest

from blockfleet.iscsi.constants import Opcode
from blockfleet.iscsi.describe import cdb_name, describe


def header(text: str) -> bytes:
    """48 bytes from hexadecimal words."""
    found = bytes.fromhex(text)
    return found.ljust(48, b"\0")


def test_a_read_shows_its_numbers_and_its_cdb() -> None:
    pdu = header(
        "01 c1 0000 00 000000 0003000000000000 00000010 00010000 00000005 00000009 28 00 00000007 00 0080 00"
    )
    found = describe(pdu)
    assert (found.opcode, found.name) == (1, "SCSI Command")
    assert found.fields == {
        "LUN": 3,
        "ITT": "0x00000010",
        "EDTL": 65536,
        "CmdSN": 5,
        "ExpStatSN": 9,
        "CDB": "READ(10)",
    }


def test_data_in_shows_its_place_and_how_much_follows() -> None:
    pdu = header(
        "25 80 0000 00 002000 0000000000000000 00000010 ffffffff 00000000 00000006 00000085 00000002 00004000"
    )
    found = describe(pdu)
    assert (found.name, found.data_length) == ("SCSI Data-In", 8192)
    assert found.fields["DataSN"] == 2
    assert found.fields["BufferOffset"] == 0x4000
    assert found.fields["MaxCmdSN"] == 0x85


@pytest.mark.parametrize(
    ("pdu", "name", "field", "value"),
    [
        ("43 87" + "00" * 46, "Login Request", "Stage", "operational>full"),
        ("23 41" + "00" * 46, "Login Response", "Stage", "security, continued"),
        ("23 00" + "00" * 34 + "0201", "Login Response", "Status", "authentication failure"),
        ("02 85", "Task Management Request", "Function", "logical unit reset"),
        ("22 80 05", "Task Management Response", "Response", "function not supported"),
        ("06 81", "Logout Request", "Reason", "close connection"),
        ("26 80 02", "Logout Response", "Response", "recovery not supported"),
        ("10 83", "SNACK Request", "Type", "r data"),
        ("3f 80 04", "Reject", "Reason", "protocol error"),
        ("32 80" + "00" * 34 + "01", "Asynchronous Message", "Event", "logout request"),
        ("3f 80 77", "Reject", "Reason", "0x77"),
        ("31 80" + "00" * 42 + "00000200", "R2T", "DesiredLength", 512),
        ("00 80 0000 00000000 c101000000000000", "NOP-Out", "LUN", "0xc101000000000000"),
    ],
)
def test_codes_have_the_names_of_the_rfc(pdu: str, name: str, field: str, value: object) -> None:
    found = describe(header(pdu))
    assert (found.name, found.fields[field]) == (name, value)


@pytest.mark.parametrize(
    ("first", "name"),
    [(0x2A, "WRITE(10)"), (0x88, "READ(16)"), (0x00, "TEST UNIT READY"), (0xEE, "operation code 0xee")],
)
def test_cdbs_have_the_names_of_t10(first: int, name: str) -> None:
    assert cdb_name(bytes((first,)).ljust(16, b"\0")) == name


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_every_type_of_pdu_has_a_name_and_its_tag(opcode: Opcode) -> None:
    found = describe(header(f"{opcode:02x} 80 0000 00000000 0000000000000000 12345678"))
    assert not found.name.startswith("opcode")
    assert found.fields["ITT"] == "0x12345678"


def test_what_is_no_pdu_says_so() -> None:
    assert describe(b"\x01" * 20).name == "part of a PDU (20 bytes)"
    assert describe(header("1c 80")).name == "opcode 0x1c"
