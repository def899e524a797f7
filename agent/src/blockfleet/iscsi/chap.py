# SPDX-License-Identifier: GPL-3.0-or-later
"""CHAP as the initiator runs it, one-way and mutual (RFC 3720 8.2.1, 11.1.4; RFC 1994)."""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from blockfleet.iscsi.keys import KEYS, MAXIMUM_CHAP_BINARY, ValueFault, check_length, read_number
from blockfleet.iscsi.text import MAXIMUM_SIMPLE_VALUE, Pair
from blockfleet.model.secret import Secret

MINIMUM_SECRET = 12
"""Bytes of a secret on a network that IPsec does not protect: 96 bits (RFC 3720 8.2.1)."""

MINIMUM_CHALLENGE = 16
"""Bytes of the challenges that we send."""

REMEMBERED_CHALLENGES = 1024
"""Challenges of each direction that a :class:`ChallengeMemory` holds."""


class ChapAlgorithm(enum.IntEnum):
    """Digests by their number (IANA PPP authentication algorithms; RFC 3720 11.1.4)."""

    MD5 = 5
    SHA1 = 6
    SHA256 = 7
    SHA3_256 = 8


ALGORITHM_NAMES: dict[str, ChapAlgorithm] = {
    "sha3-256": ChapAlgorithm.SHA3_256,
    "sha256": ChapAlgorithm.SHA256,
    "sha1": ChapAlgorithm.SHA1,
    "md5": ChapAlgorithm.MD5,
}
"""The numbers by the names that the desired state uses, strongest first."""

ALL_ALGORITHMS = tuple(ALGORITHM_NAMES.values())

_HASHES: dict[ChapAlgorithm, Callable[[bytes], bytes]] = {
    ChapAlgorithm.MD5: lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
    ChapAlgorithm.SHA1: lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    ChapAlgorithm.SHA256: lambda data: hashlib.sha256(data).digest(),
    ChapAlgorithm.SHA3_256: lambda data: hashlib.sha3_256(data).digest(),
}
_DIGEST_LENGTHS = {algorithm: len(digest(b"")) for algorithm, digest in _HASHES.items()}


class ChapProtocolError(Exception):
    """The target broke the steps or the encoding of the exchange; the connection must be dropped."""


class TargetAuthenticationError(Exception):
    """The target could not prove who it is, or played our own messages back to us."""


@dataclass(frozen=True, slots=True)
class ChapCredentials:
    """What proves the host to the target and, with ``mutual_secret``, the target to the host.

    ``mutual_user`` is the name that the target must show, None for any.  ``algorithms`` are offered in order.
    Raises ValueError for what RFC 3720 8.2.1 forbids: equal secrets in both directions, and secrets under
    96 bits unless ``allow_weak`` says that IPsec protects the network.
    """

    user: str
    secret: Secret
    mutual_user: str | None = None
    mutual_secret: Secret | None = None
    algorithms: tuple[int, ...] = ALL_ALGORITHMS
    allow_weak: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.user.encode()) <= MAXIMUM_SIMPLE_VALUE or not self.user.isprintable():
            raise ValueError(f"a CHAP user name has 1 to {MAXIMUM_SIMPLE_VALUE} printable bytes")
        if self.mutual_user is not None and self.mutual_secret is None:
            raise ValueError("a mutual CHAP user name needs a mutual secret")
        secrets = [self.secret] if self.mutual_secret is None else [self.secret, self.mutual_secret]
        least = 1 if self.allow_weak else MINIMUM_SECRET
        if any(len(secret) < least for secret in secrets):
            raise ValueError(f"a CHAP secret has at least {least} bytes (RFC 3720 8.2.1)")
        if self.mutual_secret == self.secret:
            raise ValueError("the CHAP secrets of both directions must differ (RFC 3720 8.2.1)")
        numbers = set(self.algorithms)
        if not numbers or numbers - set(ChapAlgorithm) or len(numbers) != len(self.algorithms):
            raise ValueError("CHAP algorithms are 8, 7, 6 and 5, each at most once")

    def with_last_algorithm(self) -> ChapCredentials:
        """Return the same credentials with the last of their algorithms alone (``retry_single_algorithm``).

        No secret is exposed more than by the list: a target may choose that algorithm from it, too.
        """
        return replace(self, algorithms=self.algorithms[-1:])


class ChallengeMemory:
    """Remembers challenges across the logins of a host, so that reflection between connections shows.

    Holds the last :data:`REMEMBERED_CHALLENGES` of each direction.
    """

    def __init__(self) -> None:
        self._ours: OrderedDict[bytes, None] = OrderedDict()
        self._theirs: OrderedDict[bytes, None] = OrderedDict()
        self.repeated = 0
        """How often a target sent a challenge that was seen before."""

    def sent(self, challenge: bytes) -> None:
        """Note a challenge of ours."""
        _remember(self._ours, challenge)

    def is_ours(self, challenge: bytes) -> bool:
        """Whether we sent this challenge, on whatever connection."""
        return challenge in self._ours

    def received(self, challenge: bytes) -> bool:
        """Note a target's challenge; True when it came before."""
        before = challenge in self._theirs
        self.repeated += before
        _remember(self._theirs, challenge)
        return before


def _remember(memory: OrderedDict[bytes, None], challenge: bytes) -> None:
    memory[challenge] = None
    memory.move_to_end(challenge)
    if len(memory) > REMEMBERED_CHALLENGES:
        memory.popitem(last=False)


class _Step(enum.Enum):
    OFFER = "nothing sent"
    CHALLENGE = "CHAP_A sent"
    RESPONSE = "CHAP_N and CHAP_R sent, the target's awaited"
    DONE = "finished"


_EXPECTED: dict[_Step, tuple[str, ...]] = {
    _Step.OFFER: (),
    _Step.CHALLENGE: ("CHAP_A", "CHAP_I", "CHAP_C"),
    _Step.RESPONSE: ("CHAP_N", "CHAP_R"),
    _Step.DONE: (),
}


class ChapInitiator:
    """The exchange of one login: give it the target's CHAP keys, send what it returns.

    ``random_bytes(n)`` must return ``n`` unpredictable bytes.
    """

    def __init__(
        self,
        credentials: ChapCredentials,
        random_bytes: Callable[[int], bytes],
        memory: ChallengeMemory | None = None,
    ) -> None:
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._memory = memory or ChallengeMemory()
        self._step = _Step.OFFER
        self._identifier = 0
        self._challenge = b""
        self.algorithm: int | None = None
        """The algorithm that the target chose."""
        self.repeated_challenge = False
        """Whether the target's challenge had been seen before."""

    @property
    def responded(self) -> bool:
        """Whether our response is sent: from then on the stage may end."""
        return self._step in {_Step.RESPONSE, _Step.DONE}

    @property
    def done(self) -> bool:
        """Whether the target has, where that is asked for, proved who it is."""
        return self._step is _Step.DONE

    def first(self) -> list[Pair]:
        """Return the first step: the algorithms, alone (RFC 3720 11.1.4)."""
        self._step = _Step.CHALLENGE
        return [("CHAP_A", ",".join(str(int(number)) for number in self._credentials.algorithms))]

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Take the target's CHAP keys of one step and return ours of the next.

        Raises :class:`ChapProtocolError` for anything but exactly the keys of the step, and
        :class:`TargetAuthenticationError`.
        """
        expected = _EXPECTED[self._step]
        if sorted(name for name, _ in pairs) != sorted(expected):
            got = ", ".join(name for name, _ in pairs)
            raise ChapProtocolError(f"CHAP: {got} where {' '.join(expected) or 'no CHAP key'} is due")
        values = dict(pairs)
        try:
            for name, value in pairs:
                check_length(KEYS[name], value)
            if self._step is _Step.CHALLENGE:
                return self._respond(values)
            self._verify(values)
        except ValueFault as fault:
            raise ChapProtocolError(str(fault)) from None
        return []

    def _respond(self, values: dict[str, str]) -> list[Pair]:
        algorithm = values["CHAP_A"]
        if algorithm not in {str(int(number)) for number in self._credentials.algorithms}:
            raise ChapProtocolError(f"CHAP_A={algorithm[:40]!r} was not offered")
        self.algorithm = int(algorithm)
        identifier = read_number(KEYS["CHAP_I"], values["CHAP_I"])
        challenge = decode_binary("CHAP_C", values["CHAP_C"])
        if self._memory.is_ours(challenge):
            raise TargetAuthenticationError("the target reflected a challenge of ours")
        self.repeated_challenge = self._memory.received(challenge)
        response = self._response(identifier, self._credentials.secret, challenge)
        pairs = [("CHAP_N", self._credentials.user), ("CHAP_R", _hex(response))]
        if self._credentials.mutual_secret is None:
            self._step = _Step.DONE
            return pairs
        self._step = _Step.RESPONSE
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._fresh_challenge(challenge)
        return [*pairs, ("CHAP_I", str(self._identifier)), ("CHAP_C", _hex(self._challenge))]

    def _fresh_challenge(self, theirs: bytes) -> bytes:
        assert self.algorithm is not None
        length = max(MINIMUM_CHALLENGE, _DIGEST_LENGTHS[ChapAlgorithm(self.algorithm)])
        challenge = self._random_bytes(length)
        if challenge == theirs or self._memory.is_ours(challenge) or len(challenge) != length:
            raise ChapProtocolError("the source of randomness repeats itself: no fresh CHAP challenge")
        self._memory.sent(challenge)
        return challenge

    def _verify(self, values: dict[str, str]) -> None:
        mutual_secret = self._credentials.mutual_secret
        assert mutual_secret is not None
        received = decode_binary("CHAP_R", values["CHAP_R"])
        reflected = self._response(self._identifier, self._credentials.secret, self._challenge)
        if hmac.compare_digest(received, reflected):
            raise TargetAuthenticationError(
                "the target answered our challenge with our own secret (reflection, RFC 3720 8.2.1)"
            )
        expected = self._response(self._identifier, mutual_secret, self._challenge)
        if not hmac.compare_digest(received, expected):
            raise TargetAuthenticationError("the target's CHAP response is wrong")
        name = self._credentials.mutual_user
        if name is not None and not hmac.compare_digest(values["CHAP_N"].encode(), name.encode()):
            raise TargetAuthenticationError("the target's CHAP name is not the expected one")
        self._step = _Step.DONE

    def _response(self, identifier: int, secret: Secret, challenge: bytes) -> bytes:
        assert self.algorithm is not None
        return _HASHES[ChapAlgorithm(self.algorithm)](bytes((identifier,)) + secret.reveal() + challenge)


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


_HEX = re.compile(r"0[xX]((?:[0-9a-fA-F]{2})+)")
_BASE64 = re.compile(r"0[bB]([A-Za-z0-9+/]+)(={0,2})")


def decode_binary(key: str, text: str) -> bytes:
    """Read a binary value of 1 to 1024 bytes in hexadecimal or base64 (RFC 3720 5.1, 11.1.4).

    Raises :class:`ChapProtocolError` for an odd count of hexadecimal digits, base64 of an impossible length
    or with wrong padding, no prefix, and lengths beyond the bounds.
    """
    found = _HEX.fullmatch(text)
    if found:
        value = bytes.fromhex(found[1])
    else:
        found = _BASE64.fullmatch(text)
        if not found or len(found[1]) % 4 == 1 or (found[2] and (len(found[1]) + len(found[2])) % 4):
            raise ChapProtocolError(f"{key} is neither hexadecimal nor base64")
        value = base64.b64decode(found[1] + "=" * (-len(found[1]) % 4), validate=True)
    if not 1 <= len(value) <= MAXIMUM_CHAP_BINARY:
        raise ChapProtocolError(f"{key} has {len(value)} bytes, not 1 to {MAXIMUM_CHAP_BINARY}")
    return value
