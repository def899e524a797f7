# SPDX-License-Identifier: GPL-3.0-or-later
"""The login phase of one connection, sans I/O (RFC 3720 5.3, 10.12, 10.13).

Login always starts in SecurityNegotiation and goes through LoginOperationalNegotiation.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from blockfleet.iscsi.chap import (
    ChallengeMemory,
    ChapCredentials,
    ChapInitiator,
    ChapProtocolError,
    TargetAuthenticationError,
)
from blockfleet.iscsi.constants import (
    DEFAULT_MRDSL,
    OPCODE_MASK,
    RESERVED_TAG,
    VERSION,
    LoginStage,
    LoginStatus,
    LoginStatusClass,
    Opcode,
)
from blockfleet.iscsi.keys import CHAP, IRRELEVANT, KEYS, NONE, NOT_UNDERSTOOD, REJECT, Function, Stage
from blockfleet.iscsi.login_failure import (
    FailureKind,
    LoginFailure,
    kind_of_status,
    may_mean_an_offer,
    may_retry_status,
)
from blockfleet.iscsi.negotiation import (
    MAXIMUM_WARNINGS,
    NegotiationError,
    Negotiator,
    OfferRefused,
    Phase,
    may_go_unanswered,
)
from blockfleet.iscsi.parameters import NORMAL_OFFER, Negotiated, SessionOffer
from blockfleet.iscsi.pdu import LoginRequest, LoginResponse, PduError, login_flags
from blockfleet.iscsi.quirks import quirks_of
from blockfleet.iscsi.serial import add
from blockfleet.iscsi.text import (
    MAXIMUM_SIMPLE_VALUE,
    Pair,
    TextError,
    TextJoiner,
    decode_text,
    encode_text,
    split_text,
)
from blockfleet.model import names
from blockfleet.model.portal import InvalidPortal, Portal, parse_target_address

MAXIMUM_ROUNDS = 16
"""Exchanges of one stage, not counting those that only continue text."""

ISID_LENGTH = 6


class SessionType(enum.Enum):
    """What a session is for (RFC 3720 12.21); the value is that of the key."""

    NORMAL = "Normal"
    DISCOVERY = "Discovery"


@dataclass(frozen=True, slots=True)
class LoginParameters:
    """Everything that a login says about itself.

    ``leading`` logins start or reinstate a session and have ``tsih`` 0.  Others join one: they need its ``tsih``
    and what it negotiated as ``session``, and ``cmd_sn`` is its next CmdSN (RFC 3720 10.12.8).
    ``exp_stat_sn`` matters only for connection reinstatement (10.12.9).  With ``credentials`` only CHAP is
    offered and nothing else accepted, unless ``authentication_optional`` lets the target choose None.
    ``expected_tag`` is the portal group that the portal must belong to, None for any.  Where the
    ErrorRecoveryLevel of ``offer`` is not ``level_declared``, a target that is known gets no more than is safe.
    Raises ValueError for contradictions.
    """

    initiator_name: str
    target_name: str | None
    isid: bytes
    initiator_alias: str = ""
    session_type: SessionType = SessionType.NORMAL
    tsih: int = 0
    cid: int = 0
    cmd_sn: int = 1
    exp_stat_sn: int = 0
    offer: SessionOffer = NORMAL_OFFER
    credentials: ChapCredentials | None = None
    authentication_optional: bool = False
    expected_tag: int | None = None
    task_tag: int = 0
    leading: bool = True
    session: Negotiated | None = None
    level_declared: bool = True

    def __post_init__(self) -> None:
        if len(self.isid) != ISID_LENGTH or self.isid[0] >> 6 == 3:
            raise ValueError("an ISID has 6 bytes and a type of 0, 1 or 2 (RFC 3720 10.12.5)")
        if self.leading != (self.tsih == 0) or self.leading != (self.session is None):
            raise ValueError("a leading login has TSIH 0 and no session; any other has both")
        if self.session_type is SessionType.NORMAL and self.target_name is None:
            raise ValueError("a normal session needs a target name (RFC 3720 5.3)")
        if self.task_tag == RESERVED_TAG:
            raise ValueError("0xffffffff is no Initiator Task Tag")
        for name in (self.initiator_name, self.target_name):
            if name is not None and names.normalise(name) != name:
                raise ValueError(f"{name} is not normalised")
        if len(self.initiator_alias.encode()) > MAXIMUM_SIMPLE_VALUE or not (self.initiator_alias.isprintable()):
            raise ValueError(f"an alias has at most {MAXIMUM_SIMPLE_VALUE} printable bytes")


@dataclass(frozen=True, slots=True)
class LoginResult:
    """A login that succeeded.

    ``exp_stat_sn`` is the StatSN that the target's next response will carry.  ``tag`` is the portal group that
    serves the connection, None if the target did not say.  ``chap_algorithm`` is None without authentication.
    ``quirk`` says what was done in another way because of what the target is known for, if anything.
    """

    negotiated: Negotiated
    tsih: int
    exp_stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    tag: int | None
    target_alias: str
    chap_algorithm: int | None
    mutual: bool
    warnings: tuple[str, ...]
    quirk: str = ""


class _Broken(Exception):
    """Ends the login, with the cause."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _protocol(message: str) -> _Broken:
    return _Broken(FailureKind.PROTOCOL, message)


class LoginMachine:
    """Runs one login: send what :meth:`start` and :meth:`receive` return, feed it every PDU that arrives.

    The bytes are whole PDUs; there are no digests in login.  Once ``result`` or ``failure`` is set the machine
    has ended and takes no more.  Nothing a target sends makes it raise.
    """

    def __init__(
        self,
        parameters: LoginParameters,
        random_bytes: Callable[[int], bytes],
        challenges: ChallengeMemory | None = None,
    ) -> None:
        self._parameters = parameters
        credentials = parameters.credentials
        self._chap = ChapInitiator(credentials, random_bytes, challenges) if credentials else None
        self._negotiator = Negotiator(
            parameters.offer,
            phase=Phase.LEADING_LOGIN if parameters.leading else Phase.ADDED_LOGIN,
            discovery=parameters.session_type is SessionType.DISCOVERY,
            session=parameters.session,
        )
        self._method: str | None = None
        self._stage = LoginStage.SECURITY_NEGOTIATION
        self._transit = False
        self._chunks: list[bytes] = []
        self._last_had_more = False
        self._joiner = TextJoiner()
        self._rounds = 0
        self._stat_sn: int | None = None
        self._algorithms_sent = False
        self._warnings: list[str] = []
        self._quirk = ""
        self.result: LoginResult | None = None
        self.failure: LoginFailure | None = None

    @property
    def done(self) -> bool:
        """Whether the login has ended, one way or the other."""
        return self.result is not None or self.failure is not None

    def start(self) -> list[bytes]:
        """Return the first Login Request (RFC 3720 5.3.1)."""
        parameters = self._parameters
        pairs = [("InitiatorName", parameters.initiator_name)]
        if parameters.initiator_alias:
            pairs.append(("InitiatorAlias", parameters.initiator_alias))
        if parameters.target_name is not None:
            pairs.append(("TargetName", parameters.target_name))
        if parameters.leading:
            pairs.append(("SessionType", parameters.session_type.value))
        pairs.append(("AuthMethod", ",".join(self._methods())))
        return self._request(pairs, transit=self._chap is None)

    def receive(self, bhs: bytes, data: bytes = b"") -> list[bytes]:
        """Take a PDU of the target (``data`` without padding) and return what to send."""
        if self.done:
            return []
        try:
            return self._receive(bhs, data)
        except _Broken as broken:
            self._fail(broken)
        except OfferRefused as error:
            self._fail(_Broken(FailureKind.NEGOTIATION, str(error)))
        except (PduError, TextError, NegotiationError, ChapProtocolError) as error:
            self._fail(_protocol(str(error)))
        except TargetAuthenticationError as error:
            self._fail(_Broken(FailureKind.TARGET_AUTHENTICATION, str(error)))
        return []

    def _fail(self, broken: _Broken) -> None:
        self.failure = LoginFailure(
            broken.kind,
            str(broken),
            retry=broken.kind is FailureKind.PROTOCOL,
        )

    def _warn(self, text: str) -> None:
        if len(self._warnings) < MAXIMUM_WARNINGS:
            self._warnings.append(text)

    def _methods(self) -> tuple[str, ...]:
        if self._chap is None:
            return (NONE,)
        return (CHAP, NONE) if self._parameters.authentication_optional else (CHAP,)

    # Sending

    def _request(self, pairs: list[Pair], *, transit: bool) -> list[bytes]:
        """Begin a request, cut into parts that the target must be able to take (RFC 3720 5.2)."""
        self._transit = transit
        self._chunks = split_text(encode_text(pairs), DEFAULT_MRDSL)
        return [self._next_part()]

    def _next_part(self) -> bytes:
        data = self._chunks.pop(0) if self._chunks else b""
        more = bool(self._chunks)
        self._last_had_more = more
        parameters = self._parameters
        return LoginRequest(
            flags=login_flags(self._stage, self._next_stage(), transit=self._transit and not more, more=more),
            version_max=VERSION,
            version_min=VERSION,
            isid=parameters.isid,
            tsih=parameters.tsih,
            initiator_task_tag=parameters.task_tag,
            cid=parameters.cid,
            cmd_sn=parameters.cmd_sn,
            exp_stat_sn=parameters.exp_stat_sn if self._stat_sn is None else add(self._stat_sn, 1),
            data=data,
        ).to_wire()

    def _next_stage(self) -> LoginStage:
        if self._stage is LoginStage.SECURITY_NEGOTIATION:
            return LoginStage.OPERATIONAL_NEGOTIATION
        return LoginStage.FULL_FEATURE_PHASE

    # Receiving

    def _receive(self, bhs: bytes, data: bytes) -> list[bytes]:
        if not bhs or bhs[0] & OPCODE_MASK != Opcode.LOGIN_RESPONSE:
            code = f"{bhs[0] & OPCODE_MASK:#04x}" if bhs else "none"
            raise _protocol(f"a PDU with opcode {code} during login")
        response = LoginResponse.decode(bhs, data=data)
        if response.data_length != len(data):
            raise _protocol(f"DataSegmentLength is {response.data_length}, {len(data)} bytes are there")
        if response.initiator_task_tag != self._parameters.task_tag:
            raise _protocol("a Login Response with a foreign Initiator Task Tag")
        if response.status:
            self._refused(response)
            return []
        self._check_header(response)
        self._acknowledge(response.stat_sn)
        if self._last_had_more:
            if response.more or response.data:
                raise _protocol("an answer to a request that was not complete")
            return [self._next_part()]
        pairs = self._joiner.add(response.data, more=response.more)
        if pairs is None:
            return [self._next_part()]
        self._rounds += 1
        if self._rounds > MAXIMUM_ROUNDS:
            raise _protocol(f"no end of a login stage after {MAXIMUM_ROUNDS} exchanges")
        if self._stage is LoginStage.SECURITY_NEGOTIATION:
            return self._security(pairs, response)
        return self._operational(pairs, response)

    def _check_header(self, response: LoginResponse) -> None:
        """Hold a response to the rules of RFC 3720 5.3 and 10.13."""
        if response.version_active != VERSION:
            raise _Broken(
                FailureKind.VERSION, f"the target wants version {response.version_active}, we speak {VERSION}"
            )
        if response.current_stage != self._stage:
            raise _protocol(f"a response of stage {response.current_stage} in stage {int(self._stage)}")
        if not response.transit:
            return
        if response.more:
            raise _protocol("a Login Response with both the T and the C bit")
        if not self._transit or self._last_had_more:
            raise _protocol("a stage transition that was not asked for")
        if not self._stage < response.next_stage <= self._next_stage() or response.next_stage == 2:
            raise _protocol(
                f"a transition from stage {int(self._stage)} to {response.next_stage},"
                f" {int(self._next_stage())} was asked for"
            )

    def _acknowledge(self, stat_sn: int) -> None:
        if self._stat_sn is not None and stat_sn != add(self._stat_sn, 1):
            self._warn(f"StatSN {stat_sn:#x} after {self._stat_sn:#x} during login")
        self._stat_sn = stat_sn

    def _refused(self, response: LoginResponse) -> None:
        """End on a status that is no success; its numbering fields mean nothing (RFC 3720 10.13.5)."""
        status = response.status
        kind = kind_of_status(status)
        message = kind.value
        redirect = None
        if status >> 8 == LoginStatusClass.REDIRECTION:
            redirect = _redirect(response.data)
            if redirect is None:
                kind, message = FailureKind.PROTOCOL, "a redirection without a usable TargetAddress"
            else:
                message = f"now at {redirect[0]}"
        self.failure = LoginFailure(
            kind,
            message,
            status,
            retry=may_retry_status(status),
            redirect=redirect,
            retry_single_algorithm=self._blames_algorithms(status),
            retry_at_level=self.lower_level if may_mean_an_offer(status) else None,
        )

    @property
    def lower_level(self) -> int | None:
        """The next lower ErrorRecoveryLevel, where the target may refuse the one that was offered."""
        level = self._negotiator.recovery_level_in_doubt
        return level - 1 if level and not self.done else None

    def _blames_algorithms(self, status: int) -> bool:
        """Whether a list of CHAP algorithms may be what the target stumbled over.

        Some targets fail on a list with numbers that they do not know; tgt takes 7 for SHA-1 and then finds the
        response malformed.
        """
        if self._chap is None or not self._algorithms_sent or status >> 8 != LoginStatusClass.INITIATOR_ERROR:
            return False
        credentials = self._parameters.credentials
        if credentials is None or len(credentials.algorithms) < 2:
            return False
        if not self._chap.responded:
            return True
        return status == LoginStatus.INITIATOR_ERROR and self._chap.algorithm != credentials.algorithms[-1]

    # Stages

    def _security(self, pairs: list[Pair], response: LoginResponse) -> list[bytes]:
        steps = [pair for pair in pairs if _is_security(pair[0])]
        others = [pair for pair in pairs if not _is_security(pair[0])]
        answers = self._negotiator.receive(others, Stage.SECURITY)
        self._check_tag()
        names_seen = {name for name, _ in steps}
        if "AuthMethod" in names_seen:
            answers = self._choose_method(steps) + answers
        elif steps:
            if self._chap is None or self._method != CHAP:
                raise _protocol(f"{steps[0][0]} before an authentication method was chosen")
            answers = self._chap.receive(steps) + answers
        if response.transit:
            self._require_authentication()
            self._check_unanswered(others, answers)
            return self._enter_operational()
        return self._request(answers, transit=self._may_leave_security())

    def _choose_method(self, steps: list[Pair]) -> list[Pair]:
        """Take the answer to AuthMethod (RFC 3720 5.3.2); return the first step of the method."""
        if len(steps) > 1:
            raise _protocol(f"{steps[1][0]} together with AuthMethod")
        if self._method is not None:
            raise _protocol("AuthMethod was negotiated already")
        method = steps[0][1]
        if method in {REJECT, IRRELEVANT, NOT_UNDERSTOOD} or (method == NONE and NONE not in self._methods()):
            raise _Broken(
                FailureKind.AUTHENTICATION,
                "the target wants authentication and no credentials are set"
                if self._chap is None
                else f"the target answered AuthMethod={method} where CHAP is required",
            )
        if method not in self._methods():
            raise _protocol(f"AuthMethod={method[:40]!r} was not offered")
        self._method = method
        if method == NONE or self._chap is None:
            return []
        self._algorithms_sent = True
        return self._chap.first()

    def _may_leave_security(self) -> bool:
        if self._chap is None or self._method == NONE:
            return True
        return self._chap.responded

    def _require_authentication(self) -> None:
        """Refuse to go on unless everything that policy asks for has happened."""
        if self._chap is None or (self._method == NONE and self._parameters.authentication_optional):
            return
        if not self._chap.responded:
            raise _Broken(FailureKind.AUTHENTICATION, "the target skipped authentication, which is required")
        if not self._chap.done:
            raise _Broken(FailureKind.TARGET_AUTHENTICATION, "the target did not answer our challenge")

    def _enter_operational(self) -> list[bytes]:
        self._stage = LoginStage.OPERATIONAL_NEGOTIATION
        self._rounds = 0
        if not self._parameters.level_declared:
            level = quirks_of(self._negotiator.target_alias).recovery_level
            if self._negotiator.lower_recovery_level(level):
                self._quirk = f"it is offered ErrorRecoveryLevel {level}"
        return self._request(self._negotiator.offers(), transit=True)

    def _operational(self, pairs: list[Pair], response: LoginResponse) -> list[bytes]:
        answers = self._negotiator.receive(pairs, Stage.OPERATIONAL)
        self._check_tag()
        if not response.transit:
            return self._request(answers, transit=True)
        self._check_unanswered(pairs, answers)
        negotiated = self._negotiator.finish()
        if self._is_safe(negotiated):
            self._finish(response, negotiated)
        return []

    def _is_safe(self, negotiated: Negotiated) -> bool:
        """Hold the result to what is known of a target that has said only after our offer who it is."""
        known = quirks_of(self._negotiator.target_alias)
        level = negotiated.error_recovery_level
        if self._parameters.level_declared or not self._parameters.leading or level <= known.recovery_level:
            return True
        self.failure = LoginFailure(
            FailureKind.RECOVERY_LEVEL,
            f"{known.kind} gets no ErrorRecoveryLevel above {known.recovery_level}",
            retry_at_level=known.recovery_level,
        )
        return False

    def _check_unanswered(self, pairs: list[Pair], answers: list[Pair]) -> None:
        """A response that ends a stage must not ask for answers (RFC 3720 10.13.6)."""
        answered = {name for name, _ in answers}
        for name, value in pairs:
            if name in answered and not may_go_unanswered(name, value):
                raise _protocol(f"{name}={value[:40]!r} wants an answer but the stage has ended")

    def _check_tag(self) -> None:
        expected, tag = self._parameters.expected_tag, self._negotiator.tag
        if expected is not None and tag is not None and tag != expected:
            raise _Broken(FailureKind.PORTAL_GROUP, f"portal group {tag}, not {expected}")

    def _finish(self, response: LoginResponse, negotiated: Negotiated) -> None:
        parameters = self._parameters
        if parameters.leading and response.tsih == 0:
            raise _protocol("the target gave no session handle (TSIH 0) for a new session")
        if self._negotiator.tag is None and parameters.target_name is not None:
            self._warn("the target did not declare TargetPortalGroupTag")
        chap = self._chap if self._method == CHAP else None
        if chap is not None and chap.repeated_challenge:
            self._warn("the target repeated a CHAP challenge")
        mutual = (
            chap is not None
            and parameters.credentials is not None
            and parameters.credentials.mutual_secret is not None
        )
        self.result = LoginResult(
            negotiated=negotiated,
            tsih=response.tsih if parameters.leading else parameters.tsih,
            exp_stat_sn=add(response.stat_sn, 1),
            exp_cmd_sn=response.exp_cmd_sn,
            max_cmd_sn=response.max_cmd_sn,
            tag=self._negotiator.tag,
            target_alias=self._negotiator.target_alias,
            chap_algorithm=chap.algorithm if chap is not None else None,
            mutual=mutual,
            warnings=(*self._warnings, *self._negotiator.warnings),
            quirk=self._quirk,
        )


def _is_security(name: str) -> bool:
    key = KEYS.get(name)
    return key is not None and (name == "AuthMethod" or key.function is Function.EXCHANGE)


def _redirect(data: bytes) -> tuple[Portal, int | None] | None:
    """Return the first address of a redirection that can be read; a portal group tag is tolerated."""
    try:
        pairs = decode_text(data)
    except TextError:
        return None
    for name, value in pairs:
        if name == "TargetAddress":
            try:
                return parse_target_address(value)
            except InvalidPortal:
                continue
    return None
