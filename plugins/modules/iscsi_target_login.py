#!/usr/bin/python

# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_target_login
short_description: Declare the logins of a host to an iSCSI target
description:
  - Declares at which portals of a target the host shall be logged in. The agent logs in, keeps the sessions,
    brings them back when they are lost, and logs in again after a reboot.
  - Every portal is a session of its own, with an identity of its own. No portal is logged in at that is not declared.
  - A session may have several connections, see O(connections).
author:
  - The Blockfleet authors (!UNKNOWN)
version_added: 0.1.0
extends_documentation_fragment:
  - blockfleet.iscsi._agent
  - blockfleet.iscsi._apply
  - blockfleet.iscsi._login
  - blockfleet.iscsi._connections
  - blockfleet.iscsi._relogin
  - blockfleet.iscsi._attributes
  - blockfleet.iscsi._attributes.state_module
options:
  target:
    description:
      - Name of the target.
    type: str
    required: true
  portals:
    description:
      - Portals of the target to be logged in at, each as C(host), C(host:port), or C([IPv6]:port).
      - V(all) alone stands for every portal that discovery or a static entry shows, now and later.
        With O(state=absent), it stands for every portal.
    type: list
    elements: str
    default: [all]
  exclusive:
    description:
      - Log out of every other portal of the target. Without it, listed portals are added to those that are declared,
        and where V(all) is declared, that stays so.
      - Has no meaning with O(state=absent).
    type: bool
    default: false
  min_paths:
    description:
      - How many sessions must be logged in for the target to count as ready. With fewer than all, but as many as this,
        the module warns instead of failing.
      - Until it is declared, all must be logged in. Left out, it stays as it is declared.
    type: int
  lifetime:
    description:
      - How long the logins are wanted, V(persistent) for ever, V(boot) until the host restarts.
    type: str
    choices: [persistent, boot]
    default: persistent
  unset:
    description:
      - Options that shall not be declared any more, so that the agent's defaults count again.
      - None of them may be given at the same time. Taking back what is not declared is no change.
    type: list
    elements: str
    choices:
      - min_paths
      - connections
      - leading_connection
      - connection_policy
      - header_digest
      - data_digest
      - login_timeout
      - noop_interval
      - noop_timeout
      - replacement_timeout
      - error_recovery_level
    default: []
    version_added: 0.1.0
  forget:
    description:
      - With O(state=absent), forget the whole target, which means its credentials, its policy, and its login options too.
      - Needs O(portals=all).
    type: bool
    default: false
  state:
    description:
      - Whether the host shall be logged in at the portals.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: blockfleet.iscsi.iscsi_portal
  - module: blockfleet.iscsi.iscsi_chap
  - module: blockfleet.iscsi.iscsi_persistent
  - module: blockfleet.iscsi.mpio_policy
"""

EXAMPLES = r"""
- name: Log in at every portal of the target, two of which are enough
  blockfleet.iscsi.iscsi_target_login:
    target: iqn.2026-11.com.example:db
    portals: all
    min_paths: 2

- name: Log in at exactly these two portals, with digests
  blockfleet.iscsi.iscsi_target_login:
    target: iqn.2026-11.com.example:db
    portals:
      - 192.0.2.10
      - "[2001:db8::10]:3260"
    exclusive: true
    header_digest: [crc32c]
    data_digest: [crc32c, none]

- name: Use two connections a session, the second through another portal of the group, and recover from lost ones
  blockfleet.iscsi.iscsi_target_login:
    target: iqn.2026-11.com.example:db
    portals: [192.0.2.10]
    connections:
      - portal: 192.0.2.11
    connection_policy: least_queue_depth
    error_recovery_level: 2

- name: Keep a second connection in reserve
  blockfleet.iscsi.iscsi_target_login:
    target: iqn.2026-11.com.example:db
    connections:
      - standby: true
    connection_policy: fail_over_only

- name: Go back to one connection a session, and to the agent's own error recovery level
  blockfleet.iscsi.iscsi_target_login:
    target: iqn.2026-11.com.example:db
    unset: [connections, connection_policy, error_recovery_level]

- name: Log out of one portal, for maintenance of the network behind it
  blockfleet.iscsi.iscsi_target_login:
    target: iqn.2026-11.com.example:db
    portals: [192.0.2.10]
    state: absent

- name: Forget a target with everything that is declared of it
  blockfleet.iscsi.iscsi_target_login:
    target: iqn.2026-11.com.example:old
    state: absent
    forget: true
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
sessions:
  description: The sessions of the target after the module has run, or as they are in check mode.
  returned: success
  type: list
  elements: dict
  sample:
    - portal: 192.0.2.10:3260
      phase: logged_in
      connections:
        - cid: 0
          portal: 192.0.2.10:3260
          phase: logged_in
          active: true
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
    connections:
      description: Its connections while it is logged in, the leading one first.
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
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _convergence, _names, _options
from ansible_collections.blockfleet.iscsi.plugins.module_utils._agent_client import AgentClient

TARGET_OPTIONS = ("min_paths", *_options.connections())
"""Options that are fields of the target itself; those of the login are fields of its ``login``."""

SHOWN_OF_CONNECTIONS = ("cid", "portal", "phase", "active")

FIELD_NAMES = (
    ("targets[0].login", ""),
    ("targets[0].name", "target"),
    ("targets[0]", ""),
    ("absent.target_portals", "portals"),
    ("absent.targets", "target"),
)


def change_for(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the change that the options ask for."""
    name = params["target"]
    portals = "all" if params["portals"] == ["all"] else params["portals"]
    if params["state"] == "absent":
        return {"absent": {"targets": [name]} if params["forget"] else {"target_portals": {name: portals}}}
    target = {
        "name": name,
        "portals": portals,
        "lifetime": params["lifetime"],
        "login": {option: params[option] for option in _options.login()},
        **{option: params[option] for option in TARGET_OPTIONS},
    }
    target = {key: value for key, value in _options.given(target).items() if value != {}}
    for option in params["unset"]:
        # A merge takes null for "not declared".
        holder = target if option in TARGET_OPTIONS else target.setdefault("login", {})
        holder[option] = None
    return {
        "document": {"targets": [target]},
        "exclusive": ["targets.portals"] if params["exclusive"] else [],
    }


def sessions_of(client: AgentClient, name: str) -> list[dict[str, t.Any]]:
    """Return the sessions of target ``name``, in whatever spelling of it (RFC 3722), with their connections."""
    return [
        {
            "portal": session.get("portal"),
            "phase": session.get("phase"),
            "connections": [
                {key: connection.get(key) for key in SHOWN_OF_CONNECTIONS}
                for connection in session.get("connections", [])
            ],
        }
        for target in client.get("/v1/status").get("targets", [])
        if _names.folded(str(target.get("name", ""))) == _names.folded(name)
        for session in target.get("sessions", [])
    ]


def main() -> None:
    """Run the module."""
    spec = _options.merged(
        _options.agent(),
        _options.apply(),
        _options.login(),
        _options.connections(),
        _options.relogin(),
        {
            "target": {"type": "str", "required": True},
            "portals": {"type": "list", "elements": "str", "default": ["all"]},
            "exclusive": {"type": "bool", "default": False},
            "min_paths": {"type": "int"},
            "lifetime": {"type": "str", "choices": _options.LIFETIMES, "default": "persistent"},
            "unset": {
                "type": "list",
                "elements": "str",
                "choices": [*TARGET_OPTIONS, *_options.login()],
                "default": [],
            },
            "forget": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    params = module.params
    if "all" in params["portals"] and len(params["portals"]) > 1:
        module.fail_json(msg="portals: 'all' stands alone: list portals, or write 'all'")
    if params["forget"] and (params["state"] != "absent" or params["portals"] != ["all"]):
        module.fail_json(msg="forget: only with state=absent and portals=all: leave forget out, or change those")
    both = [option for option in params["unset"] if params[option] is not None]
    if both:
        module.fail_json(msg=f"unset: {both[0]} is given too: leave one of them out")
    _convergence.converge(
        module,
        change_for(params),
        field_names=FIELD_NAMES,
        completion=lambda client, _plan: {"sessions": sessions_of(client, params["target"])},
    )


if __name__ == "__main__":
    main()
