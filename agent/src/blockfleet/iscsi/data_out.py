# SPDX-License-Identifier: GPL-3.0-or-later
"""Cutting the data of a write into SCSI Data-Out PDUs (RFC 3720 10.7, 3.2.4.2)."""

from __future__ import annotations

from blockfleet.iscsi.constants import BHS_LENGTH, FINAL_BIT, Opcode
from blockfleet.iscsi.digest import data_digest, digest
from blockfleet.iscsi.layout import DATA_OUT, padding

Segment = bytes | bytearray | memoryview

_OPCODE = int(Opcode.SCSI_DATA_OUT)


def burst(
    out: list[Segment],
    data: memoryview,
    offset: int,
    length: int,
    *,
    lun: int,
    task_tag: int,
    transfer_tag: int,
    exp_stat_sn: int,
    maximum_segment: int,
    header_digest: bool,
    with_data_digest: bool,
) -> None:
    """Append one sequence of Data-Out PDUs for ``data[offset:offset + length]`` to ``out``.

    DataSN counts from 0, every PDU carries at most ``maximum_segment`` bytes, and the last one has F set.  The
    payload is appended as views of ``data``, not copied.
    """
    end = offset + length
    data_sn = 0
    headers = bytearray(BHS_LENGTH * -(-length // maximum_segment))
    view = memoryview(headers)
    at = 0
    append = out.append
    while offset < end:
        size = min(maximum_segment, end - offset)
        flags = FINAL_BIT if offset + size == end else 0
        DATA_OUT.pack_into(
            headers, at, _OPCODE, flags, size, lun, task_tag, transfer_tag, exp_stat_sn, data_sn, offset
        )
        header = view[at : at + BHS_LENGTH]
        append(header)
        if header_digest:
            append(digest(header))
        payload = data[offset : offset + size]
        append(payload)
        if size & 3:
            append(padding(size))
        if with_data_digest:
            append(data_digest(payload))
        at += BHS_LENGTH
        data_sn += 1
        offset += size
