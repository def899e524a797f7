# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb ``trace``: the PDUs of a target's sessions, into a capture file or onto the terminal."""

from __future__ import annotations

import contextlib
import datetime
import signal
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.status import Status
from rich.text import Text

from blockfleet.cli import present, tracefile
from blockfleet.cli.exits import Exit
from blockfleet.cli.tables import DOUBTFUL, FAINT, STRONG
from blockfleet.cli.terminal import Environment, JsonFlag, environment
from blockfleet.cli.tracefile import STANDARD_OUTPUT, TraceFile
from blockfleet.engine.interface import TraceBatch, TraceRecord
from blockfleet.iscsi.describe import Description, describe
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal

Json = dict[str, Any]

_WORDS = {"all": None, "none": 0}


@dataclass(slots=True)
class Tally:
    """What a trace has come to."""

    pdus: int = 0
    size: int = 0
    connections: int = 0
    dropped: int = 0
    dropped_size: int = 0
    ports: set[int] = field(default_factory=set)
    ended: bool = False

    def add(self, batch: TraceBatch) -> None:
        """Count a batch."""
        self.dropped, self.dropped_size, self.ended = batch.dropped, batch.dropped_bytes, batch.ended
        for record in batch.records:
            if record.kind == "opened":
                self.connections += 1
                self.ports.add(record.remote[1])
            elif record.kind == "pdu":
                self.pdus += 1
                self.size += record.length

    def as_json(self) -> Json:
        """Return the counts for programs."""
        return {
            "pdus": self.pdus,
            "bytes": self.size,
            "connections": self.connections,
            "dropped": self.dropped,
            "dropped_bytes": self.dropped_size,
        }

    def __str__(self) -> str:
        connections = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        text = f"{self.pdus} PDUs, {present.size(self.size)}, {connections}"
        if self.dropped:
            text += f"; {self.dropped} PDUs ({present.size(self.dropped_size)}) dropped: the reader was too slow"
        return text


class Interrupt:
    """SIGINT and SIGTERM as a request to stop: at once while waiting, else when the work in hand is done."""

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals meanwhile, where this is the thread that gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def until(self, lines: Iterator[Json]) -> Iterator[Json]:
        """Yield lines until the request."""
        while not self.asked:
            try:
                self._waiting = True
                line = next(lines, None)
                self._waiting = False
            except KeyboardInterrupt:
                return
            if line is None:
                return
            yield line

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt


def trace(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The target's iSCSI name.")],
    *,
    portal: Annotated[
        str | None, typer.Option(metavar="PORTAL", help="Only the sessions through this portal.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", "-w", metavar="FILE", allow_dash=True, help="Write pcapng; - is stdout."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="Stop after so many seconds.")
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="BYTES|all|none", help="How much SCSI data of each PDU to keep.")
    ] = "all",
    with_chap: Annotated[
        bool, typer.Option("--with-chap", help="Leave CHAP responses readable instead of masking them.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Record the PDUs of a target's sessions.

    Runs until Ctrl-C, until SECONDS are over or the sessions are closed, over reconnects. With --write the
    file opens in Wireshark and tshark; where the target's port is not 3260, 'tshark -d tcp.port==PORT,iscsi'
    tells them what it is. Without it each PDU is a line. The file holds what is read and written; guard it.
    """
    tools = environment(context)
    request: Json = {"target": target, "with_chap": with_chap, "data": 0 if write is None else _limit(data)}
    if portal is not None:
        request["portal"] = portal
    if seconds is not None:
        request["seconds"] = seconds
    tally, interrupt = Tally(), Interrupt()
    with interrupt.installed(), contextlib.closing(tools.agent.stream("/v1/trace", request)) as lines:
        batches = map(_batch, interrupt.until(lines))
        if write is None:
            _show(tools, batches, tally, json=json)
        else:
            _record(tools, batches, tally, write, target)
    if not tally.ended and not interrupt.asked:
        raise BlockfleetError(
            Isdsc.ENGINE_NOT_RUNNING,
            f"the trace ended early, after {tally}: the agent or the engine went away",
            remedy="look at their journals",
        )
    _summarise(tools, tally, write, json=json)
    raise typer.Exit(Exit.IN_SYNC)


def _limit(text: str) -> int | None:
    if text in _WORDS:
        return _WORDS[text]
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 24):
        raise BlockfleetError(
            Isdsc.INVALID_PARAMETER,
            f"cannot keep {text[:20]!r} of each PDU's data",
            remedy="give a number of bytes below 16777216, all or none",
            field="--data",
        )
    return int(text)


def _batch(line: Json) -> TraceBatch:
    line.pop("format_version", None)
    return TraceBatch.model_validate(line)


# -- into a file


def _record(tools: Environment, batches: Iterator[TraceBatch], tally: Tally, path: Path, target: str) -> None:
    # What is wrong with the request is known before a file of an earlier trace is overwritten.
    first = next(batches, None)
    if first is None:
        return
    with tracefile.create(path) as stream, _progress(tools) as status:
        file = TraceFile(stream, target)
        batch: TraceBatch | None = first
        while batch is not None:
            file.write(batch)
            tally.add(batch)
            if status is not None:
                status.update(f"{tally}; Ctrl-C to stop")
            batch = next(batches, None)
        file.finish(tally.pdus + tally.dropped, tally.dropped, time.time_ns() // 1000)


@contextlib.contextmanager
def _progress(tools: Environment) -> Iterator[Status | None]:
    console = tools.terminal.err
    if not console.is_terminal:
        yield None
        return
    with console.status("waiting for PDUs; Ctrl-C to stop") as status:
        yield status


def _summarise(tools: Environment, tally: Tally, path: Path | None, *, json: bool) -> None:
    if json and path == STANDARD_OUTPUT:
        json = False
    if json:
        summary: Json = tally.as_json()
        if path is not None:
            summary |= {"file": str(path), "read_with": tracefile.reading_command(path, tally.ports)}
            tools.terminal.show_json({"trace": summary})
        else:
            tools.terminal.show_line({"format_version": 1, "trace": summary})
        return
    console = tools.terminal.err
    console.out(str(tally), highlight=False)
    if path is not None:
        console.out(f"read it with: {tracefile.reading_command(path, tally.ports)}", highlight=False)


# -- onto the terminal


@dataclass(frozen=True, slots=True)
class _Ends:
    local: str
    remote: str


def _show(tools: Environment, batches: Iterator[TraceBatch], tally: Tally, *, json: bool) -> None:
    ends: dict[int, _Ends] = {}
    for batch in batches:
        missing = batch.dropped - tally.dropped
        tally.add(batch)
        for record in batch.records:
            if record.kind == "opened":
                ends[record.connection] = _Ends(*(str(Portal(*end)) for end in (record.local, record.remote)))
            shown = _as_json(record, ends) if json else None
            if shown is not None:
                tools.terminal.show_line(shown)
            else:
                tools.terminal.show(_as_line(record, ends))
        if missing and not json:
            tools.terminal.show(Text(f"... {missing} PDUs dropped", DOUBTFUL))


def _way(record: TraceRecord, ends: dict[int, _Ends]) -> tuple[str, str]:
    found = ends[record.connection]
    return (found.remote, found.local) if record.inbound else (found.local, found.remote)


def _as_line(record: TraceRecord, ends: dict[int, _Ends]) -> Text:
    moment = datetime.datetime.fromtimestamp(record.time / 1e6).astimezone()
    source, destination = _way(record, ends)
    line = Text().append(f"{moment:%H:%M:%S.%f} ", FAINT).append(f"{source} > {destination}: ")
    if record.kind == "opened":
        return line.append(f"connected, session {record.session}", STRONG)
    if record.kind == "closed":
        return line.append("reset" if record.reset else "closed", STRONG)
    found = describe(b64decode(record.data))
    line.append(found.name, STRONG)
    line.append("".join(f", {name} {value}" for name, value in found.fields.items()))
    line.append(f", length {_lengths(found, record)}")
    return line.append(" (before the trace)", FAINT) if record.before else line


def _lengths(found: Description, record: TraceRecord) -> str:
    return f"{record.length} (data {found.data_length})" if found.data_length else str(record.length)


def _as_json(record: TraceRecord, ends: dict[int, _Ends]) -> Json:
    source, destination = _way(record, ends)
    shown: Json = {
        "format_version": 1,
        "kind": record.kind,
        "time": record.time / 1e6,
        "connection": record.connection,
        "source": source,
        "destination": destination,
    }
    if record.kind == "opened":
        return shown | {"session": record.session}
    if record.kind == "closed":
        return shown | {"reset": record.reset}
    found = describe(b64decode(record.data))
    return shown | {
        "inbound": record.inbound,
        "before": record.before,
        "opcode": found.opcode,
        "name": found.name,
        "fields": found.fields,
        "length": record.length,
        "data_length": found.data_length,
        "ahs_length": found.ahs_length,
    }
