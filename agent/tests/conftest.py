# SPDX-License-Identifier: GPL-3.0-or-later
"""Real targets and an independent decoder for every test that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.peers.capture import Capture
from tests.peers.istgt import Istgt
from tests.peers.process import free_port as _free_port
from tests.peers.process import split_portal
from tests.peers.tgt import Tgt


@pytest.fixture
def free_port() -> Callable[..., int]:
    """Return a function that finds a free TCP port of an address (``127.0.0.1`` unless told)."""
    return _free_port


@pytest.fixture
def tgt() -> Iterator[Tgt]:
    """A tgtd with two IPv4 portals and no target."""
    target = Tgt(("127.0.0.1:0", "127.0.0.1:0"))
    yield target
    target.close()


@pytest.fixture
def tgt6() -> Iterator[Tgt]:
    """A tgtd with one IPv4 and one IPv6 portal and no target."""
    target = Tgt(("127.0.0.1:0", "[::1]:0"))
    yield target
    target.close()


@pytest.fixture
def make_tgt() -> Iterator[Callable[..., Tgt]]:
    """Return a function that makes a tgtd; its arguments are those of :class:`Tgt`."""
    made: list[Tgt] = []

    def make(*arguments: object, **options: object) -> Tgt:
        made.append(Tgt(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for target in made:
        target.close()


@pytest.fixture
def istgt() -> Iterator[Istgt]:
    """An istgt with one IPv4 and one IPv6 portal; add targets, then ``start`` it."""
    target = Istgt(("127.0.0.1:0", "[::1]:0"))
    yield target
    target.close()


@pytest.fixture
def make_istgt() -> Iterator[Callable[..., Istgt]]:
    """Return a function that makes an istgt; its arguments are those of :class:`Istgt`."""
    made: list[Istgt] = []

    def make(*arguments: object, **options: object) -> Istgt:
        made.append(Istgt(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for target in made:
        target.close()


@pytest.fixture
def tshark_capture() -> Iterator[Callable[..., Capture]]:
    """Return a function that starts to record the given portals; ``stop`` it, then ``check`` it."""
    made: list[Capture] = []

    def start(*portals: str) -> Capture:
        made.append(Capture(split_portal(portal)[1] for portal in portals))
        return made[-1]

    yield start
    for capture in made:
        capture.close()
