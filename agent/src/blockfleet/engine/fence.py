# SPDX-License-Identifier: GPL-3.0-or-later
"""The fence of one path: when it is over, no write of a lost session can take effect any more.

The target is asked wherever it can be: the session is reinstated (same ISID, TSIH 0, so that the target drops
the old nexus with all that is still in the network), then LUN RESET, whose answer comes when nothing older runs
in the unit.  Reinstatement alone is not enough: real targets go on with commands that they have already begun.
Only while the target cannot be reached is time the fence.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Protocol

from blockfleet.iscsi.constants import TaskResponse
from blockfleet.model.errors import BlockfleetError

TIME_FENCE = 15.0
"""Seconds after which a target that cannot be reached is taken to have given up the old session's commands."""

DETOUR_AFTER = 5.0
"""Seconds that a portal has to take the session back, Time2Wait and all, before another of its group is asked."""

RESET_TIMEOUT = 30.0
"""Seconds for the answer to LUN RESET; a target answers only when the commands before it have ended."""

RESET_RETRY = 0.25
"""Seconds before LUN RESET is sent again on a session that did not answer it."""

_log = logging.getLogger(__name__)


class FenceMethod(enum.StrEnum):
    """What made it safe."""

    LUN_RESET = "lun_reset"
    DETOUR = "detour"
    """Reinstated through another portal of the group, and LUN RESET there."""
    TIME = "time"


class FencedSession(Protocol):
    """What a fence needs of a session."""

    @property
    def generation(self) -> int:
        """Number of the present or last login."""

    @property
    def contacted_at(self) -> float:
        """Loop time at which the portal last took a TCP connection; 0 before the first."""

    async def wait_for_login(self, after: int, timeout: float) -> bool:
        """Wait until logged in with a generation above ``after``; false when ``timeout`` seconds passed."""

    async def lun_reset(self, lun: int, timeout: float) -> TaskResponse:
        """Reset a logical unit and return the answer; raises :class:`BlockfleetError` without one."""

    async def detour(self, lun: int) -> bool:
        """Reinstate the session through another portal and reset the unit there; false where that cannot be."""


async def fence(session: FencedSession, lun: int, lost: int, lost_at: float) -> FenceMethod:
    """Return once nothing that was sent to ``lun`` on login ``lost`` can take effect any more.

    ``lost_at`` is the loop time at which the socket of that login was reset.  A target that is there but does
    not answer LUN RESET is asked for as long as it takes: its silence says that it is still busy.  So does a
    target that takes connections and holds the login back: time counts from the last sign of life.
    """
    loop = asyncio.get_running_loop()
    alive_at = lost_at
    while True:
        alive_at = max(alive_at, session.contacted_at)
        remaining = alive_at + TIME_FENCE - loop.time()
        if remaining <= 0:
            return FenceMethod.TIME
        if not await session.wait_for_login(lost, min(remaining, DETOUR_AFTER)):
            if await session.detour(lun):
                return FenceMethod.DETOUR
            continue
        generation = session.generation
        try:
            response = await session.lun_reset(lun, RESET_TIMEOUT)
        except BlockfleetError as error:
            _log.warning("fence: %s", error)
            await asyncio.sleep(RESET_RETRY)
            if session.generation == generation and await session.wait_for_login(generation - 1, 0):
                alive_at = loop.time()
            continue
        if response is TaskResponse.FUNCTION_COMPLETE:
            return FenceMethod.LUN_RESET
        _log.warning("fence: LUN RESET was answered %s, waiting instead", response.name)
        await asyncio.sleep(max(0.0, lost_at + TIME_FENCE - loop.time()))
        return FenceMethod.TIME
