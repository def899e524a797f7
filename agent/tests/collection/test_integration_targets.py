# SPDX-License-Identifier: GPL-3.0-or-later
"""The integration targets of the collection (tests/integration/targets), against the agent, the engine and tgt."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.collection.host import AgentHost
from tests.collection.playbook import ROOT, Playbook
from tests.peers.tgt import Tgt

TARGETS = ROOT / "tests/integration/targets"
NAMES = sorted(path.name for path in TARGETS.iterdir() if not path.name.startswith("setup_"))
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
IQN = "iqn.2026-11.com.example:test"


def test_every_module_has_a_target() -> None:
    assert NAMES == MODULES


@pytest.mark.peer
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_target(name: str, tgt6: Tgt, agent_host: AgentHost, host_playbook: Playbook, tmp_path: Path) -> None:
    tgt6.add_target(IQN)
    tgt6.add_unit(IQN, 16 << 20)
    host_playbook.limit = 240.0
    host_playbook.environment["ANSIBLE_ROLES_PATH"] = str(TARGETS)
    run = host_playbook.run(
        {"name": name, "ansible.builtin.include_role": {"name": name}},
        variables={"storage_target": IQN, "storage_portals": list(tgt6.portals), "storage_lun": 1},
    )
    assert run.returncode == 0, run.output
    assert run.recap["failed"] == 0
