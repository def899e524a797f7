# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets that do things in their own way: known by what they say at login, understood, and told."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tests.net.nexus_rig import config, parameters, run, running, until

from blockfleet.model.portal import Portal
from blockfleet.net.connections import ConnectionSpec
from blockfleet.scsi.command import Outcome
from blockfleet_testtarget.faults import build_fault
from blockfleet_testtarget.target import TestTarget

LIO = "LIO Target"
KEYS = {
    "MaxConnections": "4",
    "ErrorRecoveryLevel": "2",
    "DefaultTime2Wait": "0",
    "DefaultTime2Retain": "20",
    "MaxBurstLength": "65536",
}
WRITE_1M = bytes.fromhex("2a000000000000080000")
PATTERN = bytes((7 * index + index // 241) & 0xFF for index in range(1 << 20))
TASK_REQUEST = 0x02
UNIT_3 = 3 << 48


@pytest.mark.parametrize(
    ("alias", "understood"), [(LIO, True), ("", False)], ids=["its alias is that of LIO", "it has no alias"]
)
async def test_target_that_reassigns_as_lio_does_is_understood_if_it_is_known(
    alias: str, understood: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers with codes of another table, 0 for the times of a logout, and the reserved LUN field looked at."""
    made = config(keys=KEYS)
    made = replace(made, targets=[replace(made.targets[0], alias=alias, luns={3: "disk"})])
    with caplog.at_level(logging.INFO, "blockfleet.net"):
        async with TestTarget(made) as target:
            portal = Portal.parse(target.portals[0].address)
            wanted = parameters(str(portal), error_recovery_level=2, connections=(ConnectionSpec(portal),))
            async with running(wanted) as (nexus, listener):
                await until(lambda: [str(one.phase) for one in nexus.connections] == ["logged_in"] * 2)
                while (await run(nexus, b"\0", lun=UNIT_3)).status:
                    pass
                for name in ("misreport_reassign", "hide_logout_times"):
                    target.arm(build_fault(name, {}))
                target.arm(build_fault("drop", {"opcode": "data_out", "after": 3}))
                command = await run(nexus, WRITE_1M, write=PATTERN, lun=UNIT_3)
                if not understood:
                    assert command.outcome is Outcome.UNKNOWN
                    return
                assert (command.outcome, command.status) == (Outcome.COMPLETE, 0), command.error
                assert bytes(target.units["disk"].backing.read(0, len(PATTERN))) == PATTERN
                assert (listener.losses, nexus.logins, nexus.counters["tasks_reassigned"]) == ([], 1, 1)
                (request,) = [e.pdu for e in target.received if e.pdu.opcode == TASK_REQUEST]
                assert int.from_bytes(request.bhs[8:16], "big") == UNIT_3
    told = [record.getMessage() for record in caplog.records if "taken for LIO" in record.getMessage()]
    assert any("FUNCTION_REJECTED to TASK REASSIGN means FUNCTION_COMPLETE" in line for line in told), told
    assert any("gives no times" in line for line in told), told
