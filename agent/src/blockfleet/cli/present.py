# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers as people see them: plans and reports as lines, the host as tables."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from blockfleet.cli.present_connections import connections_table, have_several, trouble_lines
from blockfleet.cli.present_paths import have_several_paths, paths_table
from blockfleet.cli.tables import BAD, DOUBTFUL, FAINT, GOOD, STRONG, phase_text, table_of
from blockfleet.model.plan import (
    Action,
    Disruption,
    HostStatus,
    Origin,
    Plan,
    Problem,
    Report,
    ReportStatus,
    TargetStatus,
    VolumeStatus,
)

_SIGN_STYLES = {"+": GOOD, "~": DOUBTFUL, "-": BAD}

_DISRUPTIONS = {
    Disruption.NONE: "",
    Disruption.RELOGIN: "re-login: I/O on one path pauses",
    Disruption.INTERRUPTS: "interrupts who uses it",
}

_REPORT_STYLES = {
    ReportStatus.IN_SYNC: (GOOD, "in sync"),
    ReportStatus.PARTIAL: (DOUBTFUL, "partial: some paths are missing, min_paths is satisfied"),
    ReportStatus.NOT_VERIFIED: (BAD, "not verified: the host is not as it was asked to be"),
}

_SEVERITY_STYLES = {"info": "", "warning": DOUBTFUL, "error": BAD}

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: int) -> str:
    """Write a number of bytes in the largest unit that keeps it at 1 or more: ``64 MiB``, ``1.5 GiB``."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.4g} {_UNITS[unit]}"


def plan_lines(plan: Plan) -> Iterator[Text]:
    """Yield a plan line by line, with its summary at the end."""
    if plan.actions:
        yield from _actions(plan.actions)
        summary = plan.summary
        yield Text(f"Plan: {summary.add} to add, {summary.change} to change, {summary.remove} to remove.", STRONG)
    else:
        yield Text(f"No changes: nothing is left to do for generation {plan.generation}.", STRONG)
    yield from _notes(plan)


def report_lines(report: Report) -> Iterator[Text]:
    """Yield what an apply did line by line, and how the host stood at its end."""
    yield from _actions(report.actions)
    summary = report.summary
    done = f"Applied: {summary.add} added, {summary.change} changed, {summary.remove} removed"
    line = Text(done if report.actions else "No changes", STRONG)
    style, text = _REPORT_STYLES[report.status]
    line.append("; generation ", "not bold").append(str(report.generation), "not bold")
    if report.waited >= 0.1:
        line.append(f", waited {report.waited:.1f} s", "not bold")
    line.append(": ", "not bold").append(text, style)
    yield line
    yield from _notes(report)


def _actions(actions: Iterable[Action]) -> Iterator[Text]:
    for action in actions:
        line = Text(action.text, _SIGN_STYLES.get(action.verb.sign, ""))
        if action.origin is Origin.CORRECTIVE:
            line.append("  (drift)", DOUBTFUL)
        if action.disruption is not Disruption.NONE:
            line.append(f"  ({_DISRUPTIONS[action.disruption]})", DOUBTFUL)
        yield line
        if action.refused:
            yield Text(f"    refused: {action.refused}", BAD)


def _notes(plan: Plan) -> Iterator[Text]:
    for warning in plan.warnings:
        yield Text("warning: ", DOUBTFUL).append(warning, "default")
    for problem in plan.problems:
        yield problem_line(problem)


def problem_line(problem: Problem) -> Text:
    """Write a problem with its stable name."""
    line = Text("problem: ", BAD)
    if problem.subject and problem.subject not in problem.message:
        line.append(f"{problem.subject}: ", "default")
    return line.append(problem.message, "default").append(f" [{problem.name}]", FAINT)


def status_parts(status: HostStatus) -> Iterator[RenderableType]:
    """Yield the host: who it is, its targets, its volumes, and what is wrong."""
    yield _head(status)
    if status.degraded:
        yield Text("degraded: ", BAD).append(status.degraded, "default")
    if status.targets:
        yield from _titled("Targets", targets_table(status.targets))
    if have_several(status.targets):
        yield from _titled("Connections", connections_table(status.targets))
    if status.volumes:
        yield from _titled("Volumes", VolumesView(status.volumes))
    if have_several_paths(status.volumes):
        yield from _titled("Paths", paths_table(status.volumes))
    if not status.targets and not status.volumes:
        yield Text("\nNothing is declared. Write a document and hand it to 'blockfleet apply FILE'.", FAINT)
    if status.problems:
        yield Text("")
        yield from map(problem_line, status.problems)


def _head(status: HostStatus) -> Table:
    grid = Table.grid(padding=(0, 2))
    host = Text(status.initiator.name or "no initiator name yet", STRONG)
    if status.initiator.alias:
        host.append(f" ({status.initiator.alias})", "not bold")
    if status.in_sync:
        verdict = Text("in sync", f"{STRONG} {GOOD}")
    else:
        verdict = Text("not in sync", f"{STRONG} {BAD if status.degraded else DOUBTFUL}")
    grid.add_row(Text("Initiator", FAINT), host)
    grid.add_row(Text("State", FAINT), verdict.append(f"  generation {status.generation}", "not bold default"))
    engine = status.engine
    if engine.reachable:
        text = Text("running", GOOD).append(
            f"  version {engine.version}, process {engine.pid}, instance {engine.instance}", "default"
        )
    else:
        text = Text("not reachable", BAD)
    grid.add_row(Text("Engine", FAINT), text)
    return grid


def _titled(title: str, table: RenderableType) -> Iterator[RenderableType]:
    yield Text("")
    yield Text(title, STRONG)
    yield table


def _ratio(up: int, total: int) -> Text:
    style = GOOD if up >= total else DOUBTFUL if up else BAD
    return Text(f"{up}/{total}", style if total else FAINT)


def targets_table(targets: Iterable[TargetStatus]) -> Table:
    """Return one row a target: sessions up of those that shall be, policy, state."""
    table = table_of("TARGET", "PORTALS UP", "POLICY", "LIFETIME", "STATE")
    for target in targets:
        up = sum(session["phase"] == "logged_in" for session in target.sessions)
        total = len(target.portals) or len(target.sessions)
        table.add_row(target.name, _ratio(up, total), target.policy, target.lifetime, _target_state(target, up))
    return table


def _target_state(target: TargetStatus, up: int) -> Text:
    if not target.declared:
        return Text("not declared", DOUBTFUL)
    if not target.portals and not target.sessions:
        return Text("no sessions wanted", FAINT)
    missing = next((s for s in target.sessions if s["phase"] != "logged_in"), None)
    if missing is None and up >= len(target.portals):
        return Text("logged in", GOOD)
    text = Text("partly logged in", DOUBTFUL) if up else Text("not logged in", BAD)
    if missing is not None:
        text.append(f", {missing['portal']} ", "default").append_text(phase_text(str(missing["phase"])))
    return text


class VolumesView:
    """Volumes, one row each; identity and device go below the table where the terminal is too narrow for them."""

    def __init__(self, volumes: Iterable[VolumeStatus]) -> None:
        self._volumes = tuple(volumes)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Choose the form that fits (rich's protocol)."""
        wide = table_of(*_VOLUME_COLUMNS, "IDENTITY", "DEVICE")
        narrow = table_of(*_VOLUME_COLUMNS)
        for volume in self._volumes:
            cells = _volume_cells(volume)
            wide.add_row(*cells, _unit(volume), volume.device or volume.socket)
            narrow.add_row(*cells)
        if console.measure(wide, options=options.update(max_width=_UNBOUNDED)).maximum <= options.max_width:
            yield wide
            return
        yield narrow
        for volume in self._volumes:
            yield Text(f"{volume.name} is {_unit(volume)}", FAINT)
            if volume.device or volume.socket:
                yield Text(f"{volume.name} at {volume.device or volume.socket}", FAINT)


_VOLUME_COLUMNS = ("VOLUME", "SIZE", "STATE", "PATHS", "POLICY", "CLIENTS")

_UNBOUNDED = 10_000


def _unit(volume: VolumeStatus) -> str:
    return volume.identity or f"LUN {volume.lun}"


def _volume_cells(volume: VolumeStatus) -> tuple[str | Text, ...]:
    usable = sum(path["phase"] in ("active", "standby") for path in volume.paths)
    state = phase_text(volume.phase)
    if volume.read_only:
        state.append(", read-only", "default")
    if not volume.declared:
        state.append(", not declared", DOUBTFUL)
    return (
        volume.name,
        size(volume.size) if volume.size else "",
        state,
        _ratio(usable, len(volume.paths)),
        volume.policy,
        str(volume.clients),
    )


def sessions_parts(targets: tuple[TargetStatus, ...]) -> Iterator[RenderableType]:
    """Yield the sessions, the connections of those that have several, and the errors that they have met."""
    yield sessions_table(targets)
    if have_several(targets):
        yield from _titled("Connections", connections_table(targets))
    trouble = list(trouble_lines(targets))
    if trouble:
        yield Text("")
        yield from trouble


def sessions_table(targets: Iterable[TargetStatus]) -> Table:
    """Return one row a session, with what it negotiated and why it is not up."""
    table = table_of("TARGET", "PORTAL", "STATE", "ISID", "TSIH", "DIGESTS", "LOGINS", "UNITS", "CAUSE")
    for target in targets:
        for session in target.sessions:
            table.add_row(
                target.name,
                str(session["portal"]),
                phase_text(str(session["phase"])),
                str(session["isid"]),
                str(session.get("tsih", 0)),
                _digests(session.get("negotiated", {})),
                str(session.get("logins", 0)),
                str(len(session.get("units", ()))),
                str((session.get("fault") or {}).get("message", "")),
            )
    return table


def _digests(negotiated: Mapping[str, str]) -> str:
    return "/".join(negotiated.get(key, "-") for key in ("HeaderDigest", "DataDigest"))


def discovered_table(targets: Iterable[Any]) -> Table:
    """Return one row a portal that discovery shows."""
    table = table_of("TARGET", "PORTAL", "GROUP TAG")
    for found in targets:
        for portal in found.portals:
            table.add_row(found.target, portal.portal, "" if portal.tag is None else str(portal.tag))
    return table


def event_line(event: Mapping[str, Any]) -> Text:
    """Write an event as one line: time, number, name, subject, text."""
    moment = datetime.datetime.fromtimestamp(event["time"], datetime.UTC)
    line = Text(moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"), FAINT)
    line.append(f" {event['number']:>4} ", "default")
    line.append(str(event["name"]), _SEVERITY_STYLES.get(event["severity"], BAD))
    return line.append(f" {event['subject']}: {event['message']}", "default")
