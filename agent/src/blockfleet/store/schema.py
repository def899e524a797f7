# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the state file, and how each version of them comes from the one before."""

from __future__ import annotations

from blockfleet.store.database import Migration, Table

META = Table("meta", ("key", "value"))
GENERATION = Table("generation", ("generation", "document", "created_at"))
SECRET = Table("secret", ("id", "record", "field", "key_id", "blob", "fingerprint", "changed_at"))
ISID = Table("isid", ("target", "portal", "interface", "isid"), key=3)
BINDING = Table("binding", ("volume", "target", "lun", "identity", "bound_at"))
DISCOVERY = Table("discovery", ("portal", "credentials", "answer", "seen_at"))
INTENT = Table("intent", ("generation", "actions", "started_at"))
EVENT = Table("event", ("sequence", "body"))

TABLES = (META, GENERATION, SECRET, ISID, BINDING, DISCOVERY, INTENT, EVENT)

MIGRATIONS: tuple[Migration, ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) STRICT",
        """CREATE TABLE generation (
            generation INTEGER PRIMARY KEY CHECK (generation > 0),
            document TEXT NOT NULL,
            created_at REAL NOT NULL,
            crc INTEGER NOT NULL) STRICT""",
        """CREATE TABLE secret (
            id INTEGER PRIMARY KEY,
            record TEXT NOT NULL,
            field TEXT NOT NULL,
            key_id TEXT NOT NULL,
            blob BLOB NOT NULL,
            fingerprint TEXT NOT NULL,
            changed_at REAL NOT NULL,
            crc INTEGER NOT NULL) STRICT""",
        """CREATE TABLE isid (
            target TEXT NOT NULL,
            portal TEXT NOT NULL,
            interface TEXT NOT NULL,
            isid TEXT NOT NULL CHECK (length(isid) = 12),
            crc INTEGER NOT NULL,
            PRIMARY KEY (target, portal, interface),
            UNIQUE (target, isid)) STRICT""",
        """CREATE TABLE binding (
            volume TEXT PRIMARY KEY,
            target TEXT NOT NULL,
            lun INTEGER,
            identity TEXT NOT NULL CHECK (identity <> ''),
            bound_at REAL NOT NULL,
            crc INTEGER NOT NULL) STRICT""",
        """CREATE TABLE discovery (
            portal TEXT PRIMARY KEY,
            credentials TEXT NOT NULL,
            answer TEXT NOT NULL,
            seen_at REAL NOT NULL,
            crc INTEGER NOT NULL) STRICT""",
        """CREATE TABLE intent (
            generation INTEGER PRIMARY KEY,
            actions TEXT NOT NULL,
            started_at REAL NOT NULL,
            crc INTEGER NOT NULL) STRICT""",
        """CREATE TABLE event (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            body TEXT NOT NULL,
            crc INTEGER NOT NULL) STRICT""",
    ),
)
"""Statements of each version, oldest first.  A version that has been released is never edited: add one."""
