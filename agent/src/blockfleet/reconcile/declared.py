# SPDX-License-Identifier: GPL-3.0-or-later
"""The difference of two documents, as actions.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from blockfleet.model.desired import (
    Chap,
    Connection,
    ConnectionRole,
    Document,
    LoginOptions,
    Target,
    Volume,
    VolumePath,
)
from blockfleet.model.plan import Action, Kind, Verb
from blockfleet.reconcile.wanted import Fingerprint
from blockfleet.store.secrets import SHOWN_FINGERPRINT

Part = tuple[Kind, str]
"""What a part of a document is and is called."""

_TITLES = {
    Kind.INITIATOR: "initiator",
    Kind.DISCOVERY_PORTAL: "discovery portal",
    Kind.STATIC_TARGET: "static target",
    Kind.TARGET: "target",
    Kind.CHAP: "chap",
    Kind.POLICY: "policy",
    Kind.VOLUME: "volume",
}

_PLAIN_FIELDS = {"lifetime", "min_paths", "leading_connection", "connection_policy"}
"""Fields of a target that are shown as they are."""

_ORDER = {kind: index for index, kind in enumerate(_TITLES)}


def parts_of(document: Document, fingerprint: Fingerprint) -> dict[Part, dict[str, Any]]:
    """Take a document apart into what can be declared by itself, as it may be shown: secrets as fingerprints."""
    return dict(_parts(document, fingerprint))


def _parts(document: Document, fingerprint: Fingerprint) -> Iterator[tuple[Part, dict[str, Any]]]:
    initiator = document.initiator.model_dump(mode="json", exclude_none=True)
    if initiator:
        yield (Kind.INITIATOR, "initiator"), initiator
    yield (Kind.POLICY, "default"), {"policy": document.policy.value, **({} if document.failback else _NO_FAILBACK)}
    for portal in document.discovery.portals:
        yield (Kind.DISCOVERY_PORTAL, portal.portal), {}
        if portal.chap is not None:
            yield (Kind.CHAP, f"discovery at {portal.portal}"), _chap(portal.chap, fingerprint)
    for static in document.discovery.static:
        yield (Kind.STATIC_TARGET, static.target), {"portals": sorted(static.portals)}
    for target in document.targets:
        yield from _target_parts(target, fingerprint)
    for volume in document.volumes:
        yield (Kind.VOLUME, volume.name), _volume(volume)


def _target_parts(target: Target, fingerprint: Fingerprint) -> Iterator[tuple[Part, dict[str, Any]]]:
    own: dict[str, Any] = target.model_dump(mode="json", exclude_none=True, include=_PLAIN_FIELDS)
    if target.portals is not None:
        own["portals"] = target.portals if target.portals == "all" else sorted(target.portals)
    if target.login is not None:
        own["login"] = target.login.model_dump(mode="json", exclude_none=True)
    if target.connections is not None:
        own["connections"] = [_connection(connection) for connection in target.connections]
    policy = _spread(target)
    if own or (target.chap is None and not policy):
        yield (Kind.TARGET, target.name), own
    if target.chap is not None:
        yield (Kind.CHAP, target.name), _chap(target.chap, fingerprint)
    if policy:
        yield (Kind.POLICY, target.name), policy


_NO_FAILBACK = {"failback": False}


def _spread(part: Target | Volume) -> dict[str, Any]:
    """Return what is declared of how I/O is spread over paths."""
    shown = part.model_dump(mode="json", exclude_none=True, include={"policy", "failback"})
    if part.paths is not None:
        shown["paths"] = [_path(path) for path in part.paths]
    return shown


def _path(path: VolumePath) -> str:
    return " ".join([path.portal, *(["primary"] if path.primary else []), *_role(path)])


def _role(role: ConnectionRole) -> list[str]:
    return [*([f"weight {role.weight}"] if role.weight else []), *(["standby"] if role.standby else [])]


def _connection(connection: Connection) -> str:
    return " ".join([connection.portal or "the session's own portal", *_role(connection)])


def _chap(chap: Chap, fingerprint: Fingerprint) -> dict[str, Any]:
    shown = chap.model_dump(mode="json", exclude_none=True, exclude={"secret", "mutual_secret"})
    for field in ("secret", "mutual_secret"):
        secret = getattr(chap, field)
        if secret is not None:
            digest = fingerprint(secret.get_secret_value().encode())
            shown[field] = {"set": True, "fingerprint": digest[:SHOWN_FINGERPRINT]}
    return shown


def _volume(volume: Volume) -> dict[str, Any]:
    own = volume.model_dump(mode="json", exclude_none=True, exclude={"name", "policy", "failback", "paths"})
    return own | _spread(volume)


def declared_actions(old: Document, new: Document, fingerprint: Fingerprint) -> tuple[Action, ...]:
    """Return what has to be written into the desired state to make ``old`` into ``new``, in a stable order."""
    before, after = parts_of(old, fingerprint), parts_of(new, fingerprint)
    changed = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    return tuple(
        _action(part, before.get(part), after.get(part))
        for part in sorted(changed, key=lambda part: (_ORDER[part[0]], part[1]))
    )


def _action(part: Part, before: dict[str, Any] | None, after: dict[str, Any] | None) -> Action:
    kind, subject = part
    verb = Verb.CREATE if before is None else Verb.REMOVE if after is None else Verb.UPDATE
    title = _TITLES[kind] if kind is Kind.INITIATOR else f"{_TITLES[kind]} {subject}"
    if before is not None and after is not None:
        details = ", ".join(_changes(before, after))
    else:
        details = _DETAILS.get(kind, _no_details)(after or {})
    text = f"{verb.sign} {title}" + (f": {details}" if details else "")
    return Action(verb=verb, kind=kind, subject=subject, text=text, before=before, after=after)


def _no_details(_value: dict[str, Any]) -> str:
    return ""


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_listed, value)) or "(none)"
    if isinstance(value, dict):
        return "[" + " ".join(f"{field} {value[field]}" for field in sorted(value)) + "]"
    return str(value)


_UNTOLD: frozenset[str] = frozenset({"login", "leading_connection"})
"""What the line of a new target does not tell; the diff does."""

_DETAILS: dict[Kind, Callable[[dict[str, Any]], str]] = {
    Kind.INITIATOR: lambda v: ", ".join(f"{k} {v[k]}" for k in sorted(v)),
    Kind.STATIC_TARGET: lambda v: f"portals {_listed(v['portals'])}" if v else "",
    Kind.TARGET: lambda v: ", ".join(f"{k} {_listed(v[k])}" for k in sorted(v) if k not in _UNTOLD),
    Kind.CHAP: lambda v: f"user {v['user']}" if v else "",
    Kind.POLICY: lambda v: ", ".join(
        f"{k} {_listed(v[k])}" if k != "policy" else v[k] for k in sorted(v, reverse=True)
    ),
    Kind.VOLUME: lambda v: _unit(v) if v else "",
}


def _unit(volume: dict[str, Any]) -> str:
    unit = f"LUN {volume['lun']}" if "lun" in volume else volume["identity"]
    return f"{volume['target']} {unit}"


def _changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield each field that changes as ``name old -> new``; a secret only says that it does."""
    for field in sorted({*before, *after}):
        old, new = before.get(field), after.get(field)
        name = f"{prefix}{field}"
        if old == new:
            continue
        if field in ("secret", "mutual_secret"):
            yield f"{name} (sensitive) {'changed' if old and new else 'set' if new else 'removed'}"
        elif isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{name}.")
        elif field == "login":
            yield from _changes(old or _DEFAULT_LOGIN, new or _DEFAULT_LOGIN, "login.")
        else:
            yield f"{name} {_or_none(old)} -> {_or_none(new)}"


_DEFAULT_LOGIN = LoginOptions().model_dump(mode="json")


def _or_none(value: Any) -> str:
    return "(none)" if value is None else _listed(value)
