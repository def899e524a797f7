# SPDX-License-Identifier: GPL-3.0-or-later
"""The login machine against a target that knows the steps, the keys and the secrets, and uses them as it likes."""

from __future__ import annotations

import hashlib
import struct

from tests.fuzz.harness.base import Harness
from tests.fuzz.source import Source

from blockfleet.iscsi.chap import ChallengeMemory, ChapCredentials
from blockfleet.iscsi.login import LoginMachine, LoginParameters, SessionType
from blockfleet.iscsi.login_failure import login_error
from blockfleet.iscsi.parameters import DISCOVERY_OFFER, Negotiated, SessionOffer
from blockfleet.model.secret import Secret

NAME, TARGET = "iqn.2026-11.com.example:host", "iqn.2026-11.com.example:disk"
SECRET, MUTUAL = "initiator-secret-1", "the-target-secret"
ITT = 0x5A5A0001
# 10.13: opcode flags max active | lengths | ISID | TSIH | ITT | StatSN ExpCmdSN MaxCmdSN | status
RESPONSE = struct.Struct(">BBBBI6sHI4xIIIH10x")

_CREDENTIALS = (
    None,
    ChapCredentials("host", Secret(SECRET)),
    ChapCredentials("host", Secret(SECRET), mutual_user="disk", mutual_secret=Secret(MUTUAL)),
    ChapCredentials("host", Secret(SECRET), mutual_secret=Secret(MUTUAL), algorithms=(7, 5)),
)
_OFFERS = (
    SessionOffer(),
    SessionOffer(header_digest=("CRC32C",), data_digest=("CRC32C",)),
    SessionOffer(error_recovery_level=2, max_connections=4, protocol_level=2),
)
_STATUSES = (0, 0, 0, 0, 0, 0, 0, 0x0101, 0x0102, 0x0200, 0x0201, 0x0205, 0x0301, 0x0400, 0xFFFF)
_TEXTS = (
    b"AuthMethod=None\0", b"AuthMethod=CHAP\0", b"AuthMethod=Reject\0", b"AuthMethod=KRB5\0",
    b"TargetPortalGroupTag=1\0", b"TargetPortalGroupTag=70000\0", b"TargetAlias=disk\0", b"TargetAlias=\0",
    b"HeaderDigest=CRC32C\0", b"HeaderDigest=None\0", b"DataDigest=CRC32C\0", b"DataDigest=Reject\0",
    b"MaxRecvDataSegmentLength=512\0", b"MaxRecvDataSegmentLength=16777215\0", b"MaxBurstLength=512\0",
    b"FirstBurstLength=65536\0", b"InitialR2T=No\0", b"ImmediateData=No\0", b"MaxOutstandingR2T=1\0",
    b"ErrorRecoveryLevel=2\0", b"ErrorRecoveryLevel=0\0", b"MaxConnections=1\0", b"DefaultTime2Wait=3600\0",
    b"IFMarker=Yes\0", b"OFMarkInt=1~2\0", b"X-vendor=1\0", b"iSCSIProtocolLevel=2\0", b"TaskReporting=RFC3720\0",
    b"TargetAddress=192.0.2.2:3261,2\0", b"TargetAddress=[fe80::1]:0\0", b"SessionType=Normal\0", b"=\0", b"key\0",
    b"\0", b"CHAP_A=5\0", b"CHAP_I=1\0", b"CHAP_C=0x00112233\0", b"CHAP_N=disk\0", b"CHAP_R=0x00\0",
)  # fmt: skip
_ALGORITHMS = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}

MAXIMUM_ANSWERS = 4096
"""Responses of one login; a machine that takes more has no end."""


def _parameters(source: Source) -> LoginParameters:
    credentials = source.choose(_CREDENTIALS)
    kind = source.number() % 4
    joining = kind == 3
    return LoginParameters(
        initiator_name=NAME,
        target_name=None if kind == 2 else TARGET,
        session_type=SessionType.DISCOVERY if kind == 2 else SessionType.NORMAL,
        isid=bytes.fromhex("80aabbcc0001"),
        tsih=0x77 if joining else 0,
        leading=not joining,
        session=Negotiated(max_connections=4) if joining else None,
        offer=DISCOVERY_OFFER if kind == 2 else source.choose(_OFFERS),
        credentials=credentials,
        authentication_optional=source.flag(),
        expected_tag=source.choose((None, 1)),
        task_tag=ITT,
    )


class Target:
    """Answers login requests, in the way of the RFC where the input does not say otherwise."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.parameters = _parameters(source)
        self.randomness = 0
        self.machine = LoginMachine(self.parameters, self._random, ChallengeMemory())
        self.stat_sn = 0x7FFFFFFE
        self.proved = False
        """Whether the target has shown that it knows the mutual secret."""
        self.sent = self.machine.start()
        self.answers = 0

    def _random(self, count: int) -> bytes:
        self.randomness += 1
        return hashlib.sha512(b"%d" % self.randomness).digest()[:count]

    def run(self) -> None:
        while self.source.left and not self.machine.done and self.sent:
            self.answer()
            self.answers += 1
            assert self.answers < MAXIMUM_ANSWERS, "the login does not end"
        assert not (self.machine.result and self.machine.failure)
        if self.machine.failure is not None:
            assert not self.sent
            text = str(login_error(self.machine.failure, TARGET, "192.0.2.1:3260"))
            assert len(text) < 2000
            assert SECRET not in text
            assert MUTUAL not in text
        if self.machine.result is not None:
            self._check_result()
        if self.machine.done:
            assert self.machine.receive(bytes(48)) == []

    def answer(self) -> None:
        source, last = self.source, self.sent[-1]
        flags, data = self._text()
        odd = source.number()
        header = RESPONSE.pack(
            0x23 if odd != 1 else source.number(),
            flags if odd != 2 else source.number(),
            0,
            0 if odd != 3 else source.number(),
            len(data) if odd != 4 else source.number(4),
            last[8:14],
            source.choose((0x77, 0x77, 0)),
            ITT if odd != 5 else source.number(4),
            self.stat_sn,
            1,
            32,
            source.choose(_STATUSES) if odd >= 200 else 0,
        )
        self.stat_sn = self.stat_sn + source.choose((1, 1, 1, 0, 5)) & 0xFFFFFFFF
        before = len(self.sent)
        self.sent = self.machine.receive(header, data) or ([] if self.machine.done else self.sent)
        assert before
        self._check_requests()

    def _text(self) -> tuple[int, bytes]:
        """Choose flags and text: the words of the input, or the right answer to what was asked."""
        source, last = self.source, self.sent[-1]
        stage = last[1] >> 2 & 3
        kind = source.number()
        right, proof = self._right_answer(last)
        if kind < 0x60:
            self.proved |= proof
            flags = (stage << 2) | (0x80 | last[1] & 3 if last[1] & 0x80 else 0)
            return flags, right
        flags = stage << 2 | source.choose((0, 0x80 | stage + 1, 0x80 | 3, 0x40, 0xC0))
        if kind < 0x70:
            return flags, source.take(source.number(2))
        if kind < 0x78:
            return flags, source.take(8) * (source.number(2) % 2000)
        words = b"".join(source.choose(_TEXTS) for _ in range(kind & 7))
        self.proved |= proof and bool(kind & 8)
        return flags, (right + words if kind & 8 else words)

    def _right_answer(self, request: bytes) -> tuple[bytes, bool]:
        """Answer as a target that knows both secrets does, and say whether that proves it."""
        length = int.from_bytes(request[5:8], "big")
        pairs = [pair.split(b"=", 1) for pair in request[48 : 48 + length].split(b"\0") if b"=" in pair]
        keys = {key.decode(): value.decode() for key, value in pairs}
        if "AuthMethod" in keys:
            chosen = "CHAP" if "CHAP" in keys["AuthMethod"] else "None"
            return b"AuthMethod=%s\0TargetPortalGroupTag=1\0" % chosen.encode(), False
        if "CHAP_A" in keys:
            self.algorithm = int(self.source.choose(keys["CHAP_A"].split(",")))
            return b"CHAP_A=%d\0CHAP_I=9\0CHAP_C=0x%s\0" % (self.algorithm, b"a5" * 20), False
        if "CHAP_C" in keys and self.source.number() < 0xE0:
            secret = self.source.choose((MUTUAL, MUTUAL, SECRET))
            digest = hashlib.new(_ALGORITHMS[self.algorithm], bytes([int(keys["CHAP_I"])]) + secret.encode())
            digest.update(bytes.fromhex(keys["CHAP_C"][2:]))
            return b"CHAP_N=disk\0CHAP_R=0x%s\0" % digest.hexdigest().encode(), secret == MUTUAL
        return b"".join(self.source.choose(_TEXTS[8:]) for _ in range(self.source.number() & 3)), False

    # -- what must hold

    def _check_requests(self) -> None:
        for pdu in self.sent:
            length = int.from_bytes(pdu[5:8], "big")
            assert pdu[0] & 0x3F == 0x03
            assert length <= 8192, "a request over the default MaxRecvDataSegmentLength"
            assert len(pdu) == 48 + (length + 3 & ~3)
            assert SECRET.encode() not in pdu
            assert MUTUAL.encode() not in pdu

    def _check_result(self) -> None:
        result, credentials = self.machine.result, self.parameters.credentials
        assert result is not None
        assert result.tsih
        assert len(result.warnings) <= 64
        if credentials is not None and not self.parameters.authentication_optional:
            assert result.chap_algorithm in credentials.algorithms, "logged in without authentication"
            assert result.mutual == (credentials.mutual_secret is not None)
            assert self.proved or not result.mutual, "a target that did not prove itself"
        offer = self.parameters.offer
        assert result.negotiated.header_digest or "None" in offer.header_digest
        assert result.negotiated.data_digest or "None" in offer.data_digest


def test_one_input(data: bytes) -> None:
    """Run one login to its end or to that of the input."""
    Target(Source(data)).run()


HARNESS = Harness("login", "login phase with CHAP", test_one_input, maximum_length=2048, tokens=_TEXTS, weight=2)
