# SPDX-License-Identifier: GPL-3.0-or-later
"""What a desired state amounts to for the engine: sessions and volumes, each with all that it depends on.  Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blockfleet.engine.interface import (
    ConnectionSet,
    Credentials,
    DiscoveredPortal,
    InitiatorSpec,
    PathSetting,
    session_key,
)
from blockfleet.model.desired import (
    Attachment,
    Chap,
    ConnectionRole,
    Document,
    LoginOptions,
    Policy,
    Target,
    Volume,
    VolumePath,
)
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.load_balance import DEFAULT_CONNECTION_POLICY
from blockfleet.model.plan import Problem
from blockfleet.reconcile.scope import Finding, finding
from blockfleet.store.documents import Desired, target_record

CREDENTIALS_FINGERPRINT = 32
"""Hexadecimal digits of the digest over a set of credentials that the engine echoes."""

Fingerprint = Callable[[bytes], str]
"""The host's keyed digest: bytes in, hexadecimal digits out."""


@dataclass(frozen=True, slots=True)
class WantedSession:
    """A session that shall be; ``untouchable`` when its secret cannot be read and it must stay as it is."""

    key: str
    target: str
    portal: str
    credentials: Credentials | None
    options: LoginOptions
    connection_set: ConnectionSet
    untouchable: bool = False

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of its credentials; empty without."""
        return self.credentials.fingerprint if self.credentials else ""


@dataclass(frozen=True, slots=True)
class WantedVolume:
    """A volume that shall be served."""

    name: str
    target: str
    lun: int | None
    identity: str
    """As declared; empty when only the LUN is."""
    policy: Policy
    failback: bool
    path_settings: tuple[PathSetting, ...]
    """Of paths that are not ordinary ones, sorted by session."""
    read_only: bool
    attach: Attachment


@dataclass(frozen=True, slots=True)
class Wanted:
    """The sessions and volumes that a desired state asks for, by key and by name."""

    initiator: InitiatorSpec
    sessions: Mapping[str, WantedSession]
    volumes: Mapping[str, WantedVolume]
    open_ended: frozenset[str]
    """Targets declared with ``all``: a session that runs through a portal which discovery stopped showing stays."""
    needed: Mapping[str, int]
    """How many paths a target needs to count as ready."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """What discovery knows: the last answer of each portal, and why a portal has never answered."""

    answers: Mapping[str, tuple[DiscoveredPortal, ...]]
    errors: Mapping[str, Problem]

    def portals_of(self, target: str, document: Document) -> tuple[str, ...]:
        """Return the portals that a target is shown with by the declared sources, sorted."""
        found = {
            entry.portal
            for source in document.discovery.portals
            for entry in self.answers.get(source.portal, ())
            if entry.target == target
        }
        found.update(
            portal for entry in document.discovery.static if entry.target == target for portal in entry.portals
        )
        return tuple(sorted(found))


def credentials_for(chap: Chap | None, fingerprint: Fingerprint) -> Credentials | None:
    """Return credentials as the engine takes them, with the digest over all of them."""
    if chap is None:
        return None
    mutual = chap.mutual_secret.get_secret_value() if chap.mutual_secret else None
    parts = [chap.user, chap.secret.get_secret_value(), chap.mutual_user, mutual, list(chap.algorithms)]
    return Credentials(
        user=chap.user,
        secret=chap.secret,
        mutual_user=chap.mutual_user,
        mutual_secret=chap.mutual_secret,
        algorithms=tuple(algorithm.value for algorithm in chap.algorithms),
        fingerprint=fingerprint(json.dumps(parts).encode())[:CREDENTIALS_FINGERPRINT],
    )


def wanted_of(desired: Desired, shown: Shown, initiator_name: str, fingerprint: Fingerprint) -> Wanted:
    """Resolve a desired state: portals ``all`` to those that are shown, policies from volume, target, document."""
    document = desired.document
    sessions: dict[str, WantedSession] = {}
    needed: dict[str, int] = {}
    findings = [
        Finding(shown.errors[source.portal], portal=source.portal, tried=True, final=True)
        for source in document.discovery.portals
        if source.portal not in shown.answers and source.portal in shown.errors
    ]
    for target in document.targets:
        untouchable = target_record(target.name) in desired.unreadable
        portals = _portals(target, document, shown)
        if target.portals is not None and untouchable:
            findings.append(_unreadable(target.name))
        elif target.portals == "all" and not portals:
            findings.append(_not_shown(target.name, document))
        if target.portals is not None:
            needed[target.name] = target.min_paths or len(portals)
            if 0 < len(portals) < needed[target.name]:
                findings.append(_too_few(target.name, len(portals), needed[target.name]))
        findings += _strange_paths(target, portals, document)
        credentials = credentials_for(target.chap, fingerprint)
        for portal in portals:
            key = session_key(target.name, portal)
            sessions[key] = WantedSession(
                key,
                target.name,
                portal,
                credentials,
                target.login or LoginOptions(),
                connection_set_of(target, portal),
                untouchable,
            )
    targets = {target.name: target for target in document.targets}
    return Wanted(
        initiator=InitiatorSpec(
            name=document.initiator.name or initiator_name, alias=document.initiator.alias or ""
        ),
        sessions=sessions,
        volumes={v.name: _volume(v, targets.get(v.target), document) for v in document.volumes},
        open_ended=frozenset(t.name for t in document.targets if t.portals == "all"),
        needed=needed,
        findings=tuple(findings),
    )


def _portals(target: Target, document: Document, shown: Shown) -> tuple[str, ...]:
    if target.portals == "all":
        return shown.portals_of(target.name, document)
    return target.portals or ()


def connection_set_of(target: Target, portal: str) -> ConnectionSet:
    """Return the connections of a target's session through ``portal``."""
    return ConnectionSet(
        leading=target.leading_connection or ConnectionRole(),
        further=tuple(
            connection if connection.portal else connection.model_copy(update={"portal": portal})
            for connection in target.connections or ()
        ),
        policy=target.connection_policy or DEFAULT_CONNECTION_POLICY,
    )


def _volume(volume: Volume, target: Target | None, document: Document) -> WantedVolume:
    declared = [part for part in (volume, target) if part is not None]
    failback = next((part.failback for part in declared if part.failback is not None), document.failback)
    return WantedVolume(
        name=volume.name,
        target=volume.target,
        lun=volume.lun,
        identity=volume.identity or "",
        policy=next((part.policy for part in declared if part.policy is not None), document.policy),
        failback=failback,
        path_settings=path_settings_of(volume, target),
        read_only=volume.read_only,
        attach=volume.attach,
    )


def roles_of(volume: Volume, target: Target | None) -> tuple[VolumePath, ...]:
    """Return the roles that are declared of a volume's paths: its own, or else those of its target."""
    if volume.paths is not None:
        return volume.paths
    return target.paths or () if target else ()


def path_settings_of(volume: Volume, target: Target | None) -> tuple[PathSetting, ...]:
    """Return the settings of the paths that are not ordinary ones, sorted by session."""
    settings = (
        PathSetting(
            session=session_key(volume.target, role.portal),
            weight=role.weight,
            standby=role.standby,
            primary=role.primary,
        )
        for role in roles_of(volume, target)
    )
    return tuple(sorted((s for s in settings if s.weight or s.standby or s.primary), key=lambda s: s.session))


def _strange_paths(target: Target, portals: tuple[str, ...], document: Document) -> list[Finding]:
    """Return the roles of paths through portals that discovery does not show."""
    if target.portals != "all" or not portals:
        return []
    declared = [("", target.paths or ())]
    declared += [(volume.name, volume.paths or ()) for volume in document.volumes if volume.target == target.name]
    return [
        finding(
            Isdsc.INVALID_PATH_ID,
            f"{volume or target.name} has no path via {role.portal}: discovery does not show that portal",
            volume or target.name,
            remedy="correct the portal under paths, or check the target's portal group",
            target=target.name,
            volume=volume,
            final=True,
        ).as_path(tried=True)
        for volume, roles in declared
        for role in roles
        if role.portal not in portals
    ]


def _not_shown(target: str, document: Document) -> Finding:
    sources = [source.portal for source in document.discovery.portals]
    if not sources:
        return finding(
            Isdsc.NO_PORTAL_SPECIFIED,
            f"target {target} is wanted at all its portals, and no discovery portal is declared",
            target,
            remedy="declare a discovery portal or a static target, or list the target's portals",
            target=target,
            final=True,
        )
    return finding(
        Isdsc.TARGET_NOT_FOUND,
        f"target {target} is not shown by discovery at {', '.join(sources)}",
        target,
        remedy="check its name, and that the target admits this initiator; or list its portals",
        target=target,
        final=True,
    )


def _too_few(target: str, portals: int, needed: int) -> Finding:
    return finding(
        Isdsc.PATH_COUNT_MISMATCH,
        f"target {target} is shown at {portals} of the {needed} portals that min_paths asks for",
        target,
        remedy="lower min_paths, or check the target's portal group",
        target=target,
        final=True,
    )


def _unreadable(target: str) -> Finding:
    return finding(
        Isdsc.TARGET_AUTHINFO_UNAVAILABLE,
        f"the stored CHAP secret of {target} cannot be decrypted with this host's key, so its sessions stay",
        target,
        remedy="declare the secret again, or restore the host key",
        target=target,
        final=True,
    )
