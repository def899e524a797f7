# SPDX-License-Identifier: GPL-3.0-or-later
"""iSCSI PDUs as somebody on the wire sees them: by offset (RFC 3720 10.2), with their digests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

HEADER_LENGTH = 48
WORD = 4
LOGIN_REQUEST = 0x03
LOGIN_RESPONSE = 0x23
_OPCODE = 0x3F
_TRANSIT = 0x80
_NEXT_STAGE = 0x03
_KEYS = ("HeaderDigest", "DataDigest")


@dataclass
class WirePdu:
    """One PDU in its four parts; a digest is empty where none is used, and data are with their padding."""

    header: bytearray
    header_digest: bytes
    data: bytearray
    data_digest: bytes

    @property
    def opcode(self) -> int:
        return self.header[0] & _OPCODE

    @property
    def data_length(self) -> int:
        """Length of the data segment without its padding."""
        return int.from_bytes(self.header[5:8], "big")

    @property
    def lun(self) -> int:
        return int.from_bytes(self.header[8:16], "big")

    @property
    def task_tag(self) -> int:
        return int.from_bytes(self.header[16:20], "big")

    def encode(self) -> bytes:
        return bytes(self.header + self.header_digest + self.data + self.data_digest)

    @property
    def ends_login(self) -> bool:
        """Whether it is the Login Response after which the full feature phase begins (RFC 3720 10.13.3)."""
        return (
            self.opcode == LOGIN_RESPONSE
            and bool(self.header[1] & _TRANSIT)
            and self.header[1] & _NEXT_STAGE == _NEXT_STAGE
            and self.header[36] == 0
        )


@dataclass
class Agreement:
    """The digests of a connection, found out by listening to its login: who answers a key settles it."""

    header_digest: bool = False
    data_digest: bool = False
    _offered: dict[str, int] = field(default_factory=dict)
    _settled: dict[str, bool] = field(default_factory=dict)

    def hear(self, pdu: WirePdu) -> None:
        """Listen to a PDU of the login; what was agreed holds from the one that ends it."""
        if pdu.opcode not in {LOGIN_REQUEST, LOGIN_RESPONSE}:
            return
        text = bytes(pdu.data[: pdu.data_length]).decode(errors="replace")
        for pair in text.split("\0"):
            key, _, value = pair.partition("=")
            if key not in _KEYS:
                continue
            if self._offered.setdefault(key, pdu.opcode) != pdu.opcode:
                self._settled[key] = value == "CRC32C"
        if pdu.ends_login:
            self.header_digest, self.data_digest = (self._settled.get(key, False) for key in _KEYS)


async def read_pdu(stream: asyncio.StreamReader, agreement: Agreement) -> WirePdu:
    """Read one PDU; IncompleteReadError where the stream ends."""
    header = bytearray(await stream.readexactly(HEADER_LENGTH))
    header += await stream.readexactly(header[4] * WORD)
    header_digest = await stream.readexactly(WORD) if agreement.header_digest else b""
    length = int.from_bytes(header[5:8], "big")
    data = bytearray(await stream.readexactly(length + -length % WORD))
    data_digest = await stream.readexactly(WORD) if agreement.data_digest and data else b""
    return WirePdu(header, header_digest, data, data_digest)
