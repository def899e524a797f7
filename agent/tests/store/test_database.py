# SPDX-License-Identifier: GPL-3.0-or-later
"""The file itself: how it is opened, migrated and checked."""

from __future__ import annotations

import sqlite3

import pytest

from blockfleet.model.errors import BlockfleetError
from blockfleet.store.database import APPLICATION_ID, Corrupt, Database, Newer, Table
from blockfleet.store.secrets import SecretBox, SecretUnreadable

FIRST = ("CREATE TABLE thing (name TEXT PRIMARY KEY, size REAL NOT NULL, crc INTEGER NOT NULL) STRICT",)
SECOND = ("ALTER TABLE thing RENAME COLUMN size TO bytes",)
BROKEN = ("CREATE TABLE other (x) STRICT", "ALTER TABLE nothing RENAME COLUMN a TO b")
THING = Table("thing", ("name", "size"))
RENAMED = Table("thing", ("name", "bytes"))


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "delete"),
        ("synchronous", 3),
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("application_id", APPLICATION_ID),
        ("user_version", 1),
    ],
)
def test_it_is_opened_for_safety(tmp_path, pragma, value):
    database = Database(tmp_path / "db", [FIRST])
    assert database._connection.execute(f"PRAGMA {pragma}").fetchone()[0] == value
    database.close()


def test_an_older_file_is_backed_up_and_brought_up_to_date(tmp_path):
    database = Database(tmp_path / "db", [FIRST])
    with database.transaction():
        database.put(THING, "a", 5)
    database.close()
    database = Database(tmp_path / "db", [FIRST, SECOND])
    assert database.rows(RENAMED) == [{"name": "a", "bytes": 5.0}]
    database.close()
    backup = Database(tmp_path / "db.v1", [FIRST])
    assert backup.rows(THING) == [{"name": "a", "size": 5.0}]
    backup.close()
    with pytest.raises(Newer):
        Database(tmp_path / "db", [FIRST])


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path):
    Database(tmp_path / "db", [FIRST]).close()
    with pytest.raises(BlockfleetError):
        Database(tmp_path / "db", [FIRST, BROKEN])
    names = sqlite3.connect(tmp_path / "db").execute("SELECT name FROM sqlite_master").fetchall()
    assert ("other",) not in names
    Database(tmp_path / "db", [FIRST]).close()


def test_a_transaction_is_all_or_nothing(tmp_path):
    database = Database(tmp_path / "db", [FIRST])

    def half() -> None:
        with database.transaction():
            database.put(THING, "a", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert database.rows(THING) == []
    database.close()


def test_a_changed_row_does_not_pass_for_a_sound_one(tmp_path):
    database = Database(tmp_path / "db", [FIRST])
    with database.transaction():
        database.put(THING, "a", 1)
    database._connection.execute("UPDATE thing SET size = 2")
    with pytest.raises(Corrupt):
        database.rows(THING)
    database.close()


def test_a_secret_opens_only_as_what_it_was_stored_as():
    box, other = SecretBox(bytes(32), from_credential=False), SecretBox(bytes([1] * 32), from_credential=False)
    blob = box.encrypt("target/a", "secret", b"value")
    assert box.decrypt("target/a", "secret", box.key_id, blob) == b"value"
    assert box.encrypt("target/a", "secret", b"value") != blob
    for record, field, key_id, data in [
        ("target/b", "secret", box.key_id, blob),
        ("target/a", "mutual_secret", box.key_id, blob),
        ("target/a", "secret", other.key_id, blob),
        ("target/a", "secret", box.key_id, blob[:-1] + bytes([blob[-1] ^ 1])),
        ("target/a", "secret", box.key_id, b""),
    ]:
        with pytest.raises(SecretUnreadable):
            box.decrypt(record, field, key_id, data)
    assert box.fingerprint(b"value") == box.fingerprint(b"value") != other.fingerprint(b"value")
