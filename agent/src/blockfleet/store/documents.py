# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents at rest and on show: secrets go out of them into the vault, and come back.

In a stored document each secret is ``{"secret_ref": n}``, the number of a row of the secret table; in a shown
one it is a :class:`~blockfleet.model.plan.SecretView`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from blockfleet.model.desired import SECRET_FIELDS, Chap, Document
from blockfleet.model.plan import SecretView
from blockfleet.store.database import Row
from blockfleet.store.secrets import SHOWN_FINGERPRINT, SecretBox, SecretUnreadable

_PLACEHOLDER = "\0unreadable secret "
"""Begins the text that stands for a secret which cannot be decrypted; its row's number follows."""


def target_record(name: str) -> str:
    """Name the record that a target's credentials are stored under."""
    return f"target/{name}"


def portal_record(portal: str) -> str:
    """Name the record that a discovery portal's credentials are stored under."""
    return f"discovery/{portal}"


def credentials_of(document: Document) -> Iterator[tuple[str, Chap]]:
    """Yield every credential of a document with the name of its record."""
    for portal in document.discovery.portals:
        if portal.chap is not None:
            yield portal_record(portal.portal), portal.chap
    for target in document.targets:
        if target.chap is not None:
            yield target_record(target.name), target.chap


def iso_time(seconds: float) -> str:
    """Write seconds since the epoch as ISO 8601 in UTC, to the second."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Desired:
    """A generation of the desired state.

    ``unreadable`` names the records (:func:`target_record`, :func:`portal_record`) whose secret cannot be
    decrypted: what uses them must be left as it is.
    """

    generation: int
    document: Document
    unreadable: frozenset[str] = frozenset()


def unreadable_in(document: Document, desired: Desired) -> frozenset[str]:
    """Return the records of ``document`` that still stand for a secret which ``desired`` cannot read."""
    if not desired.unreadable:
        return frozenset()
    present = dict(credentials_of(desired.document))
    return frozenset(
        record
        for record, chap in credentials_of(document)
        if record in desired.unreadable and _same_placeholders(chap, present.get(record))
    )


def _same_placeholders(chap: Chap, present: Chap | None) -> bool:
    return present is not None and any(
        (secret := getattr(chap, field)) is not None
        and secret.get_secret_value().startswith(_PLACEHOLDER)
        and secret == getattr(present, field)
        for field in SECRET_FIELDS
    )


class Vault:
    """Translates documents; knows the rows of the secret table but does not write them."""

    def __init__(self, box: SecretBox, rows: list[Row]) -> None:
        self._box = box
        self._rows: dict[int, Row] = {row["id"]: row for row in rows}

    @property
    def numbers(self) -> set[int]:
        """Return the numbers of all rows."""
        return set(self._rows)

    # --- at rest -----------------------------------------------------------------------------------------

    def stored(self, document: Document, new_row: Callable[[str, str, str, bytes, str], int]) -> dict[str, Any]:
        """Return the document with references in place of secrets.

        ``new_row(record, field, key_id, blob, fingerprint)`` stores a secret that is not there yet and returns
        its number.
        """

        def reference(record: str, field: str, secret: SecretStr) -> dict[str, Any]:
            return {"secret_ref": self._number(record, field, secret, new_row)}

        return _translated(document, reference)

    def _number(
        self,
        record: str,
        field: str,
        secret: SecretStr,
        new_row: Callable[[str, str, str, bytes, str], int],
    ) -> int:
        known = self._row_of(record, field, secret)
        if known is not None:
            return int(known["id"])
        value = secret.get_secret_value().encode()
        blob = self._box.encrypt(record, field, value)
        return new_row(record, field, self._box.key_id, blob, self._box.fingerprint(value))

    def _row_of(self, record: str, field: str, secret: SecretStr) -> Row | None:
        text = secret.get_secret_value()
        if text.startswith(_PLACEHOLDER):
            row = self._rows.get(int(text[len(_PLACEHOLDER) :]))
            if row is not None and (row["record"], row["field"]) == (record, field):
                return row
        fingerprint = self._box.fingerprint(text.encode())
        for row in self._rows.values():
            if (row["record"], row["field"], row["fingerprint"]) == (record, field, fingerprint):
                return row
        return None

    def restored(self, stored: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
        """Return the stored document with its secrets in clear, and the records that cannot be decrypted."""
        unreadable: set[str] = set()
        restored = dict(stored)
        discovery = dict(stored.get("discovery", {}))
        discovery["portals"] = [
            self._restored_entry(entry, portal_record(entry["portal"]), unreadable)
            for entry in discovery.get("portals", ())
        ]
        restored["discovery"] = discovery
        restored["targets"] = [
            self._restored_entry(entry, target_record(entry["name"]), unreadable)
            for entry in stored.get("targets", ())
        ]
        return restored, frozenset(unreadable)

    def _restored_entry(self, entry: dict[str, Any], record: str, unreadable: set[str]) -> dict[str, Any]:
        if not entry.get("chap"):
            return entry
        chap = dict(entry["chap"])
        for field in SECRET_FIELDS:
            if field not in chap:
                continue
            number = chap[field]["secret_ref"]
            try:
                chap[field] = self._reveal(number, record, field)
            except SecretUnreadable:
                unreadable.add(record)
                chap[field] = f"{_PLACEHOLDER}{number}"
        return {**entry, "chap": chap}

    def _reveal(self, number: int, record: str, field: str) -> str:
        row = self._rows.get(number)
        if row is None:
            raise SecretUnreadable(f"{field} of {record} is gone")
        return self._box.decrypt(record, field, row["key_id"], row["blob"]).decode()

    # --- on show -----------------------------------------------------------------------------------------

    def shown(self, document: Document) -> dict[str, Any]:
        """Return the document as the outside may see it."""

        def view(record: str, field: str, secret: SecretStr) -> dict[str, Any]:
            row = self._row_of(record, field, secret)
            fingerprint = self._box.fingerprint(secret.get_secret_value().encode())
            if row is not None:
                fingerprint = row["fingerprint"]
            return SecretView(
                fingerprint=fingerprint[:SHOWN_FINGERPRINT],
                changed_at=iso_time(row["changed_at"]) if row is not None else "",
            ).model_dump(mode="json")

        return _translated(document, view)


def _translated(document: Document, translate: Callable[[str, str, SecretStr], dict[str, Any]]) -> dict[str, Any]:
    """Return the document as JSON data, each secret replaced by what ``translate`` makes of it."""
    data = document.model_dump(mode="json", exclude_none=True)
    shown = dict(credentials_of(document))
    entries = [(portal_record(e["portal"]), e) for e in data["discovery"]["portals"]]
    entries += [(target_record(e["name"]), e) for e in data["targets"]]
    for record, entry in entries:
        chap = shown.get(record)
        if chap is None:
            continue
        for field in SECRET_FIELDS:
            secret = getattr(chap, field)
            if secret is not None:
                entry["chap"][field] = translate(record, field, secret)
    return data


def references(stored: dict[str, Any]) -> set[int]:
    """Return the numbers of all secrets that a stored document refers to."""
    entries = [*stored.get("discovery", {}).get("portals", ()), *stored.get("targets", ())]
    return {
        chap[field]["secret_ref"]
        for entry in entries
        if (chap := entry.get("chap"))
        for field in SECRET_FIELDS
        if field in chap
    }
