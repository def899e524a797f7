# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent without usable state shows what runs and changes nothing."""

from __future__ import annotations

import pytest

from blockfleet.agent.degraded import WatchOnly
from blockfleet.engine.interface import (
    EngineState,
    InitiatorSpec,
    PathPhase,
    PathState,
    SessionPhase,
    SessionState,
    VolumeState,
)
from blockfleet.model.change import Change
from blockfleet.model.desired import Policy
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

REASON = BlockfleetError(Isdsc.STATE_UNUSABLE, "cannot use /var/lib/blockfleet: Read-only file system")
TARGET = "iqn.2026-11.com.example:db"
STATE = EngineState(
    instance="e1",
    version="0.1.0",
    pid=77,
    initiator=InitiatorSpec(name="iqn.2026-11.com.example:host1", alias="web"),
    sessions=tuple(
        SessionState(
            key=f"{TARGET}@{portal}",
            target=TARGET,
            portal=portal,
            phase=SessionPhase.LOGGED_IN,
            isid="800000000001",
        )
        for portal in ("192.0.2.10:3260", "192.0.2.11:3260")
    ),
    volumes=(
        VolumeState(
            name="db01",
            identity="naa.1",
            size=1 << 20,
            block_size=512,
            policy=Policy.ROUND_ROBIN,
            socket="/x/db01.sock",
            clients=2,
            paths=(PathState(session=f"{TARGET}@192.0.2.10:3260", lun=0, phase=PathPhase.ACTIVE),),
        ),
    ),
)


class FixedEngine:
    def __init__(self, answer: EngineState | BlockfleetError) -> None:
        self.answer = answer

    async def observe(self) -> EngineState:
        if isinstance(self.answer, BlockfleetError):
            raise self.answer
        return self.answer


async def test_what_the_engine_runs_is_shown_as_nobodys():
    status = await WatchOnly(FixedEngine(STATE), REASON).status()
    assert not status.in_sync
    assert status.degraded == str(REASON)
    assert [problem.name for problem in status.problems] == ["ISDSC_STATE_UNUSABLE"]
    assert status.initiator.name == "iqn.2026-11.com.example:host1"
    assert [(t.name, t.declared, len(t.sessions)) for t in status.targets] == [(TARGET, False, 2)]
    assert [(v.name, v.declared, v.phase, v.clients, len(v.paths)) for v in status.volumes] == [
        ("db01", False, "online", 2, 1)
    ]


async def test_a_missing_engine_is_one_problem_more():
    gone = BlockfleetError(Isdsc.ENGINE_NOT_RUNNING, "cannot reach the engine")
    status = await WatchOnly(FixedEngine(gone), REASON).status()
    assert not status.engine.reachable
    assert [problem.name for problem in status.problems] == ["ISDSC_STATE_UNUSABLE", "ISDSC_ENGINE_NOT_RUNNING"]


@pytest.mark.parametrize(
    "call",
    [
        lambda control: control.plan(None),
        lambda control: control.plan(Change()),
        lambda control: control.apply(Change()),
        lambda control: control.drift(),
        lambda control: control.discover(None),
        lambda control: control.rescan(None),
        lambda control: control.desired_view(),
    ],
    ids=["plan", "plan a change", "apply", "drift", "discover", "rescan", "desired"],
)
async def test_whatever_needs_the_state_is_refused_with_the_reason(call):
    with pytest.raises(BlockfleetError) as caught:
        await call(WatchOnly(FixedEngine(STATE), REASON))
    assert caught.value.code is Isdsc.STATE_UNUSABLE
