# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection and session states of an initiator, as tables (RFC 3720 chapter 7).

An event that a state does not know changes nothing: :meth:`StateMachine.on` then returns False.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar


class ConnectionState(enum.Enum):
    """Standard connection states and those of connection cleanup (RFC 3720 7.1.1, 7.2.1)."""

    FREE = "S1"
    XPT_WAIT = "S2"
    IN_LOGIN = "S4"
    LOGGED_IN = "S5"
    IN_LOGOUT = "S6"
    LOGOUT_REQUESTED = "S7"
    CLEANUP_WAIT = "S8"
    IN_CLEANUP = "R2"


class ConnectionEvent(enum.Enum):
    """What moves a connection from state to state (RFC 3720 7.1.2, 7.2.2)."""

    CONNECT = "transport connect request made"
    CONNECTED = "transport connection established"
    LOGIN_ACCEPTED = "final Login Response with status class zero"
    LOGOUT = "ready to log out"
    LOGOUT_ASKED = "asynchronous message: target requests logout"
    LOGGED_OUT = "Logout Response: success"
    LOGOUT_FAILED = "Logout Response: failure, or none in time"
    SESSION_CLOSED = "successful close-the-session logout on another connection"
    LOST = "transport lost or dropped"
    CLEANUP = "implicit or explicit recovery logout begun"
    CLEANED_UP = "recovery logout succeeded"
    CLEANUP_FAILED = "recovery logout failed"
    TIMED_OUT = "connection state timeout"


class SessionPhase(enum.Enum):
    """Session states (RFC 3720 7.3.3)."""

    FREE = "Q1"
    LOGGED_IN = "Q3"
    FAILED = "Q4"


class SessionEvent(enum.Enum):
    """What moves a session from state to state (RFC 3720 7.3.4)."""

    CONNECTION_LOGGED_IN = "a connection reached LOGGED_IN"
    CLOSED = "session closed gracefully"
    CONTINUED = "session continuation succeeded"
    FAILED = "session failure"
    DISCARDED = "session state timeout, or cleared by reinstatement"


_C = ConnectionState
_E = ConnectionEvent

CONNECTION_TRANSITIONS: dict[tuple[ConnectionState, ConnectionEvent], ConnectionState] = {
    (_C.FREE, _E.CONNECT): _C.XPT_WAIT,  # T1
    (_C.XPT_WAIT, _E.LOST): _C.FREE,  # T2
    (_C.XPT_WAIT, _E.SESSION_CLOSED): _C.FREE,  # T2
    (_C.XPT_WAIT, _E.CONNECTED): _C.IN_LOGIN,  # T4
    (_C.IN_LOGIN, _E.LOGIN_ACCEPTED): _C.LOGGED_IN,  # T5
    (_C.IN_LOGIN, _E.LOST): _C.FREE,  # T7
    (_C.IN_LOGIN, _E.SESSION_CLOSED): _C.FREE,  # T7
    (_C.LOGGED_IN, _E.SESSION_CLOSED): _C.FREE,  # T8
    (_C.LOGGED_IN, _E.LOGOUT): _C.IN_LOGOUT,  # T9
    (_C.LOGGED_IN, _E.LOGOUT_ASKED): _C.LOGOUT_REQUESTED,  # T11
    (_C.LOGGED_IN, _E.LOST): _C.CLEANUP_WAIT,  # T15
    (_C.LOGOUT_REQUESTED, _E.LOGOUT): _C.IN_LOGOUT,  # T10
    (_C.LOGOUT_REQUESTED, _E.LOGOUT_ASKED): _C.LOGOUT_REQUESTED,  # T12
    (_C.LOGOUT_REQUESTED, _E.LOST): _C.CLEANUP_WAIT,  # T16
    (_C.LOGOUT_REQUESTED, _E.SESSION_CLOSED): _C.FREE,  # T18
    (_C.IN_LOGOUT, _E.LOGOUT_ASKED): _C.IN_LOGOUT,  # T14
    (_C.IN_LOGOUT, _E.LOGGED_OUT): _C.FREE,  # T13
    (_C.IN_LOGOUT, _E.SESSION_CLOSED): _C.FREE,  # T13
    (_C.IN_LOGOUT, _E.LOGOUT_FAILED): _C.CLEANUP_WAIT,  # T17
    (_C.IN_LOGOUT, _E.LOST): _C.CLEANUP_WAIT,  # T17
    (_C.CLEANUP_WAIT, _E.TIMED_OUT): _C.FREE,  # M1
    (_C.CLEANUP_WAIT, _E.SESSION_CLOSED): _C.FREE,  # M1
    (_C.CLEANUP_WAIT, _E.CLEANUP): _C.IN_CLEANUP,  # M2
    (_C.IN_CLEANUP, _E.CLEANUP_FAILED): _C.CLEANUP_WAIT,  # M3
    (_C.IN_CLEANUP, _E.CLEANED_UP): _C.FREE,  # M4
    (_C.IN_CLEANUP, _E.SESSION_CLOSED): _C.FREE,  # M4
}

_Q = SessionPhase
_N = SessionEvent

SESSION_TRANSITIONS: dict[tuple[SessionPhase, SessionEvent], SessionPhase] = {
    (_Q.FREE, _N.CONNECTION_LOGGED_IN): _Q.LOGGED_IN,  # N1
    (_Q.LOGGED_IN, _N.CLOSED): _Q.FREE,  # N3
    (_Q.FAILED, _N.CONTINUED): _Q.LOGGED_IN,  # N4
    (_Q.LOGGED_IN, _N.FAILED): _Q.FAILED,  # N5
    (_Q.FAILED, _N.DISCARDED): _Q.FREE,  # N6
}

S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)


class StateMachine(Generic[S, E]):
    """A state, and the table that says where an event leads."""

    __slots__ = ("_transitions", "state")

    def __init__(self, transitions: dict[tuple[S, E], S], initial: S) -> None:
        self._transitions = transitions
        self.state = initial

    def on(self, event: E) -> bool:
        """Take ``event``; False, and no change, where the present state does not know it."""
        following = self._transitions.get((self.state, event))
        if following is None:
            return False
        self.state = following
        return True
