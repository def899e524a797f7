# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces of all sessions of a test module, in one file, judged by tshark and by what the targets noted.

Every nexus and every discovery of a test is traced as ``blockfleet trace`` would, from the first byte on.  At the
end of the module one run of tshark decodes the file.  What it complains of has to be the work of a target:

* each connection on which a target in this process took a login is in the trace;
* of what this initiator sent it complains of nothing, and finds each PDU of the trace;
* what came from a target in this process is, byte by byte, what that target says it sent, so that whatever is wrong
  with it was made there; of what came from any other target it complains of nothing either;
* no CHAP response can be read anywhere.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from tests.peers.capture import Recording
from tests.peers.wire import Ends, Noted, Wire

from blockfleet.cli.tracefile import TraceFile
from blockfleet.engine import trace as trace_module
from blockfleet.engine.interface import TraceBatch, TraceRecord, TraceSpec
from blockfleet.engine.trace import Trace
from blockfleet.net import login
from blockfleet.net.driver import SessionDriver
from blockfleet.net.tap import Link, Passed, Recorder
from blockfleet.net.transport import SessionTransport

VERDICT = "test_tshark_finds_every_pdu_that_was_sent_in_this_module_and_nothing_wrong_with_it"
ANY = "iqn.2026-11.com.example:any"
LOGIN_OPCODES = frozenset({0x03, 0x23})
TASK_REQUEST, TASK_REASSIGN = 0x02, 8
MASK = ord("*")
OUTBOUND, INBOUND = False, True

_FRAME = re.compile(r"^Frame (\d+): .*\((inbound|outbound)\)$")
_STREAM = re.compile(r"^    \[Stream index: (\d+)\]$")
_PDU = re.compile(r"^iSCSI \(")
_COMPLAINT = re.compile(r"\[Expert Info \((?:Warning|Error)/\w+\): (.*)\]|(\w+Digest: .*\(Bad CRC32.*)")
_NO_COMPLAINTS = (
    "Connection reset (RST)",
    # The dissector knows a task by its TCP connection, and a task that was reassigned goes on on another one.
    "Unknown SCSI exchange, can not decode SCSI data",
)
_RESPONSE = re.compile(rb"(?:^|\0)CHAP_R=\**[^*\0]")


@dataclass
class Stream:
    """One TCP connection of a scenario, as it is in the file."""

    scenario: str
    noted: Noted | None
    pdus: list[int] = field(default_factory=lambda: [0, 0])


@dataclass(frozen=True)
class Complaint:
    """What tshark says of a frame."""

    frame: int
    stream: int
    inbound: bool
    text: str


class SuiteTrace:
    """The trace file of a module; ``wrong`` is what was found to be wrong before tshark is asked."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.streams: list[Stream] = []
        self.wrong: list[str] = []
        self.clean = False
        """Judged, and nothing was found."""
        self._ports: set[int] = set()
        self._stream = file.open("wb")
        self._written = TraceFile(self._stream, ANY)

    def take(self, scenario: str, batches: Iterable[TraceBatch], wire: Wire) -> None:
        """Append the trace of one test, and compare it with what its targets noted."""
        open_streams: dict[int, Stream] = {}
        traced: set[Ends] = set()
        for batch in batches:
            if batch.dropped:
                self.wrong.append(f"{scenario}: {batch.dropped} PDUs are missing in the trace")
            for record in batch.records:
                if record.kind == "opened":
                    ends = record.remote, record.local
                    traced.add(ends)
                    self._ports.add(record.remote[1])
                    stream = Stream(scenario, wire.connections.get(ends))
                    open_streams[record.connection] = stream
                    self.streams.append(stream)
                elif record.kind == "pdu":
                    self._pdu(open_streams[record.connection], record)
            self._written.write(batch)
        self.wrong += [f"{scenario}: a login from {ends[1]} is not in the trace" for ends in wire.logins - traced]

    def _pdu(self, stream: Stream, record: TraceRecord) -> None:
        pdu = b64decode(record.data)
        # The dissector takes functions of RFC 7144 (4.1) for something else than iSCSI.
        if pdu[0] & 0x3F != TASK_REQUEST or pdu[1] & 0x7F <= TASK_REASSIGN:
            stream.pdus[record.inbound] += 1
        if pdu[0] & 0x3F in LOGIN_OPCODES and _RESPONSE.search(pdu, 48):
            self.wrong.append(f"{stream.scenario}: a CHAP response can be read in {pdu[48:]!r}")
        if stream.noted is None:
            return
        whole = stream.noted.sent if record.inbound else stream.noted.received
        there = whole[record.offset : record.offset + len(pdu)]
        # What the target has not taken before the connection ended cannot be compared.
        if not _same(pdu if record.inbound else pdu[: len(there)], there):
            way = "the target sent" if record.inbound else "reached the target"
            self.wrong.append(f"{stream.scenario}: {pdu.hex()} is in the trace, {there.hex()} {way}")

    def judge(self) -> list[str]:
        """Let tshark decode the file; return all that is wrong, by scenario and frame."""
        self.close()
        found, complaints = self._decoded()
        wrong = list(self.wrong)
        for index, stream in enumerate(self.streams):
            sent, seen = stream.pdus[OUTBOUND], found[index, OUTBOUND]
            if sent != seen:
                wrong.append(f"{stream.scenario}: {sent} PDUs were sent on stream {index}, tshark finds {seen}")
        for complaint in complaints:
            stream = self.streams[complaint.stream]
            if not complaint.inbound or stream.noted is None:
                way = "from the target" if complaint.inbound else "to the target"
                wrong.append(f"{stream.scenario}: frame {complaint.frame} {way}: {complaint.text}")
        self.clean = not wrong
        return wrong

    def close(self) -> None:
        """Write no more."""
        self._stream.close()

    def _decoded(self) -> tuple[Counter[tuple[int, bool]], list[Complaint]]:
        """Return how many PDUs tshark finds on each stream each way, and what it complains of."""
        found: Counter[tuple[int, bool]] = Counter()
        complaints: list[Complaint] = []
        frame, stream, inbound = 0, -1, False
        for line in Recording(self.file, self._ports).decode("-O", "tcp,iscsi,_ws.malformed").splitlines():
            if begun := _FRAME.match(line):
                frame, stream, inbound = int(begun[1]), -1, begun[2] == "inbound"
            elif index := _STREAM.match(line):
                stream = int(index[1])
            elif _PDU.match(line):
                found[stream, inbound] += 1
            elif said := _COMPLAINT.search(line):
                text = said[1] or said[2]
                if text not in _NO_COMPLAINTS:
                    complaints.append(Complaint(frame, stream, inbound, text))
        return found, complaints


def _same(pdu: bytes, there: bytes | bytearray) -> bool:
    """Whether a PDU of the trace is what was on the wire, but for masked CHAP responses."""
    if pdu == there:
        return True
    if len(pdu) != len(there) or pdu[0] & 0x3F not in LOGIN_OPCODES:
        return False
    return all(ours in (theirs, MASK) for ours, theirs in zip(pdu, there, strict=True))


class _Sink:
    """Hands all that passes to a trace."""

    def __init__(self, trace: Trace, scenario: str) -> None:
        self._trace = trace
        self._scenario = scenario

    def link_opened(self, link: Link, login: Iterable[Passed]) -> None:
        self._trace.opened(link, self._scenario, login)

    def link_passed(self, link: Link, passed: Passed) -> None:
        self._trace.passed(link, passed)

    def link_closed(self, link: Link, time: int, reset: bool) -> None:
        self._trace.closed(link, time, reset)


@pytest.fixture(scope="module")
def suite_trace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuiteTrace]:
    """The trace of the module's tests."""
    trace = SuiteTrace(tmp_path_factory.mktemp("trace") / "suite.pcapng")
    yield trace
    trace.close()
    if trace.clean:
        trace.file.unlink()


@pytest_asyncio.fixture(autouse=True)
async def traced(
    request: pytest.FixtureRequest, suite_trace: SuiteTrace, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """Trace every session of the test, unless it is marked ``untraced``."""
    if request.node.get_closest_marker("untraced"):
        yield
        return
    monkeypatch.setattr(trace_module, "MAXIMUM_HELD", 1 << 30)
    wire = Wire()
    wire.install(monkeypatch)
    trace = Trace(TraceSpec(target=ANY))
    sink = _Sink(trace, request.node.name)

    def transport(driver: SessionDriver, recorder: Recorder | None = None) -> SessionTransport:
        recorder = recorder or Recorder()
        if sink not in recorder.sinks:
            recorder.attach(sink)
        return SessionTransport(driver, recorder)

    monkeypatch.setattr(login, "SessionTransport", transport)
    yield
    trace.end()
    suite_trace.take(request.node.name, [batch async for batch in trace.batches()], wire)


def add_verdicts(items: list[pytest.Item], folder: Path, without: frozenset[str]) -> None:
    """Let each module of a folder end with the judgement over its trace; ``without`` are those without sessions."""
    last: dict[pytest.Module, int] = {}
    for index, item in enumerate(items):
        module = item.getparent(pytest.Module)
        if module is not None and module.path.parent == folder and module.path.name not in without:
            last[module] = index
    for module, index in sorted(last.items(), key=lambda pair: -pair[1]):
        verdict = pytest.Function.from_parent(module, name=VERDICT, callobj=_verdict)
        for marker in ("peer", "untraced"):
            verdict.add_marker(marker)
        items.insert(index + 1, verdict)


def _verdict(suite_trace: SuiteTrace) -> None:
    if not suite_trace.streams and not suite_trace.wrong:
        pytest.skip("no test of this module that was run had a session")
    wrong = suite_trace.judge()
    assert not wrong, "\n".join([*wrong, f"the trace is {suite_trace.file}"])
