#!/usr/bin/python

# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: mpio_policy
short_description: Declare how I/O is spread over the paths of iSCSI volumes
description:
  - Declares the multipath policy of a volume, of all volumes of a target, or of all volumes of the host.
    The narrowest one counts.
  - Policies change while volumes are in use. No I/O is interrupted.
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
      - Target whose volumes follow the policy.
      - Exactly one of O(target), O(volume), and O(default) is needed.
    type: str
  volume:
    description:
      - Volume that follows the policy. It has to be declared, see M(blockfleet.iscsi.iscsi_persistent).
    type: str
  default:
    description:
      - Make the policy the one of every volume that has none of its own and none of its target.
    type: bool
  policy:
    description:
      - V(fail_over_only) uses one path, and another when that fails.
      - V(round_robin) uses all paths in turn.
      - V(round_robin_with_subset) uses those in turn that are not in standby, and one of the others when there is none.
      - V(weighted_path) uses the one with the lowest weight.
      - V(least_queue_depth) uses the one that the fewest commands are in flight on.
      - V(service_time) uses the one that is expected to answer first, by how fast each has answered lately.
      - Paths that the target says are worse (ALUA) are used only where it has no better ones, whatever the policy is.
      - Needed with O(state=present).
    type: str
    choices: [fail_over_only, round_robin, round_robin_with_subset, weighted_path, least_queue_depth, service_time]
  failback:
    description:
      - Whether I/O returns to a path that was lost and is back, from the one that took over. The agent's default is V(true).
      - With V(false), it stays where it is until that path is lost, too, or until a policy, paths, or this option changes.
      - It matters for O(policy=fail_over_only), O(policy=weighted_path), and the reserve of
        O(policy=round_robin_with_subset).
      - Left out, it stays as it is declared.
    type: bool
    version_added: 0.1.0
  paths:
    description:
      - Paths that are not ordinary ones, for O(target) or O(volume). What a volume declares takes the place of all that
        its target does.
      - The list is taken whole. V([]) makes all paths ordinary. Left out, it stays as it is declared.
    type: list
    elements: dict
    version_added: 0.1.0
    suboptions:
      portal:
        description:
          - The portal that the path leads through, as C(host), C(host:port), or C([IPv6]:port). It has to be one of
            those that the target is logged in at.
        type: str
        required: true
      primary:
        description:
          - Make it the first choice among equals, before the one that the target prefers. One path at most can be it.
        type: bool
      standby:
        description:
          - Hold it in reserve with O(policy=fail_over_only) and O(policy=round_robin_with_subset).
            Not all paths can be.
        type: bool
      weight:
        description:
          - From V(0), which is the agent's default, to V(65535). With O(policy=weighted_path) the lightest path that
            works carries the I/O.
        type: int
  state:
    description:
      - Whether a policy shall be declared. With V(absent), the next wider one counts, and V(fail_over_only) where
        there is none. O(failback) and O(paths) go with it.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: blockfleet.iscsi.iscsi_target_login
  - module: blockfleet.iscsi.iscsi_persistent
"""

EXAMPLES = r"""
- name: Use all paths of a target in turn
  blockfleet.iscsi.mpio_policy:
    target: iqn.2026-11.com.example:db
    policy: round_robin

- name: Keep one volume to one path at a time
  blockfleet.iscsi.mpio_policy:
    volume: db01-archive
    policy: fail_over_only

- name: Use one path, the second one only while the first is lost, and do not return by itself
  blockfleet.iscsi.mpio_policy:
    target: iqn.2026-11.com.example:db
    policy: fail_over_only
    paths:
      - portal: 192.0.2.10
        primary: true
    failback: false

- name: Use two paths in turn and keep the slow one in reserve
  blockfleet.iscsi.mpio_policy:
    volume: db01
    policy: round_robin_with_subset
    paths:
      - portal: "[2001:db8::10]:3260"
        standby: true

- name: Prefer the lightest path
  blockfleet.iscsi.mpio_policy:
    target: iqn.2026-11.com.example:db
    policy: weighted_path
    paths:
      - portal: 192.0.2.10
        weight: 10
      - portal: 192.0.2.11
        weight: 20

- name: Use all paths in turn wherever nothing else is said
  blockfleet.iscsi.mpio_policy:
    default: true
    policy: round_robin

- name: Let the target follow the default of the host again
  blockfleet.iscsi.mpio_policy:
    target: iqn.2026-11.com.example:db
    state: absent
"""

RETURN = r"""
volumes:
  description:
    - The volumes that the policy may concern, which are those of O(target), or O(volume), or all, with their paths.
  returned: success
  type: list
  elements: dict
  sample:
    - name: db01
      policy: fail_over_only
      failback: true
      phase: online
      paths:
        - portal: 192.0.2.10:3260
          phase: active
          primary: true
          standby: false
          weight: 0
          commands: 41
  contains:
    name:
      description: Name of the volume.
      type: str
      returned: always
      sample: db01
    policy:
      description: The policy at work, or in check mode the one before.
      type: str
      returned: always
      sample: fail_over_only
    failback:
      description: Whether I/O returns to a path that was lost and is back.
      type: bool
      returned: always
      sample: true
    phase:
      description: V(absent), V(online), V(degraded), V(queueing), or V(failed).
      type: str
      returned: always
      sample: online
    paths:
      description: Its paths.
      type: list
      elements: dict
      returned: always
      contains:
        portal:
          description: The portal that it leads through.
          type: str
          returned: always
          sample: 192.0.2.10:3260
        phase:
          description:
            - V(active) where the policy sends it I/O, V(standby) where it would work but is held in reserve,
              V(failed), V(fencing), or V(identity_mismatch).
          type: str
          returned: always
          sample: active
        primary:
          description: Whether it is the first choice.
          type: bool
          returned: always
          sample: true
        standby:
          description: Whether it is declared to be held in reserve.
          type: bool
          returned: always
          sample: false
        weight:
          description: Its weight.
          type: int
          returned: always
          sample: 0
        commands:
          description: SCSI commands that it was given.
          type: int
          returned: always
          sample: 41
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
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _convergence, _names, _options
from ansible_collections.blockfleet.iscsi.plugins.module_utils._agent_client import AgentClient

SPREAD = ("policy", *_options.spread())
"""What this module declares of a volume or a target."""

SHOWN = ("name", "policy", "failback", "phase")
SHOWN_OF_PATHS = ("phase", "primary", "standby", "weight")

FIELD_NAMES = (
    ("targets[0].name", "target"),
    *((f"targets[0].{option}", option) for option in SPREAD),
    *((f"volumes[0].{option}", option) for option in SPREAD),
    ("volumes[0]", "volume"),
    ("absent.policies", "target"),
)


def change_for(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the change that the options ask for."""
    absent = params["state"] == "absent"
    declared = _options.given({option: params[option] for option in SPREAD})
    if params["volume"] is not None:
        # A merge takes null for "not declared"; absent.policies knows targets only.
        fields = dict.fromkeys(SPREAD) if absent else declared
        return {"document": {"volumes": [{"name": params["volume"], **fields}]}}
    if absent:
        return {"absent": {"policies": [params["target"] or "default"]}}
    if params["target"] is not None:
        return {"document": {"targets": [{"name": params["target"], **declared}]}}
    return {"document": declared}


def _concerned(volume: dict[str, t.Any], params: dict[str, t.Any]) -> bool:
    if params["volume"] is not None:
        return bool(volume.get("name") == params["volume"])
    target = params["target"]
    return target is None or _names.folded(str(volume.get("target", ""))) == _names.folded(target)


def volumes_of(client: AgentClient, params: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    """Return the volumes that the policy may concern, with their paths."""
    return [
        {
            **{key: volume.get(key) for key in SHOWN},
            "paths": [
                {
                    "portal": str(path.get("session", "")).rpartition("@")[2],
                    **{key: path.get(key) for key in SHOWN_OF_PATHS},
                    "commands": path.get("counters", {}).get("issued", 0),
                }
                for path in volume.get("paths", [])
            ],
        }
        for volume in client.get("/v1/status").get("volumes", [])
        if _concerned(volume, params)
    ]


def main() -> None:
    """Run the module."""
    spec = _options.merged(
        _options.agent(),
        _options.apply(),
        _options.spread(),
        {
            "target": {"type": "str"},
            "volume": {"type": "str"},
            "default": {"type": "bool"},
            "policy": {"type": "str", "choices": _options.POLICIES},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    )
    module = AnsibleModule(
        argument_spec=spec,
        required_one_of=[("target", "volume", "default")],
        mutually_exclusive=[("target", "volume", "default")],
        required_if=[("state", "present", ("policy",))],
        supports_check_mode=True,
    )
    if module.params["default"] is False:
        module.fail_json(msg="default: false says nothing: write default=true, or name a target or a volume")
    if module.params["default"] and module.params["paths"] is not None:
        module.fail_json(msg="paths: they are those of a target: name a target or a volume, or leave paths out")
    if module.params["state"] == "absent" and any(module.params[option] is not None for option in _options.spread()):
        module.fail_json(msg="state: absent takes failback and paths away with the policy: leave them out")
    _convergence.converge(
        module,
        change_for(module.params),
        field_names=FIELD_NAMES,
        completion=lambda client, _plan: {"volumes": volumes_of(client, module.params)},
    )


if __name__ == "__main__":
    main()
