# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that look: status, drift, volumes, sessions, desired, events, version."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

import blockfleet
from blockfleet.cli import present
from blockfleet.cli.exits import Exit
from blockfleet.cli.terminal import Environment, JsonFlag, environment
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.plan import DesiredView, HostStatus, Plan


def _ask(tools: Environment, route: str, doing: str, params: dict[str, int] | None = None) -> dict[str, Any]:
    with tools.terminal.progress(f"{doing} ..."):
        return tools.agent.get(route, params)


def status(context: typer.Context, json: JsonFlag = False) -> None:
    """Show initiator, engine, targets, volumes, problems.

    Exit code 0 when the host is as declared, 2 when it is not.
    """
    tools = environment(context)
    answer = _ask(tools, "/v1/status", "looking at the host")
    found = HostStatus.model_validate(answer)
    if json:
        tools.terminal.show_json(answer)
    else:
        tools.terminal.show(*present.status_parts(found))
    raise typer.Exit(Exit.IN_SYNC if found.in_sync else Exit.PENDING)


def drift(context: typer.Context, json: JsonFlag = False) -> None:
    """Show how the host differs from what was last applied.

    Exit code 0 without drift, 2 with.
    """
    tools = environment(context)
    answer = _ask(tools, "/v1/drift", "comparing the host with what was applied")
    plan = Plan.model_validate(answer)
    if json:
        tools.terminal.show_json(answer)
    elif plan.actions:
        tools.terminal.show(*present.plan_lines(plan))
    else:
        tools.terminal.show(f"No drift: the host is as generation {plan.generation} was applied.")
    raise typer.Exit(Exit.PENDING if plan.changed else Exit.IN_SYNC)


def volumes(context: typer.Context, json: JsonFlag = False) -> None:
    """List volumes: size, state, paths, clients, device."""
    tools = environment(context)
    answer = _ask(tools, "/v1/status", "looking at the volumes")
    found = HostStatus.model_validate(answer)
    if json:
        tools.terminal.show_json({"volumes": answer["volumes"]})
    elif found.volumes:
        tools.terminal.show(present.VolumesView(found.volumes))
    else:
        tools.terminal.show("No volumes.")


def sessions(context: typer.Context, json: JsonFlag = False) -> None:
    """List sessions with their connections, and why one is not up.

    Connections are listed where a session has several. A session that met errors gets a line that counts
    them and its recoveries.
    """
    tools = environment(context)
    answer = _ask(tools, "/v1/status", "looking at the sessions")
    found = HostStatus.model_validate(answer)
    if json:
        tools.terminal.show_json({"sessions": [s for t in answer["targets"] for s in t["sessions"]]})
    elif any(target.sessions for target in found.targets):
        tools.terminal.show(*present.sessions_parts(found.targets))
    else:
        tools.terminal.show("No sessions.")


def desired(context: typer.Context, json: JsonFlag = False) -> None:
    """Print the desired state as YAML, secrets masked.

    In place of each secret stands its fingerprint. The output can be edited and handed to 'apply': a secret
    that stays masked stays as it is stored.
    """
    tools = environment(context)
    answer = _ask(tools, "/v1/desired", "reading the desired state")
    if json:
        tools.terminal.show_json(answer)
        return
    view = DesiredView.model_validate(answer)
    text = yaml.safe_dump(view.document, sort_keys=False, allow_unicode=True, width=100)
    tools.terminal.show(f"# generation {view.generation}\n{text}".rstrip())


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with events as they happen.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Begin behind this sequence number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most so many kept events.")] = 1000,
    json: JsonFlag = False,
) -> None:
    """Show what happened, oldest first.

    With --follow, --json prints one object a line.
    """
    tools = environment(context)
    if follow:
        for event in tools.agent.follow(after):
            if json:
                tools.terminal.show_line({"format_version": 1, **event})
            else:
                tools.terminal.show(present.event_line(event))
        return
    answer = _ask(tools, "/v1/events", "reading events", {"after": after, "limit": limit})
    if json:
        tools.terminal.show_json(answer)
    else:
        tools.terminal.show(*map(present.event_line, answer["events"]))


def version(context: typer.Context, json: JsonFlag = False) -> None:
    """Show versions of command, agent and engine."""
    tools = environment(context)
    own = blockfleet.__version__
    try:
        agent = _ask(tools, "/v1/version", "asking the agent")
        missing = ""
    except BlockfleetError as error:
        agent, missing = {}, str(error)
    if json:
        tools.terminal.show_json({"command_version": own, "agent": agent or None, "problem": missing})
        return
    tools.terminal.show(f"blockfleet {own}")
    if missing:
        tools.terminal.show(f"agent      {missing}")
        return
    tools.terminal.show(f"agent      {agent['agent_version']} (API {agent['api_version']})")
    engine = agent["engine"]
    tools.terminal.show(f"engine     {engine['version'] if engine['reachable'] else 'not reachable'}")
