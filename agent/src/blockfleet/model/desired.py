# SPDX-License-Identifier: GPL-3.0-or-later
"""The desired state of one host: the document that modules, drop-in files and the command line write.

Every field is checked before anything changes.  Parts that are left out are ``None`` and mean "nobody has
declared this"; what that amounts to is the planner's business, not the document's.
"""

from __future__ import annotations

import enum
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from blockfleet.model import names
from blockfleet.model.load_balance import MAXIMUM_CONNECTIONS, MAXIMUM_WEIGHT, LoadBalancePolicy
from blockfleet.model.portal import Portal

DOCUMENT_VERSION = 1
"""Newest version of the document that this agent reads."""

MINIMUM_SECRET = 12
"""Bytes of a CHAP secret without IPsec: 96 bits (RFC 3720 8.2.1)."""

MAXIMUM_SECRET = 255

MAXIMUM_SPOKEN = 255
"""Bytes of a text value that is sent in login (RFC 3720 5.1)."""

SECRET_FIELDS = ("secret", "mutual_secret")
"""Names of the fields that hold secrets, wherever they stand in a document."""

_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_IDENTITY = re.compile(r"(naa|eui|t10|uuid|scsi-name)\.[\x21-\x7e]{1,255}")


def _portal_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("write a portal as text: host, host:port or [IPv6]:port")
    return str(Portal.parse(value))


def _volume_name(value: str) -> str:
    if not _VOLUME_NAME.fullmatch(value):
        raise ValueError(
            "a volume name has 1 to 64 letters, digits, '.', '_' or '-' and starts with a letter or digit"
        )
    return value


def _identity(value: str) -> str:
    if not _IDENTITY.fullmatch(value):
        raise ValueError(
            "an identity is naa., eui., t10., uuid. or scsi-name. and the designator, as 'volumes' shows it"
        )
    return value


def _speakable(value: str) -> str:
    if not value.isprintable() or len(value.encode()) > MAXIMUM_SPOKEN:
        raise ValueError(
            f"what is shown to a target has at most {MAXIMUM_SPOKEN} bytes of printable text (RFC 3720 5.1)"
        )
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write a number, not yes or no")
    return value


def _unique(thing: str, values: list[str]) -> None:
    """Refuse a name that a list has twice; ``thing`` is part of the error's type (``duplicate_portal``)."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise PydanticCustomError(
                f"duplicate_{thing}",
                "{thing} {value} appears twice",
                {"thing": thing.replace("_", " "), "value": value},
            )
        seen.add(value)


def _refuse(kind: str, message: str, *at: str | int) -> PydanticCustomError:
    """Make the error of a broken rule; ``at`` leads to the object that broke it, from the one that has the rule."""
    return PydanticCustomError(kind, "{message}", {"message": message, "at": at})


TargetName = Annotated[str, AfterValidator(names.normalise)]
PortalText = Annotated[str, BeforeValidator(_portal_text)]
"""A portal in its canonical text form; :meth:`Portal.parse` reads it back."""
VolumeName = Annotated[str, AfterValidator(_volume_name)]
Identity = Annotated[str, AfterValidator(_identity)]
Spoken = Annotated[str, AfterValidator(_speakable)]
"""Text that goes to the target as it is."""
Number = Annotated[int, BeforeValidator(_number)]
"""An integer; YAML's yes and no are none."""


class Policy(enum.StrEnum):
    """How I/O is spread over the paths of a volume (Microsoft guide, "Load Balance Policies")."""

    FAIL_OVER_ONLY = LoadBalancePolicy.FAIL_OVER_ONLY.value
    ROUND_ROBIN = LoadBalancePolicy.ROUND_ROBIN.value
    ROUND_ROBIN_WITH_SUBSET = LoadBalancePolicy.ROUND_ROBIN_WITH_SUBSET.value
    WEIGHTED_PATH = LoadBalancePolicy.WEIGHTED_PATH.value
    LEAST_QUEUE_DEPTH = LoadBalancePolicy.LEAST_QUEUE_DEPTH.value
    SERVICE_TIME = "service_time"
    """Of volumes only; the guide does not have it."""


class ChapAlgorithm(enum.StrEnum):
    """CHAP digests by their usual names, strongest first (IANA PPP numbers 8, 7, 6 and 5)."""

    SHA3_256 = "sha3-256"
    SHA256 = "sha256"
    SHA1 = "sha1"
    MD5 = "md5"


class Lifetime(enum.StrEnum):
    """How long a login is wanted."""

    PERSISTENT = "persistent"
    BOOT = "boot"
    """Until the host restarts."""


class Attachment(enum.StrEnum):
    """What a volume's NBD socket is made into."""

    SOCKET = "socket"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Chap(_Part):
    """Credentials of one direction or both (RFC 3720 11.1.4).

    ``user``/``secret`` prove the host to the target; ``mutual_user``/``mutual_secret`` prove the target to the
    host.  ``mutual_user`` is the name the target must show; ``None`` accepts any.
    """

    user: Spoken = Field(min_length=1, max_length=255)
    secret: SecretStr
    mutual_user: Spoken | None = Field(default=None, min_length=1, max_length=255)
    mutual_secret: SecretStr | None = None
    algorithms: tuple[ChapAlgorithm, ...] = Field(default=tuple(ChapAlgorithm), min_length=1)
    allow_weak_secret: bool = False

    @field_validator("secret", "mutual_secret")
    @classmethod
    def _length_cap(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            length = 1 if value is None else len(value.get_secret_value().encode())
        except UnicodeEncodeError:
            raise _refuse("chap_secret", "a CHAP secret is text that UTF-8 can write") from None
        if not 1 <= length <= MAXIMUM_SECRET:
            raise _refuse("chap_secret", f"a CHAP secret has 1 to {MAXIMUM_SECRET} bytes")
        return value

    @model_validator(mode="after")
    def _rules(self) -> Chap:
        for field, value in (("secret", self.secret), ("mutual_secret", self.mutual_secret)):
            if value is None or self.allow_weak_secret:
                continue
            if len(value.get_secret_value().encode()) < MINIMUM_SECRET:
                raise _refuse(f"short_{field}", f"{field} is shorter than {MINIMUM_SECRET} bytes (RFC 3720 8.2.1)")
        if self.mutual_secret is not None and self.mutual_secret == self.secret:
            raise _refuse("equal_secrets", "mutual_secret is the same as secret (RFC 3720 8.2.1)")
        if self.mutual_user is not None and self.mutual_secret is None:
            raise _refuse("mutual_user_alone", "mutual_user is given without mutual_secret")
        return self


class LoginOptions(_Part):
    """What the host offers in negotiation and how patient it is; the target may lower it."""

    header_digest: tuple[Literal["crc32c", "none"], ...] = Field(default=("none", "crc32c"), min_length=1)
    data_digest: tuple[Literal["crc32c", "none"], ...] = Field(default=("none", "crc32c"), min_length=1)
    login_timeout: float = Field(default=10.0, gt=0, le=600)
    noop_interval: float = Field(default=5.0, ge=0, le=3600)
    """Seconds of silence before a ping; 0 turns pings off."""
    noop_timeout: float = Field(default=5.0, gt=0, le=3600)
    replacement_timeout: float = Field(default=120.0, ge=0, le=86400)
    """Seconds that I/O waits for a lost session before it is failed."""
    error_recovery_level: Number | None = Field(default=None, ge=0, le=2)
    """Highest ErrorRecoveryLevel to offer (RFC 3720 12.20); ``None`` offers the highest that is safe."""


class ConnectionRole(_Part):
    """What load balance policies are told of one connection of a session."""

    weight: Number = Field(default=0, ge=0, le=MAXIMUM_WEIGHT)
    """The lightest connection carries the commands under ``weighted_path``."""
    standby: bool = False
    """Held in reserve under ``fail_over_only`` and ``round_robin_with_subset``."""


class Connection(ConnectionRole):
    """A further connection of each session to a target, besides the leading one."""

    portal: PortalText | None = None
    """Another portal of the same portal group; ``None`` is the session's own."""


class VolumePath(ConnectionRole):
    """What load balance policies are told of the path of volumes through one portal of their target."""

    portal: PortalText
    primary: bool = False
    """The first choice among equals."""


def _check_paths(
    owner: str, paths: tuple[VolumePath, ...], portals: tuple[str, ...] | None, *at: str | int
) -> None:
    """Refuse roles that contradict each other or the target's portals, where those are listed."""
    seen: set[str] = set()
    for path in paths:
        if path.portal in seen:
            raise _refuse("duplicate_path", f"the path of {owner} via {path.portal} appears twice", *at)
        seen.add(path.portal)
        if path.primary and path.standby:
            raise _refuse(
                "primary_in_standby", f"the path of {owner} via {path.portal} is primary and in standby", *at
            )
    primary = [path.portal for path in paths if path.primary]
    if len(primary) > 1:
        raise _refuse("several_primaries", f"{owner} has {len(primary)} primary paths: {', '.join(primary)}", *at)
    if not portals:
        return
    for portal in sorted(seen.difference(portals)):
        raise _refuse("unknown_path", f"{owner} has no path via {portal}: the target's portals are others", *at)
    if {path.portal for path in paths if path.standby} == set(portals):
        raise _refuse("all_paths_in_standby", f"every path of {owner} is in standby", *at)


class DiscoveryPortal(_Part):
    """A portal that is asked with SendTargets."""

    portal: PortalText
    chap: Chap | None = None


class StaticTarget(_Part):
    """A target that is known without asking anyone."""

    target: TargetName
    portals: tuple[PortalText, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_duplicates(self) -> StaticTarget:
        _unique("portal", list(self.portals))
        return self


class Discovery(_Part):
    """Where targets are learned from."""

    portals: tuple[DiscoveryPortal, ...] = ()
    static: tuple[StaticTarget, ...] = ()

    @model_validator(mode="after")
    def _no_duplicates(self) -> Discovery:
        _unique("portal", [p.portal for p in self.portals])
        _unique("static_target", [s.target for s in self.static])
        return self


class Target(_Part):
    """What is wanted of one target: sessions (``portals``), credentials, login options, policy."""

    name: TargetName
    portals: Literal["all"] | tuple[PortalText, ...] | None = None
    """``all`` that discovery shows, a list, or ``None`` for no sessions."""
    chap: Chap | None = None
    login: LoginOptions | None = None
    lifetime: Lifetime | None = None
    policy: Policy | None = None
    failback: bool | None = None
    """Whether I/O of its volumes returns to a path that was lost and is back."""
    paths: tuple[VolumePath, ...] | None = None
    """Paths of its volumes that are not ordinary ones: through which portals, and what they are."""
    min_paths: Number | None = Field(default=None, ge=1, le=64)
    """How many sessions must be logged in for the target to count as ready; ``None`` means all of them."""
    connections: tuple[Connection, ...] | None = None
    """Further connections of each session; several may lead to one portal."""
    leading_connection: ConnectionRole | None = None
    """The role of the connection that each session begins with."""
    connection_policy: LoadBalancePolicy | None = None
    """How each session spreads commands over its connections."""

    @model_validator(mode="after")
    def _connections(self) -> Target:
        further = self.connections or ()
        if len(further) >= MAXIMUM_CONNECTIONS:
            raise _refuse(
                "too_many_connections",
                f"{len(further)} connections besides the leading one; a session has {MAXIMUM_CONNECTIONS} at most",
            )
        leading = self.leading_connection or ConnectionRole()
        if leading.standby and all(connection.standby for connection in further):
            raise _refuse("all_in_standby", f"every connection of a session to {self.name} is in standby")
        return self

    @model_validator(mode="after")
    def _paths(self) -> Target:
        _check_paths(self.name, self.paths or (), self.listed_portals)
        return self

    @property
    def listed_portals(self) -> tuple[str, ...] | None:
        """The portals, where they are declared one by one."""
        return self.portals if isinstance(self.portals, tuple) else None

    @model_validator(mode="after")
    def _portals(self) -> Target:
        if isinstance(self.portals, tuple):
            if not self.portals:
                raise _refuse("no_portals", f"portals of {self.name} is empty")
            _unique("portal", list(self.portals))
            if self.min_paths is not None and self.min_paths > len(self.portals):
                raise _refuse(
                    "min_paths",
                    f"min_paths of {self.name} is {self.min_paths} but it lists {len(self.portals)} portals",
                )
        return self


class Volume(_Part):
    """A logical unit under a name of the user's, served while it is declared."""

    name: VolumeName
    target: TargetName
    lun: Number | None = Field(default=None, ge=0, le=16383)
    identity: Identity | None = None
    """VPD 83h identity; once bound, the agent holds the volume to it whatever the LUN says."""
    policy: Policy | None = None
    failback: bool | None = None
    paths: tuple[VolumePath, ...] | None = None
    """Paths that are not ordinary ones; they stand in for all that the target declares."""
    read_only: bool = False
    attach: Attachment = Attachment.SOCKET

    @model_validator(mode="after")
    def _one_unit(self) -> Volume:
        if self.lun is None and self.identity is None:
            raise _refuse("no_logical_unit", f"volume {self.name} names no logical unit")
        return self


class Initiator(_Part):
    """Who this host is."""

    name: TargetName | None = None
    alias: Spoken | None = Field(default=None, max_length=255)


class Document(_Part):
    """The whole desired state of a host."""

    version: Literal[1] = 1
    initiator: Initiator = Initiator()
    discovery: Discovery = Discovery()
    policy: Policy = Policy.FAIL_OVER_ONLY
    """Default for volumes whose target declares none."""
    failback: bool = True
    """The same."""
    targets: tuple[Target, ...] = ()
    volumes: tuple[Volume, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Document:
        _unique("target", [t.name for t in self.targets])
        _unique("volume", [v.name for v in self.volumes])
        _unique("volume_identity", [v.identity for v in self.volumes if v.identity])
        _unique("volume_unit", [f"{v.target} LUN {v.lun}" for v in self.volumes if v.lun is not None])
        portals = {target.name: target.listed_portals for target in self.targets}
        for index, volume in enumerate(self.volumes):
            _check_paths(f"volume {volume.name}", volume.paths or (), portals.get(volume.target), "volumes", index)
        return self
