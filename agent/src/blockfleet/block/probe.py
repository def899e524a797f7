# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding and identifying the logical units behind a session."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from blockfleet.block.control import CommandFailed, run
from blockfleet.block.profile import UnitProfile
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.scsi import alua, capacity, cdb, designation, inquiry, lun, mode, vpd
from blockfleet.scsi.command import ScsiExecutor
from blockfleet.scsi.condition import Attention

PROBE_ROUNDS = 3
"""Times a probe starts over because the unit changed while it was looked at."""
PROBE_CONCURRENCY = 8
"""Logical units of one session that are probed at a time."""

_INQUIRY_ALLOCATION = 96
_MODE_ALLOCATION = 0xFC
"""Of MODE SENSE(6), and a multiple of four: some targets mishandle 255."""
_CAPACITY_ALLOCATION = 32
_LUN_0 = lun.encode(0)
_STALE = Attention.IDENTITY | Attention.CAPACITY | Attention.MODE
"""What makes a finished look at a unit worthless."""


@dataclass(slots=True)
class _Unit:
    """One unit while it is asked."""

    executor: ScsiExecutor
    lun: int
    attentions: Attention = Attention.NONE

    def _noted(self, attention: Attention) -> None:
        self.attentions |= attention

    async def ask(self, what: str, command: bytes, allocation: int = 0) -> bytes:
        return await run(
            self.executor, self.lun, command, allocation=allocation, what=what, on_attention=self._noted
        )

    async def ask_if_known(self, what: str, command: bytes, allocation: int) -> bytes:
        """Ask for what a unit need not have: an answered refusal is no data, a lost session still raises."""
        try:
            return await self.ask(what, command, allocation)
        except CommandFailed as failure:
            if failure.disposition is None:
                raise
            return b""

    async def page(self, code: int, allocation: int = vpd.MAXIMUM_PAGE) -> bytes:
        return await self.ask_if_known(
            f"INQUIRY for page {code:02X}h", cdb.inquiry_vpd(code, allocation), allocation
        )


async def _identify(unit: _Unit) -> tuple[UnitProfile, frozenset[int]] | None:
    """Return who the unit is, and its vital product data pages."""
    data = await unit.ask("INQUIRY", cdb.inquiry(_INQUIRY_ALLOCATION), _INQUIRY_ALLOCATION)
    standard = inquiry.parse(data)
    if standard is None or not standard.is_present:
        return None
    pages = vpd.supported_pages(await unit.page(vpd.SUPPORTED_PAGES, 0xFF))
    found = vpd.designators(await unit.page(vpd.DEVICE_IDENTIFICATION)) if 0x83 in pages else ()
    serial = vpd.serial_number(await unit.page(vpd.UNIT_SERIAL_NUMBER, 0xFF)) if 0x80 in pages else ""
    identity = designation.strongest(found)
    profile = UnitProfile(
        lun=unit.lun,
        device_type=standard.device_type,
        vendor=standard.vendor,
        product=standard.product,
        revision=standard.revision,
        serial=serial,
        identity=identity,
        identity_is_weak=designation.is_weak(identity),
        is_management=standard.is_management,
        target_port_groups=standard.target_port_groups,
        port_group=vpd.target_port_group(found),
        relative_port=vpd.relative_target_port(found),
    )
    return profile, pages


async def _capacity(unit: _Unit) -> capacity.Capacity | None:
    data = await unit.ask_if_known(
        "READ CAPACITY(16)", cdb.read_capacity_16(_CAPACITY_ALLOCATION), _CAPACITY_ALLOCATION
    )
    found = capacity.parse_16(data)
    if found is None:
        found = capacity.parse_10(await unit.ask("READ CAPACITY(10)", cdb.read_capacity_10(), 8))
    return found


async def _mode(unit: _Unit) -> mode.Mode | None:
    for page in (cdb.MODE_CACHING_PAGE, cdb.MODE_ALL_PAGES):
        data = await unit.ask_if_known("MODE SENSE(6)", cdb.mode_sense_6(page, _MODE_ALLOCATION), _MODE_ALLOCATION)
        if found := mode.parse_6(data):
            return found
    data = await unit.ask_if_known(
        "MODE SENSE(10)", cdb.mode_sense_10(cdb.MODE_CACHING_PAGE, _MODE_ALLOCATION), _MODE_ALLOCATION
    )
    return mode.parse_10(data)


async def port_groups(executor: ScsiExecutor, unit_lun: int) -> alua.PortGroups:
    """Ask for the target port groups, with the extended header where the target knows it.

    No groups where the target refuses; raises :class:`CommandFailed` when the session is lost.
    """
    unit = _Unit(executor, unit_lun)
    for extended in (True, False):
        command = cdb.report_target_port_groups(alua.RTPG_ALLOCATION, extended=extended)
        data = await unit.ask_if_known("REPORT TARGET PORT GROUPS", command, alua.RTPG_ALLOCATION)
        if data:
            return alua.parse(data)
    return alua.PortGroups(())


async def _access(unit: _Unit, profile: UnitProfile) -> UnitProfile:
    if not profile.target_port_groups:
        return profile
    group = (await port_groups(unit.executor, unit.lun)).of(profile.port_group)
    return replace(profile, access=group.state, preferred=group.preferred) if group else profile


async def _measure(unit: _Unit, profile: UnitProfile) -> UnitProfile:
    found = await _capacity(unit)
    if found is None or not found.is_usable:
        size = f"{found.block_size} bytes" if found else "unknown"
        fault = BlockfleetError(
            Isdsc.SCSI_REQUEST_FAILED,
            f"cannot use {lun.describe(unit.lun)}: its logical block size is {size}",
            remedy="format it with blocks of 512 or 4096 bytes",
        )
        return replace(profile, fault=fault)
    modes = await _mode(unit)
    return replace(
        profile,
        blocks=found.blocks,
        block_size=found.block_size,
        physical_block_size=found.block_size << found.physical_exponent,
        protection=found.protection,
        thin=found.provisioned,
        read_only=modes.write_protected if modes else False,
        dpofua=modes.dpofua if modes else False,
        write_cache=modes.write_cache if modes else None,
    )


async def _limits(unit: _Unit, profile: UnitProfile, pages: frozenset[int]) -> UnitProfile:
    limits = await unit.page(vpd.BLOCK_LIMITS, 0xFF) if vpd.BLOCK_LIMITS in pages else b""
    medium = (
        await unit.page(vpd.BLOCK_DEVICE_CHARACTERISTICS, 0xFF)
        if vpd.BLOCK_DEVICE_CHARACTERISTICS in pages
        else b""
    )
    thin = await unit.page(vpd.LOGICAL_BLOCK_PROVISIONING, 0xFF) if vpd.LOGICAL_BLOCK_PROVISIONING in pages else b""
    return replace(
        profile,
        limits=vpd.block_limits(limits),
        rotational=vpd.is_rotational(medium),
        provisioning=vpd.provisioning(thin),
    )


async def _look(unit: _Unit) -> UnitProfile | None:
    identified = await _identify(unit)
    if identified is None:
        return None
    profile, pages = identified
    if profile.device_type != inquiry.DISK or profile.is_management:
        return profile
    try:
        profile = await _access(unit, profile)
        profile = await _measure(unit, profile)
        return await _limits(unit, profile, pages)
    except CommandFailed as failure:
        if failure.disposition is None:
            raise
        return replace(profile, fault=failure)


async def probe(executor: ScsiExecutor, unit_lun: int) -> UnitProfile | None:
    """Identify and measure one logical unit; ``None`` where there is none behind the LUN.

    A disk that answers its identity but not the rest comes back with ``fault``.  The probe begins and ends with
    TEST UNIT READY: when a unit attention tells of a change in between, it starts over, PROBE_ROUNDS times.

    Raises :class:`BlockfleetError` when the session is lost, INQUIRY fails, or the unit keeps changing.
    """
    unit = _Unit(executor, unit_lun)
    for _ in range(PROBE_ROUNDS):
        await unit.ask_if_known("TEST UNIT READY", cdb.test_unit_ready(), 0)
        unit.attentions = Attention.NONE
        profile = await _look(unit)
        await unit.ask_if_known("TEST UNIT READY", cdb.test_unit_ready(), 0)
        if not unit.attentions & _STALE:
            return profile
    raise BlockfleetError(
        Isdsc.SCSI_REQUEST_FAILED,
        f"cannot identify {lun.describe(unit_lun)}: it changed {PROBE_ROUNDS} times while it was looked at",
        remedy="rescan when the target has settled",
    )


async def report_luns(executor: ScsiExecutor) -> tuple[int, ...]:
    """Return the LUN structures that a target reports, asking LUN 0 and else the well known logical unit.

    A target that answers neither has at most LUN 0.  Raises :class:`CommandFailed` when the session is lost.
    """
    allocation = lun.REPORT_LUNS_ALLOCATION
    for asked in (_LUN_0, lun.WELL_KNOWN_REPORT_LUNS):
        unit = _Unit(executor, asked)
        data = await unit.ask_if_known("REPORT LUNS", cdb.report_luns(allocation), allocation)
        if data:
            return tuple(n for n in lun.parse_report_luns(data) if lun.decode(n).form is not lun.Form.WELL_KNOWN)
    return (_LUN_0,)


async def scan(executor: ScsiExecutor) -> list[UnitProfile]:
    """Return every logical unit that a session shows, in the order reported, management units included.

    A unit that cannot be identified is there with ``fault``; only the loss of the session raises.
    """
    slots = asyncio.Semaphore(PROBE_CONCURRENCY)

    async def one(unit_lun: int) -> UnitProfile | None:
        async with slots:
            try:
                return await probe(executor, unit_lun)
            except BlockfleetError as failure:
                if isinstance(failure, CommandFailed) and failure.disposition is None:
                    raise
                return UnitProfile(lun=unit_lun, device_type=inquiry.NO_DEVICE, fault=failure)

    luns = await report_luns(executor)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(unit_lun)) for unit_lun in luns]
    except* CommandFailed as lost:
        failures = lost
    else:
        return [profile for task in tasks if (profile := task.result()) is not None]
    first = failures.exceptions[0]
    assert isinstance(first, CommandFailed)
    raise first
