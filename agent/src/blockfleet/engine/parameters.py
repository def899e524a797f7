# SPDX-License-Identifier: GPL-3.0-or-later
"""From the specifications of the control protocol to what the transport takes."""

from __future__ import annotations

from blockfleet.engine.connections import further_connections
from blockfleet.engine.interface import Credentials, InitiatorSpec, SessionSpec, session_key
from blockfleet.iscsi.chap import ALGORITHM_NAMES, ChapCredentials
from blockfleet.model import names
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.names import InvalidName
from blockfleet.model.portal import InvalidPortal, Portal
from blockfleet.model.secret import Secret
from blockfleet.net.nexus import NexusParameters

ISID_LENGTH = 6
"""Bytes of an initiator session id (RFC 3720 10.12.5)."""


def nexus_parameters(spec: SessionSpec, initiator: InitiatorSpec) -> NexusParameters:
    """Return what a nexus logs in with.  Raises ``INVALID_PARAMETER`` and the like, naming the field."""
    options = spec.options
    target = iscsi_name(spec.target, "target")
    portal = parse_portal(spec.portal, "portal")
    if spec.key != session_key(target, str(portal)):
        raise BlockfleetError(
            Isdsc.INVALID_PARAMETER,
            f"key {spec.key[:300]!r} is not that of a session to {target} at {portal}",
            remedy=f"use {session_key(target, str(portal))!r}",
            field="key",
        )
    wanted = spec.connection_set
    return NexusParameters(
        initiator_name=initiator.name,
        initiator_alias=initiator.alias,
        target=target,
        portal=portal,
        isid=parse_isid(spec.isid),
        credentials=chap_credentials(spec.credentials),
        header_digest=options.header_digest,
        data_digest=options.data_digest,
        login_timeout=options.login_timeout,
        noop_interval=options.noop_interval,
        noop_timeout=options.noop_timeout,
        weight=wanted.leading.weight,
        standby=wanted.leading.standby,
        connections=further_connections(wanted, portal),
        connection_policy=wanted.policy,
        error_recovery_level=options.error_recovery_level,
    )


def needs_new_login(used: NexusParameters, wanted: NexusParameters) -> bool:
    """Tell whether ``wanted`` differs from ``used`` in something that only a new login brings into force."""
    return used.taking(wanted) != wanted


def chap_credentials(credentials: Credentials | None) -> ChapCredentials | None:
    """Return credentials in the form that the login takes; raises ``LOGIN_USER_INFO_BAD`` and the like."""
    if credentials is None:
        return None
    mutual = credentials.mutual_secret
    unknown = [name[:32] for name in credentials.algorithms if name not in ALGORITHM_NAMES]
    if unknown:
        raise BlockfleetError(
            Isdsc.INVALID_LOGON_AUTH_TYPE,
            f"unknown CHAP algorithm {unknown[0]!r}",
            remedy=f"use {', '.join(ALGORITHM_NAMES)}",
            field="credentials.algorithms",
        )
    try:
        return ChapCredentials(
            user=credentials.user,
            secret=Secret(credentials.secret.get_secret_value()),
            mutual_user=credentials.mutual_user,
            mutual_secret=None if mutual is None else Secret(mutual.get_secret_value()),
            algorithms=tuple(ALGORITHM_NAMES[name] for name in credentials.algorithms),
            # Whether a short secret is good enough is the desired state's to say, and was checked with it.
            allow_weak=True,
        )
    except ValueError as error:
        raise BlockfleetError(
            Isdsc.LOGIN_USER_INFO_BAD, f"CHAP credentials: {error}", field="credentials"
        ) from None


def parse_portal(text: str, field: str) -> Portal:
    """Read a portal; raises ``NO_PORTAL_SPECIFIED`` naming ``field``."""
    try:
        return Portal.parse(text)
    except InvalidPortal as error:
        raise BlockfleetError(Isdsc.NO_PORTAL_SPECIFIED, str(error), field=field) from None


def iscsi_name(text: str, field: str) -> str:
    """Normalise an iSCSI name; raises ``INVALID_ISCSI_NAME`` naming ``field``."""
    try:
        return names.normalise(text)
    except InvalidName as error:
        raise BlockfleetError(Isdsc.INVALID_ISCSI_NAME, str(error), field=field) from None


def parse_isid(text: str) -> bytes:
    """Read twelve hexadecimal digits; raises ``INVALID_SESSION_ID``."""
    try:
        isid = bytes.fromhex(text)
    except ValueError:
        isid = b""
    if len(isid) != ISID_LENGTH:
        raise BlockfleetError(
            Isdsc.INVALID_SESSION_ID,
            f"ISID {text[:40]!r} is not {2 * ISID_LENGTH} hexadecimal digits",
            field="isid",
        )
    return isid
