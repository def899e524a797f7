# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's state folder: one object through which everything that lasts is read and written."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockfleet.engine.interface import DiscoveredPortal
from blockfleet.model.desired import Document, Lifetime
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_document
from blockfleet.store.database import Corrupt, Database, Newer, Row, unusable
from blockfleet.store.documents import Desired, Vault, references
from blockfleet.store.events import EventLog
from blockfleet.store.lock import FolderLock
from blockfleet.store.schema import (
    BINDING,
    DISCOVERY,
    EVENT,
    GENERATION,
    INTENT,
    ISID,
    META,
    MIGRATIONS,
    SECRET,
    TABLES,
)
from blockfleet.store.secrets import SecretBox, sync_directory

DATABASE_FILE = "state.db"
BACKUP_FILE = "state.db.backup"

KEPT_GENERATIONS = 5
"""Generations of the desired state that are kept, the present one among them."""

BACKUP_INTERVAL = 86400.0
"""Seconds between backups."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_ISID_TYPE_RANDOM = "80"
"""First byte of an ISID whose next three are random: T = 10b, A = 0 (RFC 3720 10.12.5)."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Which logical unit a volume is held to, and what it was declared as when it was first seen."""

    target: str
    lun: int | None
    identity: str


@dataclass(frozen=True, slots=True)
class DiscoveryRecord:
    """What a portal answered last, and the fingerprint of the credentials it was asked with."""

    portal: str
    credentials: str
    answer: tuple[DiscoveredPortal, ...]
    seen_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """The file, or None when it may not be used, and why the state is degraded (empty when it is not)."""

    database: Database | None
    degraded: str


class StateStore:
    """Open with :meth:`open`; holds the folder's lock until :meth:`close`.

    ``degraded`` is empty in good health.  Else it says why nothing may be done on the ground of this state: with
    a file of a newer agent the store is ``read_only`` too; after a damaged file was moved aside the store works,
    but stays degraded until a whole document (mode ``replace``) is declared, because an empty desired state
    must not be taken for the wish to have nothing.
    """

    def __init__(self, folder: Path, lock: FolderLock, opened: _Opened, wall: Callable[[], float]) -> None:
        self.folder = folder
        self._lock = lock
        self._database = opened.database
        self.degraded = opened.degraded
        self._wall = wall
        self._box = SecretBox(bytes(32), from_credential=True) if self.read_only else SecretBox.open(folder)
        self.events = EventLog(self._database, wall)
        self._read()

    @classmethod
    def open(
        cls, state_dir: Path, *, boot_id: str | None = None, wall: Callable[[], float] = time.time
    ) -> StateStore:
        """Open the state in ``state_dir``, making the folder and the file when they are not there.

        ``boot_id`` tells one start of the host from another; by default the kernel's.  ``wall`` gives seconds
        since the epoch.

        Raises :class:`BlockfleetError`: STATE_LOCKED while another agent runs, STATE_UNUSABLE when the folder
        or the host key cannot be used.  A damaged or newer file does not raise: see ``degraded``.
        """
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FolderLock(state_dir)
        except OSError as error:
            raise unusable(state_dir, error) from None
        opened = _Opened(None, "")
        try:
            opened = _open_database(state_dir / DATABASE_FILE, wall)
            store = cls(state_dir, lock, opened, wall)
            if opened.database is not None:
                store._initialise()
                store._begin_boot(_BOOT_ID.read_text().strip() if boot_id is None else boot_id)
        except BaseException:
            if opened.database is not None:
                opened.database.close()
            lock.release()
            raise
        return store

    def close(self) -> None:
        """Write the events that are not written yet, close the file and let another agent in."""
        try:
            self.events.flush()
        finally:
            if self._database is not None:
                self._database.close()
            self._lock.release()

    @property
    def read_only(self) -> bool:
        """Whether nothing can be saved."""
        return self._database is None

    @property
    def key_is_bound(self) -> bool:
        """Whether the host key comes from the service manager, not from a file beside the secrets."""
        return self._box.from_credential

    # --- loading -----------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read everything from the file; what is in memory is never ahead of what is on the disk."""
        rows = {t: self._database.rows(t) if self._database is not None else [] for t in TABLES if t is not EVENT}
        self._vault = Vault(self._box, rows[SECRET])
        self._meta: dict[str, str] = {row["key"]: row["value"] for row in rows[META]}
        self._generations = {row["generation"]: json.loads(row["document"]) for row in rows[GENERATION]}
        self._desired = self._restored(max(self._generations, default=0))
        applied = int(self._meta.get("applied", 0))
        self._applied = self._restored(applied) if applied in self._generations else None
        self._isids: dict[tuple[str, str, str], str] = {
            (row["target"], row["portal"], row["interface"]): row["isid"] for row in rows[ISID]
        }
        self._bindings = {
            row["volume"]: Binding(row["target"], row["lun"], row["identity"]) for row in rows[BINDING]
        }
        self._discovery = {row["portal"]: _discovery_record(row) for row in rows[DISCOVERY]}
        self._intents = tuple(row["generation"] for row in rows[INTENT])
        self.degraded = self.degraded or self._meta.get("unconfirmed", "")

    def _restored(self, generation: int) -> Desired:
        if not generation:
            return Desired(0, Document())
        data, unreadable = self._vault.restored(self._generations[generation])
        return Desired(generation, load_document(data), unreadable)

    def _initialise(self) -> None:
        fresh = {
            "initiator_name": f"iqn.2026-11.io.blockfleet:{secrets.token_hex(6)}",
            "isid_prefix": _ISID_TYPE_RANDOM + secrets.token_hex(3),
        }
        missing = {key: value for key, value in fresh.items() if key not in self._meta}
        if missing:
            with self._writing():
                for key, value in missing.items():
                    self._require().put(META, key, value)
            self._read()

    def _begin_boot(self, boot_id: str) -> None:
        """End logins that were wanted until the host restarts, if it did."""
        previous = self._meta.get("boot_id")
        if previous == boot_id:
            return
        document = self._desired.document
        kept = tuple(
            target.model_copy(update={"portals": None, "lifetime": None, "min_paths": None})
            if target.lifetime is Lifetime.BOOT
            else target
            for target in document.targets
        )
        with self._writing():
            if previous is not None and kept != document.targets:
                self._save(document.model_copy(update={"targets": kept}), (), whole=False)
            self._require().put(META, "boot_id", boot_id)
        self._read()

    # --- writing -----------------------------------------------------------------------------------------

    def _writing(self) -> AbstractContextManager[None]:
        return self._require().transaction()

    def _require(self) -> Database:
        if self._database is None:
            raise BlockfleetError(
                Isdsc.STATE_UNUSABLE, self.degraded, remedy="upgrade the agent, or restore its state folder"
            )
        return self._database

    def backup_if_due(self) -> bool:
        """Write a copy of the file beside it when the last is a day old; say whether it did."""
        database = self._require()
        path = self.folder / BACKUP_FILE
        if path.exists() and self._wall() - path.stat().st_mtime < BACKUP_INTERVAL:
            return False
        database.backup(path)
        return True

    # --- desired state -----------------------------------------------------------------------------------

    @property
    def desired(self) -> Desired:
        """Return what the host shall have."""
        return self._desired

    @property
    def applied(self) -> Desired | None:
        """Return the desired state that was last reached and verified; None before the first."""
        return self._applied

    @property
    def intents(self) -> tuple[int, ...]:
        """Return the generations whose carrying out was begun and is not verified yet."""
        return self._intents

    def save_desired(
        self, document: Document, actions: Sequence[Mapping[str, Any]] = (), *, whole: bool = False
    ) -> int:
        """Make ``document`` the desired state, with the intent to carry out ``actions``; return its generation.

        One transaction: after a crash both are there or neither.  ``whole`` says that the document was declared
        as a whole, which ends the degraded state after a loss.  Raises BlockfleetError and changes nothing when
        it cannot be saved.
        """
        with self._writing():
            generation = self._save(document, actions, whole=whole)
        if whole:
            self.degraded = ""
        self._read()
        return generation

    def _save(self, document: Document, actions: Sequence[Mapping[str, Any]], *, whole: bool) -> int:
        database = self._require()
        now = self._wall()

        def new_row(record: str, field: str, key_id: str, blob: bytes, fingerprint: str) -> int:
            return database.insert(SECRET, record, field, key_id, blob, fingerprint, now)

        stored = self._vault.stored(document, new_row)
        generation = self._desired.generation + 1
        database.put(GENERATION, generation, json.dumps(stored, sort_keys=True), now)
        database.put(INTENT, generation, json.dumps(list(actions), sort_keys=True), now)
        self._prune({**self._generations, generation: stored})
        for name in self._bindings.keys() - {volume.name for volume in document.volumes}:
            database.delete(BINDING, name)
        if whole:
            database.delete(META, "unconfirmed")
            database.delete(META, "foreign")
        return generation

    def _prune(self, generations: Mapping[int, dict[str, Any]]) -> None:
        """Delete generations that are too old, and secrets that no kept one refers to."""
        database = self._require()
        keep = {*sorted(generations)[-KEPT_GENERATIONS:], int(self._meta.get("applied", 0))}
        for old in generations.keys() - keep:
            database.delete(GENERATION, old)
            database.delete(INTENT, old)
        referred: set[int] = set()
        for generation in keep & generations.keys():
            referred |= references(generations[generation])
        for number in self._vault.numbers - referred:
            database.delete(SECRET, number)

    def mark_applied(self, generation: int) -> None:
        """Note that the host has reached this generation; intents up to it are done."""
        if int(self._meta.get("applied", 0)) == generation and not self._intents:
            return
        with self._writing():
            self._require().put(META, "applied", str(generation))
            self._require().delete_up_to(INTENT, generation)
        self._read()

    def shown(self, document: Document) -> dict[str, Any]:
        """Return a document as the outside may see it, secrets as fingerprints."""
        return self._vault.shown(document)

    def fingerprint(self, value: bytes) -> str:
        """Return the keyed digest of a value, 64 hexadecimal digits."""
        return self._box.fingerprint(value)

    # --- identities --------------------------------------------------------------------------------------

    @property
    def initiator_name(self) -> str:
        """Return the name that was made for this host, used while the document declares none."""
        return self._meta.get("initiator_name", "")

    @property
    def foreign(self) -> frozenset[str]:
        """Return the sessions and volumes that ran before anything was declared here."""
        return frozenset(json.loads(self._meta.get("foreign", "[]")))

    def adopt(self, name: str, foreign: Iterable[str]) -> None:
        """Take over a running engine's initiator name, and note what it ran, until a whole document is declared."""
        changed = {"initiator_name": name, "foreign": json.dumps(sorted(foreign))}
        with self._writing():
            for key, value in changed.items():
                self._require().put(META, key, value)
        self._meta.update(changed)

    def isid(self, target: str, portal: str, interface: str = "", *, seen: str = "") -> str:
        """Return the ISID of a path, twelve hexadecimal digits, the same for ever once given.

        Paths to one target have different ISIDs, so that no two sessions share a nexus with one target portal
        group; paths to different targets share them (conservative reuse, RFC 3720 9.1.1).  ``seen`` is the ISID
        that a running session already has, which a path without one takes over.
        """
        known = self._isids.get((target, portal, interface))
        if known is not None:
            return known
        used = {isid for (name, _, _), isid in self._isids.items() if name == target}
        prefix = self._meta["isid_prefix"]
        free = (f"{prefix}{qualifier:04x}" for qualifier in range(0x10000))
        isid = seen if seen and seen not in used else next(i for i in free if i not in used)
        with self._writing():
            self._require().put(ISID, target, portal, interface, isid)
        self._isids[target, portal, interface] = isid
        return isid

    @property
    def bindings(self) -> Mapping[str, Binding]:
        """Return the identity that each volume is held to, by the volume's name."""
        return self._bindings

    def bind(self, volume: str, binding: Binding) -> None:
        """Hold a volume to an identity from now on."""
        if self._bindings.get(volume) == binding:
            return
        with self._writing():
            self._require().put(BINDING, volume, binding.target, binding.lun, binding.identity, float(self._wall()))
        self._bindings[volume] = binding

    # --- discovery cache ---------------------------------------------------------------------------------

    @property
    def discovery(self) -> Mapping[str, DiscoveryRecord]:
        """Return what each portal answered last."""
        return self._discovery

    def save_discovery(self, portal: str, credentials: str, answer: Iterable[DiscoveredPortal]) -> None:
        """Note what a portal answered; nothing else is touched by a discovery."""
        record = DiscoveryRecord(portal, credentials, tuple(answer), self._wall())
        body = json.dumps([entry.model_dump(mode="json") for entry in record.answer])
        with self._writing():
            self._require().put(DISCOVERY, portal, credentials, body, float(record.seen_at))
        self._discovery[portal] = record

    def forget_discovery(self, portals: Iterable[str]) -> None:
        """Drop the answers of portals that are not declared any more."""
        gone = [portal for portal in portals if portal in self._discovery]
        if not gone:
            return
        with self._writing():
            for portal in gone:
                self._require().delete(DISCOVERY, portal)
        for portal in gone:
            del self._discovery[portal]

    # --- the engine's event log --------------------------------------------------------------------------

    @property
    def engine_sequence(self) -> int:
        """Return the number of the last engine event that was taken over."""
        return int(self._meta.get("engine_sequence", 0))

    def flush_events(self, engine_sequence: int) -> None:
        """Write new events, and up to where the engine's were read."""
        if self._database is None:
            return
        self.events.flush()
        if engine_sequence != self.engine_sequence:
            with self._writing():
                self._database.put(META, "engine_sequence", str(engine_sequence))
            self._meta["engine_sequence"] = str(engine_sequence)


def _discovery_record(row: Row) -> DiscoveryRecord:
    answer = tuple(DiscoveredPortal(**entry) for entry in json.loads(row["answer"]))
    return DiscoveryRecord(row["portal"], row["credentials"], answer, row["seen_at"])


def _open_database(path: Path, wall: Callable[[], float]) -> _Opened:
    try:
        database = Database(path, MIGRATIONS)
        try:
            for table in TABLES:
                database.rows(table)
        except Corrupt:
            database.close()
            raise
    except Newer as error:
        return _Opened(None, f"{path} is of a newer agent: {error}; devices are left as they are")
    except Corrupt as error:
        aside = _move_aside(path, wall)
        database = Database(path, MIGRATIONS)
        reason = (
            f"{path} was damaged ({error}) and is kept as {aside.name}; devices are left as they are until the"
            f" whole document is declared again (mode replace), or {BACKUP_FILE} is put in its place"
        )
        with database.transaction():
            database.put(META, "unconfirmed", reason)
        return _Opened(database, reason)
    return _Opened(database, "")


def _move_aside(path: Path, wall: Callable[[], float]) -> Path:
    """Rename a damaged file and its journal; never over another, never deleting."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall()))
    number = 0
    while True:
        aside = path.with_name(f"{path.name}.corrupt-{stamp}" + (f".{number}" if number else ""))
        if not aside.exists():
            break
        number += 1
    path.rename(aside)
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists():
        journal.rename(aside.with_name(f"{aside.name}-journal"))
    sync_directory(path.parent)
    return aside
