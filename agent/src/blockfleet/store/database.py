# SPDX-License-Identifier: GPL-3.0-or-later
"""One SQLite file, one connection, every commit on the disk before it counts.

``journal_mode=DELETE`` with ``synchronous=EXTRA`` loses no committed transaction in a power cut, and a single
connection keeps clear of the defects that concurrent WAL writers had up to SQLite 3.51.2.  Each row carries the
CRC32C of its columns, because SQLite itself does not notice a flipped bit in a value.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crc32c

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

APPLICATION_ID = 0x424C4653
"""``BLFS``: marks the file as ours (PRAGMA application_id)."""

Migration = tuple[str, ...]
Row = dict[str, Any]


class Corrupt(Exception):
    """The file is not a sound database of ours."""


class Newer(Exception):
    """The file was written by a newer agent."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows carry a checksum; ``columns`` leaves the checksum out, the key comes first."""

    name: str
    columns: tuple[str, ...]
    key: int = 1

    # Names come from the constants of this package alone; every value is a bound parameter.
    @property
    def put_sql(self) -> str:
        marks = ", ".join("?" for _ in range(len(self.columns) + 1))
        return f"INSERT OR REPLACE INTO {self.name} ({', '.join(self.columns)}, crc) VALUES ({marks})"  # noqa: S608

    @property
    def select_sql(self) -> str:
        columns = ", ".join(self.columns)
        return f"SELECT {columns}, crc FROM {self.name} ORDER BY {', '.join(self.columns[: self.key])}"  # noqa: S608

    @property
    def delete_sql(self) -> str:
        return f"DELETE FROM {self.name} WHERE {' AND '.join(f'{c} = ?' for c in self.columns[: self.key])}"  # noqa: S608


def checksum(values: Sequence[Any]) -> int:
    """Return the CRC32C of a row's columns in canonical JSON, bytes as hexadecimal digits.

    Numbers count as floats, because a REAL column gives back 5.0 for 5.
    """
    return crc32c.crc32c(json.dumps([_canonical(value) for value in values]).encode())


def _canonical(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return float(value) if isinstance(value, int) else value


class Database:
    """The one connection.  Not for use by two threads or two processes: the caller holds the folder's lock."""

    def __init__(self, path: Path, migrations: Sequence[Migration]) -> None:
        """Open, check and migrate; raises :class:`Corrupt`, :class:`Newer` or BlockfleetError."""
        self.path = path
        self._migrations = migrations
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        except (OSError, sqlite3.OperationalError) as error:
            raise unusable(path, error) from None
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self._connection.close()
            raise unusable(path, error) from None
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise Corrupt(str(error)) from None
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "foreign_keys=ON", "synchronous=EXTRA"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("PRAGMA journal_mode=DELETE")
        verdict = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Corrupt(verdict)
        application, version = self._pragma("application_id"), self._pragma("user_version")
        if (application or version) and application != APPLICATION_ID:
            raise Corrupt(f"its application id is {application:#x}, so it is not a database of this agent")
        if version > len(self._migrations):
            raise Newer(f"its version is {version} and this agent knows up to {len(self._migrations)}")
        if version < len(self._migrations):
            self._migrate(version)

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _migrate(self, version: int) -> None:
        if version:
            self.backup(self.path.with_name(f"{self.path.name}.v{version}"))
        with self.transaction():
            for migration in self._migrations[version:]:
                for statement in migration:
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version={len(self._migrations)}")

    def backup(self, path: Path) -> None:
        """Write a consistent copy to ``path``, replacing an older one only when the new one is whole."""
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._connection.execute("VACUUM INTO ?", (str(draft),))
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all or nothing.

        Raises BlockfleetError COULD_NOT_SAVE_PERSISTENT_LOGIN_DATA when the disk does not take it; then nothing
        has changed.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise BlockfleetError(
                Isdsc.COULD_NOT_SAVE_PERSISTENT_LOGIN_DATA,
                f"cannot write {self.path}: {error}; nothing was changed",
                remedy="make room on the disk or put the file system right, then try again",
            ) from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def put(self, table: Table, *values: Any) -> None:
        """Insert a row or replace the one with its key; ``values`` are in the order of the columns."""
        self._connection.execute(table.put_sql, (*values, checksum(values)))

    def insert(self, table: Table, *values: Any) -> int:
        """Insert a row whose integer key (the first column) SQLite chooses; return that key."""
        with_key = (None, *values, 0)
        key = self._connection.execute(table.put_sql, with_key).lastrowid
        assert key is not None
        self.put(table, key, *values)
        return key

    def delete(self, table: Table, *key: Any) -> None:
        """Delete the row with this key, if there is one."""
        self._connection.execute(table.delete_sql, key)

    def delete_up_to(self, table: Table, key: int) -> None:
        """Delete the rows of a table with one integer key up to and with ``key``."""
        self._connection.execute(f"DELETE FROM {table.name} WHERE {table.columns[0]} <= ?", (key,))  # noqa: S608

    def rows(self, table: Table) -> list[Row]:
        """Return all rows in the order of their keys; raises :class:`Corrupt`."""
        rows = []
        try:
            for *values, crc in self._connection.execute(table.select_sql):
                if checksum(values) != crc:
                    raise Corrupt(f"a row of {table.name} does not match its checksum")
                rows.append(dict(zip(table.columns, values, strict=True)))
        except sqlite3.DatabaseError as error:
            raise Corrupt(str(error)) from None
        return rows

    def settings(self, table: Table) -> Mapping[str, str]:
        """Return a table of two columns as a mapping."""
        return {row[table.columns[0]]: row[table.columns[1]] for row in self.rows(table)}

    def close(self) -> None:
        """Close the file; open transactions are rolled back."""
        self._connection.close()


def unusable(path: Path, error: Exception) -> BlockfleetError:
    """Say that a file can be neither read nor written."""
    return BlockfleetError(
        Isdsc.STATE_UNUSABLE,
        f"cannot use {path}: {error}",
        remedy="check that the folder exists, belongs to the agent's user and has room",
    )
