# SPDX-License-Identifier: GPL-3.0-or-later
"""Events and their stable numbers.

Numbers 1 to 62 are those of the Microsoft guide's kernel-mode driver (Appendix B, source ``iScsiPrt``), 102 to
121 those of its service; 1001 and above are ours, for what the guide has no event for.  The meaning of a number
never changes.  Texts are our own; no event carries a secret, a CHAP challenge or a CHAP response, although the
guide's events 15, 17, 35 and 36 do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]


class EventNumber(enum.IntEnum):
    """Which event it is; ``name`` in lower case is the name that programs see."""

    CONNECT_FAILED = 1
    SESSION_RESOURCES = 2
    LOGIN_COMMAND_WINDOW = 3
    BURST_LENGTHS = 4
    INITIATOR_PORTAL_FAILED = 5
    CONNECTION_RESOURCES = 6
    SEND_FAILED = 7
    REQUEST_TIMEOUT = 8
    SCSI_TIMEOUT = 9
    LOGIN_FAILED = 10
    LOGIN_RESPONSE_INVALID = 11
    REDIRECT_INVALID = 12
    AUTH_METHOD_UNKNOWN = 13
    CHAP_ALGORITHM_UNKNOWN = 14
    CHAP_CHALLENGE_INVALID = 15
    CHAP_KEY_INVALID = 16
    CHAP_RESPONSE_MISMATCH = 17
    HEADER_DIGEST_REQUIRED = 18
    DATA_DIGEST_REQUIRED = 19
    CONNECTION_LOST = 20
    DATA_SEGMENT_TOO_LONG = 21
    HEADER_DIGEST_ERROR = 22
    PDU_INVALID = 23
    OPCODE_INVALID = 24
    DATA_DIGEST_ERROR = 25
    TOO_MUCH_DATA = 26
    TASK_TAG_UNKNOWN = 27
    R2T_INVALID = 28
    PDU_REJECTED = 29
    WORK_ITEM_RESOURCES = 30
    REQUEST_RESOURCES = 31
    ASYNC_LOGOUT = 32
    CHAP_CHALLENGE_TOO_LONG = 33
    RECONNECTED = 34
    TARGET_SECRET_SHORT = 35
    INITIATOR_SECRET_SHORT = 36
    FIPS_UNAVAILABLE = 37
    CHAP_NOT_OFFERED = 38
    TARGET_RESET_SENT = 39
    CHAP_NOT_CONFIGURED = 40
    AUTH_METHOD_MISSING = 41
    STAT_SN_INVALID = 42
    LOGIN_TIMEOUT = 43
    LOGOUT_TIMEOUT = 44
    ADD_CONNECTION_TIMEOUT = 45
    SEND_TARGETS_TIMEOUT = 46
    PASSTHROUGH_TIMEOUT = 47
    NOP_TIMEOUT = 48
    TASK_MANAGEMENT_TIMEOUT = 49
    TEXT_TIMEOUT = 50
    ASYNC_LOGOUT_TIMEOUT = 51
    IPSEC_CONFIGURE_TIMEOUT = 52
    IPSEC_RELEASE_TIMEOUT = 53
    SERVICE_CRYPTO_TIMEOUT = 54
    SEND_RESOURCES = 55
    BUFFER_MAPPING_FAILED = 56
    IO_RESOURCES = 57
    TASK_TAG_RESOURCES = 58
    DROPPED_DURING_LOGIN = 59
    DATA_IN_RESPONSE = 60
    DATA_PDU_ORDER_REFUSED = 61
    DATA_SEQUENCE_ORDER_REFUSED = 62

    BOUND_VOLUMES_FAILED = 102
    BOUND_VOLUMES_TIMEOUT = 103
    ONLINE_DISK_FAILED = 104
    IPSEC_INITIALISATION_FAILED = 105
    SERVICE_INITIALISATION_FAILED = 106
    NO_INITIATOR_SECRET = 107
    DEVICE_NOT_ISCSI_INITIATOR = 108
    UPCALL_FORMAT_ERROR = 109
    INITIATOR_REQUEST_FAILED = 110
    STATIC_DISCOVERY_FAILED = 111
    ISNS_DISCOVERY_FAILED = 112
    SEND_TARGETS_FAILED = 113
    SEND_TARGETS_TEXT_INVALID = 114
    HBA_DISCOVERY_FAILED = 115
    DEVICE_NOT_REMOVED = 116
    IPSEC_CONFIGURE_FAILED = 117
    EVALUATION_EXPIRED = 118
    ISNS_ADDRESS_ENUMERATION_FAILED = 119
    NOT_ON_FIREWALL_LIST = 120
    FIREWALL_CHECK_FAILED = 121

    LOGGED_IN = 1001
    LOGGED_OUT = 1002
    SESSION_OPENED = 1003
    SESSION_CLOSED = 1004
    CREDENTIALS_CHANGED = 1005
    UNITS_CHANGED = 1006
    VOLUME_PUBLISHED = 1101
    VOLUME_WITHDRAWN = 1102
    VOLUME_DEGRADED = 1103
    VOLUME_RECOVERED = 1104
    VOLUME_FAILED = 1105
    VOLUME_RESIZED = 1106
    CLIENT_CONNECTED = 1107
    CLIENT_DISCONNECTED = 1108
    PATH_ADDED = 1201
    PATH_REMOVED = 1202
    PATH_FAILED = 1203
    PATH_RESTORED = 1204
    PATH_FENCING = 1205
    PATH_FENCED = 1206
    PATH_SWITCHED = 1207
    IDENTITY_MISMATCH = 1208
    CHANGE_APPLIED = 1301
    CHANGE_NOT_VERIFIED = 1302
    DRIFT_FOUND = 1303
    DRIFT_REPAIRED = 1304
    DRIFT_REPAIR_FAILED = 1305
    ENGINE_STARTED = 1306
    ENGINE_LOST = 1307
    ENGINE_ADOPTED = 1308
    STATE_DEGRADED = 1309
    SECRET_UNREADABLE = 1310


@dataclass(frozen=True, slots=True)
class EventKind:
    """What an event is called, how bad it is, and what it says."""

    number: EventNumber
    severity: Severity
    text: str

    @property
    def name(self) -> str:
        """Return the stable name, lower case with underscores."""
        return self.number.name.lower()


_N = EventNumber

_TABLE: tuple[tuple[EventNumber, Severity, str], ...] = (
    (_N.CONNECT_FAILED, "error", "no TCP connection to the portal"),
    (_N.SESSION_RESOURCES, "error", "no resources for a session"),
    (_N.LOGIN_COMMAND_WINDOW, "error", "MaxCmdSN is below ExpCmdSN in the login response"),
    (_N.BURST_LENGTHS, "error", "MaxBurstLength is below FirstBurstLength"),
    (_N.INITIATOR_PORTAL_FAILED, "error", "the local address could not be used"),
    (_N.CONNECTION_RESOURCES, "error", "no resources for a connection"),
    (_N.SEND_FAILED, "error", "a PDU could not be sent"),
    (_N.REQUEST_TIMEOUT, "error", "the target or discovery service did not answer an iSCSI request in time"),
    (_N.SCSI_TIMEOUT, "warning", "the target did not answer a SCSI command in time"),
    (_N.LOGIN_FAILED, "error", "login failed"),
    (_N.LOGIN_RESPONSE_INVALID, "error", "the target sent an invalid login response"),
    (_N.REDIRECT_INVALID, "error", "the target redirected the login with invalid data"),
    (_N.AUTH_METHOD_UNKNOWN, "error", "the target chose an unknown AuthMethod"),
    (_N.CHAP_ALGORITHM_UNKNOWN, "error", "the target chose an unknown CHAP algorithm"),
    (_N.CHAP_CHALLENGE_INVALID, "error", "the target's CHAP challenge is malformed"),
    (_N.CHAP_KEY_INVALID, "error", "an invalid key came during the CHAP exchange"),
    (_N.CHAP_RESPONSE_MISMATCH, "error", "the target did not prove that it knows the mutual secret"),
    (_N.HEADER_DIGEST_REQUIRED, "error", "a header digest is required and the target offers none"),
    (_N.DATA_DIGEST_REQUIRED, "error", "a data digest is required and the target offers none"),
    (_N.CONNECTION_LOST, "warning", "the connection was lost and is being tried again"),
    (_N.DATA_SEGMENT_TOO_LONG, "error", "a data segment is longer than MaxRecvDataSegmentLength"),
    (_N.HEADER_DIGEST_ERROR, "warning", "a header digest did not match"),
    (_N.PDU_INVALID, "error", "the target sent an invalid PDU"),
    (_N.OPCODE_INVALID, "error", "the target sent an unknown opcode"),
    (_N.DATA_DIGEST_ERROR, "warning", "a data digest did not match"),
    (_N.TOO_MUCH_DATA, "error", "the target sent more data than was asked for"),
    (_N.TASK_TAG_UNKNOWN, "warning", "a PDU carries an initiator task tag that no task has"),
    (_N.R2T_INVALID, "error", "the target sent an invalid R2T"),
    (_N.PDU_REJECTED, "error", "the target rejected a PDU"),
    (_N.WORK_ITEM_RESOURCES, "error", "no resources to process a request"),
    (_N.REQUEST_RESOURCES, "error", "no resources to process a request"),
    (_N.ASYNC_LOGOUT, "warning", "the target asked for a logout"),
    (_N.CHAP_CHALLENGE_TOO_LONG, "error", "the target's CHAP challenge is longer than the protocol allows"),
    (_N.RECONNECTED, "info", "the connection was lost and is back"),
    (_N.TARGET_SECRET_SHORT, "error", "the target's CHAP secret is shorter than 12 bytes"),
    (_N.INITIATOR_SECRET_SHORT, "error", "the initiator's CHAP secret is shorter than 12 bytes"),
    (_N.FIPS_UNAVAILABLE, "error", "the cryptographic service is not available"),
    (_N.CHAP_NOT_OFFERED, "error", "CHAP is required and the target does not offer it"),
    (_N.TARGET_RESET_SENT, "warning", "a target reset was sent"),
    (_N.CHAP_NOT_CONFIGURED, "error", "the target requires CHAP and no credentials are configured"),
    (_N.AUTH_METHOD_MISSING, "error", "the target sent no AuthMethod in security negotiation"),
    (_N.STAT_SN_INVALID, "error", "the target sent an unexpected StatSN"),
    (_N.LOGIN_TIMEOUT, "error", "the target did not answer a login in time"),
    (_N.LOGOUT_TIMEOUT, "warning", "the target did not answer a logout in time"),
    (_N.ADD_CONNECTION_TIMEOUT, "error", "the target did not answer the login of a further connection in time"),
    (_N.SEND_TARGETS_TIMEOUT, "error", "the target did not answer SendTargets in time"),
    (_N.PASSTHROUGH_TIMEOUT, "warning", "the target did not answer a SCSI command of the management API in time"),
    (_N.NOP_TIMEOUT, "warning", "the target did not answer a ping in time"),
    (_N.TASK_MANAGEMENT_TIMEOUT, "warning", "the target did not answer a task management request in time"),
    (_N.TEXT_TIMEOUT, "warning", "the target did not answer a text request in time"),
    (_N.ASYNC_LOGOUT_TIMEOUT, "warning", "the target did not answer the logout it had asked for in time"),
    (_N.IPSEC_CONFIGURE_TIMEOUT, "error", "IPsec was not configured in time"),
    (_N.IPSEC_RELEASE_TIMEOUT, "error", "IPsec was not released in time"),
    (_N.SERVICE_CRYPTO_TIMEOUT, "error", "the service did not encrypt or decrypt in time"),
    (_N.SEND_RESOURCES, "error", "no resources to send data"),
    (_N.BUFFER_MAPPING_FAILED, "error", "a buffer could not be mapped"),
    (_N.IO_RESOURCES, "error", "no resources for an I/O request"),
    (_N.TASK_TAG_RESOURCES, "error", "no task tag is free"),
    (_N.DROPPED_DURING_LOGIN, "error", "the target closed the connection before the login was done"),
    (_N.DATA_IN_RESPONSE, "error", "the target sent data other than sense data in a SCSI Response"),
    (_N.DATA_PDU_ORDER_REFUSED, "error", "the target refuses DataPDUInOrder=Yes"),
    (_N.DATA_SEQUENCE_ORDER_REFUSED, "error", "the target refuses DataSequenceInOrder=Yes"),
    (_N.BOUND_VOLUMES_FAILED, "error", "bound volumes could not be looked for"),
    (_N.BOUND_VOLUMES_TIMEOUT, "error", "bound volumes did not come in time"),
    (_N.ONLINE_DISK_FAILED, "error", "a disk could not be brought online"),
    (_N.IPSEC_INITIALISATION_FAILED, "error", "IPsec is not accessible"),
    (_N.SERVICE_INITIALISATION_FAILED, "error", "the service could not start"),
    (_N.NO_INITIATOR_SECRET, "error", "the initiator's own secret could not be read"),
    (_N.DEVICE_NOT_ISCSI_INITIATOR, "info", "a device does not offer the initiator interfaces"),
    (_N.UPCALL_FORMAT_ERROR, "error", "the engine sent a malformed message"),
    (_N.INITIATOR_REQUEST_FAILED, "error", "a request to the initiator failed"),
    (_N.STATIC_DISCOVERY_FAILED, "error", "statically declared targets could not be used"),
    (_N.ISNS_DISCOVERY_FAILED, "error", "discovery by iSNS failed"),
    (_N.SEND_TARGETS_FAILED, "error", "discovery by SendTargets failed"),
    (_N.SEND_TARGETS_TEXT_INVALID, "error", "the answer to SendTargets is malformed"),
    (_N.HBA_DISCOVERY_FAILED, "error", "discovery by a host bus adapter failed"),
    (_N.DEVICE_NOT_REMOVED, "warning", "a session was not ended because a device on it is in use"),
    (_N.IPSEC_CONFIGURE_FAILED, "error", "IPsec is required and could not be configured"),
    (_N.EVALUATION_EXPIRED, "error", "the evaluation period is over"),
    (_N.ISNS_ADDRESS_ENUMERATION_FAILED, "error", "the iSNS client could not list the local addresses"),
    (_N.NOT_ON_FIREWALL_LIST, "warning", "the firewall may keep iSNS notifications away"),
    (_N.FIREWALL_CHECK_FAILED, "warning", "the firewall could not be checked"),
    (_N.LOGGED_IN, "info", "logged in"),
    (_N.LOGGED_OUT, "info", "logged out"),
    (_N.SESSION_OPENED, "info", "a session is wanted"),
    (_N.SESSION_CLOSED, "info", "a session is wanted no more"),
    (_N.CREDENTIALS_CHANGED, "info", "the next login uses new credentials"),
    (_N.UNITS_CHANGED, "info", "the target's logical units changed"),
    (_N.VOLUME_PUBLISHED, "info", "a volume is served"),
    (_N.VOLUME_WITHDRAWN, "info", "a volume is served no more"),
    (_N.VOLUME_DEGRADED, "warning", "a volume lost paths"),
    (_N.VOLUME_RECOVERED, "info", "a volume has all its paths"),
    (_N.VOLUME_FAILED, "error", "a volume has no usable path"),
    (_N.VOLUME_RESIZED, "warning", "a volume's logical unit changed its size"),
    (_N.CLIENT_CONNECTED, "info", "a client opened a volume"),
    (_N.CLIENT_DISCONNECTED, "info", "a client closed a volume"),
    (_N.PATH_ADDED, "info", "a path joined a volume"),
    (_N.PATH_REMOVED, "info", "a path left a volume"),
    (_N.PATH_FAILED, "warning", "a path failed"),
    (_N.PATH_RESTORED, "info", "a path works again"),
    (_N.PATH_FENCING, "warning", "a path with writes of unknown outcome is being fenced"),
    (_N.PATH_FENCED, "info", "a path was fenced and its writes were sent again"),
    (_N.PATH_SWITCHED, "info", "I/O moved to another path"),
    (_N.IDENTITY_MISMATCH, "error", "a path shows another logical unit than the volume is bound to"),
    (_N.CHANGE_APPLIED, "info", "a change of the desired state was applied"),
    (_N.CHANGE_NOT_VERIFIED, "warning", "the host has not reached the desired state in time"),
    (_N.DRIFT_FOUND, "warning", "the host is not as it was declared"),
    (_N.DRIFT_REPAIRED, "info", "drift was put right"),
    (_N.DRIFT_REPAIR_FAILED, "error", "drift could not be put right"),
    (_N.ENGINE_STARTED, "info", "the engine started anew"),
    (_N.ENGINE_LOST, "error", "the engine cannot be reached"),
    (_N.ENGINE_ADOPTED, "info", "a running engine was adopted with its sessions and volumes"),
    (_N.STATE_DEGRADED, "error", "the agent's state cannot be used; devices are left alone"),
    (_N.SECRET_UNREADABLE, "error", "a stored secret cannot be decrypted; declare it again"),
)

EVENTS: dict[EventNumber, EventKind] = {row[0]: EventKind(*row) for row in _TABLE}
"""Every event by its number."""
