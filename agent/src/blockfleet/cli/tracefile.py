# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace as a pcapng file, for Wireshark, tshark and whatever reads captures."""

from __future__ import annotations

import io
import os
import shlex
import sys
from base64 import b64decode
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from pcapng import FileWriter
from pcapng.blocks import EnhancedPacket, InterfaceDescription, InterfaceStatistics, SectionHeader

import blockfleet
from blockfleet.cli.frames import Conversation, Packet
from blockfleet.engine.interface import TraceBatch, TraceRecord
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import DEFAULT_PORT

STANDARD_OUTPUT = Path("-")

_LINKTYPE_RAW = 101
"""IP packets without a link layer (the registry of the tcpdump group)."""

_INBOUND, _OUTBOUND = 1, 2
"""Bits 0 and 1 of epb_flags (the pcapng specification, 4.3.1)."""

_BEFORE = "login of this connection, which was over when the trace began"


class TraceFile:
    """Writes batches to ``stream``; the file is whole after every call."""

    def __init__(self, stream: BinaryIO, target: str) -> None:
        self._stream = stream
        self._section = SectionHeader(options={"shb_userappl": f"blockfleet {blockfleet.__version__}"})
        self._section.new_member(
            InterfaceDescription,
            link_type=_LINKTYPE_RAW,
            options={"if_name": "iscsi", "if_description": f"iSCSI sessions to {target}"},
        )
        self._buffer = io.BytesIO()
        self._writer = FileWriter(self._buffer, self._section)
        self._conversations: dict[int, Conversation] = {}
        self._flush()

    def write(self, batch: TraceBatch) -> None:
        """Append what a batch holds."""
        for record in batch.records:
            self._record(record)
        self._flush()

    def finish(self, seen: int, dropped: int, time: int) -> None:
        """Append the statistics: PDUs that passed, and how many of them are missing."""
        self._block(
            InterfaceStatistics,
            time,
            options={"isb_ifrecv": seen, "isb_ifdrop": dropped, "isb_usrdeliv": seen - dropped},
        )
        self._flush()

    def _record(self, record: TraceRecord) -> None:
        if record.kind == "opened":
            number = record.connection
            conversation = self._conversations[number] = Conversation(number, record.local, record.remote)
            self._packets(record, conversation.opening())
        elif record.kind == "pdu":
            conversation = self._conversations[record.connection]
            kept = b64decode(record.data)
            self._packets(record, conversation.pdu(record.inbound, record.offset, record.length, kept))
        else:
            self._packets(record, self._conversations.pop(record.connection).closing(record.reset))

    def _packets(self, record: TraceRecord, packets: Iterable[Packet]) -> None:
        options: dict[str, object] = {"epb_flags": _INBOUND if record.inbound else _OUTBOUND}
        if record.before:
            options["opt_comment"] = _BEFORE
        for packet in packets:
            self._block(
                EnhancedPacket, record.time, packet_len=packet.length, packet_data=packet.data, options=options
            )

    def _block(self, kind: type, time: int, **fields: object) -> None:
        high, low = divmod(time, 1 << 32)
        block = self._section.new_member(kind, interface_id=0, timestamp_high=high, timestamp_low=low, **fields)
        self._writer.write_block(block)

    def _flush(self) -> None:
        """Hand on whole blocks only, in one go."""
        self._stream.write(self._buffer.getbuffer())
        self._stream.flush()
        self._buffer.seek(0)
        self._buffer.truncate()


def create(path: Path) -> BinaryIO:
    """Open a file for a trace: a new one is its owner's alone, an old one is overwritten; ``-`` is standard output.

    Raises :class:`BlockfleetError` where it cannot be written, or where standard output is a terminal.
    """
    if path == STANDARD_OUTPUT:
        if sys.stdout.isatty():
            raise BlockfleetError(
                Isdsc.INVALID_PARAMETER,
                "cannot write a capture to a terminal",
                remedy="pipe it (| tshark -r -), or name a file",
                field="--write",
            )
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode=0o600)
    except OSError as error:
        raise BlockfleetError(
            Isdsc.INVALID_PARAMETER, f"cannot write {path}: {error.strerror}", field="--write"
        ) from None
    return os.fdopen(descriptor, "wb")


def reading_command(path: Path, ports: Iterable[int]) -> str:
    """Return the tshark command that reads a file; a port that is not iSCSI's own has to be named."""
    words = ["tshark", "-r", str(path)]
    for port in sorted(set(ports) - {DEFAULT_PORT}):
        words += ["-d", f"tcp.port=={port},iscsi"]
    return shlex.join(words)
