# SPDX-License-Identifier: GPL-3.0-or-later
"""The state tables against those printed in RFC 3720 chapter 7."""

from __future__ import annotations

import pytest

from blockfleet.iscsi.states import (
    CONNECTION_TRANSITIONS,
    SESSION_TRANSITIONS,
    ConnectionEvent,
    ConnectionState,
    SessionPhase,
    StateMachine,
)

# RFC 3720 7.1.3 and 7.2.1, row by row; T3 and T6 are a target's.
CONNECTION_TABLE = {
    "S1": {"S2"},
    "S2": {"S1", "S4"},
    "S4": {"S1", "S5"},
    "S5": {"S1", "S6", "S7", "S8"},
    "S6": {"S1", "S6", "S8"},
    "S7": {"S1", "S6", "S7", "S8"},
    "S8": {"S1", "R2"},
    "R2": {"S1", "S8"},
}

# RFC 3720 7.3.1
SESSION_TABLE = {"Q1": {"Q3"}, "Q3": {"Q1", "Q4"}, "Q4": {"Q1", "Q3"}}


def test_connection_states_lead_where_the_rfc_says() -> None:
    leads: dict[str, set[str]] = {}
    for (state, _), following in CONNECTION_TRANSITIONS.items():
        leads.setdefault(state.value, set()).add(following.value)
    assert leads == CONNECTION_TABLE


def test_session_states_lead_where_the_rfc_says() -> None:
    leads: dict[str, set[str]] = {}
    for (state, _), following in SESSION_TRANSITIONS.items():
        leads.setdefault(state.value, set()).add(following.value)
    assert leads == SESSION_TABLE


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
