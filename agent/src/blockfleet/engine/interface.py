# SPDX-License-Identifier: GPL-3.0-or-later
"""The waist between the control plane and whatever moves data: specifications in, states out.

A second kind of engine (the kernel's initiator) fits behind :class:`Engine`; nothing above this module may
know which kind it talks to.  Everything here is plain data that crosses the control socket as JSON.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from blockfleet.model.desired import Connection, ConnectionRole, LoginOptions, Number, Policy
from blockfleet.model.load_balance import (
    DEFAULT_CONNECTION_POLICY,
    MAXIMUM_CONNECTIONS,
    MAXIMUM_WEIGHT,
    LoadBalancePolicy,
)


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def session_key(target: str, portal: str, interface: str = "") -> str:
    """Name a path's session: the identity (target, portal address, port, interface) as one text."""
    return f"{target}@{portal}" + (f"%{interface}" if interface else "")


class Credentials(_Wire):
    """CHAP credentials in the form that the engine keeps in memory only.

    ``fingerprint`` is the agent's keyed digest of all of it: the engine echoes it in :class:`SessionState`, so
    that the agent can tell whether a session has the credentials it should.
    """

    user: str
    secret: SecretStr
    mutual_user: str | None = None
    mutual_secret: SecretStr | None = None
    algorithms: tuple[str, ...] = ("sha3-256", "sha256", "sha1", "md5")
    fingerprint: str = ""


class InitiatorSpec(_Wire):
    """Who the engine says it is."""

    name: str
    alias: str = ""


class ConnectionSet(_Wire):
    """The connections that a session shall have, and how it spreads commands over them.  Changes are live."""

    leading: ConnectionRole = ConnectionRole()
    further: tuple[Connection, ...] = Field(default=(), max_length=MAXIMUM_CONNECTIONS - 1)
    """A portal that is ``None`` is the session's own."""
    policy: LoadBalancePolicy = DEFAULT_CONNECTION_POLICY

    @property
    def size(self) -> int:
        """How many connections these are, the leading one among them."""
        return 1 + len(self.further)


class SessionSpec(_Wire):
    """One session that shall exist: a path from this host to a portal of a target."""

    key: str
    target: str
    portal: str
    isid: str
    """Twelve hexadecimal digits, persisted by the agent: the same for this path for ever (RFC 3720 9.1.1)."""
    credentials: Credentials | None = None
    options: LoginOptions = LoginOptions()
    connection_set: ConnectionSet = ConnectionSet()


class DiscoverySpec(_Wire):
    """One SendTargets=All discovery."""

    portal: str
    credentials: Credentials | None = None
    timeout: float = 10.0


class DiscoveredPortal(_Wire):
    """One line of a discovery's answer."""

    target: str
    portal: str
    tag: int | None = None


class PathSetting(_Wire):
    """What policies are told of the path of a volume through one session."""

    session: str
    weight: Number = Field(default=0, ge=0, le=MAXIMUM_WEIGHT)
    standby: bool = False
    primary: bool = False


class VolumeSpec(_Wire):
    """One volume that shall be served.

    Every session of ``targets`` that shows a logical unit with ``identity`` becomes a path, after its identity,
    size and block size were checked.
    """

    name: str
    identity: str
    targets: tuple[str, ...]
    policy: Policy = Policy.FAIL_OVER_ONLY
    failback: bool = True
    """Whether I/O returns to a path that was lost and is back, from the one that took over."""
    path_settings: tuple[PathSetting, ...] = ()
    """For paths that are not ordinary ones; a session that does not exist is no error."""
    read_only: bool = False


class Fault(_Wire):
    """Why something is not as it should be: stable code and name, text for people."""

    code: int
    name: str
    message: str


class LogicalUnit(_Wire):
    """A logical unit as one session shows it."""

    lun: int
    device_type: int
    """SPC-4 peripheral device type: 0 is a disk."""
    vendor: str = ""
    product: str = ""
    revision: str = ""
    serial: str = ""
    identity: str = ""
    """Strongest VPD 83h designator with logical unit association; empty where the unit shows none."""
    identity_is_weak: bool = False
    """A designator that is known not to be unique: such units merge only within one target."""
    size: int = 0
    block_size: int = 0
    read_only: bool = False
    fault: Fault | None = None


class SessionPhase(enum.StrEnum):
    """Where a session is in its life."""

    CONNECTING = "connecting"
    """First login, not there yet; retried with back-off."""
    LOGGED_IN = "logged_in"
    RECOVERING = "recovering"
    """It was logged in and is coming back by reinstatement."""
    FAILED = "failed"
    """Login was refused in a way that the same login will not change (authentication, not found)."""
    CLOSING = "closing"


class ConnectionPhase(enum.StrEnum):
    """Where a connection of a session is in its life."""

    CONNECTING = "connecting"
    LOGGED_IN = "logged_in"
    RECOVERING = "recovering"
    """Lost; its tasks go on elsewhere, or here after it is back."""
    LEAVING = "leaving"
    """Takes no new commands; logged out when those that it has are done."""
    FAILED = "failed"
    """Its last login failed; tried again later."""


class ConnectionState(_Wire):
    """What one connection of a session is doing; the numbers are of SCSI commands since it was first logged in."""

    cid: int | None = None
    """Connection id (RFC 3720 10.12.6); none before the first login of a further connection."""
    portal: str
    phase: ConnectionPhase
    active: bool = False
    """Whether the policy sends it commands now, or holds it in reserve."""
    weight: int = 0
    standby: bool = False
    commands: int = 0
    in_flight: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    error: str = ""
    """Why it is not logged in."""


class SessionState(_Wire):
    """What a session is doing."""

    key: str
    target: str
    portal: str
    phase: SessionPhase
    isid: str
    tsih: int = 0
    tag: int | None = None
    credentials_fingerprint: str = ""
    """Of the credentials that this session's next login uses; ``relogin_pending`` tells whether the present login
    used others."""
    options: LoginOptions = LoginOptions()
    """The options that this session's next login uses."""
    connection_set: ConnectionSet = ConnectionSet()
    """The connections that were asked for last."""
    connections: tuple[ConnectionState, ...] = ()
    """Those that there are while the session is logged in, the leading one first."""
    relogin_pending: bool = False
    """Newer credentials or options wait for the next login."""
    negotiated: dict[str, str] = {}
    logins: int = 0
    """How often it has logged in since it was opened."""
    units: tuple[LogicalUnit, ...] = ()
    fault: Fault | None = None
    counters: dict[str, int] = {}


class PathPhase(enum.StrEnum):
    """State of a path to a logical unit."""

    ACTIVE = "active"
    STANDBY = "standby"
    FAILED = "failed"
    FENCING = "fencing"
    MISMATCH = "identity_mismatch"


class PathState(_Wire):
    """One path of a volume."""

    session: str
    lun: int
    phase: PathPhase
    preferred: bool = False
    """The target prefers it."""
    weight: int = 0
    standby: bool = False
    primary: bool = False
    counters: dict[str, int] = {}


class VolumeState(_Wire):
    """What a volume is doing."""

    name: str
    identity: str
    targets: tuple[str, ...] = ()
    size: int = 0
    block_size: int = 0
    policy: Policy
    failback: bool = True
    path_settings: tuple[PathSetting, ...] = ()
    """Those that were asked for last, of sessions that exist or not."""
    read_only: bool = False
    phase: Literal["online", "degraded", "queueing", "failed"] = "online"
    socket: str = ""
    clients: int = 0
    paths: tuple[PathState, ...] = ()
    counters: dict[str, int] = {}
    fault: Fault | None = None


class EngineState(_Wire):
    """Everything an engine does."""

    instance: str
    """Changes whenever the engine starts anew."""
    version: str
    pid: int = 0
    initiator: InitiatorSpec | None = None
    sessions: tuple[SessionState, ...] = ()
    volumes: tuple[VolumeState, ...] = ()


class EngineEvent(_Wire):
    """Something that happened; numbers up to 121 are those of the Microsoft guide where it has the event."""

    sequence: int
    """Grows by one from event to event, and also from one engine process to the next."""
    time: float
    """Seconds since the epoch."""
    number: int
    name: str
    severity: Literal["info", "warning", "error"] = "info"
    subject: str
    message: str
    details: dict[str, str] = Field(default_factory=dict)


class TraceSpec(_Wire):
    """What a trace shall hold."""

    target: str
    portal: str | None = None
    """Only the sessions through this portal; None: all sessions of the target, also those opened later."""
    data: int | None = Field(None, ge=0, le=2**24)
    """Bytes of SCSI data that are kept of a PDU; None: all.  Headers, text and sense are always whole."""
    with_chap: bool = False
    """Whether CHAP responses are left as they went over the wire."""
    seconds: float | None = Field(None, gt=0, le=86400 * 365)
    """When the trace ends by itself; None: with the last of its sessions."""


class TraceRecord(_Wire):
    """Something that a trace saw on one TCP connection."""

    kind: Literal["opened", "pdu", "closed"]
    connection: int
    """Number of the connection, unique in one run of the engine."""
    time: int
    """Microseconds since the epoch."""
    session: str = ""
    """``opened``: key of the session."""
    local: tuple[str, int] = ("", 0)
    """``opened``: this host's address and port."""
    remote: tuple[str, int] = ("", 0)
    """``opened``: the target's address and port."""
    inbound: bool = False
    """``pdu``: it came from the target."""
    before: bool = False
    """``pdu``: part of the login, which was over when the trace began."""
    offset: int = 0
    """``pdu``: bytes of its direction that the trace saw, or dropped, before it."""
    length: int = 0
    """``pdu``: bytes on the wire, digests included."""
    data: str = ""
    """``pdu``: those bytes as far as they are kept, in base64."""
    reset: bool = False
    """``closed``: the TCP connection was reset."""


class TraceBatch(_Wire):
    """What a trace saw since the batch before."""

    records: tuple[TraceRecord, ...] = ()
    dropped: int = 0
    """PDUs since the beginning of the trace that are missing because its reader was too slow."""
    dropped_bytes: int = 0
    ended: bool = False
    """Nothing follows: the time is up, or the last session was closed."""


class Engine(Protocol):
    """What the control plane may ask of a data plane.

    Every call raises :class:`~blockfleet.model.errors.BlockfleetError`; none leaves anything half done.
    """

    async def observe(self) -> EngineState:
        """Return the present state."""

    async def configure(self, initiator: InitiatorSpec) -> None:
        """Set the initiator's name; refused while sessions under another name exist."""

    async def discover(self, spec: DiscoverySpec) -> tuple[DiscoveredPortal, ...]:
        """Run one discovery session; bounded by ``spec.timeout``."""

    async def open_session(self, spec: SessionSpec) -> SessionState:
        """Start a session and keep it; returns at once, the login goes on and is seen by ``observe``.

        For a key that exists, the new credentials and options are taken for the next login, and the connections
        at once, as far as the present login lets them.
        """

    async def relogin(self, key: str) -> None:
        """Log a session out and in again, with its newest credentials and options."""

    async def close_session(self, key: str) -> None:
        """Log out and forget; closing what is not there is no error.  The caller has checked who uses it."""

    async def rescan(self, key: str) -> SessionState:
        """Ask a session again for its logical units."""

    async def publish(self, spec: VolumeSpec) -> VolumeState:
        """Serve a volume, or change how I/O is spread over the paths of one that is served."""

    async def withdraw(self, name: str) -> None:
        """Stop serving a volume and end its clients' connections."""

    def events(self, after: int = 0) -> AsyncGenerator[EngineEvent, None]:
        """Yield events with a sequence above ``after``, the kept ones first, then as they happen.

        A gap in the sequence numbers means that the reader was too slow for what is kept.
        """

    def trace(self, spec: TraceSpec) -> AsyncGenerator[TraceBatch, None]:
        """Yield the PDUs of a target's sessions as they pass, the first batch (maybe empty) at once.

        Each connection that is up begins with its login.  A reader that is too slow misses PDUs and is told how
        many; I/O never waits for it.
        """
