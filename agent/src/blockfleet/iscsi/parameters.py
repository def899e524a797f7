# SPDX-License-Identifier: GPL-3.0-or-later
"""What an initiator offers in negotiation, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from blockfleet.iscsi.keys import CRC32C, KEYS, NONE, write_value


@dataclass(frozen=True, slots=True)
class SessionOffer:
    """Our side of the negotiation, by the fields of RFC 3720 chapter 12; lengths in bytes, times in seconds.

    Lists are in order of preference.  ``None`` for ``protocol_level`` and ``task_reporting`` means that the key
    of RFC 7143 is not sent.  Raises ValueError for a value that its key does not allow or that contradicts
    another one.
    """

    header_digest: tuple[str, ...] = (NONE, CRC32C)
    data_digest: tuple[str, ...] = (NONE, CRC32C)
    max_connections: int = 1
    initial_r2t: bool = False
    immediate_data: bool = True
    max_recv_data_segment_length: int = 262144
    max_burst_length: int = 1 << 20
    first_burst_length: int = 262144
    default_time2wait: int = 0
    default_time2retain: int = 20
    max_outstanding_r2t: int = 8
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    protocol_level: int | None = None
    task_reporting: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for key in KEYS.values():
            value = getattr(self, key.attribute) if key.attribute else None
            if key.high and value is not None and not key.low <= value <= key.high:
                raise ValueError(f"{key.name} {value} is not in {key.low}..{key.high}")
        for digests in (self.header_digest, self.data_digest):
            if not digests or set(digests) - {NONE, CRC32C}:
                raise ValueError(f"digests are {CRC32C} and {NONE}, one at least")
        if self.first_burst_length > self.max_burst_length:
            raise ValueError("FirstBurstLength must not exceed MaxBurstLength (RFC 3720 12.14)")


NORMAL_OFFER = SessionOffer()
"""What normal sessions offer unless told otherwise."""

DISCOVERY_OFFER = SessionOffer(header_digest=(NONE,), data_digest=(NONE,))
"""What discovery sessions offer: no digests, since some targets grant them there and then fail."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The values that a session and a connection run on; defaults are those of RFC 3720 chapter 12.

    ``max_recv_data_segment_length`` is what we declared and may receive,
    ``target_max_recv_data_segment_length`` what the target declared and we may send.
    """

    header_digest: bool = False
    data_digest: bool = False
    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_recv_data_segment_length: int = 8192
    target_max_recv_data_segment_length: int = 8192
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    protocol_level: int = 0
    task_reporting: str = "RFC3720"

    def as_text(self) -> dict[str, str]:
        """Return the values by the names of their keys; the target's own limit as ``Target...``."""
        text: dict[str, str] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _DIGESTS:
                value = CRC32C if value else NONE
            text[_KEY_NAMES[field.name]] = write_value(value)
        return text


_DIGESTS = frozenset({"header_digest", "data_digest"})
_KEY_NAMES = {key.attribute: key.name for key in KEYS.values() if key.attribute} | {
    "target_max_recv_data_segment_length": "TargetMaxRecvDataSegmentLength"
}
