#!/usr/bin/python

# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_chap
short_description: Declare CHAP credentials of a host for a target or for discovery
description:
  - Declares with which name and secret the host proves itself to a target or to discovery portals, and with which
    secret they have to prove themselves to the host.
  - The module owns the credentials whole. What the task does not give, for example O(mutual_secret), is not declared
    any more.
  - A changed secret is a change, an unchanged one is not, and neither is ever shown. What the agent stores is
    encrypted, and what it shows are fingerprints with a key that does not leave the host.
author:
  - The Blockfleet authors (!UNKNOWN)
version_added: 0.1.0
extends_documentation_fragment:
  - blockfleet.iscsi._agent
  - blockfleet.iscsi._apply
  - blockfleet.iscsi._chap
  - blockfleet.iscsi._relogin
  - blockfleet.iscsi._attributes
  - blockfleet.iscsi._attributes.state_module
options:
  target:
    description:
      - Target whose credentials these are.
      - Exactly one of O(target) and O(discovery) is needed.
    type: str
  discovery:
    description:
      - Discovery portals whose credentials these are. Portals that are not declared yet are declared.
      - O(state=absent) wants V(all) here, and removes the credentials of every discovery portal.
    type: list
    elements: str
  state:
    description:
      - Whether there shall be credentials. V(present) needs O(user) and O(secret).
    type: str
    choices: [present, absent]
    default: present
notes:
  - Put secrets into a vault. They are never part of the module's result, of a diff, of a log, or of a command line.
seealso:
  - module: blockfleet.iscsi.iscsi_target_login
  - module: blockfleet.iscsi.iscsi_portal
"""

EXAMPLES = r"""
- name: Prove the host to the target and the target to the host
  blockfleet.iscsi.iscsi_chap:
    target: iqn.2026-11.com.example:db
    user: "{{ inventory_hostname }}"
    secret: "{{ vault_chap_secret }}"
    mutual_secret: "{{ vault_chap_mutual_secret }}"

- name: Rotate a secret and use it at once, even where volumes are in use
  blockfleet.iscsi.iscsi_chap:
    target: iqn.2026-11.com.example:db
    user: "{{ inventory_hostname }}"
    secret: "{{ vault_chap_secret_new }}"
    relogin: now
    allow_disruption: true

- name: Use credentials of their own for discovery
  blockfleet.iscsi.iscsi_chap:
    discovery: [192.0.2.10, "[2001:db8::10]"]
    user: discovery
    secret: "{{ vault_discovery_secret }}"

- name: Log in without CHAP from now on
  blockfleet.iscsi.iscsi_chap:
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
    ("targets[0].chap", ""),
    ("targets[0].name", "target"),
    ("discovery.portals[0].chap", ""),
    ("discovery.portals", "discovery"),
    ("absent.chap", "target"),
)


def change_for(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the change that the options ask for."""
    target, portals = params["target"], params["discovery"]
    if params["state"] == "absent":
        return {"absent": {"chap": ["discovery"] if target is None else [target]}}
    # What was left out goes along as null: credentials are declared whole, or a mutual secret could never be dropped.
    chap = {option: params[option] for option in _options.chap()}
    if target is not None:
        return {"document": {"targets": [{"name": target, "chap": chap}]}}
    return {"document": {"discovery": {"portals": [{"portal": portal, "chap": chap} for portal in portals]}}}


def fault_in(params: dict[str, t.Any]) -> str:
    """Return what is wrong with the options; empty when nothing is."""
    portals = params["discovery"]
    if portals is None:
        return ""
    if params["state"] == "absent" and portals != ["all"]:
        return "discovery: credentials are removed from all portals at once: write 'all', or remove the portals"
    if params["state"] == "present" and "all" in portals:
        return "discovery: 'all' can only be absent: list the portals"
    return ""


def main() -> None:
    """Run the module."""
    spec = _options.merged(
        _options.agent(),
        _options.apply(),
        _options.with_chap_defaults(_options.chap()),
        _options.relogin(),
        {
            "target": {"type": "str"},
            "discovery": {"type": "list", "elements": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    )
    module = AnsibleModule(
        argument_spec=spec,
        required_one_of=[("target", "discovery")],
        mutually_exclusive=[("target", "discovery")],
        required_if=[("state", "present", ("user", "secret"))],
        required_by={"mutual_user": "mutual_secret"},
        supports_check_mode=True,
    )
    fault = fault_in(module.params)
    if fault:
        module.fail_json(msg=fault)
    _convergence.converge(module, change_for(module.params), field_names=FIELD_NAMES)


if __name__ == "__main__":
    main()
