#!/usr/bin/python

# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_info
short_description: Show the iSCSI storage of a host
description:
  - Returns what is declared for the iSCSI storage of a host, what is there, and where the two differ.
  - Reads from the agent and changes nothing. It causes no traffic to targets.
author:
  - The Blockfleet authors (!UNKNOWN)
version_added: 0.1.0
extends_documentation_fragment:
  - blockfleet.iscsi._agent
  - blockfleet.iscsi._attributes
  - blockfleet.iscsi._attributes.info_module
options:
  gather_subset:
    description:
      - What to return. V(all) stands for all of it. A C(!) before a name leaves it out.
      - V(status) are targets, sessions, and volumes with their conditions.
      - V(desired) is the declared state, V(observed) what the engine has, and V(drift) what would be done to bring
        the second to the first.
      - V(version) are the versions of the agent and of the engine.
    type: list
    elements: str
    choices: [all, status, desired, observed, drift, version, "!status", "!desired", "!observed", "!drift", "!version"]
    default: [status]
notes:
  - Everything here can be had from the read-only socket of the agent too, C(/run/blockfleet/read.sock), which a group
    may use. Give its path as O(agent_socket).
seealso:
  - module: blockfleet.iscsi.iscsi_config
"""

EXAMPLES = r"""
- name: Look at the storage of the host
  blockfleet.iscsi.iscsi_info:
  register: storage

- name: Fail where a volume does not have all its paths
  ansible.builtin.assert:
    that: item.phase == 'online'
    fail_msg: "{{ item.name }} is {{ item.phase }}"
  loop: "{{ storage.status.volumes }}"
  loop_control:
    label: "{{ item.name }}"

- name: Report what changed behind the agent's back, without becoming root
  blockfleet.iscsi.iscsi_info:
    agent_socket: /run/blockfleet/read.sock
    gather_subset: [drift]
  register: storage
  become: false

- name: Show the drift
  ansible.builtin.debug:
    msg: "{{ storage.drift.actions | map(attribute='text') }}"
"""

RETURN = r"""
status:
  description: Targets, sessions, and volumes with their conditions.
  returned: when V(status) is in O(gather_subset)
  type: dict
  contains:
    generation:
      description: Generation of the declared state.
      type: int
      returned: always
      sample: 7
    in_sync:
      description: Whether the host is in the declared state.
      type: bool
      returned: always
      sample: true
    initiator:
      description: Name and alias of the host as an initiator.
      type: dict
      returned: always
      sample: {name: "iqn.2026-11.com.example:host1", alias: ""}
    engine:
      description: Whether the engine can be reached, and which one it is.
      type: dict
      returned: always
      sample: {reachable: true, instance: 8f0c, version: 0.1.0, pid: 4711}
    portals:
      description: Discovery portals with their conditions.
      type: list
      elements: dict
      returned: always
      sample: []
    targets:
      description: Targets with their sessions and conditions.
      type: list
      elements: dict
      returned: always
      sample: []
      contains:
        name:
          description: Name of the target.
          type: str
          returned: always
          sample: iqn.2026-11.com.example:db
        sessions:
          description: Its sessions, with what they negotiated and count.
          type: list
          elements: dict
          returned: always
          contains:
            portal:
              description: The portal.
              type: str
              returned: always
              sample: 192.0.2.10:3260
            phase:
              description: V(connecting), V(logged_in), V(recovering), V(failed), or V(closing).
              type: str
              returned: always
              sample: logged_in
            negotiated:
              description: What the login agreed on, by the names of the keys of RFC 3720.
              type: dict
              returned: always
              sample: {ErrorRecoveryLevel: "2", MaxConnections: "4"}
            counters:
              description: What the engine counts of the session, its recoveries among it.
              type: dict
              returned: always
              sample: {commands: 48}
            connection_set:
              description: The connections that it shall have, and the policy over them.
              type: dict
              returned: always
              sample: {leading: {weight: 0, standby: false}, further: [], policy: round_robin}
            connections:
              description: The connections that it has while it is logged in, the leading one first.
              type: list
              elements: dict
              returned: always
              contains:
                cid:
                  description: Connection id, none before the first login of the connection.
                  type: int
                  returned: always
                  sample: 0
                portal:
                  description: The portal that it leads to.
                  type: str
                  returned: always
                  sample: 192.0.2.10:3260
                phase:
                  description: V(connecting), V(logged_in), V(recovering), V(leaving), or V(failed).
                  type: str
                  returned: always
                  sample: logged_in
                active:
                  description: Whether the policy sends it commands now, or holds it in reserve.
                  type: bool
                  returned: always
                  sample: true
                weight:
                  description: Its weight.
                  type: int
                  returned: always
                  sample: 0
                standby:
                  description: Whether it is declared to be held in reserve.
                  type: bool
                  returned: always
                  sample: false
                commands:
                  description: SCSI commands that it was given in this session.
                  type: int
                  returned: always
                  sample: 41
                in_flight:
                  description: SCSI commands that have no answer yet.
                  type: int
                  returned: always
                  sample: 3
                bytes_in:
                  description: Bytes of data read.
                  type: int
                  returned: always
                  sample: 65536
                bytes_out:
                  description: Bytes of data written.
                  type: int
                  returned: always
                  sample: 4096
                error:
                  description: Why it is not logged in, empty where it is.
                  type: str
                  returned: always
                  sample: ""
    volumes:
      description: Volumes with their sockets, sizes, paths, and conditions.
      type: list
      elements: dict
      returned: always
      sample: []
    problems:
      description: What is not as it should be.
      type: list
      elements: dict
      returned: always
      sample: []
    degraded:
      description: Why the agent can only look and not change anything, empty where it can.
      type: str
      returned: always
      sample: ""
desired:
  description: The declared state. Of a secret it shows whether there is one, its fingerprint, and when it changed.
  returned: when V(desired) is in O(gather_subset)
  type: dict
  contains:
    generation:
      description: Generation of the declared state.
      type: int
      returned: always
      sample: 7
    document:
      description: The document, with the fields of O(blockfleet.iscsi.iscsi_config#module:document).
      type: dict
      returned: always
      sample: {version: 1, targets: []}
observed:
  description: What the engine has, which are sessions with negotiated values and counters, logical units, and volumes.
  returned: when V(observed) is in O(gather_subset)
  type: dict
drift:
  description: What would be done to bring the host back to the declared state.
  returned: when V(drift) is in O(gather_subset)
  type: dict
  contains:
    changed:
      description: Whether there is drift.
      type: bool
      returned: always
      sample: false
    actions:
      description: The steps, as the modules that change something return them.
      type: list
      elements: dict
      returned: always
      sample: []
version:
  description: Versions of the agent, of its API, and of the engine.
  returned: when V(version) is in O(gather_subset)
  type: dict
  sample: {agent_version: 0.1.0, api_version: 1, engine: {reachable: true, version: 0.1.0}}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _convergence, _options

SUBSETS = ("status", "desired", "observed", "drift", "version")


def wanted(gather_subset: list[str]) -> list[str]:
    """Return the subsets that ``gather_subset`` asks for; with exclusions only, all but those."""
    included = [name for name in gather_subset if not name.startswith("!")]
    excluded = {name[1:] for name in gather_subset if name.startswith("!")}
    if "all" in included or not included:
        included = list(SUBSETS)
    return [name for name in SUBSETS if name in included and name not in excluded]


def main() -> None:
    """Run the module."""
    choices = ["all", *SUBSETS, *("!" + name for name in SUBSETS)]
    spec = _options.merged(
        _options.agent(),
        {"gather_subset": {"type": "list", "elements": "str", "choices": choices, "default": ["status"]}},
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    result: dict[str, t.Any] = {}
    with _convergence.agent_errors(module):
        client = _convergence.client_of(module)
        for subset in wanted(module.params["gather_subset"]):
            answer = client.get(f"/v1/{subset}")
            result[subset] = {key: value for key, value in answer.items() if key != "format_version"}
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
