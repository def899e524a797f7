# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a login failed, what its status means, and the error that people see (RFC 3720 10.13.5)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from blockfleet.iscsi.constants import LoginStatus, LoginStatusClass
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal


class FailureKind(enum.Enum):
    """Causes that a caller may treat differently."""

    PROTOCOL = "the target broke the protocol"
    NEGOTIATION = "negotiation failed"
    AUTHENTICATION = "authentication failed"
    TARGET_AUTHENTICATION = "the target failed to authenticate itself"
    AUTHORIZATION = "this initiator is not allowed to use the target"
    NOT_FOUND = "no such target there"
    REMOVED = "the target was removed"
    VERSION = "no common protocol version"
    TOO_MANY_CONNECTIONS = "too many connections in the session"
    MISSING_PARAMETER = "the target misses a parameter"
    CANNOT_INCLUDE = "the session cannot span to this portal"
    SESSION_TYPE = "session type not supported"
    NO_SESSION = "the session does not exist any more"
    INVALID_REQUEST = "request not allowed during login"
    INITIATOR_ERROR = "the target refused the login"
    REDIRECT_TEMPORARY = "the target moved temporarily"
    REDIRECT_PERMANENT = "the target moved permanently"
    PORTAL_GROUP = "the portal belongs to another portal group"
    TARGET_ERROR = "target hardware or software error"
    UNAVAILABLE = "the target or its service is not operational"
    RESOURCES = "the target is out of resources"
    UNKNOWN_STATUS = "the target gave a status of a reserved class"
    CLOSED = "the target closed the connection during negotiation"
    RECOVERY_LEVEL = "the error recovery level is not safe with this target"


@dataclass(frozen=True, slots=True)
class LoginFailure:
    """The end of a login that did not succeed; the connection must be closed.

    ``status`` is Status-Class and Status-Detail as received, 0 when it is we who gave up.  ``retry`` says
    whether the same login may succeed later.  ``redirect`` is where a moved target is.
    ``retry_single_algorithm`` is set when the target may have stumbled over the list of CHAP algorithms: the
    caller then logs in once more, on a new connection, with ``ChapCredentials.with_last_algorithm()``, and
    logs that as a downgrade.  ``retry_at_level`` is the ErrorRecoveryLevel to offer on a new connection, where it
    may be the one that was offered which the target cannot live with.
    """

    kind: FailureKind
    message: str
    status: int = 0
    retry: bool = False
    redirect: tuple[Portal, int | None] | None = None
    retry_single_algorithm: bool = False
    retry_at_level: int | None = None


_K = FailureKind

_STATUS_KINDS: dict[int, FailureKind] = {
    LoginStatus.TARGET_MOVED_TEMPORARILY: _K.REDIRECT_TEMPORARY,
    LoginStatus.TARGET_MOVED_PERMANENTLY: _K.REDIRECT_PERMANENT,
    LoginStatus.AUTHENTICATION_FAILURE: _K.AUTHENTICATION,
    LoginStatus.AUTHORIZATION_FAILURE: _K.AUTHORIZATION,
    LoginStatus.NOT_FOUND: _K.NOT_FOUND,
    LoginStatus.TARGET_REMOVED: _K.REMOVED,
    LoginStatus.UNSUPPORTED_VERSION: _K.VERSION,
    LoginStatus.TOO_MANY_CONNECTIONS: _K.TOO_MANY_CONNECTIONS,
    LoginStatus.MISSING_PARAMETER: _K.MISSING_PARAMETER,
    LoginStatus.CANNOT_INCLUDE_IN_SESSION: _K.CANNOT_INCLUDE,
    LoginStatus.SESSION_TYPE_NOT_SUPPORTED: _K.SESSION_TYPE,
    LoginStatus.SESSION_DOES_NOT_EXIST: _K.NO_SESSION,
    LoginStatus.INVALID_DURING_LOGIN: _K.INVALID_REQUEST,
    LoginStatus.SERVICE_UNAVAILABLE: _K.UNAVAILABLE,
    LoginStatus.OUT_OF_RESOURCES: _K.RESOURCES,
}

_CLASS_KINDS: dict[int, FailureKind] = {
    LoginStatusClass.REDIRECTION: _K.REDIRECT_TEMPORARY,
    LoginStatusClass.INITIATOR_ERROR: _K.INITIATOR_ERROR,
    LoginStatusClass.TARGET_ERROR: _K.TARGET_ERROR,
}


def kind_of_status(status: int) -> FailureKind:
    """Return the cause that a status stands for; a detail that is unknown counts as its class."""
    return _STATUS_KINDS.get(status) or _CLASS_KINDS.get(status >> 8, _K.UNKNOWN_STATUS)


def may_retry_status(status: int) -> bool:
    """Whether the same login may succeed later: only for target errors (RFC 3720 10.13.5)."""
    return status >> 8 == LoginStatusClass.TARGET_ERROR


_SAYS_NOTHING = frozenset({LoginStatus.INITIATOR_ERROR, LoginStatus.INVALID_DURING_LOGIN, LoginStatus.TARGET_ERROR})


def may_mean_an_offer(status: int) -> bool:
    """Whether a target may refuse with this status because of a key's value: it names no other cause."""
    return status in _SAYS_NOTHING or kind_of_status(status) is FailureKind.UNKNOWN_STATUS


_WAIT = "the login is repeated by itself; look at the target if this lasts"
_LOOK = "see the target's log for what it objects to"
_CHECK_CHAP = "check chap.user and chap.secret against the target's configuration"

_ERRORS: dict[FailureKind, tuple[Isdsc, str]] = {
    _K.PROTOCOL: (Isdsc.PROTOCOL_ERROR, "check that an iSCSI target listens there, and its version"),
    _K.NEGOTIATION: (
        Isdsc.LOGIN_FAILED,
        "allow 'none' in login.header_digest and login.data_digest, or turn digests on at the target",
    ),
    _K.AUTHENTICATION: (Isdsc.AUTHENTICATION_FAILURE, _CHECK_CHAP),
    _K.TARGET_AUTHENTICATION: (
        Isdsc.AUTHENTICATION_FAILURE,
        "check chap.mutual_user and chap.mutual_secret, and that the portal is the right machine",
    ),
    _K.AUTHORIZATION: (
        Isdsc.AUTHORIZATION_FAILURE,
        "let the target's access list have this initiator's name",
    ),
    _K.NOT_FOUND: (Isdsc.NOT_FOUND, "check the target's name and portal, or discover again"),
    _K.REMOVED: (Isdsc.TARGET_REMOVED, "remove the target here, or restore it there"),
    _K.VERSION: (Isdsc.UNSUPPORTED_VERSION, "this initiator speaks version 0 only (RFC 3720)"),
    _K.TOO_MANY_CONNECTIONS: (Isdsc.TOO_MANY_CONNECTIONS, "use fewer connections per session"),
    _K.MISSING_PARAMETER: (Isdsc.MISSING_PARAMETER, _LOOK),
    _K.CANNOT_INCLUDE: (Isdsc.CANT_INCLUDE_IN_SESSION, "use portals of one portal group"),
    _K.SESSION_TYPE: (
        Isdsc.SESSION_TYPE_NOT_SUPPORTED,
        "the target takes no session of this type; name its portals in discovery.static instead of asking it",
    ),
    _K.NO_SESSION: (Isdsc.INVALID_SESSION_ID, "log in to a new session"),
    _K.INVALID_REQUEST: (Isdsc.INITIATOR_ERROR, _LOOK),
    _K.INITIATOR_ERROR: (Isdsc.INITIATOR_ERROR, _LOOK),
    _K.REDIRECT_TEMPORARY: (Isdsc.TARGET_MOVED_TEMPORARILY, "log in where the target says it is"),
    _K.REDIRECT_PERMANENT: (Isdsc.TARGET_MOVED_PERMANENTLY, "change the portal to where the target is now"),
    _K.PORTAL_GROUP: (Isdsc.CANT_INCLUDE_IN_SESSION, "discover again: the target's portal groups changed"),
    _K.TARGET_ERROR: (Isdsc.TARGET_ERROR, _WAIT),
    _K.UNAVAILABLE: (Isdsc.SERVICE_UNAVAILABLE, _WAIT),
    _K.RESOURCES: (Isdsc.OUT_OF_RESOURCES, _WAIT),
    _K.UNKNOWN_STATUS: (Isdsc.LOGIN_FAILED, _LOOK),
    _K.CLOSED: (Isdsc.CONNECTION_FAILED, _LOOK),
    _K.RECOVERY_LEVEL: (Isdsc.LOGIN_FAILED, "declare login.error_recovery_level"),
}


def login_error(
    failure: LoginFailure, target: str | None, portal: Portal | str, *, field: str = ""
) -> BlockfleetError:
    """Return the error for people and programs; ``target`` None is a discovery session."""
    code, remedy = _ERRORS[failure.kind]
    where = f"{target} at {portal}" if target else f"the discovery service at {portal}"
    status = f" ({failure.status:04x})" if failure.status else ""
    cause = failure.kind.value
    if failure.message and failure.message != cause:
        cause = f"{cause}: {failure.message}"
    return BlockfleetError(code, f"cannot log in to {where}: {cause}{status}", remedy=remedy, field=field)
