#!/usr/bin/python

# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_portal
short_description: Declare where a host learns of iSCSI targets
description:
  - Declares the discovery portals of a host, which are asked with SendTargets, and the targets that are known
    without asking anyone.
  - Discovery never changes anything but what is known of targets. Logins, credentials, and policies stay as they are.
author:
  - The Blockfleet authors (!UNKNOWN)
version_added: 0.1.0
extends_documentation_fragment:
  - blockfleet.iscsi._agent
  - blockfleet.iscsi._apply
  - blockfleet.iscsi._attributes
  - blockfleet.iscsi._attributes.state_module
options:
  portals:
    description:
      - Discovery portals, each as C(host), C(host:port), or C([IPv6]:port). The port is 3260 where none is given.
      - All spellings of one address are the same portal. Host names are resolved to all their addresses.
    type: list
    elements: str
  static:
    description:
      - Targets that are known without discovery.
    type: list
    elements: dict
    suboptions:
      target:
        description:
          - Name of the target.
        type: str
        required: true
      portals:
        description:
          - Portals of the target. Not needed with O(state=absent).
        type: list
        elements: str
  chap:
    description:
      - CHAP credentials for all O(portals), used for discovery only.
      - Left out, credentials that the portals have stay as they are.
        The module M(blockfleet.iscsi.iscsi_chap) can change and remove them too.
    type: dict
    suboptions:
      user:
        description:
          - Name under which the host proves itself.
        type: str
        required: true
      secret:
        description:
          - Secret with which the host proves itself, 12 to 255 bytes.
        type: str
        required: true
      mutual_user:
        description:
          - Name that the portal has to show when it proves itself. Without it, any name will do.
        type: str
      mutual_secret:
        description:
          - Secret with which the portal has to prove itself, 12 to 255 bytes and different from O(chap.secret).
        type: str
      algorithms:
        description:
          - Digests to offer, strongest first.
        type: list
        elements: str
        choices: [sha3-256, sha256, sha1, md5]
        default: [sha3-256, sha256, sha1, md5]
      allow_weak_secret:
        description:
          - Accept secrets under 12 bytes, which RFC 3720 permits only on networks protected by IPsec.
        type: bool
        default: false
  exclusive:
    description:
      - Remove every other discovery portal of this host where O(portals) is given, and every other static target
        where O(static) is given.
    type: bool
    default: false
  state:
    description:
      - Whether the portals and static targets shall be declared.
      - With V(absent), sessions that are logged in stay. See M(blockfleet.iscsi.iscsi_target_login).
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: blockfleet.iscsi.iscsi_target_login
  - module: blockfleet.iscsi.iscsi_chap
"""

EXAMPLES = r"""
- name: Learn of targets from two portals
  blockfleet.iscsi.iscsi_portal:
    portals:
      - 192.0.2.10
      - "[2001:db8::10]:3260"

- name: Ask a portal that wants CHAP for discovery
  blockfleet.iscsi.iscsi_portal:
    portals: [192.0.2.10]
    chap:
      user: discovery
      secret: "{{ vault_discovery_secret }}"

- name: Know a target without asking anyone, and nothing else
  blockfleet.iscsi.iscsi_portal:
    static:
      - target: iqn.2026-11.com.example:db
        portals: [192.0.2.10, 192.0.2.11]
    exclusive: true

- name: Do not ask an old portal any more
  blockfleet.iscsi.iscsi_portal:
    portals: [192.0.2.99]
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
targets:
  description:
    - The targets that O(portals) show, each with the portals at which they can be reached.
    - In check mode the portals are asked only where the module would change nothing, and the list is empty otherwise.
  returned: success, when O(state=present) and O(portals) is given
  type: list
  elements: dict
  sample:
    - target: iqn.2026-11.com.example:db
      portals:
        - portal: 192.0.2.10:3260
          tag: 1
  contains:
    target:
      description: Name of the target.
      type: str
      returned: always
      sample: iqn.2026-11.com.example:db
    portals:
      description: Portals at which it can be reached, each with its portal group tag.
      type: list
      elements: dict
      returned: always
      sample: [{portal: "192.0.2.10:3260", tag: 1}]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _convergence, _options
from ansible_collections.blockfleet.iscsi.plugins.module_utils._agent_client import AgentClient

FIELD_NAMES = (
    ("discovery.portals[0].chap", "chap"),
    ("discovery.portals", "portals"),
    ("discovery.static", "static"),
    ("absent.discovery_portals", "portals"),
    ("absent.static_targets", "static"),
)


def change_for(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the change that the options ask for."""
    portals, static = params["portals"], params["static"]
    if params["state"] == "absent":
        return {
            "absent": {
                "discovery_portals": portals or [],
                "static_targets": [entry["target"] for entry in static or []],
            }
        }
    discovery: dict[str, t.Any] = {}
    exclusive = []
    if portals is not None:
        chap = {"chap": params["chap"]} if params["chap"] else {}
        discovery["portals"] = [{"portal": portal, **chap} for portal in portals]
        exclusive.append("discovery.portals")
    if static is not None:
        discovery["static"] = _options.given(static)
        exclusive.append("discovery.static")
    return {"document": {"discovery": discovery}, "exclusive": exclusive if params["exclusive"] else []}


def discovered(module: AnsibleModule, client: AgentClient, plan: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return what the portals show now that they are declared."""
    portals = module.params["portals"]
    if module.params["state"] == "absent" or not portals:
        return {}
    if module.check_mode and plan["changed"]:
        return {"targets": []}
    answer = client.discover(portals, patience=module.params["wait_timeout"])
    for problem in answer.get("problems", []):
        _convergence.warn(module, _convergence.problem_text(problem))
    return {"targets": answer.get("targets", [])}


def main() -> None:
    """Run the module."""
    chap = _options.chap()
    chap["user"]["required"] = chap["secret"]["required"] = True
    static = _options.static_target()
    static["portals"]["required"] = False
    spec = _options.merged(
        _options.agent(),
        _options.apply(),
        {
            "portals": {"type": "list", "elements": "str"},
            "static": {"type": "list", "elements": "dict", "options": static},
            "chap": {"type": "dict", "options": _options.with_chap_defaults(chap)},
            "exclusive": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    )
    module = AnsibleModule(
        argument_spec=spec,
        required_one_of=[("portals", "static")],
        required_by={"chap": "portals"},
        supports_check_mode=True,
    )
    _convergence.converge(
        module,
        change_for(module.params),
        field_names=FIELD_NAMES,
        completion=lambda client, plan: discovered(module, client, plan),
    )


if __name__ == "__main__":
    main()
