# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every declaration on every host: a dry run predicts, applying converges, repeating is free."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.reconcile.host import Host
from tests.reconcile.simulated_engine import SimulatedEngine, SimulatedTarget, disk

from blockfleet.model.errors import BlockfleetError

TARGETS = [f"iqn.2026-11.com.example:t{n}" for n in (1, 10, 2)]
PORTALS = ["192.0.2.1:3260", "192.0.2.2:3261", "[2001:db8::3]:3260"]
FAULTS = ["refused", "not_found", "garbage"]

targets = st.fixed_dictionaries(
    {"name": st.sampled_from(TARGETS)},
    optional={
        "portals": st.one_of(st.just("all"), st.lists(st.sampled_from(PORTALS), min_size=1, unique=True)),
        "policy": st.sampled_from(["fail_over_only", "round_robin"]),
        "lifetime": st.sampled_from(["boot", "persistent"]),
        "chap": st.fixed_dictionaries(
            {"user": st.just("host"), "secret": st.sampled_from(["secret-number-one", "secret-number-two"])}
        ),
        "login": st.fixed_dictionaries({"noop_interval": st.sampled_from([1, 7])}),
    },
)

volumes = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b"]),
        "target": st.sampled_from(TARGETS),
        "lun": st.integers(0, 2),
        "read_only": st.booleans(),
    }
)

documents = st.fixed_dictionaries(
    {},
    optional={
        "discovery": st.fixed_dictionaries(
            {"portals": st.lists(st.builds(lambda p: {"portal": p}, st.sampled_from(PORTALS)), max_size=1)}
        ),
        "targets": st.lists(targets, max_size=3, unique_by=lambda t: t["name"]),
        "volumes": st.lists(volumes, max_size=2, unique_by=lambda v: v["name"]),
        "policy": st.sampled_from(["fail_over_only", "round_robin"]),
    },
)

changes = st.fixed_dictionaries(
    {"document": documents, "options": st.just({"wait_timeout": 3})},
    optional={
        "mode": st.just("replace"),
        "exclusive": st.lists(st.sampled_from(["targets", "targets.portals", "volumes"]), unique=True),
        "absent": st.fixed_dictionaries(
            {}, optional={"targets": st.lists(st.sampled_from(TARGETS), unique=True), "volumes": st.just(["a"])}
        ),
    },
)

faults = st.dictionaries(st.sampled_from(PORTALS), st.sampled_from(FAULTS), max_size=2)
drifts = st.lists(st.sampled_from(["session", "volume", "engine"]), max_size=2)


def a_host(folder: str, faulty: dict[str, str]) -> Host:
    made = [
        SimulatedTarget(
            name,
            {portal: tag for tag, portal in enumerate(PORTALS, 1)},
            tuple(disk(lun, f"naa.60000000000000{number}{lun}") for lun in (0, 1)),
            faults=dict(faulty),
        )
        for number, name in enumerate(TARGETS)
    ]
    return Host(SimulatedEngine(*made), Path(folder) / "state")


def drift(engine: SimulatedEngine, kinds: list[str]) -> None:
    """Take the first session, the first volume, or everything away behind the agent's back."""
    things = {"session": engine.sessions, "volume": engine.volumes}
    for kind in kinds:
        if kind == "engine":
            engine.restart()
        elif things[kind]:
            del things[kind][min(things[kind])]


async def check(folder: str, sequence: list[dict], faulty: dict[str, str], kinds: list[str]) -> None:
    host = a_host(folder, faulty)
    try:
        for change in sequence:
            drift(host.engine, kinds)
            try:
                plan = await host.plan(**change)
            except BlockfleetError:
                continue  # A document that contradicts itself; how it is refused is tested with the model.
            report = await host.apply(**change)
            assert report.actions[: len(plan.actions)] == plan.actions
            assert (report.diff, report.changed) == (plan.diff, plan.changed)
            host.time.now += 60
            again = await host.plan(**change)
            assert again.actions == ()
            repeated = await host.apply(**change)
            assert (repeated.changed, repeated.actions) == (False, ())
            assert repeated.generation == report.generation
            assert (await host.agent.drift()).actions == ()
            host.engine.calls.clear()
            await host.agent.look()
            assert host.engine.changes == []
            if report.status == "in_sync":
                host.restart_agent()
                assert (await host.agent.plan()).actions == ()
    finally:
        host.store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(changes, min_size=1, max_size=3), faults, drifts)
def test_a_dry_run_predicts_applying_converges_and_repeating_is_free(sequence, faulty, kinds):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(folder, sequence, faulty, kinds))
