# SPDX-License-Identifier: GPL-3.0-or-later
"""Sense data in both formats, and the names of what they report (SPC-4 4.5)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAXIMUM_SENSE = 252
"""Bytes that are looked at: the standard's limit for both formats."""
MAXIMUM_DESCRIPTORS = 32


class SenseKey(enum.IntEnum):
    """General category of a condition (SPC-4 table 48)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


@dataclass(frozen=True, slots=True)
class Sense:
    """What a device server reports with CHECK CONDITION."""

    key: SenseKey
    code: int = 0
    """Additional sense code (ASC)."""
    qualifier: int = 0
    """Additional sense code qualifier (ASCQ)."""
    deferred: bool = False
    """The report is about an earlier command, which had been acknowledged; this one did not run."""
    information: int | None = None
    """Usually the first logical block address that is concerned."""

    def __str__(self) -> str:
        return describe(self)


ADDITIONAL_NAMES: dict[tuple[int, int], str] = {
    (0x00, 0x00): "no additional sense information",
    (0x00, 0x1D): "ATA pass-through information available",
    (0x02, 0x00): "no seek complete",
    (0x03, 0x00): "peripheral device write fault",
    (0x04, 0x00): "logical unit not ready, cause not reportable",
    (0x04, 0x01): "logical unit is in process of becoming ready",
    (0x04, 0x02): "logical unit not ready, initializing command required",
    (0x04, 0x03): "logical unit not ready, manual intervention required",
    (0x04, 0x04): "logical unit not ready, format in progress",
    (0x04, 0x05): "logical unit not ready, rebuild in progress",
    (0x04, 0x06): "logical unit not ready, recalculation in progress",
    (0x04, 0x07): "logical unit not ready, operation in progress",
    (0x04, 0x09): "logical unit not ready, self-test in progress",
    (0x04, 0x0A): "logical unit not accessible, asymmetric access state transition",
    (0x04, 0x0B): "logical unit not accessible, target port in standby state",
    (0x04, 0x0C): "logical unit not accessible, target port in unavailable state",
    (0x04, 0x11): "logical unit not ready, notify (enable spinup) required",
    (0x04, 0x12): "logical unit not ready, offline",
    (0x04, 0x14): "logical unit not ready, space allocation in progress",
    (0x04, 0x1A): "logical unit not ready, start stop unit command in progress",
    (0x04, 0x1B): "logical unit not ready, sanitize in progress",
    (0x05, 0x00): "logical unit does not respond to selection",
    (0x08, 0x00): "logical unit communication failure",
    (0x08, 0x01): "logical unit communication time-out",
    (0x0B, 0x00): "warning",
    (0x0B, 0x01): "warning - specified temperature exceeded",
    (0x0C, 0x00): "write error",
    (0x0C, 0x02): "write error - auto reallocation failed",
    (0x0C, 0x0D): "write error - not enough unsolicited data",
    (0x0D, 0x00): "error detected by third party temporary initiator",
    (0x0E, 0x00): "invalid information unit",
    (0x10, 0x00): "id CRC or ECC error",
    (0x10, 0x01): "logical block guard check failed",
    (0x10, 0x02): "logical block application tag check failed",
    (0x10, 0x03): "logical block reference tag check failed",
    (0x11, 0x00): "unrecovered read error",
    (0x11, 0x01): "read retries exhausted",
    (0x11, 0x04): "unrecovered read error - auto reallocate failed",
    (0x11, 0x0B): "unrecovered read error - recommend reassignment",
    (0x11, 0x14): "read error - LBA marked bad by application client",
    (0x14, 0x00): "recorded entity not found",
    (0x15, 0x00): "random positioning error",
    (0x17, 0x00): "recovered data with no error correction applied",
    (0x17, 0x01): "recovered data with retries",
    (0x18, 0x00): "recovered data with error correction applied",
    (0x1A, 0x00): "parameter list length error",
    (0x1B, 0x00): "synchronous data transfer error",
    (0x1D, 0x00): "miscompare during verify operation",
    (0x20, 0x00): "invalid command operation code",
    (0x20, 0x02): "access denied - no access rights",
    (0x21, 0x00): "logical block address out of range",
    (0x22, 0x00): "illegal function",
    (0x24, 0x00): "invalid field in CDB",
    (0x25, 0x00): "logical unit not supported",
    (0x26, 0x00): "invalid field in parameter list",
    (0x26, 0x01): "parameter not supported",
    (0x26, 0x02): "parameter value invalid",
    (0x26, 0x04): "invalid release of persistent reservation",
    (0x27, 0x00): "write protected",
    (0x27, 0x01): "hardware write protected",
    (0x27, 0x02): "logical unit software write protected",
    (0x27, 0x07): "space allocation failed write protect",
    (0x28, 0x00): "not ready to ready change, medium may have changed",
    (0x29, 0x00): "power on, reset, or bus device reset occurred",
    (0x29, 0x01): "power on occurred",
    (0x29, 0x02): "SCSI bus reset occurred",
    (0x29, 0x03): "bus device reset function occurred",
    (0x29, 0x04): "device internal reset",
    (0x29, 0x07): "I_T nexus loss occurred",
    (0x2A, 0x00): "parameters changed",
    (0x2A, 0x01): "mode parameters changed",
    (0x2A, 0x02): "log parameters changed",
    (0x2A, 0x03): "reservations preempted",
    (0x2A, 0x04): "reservations released",
    (0x2A, 0x05): "registrations preempted",
    (0x2A, 0x06): "asymmetric access state changed",
    (0x2A, 0x07): "implicit asymmetric access state transition failed",
    (0x2A, 0x08): "priority changed",
    (0x2A, 0x09): "capacity data has changed",
    (0x2A, 0x10): "timestamp changed",
    (0x2C, 0x00): "command sequence error",
    (0x2C, 0x0B): "not reserved",
    (0x2F, 0x00): "commands cleared by another initiator",
    (0x2F, 0x01): "commands cleared by power loss notification",
    (0x2F, 0x02): "commands cleared by device server",
    (0x30, 0x00): "incompatible medium installed",
    (0x31, 0x00): "medium format corrupted",
    (0x32, 0x00): "no defect spare location available",
    (0x35, 0x00): "enclosure services failure",
    (0x38, 0x07): "thin provisioning soft threshold reached",
    (0x3A, 0x00): "medium not present",
    (0x3E, 0x00): "logical unit has not self-configured yet",
    (0x3E, 0x01): "logical unit failure",
    (0x3E, 0x02): "timeout on logical unit",
    (0x3E, 0x03): "logical unit failed self-test",
    (0x3F, 0x00): "target operating conditions have changed",
    (0x3F, 0x01): "microcode has been changed",
    (0x3F, 0x02): "changed operating definition",
    (0x3F, 0x03): "inquiry data has changed",
    (0x3F, 0x04): "component device attached",
    (0x3F, 0x05): "device identifier changed",
    (0x3F, 0x0A): "volume set created or modified",
    (0x3F, 0x0C): "volume set deassigned",
    (0x3F, 0x0D): "volume set reassigned",
    (0x3F, 0x0E): "reported LUNs data has changed",
    (0x43, 0x00): "message error",
    (0x44, 0x00): "internal target failure",
    (0x45, 0x00): "select or reselect failure",
    (0x47, 0x00): "SCSI parity error",
    (0x47, 0x03): "information unit iuCRC error detected",
    (0x47, 0x05): "protocol service CRC error",
    (0x48, 0x00): "initiator detected error message received",
    (0x49, 0x00): "invalid message error",
    (0x4A, 0x00): "command phase error",
    (0x4B, 0x00): "data phase error",
    (0x4B, 0x05): "data offset error",
    (0x4E, 0x00): "overlapped commands attempted",
    (0x53, 0x02): "medium removal prevented",
    (0x55, 0x00): "system resource failure",
    (0x55, 0x01): "system buffer full",
    (0x55, 0x02): "insufficient reservation resources",
    (0x55, 0x03): "insufficient resources",
    (0x55, 0x04): "insufficient registration resources",
    (0x5A, 0x00): "operator request or state change input",
    (0x5D, 0x00): "failure prediction threshold exceeded",
    (0x5E, 0x00): "low power condition on",
    (0x67, 0x0A): "set target port groups command failed",
    (0x67, 0x0B): "ATA device feature not enabled",
}
"""Names of the codes that disks report (SPC-4 annex F)."""

_KEYS = {key.value: key for key in SenseKey}


def _descriptor_information(data: bytes) -> int | None:
    at, end = 8, min(len(data), 8 + data[7])
    for _ in range(MAXIMUM_DESCRIPTORS):
        if at + 2 > end:
            return None
        if data[at] == 0 and at + 12 <= end:
            return int.from_bytes(data[at + 4 : at + 12], "big") if data[at + 2] & 0x80 else None
        at += 2 + data[at + 1]
    return None


def parse(data: bytes) -> Sense | None:
    """Parse fixed (70h, 71h) or descriptor (72h, 73h) format sense data.

    ``None`` for nothing, for an unknown response code and for data too short to hold a sense key; codes that
    a short answer leaves out are zero.
    """
    if len(data) < 2:
        return None
    data = data[:MAXIMUM_SENSE]
    response = data[0] & 0x7F
    if response in (0x72, 0x73):
        padded = data.ljust(8, b"\0")
        return Sense(
            _KEYS[padded[1] & 0x0F], padded[2], padded[3], response == 0x73, _descriptor_information(padded)
        )
    if response not in (0x70, 0x71) or len(data) < 3:
        return None
    end = 8 + data[7] if len(data) > 7 else len(data)
    padded = data[:end].ljust(14, b"\0")
    return Sense(
        _KEYS[padded[2] & 0x0F],
        padded[12],
        padded[13],
        response == 0x71,
        int.from_bytes(padded[3:7], "big") if data[0] & 0x80 and len(data) >= 7 else None,
    )


def describe(sense: Sense) -> str:
    """Return a condition in words and numbers, such as ``unit attention: capacity data has changed (06/2A/09)``."""
    numbers = f"{sense.key:02X}/{sense.code:02X}/{sense.qualifier:02X}"
    name = ADDITIONAL_NAMES.get((sense.code, sense.qualifier)) or ADDITIONAL_NAMES.get((sense.code, 0), "")
    key = sense.key.name.lower().replace("_", " ")
    words = f"{key}: {name}" if name and (sense.code or sense.qualifier) else key
    return f"{'deferred ' if sense.deferred else ''}{words} ({numbers})"
