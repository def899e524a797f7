# SPDX-License-Identifier: GPL-3.0-or-later
"""What went over the wire, decoded by tshark: an iSCSI dissector that is none of ours."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.process import PeerProcess, wait_for

_PREFERENCES = (
    "tcp.desegment_tcp_streams:TRUE",
    "iscsi.desegment_iscsi_messages:TRUE",
    "iscsi.bogus_pdu_max_data_len:16777216",
)
_COUNTS = re.compile(r"received/dropped on interface .*: \d+/(\d+) ")
_DECODE_TIMEOUT = 60.0
_Pairs = tuple[tuple[str, Any], ...]
# The marks of the capture are random bytes over UDP, in which a dissector may see anything.
_WRONG = "tcp && (_ws.malformed || iscsi.opcode.invalid || iscsi.keyvalue.invalid)"


@dataclass(frozen=True)
class Pdu:
    """One iSCSI PDU: every field of the dissector by its name, as often as it occurs."""

    frame: int
    fields: dict[str, list[str]]
    ports: frozenset[str] = frozenset()
    """The TCP ports of both ends."""

    def __getitem__(self, name: str) -> str:
        """Return the first value of a field, without its ``iscsi.`` prefix."""
        return self.fields[f"iscsi.{name}"][0]

    def number(self, name: str) -> int:
        """Return the first value of a field as a number."""
        return int(self[name], 0)

    @property
    def opcode(self) -> int:
        return self.number("opcode")

    @property
    def keys(self) -> dict[str, str]:
        """Text keys of a login or text PDU."""
        pairs = self.fields.get("iscsi.keyvalue", [])
        return dict(pair.split("=", 1) for pair in pairs)


class Recording:
    """A capture file, in which TCP ``ports`` are iSCSI."""

    def __init__(self, file: Path, ports: Iterable[int]) -> None:
        self.file = file
        self.ports = tuple(ports)

    def decode(self, *arguments: str) -> str:
        """Run tshark over the recording with the ports known as iSCSI."""
        options = [part for preference in _PREFERENCES for part in ("-o", preference)]
        options += [part for port in self.ports for part in ("-d", f"tcp.port=={port},iscsi")]
        done = subprocess.run(
            ["tshark", "-n", "-r", str(self.file), *options, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DECODE_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"tshark: {done.stderr}"
        return done.stdout

    def pdus(self, wanted: str = "iscsi") -> list[Pdu]:
        """Return the PDUs of all frames that a display filter selects, in order."""
        frames = json.loads(self.decode("-Y", wanted, "-T", "json"), object_pairs_hook=tuple)
        return [pdu for frame in frames for pdu in _pdus_of(frame)]

    def check(self) -> list[Pdu]:
        """Assert that the dissector finds nothing wrong: no malformed PDU, no bad digest; return all PDUs."""
        wrong = self.decode("-Y", _WRONG, "-O", "iscsi")
        assert not wrong.strip(), f"tshark finds PDUs malformed:\n{wrong}"
        bad = [line for line in self.decode("-Y", "iscsi", "-O", "iscsi").splitlines() if "Bad CRC32" in line]
        assert not bad, f"tshark finds bad digests: {bad}"
        pdus = self.pdus()
        assert pdus, "tshark finds no iSCSI at all"
        return pdus


class Capture(Recording):
    """Records TCP ``ports`` on the loopback interface from now until ``stop``; start it before the first login."""

    def __init__(self, ports: Iterable[int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="capture-"))
        self.folder.chmod(0o755)
        super().__init__(self.folder / "lo.pcapng", ports)
        self._mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._mark.bind(("127.0.0.1", 0))
        wanted = [f"tcp port {port}" for port in self.ports] + [f"udp port {self._mark.getsockname()[1]}"]
        self._process = PeerProcess(
            ["dumpcap", "-q", "-i", "lo", "-B", "64", "-f", " or ".join(wanted), "-w", str(self.file)],
            self.folder / "log",
        )
        wait_for(lambda: not self._process.running or self.file.exists(), "dumpcap")
        self._pass_mark()

    def stop(self) -> None:
        """End the recording once all that was sent before this call is in it."""
        if self._process.running:
            self._pass_mark()
            self._process.stop(signal.SIGINT)
            counts = _COUNTS.search(self._process.output)
            assert counts is not None, self._process.output
            assert counts[1] == "0", f"the kernel dropped packets: {self._process.output}"

    def close(self) -> None:
        """End the recording and remove it."""
        self._process.stop(signal.SIGINT)
        self._mark.close()
        shutil.rmtree(self.folder)

    def _pass_mark(self) -> None:
        """Send something and wait until it is in the file: what was sent before it is there too."""
        mark = secrets.token_bytes(16)

        def passed() -> bool:
            assert self._process.running, f"dumpcap ended: {self._process.output}"
            self._mark.sendto(mark, self._mark.getsockname())
            return self.file.exists() and mark in self.file.read_bytes()

        wait_for(passed, "packet capture")


def _pdus_of(frame: _Pairs) -> Iterator[Pdu]:
    layers = next(value for name, value in _walk(frame) if name == "layers")
    number = next(value for name, value in _walk(layers) if name == "frame.number")
    ports = frozenset(value for name, value in _walk(layers) if name == "tcp.port")
    for name, layer in layers:
        # A layer that ends in the next frame is shown as a text here.
        if name == "iscsi" and isinstance(layer, tuple):
            fields: dict[str, list[str]] = {}
            for field, value in _walk(layer):
                if isinstance(value, str):
                    fields.setdefault(field, []).append(value)
            if "iscsi.opcode" in fields:
                yield Pdu(int(number), fields, ports)


def _walk(pairs: _Pairs) -> Iterator[tuple[str, Any]]:
    """Yield all names and values at any depth, in order."""
    for name, value in pairs:
        yield name, value
        if isinstance(value, tuple):
            yield from _walk(value)
        elif isinstance(value, list):
            yield from ((name, one) for one in value)
