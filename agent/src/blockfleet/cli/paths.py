# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs of paths: how volumes spread I/O over them, and how each stands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blockfleet.cli.changing import WaitOption, apply_change, change_options, portal_text
from blockfleet.cli.present_paths import paths_table
from blockfleet.cli.terminal import JsonFlag, environment
from blockfleet.model.desired import Policy
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.plan import HostStatus

_DEFAULT_WAIT = 30.0

_PORTAL: dict[str, Any] = {"metavar": "PORTAL", "show_default": False}


def show(
    context: typer.Context,
    volume: Annotated[
        str | None, typer.Argument(metavar="VOLUME", show_default=False, help="Only this volume.")
    ] = None,
    *,
    json: JsonFlag = False,
) -> None:
    """List the paths of volumes: where they lead, how they stand, what they carried."""
    tools = environment(context)
    with tools.terminal.progress("looking at the paths ..."):
        answer = tools.agent.get("/v1/status")
    volumes = [v for v in HostStatus.model_validate(answer).volumes if volume in (None, v.name)]
    if volume is not None and not volumes:
        raise BlockfleetError(
            Isdsc.VOLUME_NOT_FOUND, f"there is no volume {volume}", remedy="see 'blockfleet volumes'"
        )
    if json:
        tools.terminal.show_json(
            {"volumes": [{"name": v.name, "policy": v.policy, "paths": v.paths} for v in volumes]}
        )
    elif any(v.paths for v in volumes):
        tools.terminal.show(paths_table(volumes))
    else:
        tools.terminal.show("No paths.")


def policy(
    context: typer.Context,
    name: Annotated[Policy, typer.Argument(metavar="POLICY", show_choices=False, help=f"{', '.join(Policy)}.")],
    *,
    target: Annotated[
        str | None, typer.Option(metavar="TARGET", show_default=False, help="For the volumes of this target.")
    ] = None,
    volume: Annotated[
        str | None, typer.Option(metavar="VOLUME", show_default=False, help="For this volume.")
    ] = None,
    primary: Annotated[str | None, typer.Option(**_PORTAL, help="The path that is the first choice.")] = None,
    standby: Annotated[
        list[str] | None, typer.Option(**_PORTAL, help="A path to hold in reserve; may be repeated.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="PORTAL=NUMBER", show_default=False, help="Weight of a path; may be repeated."),
    ] = None,
    failback: Annotated[
        bool | None,
        typer.Option(
            "--failback/--no-failback", show_default=False, help="Whether I/O returns to a path that is back."
        ),
    ] = None,
    wait: WaitOption = _DEFAULT_WAIT,
    json: JsonFlag = False,
) -> None:
    """Say how I/O is spread over the paths of volumes.

    Without --target and --volume: for all volumes that have no policy of their own and none of their target. It
    changes while volumes are in use. Paths that are named take the place of those named before. Exit codes as
    for apply.
    """
    roles = _roles(primary, standby or [], weight or [])
    fields: dict[str, Any] = {"policy": name.value}
    if failback is not None:
        fields["failback"] = failback
    if roles:
        fields["paths"] = roles
    change = {
        "document": _document(target, volume, fields),
        "options": change_options(disruption=False, relogin=False, wait=wait),
    }
    apply_change(environment(context), change, json=json, wait=wait, doing="changing the policy")


def _document(target: str | None, volume: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    if target is not None and volume is not None:
        raise BlockfleetError(
            Isdsc.INVALID_PARAMETER, "both --target and --volume are given", remedy="leave one of them out"
        )
    if target is not None:
        return {"targets": [{"name": target, **fields}]}
    if volume is not None:
        return {"volumes": [{"name": volume, **fields}]}
    if "paths" in fields:
        raise BlockfleetError(
            Isdsc.MISSING_PARAMETER,
            "paths are those of a target, and none is named",
            remedy="name one with --target, or a volume with --volume",
        )
    return fields


def _roles(primary: str | None, standby: list[str], weights: list[str]) -> list[dict[str, Any]]:
    """Return what is said of paths, one entry a portal, in the order in which portals are first named."""
    roles: dict[str, dict[str, Any]] = {}

    def say(portal: str, field: str, value: object) -> None:
        text = portal_text(portal)
        roles.setdefault(text, {"portal": text})[field] = value

    if primary is not None:
        say(primary, "primary", True)
    for portal in standby:
        say(portal, "standby", True)
    for given in weights:
        portal, _, number = given.rpartition("=")
        if not portal or not number.isdecimal():
            raise BlockfleetError(
                Isdsc.INVALID_PARAMETER, f"--weight {given!r} is no weight of a path", remedy="write PORTAL=NUMBER"
            )
        say(portal, "weight", int(number))
    return list(roles.values())


VERBS = (policy, show)
