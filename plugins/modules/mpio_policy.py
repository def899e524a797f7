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
      - V(fail_over_only) uses one path and changes to another when it fails.
      - V(round_robin) uses all active paths in turn.
      - Needed with O(state=present).
    type: str
    choices: [fail_over_only, round_robin]
  state:
    description:
      - Whether a policy shall be declared. With V(absent), the next wider one counts, and V(fail_over_only) where
        there is none.
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
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _convergence, _options

FIELD_NAMES = (
    ("targets[0].name", "target"),
    ("targets[0].policy", "policy"),
    ("volumes[0].policy", "policy"),
    ("volumes[0]", "volume"),
    ("absent.policies", "target"),
)


def change_for(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the change that the options ask for."""
    absent = params["state"] == "absent"
    if params["volume"] is not None:
        # A merge takes null for "not declared"; absent.policies knows targets only.
        return {"document": {"volumes": [{"name": params["volume"], "policy": None if absent else params["policy"]}]}}
    if absent:
        return {"absent": {"policies": [params["target"] or "default"]}}
    if params["target"] is not None:
        return {"document": {"targets": [{"name": params["target"], "policy": params["policy"]}]}}
    return {"document": {"policy": params["policy"]}}


def main() -> None:
    """Run the module."""
    spec = _options.merged(
        _options.agent(),
        _options.apply(),
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
    _convergence.converge(module, change_for(module.params), field_names=FIELD_NAMES)


if __name__ == "__main__":
    main()
