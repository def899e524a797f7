# SPDX-License-Identifier: GPL-3.0-or-later
"""What would be done, what was done, and how the host stands: the answers of the control plane.

Plain data that goes over HTTP as it is (``model_dump(mode="json")``).  No secret is ever in it: credentials
show as :class:`SecretView`, fingerprints keyed with a key that stays on the host.
"""

from __future__ import annotations

import enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from blockfleet.model.conditions import Condition
from blockfleet.model.errors import BlockfleetError

FORMAT_VERSION = 1
"""Version of these shapes; it changes when a field changes its meaning or goes away."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Verb(enum.StrEnum):
    """What an action does to its subject."""

    CREATE = "create"
    UPDATE = "update"
    REMOVE = "remove"
    LOGIN = "login"
    LOGOUT = "logout"
    RELOGIN = "relogin"
    PUBLISH = "publish"
    WITHDRAW = "withdraw"

    @property
    def sign(self) -> str:
        """Return ``+``, ``~`` or ``-``: how a person sees at a glance what happens."""
        return _SIGNS[self]


_SIGNS = {
    Verb.CREATE: "+",
    Verb.LOGIN: "+",
    Verb.PUBLISH: "+",
    Verb.UPDATE: "~",
    Verb.RELOGIN: "~",
    Verb.REMOVE: "-",
    Verb.LOGOUT: "-",
    Verb.WITHDRAW: "-",
}


class Kind(enum.StrEnum):
    """What an action is about: parts of the document first, then what the engine runs."""

    INITIATOR = "initiator"
    DISCOVERY_PORTAL = "discovery_portal"
    STATIC_TARGET = "static_target"
    TARGET = "target"
    CHAP = "chap"
    POLICY = "policy"
    VOLUME = "volume"
    SESSION = "session"


class Origin(enum.StrEnum):
    """Why an action is needed."""

    INTENDED = "intended"
    """The desired state changed."""
    CORRECTIVE = "corrective"
    """The host drifted from what was applied before."""


class Disruption(enum.StrEnum):
    """What an action does to who uses the host's volumes."""

    NONE = "none"
    RELOGIN = "relogin"
    """I/O on one path pauses for a login."""
    INTERRUPTS = "interrupts"
    """A volume in use loses its last path, or goes."""


class Problem(_Answer):
    """One thing that is not as it should be, with its stable number and name."""

    code: int
    name: str
    message: str
    subject: str = ""

    @classmethod
    def of(cls, error: BlockfleetError, subject: str = "") -> Problem:
        """Turn an error into data; ``subject`` falls back to the field that is at fault."""
        return cls(code=int(error.code), name=str(error.code), message=str(error), subject=subject or error.field)


class Action(_Answer):
    """One step of a plan."""

    verb: Verb
    kind: Kind
    subject: str
    """``iqn...@host:port`` for a session, otherwise the name of the thing."""
    text: str
    """The line that people see, sign first: ``+ session iqn.. via 192.0.2.10:3260``."""
    origin: Origin = Origin.INTENDED
    disruption: Disruption = Disruption.NONE
    refused: str = ""
    """Why the action is refused unless the request allows disruption; empty when it is not."""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


class Diff(_Answer):
    """What changes, before and after: document parts, sessions and volumes; no volatile field."""

    before: dict[str, Any] = {}
    after: dict[str, Any] = {}


class Summary(_Answer):
    """How many actions add, change and remove."""

    add: int = 0
    change: int = 0
    remove: int = 0

    @classmethod
    def of(cls, actions: tuple[Action, ...]) -> Summary:
        """Count actions by their sign."""
        signs = [action.verb.sign for action in actions]
        return cls(add=signs.count("+"), change=signs.count("~"), remove=signs.count("-"))


class Plan(_Answer):
    """What applying a change would do; the same actions and diff that applying it then reports."""

    format_version: int = FORMAT_VERSION
    changed: bool = False
    """Whether anything would be done: some action is there that is not refused."""
    generation: int
    """Generation of the desired state that the plan is based on."""
    actions: tuple[Action, ...] = ()
    diff: Diff = Diff()
    summary: Summary = Summary()
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    """What keeps the host from its desired state and no action of ours can mend."""


class ReportStatus(enum.StrEnum):
    """How the host stood when apply stopped looking."""

    IN_SYNC = "in_sync"
    PARTIAL = "partial"
    """Some paths are missing, but every target has its ``min_paths``."""
    NOT_VERIFIED = "not_verified"
    """Not what was asked for within ``wait_timeout``; ``problems`` says what is missing and why."""


class Report(Plan):
    """What applying a change did."""

    applied: bool = False
    """Whether anything was carried out: false where there was nothing to do."""
    verified: bool = False
    status: ReportStatus = ReportStatus.NOT_VERIFIED
    waited: float = 0.0
    """Seconds that apply waited for the host to reach its desired state."""


class EngineView(_Answer):
    """The engine as the agent sees it."""

    reachable: bool
    instance: str = ""
    version: str = ""
    pid: int = 0


class InitiatorView(_Answer):
    """Who this host is."""

    name: str = ""
    alias: str = ""


class PortalStatus(_Answer):
    """A discovery portal and whether it answers."""

    portal: str
    conditions: tuple[Condition, ...] = ()


class TargetStatus(_Answer):
    """A target that is declared or that the engine has sessions with."""

    name: str
    declared: bool
    """False for one that has sessions nobody declared."""
    portals: tuple[str, ...] = ()
    """The portals it shall be logged in at."""
    policy: str
    lifetime: str
    min_paths: int
    sessions: tuple[dict[str, Any], ...] = ()
    """Each an engine ``SessionState`` as JSON."""
    conditions: tuple[Condition, ...] = ()


class VolumeStatus(_Answer):
    """A volume that is declared or that the engine serves."""

    name: str
    declared: bool
    target: str = ""
    lun: int | None = None
    identity: str = ""
    size: int = 0
    block_size: int = 0
    policy: str = ""
    failback: bool = True
    read_only: bool = False
    phase: Literal["absent", "online", "degraded", "queueing", "failed"] = "absent"
    socket: str = ""
    device: str = ""
    """What a user opens: the socket itself, or the block device that an attachment made of it."""
    clients: int = 0
    paths: tuple[dict[str, Any], ...] = ()
    """Each an engine ``PathState`` as JSON."""
    conditions: tuple[Condition, ...] = ()


class HostStatus(_Answer):
    """Everything about a host in one answer."""

    format_version: int = FORMAT_VERSION
    generation: int
    in_sync: bool
    initiator: InitiatorView = InitiatorView()
    engine: EngineView
    portals: tuple[PortalStatus, ...] = ()
    targets: tuple[TargetStatus, ...] = ()
    volumes: tuple[VolumeStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    """Of the host as a whole: InSync, Persistent."""
    problems: tuple[Problem, ...] = ()
    degraded: str = ""
    """Why the agent can only watch and not act; empty when it can."""


class DesiredView(_Answer):
    """The desired state as the agent shows it: secrets are :class:`SecretView` objects in the document."""

    format_version: int = FORMAT_VERSION
    generation: int
    document: dict[str, Any]


class SecretView(_Answer):
    """What is shown in place of a secret; sent back in a document it means "keep the one that is stored"."""

    set: Literal[True] = True
    fingerprint: str = ""
    """First 8 hexadecimal digits of a keyed digest: equal for equal secrets on one host, useless elsewhere."""
    changed_at: str = ""
    """ISO 8601, UTC."""


class DiscoveredPortalView(_Answer):
    """A portal of a discovered target."""

    portal: str
    tag: int | None = None


class DiscoveredTarget(_Answer):
    """A target that discovery shows and the portals it was shown with."""

    target: str
    portals: tuple[DiscoveredPortalView, ...] = Field(default=())


class DiscoveryReport(_Answer):
    """What discovery found, and which portals did not answer."""

    format_version: int = FORMAT_VERSION
    targets: tuple[DiscoveredTarget, ...] = ()
    problems: tuple[Problem, ...] = ()
