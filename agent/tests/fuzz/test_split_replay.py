# SPDX-License-Identifier: GPL-3.0-or-later
"""How a stream is cut makes no difference: integrity case 39, row ROB-17.

A step is what the target sends between two actions of the user; in one run every step is cut at the same distance
from its start, so that as many runs as the longest step has bytes cut the session at every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.fuzz.recorded import Traffic, play, record

from blockfleet.iscsi import framing
from blockfleet.iscsi.events import AsyncNotice, LoggedIn, LoggedOut
from blockfleet.scsi.command import Outcome

Cut = Callable[[bytes], Iterator[bytes]]
IN_PLACE = 100
"""Payload bytes from which on a read is received in place here, so that small reads are, too."""


@pytest.fixture(scope="module")
def session() -> Traffic:
    return record()


@pytest.fixture(params=["in place", "through staging"])
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in place":
        monkeypatch.setattr(framing, "DIRECT_THRESHOLD", IN_PLACE)


def in_two(at: int) -> Cut:
    def cut(data: bytes) -> Iterator[bytes]:
        yield data[:at]
        yield data[at:]

    return cut


def in_pieces(size: int) -> Cut:
    def cut(data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    return cut


def same(played: Traffic, recorded: Traffic) -> None:
    assert played.ended == recorded.ended
    assert played.events == recorded.events
    assert played.said == recorded.said


def test_the_recording_has_everything_in_it(session: Traffic) -> None:
    kinds = [type(event) for event in session.events]
    assert kinds == [LoggedIn, AsyncNotice, LoggedOut]
    login = session.events[0]
    assert isinstance(login, LoggedIn)
    assert (login.result.negotiated.header_digest, login.result.negotiated.data_digest) == (True, True)
    assert (login.result.chap_algorithm, login.result.mutual) == (7, True)
    outcomes = [(outcome, status) for _, outcome, status, *_ in session.ended]
    assert outcomes.count((Outcome.COMPLETE, 0)) == 5
    assert [len(sense) for _, _, status, sense, *_ in session.ended if status == 2] == [18]
    # 512 bytes of 2048 go with the command, two R2Ts ask for 1024 and 512; then a ping of either side
    assert session.said[1].count(bytes(range(256)) * 2) == 4
    assert session.said[1].count(bytes(range(256)) * 4) == 1
    assert session.heard[6]
    assert session.said[7]


@pytest.mark.usefixtures("placed")
def test_cut_at_every_byte(session: Traffic) -> None:
    for at in range(max(len(data) for data in session.heard) + 1):
        same(play(session, in_two(at)), session)


@pytest.mark.usefixtures("placed")
def test_in_pieces_of_every_size(session: Traffic) -> None:
    for size in (*range(1, 130), 508, 512, 516, 1460, 4096):
        same(play(session, in_pieces(size)), session)


def test_a_large_read_cut_wherever_it_changes_how_it_is_received() -> None:
    large = 24
    recorded = record(large)
    longest = max(len(data) for data in recorded.heard)
    threshold = longest - framing.DIRECT_THRESHOLD
    assert threshold > 3000, "nothing is received in place"
    places = {*range(120), *range(threshold - 80, threshold + 80), *range(longest - 80, longest + 1)}
    for at in sorted(places | set(range(0, longest, 97))):
        same(play(recorded, in_two(at), large), recorded)
    for size in (1, 48, 52, 1460, 8192):
        same(play(recorded, in_pieces(size), large), recorded)
