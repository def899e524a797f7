# Copyright (c) The Blockfleet authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

# Private to this collection: it may change or disappear in any release.
"""Options that several modules share.  Each part has a twin of the same name in ``plugins/doc_fragments``."""

from __future__ import annotations

import typing as t

Spec = t.Dict[str, t.Dict[str, t.Any]]

ALGORITHMS = ["sha3-256", "sha256", "sha1", "md5"]
CONNECTION_POLICIES = [
    "fail_over_only",
    "round_robin",
    "round_robin_with_subset",
    "weighted_path",
    "least_queue_depth",
]
POLICIES = [*CONNECTION_POLICIES, "service_time"]
DIGESTS = ["crc32c", "none"]
ATTACHMENTS = ["socket"]
LIFETIMES = ["persistent", "boot"]
EXCLUSIVE_LISTS = ["discovery.portals", "discovery.static", "targets", "targets.portals", "volumes"]


def agent() -> Spec:
    """Where the agent is: for every module of the action group."""
    return {
        "agent_socket": {"type": "path", "default": "/run/blockfleet/agent.sock"},
        "agent_timeout": {"type": "float", "default": 30.0},
    }


def apply() -> Spec:
    """How a change is carried out: for modules that change something."""
    return {
        "wait_timeout": {"type": "float", "default": 30.0},
        "allow_disruption": {"type": "bool", "default": False},
    }


def relogin() -> Spec:
    """When new credentials or login options reach sessions that are logged in."""
    return {"relogin": {"type": "str", "choices": ["next_login", "now"], "default": "next_login"}}


def chap() -> Spec:
    """CHAP credentials; what is required depends on the module."""
    return {
        "user": {"type": "str"},
        "secret": {"type": "str", "no_log": True},
        "mutual_user": {"type": "str"},
        "mutual_secret": {"type": "str", "no_log": True},
        "algorithms": {"type": "list", "elements": "str", "choices": ALGORITHMS},
        "allow_weak_secret": {"type": "bool", "no_log": False},
    }


def with_chap_defaults(spec: Spec) -> Spec:
    """Return the options of :func:`chap` for a module that declares credentials whole."""
    spec["algorithms"]["default"] = list(ALGORITHMS)
    spec["allow_weak_secret"]["default"] = False
    return spec


def login() -> Spec:
    """What is offered at login and how patient the host is."""
    return {
        "header_digest": {"type": "list", "elements": "str", "choices": DIGESTS},
        "data_digest": {"type": "list", "elements": "str", "choices": DIGESTS},
        "login_timeout": {"type": "float"},
        "noop_interval": {"type": "float"},
        "noop_timeout": {"type": "float"},
        "replacement_timeout": {"type": "float"},
        "error_recovery_level": {"type": "int", "choices": [0, 1, 2]},
    }


def connections() -> Spec:
    """The connections of each session, and how it spreads commands over them."""
    role: Spec = {"weight": {"type": "int"}, "standby": {"type": "bool"}}
    return {
        "connections": {"type": "list", "elements": "dict", "options": {"portal": {"type": "str"}, **role}},
        "leading_connection": {"type": "dict", "options": role},
        "connection_policy": {"type": "str", "choices": CONNECTION_POLICIES},
    }


def spread() -> Spec:
    """What belongs to the policy of a volume or a target: fail-back and the roles of paths."""
    path: Spec = {
        "portal": {"type": "str", "required": True},
        "primary": {"type": "bool"},
        "standby": {"type": "bool"},
        "weight": {"type": "int"},
    }
    return {"failback": {"type": "bool"}, "paths": {"type": "list", "elements": "dict", "options": path}}


def volume() -> Spec:
    """One volume, but for its name and target."""
    return {
        "lun": {"type": "int"},
        "identity": {"type": "str"},
        "policy": {"type": "str", "choices": POLICIES},
        "read_only": {"type": "bool"},
        "attach": {"type": "str", "choices": ATTACHMENTS},
    }


def static_target() -> Spec:
    """A target that is known without discovery."""
    return {
        "target": {"type": "str", "required": True},
        "portals": {"type": "list", "elements": "str", "required": True},
    }


def merged(*parts: Spec) -> Spec:
    """Return one specification made of ``parts``; a name must not appear in two of them."""
    spec: Spec = {}
    for part in parts:
        for name, option in part.items():
            if name in spec:
                raise ValueError(f"option {name} is specified twice")
            spec[name] = option
    return spec


def given(value: t.Any) -> t.Any:
    """Return ``value`` without the options that were left out, at any depth."""
    if isinstance(value, dict):
        return {key: given(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [given(item) for item in value if item is not None]
    return value
