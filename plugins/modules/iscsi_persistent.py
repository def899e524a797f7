#!/usr/bin/python

# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_persistent
short_description: Declare the volumes of a host, by name, for good
description:
  - Declares logical units as volumes under names of your own. A volume is served on a Unix socket that speaks NBD
    as long as it is declared, now and after every reboot, over all sessions that show its logical unit.
  - A volume is bound to the identity of its logical unit (VPD page 83h), which is checked after every login.
    When a target comes back with another disk under the same number, the volume is not served.
author:
  - The Blockfleet authors (!UNKNOWN)
version_added: 0.1.0
extends_documentation_fragment:
  - blockfleet.iscsi._agent
  - blockfleet.iscsi._apply
  - blockfleet.iscsi._attributes
  - blockfleet.iscsi._attributes.state_module
options:
  target:
    description:
      - Target of all O(volumes) that name none of their own.
    type: str
  volumes:
    description:
      - The volumes.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - Name of the volume, 1 to 64 letters, digits, C(.), C(_), or C(-), starting with a letter or digit.
        type: str
        required: true
      target:
        description:
          - Target of this volume, instead of O(target).
        type: str
      lun:
        description:
          - Number of the logical unit, 0 to 16383. With O(state=present), O(volumes[].lun) or O(volumes[].identity)
            is needed.
        type: int
      identity:
        description:
          - Identity of the logical unit as M(blockfleet.iscsi.iscsi_info) shows it, for example
            V(naa.600140500000000000000000000e0001).
          - With it, the volume is found under any number, and with both, both must agree.
        type: str
      policy:
        description:
          - How I/O is spread over the paths of this volume. Left out, it stays as it is declared, and where nothing is,
            the policy of the target counts. See M(blockfleet.iscsi.mpio_policy).
        type: str
        choices: [fail_over_only, round_robin, round_robin_with_subset, weighted_path, least_queue_depth, service_time]
      read_only:
        description:
          - Whether writes are refused.
        type: bool
        default: false
      attach:
        description:
          - What the volume is made into. V(socket) leaves it at the NBD socket, which C(nbdfuse), C(nbd-client),
            C(qemu), C(fio), and others open.
        type: str
        choices: [socket]
        default: socket
  exclusive:
    description:
      - Remove every volume of this host that O(volumes) does not name, also volumes of other targets.
    type: bool
    default: false
  state:
    description:
      - Whether the volumes shall be declared. With V(absent), only their names count.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: blockfleet.iscsi.iscsi_target_login
  - module: blockfleet.iscsi.mpio_policy
"""

EXAMPLES = r"""
- name: Serve two logical units under names
  blockfleet.iscsi.iscsi_persistent:
    target: iqn.2026-11.com.example:db
    volumes:
      - name: db01
        lun: 0
      - name: db01-archive
        lun: 1
        read_only: true
  register: storage

- name: Show what to open
  ansible.builtin.debug:
    msg: "{{ item.name }} is at {{ item.socket }}"
  loop: "{{ storage.volumes }}"

- name: Bind a volume to its identity from the start
  blockfleet.iscsi.iscsi_persistent:
    volumes:
      - name: logs
        target: iqn.2026-11.com.example:logs
        identity: naa.600140500000000000000000000e0001

- name: Stop serving a volume that nobody needs any more
  blockfleet.iscsi.iscsi_persistent:
    volumes:
      - name: db01-archive
    state: absent
"""

RETURN = r"""
actions:
  description:
    - What was done to bring the host to the declared state, or what would be done in check mode.
    - Both document-level steps (a target is declared) and their consequences (a session logs in) are listed.
  returned: success, and on failure where the agent had a plan
  type: list
  elements: dict
  contains:
    verb:
      description: What is done.
      type: str
      returned: always
      sample: login
    kind:
      description: To what kind of thing it is done.
      type: str
      returned: always
      sample: session
    subject:
      description: The thing, for a session C(target@portal).
      type: str
      returned: always
      sample: iqn.2026-11.com.example:db@192.0.2.10:3260
    text:
      description: The same as one line for people.
      type: str
      returned: always
      sample: + session iqn.2026-11.com.example:db via 192.0.2.10:3260
    origin:
      description: V(intended) where the declared state changed, V(corrective) where the host had drifted from it.
      type: str
      returned: always
      sample: intended
    disruption:
      description: V(none), V(relogin) (I/O on one path pauses), or V(interrupts) (a volume loses its last path).
      type: str
      returned: always
      sample: none
    refused:
      description: Why the step is not permitted without O(allow_disruption=true), empty where it is.
      type: str
      returned: always
      sample: ""
summary:
  description: How many actions add, change, and remove something.
  returned: success
  type: dict
  sample: {add: 3, change: 0, remove: 0}
generation:
  description: Generation of the declared state, which counts its changes.
  returned: success
  type: int
  sample: 7
status:
  description:
    - How the host stood when the agent stopped looking, V(in_sync), V(partial) (some paths are missing, but every
      target has as many as its O(blockfleet.iscsi.iscsi_target_login#module:min_paths)), or V(not_verified).
    - With V(not_verified) the module fails. RV(ignore:changed) says whether something was changed all the same.
  returned: when not in check mode
  type: str
  sample: in_sync
waited:
  description: Seconds that the agent waited for the host to get there.
  returned: when not in check mode
  type: float
  sample: 0.4
problems:
  description: What is not as it should be.
  returned: success, and on failure where the agent had a plan
  type: list
  elements: dict
  sample: []
  contains:
    code:
      description: Stable number of the problem, see the list of error codes in the agent's documentation.
      type: int
      returned: always
      sample: 4026466313
    name:
      description: Stable name of the problem.
      type: str
      returned: always
      sample: ISDSC_AUTHENTICATION_FAILURE
    message:
      description: What failed, why, and what to do.
      type: str
      returned: always
      sample: "cannot log in to iqn.2026-11.com.example:db at 192.0.2.10:3260: authentication failed"
    subject:
      description: The thing that has the problem.
      type: str
      returned: always
      sample: iqn.2026-11.com.example:db@192.0.2.10:3260
error:
  description: What the agent said when it refused the request.
  returned: when the agent refused the request
  type: dict
  contains:
    code:
      description: Stable number of the error.
      type: int
      returned: always
      sample: 4026466385
    name:
      description: Stable name of the error.
      type: str
      returned: always
      sample: ISDSC_INVALID_ISCSI_NAME
    option:
      description: The option that is at fault.
      type: str
      returned: when one option is at fault
      sample: target
    field:
      description: The field of the agent's document that is at fault, empty where none is.
      type: str
      returned: always
      sample: targets[0].name
    remedy:
      description: What to do.
      type: str
      returned: always
      sample: write iqn.YYYY-MM.reversed.domain[:text]
    http_status:
      description: HTTP status of the agent's answer.
      type: int
      returned: always
      sample: 422
volumes:
  description:
    - The volumes that the task names, after the module has run, or as they are in check mode.
    - A volume that is not there yet, or not any more, is not in the list.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the volume.
      type: str
      returned: always
      sample: db01
    target:
      description: Its target.
      type: str
      returned: always
      sample: iqn.2026-11.com.example:db
    lun:
      description: Number of its logical unit, V(null) where it was declared by identity.
      type: int
      returned: always
      sample: 0
    identity:
      description: Identity that it is bound to.
      type: str
      returned: always
      sample: naa.600140500000000000000000000e0001
    size:
      description: Size in bytes.
      type: int
      returned: always
      sample: 107374182400
    block_size:
      description: Size of a block in bytes.
      type: int
      returned: always
      sample: 512
    phase:
      description: V(online), V(degraded), V(queueing), V(failed), or V(absent) while it is declared but not served.
      type: str
      returned: always
      sample: online
    socket:
      description: Path of the NBD socket.
      type: str
      returned: always
      sample: /run/blockfleet/engine/volumes/db01.sock
    device:
      description: Path of what O(volumes[].attach) made of it.
      type: str
      returned: always
      sample: /run/blockfleet/engine/volumes/db01.sock
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _convergence, _options
from ansible_collections.blockfleet.iscsi.plugins.module_utils._agent_client import AgentClient

FIELD_NAMES = (("absent.volumes", "volumes"),)
SHOWN = ("name", "target", "lun", "identity", "size", "block_size", "phase", "socket", "device")


def change_for(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the change that the options ask for."""
    if params["state"] == "absent":
        return {"absent": {"volumes": [volume["name"] for volume in params["volumes"]]}}
    volumes = [
        _options.given({**volume, "target": volume["target"] or params["target"]}) for volume in params["volumes"]
    ]
    return {"document": {"volumes": volumes}, "exclusive": ["volumes"] if params["exclusive"] else []}


def fault_in(params: dict[str, t.Any]) -> str:
    """Return what is wrong with the options; empty when nothing is."""
    if params["state"] == "absent":
        return ""
    for index, volume in enumerate(params["volumes"]):
        if volume["target"] is None and params["target"] is None:
            return f"volumes[{index}].target: volume {volume['name']} has no target: give target, here or for all"
        if volume["lun"] is None and volume["identity"] is None:
            return f"volumes[{index}]: volume {volume['name']} names no logical unit: give lun or identity"
    return ""


def volumes_of(client: AgentClient, names: set[str]) -> list[dict[str, t.Any]]:
    """Return the volumes called ``names`` as the host has them."""
    return [
        {key: volume.get(key) for key in SHOWN}
        for volume in client.get("/v1/status").get("volumes", [])
        if volume.get("name") in names
    ]


def main() -> None:
    """Run the module."""
    volume = _options.volume()
    volume["read_only"]["default"] = False
    volume["attach"]["default"] = "socket"
    volume["name"] = {"type": "str", "required": True}
    volume["target"] = {"type": "str"}
    spec = _options.merged(
        _options.agent(),
        _options.apply(),
        {
            "target": {"type": "str"},
            "volumes": {"type": "list", "elements": "dict", "options": volume, "required": True},
            "exclusive": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    fault = fault_in(module.params)
    if fault:
        module.fail_json(msg=fault)
    names = {entry["name"] for entry in module.params["volumes"]}
    _convergence.converge(
        module,
        change_for(module.params),
        field_names=FIELD_NAMES,
        completion=lambda client, _plan: {"volumes": volumes_of(client, names)},
    )


if __name__ == "__main__":
    main()
