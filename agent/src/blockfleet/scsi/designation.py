# SPDX-License-Identifier: GPL-3.0-or-later
"""The identity of a logical unit as text, from its VPD 83h designators (SPC-4 7.8.6).

The text is what documents, states and logs show, and the only thing volumes are bound to: ``naa.``, ``eui.``,
``uuid.``, ``scsi-name.`` or ``t10.`` and the designator in printable characters without blanks.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable

from blockfleet.scsi.vpd import Association, Designator, DesignatorType

MAXIMUM_TEXT = 255
"""Characters after the prefix; a designator that needs more is not used as an identity."""

_NAA_LENGTHS = {2: 8, 3: 8, 5: 8, 6: 16}
_EUI_LENGTHS = (8, 12, 16)

_WEAK = tuple(
    re.compile(pattern)
    for pattern in (
        r"naa\.3.*",  # locally assigned: unique only where its administrator says so (SPC-4 7.8.6.6.3)
        r"naa\.[256]000000.*",  # IEEE company id 0 belongs to nobody; tgt's default is naa.6000...0e0000000TTTTLLLL
        r"(naa|eui)\.0+",
        r"(naa|eui)\.f+",
        r"uuid\.0{8}-0{4}-0{4}-0{4}-0{12}",
        r"uuid\.f{8}-f{4}-f{4}-f{4}-f{12}",
        r"t10\.IET_+[0-9a-f]{1,16}",  # tgt and IET number targets and units from 1 on every host
        r"t10\.QEMU_+QEMU_HARDDISK",  # no serial was configured
        r"t10\.[A-Za-z-]{1,8}",  # a vendor and nothing else
    )
)
"""Texts that are known to be the same on different hosts."""


def _printable(value: bytes) -> str:
    """Write bytes as printable characters, reversibly: blank as ``_``, the rest as ``%`` and two digits."""
    return "".join(
        "_" if byte == 0x20 else chr(byte) if 0x21 <= byte <= 0x7E and byte not in b"%_" else f"%{byte:02x}"
        for byte in value
    )


def _naa(value: bytes) -> str:
    return f"naa.{value.hex()}" if value and _NAA_LENGTHS.get(value[0] >> 4) == len(value) else ""


def _eui(value: bytes) -> str:
    return f"eui.{value.hex()}" if len(value) in _EUI_LENGTHS else ""


def _uuid(value: bytes) -> str:
    return f"uuid.{uuid.UUID(bytes=value[2:])}" if len(value) == 18 and value[0] >> 4 == 1 else ""


def _scsi_name(value: bytes) -> str:
    name = _printable(value.split(b"\0", 1)[0].rstrip(b" "))
    return f"scsi-name.{name}" if name else ""


def _t10(value: bytes) -> str:
    name = _printable(value.rstrip(b"\0 "))
    return f"t10.{name}" if name else ""


_WRITERS: dict[int, Callable[[bytes], str]] = {
    DesignatorType.NAA: _naa,
    DesignatorType.EUI_64: _eui,
    DesignatorType.UUID: _uuid,
    DesignatorType.SCSI_NAME_STRING: _scsi_name,
    DesignatorType.T10_VENDOR_ID: _t10,
}
_STRENGTH = {kind: rank for rank, kind in enumerate(_WRITERS)}


def text(designator: Designator) -> str:
    """Return a designator as identity text, or nothing where its type or length makes it none."""
    write = _WRITERS.get(designator.type)
    written = write(designator.value) if write else ""
    return written if len(written.partition(".")[2]) <= MAXIMUM_TEXT else ""


def is_weak(identity: str) -> bool:
    """Tell whether an identity is known not to be unique: such units merge only within one target."""
    return not identity or any(pattern.fullmatch(identity) for pattern in _WEAK)


def strongest(found: Iterable[Designator]) -> str:
    """Return the identity of the logical unit: unique ones first, then by type, then the longest.

    Designators of ports and of the target device do not count; empty where the unit shows none.
    """
    best: tuple[bool, int, int, str] | None = None
    for designator in found:
        if designator.association != Association.LOGICAL_UNIT:
            continue
        written = text(designator)
        if written:
            rank = (is_weak(written), _STRENGTH[DesignatorType(designator.type)], -len(written), written)
            best = rank if best is None else min(best, rank)
    return best[3] if best else ""
