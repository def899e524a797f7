# SPDX-License-Identifier: GPL-3.0-or-later
"""The target's end of a TCP connection, under the hand of a test: it sends and takes PDUs, and decides nothing.

Only what every dialogue needs is here: numbering, digests, a plain login, and a way to answer commands when the
test is about something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from tests.conformance import wire
from tests.conformance.wire import Pdu

PATIENCE = 4.0
"""Seconds within which an initiator has to do what it is waited for."""

ANSWERS: dict[str, str] = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "MaxConnections": "1",
    "InitialR2T": "Yes",
    "ImmediateData": "Yes",
    "MaxBurstLength": "65536",
    "FirstBurstLength": "16384",
    "DefaultTime2Wait": "0",
    "DefaultTime2Retain": "7",
    "MaxOutstandingR2T": "4",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "ErrorRecoveryLevel": "0",
    "iSCSIProtocolLevel": "1",
    "TaskReporting": "RFC3720",
}
"""What this target answers to offers; each differs from what the initiator offers where it can."""

DECLARED_LIMIT = 4096
"""MaxRecvDataSegmentLength of this target."""

ABSENT = ""
"""In place of an answer: the key is passed over in silence."""


class Numbering:
    """What is counted for a whole session, over all of its connections (3.2.2.1)."""

    def __init__(self) -> None:
        self.exp_cmd_sn = 0


class Peer:
    """One accepted connection.  ``stat_sn`` is the StatSN of the next numbered PDU."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, level: int = 0) -> None:
        self.level = level
        self.reader = reader
        self.writer = writer
        self.header_digest = False
        self.data_digest = False
        self.stat_sn = 0x7000
        self.numbering = Numbering()
        self.window = 64
        self.max_cmd_sn: int | None = None
        """Instead of ExpCmdSN + ``window`` - 1."""
        self.full_feature = False
        self.requests: list[Pdu] = []
        """What the initiator sent in login."""
        self.offers: dict[str, str] = {}

    @property
    def exp_cmd_sn(self) -> int:
        """ExpCmdSN, of the session."""
        return self.numbering.exp_cmd_sn

    @exp_cmd_sn.setter
    def exp_cmd_sn(self, number: int) -> None:
        self.numbering.exp_cmd_sn = number

    # -- taking

    async def recv(self, within: float = PATIENCE) -> Pdu:
        """Take the next PDU, with its digests checked and its padding zero."""
        async with asyncio.timeout(within):
            head = await self.reader.readexactly(48)
            ahs = await self.reader.readexactly(4 * head[4])
            if self.header_digest:
                assert await self.reader.readexactly(4) == wire.digest(head + ahs), "header digest"
            length = int.from_bytes(head[5:8], "big")
            padded = await self.reader.readexactly(length + len(wire.pad(length)))
            if length and self.data_digest:
                assert await self.reader.readexactly(4) == wire.digest(padded), "data digest"
        assert not any(padded[length:]), "padding is not zero"
        pdu = Pdu(head, ahs, padded[:length])
        if self.full_feature and not pdu.immediate and pdu.opcode in (
            wire.NOP_OUT, wire.COMMAND, wire.TASK_REQUEST, wire.TEXT, wire.LOGOUT,
        ):  # fmt: skip
            following = wire.serial_add(pdu.cmdsn)
            # Over several connections requests may come in another order than they were numbered in.
            if following - self.exp_cmd_sn & 0xFFFFFFFF < 1 << 31:
                self.exp_cmd_sn = following
        return pdu

    async def expect(self, opcode: int, within: float = PATIENCE) -> Pdu:
        """Take the next PDU, which must have this opcode."""
        pdu = await self.recv(within)
        assert pdu.opcode == opcode, f"opcode {pdu.opcode:#04x}, {opcode:#04x} was due"
        return pdu

    async def gone(self, within: float = 2.0) -> bytes:
        """Wait until the initiator has closed or reset the connection; return what it sent before."""
        rest = b""
        async with asyncio.timeout(within):
            try:
                while piece := await self.reader.read(65536):
                    rest += piece
            except ConnectionError:
                pass
        return rest

    async def quiet(self, seconds: float = 0.08) -> None:
        """Hold that the initiator sends nothing, and does not close."""
        try:
            async with asyncio.timeout(seconds):
                piece = await self.reader.read(65536)
        except TimeoutError:
            return
        raise AssertionError(f"sent {piece[:48].hex()}" if piece else "closed the connection")

    # -- sending

    def pack(self, bhs: bytes | bytearray, data: bytes = b"", ahs: bytes = b"") -> bytearray:
        """Return a PDU as it goes over the wire, with lengths, padding and digests."""
        head = bytearray(bhs) + ahs
        head[4] = len(ahs) // 4
        head[5:8] = len(data).to_bytes(3, "big")
        out = head + (wire.digest(bytes(head)) if self.header_digest else b"")
        if data:
            padded = data + wire.pad(len(data))
            out += padded + (wire.digest(padded) if self.data_digest else b"")
        return out

    async def raw(self, data: bytes | bytearray) -> None:
        """Send bytes; an initiator that has gone is noticed when something is expected of it."""
        self.writer.write(bytes(data))
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    def numbers(self, fields: dict[str, int], advance: bool) -> dict[str, int]:
        """Add StatSN, ExpCmdSN and MaxCmdSN to header fields."""
        top = wire.serial_add(self.exp_cmd_sn, self.window - 1) if self.max_cmd_sn is None else self.max_cmd_sn
        whole = {"statsn": self.stat_sn, "expcmdsn": self.exp_cmd_sn, "maxcmdsn": top, **fields}
        if advance and "statsn" not in fields:
            self.stat_sn = wire.serial_add(self.stat_sn)
        return whole

    def numbered(
        self, opcode: int, b1: int = 0x80, b2: int = 0, b3: int = 0, data: bytes = b"", **fields: int
    ) -> bytearray:
        """Pack a PDU that advances StatSN."""
        return self.pack(wire.header(opcode, b1, b2, b3, **self.numbers(fields, True)), data)

    def unnumbered(
        self, opcode: int, b1: int = 0x80, b2: int = 0, b3: int = 0, data: bytes = b"", **fields: int
    ) -> bytearray:
        """Pack a PDU that carries StatSN and does not advance it."""
        return self.pack(wire.header(opcode, b1, b2, b3, **self.numbers(fields, False)), data)

    def data_in(self, itt: int, sn: int, offset: int, data: bytes, b1: int = 0, **fields: int) -> bytearray:
        """Pack a SCSI Data-In (10.7) without status."""
        whole = {"itt": itt, "ttt": wire.NONE_TAG, "datasn": sn, "offset": offset, **self.numbers({}, False)}
        return self.pack(wire.header(wire.DATA_IN, b1, 0, 0, **{**whole, "statsn": 0, **fields}), data)

    def last_data_in(self, itt: int, sn: int, offset: int, data: bytes, status: int = 0, b1: int = 0) -> bytearray:
        """Pack the last SCSI Data-In of a task, with its status."""
        flags = wire.F | wire.STATUS | b1
        return self.numbered(
            wire.DATA_IN, flags, 0, status, data, itt=itt, ttt=wire.NONE_TAG, datasn=sn, offset=offset
        )

    def response(
        self, itt: int, status: int = 0, data: bytes = b"", b1: int = 0x80, code: int = 0, **fields: int
    ) -> bytearray:
        """Pack a SCSI Response (10.4)."""
        return self.numbered(wire.RESPONSE, b1, code, status, data, itt=itt, **fields)

    def r2t(self, itt: int, ttt: int, sn: int, offset: int, length: int, **fields: int) -> bytearray:
        """Pack an R2T (10.8)."""
        whole = {"itt": itt, "ttt": ttt, "r2tsn": sn, "offset": offset, "desired": length, **fields}
        return self.unnumbered(wire.R2T, **whole)

    def asynchronous(self, event: int, p1: int = 0, p2: int = 0, p3: int = 0, data: bytes = b"") -> bytearray:
        """Pack an Asynchronous Message (10.9)."""
        return self.numbered(
            wire.ASYNC, data=data, itt=wire.NONE_TAG, event=event, parameter1=p1, parameter2=p2, parameter3=p3
        )

    def reject(self, reason: int, pdu: Pdu | None, data: bytes | None = None) -> bytearray:
        """Pack a Reject (10.17) with the header it complains of."""
        copy = data if data is not None else pdu.bhs if pdu is not None else b""
        return self.numbered(wire.REJECT, 0x80, reason, data=copy, itt=wire.NONE_TAG)

    # -- login

    async def answer_login(
        self, request: Pdu, data: bytes = b"", flags: int | None = None, status: int = 0, **fields: int
    ) -> None:
        """Send a Login Response (10.13); its stages are those of the request unless told otherwise."""
        if flags is None:
            flags = request.bhs[1] & (0x8F if request.transit else 0x0C)
        whole = {"isid": request.isid, "tsih": request.tsih, "itt": request.itt, "status": status, **fields}
        if not request.tsih:
            self.exp_cmd_sn = request.cmdsn
        await self.raw(self.numbered(wire.LOGIN_RESPONSE, flags, 0, 0, data, **whole))

    async def login_request(self, within: float = PATIENCE) -> Pdu:
        """Take a Login Request."""
        request = await self.expect(wire.LOGIN, within)
        self.requests.append(request)
        return request

    async def pass_security(self, tag: int | None = 1, *extra: tuple[str, object]) -> Pdu:
        """Go through the security stage without authentication; return the first operational request."""
        request = await self.login_request()
        said: list[tuple[str, object]] = [("AuthMethod", "None"), *extra]
        if tag is not None:
            said.insert(0, ("TargetPortalGroupTag", tag))
        await self.answer_login(request, wire.text(*said))
        return await self.login_request()

    def answers(self, request: Pdu, changes: dict[str, str]) -> list[tuple[str, object]]:
        """Return an answer to each offer of a request, and this side's declarations."""
        self.offers = request.keys
        known = {**ANSWERS, "MaxRecvDataSegmentLength": str(DECLARED_LIMIT)}
        if self.level:
            # With ordered sequences recovery needs MaxOutstandingR2T 1 (12.19).
            known |= {"ErrorRecoveryLevel": str(self.level), "MaxOutstandingR2T": "1"}
        known |= changes
        offered = [name for name in self.offers if name in known and name != "MaxRecvDataSegmentLength"]
        return [(n, known[n]) for n in [*offered, "MaxRecvDataSegmentLength"] if known[n] != ABSENT]

    async def operational(
        self, request: Pdu, changes: dict[str, str], *extra: tuple[str, object], tsih: int = 0x51AB
    ) -> None:
        """Answer the offers and end the login."""
        said = self.answers(request, changes)
        await self.answer_login(request, wire.text(*said, *extra), tsih=tsih)
        result = dict(said)
        self.header_digest = result.get("HeaderDigest") == "CRC32C"
        self.data_digest = result.get("DataDigest") == "CRC32C"
        self.full_feature = True

    async def log_in(self, changes: dict[str, str] | None = None, *, tsih: int = 0x51AB, tag: int = 1) -> Peer:
        """Let the initiator log in."""
        await self.operational(await self.pass_security(tag), changes or {}, tsih=tsih)
        return self

    async def join(self, first: Peer, changes: dict[str, str] | None = None, tag: int = 1) -> Peer:
        """Let a further connection of ``first``'s session log in."""
        self.numbering = first.numbering
        self.window = first.window
        self.stat_sn = wire.serial_add(first.stat_sn, 0x1111)
        digests = {
            "HeaderDigest": "CRC32C" if first.header_digest else "None",
            "DataDigest": "CRC32C" if first.data_digest else "None",
        }
        request = await self.pass_security(tag)
        await self.operational(request, {**digests, **(changes or {})}, tsih=request.tsih)
        return self

    # -- answering when the test is about something else

    async def serve(self, limit: int | None = None) -> list[Pdu]:
        """Answer pings, commands and a logout as a target with an empty disk would, until the end of the stream."""
        seen: list[Pdu] = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while limit is None or len(seen) < limit:
                pdu = await self.recv(3600)
                seen.append(pdu)
                await self.answer(pdu)
        return seen

    async def answer(self, pdu: Pdu) -> None:
        """Answer one request in good order."""
        if pdu.opcode == wire.COMMAND:
            if pdu.bhs[1] & wire.READ:
                await self.raw(self.last_data_in(pdu.itt, 0, 0, bytes(pdu.edtl)))
            elif pdu.bhs[1] & wire.WRITE:
                await self.take_write(pdu)
            else:
                await self.raw(self.response(pdu.itt))
        elif pdu.opcode == wire.NOP_OUT and pdu.itt != wire.NONE_TAG:
            await self.raw(self.numbered(wire.NOP_IN, data=pdu.data, itt=pdu.itt, ttt=wire.NONE_TAG))
        elif pdu.opcode == wire.TASK_REQUEST:
            await self.raw(self.numbered(wire.TASK_RESPONSE, itt=pdu.itt))
        elif pdu.opcode == wire.LOGOUT:
            await self.log_out(pdu)

    async def log_out(self, request: Pdu, **fields: int) -> None:
        """Answer a Logout Request and half-close the TCP connection (10.14)."""
        await self.raw(self.numbered(wire.LOGOUT_RESPONSE, itt=request.itt, **fields))
        self.writer.write_eof()

    async def take_write(self, command: Pdu, burst: int = 65536) -> bytes:
        """Take the data of a write that needs R2Ts, answer GOOD, and return the data."""
        data = bytearray(command.data)
        sn = 0
        while len(data) < command.edtl:
            length = min(burst, command.edtl - len(data))
            await self.raw(self.r2t(command.itt, 0x900 + sn, sn, len(data), length, lun=command.lun))
            while True:
                piece = await self.expect(wire.DATA_OUT)
                data += piece.data
                if piece.final:
                    break
            sn += 1
        await self.raw(self.response(command.itt, expdatasn=sn))
        return bytes(data)

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class RawTarget:
    """Listens on a loopback address; each connection becomes a :class:`Peer`, handed out by :meth:`accept`.

    ``level`` is the ErrorRecoveryLevel that it agrees to, where a test does not say otherwise.
    """

    def __init__(self, level: int = 0) -> None:
        self._level = level
        self._server: asyncio.Server | None = None
        self._queue: asyncio.Queue[Peer] = asyncio.Queue()
        self.peers: list[Peer] = []
        self.host = ""
        self.port = 0
        self.times: list[float] = []
        """Loop times at which connections came."""

    @property
    def portal(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Open the port, a free one unless told otherwise."""
        self._server = await asyncio.start_server(self._accepted, host, port)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, self._level)
        self.times.append(asyncio.get_running_loop().time())
        self.peers.append(peer)
        self._queue.put_nowait(peer)

    async def accept(self, within: float = PATIENCE) -> Peer:
        """Return the next connection."""
        async with asyncio.timeout(within):
            return await self._queue.get()

    async def no_connection(self, seconds: float) -> None:
        """Hold that nobody connects."""
        try:
            async with asyncio.timeout(seconds):
                await self._queue.get()
        except TimeoutError:
            return
        raise AssertionError("connected")

    def reset_all(self) -> None:
        """Reset every connection."""
        for peer in self.peers:
            peer.reset()

    async def close(self) -> None:
        """Stop listening and reset what is open."""
        self.reset_all()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
