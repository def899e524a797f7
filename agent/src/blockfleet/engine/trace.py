# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces of a target's sessions: from the taps of their nexuses to batches for whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

from blockfleet.engine.interface import TraceBatch, TraceRecord, TraceSpec
from blockfleet.engine.parameters import iscsi_name, parse_portal
from blockfleet.engine.session import Session
from blockfleet.iscsi.constants import BHS_LENGTH, OPCODE_MASK, Opcode
from blockfleet.iscsi.digest import DIGEST_LENGTH
from blockfleet.iscsi.layout import LENGTHS, LENGTHS_OFFSET, split_lengths
from blockfleet.iscsi.masking import LoginMask
from blockfleet.iscsi.splitter import LOGIN_OPCODES
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.net.tap import Link, Passed

MAXIMUM_TRACES = 4
"""Traces of one engine at the same time."""

MAXIMUM_HELD = 16 << 20
"""Bytes that a trace holds for its reader; PDUs that come then are dropped and counted."""

LOGIN_RESERVE = 1 << 20
"""Bytes beyond :data:`MAXIMUM_HELD` for logins, without which what follows cannot be read, and for ends."""

BATCH = 256 << 10
"""Bytes from which on a batch is full."""

LINGER = 0.02
"""Seconds that a batch waits for more."""

MAXIMUM_KEPT = 8 << 20
"""Bytes that are kept of one PDU, so that a batch fits into one answer of the control protocol."""

_PDU_SIZE = 320
"""Bytes that are held for a PDU beside its own."""

_RECORD_SIZE = 1536
"""Bytes that are held for the beginning or the end of a connection."""

_DATA_PDUS = frozenset({Opcode.SCSI_COMMAND, Opcode.SCSI_DATA_OUT, Opcode.SCSI_DATA_IN})
"""PDUs whose data segment is a user's."""


@dataclass(slots=True)
class _Stream:
    """What a trace knows of one connection."""

    session: str
    offsets: list[int] = field(default_factory=lambda: [0, 0])
    masks: tuple[LoginMask, LoginMask] = field(default_factory=lambda: (LoginMask(), LoginMask()))


@dataclass(slots=True)
class _Pdu:
    """A PDU that waits for the reader, as far as it is kept; small beside the record that is made of it."""

    connection: int
    time: int
    inbound: bool
    before: bool
    offset: int
    length: int
    kept: bytes

    def record(self) -> TraceRecord:
        """Return what the reader is told."""
        return TraceRecord.model_construct(
            kind="pdu",
            connection=self.connection,
            time=self.time,
            inbound=self.inbound,
            before=self.before,
            offset=self.offset,
            length=self.length,
            data=b64encode(self.kept).decode("ascii"),
        )


def _size(one: _Pdu | TraceRecord) -> int:
    return _PDU_SIZE + len(one.kept) if isinstance(one, _Pdu) else _RECORD_SIZE


class _SessionSink:
    """Hands what the taps of one session see to its trace, with the session's key."""

    def __init__(self, trace: Trace, key: str) -> None:
        self._trace = trace
        self._key = key

    def link_opened(self, link: Link, login: Iterable[Passed]) -> None:
        """Take a connection."""
        self._trace.opened(link, self._key, login)

    def link_passed(self, link: Link, passed: Passed) -> None:
        """Take a PDU."""
        self._trace.passed(link, passed)

    def link_closed(self, link: Link, time: int, reset: bool) -> None:
        """Take the end of a connection."""
        self._trace.closed(link, time, reset)


class Trace:
    """One reader's view of the sessions that its ``spec`` selects; never waits and never makes anybody wait."""

    def __init__(self, spec: TraceSpec) -> None:
        self.spec = spec.model_copy(update={"target": iscsi_name(spec.target, "target")})
        self._portal = None if spec.portal is None else parse_portal(spec.portal, "portal")
        self._sessions: dict[Session, _SessionSink] = {}
        self._streams: dict[int, _Stream] = {}
        self._held: deque[_Pdu | TraceRecord] = deque()
        self._held_bytes = 0
        self._dropped = 0
        self._dropped_bytes = 0
        self._ended = False
        self._something = asyncio.Event()
        self._plenty = asyncio.Event()

    # -- sessions

    def selects(self, session: Session) -> bool:
        """Tell whether a session belongs into this trace."""
        parameters = session.nexus.parameters
        return parameters.target == self.spec.target and self._portal in (None, parameters.portal)

    def add(self, session: Session) -> None:
        """Read a session from now on."""
        sink = self._sessions[session] = _SessionSink(self, session.spec.key)
        session.nexus.recorder.attach(sink)

    def remove(self, session: Session) -> None:
        """Read a session no more; with the last one the trace ends."""
        sink = self._sessions.pop(session, None)
        if sink is not None:
            session.nexus.recorder.detach(sink)
            if not self._sessions:
                self.end()

    def close(self) -> None:
        """Read nothing any more."""
        for session in tuple(self._sessions):
            self.remove(session)

    def end(self) -> None:
        """Let the reader take what is held, and stop."""
        self._ended = True
        self._something.set()
        self._plenty.set()

    # -- what the taps see

    def opened(self, link: Link, session: str, login: Iterable[Passed]) -> None:
        """Take a connection and what is known of its login, or nothing of it where there is no room."""
        if self._held_bytes + 2 * _RECORD_SIZE > MAXIMUM_HELD + LOGIN_RESERVE:
            return
        self._streams[link.number] = _Stream(session)
        record = TraceRecord(
            kind="opened",
            connection=link.number,
            time=link.opened,
            session=session,
            local=link.local,
            remote=link.remote,
        )
        self._hold(record)
        for passed in login:
            self.passed(link, passed, before=True)

    def passed(self, link: Link, passed: Passed, *, before: bool = False) -> None:
        """Take a PDU, or count it as dropped."""
        stream, inbound, pdu = self._streams.get(link.number), passed.inbound, passed.pdu
        if stream is None:
            self._drop(pdu)
            return
        offset = stream.offsets[inbound]
        stream.offsets[inbound] = offset + len(pdu)
        login = pdu[0] & OPCODE_MASK in LOGIN_OPCODES
        if self._held_bytes + len(pdu) > MAXIMUM_HELD + (LOGIN_RESERVE if login else 0):
            self._drop(pdu)
            return
        if login and not self.spec.with_chap:
            pdu = stream.masks[inbound](pdu)
        kept = self._kept(pdu)
        self._hold(_Pdu(link.number, passed.time, inbound, before, offset, len(pdu), kept))

    def closed(self, link: Link, time: int, reset: bool) -> None:
        """Take the end of a connection."""
        if self._streams.pop(link.number, None) is not None:
            self._hold(TraceRecord(kind="closed", connection=link.number, time=time, reset=reset))

    def _drop(self, pdu: bytes) -> None:
        self._dropped += 1
        self._dropped_bytes += len(pdu)
        self._something.set()

    def _kept(self, pdu: bytes) -> bytes:
        limit = MAXIMUM_KEPT
        if self.spec.data is not None and pdu[0] & OPCODE_MASK in _DATA_PDUS and len(pdu) >= BHS_LENGTH:
            ahs_length, _ = split_lengths(LENGTHS.unpack_from(pdu, LENGTHS_OFFSET)[0])
            limit = min(limit, BHS_LENGTH + ahs_length + DIGEST_LENGTH + self.spec.data)
        return pdu[:limit]

    def _hold(self, one: _Pdu | TraceRecord) -> None:
        self._held.append(one)
        self._held_bytes += _size(one)
        self._something.set()
        if self._held_bytes >= BATCH:
            self._plenty.set()

    # -- what the reader gets

    async def batches(self) -> AsyncGenerator[TraceBatch, None]:
        """Yield what is held, as soon as there is something, until the trace has ended."""
        batch = self._batch()
        yield batch
        while not batch.ended:
            await self._something.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._plenty.wait(), LINGER)
            batch = self._batch()
            yield batch

    def _batch(self) -> TraceBatch:
        held, size = self._held, 0
        records: list[TraceRecord] = []
        while held and size < BATCH:
            one = held.popleft()
            size += _size(one)
            records.append(one.record() if isinstance(one, _Pdu) else one)
        self._held_bytes -= size
        if not held and not self._ended:
            self._something.clear()
            self._plenty.clear()
        return TraceBatch.model_construct(
            records=tuple(records),
            dropped=self._dropped,
            dropped_bytes=self._dropped_bytes,
            ended=self._ended and not held,
        )


class Traces:
    """The traces that an engine's clients have asked for."""

    def __init__(self) -> None:
        self._traces: set[Trace] = set()

    def session_opened(self, session: Session) -> None:
        """Let the traces that want it read a new session."""
        for trace in self._traces:
            if trace.selects(session):
                trace.add(session)

    def session_closed(self, session: Session) -> None:
        """Let no trace wait for a session that is gone."""
        for trace in self._traces:
            trace.remove(session)

    async def run(self, spec: TraceSpec, sessions: Iterable[Session]) -> AsyncGenerator[TraceBatch, None]:
        """Trace those of ``sessions`` that ``spec`` selects, and later ones.

        Raises ``TARGET_NOT_FOUND`` where there is none, ``OUT_OF_RESOURCES`` beyond :data:`MAXIMUM_TRACES`.
        """
        trace = Trace(spec)
        selected = [session for session in sessions if trace.selects(session)]
        if not selected:
            where = f" through {spec.portal}" if spec.portal is not None else ""
            raise BlockfleetError(
                Isdsc.TARGET_NOT_FOUND,
                f"cannot trace {trace.spec.target}{where}: there is no session to it",
                remedy="log in first; a session that does not get in can be traced too",
                field="target",
            )
        if len(self._traces) >= MAXIMUM_TRACES:
            raise BlockfleetError(
                Isdsc.OUT_OF_RESOURCES,
                f"cannot trace {trace.spec.target}: the engine already runs {MAXIMUM_TRACES} traces",
                remedy="end one of them",
            )
        timer = None
        if spec.seconds is not None:
            timer = asyncio.get_running_loop().call_later(spec.seconds, trace.end)
        self._traces.add(trace)
        try:
            for session in selected:
                trace.add(session)
            async with contextlib.aclosing(trace.batches()) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._traces.discard(trace)
            trace.close()
            if timer is not None:
                timer.cancel()
