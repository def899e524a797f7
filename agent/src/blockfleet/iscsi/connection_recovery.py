# SPDX-License-Identifier: GPL-3.0-or-later
"""Error recovery level 2: a connection is lost, its tasks go on (RFC 3720 5.3.4, 6.1.4.3, 6.2.2, 6.4, 7.2, 10.14).

The lost connection is logged out for recovery on one that is left; where none is, the shell is asked to log it in
anew.  Then commands that the target has not acknowledged are sent again with their CmdSN, and the others are
reassigned.  Whatever fails on the way ends in session recovery.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from blockfleet.iscsi import logout, task_management
from blockfleet.iscsi.command_out import issue
from blockfleet.iscsi.constants import LogoutReason, LogoutResponseCode, TaskFunction, TaskResponse
from blockfleet.iscsi.events import (
    ConnectionDropped,
    ConnectionFreed,
    ConnectionLost,
    LossKind,
    QuirkMet,
    ReinstatementWanted,
)
from blockfleet.iscsi.serial import MASK, after
from blockfleet.iscsi.states import ConnectionEvent, SessionEvent
from blockfleet.iscsi.task import Ping, Task, TaskRequest

if TYPE_CHECKING:
    from blockfleet.iscsi.connection import Connection
    from blockfleet.iscsi.session import Session

MAXIMUM_REASSIGNS = 16
"""TASK REASSIGN requests that wait for their answer: a target has little room for immediate commands."""

MAXIMUM_REPEATS = 20
"""Times that a task is reassigned again because the target does not have it free yet."""

REASSIGN_AGAIN = 0.25
"""Seconds before that."""

MAXIMUM_LOGOUTS = 5
"""Recovery logouts of one connection, where they fail or are lost themselves."""

REINSTATE_AGAIN = 0.25
"""Seconds before the next login after one that failed, while no connection is left."""

_LEVEL = 2
_NOT_RECOVERED = frozenset({LossKind.PROTOCOL, LossKind.STUCK_TASK})
"""Losses after which the target's state is not to be trusted."""


@dataclass(slots=True, eq=False)
class _Departure:
    """A lost connection, from CLEANUP_WAIT until its last task has been recovered.

    Nothing is done before ``earliest``, and all has to be done by ``latest`` (6.4).
    """

    connection: Connection
    earliest: float
    latest: float
    attempts: int = 0
    busy: bool = False
    """A logout or a login of it is under way."""
    orphans: int = 0


@dataclass(slots=True, eq=False)
class _Orphan:
    """A task that waits for a new allegiance, from ``at`` on."""

    task: Task
    departure: _Departure
    at: float
    repeats: int = 0
    lun: int = 0


class ConnectionRecovery:
    """What one session does about its lost connections; it does nothing below recovery level 2."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._departures: dict[int, _Departure] = {}
        self._orphans: deque[_Orphan] = deque()
        self._asked: dict[int, _Orphan] = {}
        self._continue_by = float("inf")
        """When a session that has no connection is given up."""

    @property
    def holds(self) -> bool:
        """Whether commands may wait for a connection to come back."""
        return bool(self._departures)

    def cares_for(self, task: Task) -> bool:
        """Whether a task has no connection at the moment."""
        if task.tag in self._asked or not task.connection.takes_data:
            return True
        return any(orphan.task is task for orphan in self._orphans)

    # -- losing one

    def take(self, connection: Connection, event: ConnectionLost) -> bool:
        """Take a lost connection; False where that is the session's end."""
        session = self._session
        if connection.negotiated.error_recovery_level < _LEVEL or event.kind in _NOT_RECOVERED or event.retain <= 0:
            return False
        session.counters.connections_lost += 1
        now = session.now
        self._departures[connection.cid] = _Departure(connection, now + event.wait, now + event.wait + event.retain)
        for tag, orphan in list(self._asked.items()):
            if orphan.task.connection is connection:
                del self._asked[tag]
                self._finished(orphan)
        session.forget_connection(connection)
        if session.live is None:
            session.states.on(SessionEvent.FAILED)
            self._continue_by = now + event.wait + session.patience.continuation
        session.events.append(ConnectionDropped(connection.cid, event.detail))
        return True

    def retimed(self, cid: int, wait: float, retain: float) -> None:
        """Take the times that the target gives for a connection that is lost already (10.9.1, event 2)."""
        departure = self._departures.get(cid)
        if departure is not None and not departure.busy:
            now = self._session.now
            departure.earliest, departure.latest = now + wait, now + wait + retain

    # -- cleaning it up

    def advance(self, now: float) -> None:
        """Do what is due: logouts, logins, reassignments."""
        session = self._session
        if self.holds and session.live is None and now >= self._continue_by:
            self._escalate("no connection came back in time")
            return
        for departure in list(self._departures.values()):
            if now >= departure.latest:
                self._escalate(f"Time2Retain of connection {departure.connection.cid} is over")
                return
            if departure.busy or now < departure.earliest:
                continue
            if session.live is not None:
                self._log_out(departure, session.live, now)
            elif not self._under_way:
                self._ask_for_login(now)
            if session.over:
                return
        self._reassign(now)

    @property
    def _under_way(self) -> bool:
        return any(departure.busy for departure in self._departures.values())

    def _log_out(self, departure: _Departure, via: Connection, now: float) -> None:
        departure.attempts += 1
        if departure.attempts > MAXIMUM_LOGOUTS:
            self._escalate(f"connection {departure.connection.cid} could not be logged out for recovery")
        elif departure.connection.states.on(ConnectionEvent.CLEANUP):
            departure.busy = True
            logout.send(self._session, via, LogoutReason.REMOVE_FOR_RECOVERY, departure.connection, now)

    def _ask_for_login(self, now: float) -> None:
        ready = [one for one in self._departures.values() if now >= one.earliest]
        departure = min(ready, key=lambda one: (one.attempts, one.connection.rank))
        departure.attempts += 1
        departure.busy = True
        connection = departure.connection
        self._session.events.append(
            ReinstatementWanted(
                connection.cid, connection.exp_stat_sn, min(departure.latest, self._continue_by) - now
            )
        )

    def logout_answered(self, cid: int, code: int, wait: float, retain: float) -> None:
        """Take the answer to a recovery logout (10.15)."""
        departure = self._departures.get(cid)
        if departure is None:
            return
        now = self._session.now
        if code == LogoutResponseCode.SUCCESS:
            if self._session.quirks.logout_without_times and not wait and not retain:
                agreed = departure.connection.negotiated
                wait, retain = agreed.default_time2wait, agreed.default_time2retain
                self._met(cid, "it gives no times in its answer to a recovery logout")
            departure.connection.states.on(ConnectionEvent.CLEANED_UP)
            self._session.events.append(ConnectionFreed(cid))
            self._cleaned_up(departure, now + wait, now + wait + retain)
        elif code == LogoutResponseCode.CLEANUP_FAILED and retain:
            self.logout_failed(cid)
            departure.earliest, departure.latest = now + wait, now + wait + retain
        else:
            self._escalate(f"recovery logout of connection {cid} was answered with {code}")

    def logout_failed(self, cid: int) -> None:
        """Note that a recovery logout or a login had no success: it is tried again."""
        departure = self._departures.get(cid)
        if departure is not None:
            departure.connection.states.on(ConnectionEvent.CLEANUP_FAILED)
            departure.busy = False

    def reinstatement_failed(self, cid: int) -> None:
        """Note that the login that was wanted failed; another one follows while there is time."""
        departure = self._departures.get(cid)
        if departure is not None:
            self.logout_failed(cid)
            departure.earliest = max(departure.earliest, self._session.now + REINSTATE_AGAIN)

    def logging_in(self, cid: int) -> None:
        """Note that a login begins which logs the lost connection of this CID out (5.3.4, M2 of 7.2.2)."""
        departure = self._departures.get(cid)
        if departure is not None:
            departure.busy = True
            departure.connection.states.on(ConnectionEvent.CLEANUP)

    def logged_in(self, connection: Connection) -> None:
        """Take a connection that has come; it may stand in for the lost one of the same CID."""
        departure = self._departures.get(connection.cid)
        if departure is not None:
            departure.connection.states.on(ConnectionEvent.CLEANED_UP)
            now = self._session.now
            negotiated = connection.negotiated
            wait, retain = negotiated.default_time2wait, negotiated.default_time2retain
            latest = max(departure.latest, now + wait + retain)
            self._cleaned_up(departure, max(now, departure.earliest), latest)
        self.advance(self._session.now)

    # -- recovering its tasks

    def _tasks_of(self, connection: Connection) -> tuple[list[Task], list[Task]]:
        """Return its tasks that the target has not acknowledged, and those that it has, in order."""
        session = self._session
        tasks = [task for task in session.tasks.values() if task.connection is connection]
        tasks.sort(key=lambda task: task.cmd_sn - session.exp_cmd_sn + 0x80000000 & MASK)
        begun = [task for task in tasks if after(session.exp_cmd_sn, task.cmd_sn)]
        return tasks[len(begun) :], begun

    def _cleaned_up(self, departure: _Departure, earliest: float, latest: float) -> None:
        del self._departures[departure.connection.cid]
        departure.latest = latest
        unsent, begun = self._tasks_of(departure.connection)
        self._send_again(unsent)
        departure.orphans = len(begun)
        named = self._session.quirks.reassign_names_unit
        self._orphans.extend(
            _Orphan(task, departure, earliest, lun=task.command.lun if named else 0) for task in begun
        )
        if not begun:
            self._session.counters.connections_recovered += 1
        self._reassign(self._session.now)

    def terminated(self, connection: Connection) -> None:
        """Settle what was on a connection when it was closed: its tasks have been ended (10.14)."""
        unsent, begun = self._tasks_of(connection)
        self._send_again(unsent)
        for task in begun:
            self._session.give_up(task, "its connection was logged out")

    def _send_again(self, tasks: list[Task]) -> None:
        """Send commands that the target has discarded, and fill the other holes that it has now (6.2.1, 6.3)."""
        session = self._session
        via = session.next_lane()
        if via is None:
            return
        for task in tasks:
            lane = session.next_lane() or via
            session.move(task, lane)
            session.counters.commands_retried += 1
            issue(lane, task)
        numbered: set[int | None] = {task.cmd_sn for task in session.tasks.values()}
        numbered |= {ping.cmd_sn for ping in session.control.values() if isinstance(ping, Ping)}
        for offset in range(session.cmd_sn - session.exp_cmd_sn & MASK):
            cmd_sn = session.exp_cmd_sn + offset & MASK
            if cmd_sn not in numbered:
                session.plug(via, cmd_sn)

    def _reassign(self, now: float) -> None:
        session = self._session
        for _ in range(len(self._orphans)):
            if len(self._asked) >= MAXIMUM_REASSIGNS or session.over:
                return
            orphan = self._orphans.popleft()
            task = orphan.task
            if session.tasks.get(task.tag) is not task:
                self._finished(orphan)
            elif now >= orphan.departure.latest:
                session.give_up(task, "the target did not keep it long enough")
                self._finished(orphan)
            elif now < orphan.at or (lane := session.next_lane()) is None:
                self._orphans.append(orphan)
            else:
                self._asked[task.tag] = orphan
                session.move(task, lane)
                answer = partial(self._answered, orphan)
                task_management.reassign(session, task, lane, now, answer, lun=orphan.lun)

    def _answered(self, orphan: _Orphan, response: TaskResponse | None) -> None:
        session, task = self._session, orphan.task
        if self._asked.get(task.tag) is not orphan:
            return
        del self._asked[task.tag]
        response = self._meant(orphan, response)
        if response is TaskResponse.FUNCTION_COMPLETE:
            session.counters.tasks_reassigned += 1
            task.allegiance_renewed(session.now + session.patience.abort)
            if session.quirks.answers_in_doubt:
                # Where the task does not go on, it is aborted, whatever became of it.
                task.deadline = task.deadline or session.now + session.patience.abort
        elif session.tasks.get(task.tag) is not task:
            pass
        elif response is TaskResponse.TASK_DOES_NOT_EXIST:
            session.give_up(task, "the target has lost it with its connection")
        elif self._may_repeat(orphan, response):
            orphan.repeats += 1
            orphan.at = session.now + REASSIGN_AGAIN
            self._orphans.append(orphan)
            return
        else:
            what = "was not answered" if response is None else f"was answered with {response.name}"
            self._escalate(f"reassignment of task {task.tag:#010x} {what}")
            return
        self._finished(orphan)
        self._reassign(session.now)

    def _meant(self, orphan: _Orphan, response: TaskResponse | None) -> TaskResponse | None:
        """Return what an answer means that is of a target's own making."""
        meant = response if response is None else self._session.quirks.reassign_answers.get(response, response)
        if meant is not response and response is not None and meant is not None:
            self._met(orphan.task.connection.cid, f"its answer {response.name} to TASK REASSIGN means {meant.name}")
        return meant

    def _met(self, cid: int, what: str) -> None:
        self._session.events.append(QuirkMet(cid, self._session.quirks.kind, what))

    @staticmethod
    def _may_repeat(orphan: _Orphan, response: TaskResponse | None) -> bool:
        lun = orphan.task.command.lun
        if response is TaskResponse.FUNCTION_REJECTED and orphan.lun != lun:
            # The field is reserved, but LIO holds it against the unit of the task.
            orphan.lun = lun
            return True
        return response is TaskResponse.TASK_STILL_ALLEGIANT and orphan.repeats < MAXIMUM_REPEATS

    def _finished(self, orphan: _Orphan) -> None:
        orphan.departure.orphans -= 1
        if not orphan.departure.orphans:
            self._session.counters.connections_recovered += 1

    # -- ends

    def _escalate(self, why: str) -> None:
        """End the session: recovery itself has failed (6.1.4.4)."""
        session = self._session
        connection = session.live or next(iter(self._departures.values())).connection
        negotiated = connection.negotiated
        session.fail(
            ConnectionLost(
                connection.cid,
                LossKind.RECOVERY,
                why,
                negotiated.default_time2wait,
                negotiated.default_time2retain,
            )
        )

    def abandon(self, why: str) -> None:
        """Give up because the target does not know the session any more."""
        if self.holds and not self._session.over:
            self._escalate(why)

    def clear(self) -> None:
        """Forget everything: the session is over."""
        for departure in self._departures.values():
            departure.connection.states.on(ConnectionEvent.TIMED_OUT)
        self._departures.clear()
        self._orphans.clear()
        self._asked.clear()

    def next_deadline(self) -> float:
        """Return when :meth:`advance` wants to be called; infinity when nothing is lost."""
        deadline = float("inf")
        live = self._session.live
        waits = live is None and self._under_way
        if self.holds and live is None:
            deadline = self._continue_by
        for departure in self._departures.values():
            deadline = min(deadline, departure.latest)
            if not departure.busy and not waits:
                deadline = min(deadline, departure.earliest)
        if self._orphans and live is not None and len(self._asked) < MAXIMUM_REASSIGNS:
            deadline = min(deadline, *(orphan.at for orphan in self._orphans))
        return deadline

    def requests_lost(self, requests: list[TaskRequest]) -> None:
        """Send task management functions again whose connection is lost; those of single tasks are not."""
        session = self._session
        for request in requests:
            if request.task is None and session.live is not None:
                task_management.ask_again(session, request)
            elif request.function is not TaskFunction.TASK_REASSIGN:
                request.on_done(None)
