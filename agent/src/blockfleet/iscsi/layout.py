# SPDX-License-Identifier: GPL-3.0-or-later
"""The one definition of each Basic Header Segment: precompiled layouts for ``pack_into`` and ``unpack_from``.

Every layout is 48 bytes and starts with ``opcode | I bit, byte 1 (flags)``; ``lengths`` is TotalAHSLength in the
top byte and DataSegmentLength below (:func:`lengths`).  Reserved bytes are packed as zero and skipped when
unpacked.  The comment at each layout names the values in order.
"""

from __future__ import annotations

import struct

from blockfleet.iscsi.constants import MAXIMUM_DATA_SEGMENT

# opcode flags lengths lun itt expected_length cmd_sn exp_stat_sn cdb
SCSI_COMMAND = struct.Struct(">BB2xIQIIII16s")

# opcode flags response status lengths itt snack_tag stat_sn exp_cmd_sn max_cmd_sn exp_data_sn
# bidirectional_residual residual
SCSI_RESPONSE = struct.Struct(">BBBBI8xIIIIIIII")

# opcode function lengths lun itt referenced_tag cmd_sn exp_stat_sn ref_cmd_sn exp_data_sn
TASK_MANAGEMENT_REQUEST = struct.Struct(">BB2xIQIIIIII8x")

# opcode flags response lengths information itt stat_sn exp_cmd_sn max_cmd_sn
TASK_MANAGEMENT_RESPONSE = struct.Struct(">BBBxI3s5xI4xIII12x")

# opcode flags lengths lun itt ttt exp_stat_sn data_sn offset
DATA_OUT = struct.Struct(">BB2xIQII4xI4xII4x")

# opcode flags status lengths lun itt ttt stat_sn exp_cmd_sn max_cmd_sn data_sn offset residual
DATA_IN = struct.Struct(">BBxBIQIIIIIIII")

# opcode flags lengths lun itt ttt stat_sn exp_cmd_sn max_cmd_sn r2t_sn offset desired_length
R2T = struct.Struct(">BB2xIQIIIIIIII")

# opcode flags lengths lun itt stat_sn exp_cmd_sn max_cmd_sn event vcode parameter1 parameter2 parameter3
ASYNC_MESSAGE = struct.Struct(">BB2xIQI4xIIIBBHHH4x")

# opcode flags lengths lun itt ttt cmd_sn exp_stat_sn
TEXT_REQUEST = NOP_OUT = struct.Struct(">BB2xIQIIII16x")

# opcode flags lengths lun itt ttt stat_sn exp_cmd_sn max_cmd_sn
TEXT_RESPONSE = NOP_IN = struct.Struct(">BB2xIQIIIII12x")

# opcode flags version_max version_min lengths isid tsih itt cid cmd_sn exp_stat_sn
LOGIN_REQUEST = struct.Struct(">BBBBI6sHIH2xII16x")

# opcode flags version_max version_active lengths isid tsih itt stat_sn exp_cmd_sn max_cmd_sn status
LOGIN_RESPONSE = struct.Struct(">BBBBI6sHI4xIIIH10x")

# opcode reason lengths itt cid cmd_sn exp_stat_sn
LOGOUT_REQUEST = struct.Struct(">BB2xI8xIH2xII16x")

# opcode flags response lengths itt stat_sn exp_cmd_sn max_cmd_sn time2wait time2retain
LOGOUT_RESPONSE = struct.Struct(">BBBxI8xI4xIII4xHH4x")

# opcode type lengths lun itt ttt_or_snack_tag exp_stat_sn beg_run run_length
SNACK_REQUEST = struct.Struct(">BB2xIQII4xI8xII")

# opcode flags reason lengths itt stat_sn exp_cmd_sn max_cmd_sn data_sn
REJECT = struct.Struct(">BBBxI8xI4xIIII8x")

LENGTHS = struct.Struct(">I")
LENGTHS_OFFSET = 4
"""Where ``lengths`` stands in every BHS."""

_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def lengths(data_length: int, ahs_length: int = 0) -> int:
    """Return the ``lengths`` value for a data segment and an AHS of so many bytes (the latter a multiple of 4)."""
    return ahs_length >> 2 << 24 | data_length


def split_lengths(value: int) -> tuple[int, int]:
    """Return the bytes of AHS and of the (unpadded) data segment that follow a BHS with this ``lengths``."""
    return value >> 24 << 2, value & MAXIMUM_DATA_SEGMENT


def padding(length: int) -> bytes:
    """Return the 0 to 3 zero bytes that pad a segment of ``length`` bytes to a word (RFC 3720 10.1)."""
    return _PADDING[length & 3]


def padded_length(length: int) -> int:
    """Return ``length`` rounded up to a word of four bytes."""
    return (length + 3) & ~3
