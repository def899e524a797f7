# SPDX-License-Identifier: GPL-3.0-or-later
"""A secret that goes into a task comes out nowhere but in the request to the agent."""

from __future__ import annotations

import importlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from tests.collection.fake_agent import FakeAgent, error, plan, report
from tests.collection.playbook import Playbook

IQN = "iqn.2026-11.com.example:db"
CANARIES = ("canary-of-the-host-1", "canary-of-the-target-2")
CHAP = {"user": "u", "secret": CANARIES[0], "mutual_secret": CANARIES[1]}
TASKS: list[tuple[str, dict[str, Any]]] = [
    ("iscsi_chap", {"target": IQN, **CHAP}),
    ("iscsi_portal", {"portals": ["192.0.2.10"], "chap": CHAP}),
    ("iscsi_config", {"document": {"targets": [{"name": IQN, "chap": CHAP}]}}),
    ("iscsi_config", {"document": {"discovery": {"portals": [{"portal": "192.0.2.10", "chap": CHAP}]}}}),
]


@pytest.fixture
def vault(tmp_path: Path) -> str:
    """Secrets in a file of their own, as they should be: ansible-playbook quotes the play where a task fails."""
    path = tmp_path / "vault.yml"
    path.write_text(json.dumps({"vault_secret": CANARIES[0], "vault_mutual": CANARIES[1]}))
    return f"@{path}"


def from_vault(options: Any) -> Any:
    """Replace the secrets in options by references to the vault."""
    text = json.dumps(options).replace(CANARIES[0], "{{ vault_secret }}").replace(CANARIES[1], "{{ vault_mutual }}")
    return json.loads(text)


def leaked(text: str) -> list[str]:
    return [canary for canary in CANARIES if canary in text]


@pytest.mark.parametrize("mode", ["apply", "check", "refused", "not verified"])
def test_no_output_shows_a_secret(agent: FakeAgent, playbook: Playbook, vault: str, mode: str) -> None:
    # An agent that says back what it got is worse than ours, and still nothing may show.
    echo = {"before": {}, "after": {"chap": CHAP}}
    agent.answers["/v1/apply"] = {
        "apply": (200, report(diff=echo)),
        "check": (500, {}),
        "refused": error(422, message=f"{CANARIES[0]} is too short", field="targets[0].chap.secret"),
        "not verified": (200, report(status="not_verified", diff=echo, warnings=(CANARIES[1],))),
    }[mode]
    agent.answers["/v1/plan"] = (200, plan(diff=echo))
    agent.answers["/v1/discover"] = (200, {"format_version": 1, "targets": [], "problems": []})
    arguments = ("-vvv", "--diff", "-e", vault, *(("--check",) if mode == "check" else ()))
    tasks = (playbook.task(module, from_vault(options), ignore_errors=True) for module, options in TASKS)
    run = playbook.run(*tasks, arguments=arguments)
    assert len(run.results) == len(TASKS)
    assert {r.outcome for r in run.results} == ({"ok"} if mode in ("apply", "check") else {"ignored"})
    assert leaked(run.output) == []
    assert leaked(json.dumps([r.result for r in run.results])) == []


def test_no_process_carries_a_secret_in_its_arguments_or_environment(
    agent: FakeAgent, playbook: Playbook, vault: str
) -> None:
    seen: list[str] = []
    looked_at: list[str] = []

    def look(connection: socket.socket) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    text = (process / name).read_bytes().decode(errors="replace")
                except OSError:
                    continue  # it ended, or is not ours
                looked_at.append(text)
                seen.extend(leaked(text))
        body = json.dumps(report()).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    agent.answers["/v1/apply"] = look
    playbook.environment["ANSIBLE_PIPELINING"] = "0"  # so that the module's file shows in the arguments
    assert playbook.one("iscsi_chap", from_vault(TASKS[0][1]), "-e", vault).outcome == "ok"
    assert any("AnsiballZ_iscsi_chap" in text for text in looked_at), "the module was running"
    assert seen == []


@pytest.mark.parametrize(("module", "options"), TASKS, ids=[f"{m}-{i}" for i, (m, _) in enumerate(TASKS)])
def test_the_log_of_the_managed_host_holds_no_secret(
    agent: FakeAgent, plugins: Path, monkeypatch: pytest.MonkeyPatch, module: str, options: dict[str, Any]
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(
        basic.AnsibleModule, "log", lambda _, msg, log_args=None: logged.append(f"{msg} {log_args}")
    )
    agent.answers["/v1/apply"] = (200, report())
    agent.answers["/v1/discover"] = (200, {"format_version": 1, "targets": [], "problems": []})
    source = importlib.import_module(f"ansible_collections.blockfleet.iscsi.plugins.modules.{module}")
    with patch_module_args({**options, "agent_socket": str(agent.path)}), pytest.raises(SystemExit):
        source.main()
    assert any("Invoked with" in line and str(agent.path) in line for line in logged)
    assert leaked("\n".join(logged)) == []


def test_the_agent_gets_the_secret_itself(agent: FakeAgent, playbook: Playbook, vault: str) -> None:
    agent.answers["/v1/apply"] = (200, report())
    playbook.one("iscsi_chap", from_vault(TASKS[0][1]), "-e", vault)
    ((_, body),) = agent.requests
    chap = body["document"]["targets"][0]["chap"]
    assert (chap["secret"], chap["mutual_secret"]) == CANARIES
