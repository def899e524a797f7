# SPDX-License-Identifier: GPL-3.0-or-later
"""One command as the device server sees it."""

from __future__ import annotations

from blockfleet_testtarget.scsi.nexus import Nexus
from blockfleet_testtarget.scsi.unit import LogicalUnit


class Call:
    """A CDB with its logical unit, nexus and Data-Out buffer.

    `luns` are the LUNs of the target, for REPORT LUNS. `out_size` is the size of the initiator's
    Data-Out buffer; `data` what of it came, and may be a view that is valid during the call only.
    """

    __slots__ = ("cdb", "data", "luns", "nexus", "out_size", "unit")

    def __init__(
        self,
        cdb: bytes,
        unit: LogicalUnit,
        nexus: Nexus,
        luns: list[int],
        out_size: int = 0,
    ) -> None:
        self.cdb = cdb
        self.unit = unit
        self.nexus = nexus
        self.luns = luns
        self.out_size = out_size
        self.data: bytes | bytearray | memoryview = b""
