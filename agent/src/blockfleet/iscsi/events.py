# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session tells the shell that drives it, besides completed commands."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from blockfleet.iscsi.login import LoginResult
from blockfleet.iscsi.login_failure import LoginFailure


class LossKind(enum.Enum):
    """Why a connection was lost."""

    TRANSPORT = "the connection was closed or reset"
    PROTOCOL = "the target broke the protocol"
    DIGEST = "digest error"
    KEEPALIVE = "the target did not answer a ping in time"
    STUCK_TASK = "a command could neither finish nor be aborted"
    DROPPED = "the target announced that it drops the connection"
    LOGOUT = "logged out"
    LOGIN_TIMEOUT = "login was not finished in time"
    RECOVERY = "a lost connection could not be recovered"


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The connection is in full feature phase."""

    cid: int
    result: LoginResult


@dataclass(frozen=True, slots=True)
class LoginFailed:
    """Login ended without success; the connection is to be closed."""

    cid: int
    failure: LoginFailure


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The session is over, with all of its connections, and commands in flight have been completed.

    During login it is only the connection that is over.

    ``wait`` and ``retain`` are Time2Wait and Time2Retain in seconds: not before, and not later, may what was on
    the connection be continued (RFC 3720 10.9.1, 12.15, 12.16).
    """

    cid: int
    kind: LossKind
    detail: str
    wait: float
    retain: float


@dataclass(frozen=True, slots=True)
class LoggedOut:
    """The target has closed the session; its connections are to be closed."""

    cid: int


@dataclass(frozen=True, slots=True)
class ConnectionDropped:
    """A connection is lost and is to be closed; the session goes on, or waits to be continued."""

    cid: int
    detail: str


@dataclass(frozen=True, slots=True)
class ConnectionFreed:
    """A lost connection was logged out for recovery: its CID may be used anew."""

    cid: int


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A connection was logged out and is to be closed; the session goes on with the others."""

    cid: int


@dataclass(frozen=True, slots=True)
class ReinstatementWanted:
    """No connection is left: this one is to be logged in anew, with its CID, within ``within`` seconds.

    ``exp_stat_sn`` acknowledges what it had received (RFC 3720 10.12.9).
    """

    cid: int
    exp_stat_sn: int
    within: float


@dataclass(frozen=True, slots=True)
class LogoutAsked:
    """The target wants to be logged out within ``seconds`` (asynchronous event 1)."""

    cid: int
    seconds: int


@dataclass(frozen=True, slots=True)
class AsyncNotice:
    """An asynchronous message that is for the user of the session: SCSI events (0) and the vendor's (255)."""

    code: int
    vendor_code: int
    lun: int
    sense: bytes


@dataclass(frozen=True, slots=True)
class QuirkMet:
    """A target did something in its own way, and was understood (``blockfleet.iscsi.quirks``)."""

    cid: int
    kind: str
    detail: str


Event = (
    LoggedIn
    | LoginFailed
    | ConnectionLost
    | LoggedOut
    | ConnectionDropped
    | ConnectionFreed
    | ConnectionClosed
    | ReinstatementWanted
    | LogoutAsked
    | AsyncNotice
    | QuirkMet
)
