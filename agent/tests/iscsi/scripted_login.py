# SPDX-License-Identifier: GPL-3.0-or-later
"""A target's side of login by hand: headers by the offsets of RFC 3720 10.12 and 10.13, nothing of the codec."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockfleet.iscsi.login import LoginMachine, LoginParameters
from blockfleet.iscsi.parameters import SessionOffer

INITIATOR = "iqn.1999-07.com.os:hostid.77"
TARGET = "iqn.1999-07.com.example:diskarray.sn.88"
ISID = bytes.fromhex("800123450007")
ITT = 0x5A5A0001

OFFER = SessionOffer(max_connections=4, max_recv_data_segment_length=131072, default_time2wait=1)


def parameters(**changes: Any) -> LoginParameters:
    values: dict[str, Any] = {
        "initiator_name": INITIATOR,
        "target_name": TARGET,
        "isid": ISID,
        "cid": 3,
        "cmd_sn": 123,
        "task_tag": ITT,
        "offer": OFFER,
    }
    return LoginParameters(**(values | changes))


@dataclass(frozen=True)
class Request:
    """A Login Request taken apart by offset."""

    wire: bytes

    @property
    def transit(self) -> bool:
        return bool(self.wire[1] & 0x80)

    @property
    def more(self) -> bool:
        return bool(self.wire[1] & 0x40)

    @property
    def stages(self) -> tuple[int, int]:
        return self.wire[1] >> 2 & 3, self.wire[1] & 3

    @property
    def versions(self) -> tuple[int, int]:
        return self.wire[2], self.wire[3]

    @property
    def isid(self) -> bytes:
        return self.wire[8:14]

    @property
    def tsih(self) -> int:
        return int.from_bytes(self.wire[14:16])

    @property
    def itt(self) -> int:
        return int.from_bytes(self.wire[16:20])

    @property
    def cid(self) -> int:
        return int.from_bytes(self.wire[20:22])

    @property
    def cmd_sn(self) -> int:
        return int.from_bytes(self.wire[24:28])

    @property
    def exp_stat_sn(self) -> int:
        return int.from_bytes(self.wire[28:32])

    @property
    def data(self) -> bytes:
        length = int.from_bytes(self.wire[5:8])
        assert len(self.wire) == 48 + (length + 3) // 4 * 4
        assert not any(self.wire[48 + length :])
        return self.wire[48 : 48 + length]

    @property
    def text(self) -> dict[str, str]:
        pairs = [pair.split("=", 1) for pair in self.data.decode().split("\0")[:-1]]
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)


def text(*pairs: str) -> bytes:
    return b"".join(pair.encode() + b"\0" for pair in pairs)


class Script:
    """Drives a login machine: each call answers its last request."""

    def __init__(
        self,
        login: LoginParameters | None = None,
        random_bytes: Callable[[int], bytes] = lambda length: bytes(range(1, length + 1)),
        stat_sn: int = 0x7FFFFFFE,
    ) -> None:
        self.machine = LoginMachine(login or parameters(), random_bytes)
        self.stat_sn = stat_sn
        self.requests = [Request(wire) for wire in self.machine.start()]

    @property
    def last(self) -> Request:
        return self.requests[-1]

    def answer(
        self,
        *pairs: str,
        t: bool = False,
        c: bool = False,
        csg: int | None = None,
        nsg: int | None = None,
        tsih: int = 0,
        itt: int = ITT,
        status: int = 0,
        version: int = 0,
        opcode: int = 0x23,
        data: bytes | None = None,
        ahs_words: int = 0,
        length: int | None = None,
        exp_cmd_sn: int = 123,
        max_cmd_sn: int = 154,
    ) -> Request | None:
        """Send a Login Response; return the next request, or None when there is none."""
        own, wanted = self.last.stages
        csg = own if csg is None else csg
        nsg = (wanted if t else 0) if nsg is None else nsg
        payload = text(*pairs) if data is None else data
        bhs = struct.pack(
            ">BBBBI6sHI4xIIIBB10x",
            opcode,
            (0x80 if t else 0) | (0x40 if c else 0) | csg << 2 | nsg,
            0,
            version,
            ahs_words << 24 | (len(payload) if length is None else length),
            ISID,
            tsih,
            itt,
            self.stat_sn,
            exp_cmd_sn,
            max_cmd_sn,
            status >> 8,
            status & 0xFF,
        )
        sent = self.machine.receive(bhs, payload)
        self.stat_sn = (self.stat_sn + 1) & 0xFFFFFFFF
        self.requests += [Request(wire) for wire in sent]
        return self.requests[-1] if sent else None

    def skip_security(self) -> Request:
        """Answer the first request as a target that wants no authentication."""
        request = self.answer("TargetPortalGroupTag=1", "AuthMethod=None", t=True)
        assert request is not None
        return request

    def accept(self, *pairs: str, tsih: int = 0x1234) -> None:
        """Answer the operational request with the final response."""
        assert self.answer(*pairs, t=True, nsg=3, tsih=tsih) is None
