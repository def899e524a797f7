# SPDX-License-Identifier: GPL-3.0-or-later
"""The state diagrams of RFC 3720 chapter 7 for an initiator, as data written from the RFC's own text.

Each transition: its name, from where to where, and what causes it, in the words of 7.1.2, 7.2.2 and 7.3.4; where
the RFC counts several causes that our tables have one event for, the word of the event.
"""

from __future__ import annotations

LOST = "transport lost"
"""Timed out, reset, disconnected, dropped by the target; in login also a final response of another class."""
CLOSED_ELSEWHERE = 'Logout Response (success) on another connection for "close the session"'

Transitions = dict[str, tuple[str, str, set[str]]]

# 7.1.3; T3 and T6 are a target's.
CONNECTION: Transitions = {
    "T1": ("S1", "S2", {"transport connect request made"}),
    "T2": ("S2", "S1", {LOST, CLOSED_ELSEWHERE}),
    "T4": ("S2", "S4", {"transport connection established"}),
    "T5": ("S4", "S5", {"final Login Response with Status-Class 0"}),
    "T7": ("S4", "S1", {LOST, CLOSED_ELSEWHERE}),
    "T8": ("S5", "S1", {CLOSED_ELSEWHERE}),
    "T9": ("S5", "S6", {"ready to start the logout"}),
    "T10": ("S7", "S6", {"ready to start the logout"}),
    "T11": ("S5", "S7", {"Async: Request Logout"}),
    "T12": ("S7", "S7", {"Async: Request Logout"}),
    "T13": ("S6", "S1", {"Logout Response (success)", CLOSED_ELSEWHERE}),
    "T14": ("S6", "S6", {"Async: Request Logout"}),
    "T15": ("S5", "S8", {LOST}),
    "T16": ("S7", "S8", {LOST}),
    "T17": ("S6", "S8", {"Logout Response (failure), or logout timed out", LOST}),
    "T18": ("S7", "S1", {CLOSED_ELSEWHERE}),
}

# 7.2: R1 is S8, and R3 is S1.
CLEANUP: Transitions = {
    "M1": ("S8", "S1", {"connection state timeout", CLOSED_ELSEWHERE}),
    "M2": ("S8", "R2", {"implicit or explicit logout initiated"}),
    "M3": ("R2", "S8", {"logout failure detected"}),
    "M4": ("R2", "S1", {"successful implicit or explicit logout", CLOSED_ELSEWHERE}),
}

# 7.3.1; N2 and N7 to N11 are a target's.
SESSION: Transitions = {
    "N1": ("Q1", "Q3", {"a connection reached LOGGED_IN"}),
    "N3": ("Q3", "Q1", {"graceful closing of the session"}),
    "N4": ("Q4", "Q3", {"session continuation succeeded"}),
    "N5": ("Q3", "Q4", {"session failure"}),
    "N6": ("Q4", "Q1", {"session state timeout, or cleared by reinstatement"}),
}

EVENTS = {
    "CONNECT": "transport connect request made",
    "CONNECTED": "transport connection established",
    "LOGIN_ACCEPTED": "final Login Response with Status-Class 0",
    "LOGOUT": "ready to start the logout",
    "LOGOUT_ASKED": "Async: Request Logout",
    "LOGGED_OUT": "Logout Response (success)",
    "LOGOUT_FAILED": "Logout Response (failure), or logout timed out",
    "SESSION_CLOSED": CLOSED_ELSEWHERE,
    "LOST": LOST,
    "CLEANUP": "implicit or explicit logout initiated",
    "CLEANED_UP": "successful implicit or explicit logout",
    "CLEANUP_FAILED": "logout failure detected",
    "TIMED_OUT": "connection state timeout",
    "CONNECTION_LOGGED_IN": "a connection reached LOGGED_IN",
    "CLOSED": "graceful closing of the session",
    "CONTINUED": "session continuation succeeded",
    "FAILED": "session failure",
    "DISCARDED": "session state timeout, or cleared by reinstatement",
}
"""The names of our events, by what the RFC says."""


def triples(*tables: Transitions) -> set[tuple[str, str, str]]:
    """Return every (from, cause, to) of some diagrams."""
    return {(begin, cause, end) for table in tables for begin, end, causes in table.values() for cause in causes}


def name_of(begin: str, end: str) -> str:
    """Return the RFC's name of a transition."""
    for table in (CONNECTION, CLEANUP, SESSION):
        for name, (left, right, _) in table.items():
            if (left, right) == (begin, end):
                return name
    raise KeyError(f"no transition leads from {begin} to {end}")
