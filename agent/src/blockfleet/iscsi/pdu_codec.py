# SPDX-License-Identifier: GPL-3.0-or-later
"""What all PDUs share: the codec, additional header segments, sense data (RFC 3720 10.1, 10.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import ClassVar, Self

from blockfleet.iscsi import layout
from blockfleet.iscsi.constants import (
    BHS_LENGTH,
    FINAL_BIT,
    IMMEDIATE_BIT,
    MAXIMUM_DATA_SEGMENT,
    OPCODE_MASK,
    RESERVED_TAG,
    AhsType,
    Opcode,
)

_AHS_HEADER = struct.Struct(">HBx")
_SENSE_LENGTH = struct.Struct(">H")


class PduError(Exception):
    """Bytes that are no PDU of the kind they claim to be, or a field that does not fit its place."""


@dataclass(slots=True, kw_only=True)
class Pdu:
    """What all PDUs share.

    ``data`` is the data segment without padding.  ``data_length`` is DataSegmentLength: what the header said
    after :meth:`decode`, and what :meth:`encode` uses when ``data`` is sent from elsewhere.
    """

    OPCODE: ClassVar[Opcode]
    LAYOUT: ClassVar[struct.Struct]
    FIELDS: ClassVar[tuple[str, ...]]
    """Attributes in the order of ``LAYOUT`` after the opcode; ``""`` is byte 1 without attribute."""
    FLAGS_MASK: ClassVar[int] = 0x7F
    """Bits of byte 1 that mean something; the others are ignored on receipt."""
    FLAGS_FIXED: ClassVar[int] = FINAL_BIT
    """Bits of byte 1 that are always sent."""
    IS_REQUEST: ClassVar[bool] = False
    """Whether byte 0 has an I bit."""

    initiator_task_tag: int = RESERVED_TAG
    data: bytes = b""
    data_length: int = field(default=0, compare=False)

    def encode(self) -> bytes:
        """Return the BHS and the AHS; raises :class:`PduError` for a value that its field cannot hold."""
        ahs = self._encode_ahs()
        length = len(self.data) or self.data_length
        if length > MAXIMUM_DATA_SEGMENT:
            raise PduError(f"{self.OPCODE.name}: a data segment has at most {MAXIMUM_DATA_SEGMENT} bytes")
        values: list[object] = [self.OPCODE | (IMMEDIATE_BIT if getattr(self, "immediate", False) else 0)]
        for name in self.FIELDS:
            if name == "lengths":
                values.append(layout.lengths(length, len(ahs)))
            else:
                values.append(self._field(name))
        values[1] = self.FLAGS_FIXED | (values[1] if isinstance(values[1], int) else 0)
        try:
            return self.LAYOUT.pack(*values) + ahs
        except struct.error as error:
            raise PduError(f"{self.OPCODE.name}: {error}") from None

    def to_wire(self) -> bytes:
        """Return the whole PDU without digests: header, data segment and padding."""
        return b"".join((self.encode(), self.data, layout.padding(len(self.data))))

    @classmethod
    def decode(cls, bhs: bytes, ahs: bytes = b"", data: bytes = b"") -> Self:
        """Read a PDU; ``data`` (without padding) may be left out where only the header is wanted.

        Raises :class:`PduError` for another opcode, a wrong length or a broken AHS.
        """
        if len(bhs) != BHS_LENGTH:
            raise PduError(f"a basic header segment has {BHS_LENGTH} bytes, not {len(bhs)}")
        if bhs[0] & OPCODE_MASK != cls.OPCODE:
            raise PduError(f"opcode {bhs[0] & OPCODE_MASK:#04x} is not {cls.OPCODE.name}")
        opcode, *values = cls.LAYOUT.unpack(bhs)
        values[0] &= cls.FLAGS_MASK
        fields = dict(zip(cls.FIELDS, values, strict=True))
        fields.pop("", None)
        ahs_length, data_length = layout.split_lengths(fields.pop("lengths"))
        if ahs_length != len(ahs):
            raise PduError(f"{cls.OPCODE.name}: TotalAHSLength is {ahs_length} bytes, {len(ahs)} are there")
        if data and data_length != len(data):
            raise PduError(f"{cls.OPCODE.name}: DataSegmentLength is {data_length}, {len(data)} bytes are there")
        if cls.IS_REQUEST:
            fields["immediate"] = bool(opcode & IMMEDIATE_BIT)
        cls._decode_ahs(ahs, fields)
        return cls(**fields, data=bytes(data), data_length=data_length)

    def _field(self, name: str) -> object:
        return getattr(self, name) if name else 0

    def _encode_ahs(self) -> bytes:
        return b""

    @classmethod
    def _decode_ahs(cls, ahs: bytes, fields: dict[str, object]) -> None:  # noqa: ARG003 - for the one class that has AHS
        if ahs:
            raise PduError(f"{cls.OPCODE.name} has no additional header segments")


def encode_ahs(kind: int, content: bytes) -> bytes:
    """Return one AHS whose ``content`` follows the AHS-specific byte 3, which is sent as zero; padded."""
    return _AHS_HEADER.pack(len(content) + 1, kind) + content + layout.padding(len(content))


def decode_ahs(segments: bytes) -> list[tuple[AhsType, bytes]]:
    """Take additional header segments apart into kind and content without byte 3 and padding.

    Raises :class:`PduError` for a reserved or repeated kind and for a length that is 0 or overruns.
    """
    found: list[tuple[AhsType, bytes]] = []
    offset = 0
    while offset < len(segments):
        if len(segments) - offset < _AHS_HEADER.size:
            raise PduError("an additional header segment is cut short")
        length, code = _AHS_HEADER.unpack_from(segments, offset)
        start = offset + _AHS_HEADER.size
        end = start + length - 1
        if length < 1 or end > len(segments):
            raise PduError(f"AHSLength {length} does not fit into the {len(segments)} bytes of AHS")
        try:
            kind = AhsType(code & 0x3F)
        except ValueError:
            raise PduError(f"AHSType {code & 0x3F} is reserved (RFC 3720 10.2.2.1)") from None
        if any(kind is earlier for earlier, _ in found):
            raise PduError(f"AHS {kind.name} appears twice")
        found.append((kind, segments[start:end]))
        offset = layout.padded_length(end)
    return found


def split_sense(data: bytes) -> tuple[bytes, bytes]:
    """Split the data segment of a SCSI Response or Async Message into sense data and the rest.

    A SenseLength beyond the data segment is cut to it (RFC 3720 10.4.7, 10.9.4).
    """
    if len(data) < _SENSE_LENGTH.size:
        return b"", b""
    end = _SENSE_LENGTH.size + _SENSE_LENGTH.unpack_from(data)[0]
    return data[_SENSE_LENGTH.size : end], data[end:]
