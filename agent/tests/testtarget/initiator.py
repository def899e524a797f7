# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain initiator for tests: every PDU packed by hand from the figures of RFC 3720 chapter 10."""

from __future__ import annotations

import asyncio
import struct

from crc32c import crc32c

TARGET = "iqn.2026-11.com.example:disk"
NAME = "iqn.2026-11.com.example:host"
ISID = bytes.fromhex("800000010000")
NONE = 0xFFFFFFFF
LOGIN_TO_END = 0x87  # T, CSG 1, NSG 3


class Answer:
    """A received PDU; attributes are the fields that most PDUs from a target share."""

    def __init__(self, header: bytes, data: bytes) -> None:
        self.header, self.data = header, data
        (
            self.opcode,
            self.flags,
            self.byte2,
            self.byte3,
            self.lengths,
            self.lun,
            self.itt,
            self.ttt,
            self.statsn,
            self.expcmdsn,
            self.maxcmdsn,
            self.word36,
            self.word40,
            self.word44,
        ) = struct.unpack(">BBBBI8sIIIIIIII", header)

    def __repr__(self) -> str:
        return f"<Answer {self.opcode:#04x} {self.header.hex()}>"

    @property
    def text(self) -> dict[str, str]:
        items = self.data.decode().split("\0")
        assert items.pop() == ""
        return dict(item.split("=", 1) for item in items)

    @property
    def status(self) -> int:
        """Status class and detail of a Login Response."""
        return self.word36 >> 16

    @property
    def tsih(self) -> int:
        return int.from_bytes(self.lun[6:], "big")

    @property
    def sense(self) -> tuple[int, int, int]:
        length = int.from_bytes(self.data[:2], "big")
        assert len(self.data) >= 2 + length >= 20
        sense = self.data[2 : 2 + length]
        assert sense[0] & 0x7F == 0x70
        return sense[2] & 15, sense[12], sense[13]


class Numbers:
    """What the connections of one session share."""

    def __init__(self) -> None:
        self.cmdsn, self.itt = 100, 0


class Initiator:
    """One connection of an initiator; connections of one session share their `numbers`."""

    def __init__(self, name: str = NAME, isid: bytes = ISID, numbers: Numbers | None = None) -> None:
        self.name, self.isid = name, isid
        self.numbers = numbers or Numbers()
        self.expstatsn = 0
        self.header_digest = self.data_digest = False
        self.cid, self.tsih = 0, 0

    @property
    def cmdsn(self) -> int:
        return self.numbers.cmdsn

    @cmdsn.setter
    def cmdsn(self, value: int) -> None:
        self.numbers.cmdsn = value

    @property
    def itt(self) -> int:
        return self.numbers.itt

    @itt.setter
    def itt(self, value: int) -> None:
        self.numbers.itt = value

    async def connect(self, host: str, port: int) -> None:
        self.reader, self.writer = await asyncio.open_connection(host, port)

    async def close(self) -> None:
        self.writer.close()

    def next_itt(self) -> int:
        self.itt += 1
        return self.itt

    def send(
        self,
        opcode: int,
        *,
        flags: int = 0x80,
        itt: int = NONE,
        word20: int = NONE,
        cmdsn: int = 0,
        tail: bytes = bytes(16),
        data: bytes = b"",
        lun: bytes = bytes(8),
        immediate: bool = False,
        ahs: bytes = b"",
        bad_digest: bool = False,
        bad_header: bool = False,
    ) -> None:
        header = struct.pack(
            ">BBHI8sIIII",
            opcode | (0x40 if immediate else 0),
            flags,
            0,
            len(ahs) // 4 << 24 | len(data),
            lun,
            itt,
            word20,
            cmdsn,
            self.expstatsn,
        )
        header += tail.ljust(16, b"\0") + ahs
        parts = [header]
        if self.header_digest:
            parts.append(struct.pack("<I", crc32c(header) ^ int(bad_header)))
        if data:
            padded = data + bytes(-len(data) & 3)
            parts.append(padded)
            if self.data_digest:
                parts.append(struct.pack("<I", crc32c(padded) ^ int(bad_digest)))
        self.writer.write(b"".join(parts))

    async def receive(self) -> Answer:
        async with asyncio.timeout(5):
            header = await self.reader.readexactly(48)
            if self.header_digest:
                assert struct.unpack("<I", await self.reader.readexactly(4))[0] == crc32c(header)
            length = int.from_bytes(header[5:8], "big")
            padded = await self.reader.readexactly(length + (-length & 3))
            assert not any(padded[length:])
            if self.data_digest and length:
                assert struct.unpack("<I", await self.reader.readexactly(4))[0] == crc32c(padded)
        return Answer(header, padded[:length])

    async def ended(self) -> bytes:
        """Return what still comes until the target closes the connection."""
        async with asyncio.timeout(5):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b"reset"

    def send_login(self, keys: dict[str, str] | bytes, *, flags: int = LOGIN_TO_END, versions: int = 0) -> None:
        text = keys if isinstance(keys, bytes) else b"".join(f"{k}={v}".encode() + b"\0" for k, v in keys.items())
        header = struct.pack(
            ">BBHI6sHIHHII16x",
            0x43,
            flags,
            versions,
            len(text),
            self.isid,
            self.tsih,
            1,
            self.cid,
            0,
            self.cmdsn,
            self.expstatsn,
        )
        self.writer.write(header + text + bytes(-len(text) & 3))

    async def login_step(
        self, keys: dict[str, str] | bytes, *, flags: int = LOGIN_TO_END, versions: int = 0
    ) -> Answer:
        self.send_login(keys, flags=flags, versions=versions)
        answer = await self.receive()
        assert answer.opcode == 0x23
        assert answer.itt == 1
        assert answer.lun[:6] == self.isid
        if answer.status == 0:
            self.expstatsn = (answer.statsn + 1) & NONE
        return answer

    async def login(self, target: str | None = TARGET, **keys: str) -> Answer:
        """Log in without authentication, in one exchange; return the final response."""
        names = {"InitiatorName": self.name}
        names |= {"TargetName": target} if target else {"SessionType": "Discovery"}
        answer = await self.login_step({**names, **keys})
        assert answer.status == 0, hex(answer.status)
        assert answer.flags == LOGIN_TO_END
        self.tsih = answer.tsih
        self.header_digest = answer.text.get("HeaderDigest") == "CRC32C"
        self.data_digest = answer.text.get("DataDigest") == "CRC32C"
        return answer

    def command(
        self,
        cdb: bytes,
        *,
        read: int = 0,
        write: int = 0,
        data: bytes = b"",
        final: bool = True,
        lun: int = 0,
        immediate: bool = False,
        cmdsn: int | None = None,
        itt: int | None = None,
        **damage: bool,
    ) -> int:
        """Send a SCSI Command with an expected length (read or write) and immediate data; return its tag."""
        flags = (0x80 if final else 0) | (0x40 if read else 0) | (0x20 if write else 0) | 1
        itt = self.next_itt() if itt is None else itt
        self.send(
            0x01,
            flags=flags,
            itt=itt,
            word20=read or write,
            cmdsn=self.cmdsn if cmdsn is None else cmdsn,
            tail=cdb.ljust(16, b"\0"),
            data=data,
            lun=struct.pack(">H6x", lun),
            immediate=immediate,
            **damage,
        )
        if not immediate and cmdsn is None:
            self.cmdsn = (self.cmdsn + 1) & NONE
        return itt

    def data_out(
        self,
        itt: int,
        data: bytes,
        *,
        ttt: int = NONE,
        datasn: int = 0,
        offset: int = 0,
        final: bool = True,
        **damage: bool,
    ) -> None:
        tail = struct.pack(">IIII", 0, datasn, offset, 0)
        flags = 0x80 if final else 0
        self.send(0x05, flags=flags, itt=itt, word20=ttt, tail=tail, data=data, **damage)

    async def status(self) -> Answer:
        """Return the next SCSI Response, acknowledging it."""
        answer = await self.receive()
        assert answer.opcode == 0x21, answer
        self.expstatsn = (answer.statsn + 1) & NONE
        return answer

    async def run(self, cdb: bytes, **options: int) -> tuple[int, bytes, Answer]:
        """Run a command without Data-Out; return status, data and the PDU that brought the status."""
        itt = self.command(cdb, **options)
        data = b""
        while True:
            answer = await self.receive()
            if answer.opcode == 0x20 and answer.itt == NONE:
                continue
            assert answer.itt == itt, answer
            if answer.opcode == 0x25:
                assert answer.word40 == len(data)
                data += answer.data
                if not answer.flags & 1:
                    continue
            self.expstatsn = (answer.statsn + 1) & NONE
            return answer.byte3, data, answer

    async def clear_attention(self, lun: int = 0) -> None:
        """Take unit attentions until the unit is ready."""
        while (await self.run(bytes(6), lun=lun))[0] != 0:
            pass

    def snack(
        self, kind: int, first: int = 0, length: int = 0, *, itt: int = NONE, tag: int = NONE, lun: bytes = bytes(8)
    ) -> None:
        """Send a SNACK (10.16)."""
        tail = struct.pack(">QII", 0, first, length)
        self.send(0x10, flags=0x80 | kind, itt=itt, word20=tag, tail=tail, lun=lun)

    async def ping(self) -> Answer:
        """Send an immediate NOP-Out and return what comes back, which acknowledges nothing by itself."""
        itt = self.next_itt()
        self.send(0x00, itt=itt, cmdsn=self.cmdsn, immediate=True)
        answer = await self.receive()
        assert (answer.opcode, answer.itt) == (0x20, itt), answer
        return answer

    async def nothing_more(self) -> None:
        """Check that the target has nothing to say, by a NOP-Out that is answered at once."""
        self.expstatsn = ((await self.ping()).statsn + 1) & NONE

    async def declare(self, text: bytes) -> Answer:
        """Make a text exchange of one immediate request and return the answer."""
        itt = self.next_itt()
        self.send(0x04, itt=itt, cmdsn=self.cmdsn, data=text, immediate=True)
        answer = await self.receive()
        assert (answer.opcode, answer.flags, answer.itt) == (0x24, 0x80, itt), answer
        return answer

    async def logout(self, reason: int, cid: int = 0, expstatsn: int | None = None) -> Answer:
        """Send an immediate Logout Request and return the answer.

        `expstatsn` is that of the connection to be closed (10.14.4); None acknowledges nothing of another one.
        """
        itt, own = self.next_itt(), self.expstatsn
        if expstatsn is not None or cid != self.cid:
            self.expstatsn = expstatsn or 0
        self.send(0x06, flags=0x80 | reason, itt=itt, word20=cid << 16, cmdsn=self.cmdsn, immediate=True)
        self.expstatsn = own
        answer = await self.receive()
        assert (answer.opcode, answer.itt) == (0x26, itt), answer
        self.expstatsn = (answer.statsn + 1) & NONE
        return answer

    async def manage(
        self, function: int, *, lun: int = 0, tag: int = NONE, refcmdsn: int = 0, expdatasn: int = 0
    ) -> Answer:
        """Send an immediate task management request and return the answer."""
        itt = self.next_itt()
        self.send(
            0x02,
            flags=0x80 | function,
            itt=itt,
            word20=tag,
            cmdsn=self.cmdsn,
            tail=struct.pack(">II", refcmdsn, expdatasn),
            lun=struct.pack(">H6x", lun),
            immediate=True,
        )
        answer = await self.receive()
        assert (answer.opcode, answer.itt) == (0x22, itt), answer
        self.expstatsn = (answer.statsn + 1) & NONE
        return answer


def read10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write10(lba: int, blocks: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, flags, lba, 0, blocks, 0)
