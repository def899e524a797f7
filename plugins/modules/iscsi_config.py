#!/usr/bin/python

# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_config
short_description: Declare the whole iSCSI storage of a host in one document
description:
  - Gives the agent of a host one document with everything that the other modules declare in parts.
  - With O(mode=replace), what the document does not name is not declared any more, so that the document is all there is.
author:
  - The Blockfleet authors (!UNKNOWN)
version_added: 0.1.0
extends_documentation_fragment:
  - blockfleet.iscsi._agent
  - blockfleet.iscsi._apply
  - blockfleet.iscsi._relogin
  - blockfleet.iscsi._attributes
  - blockfleet.iscsi._attributes.state_module
options:
  mode:
    description:
      - V(merge) lays O(document) over what is declared. Lists of named things merge by name, and the fields that are
        given win.
      - V(replace) makes O(document) all that is declared.
    type: str
    choices: [merge, replace]
    default: merge
  document:
    description:
      - The declared state.
    type: dict
    required: true
    suboptions:
      version:
        description:
          - Version of the document. An agent refuses versions that are newer than it knows.
        type: int
      initiator:
        description:
          - Who this host is.
        type: dict
        suboptions:
          name:
            description:
              - Name of the host as an initiator. Without it, the agent makes one and keeps it.
            type: str
          alias:
            description:
              - Text that targets may show beside the name.
            type: str
      discovery:
        description:
          - Where targets are learned of.
        type: dict
        suboptions:
          portals:
            description:
              - Portals that are asked with SendTargets.
            type: list
            elements: dict
            suboptions:
              portal:
                description:
                  - The portal as C(host), C(host:port), or C([IPv6]:port).
                type: str
                required: true
              chap:
                description:
                  - Credentials for discovery at this portal.
                type: dict
                suboptions:
                  user:
                    description:
                      - Name under which the host proves itself.
                    type: str
                  secret:
                    description:
                      - Secret with which the host proves itself, 12 to 255 bytes.
                    type: str
                  mutual_user:
                    description:
                      - Name that the other side has to show when it proves itself.
                    type: str
                  mutual_secret:
                    description:
                      - Secret with which the other side has to prove itself.
                    type: str
                  algorithms:
                    description:
                      - Digests to offer, strongest first.
                    type: list
                    elements: str
                    choices: [sha3-256, sha256, sha1, md5]
                  allow_weak_secret:
                    description:
                      - Accept secrets under 12 bytes.
                    type: bool
          static:
            description:
              - Targets that are known without asking anyone.
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
                  - Its portals.
                type: list
                elements: str
                required: true
      policy:
        description:
          - Multipath policy of volumes that have none of their own and none of their target.
        type: str
        choices: [fail_over_only, round_robin, round_robin_with_subset, weighted_path, least_queue_depth, service_time]
      failback:
        description:
          - Whether I/O returns to a path that was lost and is back, for volumes where nothing else is said.
        type: bool
      targets:
        description:
          - What is wanted of targets.
        type: list
        elements: dict
        suboptions:
          name:
            description:
              - Name of the target.
            type: str
            required: true
          portals:
            description:
              - Portals to be logged in at. V(all) alone stands for all that discovery shows.
            type: list
            elements: str
          chap:
            description:
              - Credentials for logins.
            type: dict
            suboptions:
              user:
                description:
                  - Name under which the host proves itself.
                type: str
              secret:
                description:
                  - Secret with which the host proves itself, 12 to 255 bytes.
                type: str
              mutual_user:
                description:
                  - Name that the other side has to show when it proves itself.
                type: str
              mutual_secret:
                description:
                  - Secret with which the other side has to prove itself.
                type: str
              algorithms:
                description:
                  - Digests to offer, strongest first.
                type: list
                elements: str
                choices: [sha3-256, sha256, sha1, md5]
              allow_weak_secret:
                description:
                  - Accept secrets under 12 bytes.
                type: bool
          login:
            description:
              - What is offered at login and how patient the host is.
            type: dict
            suboptions:
              header_digest:
                description:
                  - Digests of headers to offer, in order of preference.
                type: list
                elements: str
                choices: [crc32c, none]
              data_digest:
                description:
                  - Digests of data to offer, in order of preference.
                type: list
                elements: str
                choices: [crc32c, none]
              login_timeout:
                description:
                  - Seconds that one attempt to log in may take.
                type: float
              noop_interval:
                description:
                  - Seconds of silence after which the target is asked whether it is still there.
                type: float
              noop_timeout:
                description:
                  - Seconds that the target has to answer.
                type: float
              replacement_timeout:
                description:
                  - Seconds that I/O waits for a lost session to come back.
                type: float
              error_recovery_level:
                description:
                  - Highest error recovery level to offer.
                type: int
                choices: [0, 1, 2]
          lifetime:
            description:
              - How long the logins are wanted.
            type: str
            choices: [persistent, boot]
          policy:
            description:
              - Multipath policy of the volumes of this target.
            type: str
            choices: [fail_over_only, round_robin, round_robin_with_subset, weighted_path, least_queue_depth, service_time]
          failback:
            description:
              - Whether I/O returns to a path that was lost and is back.
            type: bool
          paths:
            description:
              - Paths that are not ordinary ones.
            type: list
            elements: dict
            suboptions:
              portal:
                description:
                  - The portal that the path leads through.
                type: str
                required: true
              primary:
                description:
                  - Make it the first choice among equals.
                type: bool
              standby:
                description:
                  - Hold it in reserve.
                type: bool
              weight:
                description:
                  - Weight for the policy V(weighted_path).
                type: int
          min_paths:
            description:
              - How many sessions must be logged in for the target to count as ready.
            type: int
          connections:
            description:
              - Connections that each session shall have besides the leading one.
            type: list
            elements: dict
            suboptions:
              portal:
                description:
                  - Another portal of the same portal group. Left out, it is the portal of the session.
                type: str
              weight:
                description:
                  - Weight for the policy V(weighted_path).
                type: int
              standby:
                description:
                  - Hold the connection in reserve.
                type: bool
          leading_connection:
            description:
              - Weight and standby of the connection that each session begins with.
            type: dict
            suboptions:
              weight:
                description:
                  - Weight for the policy V(weighted_path).
                type: int
              standby:
                description:
                  - Hold the connection in reserve.
                type: bool
          connection_policy:
            description:
              - How each session spreads commands over its connections.
            type: str
            choices: [fail_over_only, round_robin, round_robin_with_subset, weighted_path, least_queue_depth]
      volumes:
        description:
          - Logical units that are served under names.
        type: list
        elements: dict
        suboptions:
          name:
            description:
              - Name of the volume.
            type: str
            required: true
          target:
            description:
              - Its target.
            type: str
          lun:
            description:
              - Number of its logical unit.
            type: int
          identity:
            description:
              - Identity of its logical unit.
            type: str
          policy:
            description:
              - Multipath policy of this volume.
            type: str
            choices: [fail_over_only, round_robin, round_robin_with_subset, weighted_path, least_queue_depth, service_time]
          failback:
            description:
              - Whether I/O returns to a path that was lost and is back.
            type: bool
          paths:
            description:
              - Paths that are not ordinary ones.
            type: list
            elements: dict
            suboptions:
              portal:
                description:
                  - The portal that the path leads through.
                type: str
                required: true
              primary:
                description:
                  - Make it the first choice among equals.
                type: bool
              standby:
                description:
                  - Hold it in reserve.
                type: bool
              weight:
                description:
                  - Weight for the policy V(weighted_path).
                type: int
          read_only:
            description:
              - Whether writes are refused.
            type: bool
          attach:
            description:
              - What the volume is made into.
            type: str
            choices: [socket]
  exclusive:
    description:
      - With O(mode=merge), lists that O(document) owns whole, so that entries it does not name are removed.
      - V(targets.portals) stands for the portals of those targets that O(document) names.
    type: list
    elements: str
    choices: [discovery.portals, discovery.static, targets, targets.portals, volumes]
    default: []
seealso:
  - module: blockfleet.iscsi.iscsi_info
notes:
  - The options under O(document) mean the same as those of the other modules of this collection, which say more of them.
"""

EXAMPLES = r"""
- name: Declare everything there is
  blockfleet.iscsi.iscsi_config:
    mode: replace
    document:
      discovery:
        portals:
          - portal: 192.0.2.10
          - portal: "[2001:db8::10]:3260"
      targets:
        - name: iqn.2026-11.com.example:db
          portals: all
          min_paths: 2
          policy: round_robin
          chap:
            user: "{{ inventory_hostname }}"
            secret: "{{ vault_chap_secret }}"
      volumes:
        - name: db01
          target: iqn.2026-11.com.example:db
          lun: 0

- name: Add to what is declared
  blockfleet.iscsi.iscsi_config:
    document:
      volumes:
        - name: db02
          target: iqn.2026-11.com.example:db
          lun: 1

- name: Make these the only volumes, and leave everything else as it is
  blockfleet.iscsi.iscsi_config:
    document:
      volumes: "{{ iscsi_volumes }}"
    exclusive: [volumes]
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
    ("initiator", "document.initiator"),
    ("discovery", "document.discovery"),
    ("failback", "document.failback"),
    ("policy", "document.policy"),
    ("targets", "document.targets"),
    ("volumes", "document.volumes"),
    ("version", "document.version"),
)


def document_spec() -> dict[str, t.Any]:
    """Return the document as options, typed throughout: only so is every secret in it known as one."""
    chap = {"type": "dict", "options": _options.chap()}
    portal = {"portal": {"type": "str", "required": True}, "chap": chap}
    target = {
        "name": {"type": "str", "required": True},
        "portals": {"type": "list", "elements": "str"},
        "chap": chap,
        "login": {"type": "dict", "options": _options.login()},
        "lifetime": {"type": "str", "choices": _options.LIFETIMES},
        "policy": {"type": "str", "choices": _options.POLICIES},
        "min_paths": {"type": "int"},
        **_options.spread(),
        **_options.connections(),
    }
    volume = _options.merged(
        {"name": {"type": "str", "required": True}, "target": {"type": "str"}},
        _options.volume(),
        _options.spread(),
    )
    discovery = {
        "portals": {"type": "list", "elements": "dict", "options": portal},
        "static": {"type": "list", "elements": "dict", "options": _options.static_target()},
    }
    return {
        "version": {"type": "int"},
        "initiator": {"type": "dict", "options": {"name": {"type": "str"}, "alias": {"type": "str"}}},
        "discovery": {"type": "dict", "options": discovery},
        "policy": {"type": "str", "choices": _options.POLICIES},
        "failback": {"type": "bool"},
        "targets": {"type": "list", "elements": "dict", "options": target},
        "volumes": {"type": "list", "elements": "dict", "options": volume},
    }


def change_for(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the change that the options ask for."""
    document = _options.given(params["document"])
    for target in document.get("targets", []):
        if target.get("portals") == ["all"]:
            target["portals"] = "all"
    return {"mode": params["mode"], "document": document, "exclusive": params["exclusive"]}


def main() -> None:
    """Run the module."""
    spec = _options.merged(
        _options.agent(),
        _options.apply(),
        _options.relogin(),
        {
            "mode": {"type": "str", "choices": ["merge", "replace"], "default": "merge"},
            "document": {"type": "dict", "options": document_spec(), "required": True},
            "exclusive": {"type": "list", "elements": "str", "choices": _options.EXCLUSIVE_LISTS, "default": []},
        },
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    if module.params["mode"] == "replace" and module.params["exclusive"]:
        module.fail_json(msg="exclusive: mode=replace owns every list already: leave exclusive out, or use mode=merge")
    _convergence.converge(module, change_for(module.params), field_names=FIELD_NAMES)


if __name__ == "__main__":
    main()
