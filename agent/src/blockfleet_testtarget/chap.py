# SPDX-License-Identifier: GPL-3.0-or-later
"""CHAP as a target runs it (RFC 3720 11.1.4, RFC 1994; algorithms 6 to 8 from the IANA registry)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field

ALGORITHMS: dict[str, tuple[str, int]] = {
    "5": ("md5", 16),
    "6": ("sha1", 20),
    "7": ("sha256", 32),
    "8": ("sha3_256", 32),
}
CHALLENGE_LENGTH = 24
BINARY_LIMIT = 1024


class ChapError(ValueError):
    """Authentication failed; the text says why, and never holds a secret."""


@dataclass(frozen=True, slots=True)
class Chap:
    """The accounts of one node: who may come in, and who we are when asked to prove it.

    `algorithms` are CHAP_A numbers that may be chosen; `encoding` is how we write binary values.
    """

    user: str
    secret: str = field(repr=False)
    mutual_user: str = ""
    mutual_secret: str = field(default="", repr=False)
    algorithms: tuple[str, ...] = ("8", "7", "6", "5")
    encoding: str = "hex"


def encode_binary(value: bytes, encoding: str) -> str:
    """Write a binary value in hex or base64 (5.1)."""
    if encoding == "base64":
        return "0b" + base64.b64encode(value).decode()
    return "0x" + value.hex()


def decode_binary(text: str) -> bytes:
    """Read a hex or base64 value; raises ChapError when it is illegal, empty or above 1024 bytes."""
    prefix, digits = text[:2].lower(), text[2:]
    try:
        if prefix == "0x":
            value = bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
        elif prefix == "0b":
            value = base64.b64decode(digits, validate=True)
        else:
            raise ChapError("a binary value starts neither with 0x nor with 0b")
    except (ValueError, binascii.Error) as error:
        raise ChapError("a binary value is malformed") from error
    if not 0 < len(value) <= BINARY_LIMIT:
        raise ChapError(f"a binary value has {len(value)} bytes")
    return value


def response(algorithm: str, identifier: int, secret: str, challenge: bytes) -> bytes:
    """Return the CHAP response: hash of identifier, secret and challenge (RFC 1994 4.1)."""
    digest = hashlib.new(ALGORITHMS[algorithm][0], usedforsecurity=False)
    digest.update(bytes([identifier]) + secret.encode() + challenge)
    return digest.digest()


class ChapExchange:
    """One run of the protocol for one login: CHAP_A, then CHAP_N and CHAP_R, then done."""

    def __init__(self, chap: Chap, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self.chap = chap
        self.algorithm = ""
        self.identifier = random_bytes(1)[0]
        self.challenge = random_bytes(CHALLENGE_LENGTH)
        self.done = False

    def receive(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        """Take the CHAP keys of one request and return our answer; raises ChapError."""
        if self.done:
            raise ChapError("CHAP keys after the exchange was over")
        return self._second_step(keys) if not self.algorithm else self._fourth_step(keys)

    def _second_step(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        if set(keys) != {"CHAP_A"}:
            raise ChapError("the first step is CHAP_A alone")
        for offer in keys["CHAP_A"].split(","):
            if offer in self.chap.algorithms and offer in ALGORITHMS:
                self.algorithm = offer
                break
        else:
            raise ChapError("no common CHAP algorithm")
        return [
            ("CHAP_A", self.algorithm),
            ("CHAP_I", str(self.identifier)),
            ("CHAP_C", encode_binary(self.challenge, self.chap.encoding)),
        ]

    def _fourth_step(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        if set(keys) not in ({"CHAP_N", "CHAP_R"}, {"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"}):
            raise ChapError("the third step is CHAP_N and CHAP_R, with both or none of CHAP_I and CHAP_C")
        expected = response(self.algorithm, self.identifier, self.chap.secret, self.challenge)
        right_answer = hmac.compare_digest(decode_binary(keys["CHAP_R"]), expected)
        if keys["CHAP_N"] != self.chap.user or not right_answer:
            raise ChapError("wrong name or response")
        self.done = True
        if "CHAP_C" not in keys:
            return []
        return self._prove_ourselves(keys["CHAP_I"], keys["CHAP_C"])

    def _prove_ourselves(self, identifier: str, challenge_text: str) -> list[tuple[str, str]]:
        if not self.chap.mutual_secret:
            raise ChapError("the initiator asks for a proof and there is no secret for it")
        if not identifier.isdecimal() or not 0 <= int(identifier) <= 255:
            raise ChapError("CHAP_I is no number from 0 to 255")
        challenge = decode_binary(challenge_text)
        if challenge == self.challenge:
            raise ChapError("our challenge was sent back to us")
        proof = response(self.algorithm, int(identifier), self.chap.mutual_secret, challenge)
        return [
            ("CHAP_N", self.chap.mutual_user),
            ("CHAP_R", encode_binary(proof, self.chap.encoding)),
        ]
