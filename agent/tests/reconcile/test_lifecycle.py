# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts of the agent, the engine and the host; drift; what cannot be saved."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.reconcile.host import P1, P2, TARGET, login

from blockfleet.engine.interface import EngineEvent
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

FULL = {
    "discovery": {"portals": [{"portal": P1}]},
    "targets": [{"name": TARGET, "portals": "all", "min_paths": 1}],
    "volumes": [{"name": "db01", "target": TARGET, "lun": 0}],
}


async def test_an_agent_that_starts_anew_adopts_what_runs(host):
    await host.apply(document=FULL)
    host.engine.calls.clear()
    host.restart_agent()
    plan = await host.agent.plan()
    assert (plan.actions, plan.problems) == ((), ())
    for _ in range(3):
        await host.agent.look()
    assert host.engine.calls == []
    assert (await host.agent.status()).in_sync


async def test_an_engine_that_starts_anew_gets_everything_back_with_the_same_isids(host):
    await host.apply(document=FULL)
    isids = {key: session.spec.isid for key, session in host.engine.sessions.items()}
    assert len(set(isids.values())) == 2
    host.engine.restart()
    plan = await host.agent.plan()
    assert {action.origin for action in plan.actions} == {"corrective"}
    for _ in range(5):
        await host.agent.look()
    assert {key: session.spec.isid for key, session in host.engine.sessions.items()} == isids
    assert list(host.engine.volumes) == ["db01"]
    assert (await host.agent.status()).in_sync


async def test_isids_have_the_random_type_and_differ_within_a_target(host):
    other = "iqn.2026-11.com.example:other"
    host.engine.serve(other, P1)
    await host.apply(document={"targets": [*login(P1, P2)["targets"], *login(P1, name=other)["targets"]]})
    isids = {key: session.spec.isid for key, session in host.engine.sessions.items()}
    assert all(isid.startswith("80") and len(isid) == 12 for isid in isids.values())
    assert isids[f"{TARGET}@{P1}"] != isids[f"{TARGET}@{P2}"]
    assert isids[f"{other}@{P1}"] == isids[f"{TARGET}@{P1}"]


async def test_no_engine_is_a_status_and_an_error_but_no_crash(host):
    await host.apply(document=FULL)
    host.engine.running = False
    status = await host.agent.status()
    assert (status.in_sync, status.engine.reachable) == (False, False)
    assert [p.code for p in status.problems] == [Isdsc.ENGINE_NOT_RUNNING]
    generation = host.store.desired.generation
    for request in (host.agent.plan(), host.apply(document=login(P2)), host.agent.drift()):
        with pytest.raises(BlockfleetError) as caught:
            await request
        assert caught.value.code is Isdsc.ENGINE_NOT_RUNNING
    assert host.store.desired.generation == generation
    for _ in range(3):
        await host.agent.look()
    lost = [e for e in await host.agent.events(0, 100) if e.name == "engine_lost"]
    assert len(lost) == 1


async def test_an_engine_that_goes_away_during_apply_is_reported(host):
    host.engine.fail_next["open_session"] = BlockfleetError(Isdsc.ENGINE_NOT_RUNNING, "gone")
    report = await host.apply(document=login(P1))
    assert (report.changed, report.status) == (True, "not_verified")
    assert [p.code for p in report.problems] == [Isdsc.ENGINE_NOT_RUNNING]
    assert (await host.apply()).status == "in_sync"


async def test_a_step_that_fails_is_tried_again_and_named_when_it_goes_on_failing(host):
    host.engine.fail_next["open_session"] = BlockfleetError(Isdsc.OUT_OF_RESOURCES, "no memory")
    report = await host.apply(document=login(P1))
    assert report.status == "in_sync"
    assert [call for call, _ in host.engine.calls].count("open_session") == 2


async def test_drift_is_corrective_and_a_new_declaration_intended(host):
    await host.apply(document=login(P1))
    del host.engine.sessions[f"{TARGET}@{P1}"]
    drift = await host.agent.drift()
    assert [(a.verb, a.origin) for a in drift.actions] == [("login", "corrective")]
    plan = await host.plan(document=login(P2))
    assert {(a.kind, a.subject, a.origin) for a in plan.actions} == {
        ("target", TARGET, "intended"),
        ("session", f"{TARGET}@{P1}", "corrective"),
        ("session", f"{TARGET}@{P2}", "intended"),
    }


async def test_drift_is_put_right_unasked(host):
    await host.apply(document=login(P1))
    del host.engine.sessions[f"{TARGET}@{P1}"]
    await host.agent.look()
    assert set(host.engine.sessions) == {f"{TARGET}@{P1}"}
    names = [event.name for event in await host.agent.events(0, 100)]
    assert names[-2:] == ["drift_found", "drift_repaired"]


async def test_drift_is_only_told_without_repair_and_put_right_by_apply(host):
    await host.apply(document=login(P1))
    host.restart_agent(repair=False)
    del host.engine.sessions[f"{TARGET}@{P1}"]
    for _ in range(3):
        await host.agent.look()
    assert host.engine.sessions == {}
    assert not (await host.agent.status()).in_sync
    names = [event.name for event in await host.agent.events(0, 100)]
    assert names.count("drift_found") == 1
    report = await host.apply(document=login(P1))
    assert (report.changed, report.status) == (True, "in_sync")
    assert [a.origin for a in report.actions] == ["corrective"]


async def test_what_was_declared_and_not_reached_is_carried_out_even_without_repair(host, target):
    target.units, units = (), target.units
    await host.apply(document=FULL, options={"wait_timeout": 1})
    host.restart_agent(repair=False)
    target.units = units
    for _ in range(3):
        await host.agent.look()
    assert list(host.engine.volumes) == ["db01"]
    assert (await host.agent.status()).in_sync
    assert host.store.applied.generation == host.store.desired.generation


async def test_a_host_that_lost_its_state_leaves_what_runs_alone_until_it_is_declared(host):
    await host.apply(document={**login(P1, P2), "volumes": [{"name": "db01", "target": TARGET, "lun": 0}]})
    host.engine.open_volume("db01")
    name = host.engine.initiator.name
    host.store.close()
    for file in host.folder.iterdir():
        file.unlink()
    host.start()
    for _ in range(3):
        await host.agent.look()
    # A playbook declares piece by piece; what it has not come to yet must not end.
    assert (await host.apply(document={"discovery": {"portals": [{"portal": P1}]}})).status == "in_sync"
    assert (await host.apply(document=login(P1))).status == "in_sync"
    for _ in range(3):
        await host.agent.look()
    assert {key: session.logins for key, session in host.engine.sessions.items()} == {
        f"{TARGET}@{P1}": 1,
        f"{TARGET}@{P2}": 1,
    }
    assert list(host.engine.volumes) == ["db01"]
    assert host.engine.initiator.name == name
    # What was declared since is ours to end, like anything else.
    assert (await host.apply(absent={"target_portals": {TARGET: [P1]}})).status == "in_sync"
    assert set(host.engine.sessions) == {f"{TARGET}@{P2}"}
    report = await host.apply(mode="replace", document=login(P1), options={"allow_disruption": True})
    assert report.status == "in_sync"
    assert set(host.engine.sessions) == {f"{TARGET}@{P1}"}
    assert host.engine.volumes == {}


async def test_a_session_beyond_what_was_declared_is_drift(host):
    await host.apply(document=login(P1))
    spec = host.engine.sessions[f"{TARGET}@{P1}"].spec
    await host.engine.open_session(
        spec.model_copy(update={"key": f"{TARGET}@{P2}", "portal": P2, "isid": "800000000007"})
    )
    drift = await host.agent.drift()
    assert [(a.verb, a.subject) for a in drift.actions] == [("logout", f"{TARGET}@{P2}")]


async def test_a_portal_that_discovery_stops_showing_is_not_logged_out(host, target):
    await host.apply(document=FULL)
    del target.portals[P2]
    target.portals[P2] = 2
    target.faults = {}
    hidden = target.portals.pop(P2)
    await host.agent.discover()
    target.portals[P2] = hidden
    assert (await host.agent.plan()).actions == ()


async def test_a_login_until_boot_ends_with_the_boot(host):
    await host.apply(document=login(P1, lifetime="boot", policy="round_robin"))
    host.restart_agent()
    assert host.store.desired.document.targets[0].portals == (P1,)
    host.engine.restart()
    host.restart_agent(boot_id="boot-2")
    target = host.store.desired.document.targets[0]
    assert (target.portals, target.lifetime, target.policy) == (None, None, "round_robin")
    await host.agent.look()
    assert host.engine.sessions == {}
    assert (await host.agent.status()).in_sync


async def test_a_damaged_state_leaves_everything_as_it_is_until_the_whole_is_declared(host):
    await host.apply(document=FULL)
    host.store.close()
    (host.folder / "state.db").write_bytes(b"not a database" * 100)
    host.start()
    assert "damaged" in host.store.degraded
    for _ in range(3):
        await host.agent.look()
    assert len(host.engine.sessions) == 2
    assert list(host.engine.volumes) == ["db01"]
    status = await host.agent.status()
    assert (status.in_sync, "damaged" in status.degraded) == (False, True)
    for request in (host.agent.plan(), host.apply(document=FULL), host.agent.drift()):
        with pytest.raises(BlockfleetError) as caught:
            await request
        assert caught.value.code is Isdsc.STATE_UNUSABLE
    logins = {key: session.logins for key, session in host.engine.sessions.items()}
    report = await host.apply(mode="replace", document=FULL)
    assert report.status == "in_sync"
    assert {key: session.logins for key, session in host.engine.sessions.items()} == logins
    assert host.store.degraded == ""


async def test_a_secret_that_cannot_be_read_leaves_its_session_as_it_is(host, target):
    target.secret = "correct-horse-battery"
    chap = {"user": "host", "secret": target.secret}
    await host.apply(document=login(P1, chap=chap))
    host.store.close()
    (host.folder / "host.key").unlink()
    host.start()
    host.engine.calls.clear()
    for _ in range(3):
        await host.agent.look()
    assert host.engine.calls == []
    status = await host.agent.status()
    assert [p.code for p in status.problems] == [Isdsc.TARGET_AUTHINFO_UNAVAILABLE]
    # Something else may be declared meanwhile, and the secret stays unreadable rather than becoming another.
    await host.apply(document={"policy": "round_robin"})
    assert host.engine.changes == []
    report = await host.apply(document=login(P1, chap=chap))
    assert report.status == "in_sync"
    assert (await host.agent.status()).problems == ()


async def test_min_paths_makes_a_missing_path_partial(host, target):
    target.faults[P2] = "refused"
    report = await host.apply(document=login(P1, P2, min_paths=1))
    assert (report.status, report.verified) == ("partial", True)
    assert [p.subject for p in report.problems] == [f"{TARGET}@{P2}"]
    assert report.waited < 10
    again = await host.apply(document=login(P1, P2, min_paths=1))
    assert (again.changed, again.status) == (False, "partial")
    report = await host.apply(document=login(P1, P2, min_paths=2), options={"wait_timeout": 3})
    assert report.status == "not_verified"


async def test_min_paths_beyond_what_discovery_shows_is_named(host):
    document = {**FULL, "targets": [{"name": TARGET, "portals": "all", "min_paths": 3}]}
    report = await host.apply(document=document, options={"wait_timeout": 3})
    assert [p.code for p in report.problems] == [Isdsc.PATH_COUNT_MISMATCH]


async def test_the_trouble_of_one_target_is_not_that_of_another(host):
    down = host.engine.serve("iqn.2026-11.com.example:down", "192.0.2.99:3260")
    down.faults["192.0.2.99:3260"] = "refused"
    await host.apply(document=login("192.0.2.99", name=down.name), options={"wait_timeout": 1})
    report = await host.apply(document=login(P1))
    assert (report.status, report.problems) == ("in_sync", ())
    everything = await host.apply(options={"wait_timeout": 1})
    assert everything.status == "not_verified"


async def test_the_name_of_the_host_is_made_once_and_given_to_every_engine(host):
    await host.apply(document=login(P1))
    name = host.engine.initiator.name
    assert name.startswith("iqn.2026-11.io.blockfleet:")
    host.engine.restart()
    host.restart_agent()
    await host.agent.look()
    assert host.engine.initiator.name == name


async def test_events_of_the_engine_are_kept_across_restarts_of_the_agent(host):
    running = asyncio.create_task(host.agent.run())
    host.engine.emit(
        EngineEvent(sequence=7, time=1.0, number=20, name="connection_lost", subject="s", message="gone")
    )
    async with asyncio.timeout(10):
        while not [e for e in await host.agent.events(0, 100) if e.name == "connection_lost"]:
            await asyncio.sleep(0.01)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    host.restart_agent()
    kept = await host.agent.events(0, 100)
    assert [e.message for e in kept if e.name == "connection_lost"] == ["gone"]
    assert [e.sequence for e in kept] == sorted({e.sequence for e in kept})
    assert await host.agent.events(kept[-1].sequence, 100) == []


async def test_rescan_asks_the_sessions_of_one_target(host):
    await host.apply(document=login(P1, P2))
    status = await host.agent.rescan(TARGET)
    assert status.in_sync
    assert [key for call, key in host.engine.calls if call == "rescan"] == [f"{TARGET}@{P1}", f"{TARGET}@{P2}"]
    with pytest.raises(BlockfleetError) as caught:
        await host.agent.rescan("iqn.2026-11.com.example:ghost")
    assert caught.value.code is Isdsc.TARGET_NOT_FOUND


async def test_discovery_at_a_portal_that_is_not_declared_stays_out_of_the_desired_state(host):
    report = await host.agent.discover([P2])
    assert [(t.target, [p.portal for p in t.portals]) for t in report.targets] == [(TARGET, [P1, P2])]
    assert dict(host.store.discovery) == {}
    report = await host.agent.discover(["192.0.2.77"])
    assert [p.subject for p in report.problems] == ["192.0.2.77:3260"]
    with pytest.raises(BlockfleetError) as caught:
        await host.agent.discover(["192.0.2.77:0"])
    assert caught.value.field == "portals[0]"
