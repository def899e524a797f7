# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's storage from nothing to a volume over two portals with mutual CHAP, and what may go wrong on the way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.collection.host import AgentHost
from tests.collection.playbook import Playbook, Run
from tests.peers.process import free_port, run
from tests.peers.tgt import Account, Tgt

pytestmark = pytest.mark.peer

IQN = "iqn.2026-11.com.example:db"
HOST = Account("host1", "secret-of-the-host")
ARRAY = Account("array1", "secret-of-the-array")


@pytest.fixture
def target(tgt6: Tgt) -> Tgt:
    """A tgt with an IPv4 and an IPv6 portal that demands mutual CHAP."""
    tgt6.add_target(IQN, account=HOST, mutual=ARRAY)
    tgt6.add_unit(IQN, 64 << 20)
    return tgt6


def storage(playbook: Playbook, portals: list[str], **login: Any) -> list[dict[str, Any]]:
    """The play that README.md shows."""
    return [
        playbook.task("iscsi_portal", {"portals": portals}),
        playbook.task(
            "iscsi_chap",
            {
                "target": IQN,
                "user": HOST.user,
                "secret": HOST.secret,
                "mutual_user": ARRAY.user,
                "mutual_secret": ARRAY.secret,
            },
        ),
        playbook.task("iscsi_target_login", {"target": IQN, "portals": "all", "min_paths": 2, **login}),
        playbook.task("mpio_policy", {"target": IQN, "policy": "round_robin"}),
        playbook.task("iscsi_persistent", {"target": IQN, "volumes": [{"name": "db01", "lun": 1}]}),
    ]


def changes(done: Run) -> list[bool]:
    return [result.changed for result in done.results]


def test_from_nothing_to_a_volume_and_again(target: Tgt, agent_host: AgentHost, host_playbook: Playbook) -> None:
    tasks = storage(host_playbook, list(target.portals))
    first = host_playbook.run(*tasks)
    assert (first.returncode, changes(first)) == (0, [True] * 5), first.output
    (volume,) = first[4].result["volumes"]
    assert (volume["phase"], volume["size"]) == ("online", 64 << 20)
    assert run("nbdinfo", "--size", f"nbd+unix:///db01?socket={volume['socket']}").strip() == str(64 << 20)
    assert sorted(c.address for c in target.connections(IQN)) == ["127.0.0.1", "::1"]

    before = agent_host.get("/v1/desired"), target.connections(IQN), agent_host.logins(IQN)
    again = host_playbook.run(*tasks)
    checked = host_playbook.run(*tasks, arguments=("--check", "--diff"))
    for repeated in (again, checked):
        assert (repeated.recap["changed"], repeated.recap["failed"]) == (0, 0)
        assert all(result.texts == [] for result in repeated.results)
    assert (agent_host.get("/v1/desired"), target.connections(IQN), agent_host.logins(IQN)) == before


def test_check_mode_says_exactly_what_then_happens(target: Tgt, host_playbook: Playbook) -> None:
    tasks = storage(host_playbook, list(target.portals))
    checked = [{**task, "check_mode": True} for task in tasks]
    both = host_playbook.run(
        *(task for pair in zip(checked, tasks, strict=True) for task in pair), arguments=("--diff",)
    )
    assert both.returncode == 0, both.output
    for predicted, done in zip(both.results[::2], both.results[1::2], strict=True):
        assert done.changed
        for key in ("changed", "actions", "summary"):
            assert predicted.result[key] == done.result[key], done.task
        assert predicted.diff == done.diff, done.task
        assert done.diff["before"] != done.diff["after"], done.task


def test_drift_is_shown_and_put_right(target: Tgt, agent_host: AgentHost, host_playbook: Playbook) -> None:
    tasks = storage(host_playbook, list(target.portals))
    assert host_playbook.run(*tasks).returncode == 0
    agent_host.restart_agent("--no-repair")
    agent_host.engine_forgets(f"{IQN}@{target.portals[1]}")
    drift = host_playbook.one("iscsi_info", {"gather_subset": ["drift"]}).result["drift"]
    assert [(a["verb"], a["origin"]) for a in drift["actions"]] == [("login", "corrective")]
    mended = host_playbook.run(tasks[2])[0]
    assert (mended.changed, [a["origin"] for a in mended.result["actions"]]) == (True, ["corrective"])
    assert len(target.connections(IQN)) == 2
    assert not host_playbook.run(tasks[2])[0].changed


def test_a_secret_that_is_wrong_is_named_with_its_remedy(target: Tgt, host_playbook: Playbook) -> None:
    tasks = storage(host_playbook, list(target.portals), wait_timeout=5)
    tasks[1]["blockfleet.iscsi.iscsi_chap"]["secret"] = "not-the-right-secret"
    done = host_playbook.run(*tasks)
    assert [r.outcome for r in done.results] == ["ok", "ok", "failed"]
    message = done.results[-1].message
    assert IQN in message
    assert "authentication" in message.lower()
    assert target.connections(IQN) == []


def test_a_target_that_cannot_prove_itself_is_not_logged_in_at(target: Tgt, host_playbook: Playbook) -> None:
    tasks = storage(host_playbook, list(target.portals), wait_timeout=5)
    tasks[1]["blockfleet.iscsi.iscsi_chap"]["mutual_secret"] = "not-the-target-secret"
    done = host_playbook.run(*tasks)
    assert [r.outcome for r in done.results] == ["ok", "ok", "failed"]
    assert target.connections(IQN) == []


def test_a_portal_that_is_not_there_fails_the_task_and_the_other_path_is_up(
    target: Tgt, host_playbook: Playbook
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    tasks = storage(host_playbook, list(target.portals[:1]))
    assert host_playbook.run(*tasks[:2]).returncode == 0
    login = {"target": IQN, "portals": [target.portals[0], nobody], "wait_timeout": 4}
    result = host_playbook.one("iscsi_target_login", login)
    assert (result.outcome, result.changed) == ("failed", True)
    assert nobody in result.message
    assert len(target.connections(IQN)) == 1
    enough = host_playbook.one("iscsi_target_login", {**login, "min_paths": 1})
    assert (enough.outcome, enough.result["status"]) == ("ok", "partial")
    assert any(nobody in warning for warning in enough.warnings)


class Listener:
    """Takes connections and does with them what it was told."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        self.portal = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.taken = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.taken += 1
            self._held.append(connection)
            self._serve(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for held in (self._socket, *self._held):
            held.close()


def _silence(_: socket.socket) -> None:
    """Say nothing and keep the connection, as a firewall that swallows packets does."""


def _garbage(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 40)


@pytest.fixture(params=[_silence, _garbage], ids=["silent", "garbage"])
def odd_portal(request: pytest.FixtureRequest) -> Iterator[Listener]:
    listener = Listener(request.param)
    yield listener
    listener.close()


def test_a_portal_that_is_no_target_ends_the_task_in_time_and_is_not_stormed(
    odd_portal: Listener, host_playbook: Playbook
) -> None:
    began = time.monotonic()
    login = {"target": IQN, "portals": [odd_portal.portal], "login_timeout": 1, "wait_timeout": 5}
    result = host_playbook.one("iscsi_target_login", login)
    assert time.monotonic() - began < 25
    assert result.outcome == "failed"
    assert odd_portal.portal in result.message
    assert odd_portal.taken <= 8, "retries back off"


def test_a_discovery_portal_that_is_no_target_is_named(odd_portal: Listener, host_playbook: Playbook) -> None:
    began = time.monotonic()
    result = host_playbook.one("iscsi_portal", {"portals": [odd_portal.portal], "wait_timeout": 3})
    assert time.monotonic() - began < 40
    assert odd_portal.portal in result.message + "".join(result.warnings)


LONG = "long-enough-secret"
BAD_INPUT: list[tuple[str, dict[str, Any], str, str]] = [
    ("iscsi_target_login", {"target": "iqn.db"}, "target", "'iqn.db'"),
    ("iscsi_target_login", {"target": "iqn.2026-11.com.example:d b"}, "target", "' '"),
    ("iscsi_target_login", {"target": IQN, "portals": ["192.0.2.1:0"]}, "portals[0]", "from 1 to 65535"),
    ("iscsi_target_login", {"target": IQN, "portals": ["192.0.2.1:70000"]}, "portals[0]", "'70000'"),
    ("iscsi_target_login", {"target": IQN, "portals": ["192.0.2.1", "192.0.2.1:3260"]}, "portals", "twice"),
    ("iscsi_target_login", {"target": IQN, "portals": ["192.0.2.1"], "min_paths": 2}, "min_paths", "2"),
    ("iscsi_target_login", {"target": IQN, "min_paths": 0}, "min_paths", "0"),
    ("iscsi_target_login", {"target": IQN, "noop_interval": -1}, "noop_interval", "-1"),
    ("iscsi_portal", {"portals": ["[::1:3260"]}, "portals[0]", "'['"),
    ("iscsi_portal", {"portals": ["::1", "[0::1]:3260"]}, "portals", "twice"),
    ("iscsi_chap", {"target": IQN, "user": "u", "secret": "eleven-byte"}, "secret", "12 bytes"),
    ("iscsi_chap", {"target": IQN, "user": "u", "secret": LONG, "mutual_secret": LONG}, "mutual_secret", "same"),
    ("iscsi_persistent", {"target": IQN, "volumes": [{"name": "a/b", "lun": 0}]}, "volumes[0].name", "'a/b'"),
    ("iscsi_persistent", {"target": IQN, "volumes": [{"name": "a", "lun": 99999}]}, "volumes[0].lun", "99999"),
    (
        "iscsi_persistent",
        {"target": IQN, "volumes": [{"name": "a", "lun": 0}, {"name": "b", "lun": 0}]},
        "volumes",
        "twice",
    ),
    (
        "iscsi_persistent",
        {"target": IQN, "volumes": [{"name": "a", "identity": "x"}]},
        "volumes[0].identity",
        "'x'",
    ),
    ("mpio_policy", {"volume": "nobody", "policy": "round_robin"}, "volume", "missing"),
    ("iscsi_config", {"document": {"version": 2}}, "document.version", "upgrade the agent"),
]


def test_bad_input_is_one_error_that_names_option_value_and_remedy_before_anything_changes(
    agent_host: AgentHost, host_playbook: Playbook
) -> None:
    tasks = [host_playbook.task(module, options, ignore_errors=True) for module, options, _, _ in BAD_INPUT]
    done = host_playbook.run(*tasks)
    wrong = [
        (module, options, result.message)
        for result, (module, options, option, words) in zip(done.results, BAD_INPUT, strict=True)
        if not (
            result.outcome == "ignored"
            and not result.changed
            and result.message.startswith(f"{option}")
            and words in result.message
            and result.result["error"]["name"].startswith("ISDSC_")
        )
    ]
    assert wrong == []
    assert "eleven-byte" not in json.dumps([result.result for result in done.results])
    assert agent_host.get("/v1/status")["generation"] == 0
