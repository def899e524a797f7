# SPDX-License-Identifier: GPL-3.0-or-later
"""What an independent decoder, Wireshark's, reads in the PDUs that we encode."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from blockfleet.iscsi.pdu import (
    DataOut,
    LoginRequest,
    LogoutRequest,
    NopOut,
    Pdu,
    ScsiCommandPdu,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
    login_flags,
)
from blockfleet.iscsi.text import encode_text

READ_10 = bytes.fromhex("28000000002000000800") + bytes(6)
WRITE_10 = bytes.fromhex("2a000000002000000100") + bytes(6)
LOGIN_TEXT = [("InitiatorName", "iqn.2026-11.com.example:host"), ("SessionType", "Discovery")]

# What is sent, and the fields that the decoder must find.
SENT: list[tuple[Pdu, dict[str, str]]] = [
    (
        LoginRequest(
            flags=login_flags(0, 1, transit=True),
            isid=bytes.fromhex("800123456789"),
            initiator_task_tag=0x11,
            cid=7,
            cmd_sn=0x21,
            data=encode_text(LOGIN_TEXT),
        ),
        {
            "iscsi.opcode": "0x03",
            "iscsi.login.T": "1",
            "iscsi.login.C": "0",
            "iscsi.login.csg": "0x00",
            "iscsi.login.nsg": "0x01",
            "iscsi.isid.t": "0x02",
            "iscsi.initiatortasktag": "0x00000011",
            "iscsi.cid": "0x0007",
            "iscsi.cmdsn": "33",
            "iscsi.keyvalue": "InitiatorName=iqn.2026-11.com.example:host,SessionType=Discovery",
        },
    ),
    (
        ScsiCommandPdu(
            flags=0xC1,
            lun=1 << 48,
            initiator_task_tag=0x12,
            expected_length=4096,
            cmd_sn=0x22,
            exp_stat_sn=9,
            cdb=READ_10,
        ),
        {
            "iscsi.opcode": "0x01",
            "iscsi.scsicommand.F": "1",
            "iscsi.scsicommand.R": "1",
            "iscsi.scsicommand.W": "0",
            "iscsi.scsicommand.attr": "0x01",
            "iscsi.scsicommand.expecteddatatransferlength": "4096",
            "iscsi.expstatsn": "9",
        },
    ),
    (
        ScsiCommandPdu(
            flags=0x21, initiator_task_tag=0x13, expected_length=1024, cmd_sn=0x23, cdb=WRITE_10, data=b"\x5a" * 512
        ),
        {"iscsi.opcode": "0x01", "iscsi.scsicommand.W": "1", "iscsi.datasegmentlength": "512"},
    ),
    (
        DataOut(
            flags=0x80,
            initiator_task_tag=0x13,
            target_transfer_tag=0x77,
            exp_stat_sn=10,
            data_sn=3,
            offset=512,
            data=b"\xa5" * 512,
        ),
        {
            "iscsi.opcode": "0x05",
            "iscsi.scsidata.F": "1",
            "iscsi.targettransfertag": "0x00000077",
            "iscsi.datasn": "3",
            "iscsi.bufferOffset": "512",
        },
    ),
    (
        TaskManagementRequest(
            immediate=True,
            function=8,
            initiator_task_tag=0x14,
            referenced_task_tag=0x12,
            cmd_sn=0x24,
            ref_cmd_sn=0x22,
            exp_data_sn=5,
        ),
        {
            "iscsi.opcode": "0x02",
            "iscsi.taskmanfun.function": "0x08",
            "iscsi.taskmanfun.referencedtasktag": "0x00000012",
            "iscsi.refcmdsn": "34",
        },
    ),
    (
        TextRequest(flags=0x80, initiator_task_tag=0x15, cmd_sn=0x24, data=b"SendTargets=All\0"),
        {
            "iscsi.opcode": "0x04",
            "iscsi.text.F": "1",
            "iscsi.targettransfertag": "0xffffffff",
            "iscsi.keyvalue": "SendTargets=All",
        },
    ),
    (
        SnackRequest(type=1, exp_stat_sn=11, beg_run=12, run_length=2),
        {
            "iscsi.opcode": "0x10",
            "iscsi.snack.type": "1",
            "iscsi.snack.begrun": "0x0000000c",
            "iscsi.snack.runlength": "2",
        },
    ),
    (
        NopOut(immediate=True, initiator_task_tag=0x16, cmd_sn=0x25, exp_stat_sn=12, data=b"ping"),
        {"iscsi.opcode": "0x00", "iscsi.I": "1", "iscsi.initiatortasktag": "0x00000016"},
    ),
    (
        LogoutRequest(immediate=True, reason=1, initiator_task_tag=0x17, cid=7, cmd_sn=0x25),
        {"iscsi.opcode": "0x06", "iscsi.logout.reason": "0x01", "iscsi.cid": "0x0007"},
    ),
]


def _pcap(payloads: list[bytes]) -> bytes:
    """A capture of raw IPv4 packets of one TCP connection to port 3260, a payload each."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    sequence = 1
    for number, payload in enumerate(payloads):
        tcp = struct.pack(">HHIIBBHHH", 40000, 3260, sequence, 1, 5 << 4, 0x18, 65535, 0, 0)
        length = 20 + len(tcp) + len(payload)
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, length, number, 0, 64, 6, 0, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
        )
        out += struct.pack("<IIII", number, 0, length, length) + ip + tcp + payload
        sequence += len(payload)
    return out


@pytest.mark.peer
def test_wireshark_reads_every_request_as_it_was_meant(tmp_path: Path) -> None:
    capture = tmp_path / "requests.pcap"
    capture.write_bytes(_pcap([pdu.to_wire() for pdu, _ in SENT]))
    fields = sorted({name for _, expected in SENT for name in expected})
    command = ["tshark", "-n", "-r", str(capture), "-T", "fields", "-E", "separator=|", "-E", "aggregator=,"]
    for name in [*fields, "_ws.malformed"]:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    # Newer versions write booleans as words.
    rows = done.stdout.replace("True", "1").replace("False", "0").splitlines()
    assert len(rows) == len(SENT)
    for row, (pdu, expected) in zip(rows, SENT, strict=True):
        found = dict(zip([*fields, "malformed"], row.split("|"), strict=True))
        assert found.pop("malformed") == "", type(pdu).__name__
        assert {name: found[name] for name in expected} == expected, type(pdu).__name__
