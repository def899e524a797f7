# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that change the connections of a target's sessions: connections add, remove, policy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blockfleet.cli.changing import WaitOption, apply_change, change_options, portal_text
from blockfleet.cli.terminal import Environment, JsonFlag, environment
from blockfleet.model.desired import Target
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.load_balance import MAXIMUM_WEIGHT, LoadBalancePolicy
from blockfleet.model.loading import load_document
from blockfleet.model.plan import DesiredView

TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="The target's iSCSI name.")]
WeightOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MAXIMUM_WEIGHT,
        metavar="NUMBER",
        show_default=False,
        help="The lightest is used by weighted_path.",
    ),
]
StandbyOption = Annotated[
    bool | None,
    typer.Option(
        "--standby/--active",
        show_default=False,
        help="Whether fail_over_only and round_robin_with_subset hold it in reserve.",
    ),
]

_DEFAULT_WAIT = 30.0


def add(
    context: typer.Context,
    target: TargetArgument,
    *,
    portal: Annotated[
        str | None,
        typer.Option(metavar="PORTAL", show_default=False, help="Another portal of the session's portal group."),
    ] = None,
    weight: WeightOption = None,
    standby: StandbyOption = None,
    wait: WaitOption = _DEFAULT_WAIT,
    json: JsonFlag = False,
) -> None:
    """Add a connection to each session to a target.

    Without --portal: through the portal of the session. Exit codes as for apply.
    """
    tools = environment(context)
    declared = _declared(tools, target)
    added = _given(portal=portal, weight=weight, standby=standby)
    _declare(tools, declared, {"connections": [*_further(declared), added]}, json=json, wait=wait)


def remove(
    context: typer.Context,
    target: TargetArgument,
    *,
    portal: Annotated[
        str | None,
        typer.Option(
            metavar="PORTAL", show_default=False, help="The last connection declared through this portal."
        ),
    ] = None,
    wait: WaitOption = _DEFAULT_WAIT,
    json: JsonFlag = False,
) -> None:
    """Remove the connection that was added last from each session to a target.

    Commands on it end before it is logged out. The leading connection goes with the session only: see logout.
    Exit codes as for apply.
    """
    tools = environment(context)
    declared = _declared(tools, target)
    further = _further(declared)
    if not further:
        raise BlockfleetError(
            Isdsc.CANT_REMOVE_LAST_CONNECTION,
            f"cannot remove the last connection of a session to {declared.name}",
            remedy=f"log out instead: blockfleet logout {declared.name}",
        )
    wanted = None if portal is None else portal_text(portal)
    own = () if declared.portals == "all" else declared.portals or ()
    fits = [
        i
        for i, c in enumerate(further)
        if wanted in (None, c.get("portal")) or ("portal" not in c and wanted in own)
    ]
    if not fits:
        leading = wanted in own
        raise BlockfleetError(
            Isdsc.CANNOT_REMOVE_LEADING_CONNECTION if leading else Isdsc.INVALID_CONNECTION_ID,
            f"cannot remove a connection via {wanted} from the sessions to {declared.name}: "
            + ("it is the leading one" if leading else "none is declared"),
            remedy="see 'blockfleet desired' for those that are",
        )
    del further[fits[-1]]
    _declare(tools, declared, {"connections": further}, json=json, wait=wait)


def policy(
    context: typer.Context,
    target: TargetArgument,
    name: Annotated[
        LoadBalancePolicy,
        typer.Argument(metavar="POLICY", show_choices=False, help=f"{', '.join(LoadBalancePolicy)}."),
    ],
    *,
    weight: Annotated[
        int | None,
        typer.Option(
            "--leading-weight",
            min=0,
            max=MAXIMUM_WEIGHT,
            metavar="NUMBER",
            show_default=False,
            help="Weight of the leading connection.",
        ),
    ] = None,
    standby: Annotated[
        bool | None,
        typer.Option(
            "--leading-standby/--leading-active",
            show_default=False,
            help="Whether the leading connection is held in reserve.",
        ),
    ] = None,
    wait: WaitOption = _DEFAULT_WAIT,
    json: JsonFlag = False,
) -> None:
    """Say how sessions to a target spread commands over their connections.

    It changes while they are in use. Exit codes as for apply.
    """
    tools = environment(context)
    declared = _declared(tools, target)
    fields: dict[str, Any] = {"connection_policy": name.value}
    leading = _given(weight=weight, standby=standby)
    if leading:
        fields["leading_connection"] = leading
    _declare(tools, declared, fields, json=json, wait=wait)


def _given(**options: object) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _declared(tools: Environment, name: str) -> Target:
    """Return what is declared of a target; what is declared is what these verbs change."""
    view = DesiredView.model_validate(tools.agent.get("/v1/desired"))
    targets = [{k: v for k, v in entry.items() if k != "chap"} for entry in view.document.get("targets", ())]
    document = load_document({"targets": targets})
    wanted = load_document({"targets": [{"name": name}]}).targets[0].name
    found = next((target for target in document.targets if target.name == wanted), None)
    if found is None or found.portals is None:
        raise BlockfleetError(
            Isdsc.TARGET_NOT_FOUND,
            f"no login to {wanted} is declared, so there is no session to have connections",
            remedy=f"declare one: blockfleet login {wanted}",
        )
    return found


def _further(target: Target) -> list[dict[str, Any]]:
    return [c.model_dump(mode="json", exclude_defaults=True) for c in target.connections or ()]


def _declare(tools: Environment, target: Target, fields: dict[str, Any], *, json: bool, wait: float) -> None:
    change = {
        "document": {"targets": [{"name": target.name, **fields}]},
        "options": change_options(disruption=False, relogin=False, wait=wait),
    }
    apply_change(tools, change, json=json, wait=wait, doing=f"changing connections to {target.name}")


VERBS = (add, remove, policy)
