# SPDX-License-Identifier: GPL-3.0-or-later
"""The I_T nexus, which everything that a unit remembers is kept by."""

from __future__ import annotations

import struct
from typing import NamedTuple

from blockfleet_testtarget.scsi.alua import TargetPort

TRANSPORT_ID_PORT = 0x45  # format 1: initiator port; protocol identifier 5


class Nexus(NamedTuple):
    """An I_T nexus: initiator port (name and ISID) and target port (RFC 3720 3.4.1)."""

    initiator: str
    isid: bytes
    port: TargetPort

    def transport_id(self) -> bytes:
        """Return the TransportID of the initiator port (SPC-4 7.6.4.6)."""
        name = f"{self.initiator},i,0x{self.isid.hex()}".encode() + b"\0"
        name += bytes(-len(name) & 3)
        return struct.pack(">BBH", TRANSPORT_ID_PORT, 0, len(name)) + name
