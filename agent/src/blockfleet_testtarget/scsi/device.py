# SPDX-License-Identifier: GPL-3.0-or-later
"""The device server: which commands there are, and the order of checks before one runs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from blockfleet_testtarget.scsi import inquiry, medium, mode
from blockfleet_testtarget.scsi import sense as conditions
from blockfleet_testtarget.scsi.alua import ALWAYS_SERVED
from blockfleet_testtarget.scsi.call import Call
from blockfleet_testtarget.scsi.reservation import Conflict
from blockfleet_testtarget.scsi.sense import CheckCondition, Status, illegal_field
from blockfleet_testtarget.scsi.unit import Result

INQUIRY, REPORT_LUNS, REQUEST_SENSE = 0x12, 0xA0, 0x03
PASS_ATTENTION = frozenset({INQUIRY, REPORT_LUNS, REQUEST_SENSE})
CONTROL_NACA = 0x04
SERVICE_ACTION = 0x1F


@dataclass(frozen=True, slots=True)
class Command:
    """One command: how it runs, what Data-Out it takes, and which CDB bits it knows (`usage`).

    An `exact` command is refused when the Data-Out buffer has another size than what it takes.
    """

    run: Callable[[Call], Result]
    usage: str
    out: Callable[[Call], int] | None = None
    exact: bool = False


def _ready(call: Call) -> Result:
    if call.unit.stopped:
        raise CheckCondition(conditions.STOPPED)
    return Result()


def _request_sense(call: Call) -> Result:
    if call.cdb[1] & 1:  # DESC: fixed format only
        raise illegal_field(1)
    sense = call.unit.take_attention(call.nexus) or conditions.NO_SENSE
    return Result(data=sense.fixed()[: call.cdb[4]])


def _start_stop(call: Call) -> Result:
    if call.cdb[4] & 0xF0 == 0:
        call.unit.stopped = not call.cdb[4] & 0x01
    return Result()


def _reserve_6(call: Call) -> Result:
    if call.cdb[1] & 0x11:
        raise illegal_field(1)
    call.unit.legacy_holder = call.nexus
    return Result()


def _release_6(call: Call) -> Result:
    if call.unit.legacy_holder == call.nexus:
        call.unit.legacy_holder = None
    return Result()


def _reserve_in(call: Call) -> Result:
    length = struct.unpack_from(">H", call.cdb, 7)[0]
    return Result(data=call.unit.reservations.report(call.cdb[1] & SERVICE_ACTION)[:length])


def _reserve_out(call: Call) -> Result:
    unit = call.unit

    action, scope_type = call.cdb[1] & SERVICE_ACTION, call.cdb[2]
    unit.reservations.change(action, scope_type, call.nexus, bytes(call.data), unit.attention_for)
    return Result()


def _report_groups(call: Call) -> Result:
    length = struct.unpack_from(">I", call.cdb, 6)[0]
    return Result(data=call.unit.access.report(extended=call.cdb[1] >> 5 == 1)[:length])


def _set_groups(call: Call) -> Result:
    for group, state in call.unit.access.parse_set(bytes(call.data)).items():
        call.unit.set_access(group, state, cause=call.nexus)
    return Result()


def _report_luns(call: Call) -> Result:
    return inquiry.report_luns(call.cdb, call.luns)


def _report_opcodes(call: Call) -> Result:
    options, wanted = call.cdb[2] & 7, call.cdb[3]
    timeouts = bool(call.cdb[2] & 0x80)
    action, length = struct.unpack_from(">HI", call.cdb, 4)
    if options == 0:
        data = _all_opcodes(timeouts=timeouts)
    elif options in (1, 2, 3):
        data = _one_opcode(options, wanted, action, timeouts=timeouts)
    else:
        raise illegal_field(2)
    return Result(data=data[:length])


_TIMEOUTS = struct.pack(">HBBII", 10, 0, 0, 0, 0)


def _all_opcodes(*, timeouts: bool) -> bytes:
    rows = []
    for (opcode, action), command in sorted(COMMANDS.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        flags = (0x01 if action is not None else 0) | (0x02 if timeouts else 0)
        row = struct.pack(">BxHxBH", opcode, action or 0, flags, len(command.usage) // 2)
        rows.append(row + (_TIMEOUTS if timeouts else b""))
    body = b"".join(rows)
    return struct.pack(">I", len(body)) + body


def _one_opcode(options: int, opcode: int, action: int, *, timeouts: bool) -> bytes:
    has_actions = any(key[0] == opcode and key[1] is not None for key in COMMANDS)
    if (options == 1 and has_actions) or (options == 2 and not has_actions):
        raise illegal_field(2)
    command = COMMANDS.get((opcode, action if has_actions else None))
    if command is None:
        return struct.pack(">BBH", 0, 0x01, 0)
    usage = bytes.fromhex(command.usage)
    head = struct.pack(">BBH", 0, 0x03 | (0x80 if timeouts else 0), len(usage))
    return head + usage + (_TIMEOUTS if timeouts else b"")


def _list_length_10(call: Call) -> int:
    length: int = struct.unpack_from(">H", call.cdb, 7)[0]
    return length


def _list_length_32(call: Call) -> int:
    length: int = struct.unpack_from(">I", call.cdb, 6)[0]
    return length


def _reserve_out_length(call: Call) -> int:
    length: int = struct.unpack_from(">I", call.cdb, 5)[0]
    return length


def _build() -> dict[tuple[int, int | None], Command]:
    table: dict[tuple[int, int | None], Command] = {
        (0x00, None): Command(_ready, "000000000004"),
        (0x03, None): Command(_request_sense, "03010000ff04"),
        (0x12, None): Command(inquiry.inquiry, "1201ffffff04"),
        (0x15, None): Command(mode.mode_select_6, "15100000ff04", lambda call: call.cdb[4]),
        (0x16, None): Command(_reserve_6, "160000000004"),
        (0x17, None): Command(_release_6, "170000000004"),
        (0x1A, None): Command(mode.mode_sense_6, "1a08ffffff04"),
        (0x1B, None): Command(_start_stop, "1b010000f304"),
        (0x25, None): Command(medium.read_capacity_10, "25000000000000000004"),
        (0x42, None): Command(medium.unmap, "42000000000000ffff04", medium.unmap_length),
        (0x55, None): Command(mode.mode_select_10, "55100000000000ffff04", _list_length_10),
        (0x5A, None): Command(mode.mode_sense_10, "5a18ffff000000ffff04"),
        (0x89, None): Command(
            medium.compare_and_write, "8918ffffffffffffffff000000ff1f04", medium.compare_length, exact=True
        ),
        (0x9E, 0x10): Command(medium.read_capacity_16, "9e100000000000000000ffffffff0004"),
        (0xA0, None): Command(_report_luns, "a000ff000000ffffffff0004"),
        (0xA3, 0x0A): Command(_report_groups, "a3ea00000000ffffffff0004"),
        (0xA3, 0x0C): Command(_report_opcodes, "a30c87ffffffffffffff0004"),
        (0xA4, 0x0A): Command(_set_groups, "a40a00000000ffffffff0004", _list_length_32),
    }
    for action in range(4):
        table[0x5E, action] = Command(_reserve_in, f"5e{action:02x}0000000000ffff04")
    for action in range(7):
        table[0x5F, action] = Command(_reserve_out, f"5f{action:02x}ff0000ffffffff04", _reserve_out_length)
    _add_sized(table)
    return table


_USAGE = {6: "{op:02x}1fffffff04", 10: "{op:02x}{flags:02x}ffffffff1fffff04"}
_USAGE[12] = "{op:02x}{flags:02x}ffffffffffffffff1f04"
_USAGE[16] = "{op:02x}{flags:02x}ffffffffffffffffffffffff1f04"


def _add_sized(table: dict[tuple[int, int | None], Command]) -> None:
    families: list[tuple[dict[int, int], int, Callable[..., Callable[[Call], Result]], object]] = [
        ({0x08: 6, 0x28: 10, 0xA8: 12, 0x88: 16}, 0x18, medium.read, None),
        ({0x0A: 6, 0x2A: 10, 0xAA: 12, 0x8A: 16}, 0x18, medium.write, medium.write_length),
        ({0x2E: 10, 0xAE: 12, 0x8E: 16}, 0x12, medium.write, medium.write_length),
        ({0x8B: 16}, 0x18, medium.or_write, medium.write_length),
        ({0x2F: 10, 0xAF: 12, 0x8F: 16}, 0x16, medium.verify, medium.verify_length),
        ({0x34: 10, 0x90: 16}, 0x02, medium.prefetch, None),
        ({0x35: 10, 0x91: 16}, 0x02, medium.synchronize, None),
        ({0x41: 10, 0x93: 16}, 0x19, medium.write_same, medium.write_same_length),
    ]
    for opcodes, flags, run, out in families:
        for opcode, size in opcodes.items():
            extent = medium.EXTENTS[size]
            length = out(extent) if callable(out) else None
            known = flags & ~medium.NDOB if opcode == 0x41 else flags
            usage = _USAGE[size].format(op=opcode, flags=known)
            table[opcode, None] = Command(run(extent), usage, length, exact=run is medium.write_same)


COMMANDS = _build()
WITH_ACTIONS = frozenset(opcode for opcode, action in COMMANDS if action is not None)


def find(cdb: bytes) -> Command:
    """Return the command of a CDB; raises CheckCondition when there is none or NACA is set."""
    opcode = cdb[0]
    if opcode in WITH_ACTIONS:
        command = COMMANDS.get((opcode, cdb[1] & SERVICE_ACTION))
        if command is None:
            raise illegal_field(1)
    else:
        command = COMMANDS.get((opcode, None))
        if command is None:
            raise CheckCondition(conditions.UNKNOWN_OPCODE)
    if cdb[len(command.usage) // 2 - 1] & CONTROL_NACA:
        raise illegal_field(len(command.usage) // 2 - 1)
    return command


def admit(call: Call, command: Command) -> int:
    """Check everything that can be checked before data arrives and return the Data-Out length.

    Raises CheckCondition, or Conflict for a reservation of another nexus.
    """
    unit, opcode = call.unit, call.cdb[0]
    if opcode not in PASS_ATTENTION:
        attention = unit.take_attention(call.nexus)
        if attention is not None:
            raise CheckCondition(attention)
    if opcode not in ALWAYS_SERVED:
        unit.access.check(call.nexus.port, opcode)
    if unit.legacy_holder not in (None, call.nexus) and opcode not in (*PASS_ATTENTION, 0x17):
        raise Conflict
    if unit.reservations.kind is not None:
        unit.reservations.check(call.nexus, opcode)
    needed = command.out(call) if command.out is not None else 0
    if command.exact and call.out_size != needed:
        raise illegal_field(len(command.usage) // 2 - 2)
    return needed


def failure(error: CheckCondition | Conflict) -> Result:
    """Return the result that an error stands for."""
    if isinstance(error, Conflict):
        return Result(status=Status.RESERVATION_CONFLICT)
    return Result(status=Status.CHECK_CONDITION, sense=error.sense)


def execute(call: Call, command: Command) -> Result:
    """Run an admitted command whose data is there."""
    try:
        return command.run(call)
    except (CheckCondition, Conflict) as error:
        return failure(error)


def absent(cdb: bytes, luns: list[int]) -> Result:
    """Answer a command to a LUN that has no logical unit (SPC-4 6.6.2, SAM-5 4.7.4)."""
    try:
        if cdb[0] == INQUIRY:
            return Result(data=inquiry.absent_unit(cdb)[: struct.unpack_from(">H", cdb, 3)[0]])
        if cdb[0] == REPORT_LUNS:
            return inquiry.report_luns(cdb, luns)
        if cdb[0] == REQUEST_SENSE:
            return Result(data=conditions.NO_SUCH_LUN.fixed()[: cdb[4]])
    except CheckCondition as error:
        return failure(error)
    return failure(CheckCondition(conditions.NO_SUCH_LUN))
