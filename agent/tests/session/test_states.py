# SPDX-License-Identifier: GPL-3.0-or-later
"""The state tables against those printed in RFC 3720 chapter 7."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import pytest
from tests.session.rfc_states import CLEANUP, CONNECTION, EVENTS, SESSION, triples
from tests.session.state_diagrams import DOCUMENT, document

from blockfleet.iscsi.states import (
    CONNECTION_TRANSITIONS,
    SESSION_TRANSITIONS,
    ConnectionEvent,
    ConnectionState,
    SessionPhase,
    StateMachine,
)


def ours(table: Mapping[tuple[enum.Enum, enum.Enum], enum.Enum]) -> set[tuple[str, str, str]]:
    """One of our tables in the words of the RFC."""
    return {(begin.value, EVENTS[event.name], end.value) for (begin, event), end in table.items()}


def test_the_connection_diagrams_are_those_of_the_rfc() -> None:
    """7.1.3 and 7.2, with every cause that 7.1.2 and 7.2.2 count."""
    assert ours(CONNECTION_TRANSITIONS) == triples(CONNECTION, CLEANUP)


def test_the_session_diagram_is_that_of_the_rfc() -> None:
    """7.3.1, with the causes of 7.3.4."""
    assert ours(SESSION_TRANSITIONS) == triples(SESSION)


def test_the_document_shows_the_tables_as_they_are() -> None:
    assert DOCUMENT.read_text() == document()


@pytest.mark.parametrize("state", list(ConnectionState))
@pytest.mark.parametrize("event", list(ConnectionEvent))
def test_an_event_that_a_state_does_not_know_changes_nothing(
    state: ConnectionState, event: ConnectionEvent
) -> None:
    machine = StateMachine(CONNECTION_TRANSITIONS, state)
    known = (state, event) in CONNECTION_TRANSITIONS
    assert machine.on(event) is known
    if not known:
        assert machine.state is state


def test_a_session_begins_free() -> None:
    machine = StateMachine(SESSION_TRANSITIONS, SessionPhase.FREE)
    assert not any(machine.on(event) for (state, event) in SESSION_TRANSITIONS if state is not SessionPhase.FREE)
