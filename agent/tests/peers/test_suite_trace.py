# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge over the traces of test modules finds what is wrong, and says where."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.conformance import wire as raw
from tests.peers.suite_trace import SuiteTrace
from tests.peers.wire import Noted, Wire

from blockfleet.engine.interface import TraceBatch, TraceRecord

pytestmark = pytest.mark.peer

LOCAL, REMOTE = ("127.0.0.1", 50000), ("127.0.0.1", 3260)
OUT, IN = False, True
Sent = tuple[bool, bytes]


def digested(
    bhs: bytes | bytearray, data: bytes = b"", *, header_wrong: bool = False, data_wrong: bool = False
) -> bytes:
    """A PDU with both digests, or with one that is wrong by a bit."""
    head = bytearray(bhs)
    head[5:8] = len(data).to_bytes(3, "big")
    parts = [bytes(head), bytes([raw.digest(bytes(head))[0] ^ header_wrong]) + raw.digest(bytes(head))[1:]]
    if data:
        digest = raw.digest(data)
        parts += [data, bytes([digest[0] ^ data_wrong]) + digest[1:]]
    return b"".join(parts)


def login(opcode: int, text: bytes, cmdsn: int = 7) -> bytes:
    bhs = raw.header(opcode, 0x81, itt=1, cmdsn=cmdsn)
    bhs[5:8] = len(text).to_bytes(3, "big")
    return bytes(bhs) + text + raw.pad(len(text))


REQUEST, ANSWER = login(0x43, b"InitiatorName=iqn.2026-11.com.example:h\0"), login(0x23, b"AuthMethod=None\0")
GOOD: list[Sent] = [
    (OUT, REQUEST),
    (IN, ANSWER),
    (OUT, digested(raw.header(raw.NOP_OUT, itt=5, ttt=raw.NONE_TAG, cmdsn=7), b"ping")),
    (IN, digested(raw.header(raw.NOP_IN, itt=5, ttt=raw.NONE_TAG, statsn=8), b"ping")),
]
BAD_HEADER = digested(raw.header(raw.NOP_OUT, itt=6, ttt=raw.NONE_TAG, cmdsn=8), header_wrong=True)
BAD_DATA = digested(raw.header(raw.NOP_OUT, itt=6, ttt=raw.NONE_TAG, cmdsn=8), b"pong", data_wrong=True)
BAD_ANSWER = digested(raw.header(raw.NOP_IN, itt=6, ttt=raw.NONE_TAG, statsn=9), b"pong", data_wrong=True)
NO_END = login(0x43, b"AuthMethod=CHAP,")
RESPONSE = login(0x43, b"CHAP_N=host\0CHAP_R=0x0123456789abcdef\0")


def batch(pdus: list[Sent], *, number: int = 1, dropped: int = 0, skip: int = 0) -> TraceBatch:
    """A trace of one connection; ``skip`` bytes are missing before the last PDU."""
    records = [TraceRecord(kind="opened", connection=number, time=1_000, local=LOCAL, remote=REMOTE)]
    offsets = [0, 0]
    for index, (inbound, pdu) in enumerate(pdus):
        if index == len(pdus) - 1:
            offsets[inbound] += skip
        records.append(
            TraceRecord(
                kind="pdu",
                connection=number,
                time=2_000 + index,
                inbound=inbound,
                offset=offsets[inbound],
                length=len(pdu),
                data=base64.b64encode(pdu).decode(),
            )
        )
        offsets[inbound] += len(pdu)
    records.append(TraceRecord(kind="closed", connection=number, time=9_000))
    return TraceBatch(records=tuple(records), dropped=dropped)


def noted(pdus: list[Sent]) -> Wire:
    """A target that has noted these PDUs."""
    wire = Wire()
    sent, received = (bytearray(b"".join(pdu for way, pdu in pdus if way is wanted)) for wanted in (IN, OUT))
    wire.connections[REMOTE, LOCAL] = Noted(sent, received)
    return wire


def judged(folder: Path, *tests: tuple[str, TraceBatch, Wire]) -> list[str]:
    trace = SuiteTrace(folder / "t.pcapng")
    for scenario, traced, wire in tests:
        trace.take(scenario, [traced], wire)
    return trace.judge()


def test_nothing_is_wrong_with_good_pdus_on_connections_between_the_same_ports(tmp_path: Path) -> None:
    again = ("second", batch(GOOD, number=2), noted(GOOD))
    assert judged(tmp_path, ("first", batch(GOOD), noted(GOOD)), again) == []


@pytest.mark.parametrize(
    ("pdu", "text"),
    [
        pytest.param(BAD_HEADER, "HeaderDigest", id="header digest"),
        pytest.param(BAD_DATA, "DataDigest", id="data digest"),
        pytest.param(NO_END, "Malformed Packet", id="text without an end"),
    ],
)
def test_what_this_side_sent_wrong_is_found_with_its_scenario_and_frame(
    tmp_path: Path, pdu: bytes, text: str
) -> None:
    pdus: list[Sent] = [*GOOD, (OUT, pdu)]
    found = judged(tmp_path, ("first", batch(GOOD), noted(GOOD)), ("second", batch(pdus, number=2), noted(pdus)))
    assert len(found) == 1
    # A connection has three frames before its PDUs and one behind them.
    assert found[0].startswith(f"second: frame {8 + 8} to the target: ")
    assert text in found[0]


def test_what_a_target_says_it_sent_wrong_is_its_own_affair(tmp_path: Path) -> None:
    pdus: list[Sent] = [*GOOD, (IN, BAD_ANSWER)]
    assert judged(tmp_path, ("one", batch(pdus), noted(pdus))) == []


def test_what_comes_wrong_from_a_target_that_says_nothing_is_found(tmp_path: Path) -> None:
    pdus: list[Sent] = [*GOOD, (IN, BAD_ANSWER)]
    (found,) = judged(tmp_path, ("one", batch(pdus), Wire()))
    assert found.startswith("one: frame 8 from the target: DataDigest")


@pytest.mark.parametrize("way", [OUT, IN], ids=["sent", "received"])
def test_a_trace_that_is_not_what_was_on_the_wire_is_found(tmp_path: Path, way: bool) -> None:
    wire = noted(GOOD)
    ours = wire.connections[REMOTE, LOCAL]
    (ours.sent if way is IN else ours.received)[60] ^= 1
    (found,) = judged(tmp_path, ("one", batch(GOOD), wire))
    assert found.startswith("one: ")
    assert " is in the trace, " in found


def test_a_pdu_that_is_missing_is_found(tmp_path: Path) -> None:
    pdus: list[Sent] = [*GOOD, (OUT, digested(raw.header(raw.NOP_OUT, itt=7, ttt=raw.NONE_TAG, cmdsn=9)))]
    found = judged(tmp_path, ("gap", batch(pdus, skip=52), Wire()))
    assert any("Previous segment" in one for one in found), found
    found = judged(tmp_path, ("slow", batch(GOOD, dropped=3), noted(GOOD)))
    assert found == ["slow: 3 PDUs are missing in the trace"]


def test_a_session_that_is_not_traced_is_found(tmp_path: Path) -> None:
    found = judged(tmp_path, ("one", batch(GOOD), Wire()), ("two", TraceBatch(), noted(GOOD)))
    assert found == [f"two: a login from {LOCAL} is not in the trace"]


def test_what_tshark_takes_for_something_else_is_found(tmp_path: Path) -> None:
    pdus: list[Sent] = [*GOOD, (OUT, b"\x3e" * 48)]
    found = judged(tmp_path, ("one", batch(pdus), noted(pdus)))
    assert "one: 3 PDUs were sent on stream 0, tshark finds 2" in found


def test_sec_a_chap_response_that_can_be_read_is_found_and_a_masked_one_is_none(tmp_path: Path) -> None:
    open_: list[Sent] = [(OUT, RESPONSE), *GOOD[1:]]
    masked: list[Sent] = [(OUT, RESPONSE.replace(b"0x0123456789abcdef", b"*" * 18)), *GOOD[1:]]
    (found,) = judged(tmp_path, ("one", batch(open_), noted(open_)))
    assert found.startswith("one: a CHAP response can be read")
    assert judged(tmp_path, ("one", batch(masked), noted(open_))) == []
