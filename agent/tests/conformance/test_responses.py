# SPDX-License-Identifier: GPL-3.0-or-later
"""RSP: SCSI Response, residuals, sense, attributes and LUNs (RFC 3720 10.3, 10.4)."""

from __future__ import annotations

import asyncio

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig, at_every_level
from tests.conformance.raw_target import Peer

from blockfleet.model.desired import Policy
from blockfleet.multipath.device import Event, EventKind, MultipathDevice
from blockfleet.multipath.path import Path
from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome
from blockfleet.scsi.condition import Attention

Session = tuple[Peer, Nexus, Listener]
SENSE = wire.sense(0x05, 0x24, 0x00)
DESCRIPTOR_SENSE = bytes([0, 8, 0x72, 0x05, 0x24, 0x00, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("flags", "sent", "residual", "seen"),
    [(wire.UNDERFLOW, 3584, 512, 512), (wire.OVERFLOW, 4096, 100, -100), (wire.UNDERFLOW, 0, 4096, 4096)],
    ids=["short", "long", "nothing"],
)
@at_every_level
async def test_RSP_02_residuals_are_reported(
    session: Session, flags: int, sent: int, residual: int, seen: int
) -> None:
    peer, nexus, _ = session
    issued = Issued(nexus, READ_10, read=4096)
    itt = (await peer.expect(wire.COMMAND)).itt
    if sent:
        await peer.raw(peer.data_in(itt, 0, 0, bytes(sent), wire.F))
    await peer.raw(peer.response(itt, b1=0x80 | flags, residual=residual, expdatasn=int(sent > 0)))
    command = await issued.good()
    assert (command.data_in_count, command.residual) == (sent, seen)


@pytest.mark.parametrize("flags", [0x06, 0x18], ids=["O and U", "o and u"])
@at_every_level
async def test_RSP_02_overflow_and_underflow_together_are_an_error(rig: Rig, flags: int) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus, WRITE_10, write=bytes(512))
    await peer.raw(peer.response((await peer.expect(wire.COMMAND)).itt, b1=0x80 | flags, residual=1))
    await peer.gone()
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    await listener.loss()


@pytest.mark.parametrize("direction", ["read", "write"])
@pytest.mark.parametrize("residual", [513, 0xFFFFFFFF])
@at_every_level
async def test_RSP_02_a_residual_beyond_the_buffer_is_not_believed(rig: Rig, direction: str, residual: int) -> None:
    peer, nexus, _ = await rig.session()
    options = {"read": 512} if direction == "read" else {"write": bytes(512)}
    issued = Issued(nexus, READ_10, **options)  # type: ignore[arg-type]
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.response(itt, b1=0x80 | wire.UNDERFLOW, residual=residual))
    command = await issued.end()
    assert command.outcome is not Outcome.COMPLETE or command.residual <= 512


@pytest.mark.parametrize("sent", [0, 512, 4092])
@at_every_level
async def test_RSP_03_short_data_without_a_residual_are_no_success(session: Session, sent: int) -> None:
    peer, nexus, listener = session
    issued = Issued(nexus, READ_10, read=4096)
    itt = (await peer.expect(wire.COMMAND)).itt
    if sent:
        await peer.raw(peer.data_in(itt, 0, 0, bytes(sent), wire.F))
    await peer.raw(peer.response(itt, expdatasn=int(sent > 0)))
    command = await issued.end()
    assert command.outcome is not Outcome.COMPLETE
    assert bytes(issued.buffer[sent:]) == b"\xee" * (4096 - sent)
    assert not listener.losses


@pytest.mark.parametrize("flag", [wire.BIDI_UNDERFLOW, wire.BIDI_OVERFLOW], ids=["u", "o"])
@at_every_level
async def test_RSP_04_the_read_residual_of_a_bidirectional_command_counts(rig: Rig, flag: int) -> None:
    peer, nexus, _ = await rig.session()
    issued = Issued(nexus, WRITE_10, read=1024, write=bytes(512))
    sent = await peer.expect(wire.COMMAND)
    assert sent.ahs == bytes([0, 5, 2, 0]) + (1024).to_bytes(4, "big")
    short = 24 if flag == wire.BIDI_UNDERFLOW else 0
    await peer.raw(peer.data_in(sent.itt, 0, 0, bytes(1024 - short), wire.F))
    await peer.raw(peer.response(sent.itt, b1=0x80 | flag, bidi_residual=24, expdatasn=1))
    command = await issued.good()
    assert command.data_in_count == 1024 - short


SENSES = {
    "fixed": (SENSE, SENSE[2:]),
    "descriptor": (DESCRIPTOR_SENSE, DESCRIPTOR_SENSE[2:]),
    "none": (b"\0\0", b""),
    "no data": (b"", b""),
    "one byte": (b"\0", b""),
    "length over the segment": (b"\xff\xff" + SENSE[2:], SENSE[2:]),
    "vendor data behind": (SENSE + b"response data", SENSE[2:]),
}


@pytest.mark.parametrize("case", SENSES)
async def test_RSP_05_sense_is_what_lies_within_the_segment(session: Session, case: str) -> None:
    data, seen = SENSES[case]
    peer, nexus, listener = session
    issued = Issued(nexus)
    await peer.raw(peer.response((await peer.expect(wire.COMMAND)).itt, 2, data))
    command = await issued.end()
    assert (command.outcome, command.status, command.sense) == (Outcome.COMPLETE, 2, seen)
    await peer.quiet(0.03)  # no REQUEST SENSE
    assert not listener.losses


class OnePath:
    """A multipath device with one path: the layer that repeats commands."""

    def __init__(self, nexus: Nexus) -> None:
        self.attentions = Attention.NONE
        clock = asyncio.get_running_loop().time
        self._device = MultipathDevice(
            Policy.FAIL_OVER_ONLY, now=clock, random=lambda: 0.5, on_event=self._event, queue_timeout=5.0
        )
        self._path = Path(nexus, LUN, "one")
        self._device.add_path(self._path)
        self._device.path_up(self._path)
        self.execute = self._device.execute

    def _event(self, event: Event) -> None:
        self.attentions |= event.attention
        if event.kind is EventKind.RECHECK:
            # Whatever is looked at again is found as it was.
            asyncio.get_running_loop().call_soon(self._device.path_up, self._path, self._path.generation)


CONDITIONS = [(0x0B, 0x47, 0x05), (0x0B, 0x0C, 0x0C), (0x0B, 0x0C, 0x0D), (0x0B, 0x11, 0x13)]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: "/".join(f"{part:02x}" for part in c))
@at_every_level
async def test_RSP_06_iscsi_conditions_lead_to_a_new_command(rig: Rig, condition: tuple[int, int, int]) -> None:
    peer, nexus, _ = await rig.session()
    issued = Issued(OnePath(nexus), READ_10, read=512)
    seen = []
    for _ in range(2):
        command = await peer.expect(wire.COMMAND)
        seen.append((command.itt, command.cmdsn))
        await peer.raw(peer.response(command.itt, 2, wire.sense(*condition)))
    command = await peer.expect(wire.COMMAND)
    seen.append((command.itt, command.cmdsn))
    await peer.raw(peer.last_data_in(command.itt, 0, 0, bytes(512)))
    await issued.good()
    assert len({itt for itt, _ in seen}) == len({sn for _, sn in seen}) == 3


ATTENTIONS = {
    (0x29, 0x00): Attention.IDENTITY | Attention.CAPACITY | Attention.RESERVATIONS,
    (0x29, 0x02): Attention.IDENTITY | Attention.CAPACITY,
    (0x29, 0x07): Attention.IDENTITY,
    (0x2A, 0x01): Attention.MODE,
    (0x2A, 0x06): Attention.ALUA,
    (0x2A, 0x09): Attention.CAPACITY,
    (0x3F, 0x0E): Attention.LUNS,
    (0x3F, 0x03): Attention.IDENTITY,
    (0x28, 0x00): Attention.IDENTITY | Attention.CAPACITY,
    (0x47, 0x7F): Attention.NONE,
}


@pytest.mark.parametrize("condition", ATTENTIONS, ids=lambda c: f"{c[0]:02x}/{c[1]:02x}")
@at_every_level
async def test_RSP_08_a_unit_attention_is_acted_on_and_the_command_repeated(
    rig: Rig, condition: tuple[int, int]
) -> None:
    peer, nexus, _ = await rig.session()
    device = OnePath(nexus)
    issued = Issued(device, READ_10, read=512)
    first = await peer.expect(wire.COMMAND)
    await peer.raw(peer.response(first.itt, 2, wire.sense(0x06, *condition)))
    second = await peer.expect(wire.COMMAND)
    assert second.itt != first.itt
    assert second.bhs[32:48] == first.bhs[32:48]
    await peer.raw(peer.last_data_in(second.itt, 0, 0, bytes(512)))
    await issued.good()
    assert ATTENTIONS[condition] in device.attentions


@pytest.mark.parametrize("more", [1, 5, 0xFFFFFFFF])
async def test_RSP_09_an_expdatasn_above_what_came_is_missing_data(rig: Rig, more: int) -> None:
    peer, nexus, listener = await rig.session()
    issued = Issued(nexus, READ_10, read=2048)
    itt = (await peer.expect(wire.COMMAND)).itt
    for sn in range(4):
        await peer.raw(peer.data_in(itt, sn, 512 * sn, bytes(512)))
    await peer.raw(peer.response(itt, expdatasn=min(4 + more, 0xFFFFFFFF)))
    await peer.gone()
    assert (await issued.end()).outcome is Outcome.UNKNOWN
    await listener.loss()


@pytest.mark.parametrize("which", ["again", "unknown"])
@at_every_level
async def test_RSP_10_a_response_to_no_task_ends_no_other(rig: Rig, which: str) -> None:
    peer, nexus, listener = await rig.session()
    first, second = Issued(nexus), Issued(nexus)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.expect(wire.COMMAND)
    await peer.raw(peer.response(itt))
    await first.good()
    await peer.raw(peer.response(itt if which == "again" else 0x12345678))
    await peer.gone()  # session recovery, which the RFC leaves as one of the choices
    await listener.loss()
    assert (await second.end()).outcome is Outcome.UNKNOWN
    assert first.ends == 1


async def test_RSP_11_a_response_ends_the_data_of_a_write(rig: Rig) -> None:
    peer, nexus, listener = await rig.session({"ImmediateData": "No"})
    issued = Issued(nexus, WRITE_10, write=bytes(8192))
    command = await peer.expect(wire.COMMAND)
    await peer.raw(peer.r2t(command.itt, 1, 0, 0, 4096, lun=LUN))
    await peer.expect(wire.DATA_OUT)
    await peer.raw(peer.response(command.itt, 2, SENSE))
    assert (await issued.end()).status == 2
    await peer.quiet()
    await peer.raw(peer.r2t(command.itt, 2, 1, 4096, 4096, lun=LUN))
    assert await peer.gone() == b""
    await listener.loss()


@pytest.mark.parametrize("attribute", range(5))
async def test_RSP_12_task_attributes_are_carried(session: Session, attribute: int) -> None:
    peer, nexus, _ = session
    for options in ({}, {"read": 512}, {"write": bytes(512)}):
        Issued(nexus, READ_10, attribute=attribute, **options)  # type: ignore[arg-type]
        assert (await peer.expect(wire.COMMAND)).bhs[1] & 7 == attribute


LUNS = {
    "peripheral": 0x0005 << 48,
    "flat": 0x4123 << 48,
    "flat over 255": 0x4000 + 3000 << 48,
    "logical unit": 0x8005 << 48,
    "extended": 0xD2000123 << 32,
    "well known": 0xC101 << 48,
}


@pytest.mark.parametrize("form", LUNS)
async def test_RSP_14_luns_are_addressed_in_the_form_given(session: Session, form: str) -> None:
    peer, nexus, _ = session
    lun = LUNS[form]
    Issued(nexus, lun=lun)
    assert (await peer.expect(wire.COMMAND)).lun == lun
    write = Issued(nexus, WRITE_10, write=bytes(6000), lun=lun)
    command = await peer.expect(wire.COMMAND)
    assert command.lun == lun
    await peer.raw(peer.r2t(command.itt, 1, 0, 4096, 1904, lun=lun))
    assert (await peer.expect(wire.DATA_OUT)).lun == lun
    assert write.running
