# SPDX-License-Identifier: GPL-3.0-or-later
"""One path of a volume: who is behind it is checked after each login and each doubt, losses are fenced."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from blockfleet.block.probe import port_groups, probe
from blockfleet.block.profile import UnitProfile
from blockfleet.engine.fence import RESET_TIMEOUT, FenceMethod, fence
from blockfleet.engine.session import Session
from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.errors import BlockfleetError
from blockfleet.multipath.device import MultipathDevice
from blockfleet.multipath.path import Path

CHECK_RETRY = 1.0
"""Seconds before a check that a live session did not answer is tried again."""

DRAIN_TIMEOUT = 5.0
"""Seconds that commands in flight have to end before a LUN RESET or a logout ends them."""

_DRAIN_POLL = 0.01

_log = logging.getLogger(__name__)


class LinkOwner(Protocol):
    """The volume that a path belongs to."""

    async def before_first_use(self, link: PathLink) -> None:
        """Make sure that nothing of an engine before this one still runs in the unit."""

    def judge(self, link: PathLink, profile: UnitProfile | None) -> BlockfleetError | None:
        """Say why what the path shows must not be used, or None."""

    def joined(self, link: PathLink) -> None:
        """Take note that the path carries I/O, with ``link.profile``."""

    def detours(self, link: PathLink) -> tuple[Session, ...]:
        """Return the sessions through other portals of the link's portal group that are logged in."""

    def fenced(self, link: PathLink, method: FenceMethod) -> None:
        """Take note that the path was fenced."""


class PathLink:
    """Keeps one :class:`~blockfleet.multipath.path.Path` in step with its session.

    ``profile`` is what the last check that succeeded found, ``refusal`` why the last one did not.
    """

    def __init__(self, session: Session, lun: int, device: MultipathDevice, owner: LinkOwner) -> None:
        self.session = session
        self.path = Path(session.nexus, lun, session.spec.key)
        self.profile: UnitProfile | None = None
        self.refusal: BlockfleetError | None = None
        self._device = device
        self._owner = owner
        self.joins = 0
        """How often the path was let in."""
        self._login = session.generation
        self._check: asyncio.Task[None] | None = None
        self._check_again = False
        self._poll: asyncio.Task[None] | None = None
        self._fence: asyncio.Task[None] | None = None

    @property
    def generation(self) -> int:
        """Number of the session's present or last login."""
        return self.session.generation

    @property
    def checking(self) -> bool:
        """Whether a check is under way."""
        return self._check is not None

    # --- identity ----------------------------------------------------------------------------------------

    def logged_in(self) -> None:
        """Check the path on a new login; a check on the one before is worthless."""
        self._cancel_check()
        self.check()

    def check(self) -> None:
        """Find out who is behind the path, and let I/O onto it when it is the right unit."""
        self._check_again = True
        if self._check is None and self.session.logged_in:
            self._check = asyncio.get_running_loop().create_task(self._run_checks())

    async def checked(self) -> None:
        """Wait until no check is under way."""
        while self._check is not None:
            await asyncio.wait((self._check,))

    async def _run_checks(self) -> None:
        try:
            while self._check_again and self.session.logged_in:
                self._check_again = False
                if not await self._check_once():
                    await asyncio.sleep(CHECK_RETRY)
                    self._check_again = True
        finally:
            if self._check is asyncio.current_task():
                self._check = None

    async def _check_once(self) -> bool:
        """Check; false when there was no answer, although the session lives."""
        login, generation = self.session.generation, self.path.generation
        try:
            await self._owner.before_first_use(self)
            profile = await probe(self.session.nexus, self.path.lun)
        except BlockfleetError as error:
            self.refusal = error
            return False
        self.refusal = self._owner.judge(self, profile)
        if self.refusal is not None:
            self._device.path_mismatch(self.path, str(self.refusal))
            # A unit that cannot be used now is asked again; a wrong one only when somebody says that it changed.
            return profile is None or profile.fault is None
        assert profile is not None
        self.profile = profile
        self._login = login
        if self.path not in self._device.paths:
            self._device.add_path(self.path)
        self._device.set_access(self.path, profile.access, profile.preferred)
        if self._device.path_up(self.path, generation):
            self.joins += 1
            self._owner.joined(self)
        return True

    def _cancel_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    # --- asymmetric access -------------------------------------------------------------------------------

    def poll_access(self) -> None:
        """Ask for the access state of the path's port group."""
        if self._poll is None and self.session.logged_in:
            self._poll = asyncio.get_running_loop().create_task(self._run_poll())

    async def _run_poll(self) -> None:
        try:
            groups = await port_groups(self.session.nexus, self.path.lun)
        except BlockfleetError as error:
            _log.info("%s: no access state: %s", self.session.spec.key, error)
            return
        finally:
            self._poll = None
        group = groups.of(self.profile.port_group) if self.profile is not None else None
        if group is not None and self.path in self._device.paths:
            self._device.set_access(self.path, group.state, group.preferred)

    # --- fence -------------------------------------------------------------------------------------------

    def begin_fence(self) -> None:
        """Make sure that nothing sent on the path's last login can take effect any more, then tell the device."""
        if self._fence is None:
            lost_at = asyncio.get_running_loop().time()
            self._fence = asyncio.get_running_loop().create_task(self._run_fence(lost_at))

    async def _run_fence(self, lost_at: float) -> None:
        safe = False
        try:
            method = await fence(self, self.path.lun, self._login, lost_at)
            safe = True
            self._owner.fenced(self, method)
        finally:
            self._fence = None
            self._device.fence_done(self.path, safe)

    async def wait_for_login(self, after: int, timeout: float) -> bool:
        """Wait for the session; see :class:`~blockfleet.engine.fence.FencedSession`."""
        return await self.session.wait_for_login(after, timeout)

    async def lun_reset(self, lun: int, timeout: float) -> TaskResponse:
        """Reset the unit on the path's own session; see :meth:`_reset`."""
        return await self._reset(self.session, lun, timeout)

    @property
    def contacted_at(self) -> float:
        """Loop time at which the portal last took a TCP connection."""
        return self.session.contacted_at

    async def detour(self, lun: int) -> bool:
        """End the old session through another portal of its group (RFC 3720 5.3.5), then reset the unit there."""
        for other in self._owner.detours(self):
            if not await self.session.reinstate_through(other):
                continue
            try:
                response = await self._reset(other, lun, RESET_TIMEOUT)
            except BlockfleetError as error:
                _log.warning("fence: %s", error)
                continue
            if response is TaskResponse.FUNCTION_COMPLETE:
                return True
        return False

    async def _reset(self, session: Session, lun: int, timeout: float) -> TaskResponse:
        """Reset the unit while no other path has anything in flight: it would be ended without an answer."""
        drained = asyncio.Event()
        self._device.quiesce(drained.set, DRAIN_TIMEOUT)
        try:
            await drained.wait()
            return await session.lun_reset(lun, timeout)
        finally:
            self._device.resume()

    # --- end ---------------------------------------------------------------------------------------------

    def lost(self, cause: str) -> None:
        """Take the path out of use: its session is lost."""
        self._cancel_check()
        self.refusal = None
        self._device.path_down(self.path, cause)

    async def vacate(self, cause: str) -> None:
        """Take the path out of use and let what is in flight end, :data:`DRAIN_TIMEOUT` seconds at most."""
        self.lost(cause)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DRAIN_TIMEOUT
        while self.path.in_flight and loop.time() < deadline:  # noqa: ASYNC110 - a path tells nobody when it is idle
            await asyncio.sleep(_DRAIN_POLL)

    @property
    def idle(self) -> bool:
        """Whether nothing was sent on the path whose end is not known."""
        return not (self.path.in_flight or self.path.unfenced)

    async def close(self) -> None:
        """End everything that is under way."""
        tasks = [task for task in (self._check, self._poll, self._fence) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
