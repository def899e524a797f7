# SPDX-License-Identifier: GPL-3.0-or-later
"""Eleven defects that playbooks have met elsewhere (docs/migration-from-open_iscsi.md), none of them possible here.

Each is a real playbook run against tgt; who is logged in is judged by what tgt says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.collection.host import AgentHost
from tests.collection.playbook import Playbook, TaskResult
from tests.peers.tgt import Account, Tgt

pytestmark = pytest.mark.peer

BASE = "iqn.2026-11.com.example"
DB = f"{BASE}:db"
IPV4, IPV6 = "127.0.0.1", "::1"
OLD = Account("host1", "the-first-secret")
NEW = Account("host1", "the-second-secret")


@pytest.fixture
def target(tgt6: Tgt) -> Tgt:
    """A tgt with an IPv4 and an IPv6 portal and one target, without CHAP."""
    tgt6.add_target(DB)
    tgt6.add_unit(DB, 16 << 20)
    return tgt6


@pytest.fixture
def chap_target(tgt6: Tgt) -> Tgt:
    """The same, but it demands CHAP."""
    tgt6.add_target(DB, account=OLD)
    tgt6.add_unit(DB, 16 << 20)
    return tgt6


def addresses(target: Tgt, name: str = DB) -> list[str]:
    """Return from which addresses, and so at which portals, tgt has connections."""
    return sorted(connection.address for connection in target.connections(name))


def rotate(target: Tgt, account: Account) -> None:
    """Give the target another secret for its user; tgt wants the account made anew."""
    target._tell("account", "delete", "--user", account.user)
    target._tell("account", "new", "--user", account.user, "--password", account.secret)
    target._tell("account", "bind", "--tid", "1", "--user", account.user)


class Host:
    """Runs tasks against the agent of the host."""

    def __init__(self, playbook: Playbook) -> None:
        self._playbook = playbook

    def __call__(self, module: str, *arguments: str, ok: bool = True, **options: Any) -> TaskResult:
        result = self._playbook.one(module, options, *arguments)
        assert (result.outcome == "ok") is ok, result.message
        return result

    def login(self, *arguments: str, name: str = DB, ok: bool = True, **options: Any) -> TaskResult:
        return self("iscsi_target_login", *arguments, target=name, ok=ok, **options)


@pytest.fixture
def host(host_playbook: Playbook) -> Host:
    return Host(host_playbook)


def test_a_naming_one_portal_logs_in_at_that_portal_only(target: Tgt, host: Host) -> None:
    host("iscsi_portal", portals=[target.portals[0]])
    assert host.login(portals=[target.portals[0]]).changed
    assert addresses(target) == [IPV4]
    assert not host.login(portals=[target.portals[0]]).changed
    assert host.login(portals=[target.portals[1]]).changed
    assert addresses(target) == [IPV4, IPV6]


def test_b_logging_out_of_one_portal_leaves_the_others(target: Tgt, host: Host) -> None:
    host.login(portals=list(target.portals))
    before = [c for c in target.connections(DB) if c.address == IPV6]
    assert host.login(portals=[target.portals[0]], state="absent").changed
    assert target.connections(DB) == before, "the other session is the very same"
    assert not host.login(portals=[target.portals[0]], state="absent").changed


def test_c_check_mode_reaches_no_target_and_reports_no_change_where_there_is_none(
    target: Tgt, host: Host, agent_host: AgentHost
) -> None:
    assert host.login("--check", portals=list(target.portals)).changed
    assert target.connections(DB) == []
    assert agent_host.get("/v1/desired")["document"]["targets"] == []
    host.login(portals=list(target.portals))
    before = target.connections(DB), agent_host.logins(DB), agent_host.get("/v1/status")["generation"]
    for result in (
        host.login("--check", portals=list(target.portals)),
        host("iscsi_info", "--check", gather_subset=["all"]),
        host("iscsi_info", gather_subset=["all"]),
    ):
        assert not result.changed
    assert (target.connections(DB), agent_host.logins(DB), agent_host.get("/v1/status")["generation"]) == before


def test_d_an_ipv6_portal_that_is_logged_in_is_found_in_any_spelling(target: Tgt, host: Host) -> None:
    port = target.portals[1].rpartition(":")[2]
    host("iscsi_portal", portals=[target.portals[1]])
    assert host.login(portals=[target.portals[1]]).changed
    for spelling in (target.portals[1], f"[0:0:0:0:0:0:0:1]:{port}", f"[0000::0001]:{port}"):
        assert not host.login(portals=[spelling]).changed
        assert not host("iscsi_portal", portals=[spelling]).changed
    assert addresses(target) == [IPV6]


def test_e_the_targets_of_a_portal_can_be_logged_in_at_without_knowing_their_names(
    target: Tgt, host_playbook: Playbook
) -> None:
    found = host_playbook.task("iscsi_portal", {"portals": [target.portals[0]]}, register="found")
    login = host_playbook.task(
        "iscsi_target_login",
        {"target": "{{ item.target }}", "portals": [target.portals[0]]},
        loop="{{ found.targets }}",
    )
    nameless = host_playbook.task("iscsi_target_login", {"portals": [target.portals[0]]}, ignore_errors=True)
    run = host_playbook.run(found, login, nameless)
    assert [t["target"] for t in run[0].result["targets"]] == [DB]
    assert addresses(target) == [IPV4]
    assert run.results[-1].outcome == "ignored"
    assert "missing required arguments: target" in run.results[-1].message


def test_f_several_targets_are_logged_out_of_in_one_task(tgt6: Tgt, host: Host) -> None:
    names = [f"{BASE}:one", f"{BASE}:two", f"{BASE}:three"]
    for name in names:
        tgt6.add_target(name)
        tgt6.add_unit(name, 1 << 20)
    targets = [{"name": name, "portals": [tgt6.portals[0]]} for name in names]
    assert host("iscsi_config", mode="replace", document={"targets": targets}).changed
    assert [addresses(tgt6, name) for name in names] == [[IPV4]] * 3
    result = host("iscsi_config", mode="replace", document={"targets": targets[:1]})
    assert sorted(
        a["subject"].partition("@")[0] for a in result.result["actions"] if a["verb"] == "logout"
    ) == sorted(names[1:])
    assert [addresses(tgt6, name) for name in names] == [[IPV4], [], []]


def test_g_a_new_secret_on_a_target_that_is_logged_in_is_a_change(
    chap_target: Tgt, host: Host, agent_host: AgentHost
) -> None:
    portals = [chap_target.portals[0]]
    assert host("iscsi_chap", target=DB, user=OLD.user, secret=OLD.secret).changed
    assert host.login(portals=portals).changed
    assert not host("iscsi_chap", target=DB, user=OLD.user, secret=OLD.secret).changed
    rotate(chap_target, NEW)
    predicted = host("iscsi_chap", "--check", target=DB, user=NEW.user, secret=NEW.secret, relogin="now")
    result = host("iscsi_chap", target=DB, user=NEW.user, secret=NEW.secret, relogin="now")
    assert (predicted.changed, result.changed) == (True, True)
    assert predicted.result["actions"] == result.result["actions"]
    assert addresses(chap_target) == [IPV4]
    assert agent_host.logins(DB) == {portals[0]: 2}, "logged in again, with the new secret"
    assert not host("iscsi_chap", target=DB, user=NEW.user, secret=NEW.secret).changed
    shown = json.dumps([predicted.result, result.result, predicted.diff, result.diff])
    assert OLD.secret not in shown
    assert NEW.secret not in shown


def test_g_a_new_secret_can_wait_for_the_next_login(chap_target: Tgt, host: Host, agent_host: AgentHost) -> None:
    portals = [chap_target.portals[0]]
    host("iscsi_chap", target=DB, user=OLD.user, secret=OLD.secret)
    host.login(portals=portals)
    assert host("iscsi_chap", target=DB, user=NEW.user, secret=NEW.secret).changed
    assert agent_host.logins(DB) == {portals[0]: 1}, "the session that is up stays"
    assert not host("iscsi_chap", target=DB, user=NEW.user, secret=NEW.secret).changed


def test_h_a_name_that_begins_like_another_is_another_target(tgt6: Tgt, host: Host) -> None:
    one, ten = f"{BASE}:t1", f"{BASE}:t10"
    for name in (one, ten):
        tgt6.add_target(name)
        tgt6.add_unit(name, 1 << 20)
    portals = [tgt6.portals[0]]
    assert host.login(name=ten, portals=portals).changed
    assert host.login(name=one, portals=portals).changed
    assert (addresses(tgt6, one), addresses(tgt6, ten)) == ([IPV4], [IPV4])
    assert host.login(name=one, portals=portals, state="absent").changed
    assert (addresses(tgt6, one), addresses(tgt6, ten)) == ([], [IPV4])


@pytest.fixture
def argument_watch() -> Iterator[list[str]]:
    """Collect the arguments and environments of all processes, over and over, while the test runs."""
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        known: set[tuple[str, bytes]] = set()
        while not done.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        entry = (process.name + name, (process / name).read_bytes())
                    except OSError:
                        continue  # it ended, or is not ours
                    if entry not in known:
                        known.add(entry)
                        seen.append(entry[1].decode(errors="replace"))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    done.set()
    thread.join()


def test_i_no_process_ever_has_the_secret_in_its_arguments(
    chap_target: Tgt, host_playbook: Playbook, agent_host: AgentHost, tmp_path: Path, argument_watch: list[str]
) -> None:
    vault = tmp_path / "vault.yml"
    vault.write_text(json.dumps({"vault_secret": NEW.secret}))
    rotate(chap_target, NEW)
    argument_watch.clear()  # tgtadm has just had it there, which is why open-iscsi's way is a bad one
    chap = {"target": DB, "user": NEW.user, "secret": "{{ vault_secret }}"}
    host_playbook.environment["ANSIBLE_PIPELINING"] = "0"  # so that the module's file shows in the arguments
    run = host_playbook.run(
        host_playbook.task("iscsi_chap", chap),
        host_playbook.task("iscsi_target_login", {"target": DB, "portals": [chap_target.portals[0]]}),
        arguments=("-e", f"@{vault}", "-vvv"),
    )
    assert run.returncode == 0, run.output
    assert addresses(chap_target) == [IPV4]
    assert any("AnsiballZ_iscsi_chap" in text for text in argument_watch), "the watch saw the module run"
    assert [text for text in argument_watch if NEW.secret in text] == []
    assert NEW.secret not in run.output
    assert NEW.secret not in agent_host.log


def test_j_discovery_changes_nothing_but_what_is_known_of_targets(
    chap_target: Tgt, host: Host, agent_host: AgentHost
) -> None:
    portals = [chap_target.portals[0]]
    host("iscsi_portal", portals=portals)
    host("iscsi_chap", target=DB, user=OLD.user, secret=OLD.secret)
    host.login(portals=portals, lifetime="boot", noop_interval=17)
    before = agent_host.get("/v1/desired"), chap_target.connections(DB), agent_host.logins(DB)
    assert not host("iscsi_portal", portals=portals).changed
    agent_host.ask("POST", "/v1/discover", {"portals": None})
    assert not host.login(portals=portals, lifetime="boot", noop_interval=17).changed
    assert (agent_host.get("/v1/desired"), chap_target.connections(DB), agent_host.logins(DB)) == before


def test_k_a_login_that_the_target_refuses_fails_the_task(chap_target: Tgt, host: Host) -> None:
    portals = [chap_target.portals[0]]
    host("iscsi_chap", target=DB, user=OLD.user, secret="not-the-right-one")
    result = host.login(portals=portals, wait_timeout=5, ok=False)
    assert result.changed, "the login is declared and being tried"
    assert "authentication" in result.message.lower()
    assert result.result["status"] == "not_verified"
    assert addresses(chap_target) == []
    assert not host.login(portals=portals, wait_timeout=1, ok=False).changed
    host("iscsi_chap", target=DB, user=OLD.user, secret=OLD.secret, relogin="now")
    assert addresses(chap_target) == [IPV4]
