# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that change the desired state or prepare it: plan, apply, login, logout, discover, validate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from blockfleet.cli import present
from blockfleet.cli.exits import OF_REPORT, Exit
from blockfleet.cli.files import read_document, read_secret
from blockfleet.cli.terminal import Environment, JsonFlag, environment
from blockfleet.model.desired import Lifetime, Policy
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_change, load_document
from blockfleet.model.plan import DiscoveryReport, HostStatus, Plan, Report
from blockfleet.model.portal import InvalidPortal, Portal

Json = dict[str, Any]

_FILE_HELP = "A document in YAML or JSON; - is standard input. Without it: what the desired state still lacks."
DocumentFile = Annotated[
    Path | None, typer.Argument(metavar="FILE", show_default=False, allow_dash=True, help=_FILE_HELP)
]
ReplaceFlag = Annotated[
    bool, typer.Option("--replace", help="Make FILE the whole desired state instead of merging it.")
]
DisruptionFlag = Annotated[
    bool,
    typer.Option("--allow-disruption", help="Permit what interrupts a user: ending sessions of used volumes."),
]
ReloginFlag = Annotated[
    bool,
    typer.Option("--relogin-now", help="Log in anew at once for new credentials or login options."),
]
WaitOption = Annotated[
    float,
    typer.Option("--wait-timeout", min=0, max=3600, metavar="SECONDS", help="How long to wait for the host."),
]
PortalsOption = Annotated[
    list[str] | None,
    typer.Option("--portal", metavar="PORTAL", show_default=False, help="Only this portal; may be repeated."),
]
TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="The target's iSCSI name.")]

_DEFAULT_WAIT = 30.0


def change_options(*, disruption: bool, relogin: bool, wait: float) -> Json:
    """Return how a change is to be carried out."""
    return {
        "allow_disruption": disruption,
        "relogin": "now" if relogin else "next_login",
        "wait_timeout": wait,
    }


def portal_text(text: str) -> str:
    """Return a portal as documents write it.  Raises INVALID_PARAMETER for what is none."""
    try:
        return str(Portal.parse(text))
    except InvalidPortal as error:
        raise BlockfleetError(
            Isdsc.INVALID_PARAMETER, str(error), remedy="write host, host:port or [IPv6]:port"
        ) from None


def _change_of(file: Path | None, *, replace: bool) -> Json:
    if file is None:
        if replace:
            raise BlockfleetError(
                Isdsc.MISSING_PARAMETER, "cannot replace the desired state without a FILE", remedy="give one"
            )
        return {}
    change: Json = {"document": read_document(file)}
    if replace:
        change["mode"] = "replace"
    return change


def apply_change(tools: Environment, change: Json, *, json: bool, wait: float, doing: str) -> None:
    """Send a change, show the report, and leave with its exit code."""
    load_change(change)
    with tools.terminal.progress(f"{doing} ..."):
        answer = tools.agent.post("/v1/apply", change, wait)
    report = Report.model_validate(answer)
    if json:
        tools.terminal.show_json(answer)
    else:
        tools.terminal.show(*present.report_lines(report))
    raise typer.Exit(OF_REPORT[report.status])


def plan(
    context: typer.Context,
    file: DocumentFile = None,
    *,
    replace: ReplaceFlag = False,
    disruption: DisruptionFlag = False,
    relogin: ReloginFlag = False,
    json: JsonFlag = False,
) -> None:
    """Show what apply would do, without doing it.

    Exit code 0 when nothing would change, 2 when something would.
    """
    tools = environment(context)
    change = _change_of(file, replace=replace)
    if disruption or relogin:
        change["options"] = {
            "allow_disruption": disruption,
            "relogin": "now" if relogin else "next_login",
        }
    load_change(change)
    with tools.terminal.progress("planning ..."):
        answer = tools.agent.plan(change)
    found = Plan.model_validate(answer)
    if json:
        tools.terminal.show_json(answer)
    else:
        tools.terminal.show(*present.plan_lines(found))
    raise typer.Exit(Exit.PENDING if found.changed else Exit.IN_SYNC)


def apply(
    context: typer.Context,
    file: DocumentFile = None,
    *,
    replace: ReplaceFlag = False,
    disruption: DisruptionFlag = False,
    relogin: ReloginFlag = False,
    wait: WaitOption = _DEFAULT_WAIT,
    json: JsonFlag = False,
) -> None:
    """Bring the host to its desired state, and verify it.

    FILE is merged into the desired state first. Exit code 0 in sync, 3 applied but not verified, 4 partial.
    """
    change = _change_of(file, replace=replace)
    change["options"] = change_options(disruption=disruption, relogin=relogin, wait=wait)
    apply_change(environment(context), change, json=json, wait=wait, doing="applying")


def login(
    context: typer.Context,
    target: TargetArgument,
    *,
    portals: PortalsOption = None,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="CHAP name of this host.")] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option("--secret-file", metavar="FILE", allow_dash=True, help="Holds the CHAP secret; - is stdin."),
    ] = None,
    mutual_user: Annotated[
        str | None, typer.Option(metavar="NAME", help="CHAP name that the target must show.")
    ] = None,
    mutual_secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the secret by which the target proves itself.")
    ] = None,
    policy: Annotated[Policy | None, typer.Option(help="Policy for the target's volumes.")] = None,
    min_paths: Annotated[
        int | None, typer.Option(min=1, max=64, help="Sessions that must be up for the target to be ready.")
    ] = None,
    until_boot: Annotated[
        bool, typer.Option("--until-boot", help="Forget the login when the host restarts.")
    ] = False,
    relogin: ReloginFlag = False,
    wait: WaitOption = _DEFAULT_WAIT,
    json: JsonFlag = False,
) -> None:
    """Declare a login to a target and carry it out.

    Without --portal: at all portals that discovery shows. With --user and no --secret-file the secret is
    asked for on the terminal. Exit codes as for apply.
    """
    wanted: Json = {"name": target, "portals": portals or "all"}
    if until_boot:
        wanted["lifetime"] = Lifetime.BOOT.value
    if policy is not None:
        wanted["policy"] = policy.value
    if min_paths is not None:
        wanted["min_paths"] = min_paths
    chap = _credentials(user, secret_file, mutual_user, mutual_secret_file)
    if chap:
        wanted["chap"] = chap
    change = {
        "document": {"targets": [wanted]},
        "options": change_options(disruption=False, relogin=relogin, wait=wait),
    }
    apply_change(environment(context), change, json=json, wait=wait, doing=f"logging in to {target}")


def _credentials(
    user: str | None, secret_file: Path | None, mutual_user: str | None, mutual_secret_file: Path | None
) -> Json:
    if user is None:
        if secret_file or mutual_user or mutual_secret_file:
            raise BlockfleetError(
                Isdsc.MISSING_PARAMETER, "cannot use CHAP without a name", remedy="give --user too"
            )
        return {}
    chap: Json = {"user": user, "secret": read_secret(secret_file, "CHAP secret")}
    if mutual_user is not None:
        chap["mutual_user"] = mutual_user
    if mutual_secret_file is not None:
        chap["mutual_secret"] = read_secret(mutual_secret_file, "mutual CHAP secret")
    return chap


def logout(
    context: typer.Context,
    target: TargetArgument,
    *,
    portals: PortalsOption = None,
    disruption: DisruptionFlag = False,
    wait: WaitOption = _DEFAULT_WAIT,
    json: JsonFlag = False,
) -> None:
    """Withdraw the login to a target and log out.

    Without --portal: at all portals. What else is declared of the target stays. Refused while a volume that
    would lose its last path is in use, unless --allow-disruption is given.
    """
    change = {
        "absent": {"target_portals": {target: portals or "all"}},
        "options": change_options(disruption=disruption, relogin=False, wait=wait),
    }
    apply_change(environment(context), change, json=json, wait=wait, doing=f"logging out of {target}")


def discover(
    context: typer.Context,
    portals: Annotated[
        list[str] | None,
        typer.Argument(metavar="PORTAL", help="Portals to ask; without one, the declared ones."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Ask portals for their targets (SendTargets).

    Nothing that is declared changes by it. Exit code 1 when a portal did not answer.
    """
    tools = environment(context)
    with tools.terminal.progress("discovering ..."):
        answer = tools.agent.post("/v1/discover", {"portals": portals or None})
    report = DiscoveryReport.model_validate(answer)
    if json:
        tools.terminal.show_json(answer)
    else:
        if report.targets:
            tools.terminal.show(present.discovered_table(report.targets))
        elif not report.problems:
            tools.terminal.show("No targets.")
        tools.terminal.show(*map(present.problem_line, report.problems))
    raise typer.Exit(Exit.ERROR if report.problems else Exit.IN_SYNC)


def rescan(
    context: typer.Context,
    target: Annotated[str | None, typer.Argument(metavar="TARGET", help="One target; without it, all.")] = None,
    json: JsonFlag = False,
) -> None:
    """Ask sessions for their logical units again."""
    tools = environment(context)
    with tools.terminal.progress("rescanning ..."):
        answer = tools.agent.post("/v1/rescan", {"target": target})
    if json:
        tools.terminal.show_json(answer)
    else:
        tools.terminal.show(*present.status_parts(HostStatus.model_validate(answer)))


def validate(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", allow_dash=True, help="A document in YAML or JSON; - is stdin.")
    ],
    json: JsonFlag = False,
) -> None:
    """Check a document; needs no agent, changes nothing."""
    tools = environment(context)
    document = load_document(read_document(file))
    counts = {
        "portals": len(document.discovery.portals),
        "targets": len(document.targets),
        "volumes": len(document.volumes),
    }
    if json:
        tools.terminal.show_json({"valid": True, **counts})
    else:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        tools.terminal.show(f"{file} is a valid document of version {document.version}: {told}.")
