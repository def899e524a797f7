# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding and identifying logical units, against answers that tgt 1.0.85 gave and against stranger ones."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from blockfleet.block.control import CommandFailed, run
from blockfleet.block.probe import probe, report_luns, scan
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.scsi import cdb
from blockfleet.scsi.alua import AccessState
from blockfleet.scsi.command import Outcome, ScsiCommand
from blockfleet.scsi.condition import Attention

LUN_0, LUN_1, LUN_2, W_LUN = 0, 1 << 48, 2 << 48, 0xC101 << 48

INQUIRY, VPD_00, VPD_80, VPD_83 = "12000000", "120100", "120180", "120183"
VPD_B0, VPD_B1, VPD_B2 = "1201b0", "1201b1", "1201b2"
CAPACITY_10, CAPACITY_16, MODE_6, MODE_10, RTPG, LUNS, READY = "25", "9e10", "1a", "5a", "a32a", "a0", "00"

TGT_DISK = {
    READY: "",
    INQUIRY: "000005123d00000249455420202020205649525455414c2d4449534b2020202030303031",
    VPD_00: "00000006008083b0b1b2",
    VPD_80: "00800024" + "20" * 30 + "626561663131",
    VPD_83: "00830048"
    "02010024"
    "49455420202020203030303130303031" + "00" * 20 + "01030008"
    "3000000100000001"
    "01030010"
    "60000000000000000e00000000010001",
    VPD_B0: "00b0003c0080" + "00" * 14 + "ffffffffffffffff" + "00" * 36,
    VPD_B1: "00b10040" + "00" * 64,
    VPD_B2: "00b2000400e40200",
    MODE_6: "2300100008121400ffff0000ffffffff80140000000000000a0a021000000000",
    CAPACITY_10: "0001ffff00000200",
    CAPACITY_16: "000000000001ffff000002000003c000" + "00" * 16,
}
TGT_CONTROLLER = {
    READY: "",
    INQUIRY: "0c0005123d0000024945542020202020436f6e74726f6c6c657220202020202030303031",
    VPD_00: "0c00000400808300",
    VPD_80: "0c800000",
    VPD_83: "0c830000",
    LUNS: "000000100000000000000000000000000001000000000000",
}
NO_UNIT = {INQUIRY: "7f0005001f" + "00" * 31}
EMC_LUNZ = {READY: "", INQUIRY: "000006021f000000" + b"DGC     LUNZ            0532".hex(), VPD_00: "0000000100"}

INVALID_OPCODE = "05/20/00"
INVALID_FIELD = "05/24/00"
NO_SUCH_UNIT = "05/25/00"


class Answering:
    """Answers commands from tables of (LUN, start of the CDB): data as hexadecimal, sense as ``kk/aa/qq``."""

    def __init__(self, units: dict[int, dict[str, str]]) -> None:
        self.units = units
        self.asked: list[tuple[int, str]] = []
        self.before: list[Callable[[ScsiCommand], bool]] = []
        self.lost = False

    def execute(self, command: ScsiCommand) -> None:
        text = command.cdb.hex()
        self.asked.append((command.lun, text))
        if self.lost:
            command.outcome = Outcome.UNKNOWN
        elif not any(answer(command) for answer in self.before):
            self.answer(command, self.find(command.lun, text))
        command.on_done(command)

    def find(self, lun: int, text: str) -> str:
        unit = self.units.get(lun)
        if unit is None:
            return NO_SUCH_UNIT
        for start in sorted(unit, key=len, reverse=True):
            if text.startswith(start):
                return unit[start]
        return INVALID_OPCODE

    @staticmethod
    def answer(command: ScsiCommand, answer: str) -> None:
        command.outcome = Outcome.COMPLETE
        if "/" in answer:
            key, code, qualifier = bytes.fromhex(answer.replace("/", ""))
            command.status = 2
            command.sense = bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0])
        elif command.data_in is not None:
            data = bytes.fromhex(answer)[: len(command.data_in)]
            command.data_in[: len(data)] = data
            command.data_in_count = len(data)


async def test_a_disk_of_tgt() -> None:
    profile = await probe(Answering({LUN_1: TGT_DISK}), LUN_1)
    assert profile is not None
    assert profile.is_disk
    assert profile.number == 1
    assert (profile.vendor, profile.product, profile.revision, profile.serial) == (
        "IET",
        "VIRTUAL-DISK",
        "0001",
        "beaf11",
    )
    assert (profile.identity, profile.identity_is_weak) == ("naa.60000000000000000e00000000010001", True)
    assert (profile.size, profile.block_size, profile.physical_block_size) == (64 << 20, 512, 4096)
    assert (profile.write_cache, profile.dpofua, profile.read_only) == (True, True, False)
    assert profile.thin
    assert profile.provisioning.reads_zeroes
    assert profile.limits.maximum_unmap_descriptors == 0xFFFFFFFF


async def test_a_scan_shows_disks_and_what_is_no_disk() -> None:
    found = await scan(Answering({LUN_0: TGT_CONTROLLER, LUN_1: TGT_DISK}))
    assert [(p.number, p.device_type, p.is_disk) for p in found] == [(0, 0x0C, False), (1, 0, True)]


async def test_management_units_are_no_disks_and_are_not_measured() -> None:
    target = Answering({LUN_0: {**EMC_LUNZ, LUNS: "00000008" + "00" * 12}})
    found = await scan(target)
    assert [(p.is_management, p.is_disk) for p in found] == [(True, False)]
    assert not any(text.startswith(CAPACITY_16) for _, text in target.asked)


@pytest.mark.parametrize("absent", [None, {LUNS: INVALID_OPCODE, **NO_UNIT}], ids=["25/00", "no REPORT LUNS"])
async def test_without_lun_0_the_well_known_logical_unit_is_asked(absent: dict[str, str] | None) -> None:
    luns = "0000001800000000c10100000000000000010000000000000002000000000000"
    units = {W_LUN: {LUNS: luns}, LUN_1: TGT_DISK, LUN_2: TGT_DISK}
    target = Answering(units if absent is None else {**units, LUN_0: absent})
    assert [profile.number for profile in await scan(target)] == [1, 2]


async def test_a_target_without_report_luns_has_at_most_lun_0() -> None:
    assert await report_luns(Answering({LUN_0: TGT_DISK})) == (LUN_0,)
    assert await scan(Answering({LUN_0: NO_UNIT})) == []


async def test_a_unit_that_answers_25_00_to_everything_is_there_with_its_fault() -> None:
    target = Answering({LUN_0: TGT_CONTROLLER})
    found = await scan(target)
    assert [(p.number, p.is_disk) for p in found] == [(0, False), (1, False)]
    assert isinstance(found[1].fault, BlockfleetError)
    assert "logical unit not supported" in str(found[1].fault)


async def test_capacity_10_where_16_is_unknown() -> None:
    old = {key: value for key, value in TGT_DISK.items() if key != CAPACITY_16}
    profile = await probe(Answering({LUN_1: old}), LUN_1)
    assert profile is not None
    assert profile.size == 64 << 20
    assert not profile.thin


async def test_mode_sense_10_where_6_is_unknown() -> None:
    unit = {**TGT_DISK, MODE_6: INVALID_OPCODE, MODE_10: "001a0080000000000812000000" + "00" * 15}
    profile = await probe(Answering({LUN_1: unit}), LUN_1)
    assert profile is not None
    assert (profile.read_only, profile.write_cache, profile.dpofua) == (True, False, False)


async def test_a_unit_without_mode_pages_may_have_a_cache() -> None:
    unit = {**TGT_DISK, MODE_6: INVALID_FIELD}
    profile = await probe(Answering({LUN_1: unit}), LUN_1)
    assert profile is not None
    assert profile.write_cache is None


async def test_a_disk_without_vpd_has_no_identity() -> None:
    unit = {**TGT_DISK, VPD_00: INVALID_FIELD}
    profile = await probe(Answering({LUN_1: unit}), LUN_1)
    assert profile is not None
    assert (profile.identity, profile.identity_is_weak, profile.is_disk) == ("", True, True)


@pytest.mark.parametrize("size", ["00000208", "00000000", "00020000"], ids=["520", "0", "128 KiB"])
async def test_blocks_of_a_size_that_cannot_be_served(size: str) -> None:
    unit = {**TGT_DISK, CAPACITY_16: "000000000001ffff" + size + "00" * 20}
    profile = await probe(Answering({LUN_1: unit}), LUN_1)
    assert profile is not None
    assert not profile.is_disk
    assert "block size" in str(profile.fault)


async def test_a_disk_that_cannot_be_measured_keeps_its_identity() -> None:
    unit = {**TGT_DISK, CAPACITY_16: "02/3a/00", CAPACITY_10: "02/3a/00"}
    profile = await probe(Answering({LUN_1: unit}), LUN_1)
    assert profile is not None
    assert profile.identity.startswith("naa.6")
    assert "medium not present" in str(profile.fault)
    assert not profile.is_disk


@pytest.mark.parametrize("knows_extended", [True, False])
async def test_access_state_of_the_port_that_was_asked(knows_extended: bool) -> None:
    descriptor = struct.pack(">BBHBBBBHH", 0x00, 0x0F, 7, 0, 0, 0, 1, 0, 1) + struct.pack(
        ">BBHBBBBHH", 0x82, 0x0F, 513, 0, 0, 0, 1, 0, 2
    )
    plain = struct.pack(">I", len(descriptor)) + descriptor
    extended = struct.pack(">IBB2x", len(descriptor) + 4, 0x10, 30) + descriptor
    page = "008300085115000400000201"
    unit = {
        **TGT_DISK,
        INQUIRY: TGT_DISK[INQUIRY][:10] + "10" + TGT_DISK[INQUIRY][12:],
        VPD_83: page,
        "a32a": extended.hex() if knows_extended else INVALID_FIELD,
        "a30a": plain.hex(),
    }
    profile = await probe(Answering({LUN_1: unit}), LUN_1)
    assert profile is not None
    assert (profile.port_group, profile.access, profile.preferred) == (513, AccessState.STANDBY, True)


async def test_a_change_during_the_probe_starts_it_over() -> None:
    """Identity and size must be of one and the same unit."""
    target = Answering({LUN_1: TGT_DISK})
    changed: list[str] = []

    def swap(command: ScsiCommand) -> bool:
        if command.cdb.hex().startswith(CAPACITY_16) and not changed:
            changed.append("LUN swapped")
            target.units[LUN_1] = {**TGT_DISK, VPD_80: "00800004" + b"NEW1".hex()}
            target.answer(command, "06/3f/0e")
            return True
        return False

    target.before.append(swap)
    profile = await probe(target, LUN_1)
    assert profile is not None
    assert profile.serial == "NEW1"


async def test_a_unit_that_keeps_changing_is_given_up() -> None:
    target = Answering({LUN_1: TGT_DISK})
    flips = iter(range(1000))

    def flap(command: ScsiCommand) -> bool:
        if command.cdb[0] == 0x9E and next(flips) % 2 == 0:
            target.answer(command, "06/2a/09")
            return True
        return False

    target.before.append(flap)
    with pytest.raises(BlockfleetError, match="changed 3 times"):
        await probe(target, LUN_1)


async def test_a_lost_session_ends_probe_and_scan() -> None:
    target = Answering({LUN_0: TGT_CONTROLLER, LUN_1: TGT_DISK})
    target.lost = True
    with pytest.raises(CommandFailed, match="session was lost"):
        await scan(target)
    target.lost = False

    def lose(command: ScsiCommand) -> bool:
        if command.cdb[0] == 0x9E:
            command.outcome = Outcome.UNKNOWN
            return True
        return False

    target.before.append(lose)
    with pytest.raises(CommandFailed) as caught:
        await scan(target)
    assert caught.value.code is Isdsc.TRANSPORT_ERROR


# --- control commands -------------------------------------------------------------------------------------


def answers(*given: str) -> Answering:
    """A target that gives these answers one after the other."""
    target = Answering({})
    left = list(given)
    target.find = lambda _lun, _text: left.pop(0)  # type: ignore[method-assign]
    return target


async def test_unit_attentions_are_consumed_and_reported() -> None:
    seen: list[Attention] = []
    data = await run(
        answers("06/29/00", "06/2a/09", "abcd"), 0, cdb.inquiry(), allocation=96, on_attention=seen.append
    )
    assert data == bytes.fromhex("abcd")
    assert Attention.CACHE in seen[0]
    assert seen[1] is Attention.CAPACITY


async def test_control_retries_are_bounded() -> None:
    target = answers(*["06/29/00"] * 1000)
    with pytest.raises(CommandFailed, match="power on"):
        await run(target, 0, cdb.test_unit_ready())
    assert len(target.asked) == 129
    target = answers(*["0b/00/00"] * 1000)
    with pytest.raises(CommandFailed):
        await run(target, 0, cdb.test_unit_ready())
    assert len(target.asked) == 6


async def test_a_busy_target_is_asked_again_after_a_pause() -> None:
    target = answers("02/04/01", "02/04/01", "")
    assert await run(target, 0, cdb.test_unit_ready()) == b""
    assert len(target.asked) == 3


@pytest.mark.parametrize("numbers", ["05/24/00", "03/11/00", "07/27/00", "02/04/0b", "05/25/00"])
async def test_other_conditions_are_errors_that_name_command_unit_and_cause(numbers: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        await run(answers(numbers), 5 << 48, cdb.read_capacity_10(), what="READ CAPACITY(10)")
    assert caught.value.code is Isdsc.SCSI_REQUEST_FAILED
    assert "READ CAPACITY(10) of LUN 5" in str(caught.value)
    assert numbers.upper() in str(caught.value)
    assert caught.value.disposition is not None


async def test_data_out_is_sent() -> None:
    target = answers("")
    sent: list[bytes] = []
    target.before.append(lambda command: bool(sent.append(bytes(command.data_out or b""))))
    await run(target, 0, bytes(6), data_out=b"parameters")
    assert sent == [b"parameters"]
