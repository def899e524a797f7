# SPDX-License-Identifier: GPL-3.0-or-later
"""Which requests an export takes, and what is counted of them."""

from __future__ import annotations

import errno

from blockfleet.export.wire import Command, CommandFlag, TransmissionFlag

_NEEDED = {
    Command.READ: TransmissionFlag.HAS_FLAGS,
    Command.WRITE: TransmissionFlag.HAS_FLAGS,
    Command.FLUSH: TransmissionFlag.SEND_FLUSH,
    Command.TRIM: TransmissionFlag.SEND_TRIM,
    Command.WRITE_ZEROES: TransmissionFlag.SEND_WRITE_ZEROES,
}
"""The flag that must have been advertised for a command."""
_WRITES = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
_FLAG_OF_COMMAND = {
    Command.READ: (CommandFlag.DF, TransmissionFlag.SEND_DF),
    Command.WRITE_ZEROES: (CommandFlag.NO_HOLE, TransmissionFlag.SEND_WRITE_ZEROES),
}
"""The flag that is valid on this command alone, and what must have been advertised for it."""


class Admission:
    """What is refused before the device sees it, for a client that was told ``flags`` and ``maximum_payload``.

    ``read_limit`` and ``write_limit`` are the longest payloads in bytes, and 0 while all READs or WRITEs are
    refused; with ``read_forbidden`` and ``write_forbidden``, flag bits that may not be set, they let the hot path
    decide without a call: what passes them is admitted, for all else :meth:`refusal` knows the error.
    """

    __slots__ = (
        "_errors",
        "_forbidden",
        "_maximum_payload",
        "read_forbidden",
        "read_limit",
        "write_forbidden",
        "write_limit",
    )

    def __init__(self, flags: TransmissionFlag, maximum_payload: int) -> None:
        read_only = TransmissionFlag.READ_ONLY in flags
        self._errors = {
            int(command): errno.EPERM if read_only and command in _WRITES else 0
            for command, needed in _NEEDED.items()
            if needed in flags
        }
        self._forbidden = {int(command): _forbidden_flags(command, flags) for command in _NEEDED}
        self._maximum_payload = maximum_payload
        self.read_forbidden = self._forbidden[Command.READ]
        self.write_forbidden = self._forbidden[Command.WRITE]
        self.read_limit = maximum_payload
        self.write_limit = 0 if read_only else maximum_payload

    def shut_down(self) -> None:
        """From now on refuse everything with ESHUTDOWN."""
        self._errors = dict.fromkeys(self._errors, errno.ESHUTDOWN)
        self.read_limit = self.write_limit = 0

    def refusal(self, command: int, flags: int, offset: int, length: int) -> int:
        """Return the errno with which a request is refused, or 0.

        Unknown commands and flags, and a length that is over the advertised maximum payload, are EINVAL.
        A length of zero, which the protocol leaves open, is EINVAL too.
        """
        error = self._errors.get(command, errno.EINVAL)
        if error:
            return error
        if flags & self._forbidden[command]:
            return errno.EINVAL
        if command == Command.FLUSH:
            return errno.EINVAL if offset or length else 0
        if command <= Command.WRITE and length > self._maximum_payload:
            return errno.EINVAL
        return 0 if length else errno.EINVAL


def _forbidden_flags(command: Command, flags: TransmissionFlag) -> int:
    allowed = int(CommandFlag.FUA) if TransmissionFlag.SEND_FUA in flags else 0
    if command in _FLAG_OF_COMMAND:
        flag, needed = _FLAG_OF_COMMAND[command]
        allowed |= int(flag) if needed in flags else 0
    return 0xFFFF & ~allowed


class Tally:
    """What the clients of an export asked for, over all its connections since it was made."""

    __slots__ = ("errors", "flushes", "read_bytes", "reads", "trims", "write_zeroes", "writes", "written_bytes")

    def __init__(self) -> None:
        self.reads = self.read_bytes = 0
        self.writes = self.written_bytes = 0
        self.flushes = self.trims = self.write_zeroes = 0
        self.errors = 0
        """Requests that were answered with an error."""

    def count(self, command: int) -> None:
        """Count a request without payload."""
        if command == Command.FLUSH:
            self.flushes += 1
        elif command == Command.TRIM:
            self.trims += 1
        else:
            self.write_zeroes += 1

    def as_dict(self) -> dict[str, int]:
        """Return all counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}
