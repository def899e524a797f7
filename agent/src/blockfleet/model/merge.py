# SPDX-License-Identifier: GPL-3.0-or-later
"""Lay a change over the desired state.  Pure: nothing is read but the arguments, nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr, TypeAdapter, ValidationError

from blockfleet.model import names
from blockfleet.model.change import Absent, Change
from blockfleet.model.desired import SECRET_FIELDS, Document, PortalText
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import error_from, load_document
from blockfleet.model.path_roles import drop_roles_of_gone_portals
from blockfleet.model.portal import InvalidPortal, Portal

Plain = dict[str, Any]


def merge(document: Document, change: Change) -> Document:
    """Return the desired state that ``change`` makes of ``document``.

    Raises :class:`BlockfleetError` with the path of the field at fault in the change, as the sender wrote it.
    """
    before = plain(document)
    given = _with_stored_secrets(change.document, before)
    if change.mode == "replace":
        merged, origins = _without_none(given), _Origins()
    else:
        merged, origins = _merge_document(before, given, frozenset(change.exclusive))
        drop_roles_of_gone_portals(merged, before, _portal_key)
    # Removal works on the document as it is after the merge, which must therefore be right by itself.
    after = origins.load(merged)
    if change.absent != Absent():
        left = _remove(plain(after), change.absent)
        drop_roles_of_gone_portals(left, plain(after), _portal_key)
        after = load_document(left)
    return after


def plain(document: Document) -> Plain:
    """Return a document as JSON-like data **with its secrets in clear**; never log or send the result."""
    data = document.model_dump(mode="python", exclude_none=True)
    result = _reveal(data)
    assert isinstance(result, dict)
    return result


def _reveal(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _reveal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_reveal(item) for item in value]
    return value


def _name_key(value: Any) -> str:
    """Return what entries of a list are the same by; text that is no name stays as it is, to be refused later."""
    try:
        return names.normalise(value)
    except (names.InvalidName, TypeError, AttributeError):
        return str(value)


def _portal_key(value: Any) -> str:
    try:
        return str(Portal.parse(value))
    except (InvalidPortal, TypeError, AttributeError):
        return str(value)


@dataclass(frozen=True, slots=True)
class _NamedList:
    """A list of named things: where it is, the field that names an entry, what makes two names the same."""

    path: str
    name: str
    key_of: Callable[[Any], str]

    @property
    def container(self) -> tuple[str, ...]:
        return tuple(self.path.split(".")[:-1])

    @property
    def field(self) -> str:
        return self.path.rpartition(".")[2]

    def key(self, entry: Plain, index: int) -> str:
        """Return what the entry is known by; one without a name is like no other, and refused later."""
        return self.key_of(entry[self.name]) if self.name in entry else f"\0{index}"


_LISTS = (
    _NamedList("discovery.portals", "portal", _portal_key),
    _NamedList("discovery.static", "target", _name_key),
    _NamedList("targets", "name", _name_key),
    _NamedList("volumes", "name", str),
)


class _Origins:
    """Remembers which entry of a merged list came from which entry of the change, for the paths in errors."""

    def __init__(self) -> None:
        self._indices: dict[str, list[int | None]] = {}

    def note(self, path: str, indices: list[int | None]) -> None:
        self._indices[path] = indices

    def load(self, merged: Plain) -> Document:
        try:
            return load_document(merged)
        except BlockfleetError as error:
            field = self._translate(error.field)
            if field == error.field:
                raise
            message = str(error).removesuffix(f": {error.remedy}") if error.remedy else str(error)
            message = message.replace(error.field, field, 1)
            raise BlockfleetError(error.code, message, remedy=error.remedy, field=field) from None

    def _translate(self, field: str) -> str:
        for path, indices in self._indices.items():
            if not field.startswith(f"{path}["):
                continue
            number, _, rest = field[len(path) + 1 :].partition("]")
            origin = indices[int(number)]
            return f"{path}[{origin}]{rest}" if origin is not None else field
        return field


def _merge_document(before: Plain, given: Plain, exclusive: frozenset[str]) -> tuple[Plain, _Origins]:
    merged = _merge_fields(before, {k: v for k, v in given.items() if k not in ("targets", "volumes", "discovery")})
    discovery = given.get("discovery")
    if isinstance(discovery, dict):
        others = {k: v for k, v in discovery.items() if k not in ("portals", "static")}
        merged["discovery"] = _merge_fields(before.get("discovery", {}), others)
    elif discovery is not None:
        merged["discovery"] = discovery
    origins = _Origins()
    for named in _LISTS:
        container: Any = merged
        new: Any = given
        for key in named.container:
            container, new = container.get(key), new.get(key)
        if not isinstance(new, dict) or not isinstance(container, dict) or new.get(named.field) is None:
            continue
        entries = new[named.field]
        if not isinstance(entries, list | tuple) or not all(isinstance(e, dict) for e in entries):
            container[named.field] = entries
            continue
        known = container.get(named.field, [])
        container[named.field], indices = _merge_list(named, known, entries, exclusive)
        origins.note(named.path, indices)
    return merged, origins


def _merge_list(
    named: _NamedList, known: list[Plain], entries: Iterable[Plain], exclusive: frozenset[str]
) -> tuple[list[Plain], list[int | None]]:
    """Return the merged list, and for each entry of it the index in ``entries`` that it was last written by."""
    by_key = {named.key(entry, 0): entry for entry in known}
    result = {} if named.path in exclusive else dict(by_key)
    origins: dict[str, int | None] = dict.fromkeys(result)
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        key = named.key(entry, index)
        if key in seen:
            field = f"{named.path}[{index}].{named.name}"
            raise BlockfleetError(
                Isdsc.DOCUMENT_INVALID, f"{field}: {key} appears twice", remedy="remove one", field=field
            )
        seen.add(key)
        result[key] = _merge_entry(by_key.get(key, {}), entry, named.path, index, exclusive)
        origins[key] = index
    return list(result.values()), list(origins.values())


def _merge_entry(old: Plain, new: Plain, path: str, index: int, exclusive: frozenset[str]) -> Plain:
    entry = _merge_fields(old, new)
    if path == "targets" and "targets.portals" not in exclusive and new.get("portals") is not None:
        entry["portals"] = _union_of_portals(old.get("portals"), new["portals"], f"{path}[{index}].portals")
    return entry


def _union_of_portals(old: Any, new: Any, field: str) -> Any:
    """Add portals to those that are declared; order stays, so that two changes cannot undo each other for ever."""
    if not isinstance(new, list | tuple) or not new:
        return new
    keys: list[str] = []
    for index, portal in enumerate(new):
        key = _checked_portal(portal, f"{field}[{index}]")
        if key in keys:
            raise BlockfleetError(
                Isdsc.TARGET_PORTAL_ALREADY_EXISTS,
                f"{field}: portal {key} appears twice",
                remedy="remove one",
                field=field,
            )
        keys.append(key)
    if old == "all":
        return "all"
    known = list(old or [])
    return known + [key for key in keys if key not in known]


def _checked_portal(portal: Any, field: str) -> str:
    try:
        return TypeAdapter(PortalText).validate_python(portal)
    except ValidationError as error:
        fault = error_from(error.errors(include_url=False))
        raise BlockfleetError(fault.code, f"{field}: {fault}", remedy=fault.remedy, field=field) from None


def _merge_fields(old: Plain, new: Plain) -> Plain:
    """Merge objects field by field; ``None`` takes a field away; anything else that is given wins."""
    merged = dict(old)
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge_fields(merged[key], value)
        else:
            kept = _without_none(value)
            if kept or not value:  # An object that only takes fields away declares nothing.
                merged[key] = kept
    return merged


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _with_stored_secrets(given: Plain, before: Plain) -> Plain:
    """Return a copy of ``given`` where every secret that was sent back as it was read is the stored one."""
    result = dict(given)
    result["targets"] = _restore(given.get("targets"), before.get("targets", []), "name", _name_key, "targets")
    discovery = given.get("discovery")
    if isinstance(discovery, dict):
        stored = before.get("discovery", {}).get("portals", [])
        portals = _restore(discovery.get("portals"), stored, "portal", _portal_key, "discovery.portals")
        result["discovery"] = {**discovery, "portals": portals}
    return {key: value for key, value in result.items() if key in given}


def _restore(entries: Any, stored: list[Plain], name: str, key_of: Callable[[Any], str], path: str) -> Any:
    if not isinstance(entries, list | tuple):
        return entries
    by_key = {key_of(entry[name]): entry.get("chap") or {} for entry in stored}
    result = []
    for index, entry in enumerate(entries):
        if isinstance(entry, dict) and isinstance(entry.get("chap"), dict):
            known = by_key.get(key_of(entry.get(name)), {})
            chap = _restore_chap(entry["chap"], known, f"{path}[{index}].chap")
            result.append({**entry, "chap": chap})
        else:
            result.append(entry)
    return result


def _restore_chap(chap: Plain, known: Plain, path: str) -> Plain:
    result = dict(chap)
    for field in SECRET_FIELDS:
        value = chap.get(field)
        if not isinstance(value, dict):
            continue
        if value.get("set") is not True or field not in known:
            raise BlockfleetError(
                Isdsc.INVALID_CHAP_SECRET,
                f"{path}.{field}: no secret is stored here that could be kept",
                remedy="give the secret as text",
                field=f"{path}.{field}",
            )
        result[field] = known[field]
    return result


def _remove(document: Plain, absent: Absent) -> Plain:
    discovery = document["discovery"]
    gone_portals, gone_static = set(absent.discovery_portals), set(absent.static_targets)
    discovery["portals"] = [p for p in discovery["portals"] if p["portal"] not in gone_portals]
    discovery["static"] = [s for s in discovery["static"] if s["target"] not in gone_static]
    if "discovery" in absent.chap:
        for portal in discovery["portals"]:
            portal.pop("chap", None)
    if "default" in absent.policies:
        for field in ("policy", "failback"):
            document.pop(field, None)
    targets = [t for t in document["targets"] if t["name"] not in set(absent.targets)]
    document["targets"] = [kept for target in targets if (kept := _remove_from_target(target, absent))]
    document["volumes"] = [v for v in document["volumes"] if v["name"] not in set(absent.volumes)]
    return document


def _remove_from_target(target: Plain, absent: Absent) -> Plain | None:
    """Return the target without what is absent, or None when nothing is declared of it any more."""
    name = target["name"]
    if not (name in absent.target_portals or name in absent.chap or name in absent.policies):
        return target
    if name in absent.chap:
        target.pop("chap", None)
    if name in absent.policies:
        for field in ("policy", "failback", "paths"):
            target.pop(field, None)
    if name in absent.target_portals:
        _remove_portals(target, absent.target_portals[name])
    return target if len(target) > 1 else None


def _remove_portals(target: Plain, gone: Any) -> None:
    declared = target.get("portals")
    if declared is None:
        return
    if declared == "all" and gone != "all":
        raise BlockfleetError(
            Isdsc.DOCUMENT_INVALID,
            f"absent.target_portals: {target['name']} is declared with portals 'all', from which none can be taken",
            remedy="declare the portals that shall stay, with exclusive 'targets.portals'",
            field="absent.target_portals",
        )
    left = [] if gone == "all" else [portal for portal in declared if portal not in gone]
    if left:
        target["portals"] = left
        return
    for field in ("portals", "lifetime", "min_paths"):
        target.pop(field, None)
