# SPDX-License-Identifier: GPL-3.0-or-later
"""The host as Prometheus metrics; labels are names of targets, portals and volumes, never of credentials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from blockfleet.model.conditions import ConditionType, Truth
from blockfleet.model.plan import HostStatus, Plan, TargetStatus, VolumeStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_DURATIONS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
"""Bucket bounds in seconds: from a plan without traffic to a wait for the slowest target."""


class Metrics:
    """Durations of the agent's work, and what a look at the host shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._durations = Histogram(
            "blockfleet_operation_seconds",
            "Time that plans, applies and discoveries took.",
            ["operation"],
            buckets=_DURATIONS,
            registry=self._registry,
        )

    def took(self, operation: str, seconds: float) -> None:
        """Count one operation and its duration."""
        self._durations.labels(operation).observe(seconds)

    def exposition(self, status: HostStatus, drift: Plan | None) -> bytes:
        """Return all metrics as text; ``drift`` is None where it cannot be told."""
        return generate_latest(self._registry) + generate_latest(_Snapshot(status, drift))


class _Snapshot(Collector):
    """One look at the host as metric families."""

    def __init__(self, status: HostStatus, drift: Plan | None) -> None:
        self._status = status
        self._drift = drift

    def collect(self) -> Iterator[Metric]:
        """Yield every family (prometheus_client's Collector)."""
        yield from self._host()
        yield from _targets(self._status.targets)
        yield from _connections(self._status.targets)
        yield from _volumes(self._status.volumes)

    def _host(self) -> Iterator[Metric]:
        status = self._status
        rows = (
            ("blockfleet_in_sync", "1 when nothing is left to do.", status.in_sync),
            ("blockfleet_degraded", "1 when the agent can only watch.", bool(status.degraded)),
            ("blockfleet_engine_up", "1 when the engine answers.", status.engine.reachable),
            ("blockfleet_generation", "Generation of the desired state.", status.generation),
            ("blockfleet_problems", "Problems that the host has.", len(status.problems)),
        )
        for name, text, value in rows:
            yield GaugeMetricFamily(name, text, value=value)
        answering = GaugeMetricFamily(
            "blockfleet_portal_answers", "1 when a discovery portal answers.", labels=["portal"]
        )
        for portal in status.portals:
            seen = [c.status for c in portal.conditions if c.type is ConditionType.DISCOVERED]
            answering.add_metric([portal.portal], float(Truth.TRUE in seen))
        yield answering
        if self._drift is not None:
            drift = GaugeMetricFamily(
                "blockfleet_drift_actions", "Actions that would put drift right.", labels=["verb"]
            )
            for verb, count in Counter(str(a.verb) for a in self._drift.actions).items():
                drift.add_metric([verb], count)
            yield drift


def _targets(targets: tuple[TargetStatus, ...]) -> Iterator[Metric]:
    wanted = GaugeMetricFamily(
        "blockfleet_sessions_wanted", "Sessions that a target shall have.", labels=["target"]
    )
    sessions = GaugeMetricFamily(
        "blockfleet_sessions", "Sessions that a target has, by phase.", labels=["target", "phase"]
    )
    counters = CounterMetricFamily(
        "blockfleet_session_events",
        "What the engine counts of a session.",
        labels=["target", "portal", "counter"],
    )
    for target in targets:
        wanted.add_metric([target.name], len(target.portals))
        for phase, count in Counter(str(s["phase"]) for s in target.sessions).items():
            sessions.add_metric([target.name, phase], count)
        for session in target.sessions:
            counts = {"logins": session.get("logins", 0), **session.get("counters", {})}
            for counter, value in counts.items():
                counters.add_metric([target.name, str(session["portal"]), counter], value)
    yield from (wanted, sessions, counters)


_CONNECTION = ("target", "portal", "cid", "via")
"""Labels of one connection: its session's target and portal, its id, and the portal that it leads to."""


def _connections(targets: tuple[TargetStatus, ...]) -> Iterator[Metric]:
    phases = GaugeMetricFamily(
        "blockfleet_connections", "Connections that sessions have, by phase.", labels=["target", "portal", "phase"]
    )
    wanted = GaugeMetricFamily(
        "blockfleet_connections_wanted", "Connections that a session shall have.", labels=["target", "portal"]
    )
    carried = CounterMetricFamily(
        "blockfleet_connection_commands", "SCSI commands that a connection was given.", labels=_CONNECTION
    )
    in_flight = GaugeMetricFamily(
        "blockfleet_connection_in_flight", "SCSI commands that a connection waits for.", labels=_CONNECTION
    )
    for target in targets:
        for session in target.sessions:
            name = [target.name, str(session["portal"])]
            there = session.get("connections", ())
            wanted.add_metric(name, 1 + len(session.get("connection_set", {}).get("further", ())))
            for phase, count in Counter(str(c["phase"]) for c in there).items():
                phases.add_metric([*name, phase], count)
            for connection in there:
                if connection["cid"] is not None:
                    labels = [*name, str(connection["cid"]), connection["portal"]]
                    carried.add_metric(labels, connection["commands"])
                    in_flight.add_metric(labels, connection["in_flight"])
    yield from (wanted, phases, carried, in_flight)


def _volumes(volumes: tuple[VolumeStatus, ...]) -> Iterator[Metric]:
    size = GaugeMetricFamily("blockfleet_volume_size_bytes", "Size of a volume.", labels=["volume"])
    clients = GaugeMetricFamily(
        "blockfleet_volume_clients", "NBD clients that have a volume open.", labels=["volume"]
    )
    phases = GaugeMetricFamily("blockfleet_volume_phase", "1 for a volume's phase.", labels=["volume", "phase"])
    paths = GaugeMetricFamily("blockfleet_volume_paths", "Paths of a volume, by phase.", labels=["volume", "phase"])
    for volume in volumes:
        size.add_metric([volume.name], volume.size)
        clients.add_metric([volume.name], volume.clients)
        phases.add_metric([volume.name, volume.phase], 1)
        for phase, count in Counter(str(p["phase"]) for p in volume.paths).items():
            paths.add_metric([volume.name, phase], count)
    yield from (size, clients, phases, paths)
