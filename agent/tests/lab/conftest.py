# SPDX-License-Identifier: GPL-3.0-or-later
"""One machine with every kind of target that the tests of this folder need, started for each module.

A fault of LIO's kernel is a failure of the test in which it shows, with the console; the next has a new machine.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from tests.engine.conftest import engine_client, engine_process
from tests.lab.lio import Lio, LioDisk, LioTarget
from tests.peers.tgt import Account

HOST = "iqn.2026-11.com.example:host"
_NAME = "iqn.2026-11.com.example:lio"
PLAIN, ONE_WAY, MUTUAL = f"{_NAME}-plain", f"{_NAME}-one-way", f"{_NAME}-mutual"
RECOVERING, PAIR = f"{_NAME}-recovering", f"{_NAME}-pair"
VARIED = f"{_NAME}-varied"
"""What it offers is up to each test (``Lio.configure``); LUN 1 is a disk whose writes take LATE seconds."""
LATE = 1.5
GHOST, CACHED = f"{_NAME}-ghost", f"{_NAME}-cached"
SLOW, STUCK, FAST = f"{_NAME}-slow", f"{_NAME}-stuck", f"{_NAME}-fast"
FORWARD = Account("host", "a secret of 12+")
REVERSE = Account("array", "another of 12+")
WRITE_DELAY = 6.0
"""Seconds that a write to the slow disks takes: longer than LIO's Time2Wait of 2 and a login."""
STUCK_DELAY = 20.0
"""Seconds that a write to the stuck disk takes: longer than the time after which a target counts as gone."""
_SHARED = "b10cf1ee7000005f"

_DISKS = (
    LioDisk("disk"),
    LioDisk("pair", ram=1, serial="b10cf1ee70000002"),
    # The same bytes twice, as two controllers of an array with one of them in trouble would show them.
    LioDisk("slow", ram=2, serial=_SHARED, write_delay=WRITE_DELAY),
    LioDisk("stuck", ram=2, serial=_SHARED, write_delay=STUCK_DELAY),
    LioDisk("fast", ram=2, serial=_SHARED),
    LioDisk("varied", ram=3, serial="b10cf1ee70000004"),
    LioDisk("late", ram=4, serial="b10cf1ee70000005", write_delay=LATE),
    LioDisk("cached", serial="b10cf1ee70000003", write_cache=True),
)
_TARGETS = (
    LioTarget(PLAIN, {0: "disk"}, initiators=(HOST,)),
    LioTarget(ONE_WAY, {0: "disk"}, initiators=(HOST,), account=FORWARD),
    LioTarget(MUTUAL, {0: "disk"}, initiators=(HOST,), account=FORWARD, mutual=REVERSE),
    LioTarget(RECOVERING, {0: "disk"}, initiators=(HOST,), error_recovery_level=2, max_connections=4),
    LioTarget(VARIED, {0: "varied", 1: "late"}, portals=(0, 1), initiators=(HOST,)),
    LioTarget(PAIR, {3: "pair"}, portals=(0, 1), initiators=(HOST,)),
    LioTarget(GHOST, {0: "slow", 1: "fast"}, initiators=(HOST,)),
    LioTarget(SLOW, {0: "slow"}, initiators=(HOST,)),
    LioTarget(STUCK, {0: "stuck"}, initiators=(HOST,)),
    LioTarget(FAST, {0: "fast"}, portals=(1,), initiators=(HOST,)),
    LioTarget(CACHED, {0: "cached"}),
)

__all__ = ["engine_client", "engine_process"]


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Lio]]:
    """The machine of the module, if there is one."""
    running: list[Lio] = []
    yield running
    if running:
        judge(running)
    for machine in running:
        machine.close()


@pytest.fixture
def lio(machines: list[Lio]) -> Iterator[Lio]:
    """The machine, with two portals; its kernel must have found no fault in itself when the test is over."""
    if not machines:
        machines.append(Lio(_TARGETS, _DISKS))
    yield machines[0]
    judge(machines)


def judge(machines: list[Lio]) -> None:
    """Fail where the kernel of the machine is at fault, and have another one for the next test."""
    (machine,) = machines
    if faults := machine.faults():
        said = machine.last_words
        machines.clear()
        machine.close()
        pytest.fail("LIO's kernel is at fault:\n" + "\n".join(faults) + f"\n\nIts console:\n{said}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the console of the guest with a test that failed."""
    report = yield
    machine = item.funcargs.get("lio")
    if report.when == "call" and report.failed and isinstance(machine, Lio):
        report.sections.append(("Console of the guest", machine.last_words))
    return report
