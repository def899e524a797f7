# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's side of the fixed newstyle handshake, without I/O (NetworkBlockDevice ``doc/proto.md``)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable

from blockfleet.export.wire import (
    CLIENT_FLAGS,
    EXPORT,
    EXPORT_NAME_PADDING,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    INIT_MAGIC,
    MAXIMUM_STRING,
    OPTION,
    OPTION_MAGIC,
    ExportDescription,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
    option_reply,
)

MAXIMUM_OPTIONS = 32
"""Options that a client may send; one more ends the connection."""
MAXIMUM_OPTION_DATA = 2 * MAXIMUM_STRING
"""Bytes of data in one option that are kept; a longer one is skipped and answered with ERR_TOO_BIG."""
MAXIMUM_HANDSHAKE = 1 << 16
"""Bytes that a client may send before transmission; more end the connection."""

_SERVER_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
_NAME_LENGTH = struct.Struct(">I")
_COUNT = struct.Struct(">H")


class HandshakePhase(enum.Enum):
    """Where a handshake is."""

    CLIENT_FLAGS = "client flags"
    OPTIONS = "options"
    TRANSMISSION = "transmission"
    """Done: what follows are requests."""
    CLOSED = "closed"
    """The connection has to be closed once the last reply is sent; ``cause`` says why."""


class Handshake:
    """One client's handshake for a server of exactly one export.

    The export answers to its name and to the empty one.  Send ``greeting`` first, then what every ``receive``
    returns.  In phase TRANSMISSION ``structured`` says whether structured replies were negotiated, ``flags`` and
    ``export`` what the client was told, and ``leftover`` holds what came behind the handshake.
    """

    def __init__(self, export: ExportDescription) -> None:
        self.phase = HandshakePhase.CLIENT_FLAGS
        self.structured = False
        self.cause = ""
        self.export = export
        self._received = bytearray()
        self._total = 0
        self._options = 0
        self._skip = 0
        self._client_flags = HandshakeFlag(0)
        self._handlers: dict[int, Callable[[int, bytes], bytes]] = {
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.INFO: self._info_or_go,
            Option.GO: self._info_or_go,
            Option.STRUCTURED_REPLY: self._structured_reply,
        }

    @property
    def greeting(self) -> bytes:
        """What the server says first."""
        return GREETING.pack(INIT_MAGIC, OPTION_MAGIC, _SERVER_FLAGS)

    @property
    def flags(self) -> TransmissionFlag:
        """Transmission flags as the client was or will be told them."""
        return self.export.flags | (TransmissionFlag.SEND_DF if self.structured else TransmissionFlag(0))

    @property
    def leftover(self) -> bytes:
        """Bytes behind the end of the handshake."""
        return bytes(self._received) if self.phase is HandshakePhase.TRANSMISSION else b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client in pieces of any size; return those to send."""
        replies = bytearray()
        if self.phase in (HandshakePhase.TRANSMISSION, HandshakePhase.CLOSED):
            if self.phase is HandshakePhase.TRANSMISSION:
                self._received += data
            return b""
        self._total += len(data)
        self._received += data
        while self._step(replies):
            pass
        if self._total > MAXIMUM_HANDSHAKE and self.phase is HandshakePhase.OPTIONS:
            self._close("the handshake is too long")
        return bytes(replies)

    def _step(self, replies: bytearray) -> bool:
        """Consume one thing from what was received; False when there is none yet."""
        if self.phase is HandshakePhase.CLIENT_FLAGS:
            return self._take_client_flags()
        if self.phase is not HandshakePhase.OPTIONS:
            return False
        if self._skip:
            count = min(self._skip, len(self._received))
            self._skip -= count
            del self._received[:count]
            return count > 0
        return self._take_option(replies)

    def _take_client_flags(self) -> bool:
        if len(self._received) < CLIENT_FLAGS.size:
            return False
        (flags,) = CLIENT_FLAGS.unpack_from(self._received)
        del self._received[: CLIENT_FLAGS.size]
        if flags & ~int(_SERVER_FLAGS):
            self._close(f"unknown client flags {flags:#x}")
        else:
            self._client_flags = HandshakeFlag(flags)
            self.phase = HandshakePhase.OPTIONS
        return True

    def _take_option(self, replies: bytearray) -> bool:
        if len(self._received) < OPTION.size:
            return False
        magic, option, length = OPTION.unpack_from(self._received)
        if magic != OPTION_MAGIC:
            self._close("bad option magic")
            return False
        too_big = length > MAXIMUM_OPTION_DATA
        if not too_big and len(self._received) < OPTION.size + length:
            return False
        data = b"" if too_big else bytes(self._received[OPTION.size : OPTION.size + length])
        del self._received[: OPTION.size + len(data)]
        self._options += 1
        fixed = HandshakeFlag.FIXED_NEWSTYLE in self._client_flags
        if self._options > MAXIMUM_OPTIONS:
            self._close("too many options")
        elif option == Option.EXPORT_NAME:
            replies += self._export_name(data, too_big=too_big)
        elif not fixed:
            self._close("an option that needs fixed newstyle from a client without it")
        elif too_big:
            self._skip = length
            replies += option_reply(option, OptionReply.ERR_TOO_BIG, b"the option's data are too long")
        else:
            handler = self._handlers.get(option)
            replies += handler(option, data) if handler else option_reply(option, OptionReply.ERR_UNSUP)
        return True

    def _close(self, cause: str) -> None:
        self.phase = HandshakePhase.CLOSED
        self.cause = cause

    def _is_ours(self, name: bytes) -> bool:
        return name in (b"", self.export.name.encode())

    def _export_name(self, data: bytes, *, too_big: bool) -> bytes:
        if too_big or not self._is_ours(data):
            self._close("no export of that name")
            return b""
        self.phase = HandshakePhase.TRANSMISSION
        padding = b"" if HandshakeFlag.NO_ZEROES in self._client_flags else EXPORT_NAME_PADDING
        return EXPORT.pack(self.export.size, self.flags) + padding

    def _abort(self, option: int, data: bytes) -> bytes:
        del data
        self._close("")
        return option_reply(option, OptionReply.ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        if data:
            return option_reply(option, OptionReply.ERR_INVALID, b"LIST takes no data")
        name = self.export.name.encode()
        entry = _NAME_LENGTH.pack(len(name)) + name
        return option_reply(option, OptionReply.SERVER, entry) + option_reply(option, OptionReply.ACK)

    def _structured_reply(self, option: int, data: bytes) -> bytes:
        if data:
            return option_reply(option, OptionReply.ERR_INVALID, b"STRUCTURED_REPLY takes no data")
        self.structured = True
        return option_reply(option, OptionReply.ACK)

    def _info_or_go(self, option: int, data: bytes) -> bytes:
        parsed = _parse_info(data)
        if parsed is None:
            return option_reply(option, OptionReply.ERR_INVALID, b"malformed request for information")
        name, wanted = parsed
        if not self._is_ours(name):
            return option_reply(option, OptionReply.ERR_UNKNOWN, b"no export of that name")
        export = self.export
        infos = [INFO_EXPORT.pack(Info.EXPORT, export.size, self.flags)]
        if Info.NAME in wanted:
            infos.append(_COUNT.pack(Info.NAME) + export.name.encode())
        if Info.BLOCK_SIZE in wanted:
            sizes = (export.minimum_block, export.preferred_block, export.maximum_payload)
            infos.append(INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))
        if option == Option.GO:
            self.phase = HandshakePhase.TRANSMISSION
        replies = [option_reply(option, OptionReply.INFO, info) for info in infos]
        return b"".join(replies) + option_reply(option, OptionReply.ACK)


def _parse_info(data: bytes) -> tuple[bytes, frozenset[int]] | None:
    """Decode the data of INFO and GO: the name and the kinds asked for; None when malformed."""
    if len(data) < _NAME_LENGTH.size + _COUNT.size:
        return None
    (length,) = _NAME_LENGTH.unpack_from(data)
    position = _NAME_LENGTH.size + length
    if length > MAXIMUM_STRING or position + _COUNT.size > len(data):
        return None
    (count,) = _COUNT.unpack_from(data, position)
    kinds = data[position + _COUNT.size :]
    if len(kinds) != count * _COUNT.size:
        return None
    return data[_NAME_LENGTH.size : position], frozenset(kind for (kind,) in _COUNT.iter_unpack(kinds))
