# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept, across restarts, crashes, damage and a change of versions."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockfleet.engine.interface import DiscoveredPortal
from blockfleet.model.desired import Document, Policy
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.events import EventNumber
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.loading import load_document
from blockfleet.store.events import CAPACITY
from blockfleet.store.state import Binding, StateStore

T, U = "iqn.2026-11.com.example:db", "iqn.2026-11.com.example:log"
SECRET, MUTUAL = "canary-canary-canary", "canary-mutual-canary"


def declared(secret: str = SECRET, **fields: object) -> Document:
    return load_document(
        {
            "discovery": {
                "portals": [{"portal": "192.0.2.1", "chap": {"user": "d", "secret": "discovery-canary"}}]
            },
            "targets": [
                {
                    "name": T,
                    "portals": ["192.0.2.1", "::1"],
                    "chap": {"user": "host", "secret": secret, "mutual_secret": MUTUAL},
                    **fields,
                }
            ],
            "volumes": [{"name": "db01", "target": T, "lun": 0}],
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def reopened(store: StateStore, **options: str) -> StateStore:
    store.close()
    return StateStore.open(store.folder, **options)


@pytest.fixture
def store(folder):
    opened = StateStore.open(folder)
    yield opened
    opened.close()


# --- what lasts ----------------------------------------------------------------------------------------------


def test_a_document_comes_back_whole_with_its_secrets(folder):
    store = StateStore.open(folder)
    assert (store.desired.generation, store.desired.document, store.applied) == (0, Document(), None)
    assert store.save_desired(declared(), [{"text": "+ x"}]) == 1
    assert store.intents == (1,)
    store.mark_applied(1)
    store = reopened(store)
    assert (store.desired.generation, store.desired.document) == (1, declared())
    assert store.applied == store.desired
    assert store.intents == ()
    store.close()


def test_five_generations_are_kept_and_the_applied_one(folder):
    store = StateStore.open(folder)
    for number in range(1, 3):
        store.save_desired(declared(min_paths=number))
    store.mark_applied(2)
    for number in range(6):
        store.save_desired(declared(policy="round_robin" if number % 2 else "fail_over_only"))
    store.close()
    rows = sqlite3.connect(folder / "state.db").execute("SELECT generation FROM generation").fetchall()
    assert [row[0] for row in rows] == [2, 4, 5, 6, 7, 8]


def test_identities_last(folder):
    store = StateStore.open(folder)
    name = store.initiator_name
    first = [store.isid(T, "192.0.2.1:3260"), store.isid(T, "[::1]:3260"), store.isid(U, "192.0.2.1:3260")]
    store.save_desired(declared())
    store.bind("db01", Binding(T, 0, "naa.6000"))
    store.save_discovery("192.0.2.1:3260", "f", [DiscoveredPortal(target=T, portal="[::1]:3260", tag=3)])
    store = reopened(store)
    again = [store.isid(T, "192.0.2.1:3260"), store.isid(T, "[::1]:3260"), store.isid(U, "192.0.2.1:3260")]
    assert (store.initiator_name, again) == (name, first)
    assert store.bindings == {"db01": Binding(T, 0, "naa.6000")}
    assert store.discovery["192.0.2.1:3260"].answer == (DiscoveredPortal(target=T, portal="[::1]:3260", tag=3),)
    store.close()


def test_isids_are_random_typed_distinct_in_a_target_and_shared_between_targets(store):
    isids = [store.isid(T, f"192.0.2.{n}:3260") for n in range(1, 9)]
    assert len(set(isids)) == 8
    assert all(int(isid[:2], 16) >> 6 == 0b10 and int(isid[:2], 16) & 0x3F == 0 for isid in isids)
    assert len({isid[2:8] for isid in isids}) == 1
    assert store.isid(U, "192.0.2.1:3260") == isids[0]
    assert store.isid(T, "192.0.2.1:3260", "eth1") not in isids


def test_the_isid_of_a_running_session_is_taken_over_once(store):
    assert store.isid(T, "192.0.2.1:3260", seen="00023d000007") == "00023d000007"
    assert store.isid(T, "192.0.2.2:3260", seen="00023d000007") != "00023d000007"
    assert store.isid(T, "192.0.2.1:3260", seen="00023d000008") == "00023d000007"


def test_a_volume_that_is_not_declared_any_more_is_not_bound(store):
    store.save_desired(declared())
    store.bind("db01", Binding(T, 0, "naa.6000"))
    store.save_desired(Document())
    assert store.bindings == {}


def test_events_are_numbered_on_and_bounded(folder):
    store = StateStore.open(folder)
    for number in range(CAPACITY + 50):
        store.events.record(EventNumber.DRIFT_FOUND, f"s{number}")
        if number % 500 == 0:
            store.flush_events(number)
    store = reopened(store)
    kept = store.events.after(0)
    assert [kept[0].sequence, kept[-1].sequence, len(kept)] == [51, CAPACITY + 50, CAPACITY]
    assert store.events.after(CAPACITY + 48, 1)[0].subject == f"s{CAPACITY + 48}"
    assert store.events.record(EventNumber.LOGGED_IN, "x").sequence == CAPACITY + 51
    store.close()
    rows = sqlite3.connect(folder / "state.db").execute("SELECT count(*), min(sequence) FROM event").fetchone()
    assert rows == (CAPACITY, 52)


def test_logins_until_boot_end_with_the_boot(folder):
    store = StateStore.open(folder, boot_id="one")
    store.save_desired(declared(lifetime="boot"))
    store = reopened(store, boot_id="one")
    assert store.desired.document.targets[0].portals is not None
    store = reopened(store, boot_id="two")
    target = store.desired.document.targets[0]
    assert (target.portals, target.lifetime) == (None, None)
    assert target.chap is not None
    assert store.desired.generation == 2
    store = reopened(store, boot_id="two")
    assert store.desired.generation == 2
    store.close()


# --- one agent -----------------------------------------------------------------------------------------------


def test_a_second_agent_is_told_who_has_the_folder(store, folder):
    with pytest.raises(BlockfleetError) as caught:
        StateStore.open(folder)
    assert caught.value.code is Isdsc.STATE_LOCKED
    assert f"process {os.getpid()}" in str(caught.value)
    store.close()
    StateStore.open(folder).close()


def test_the_lock_goes_with_a_process_that_is_killed(folder):
    program = f"""
import sys, time
from pathlib import Path
from blockfleet.store.state import StateStore
store = StateStore.open(Path({str(folder)!r}))
print("open", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(BlockfleetError) as caught:
        StateStore.open(folder)
    assert f"process {holder.pid}" in str(caught.value)
    holder.kill()
    holder.wait(10)
    holder.stdout.close()
    StateStore.open(folder).close()


def test_nobody_else_can_read_anything(store, folder):
    store.save_desired(declared())
    store.backup_if_due()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BlockfleetError) as caught:
        StateStore.open(tmp_path / "file" / "state")
    assert caught.value.code is Isdsc.STATE_UNUSABLE
    assert str(tmp_path / "file") in str(caught.value)


# --- crashes, damage, versions -------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from blockfleet.model.loading import load_document
from blockfleet.store.state import Binding, StateStore
store = StateStore.open(Path(sys.argv[1]))
number = store.desired.generation
while True:
    number += 1
    document = load_document({"targets": [{"name": "iqn.2026-11.com.example:db", "min_paths": number % 60 + 1,
        "chap": {"user": "u", "secret": f"secret-number-{number:06}"}}]})
    assert store.save_desired(document, [{"number": number}]) == number
    print(number, flush=True)
    store.isid("iqn.2026-11.com.example:db", f"192.0.2.1:{number % 60000 + 1}")
    if number % 3 == 0:
        store.mark_applied(number)
"""


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(folder):
    chance = random.Random(3720)
    acknowledged = 0
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.25))
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split()
        writer.wait(10)
        writer.stdout.close()
        acknowledged = int(lines[-1]) if lines else acknowledged + 1
        store = StateStore.open(folder)
        desired = store.desired
        assert store.degraded == ""
        assert desired.generation in (acknowledged, acknowledged + 1)
        assert desired.unreadable == frozenset()
        secret = desired.document.targets[0].chap.secret.get_secret_value()
        assert secret == f"secret-number-{desired.generation:06}"
        assert set(store.intents) <= set(range(desired.generation + 1))
        acknowledged = desired.generation
        store.close()


def corrupt_header(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit_in_a_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(T.encode())] ^= 1
    path.write_bytes(data)


def another_programs_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 7")
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [corrupt_header, cut_short, flip_a_bit_in_a_value, another_programs_database],
    ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_moved_aside_and_the_state_degraded_until_all_is_declared(folder, damage):
    store = StateStore.open(folder)
    store.save_desired(declared())
    store.close()
    damage(folder / "state.db")
    kept = (folder / "state.db").read_bytes()
    store = StateStore.open(folder)
    assert "damaged" in store.degraded
    assert (store.desired.generation, store.read_only) == (0, False)
    (aside,) = folder.glob("state.db.corrupt-*")
    assert aside.read_bytes() == kept
    store = reopened(store)
    assert "damaged" in store.degraded
    store.save_desired(declared())
    assert "damaged" in store.degraded
    store.save_desired(declared(), whole=True)
    assert store.degraded == ""
    store = reopened(store)
    assert store.degraded == ""
    assert store.desired.document == declared()
    store.close()


def test_a_second_damage_does_not_overwrite_what_was_kept_of_the_first(folder):
    for content in (b"first" * 100, b"second" * 100):
        StateStore.open(folder, wall=lambda: 1.0).close()
        (folder / "state.db").write_bytes(content)
    StateStore.open(folder, wall=lambda: 1.0).close()
    assert len(list(folder.glob("state.db.corrupt-*"))) == 2


def test_a_newer_file_is_neither_read_nor_touched(folder):
    store = StateStore.open(folder)
    store.save_desired(declared())
    store.close()
    connection = sqlite3.connect(folder / "state.db")
    connection.execute("PRAGMA user_version = 1000")
    connection.commit()
    connection.close()
    before = (folder / "state.db").read_bytes()
    store = StateStore.open(folder)
    assert "newer agent" in store.degraded
    assert store.read_only
    with pytest.raises(BlockfleetError) as caught:
        store.save_desired(declared())
    assert caught.value.code is Isdsc.STATE_UNUSABLE
    store.events.record(EventNumber.STATE_DEGRADED, "state")
    store.close()
    assert (folder / "state.db").read_bytes() == before


def test_what_the_disk_does_not_take_changes_nothing(folder):
    store = StateStore.open(folder)
    store.save_desired(declared())
    connection = store._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    big = load_document({"targets": [{"name": f"{T}{n}", "portals": ["192.0.2.1"]} for n in range(500)]})
    with pytest.raises(BlockfleetError) as caught:
        store.save_desired(big)
    assert caught.value.code is Isdsc.COULD_NOT_SAVE_PERSISTENT_LOGIN_DATA
    assert "full" in str(caught.value)
    assert store.desired.document == declared()
    connection.execute("PRAGMA max_page_count = 100000")
    assert store.save_desired(big) == 2
    store.close()


def test_the_backup_is_a_whole_state(folder, tmp_path):
    now = [1_000_000.0]
    store = StateStore.open(folder, wall=lambda: now[0])
    store.save_desired(declared())
    assert store.backup_if_due()
    os.utime(folder / "state.db.backup", (now[0], now[0]))
    assert not store.backup_if_due()
    now[0] += 86401
    assert store.backup_if_due()
    store.close()
    (folder / "state.db").unlink()
    (folder / "state.db.backup").rename(folder / "state.db")
    store = StateStore.open(folder)
    assert (store.degraded, store.desired.document) == ("", declared())
    store.close()


# --- secrets -------------------------------------------------------------------------------------------------


def test_no_secret_is_in_any_file_or_text(folder):
    store = StateStore.open(folder)
    store.save_desired(declared())
    store.backup_if_due()
    shown = f"{store.shown(store.desired.document)}{store.desired!r}{store.__dict__}"
    store.close()
    assert "canary" not in shown
    for path in folder.iterdir():
        assert b"canary" not in path.read_bytes(), path


def test_a_shown_secret_changes_its_fingerprint_and_date_with_its_value(folder):
    now = [1_790_000_000.0]
    store = StateStore.open(folder, wall=lambda: now[0])
    store.save_desired(declared())

    def shown() -> dict:
        return store.shown(store.desired.document)["targets"][0]["chap"]["secret"]

    first = shown()
    assert first == {
        "set": True,
        "fingerprint": store.fingerprint(SECRET.encode())[:8],
        "changed_at": "2026-09-21T14:13:20+00:00",
    }
    now[0] += 60
    store.save_desired(declared(min_paths=1))
    assert shown() == first
    store.save_desired(declared(secret="another-canary-secret"))
    assert shown()["fingerprint"] != first["fingerprint"]
    assert shown()["changed_at"] == "2026-09-21T14:14:20+00:00"
    store.close()


def test_old_secrets_go_with_the_generations_that_had_them(folder):
    store = StateStore.open(folder)
    for number in range(12):
        store.save_desired(declared(secret=f"canary-number-{number:03}"))
    store.close()
    count = sqlite3.connect(folder / "state.db").execute("SELECT count(*) FROM secret").fetchone()[0]
    assert count == 5 + 2


def test_another_host_key_makes_secrets_unreadable_and_nothing_else(folder):
    store = StateStore.open(folder)
    store.save_desired(declared())
    key = (folder / "host.key").read_bytes()
    store.close()
    (folder / "host.key").unlink()
    store = StateStore.open(folder)
    assert store.degraded == ""
    assert store.desired.unreadable == {f"target/{T}", "discovery/192.0.2.1:3260"}
    assert store.desired.document.targets[0].portals == declared().targets[0].portals
    # Saved again and again, it is still the old ciphertext, which the old key opens.
    store.save_desired(store.desired.document.model_copy(update={"policy": Policy.ROUND_ROBIN}))
    store.close()
    (folder / "host.key").write_bytes(key)
    store = StateStore.open(folder)
    assert store.desired.unreadable == frozenset()
    assert store.desired.document.targets == declared().targets
    store.close()


@pytest.mark.parametrize(("content", "mode"), [(b"short", 0o600), (bytes(33), 0o600), (bytes(32), 0o644)])
def test_a_key_that_is_damaged_or_open_to_others_is_refused(folder, content, mode):
    folder.mkdir()
    (folder / "host.key").write_bytes(content)
    (folder / "host.key").chmod(mode)
    with pytest.raises(BlockfleetError) as caught:
        StateStore.open(folder)
    assert caught.value.code is Isdsc.STATE_UNUSABLE
    assert "host.key" in str(caught.value)


def test_the_service_managers_credential_is_the_key_where_there_is_one(folder, tmp_path, monkeypatch):
    (tmp_path / "blockfleet.key").write_bytes(bytes(range(32)))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    store = StateStore.open(folder)
    assert store.key_is_bound
    store.close()
    assert not (folder / "host.key").exists()
