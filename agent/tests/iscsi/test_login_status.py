# SPDX-License-Identifier: GPL-3.0-or-later
"""Login statuses and redirections: what each means to the caller and to people (RFC 3720 10.13.5)."""

from __future__ import annotations

import pytest
from tests.iscsi.scripted_login import TARGET, Script

from blockfleet.iscsi.login_failure import FailureKind, LoginFailure, login_error
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal

STATUSES = [
    # status, kind, retry, error
    (0x0200, "INITIATOR_ERROR", False, Isdsc.INITIATOR_ERROR),
    (0x0201, "AUTHENTICATION", False, Isdsc.AUTHENTICATION_FAILURE),
    (0x0202, "AUTHORIZATION", False, Isdsc.AUTHORIZATION_FAILURE),
    (0x0203, "NOT_FOUND", False, Isdsc.NOT_FOUND),
    (0x0204, "REMOVED", False, Isdsc.TARGET_REMOVED),
    (0x0205, "VERSION", False, Isdsc.UNSUPPORTED_VERSION),
    (0x0206, "TOO_MANY_CONNECTIONS", False, Isdsc.TOO_MANY_CONNECTIONS),
    (0x0207, "MISSING_PARAMETER", False, Isdsc.MISSING_PARAMETER),
    (0x0208, "CANNOT_INCLUDE", False, Isdsc.CANT_INCLUDE_IN_SESSION),
    (0x0209, "SESSION_TYPE", False, Isdsc.SESSION_TYPE_NOT_SUPPORTED),
    (0x020A, "NO_SESSION", False, Isdsc.INVALID_SESSION_ID),
    (0x020B, "INVALID_REQUEST", False, Isdsc.INITIATOR_ERROR),
    (0x02FF, "INITIATOR_ERROR", False, Isdsc.INITIATOR_ERROR),
    (0x0300, "TARGET_ERROR", True, Isdsc.TARGET_ERROR),
    (0x0301, "UNAVAILABLE", True, Isdsc.SERVICE_UNAVAILABLE),
    (0x0302, "RESOURCES", True, Isdsc.OUT_OF_RESOURCES),
    (0x03FF, "TARGET_ERROR", True, Isdsc.TARGET_ERROR),
    (0x0700, "UNKNOWN_STATUS", False, Isdsc.LOGIN_FAILED),
]


@pytest.mark.parametrize(
    ("status", "kind", "retry", "code"), STATUSES, ids=[f"LGN-31..34-{row[0]:04x}" for row in STATUSES]
)
def test_status_ends_the_login_with_its_cause(status: int, kind: str, retry: bool, code: Isdsc) -> None:
    script = Script()
    assert script.answer(status=status, exp_cmd_sn=0xDEADBEEF, max_cmd_sn=1) is None
    failure = script.machine.failure
    assert failure is not None
    assert (failure.kind.name, failure.retry, failure.status) == (kind, retry, status)
    error = login_error(failure, TARGET, Portal("192.0.2.1"))
    assert error.code is code
    assert str(error).startswith(f"cannot log in to {TARGET} at 192.0.2.1:3260: ")
    assert f"({status:04x})" in str(error)
    assert error.remedy


def test_every_cause_has_an_error_with_a_remedy() -> None:
    for kind in FailureKind:
        failure = LoginFailure(kind, "why")
        error = login_error(failure, None, Portal("192.0.2.1"), field="targets[0]")
        assert "the discovery service at 192.0.2.1:3260" in str(error)
        assert error.remedy
        assert error.field == "targets[0]"


def test_error_names_what_why_and_what_to_do() -> None:
    script = Script()
    script.answer(status=0x0201)
    assert script.machine.failure is not None
    assert str(login_error(script.machine.failure, TARGET, "192.0.2.1:3260")) == (
        f"cannot log in to {TARGET} at 192.0.2.1:3260: authentication failed (0201):"
        " check chap.user and chap.secret against the target's configuration"
    )


@pytest.mark.parametrize(("status", "kind"), [(0x0101, "TEMPORARY"), (0x0102, "PERMANENT"), (0x01EE, "TEMPORARY")])
@pytest.mark.parametrize(
    ("address", "portal"),
    [
        ("192.0.2.7", Portal("192.0.2.7", 3260)),
        ("192.0.2.7:3270", Portal("192.0.2.7", 3270)),
        ("[2001:db8::7]:3270", Portal("2001:db8::7", 3270)),
        ("[2001:db8::7]", Portal("2001:db8::7", 3260)),
        ("storage.example.com", Portal("storage.example.com", 3260)),
    ],
)
def test_LGN_38_redirection_in_every_form_of_address(status: int, kind: str, address: str, portal: Portal) -> None:
    script = Script()
    script.answer(f"TargetAddress={address}", status=status)
    failure = script.machine.failure
    assert failure is not None
    assert failure.kind.name == f"REDIRECT_{kind}"
    assert failure.redirect == (portal, None)
    assert not failure.retry


def test_LGN_38_portal_group_tag_in_a_redirection_is_tolerated() -> None:
    script = Script()
    script.answer("TargetAddress=192.0.2.7:3270,5", status=0x0101)
    assert script.machine.failure is not None
    assert script.machine.failure.redirect == (Portal("192.0.2.7", 3270), 5)


def test_first_usable_address_of_a_redirection_is_taken() -> None:
    script = Script()
    script.answer("TargetAddress=bad:0", "TargetAddress=192.0.2.8", "TargetAddress=192.0.2.9", status=0x0102)
    assert script.machine.failure is not None
    assert script.machine.failure.redirect == (Portal("192.0.2.8"), None)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="LGN-40-no-data"),
        pytest.param(b"TargetAddress=\0", id="LGN-40-empty"),
        pytest.param(b"TargetAddress=192.0.2.1:0\0", id="ROB-10-port-0"),
        pytest.param(b"TargetAddress=192.0.2.1", id="LGN-40-no-final-null"),
        pytest.param(b"TargetName=iqn.2026-11.com.example:x\0", id="LGN-40-other-key"),
    ],
)
def test_redirection_without_a_usable_address_is_a_protocol_error(data: bytes) -> None:
    script = Script()
    script.answer(data=data, status=0x0101)
    failure = script.machine.failure
    assert failure is not None
    assert (failure.kind, failure.status, failure.redirect) == (FailureKind.PROTOCOL, 0x0101, None)


def test_LGN_35_next_login_knows_nothing_of_a_refused_one() -> None:
    refused = Script(stat_sn=0xDEADBEEF)
    refused.answer(status=0x0301)
    again = Script()
    assert (again.last.exp_stat_sn, again.last.cmd_sn) == (0, 123)
