# SPDX-License-Identifier: GPL-3.0-or-later
"""One volume that shall be served: its paths, its disk and its NBD export."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path as FilePath

from blockfleet.block.disk import ScsiDisk
from blockfleet.block.profile import UnitProfile
from blockfleet.engine.event_log import EventLog
from blockfleet.engine.fence import DETOUR_AFTER, TIME_FENCE, FenceMethod, fence
from blockfleet.engine.interface import Fault, PathPhase, PathState, VolumeSpec, VolumeState
from blockfleet.engine.path_link import PathLink
from blockfleet.engine.session import Session
from blockfleet.engine.units import fault_of, logical_unit
from blockfleet.export.server import NbdExport
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.events import EventNumber
from blockfleet.model.isdsc import Isdsc
from blockfleet.multipath.device import MultipathDevice
from blockfleet.multipath.events import DevicePhase, Event, EventKind
from blockfleet.multipath.group import MAXIMUM_PATHS
from blockfleet.multipath.identity import VolumeIdentity, refusal
from blockfleet.multipath.path import Path
from blockfleet.multipath.path import PathPhase as DevicePathPhase
from blockfleet.multipath.spread import PathRole, Spread
from blockfleet.scsi.condition import Attention
from blockfleet.scsi.lun import describe

SETTLE_TIMEOUT = 10.0
"""Seconds that a caller waits for the first checks of a volume's paths."""

_PHASE_EVENTS = {
    DevicePhase.ONLINE: EventNumber.VOLUME_RECOVERED,
    DevicePhase.DEGRADED: EventNumber.VOLUME_DEGRADED,
    DevicePhase.QUEUEING: EventNumber.VOLUME_DEGRADED,
    DevicePhase.FAILED: EventNumber.VOLUME_FAILED,
}
_PHASE_TEXTS = {
    DevicePhase.ONLINE: "all paths are there",
    DevicePhase.DEGRADED: "a path is missing",
    DevicePhase.QUEUEING: "no path, I/O waits",
    DevicePhase.FAILED: "no path for too long, I/O fails",
}
_PATH_EVENTS = {
    (DevicePathPhase.STANDBY, DevicePathPhase.ACTIVE): EventNumber.PATH_SWITCHED,
    (DevicePathPhase.FAILED, DevicePathPhase.ACTIVE): EventNumber.PATH_RESTORED,
    (DevicePathPhase.FAILED, DevicePathPhase.STANDBY): EventNumber.PATH_RESTORED,
    (DevicePathPhase.MISMATCH, DevicePathPhase.ACTIVE): EventNumber.PATH_RESTORED,
    (DevicePathPhase.MISMATCH, DevicePathPhase.STANDBY): EventNumber.PATH_RESTORED,
}
_ARRIVALS = {
    DevicePathPhase.FAILED: EventNumber.PATH_FAILED,
    DevicePathPhase.FENCING: EventNumber.PATH_FENCING,
    DevicePathPhase.MISMATCH: EventNumber.IDENTITY_MISMATCH,
}
"""Events of path phases that are told of whatever the phase before was."""

_TO_CHECK = Attention.IDENTITY | Attention.CAPACITY | Attention.MODE

_log = logging.getLogger(__name__)


def spread_of(spec: VolumeSpec) -> Spread:
    """Return how the device shall spread I/O."""
    roles = {
        setting.session: PathRole(setting.weight, setting.standby, setting.primary)
        for setting in spec.path_settings
    }
    return Spread(spec.policy, spec.failback, roles)


class Volume:
    """Serves one :class:`VolumeSpec` from the first path on until :meth:`close`.

    ``unclean`` says that an engine before this one ended without saying good-bye: its last writes are then
    fenced before the first use of the unit.
    """

    def __init__(
        self,
        spec: VolumeSpec,
        directory: FilePath,
        events: EventLog,
        sessions: Callable[[], Iterable[Session]],
        *,
        unclean: bool = False,
    ) -> None:
        self._sessions = sessions
        self.spec = spec
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._socket = directory / f"{spec.name}.sock"
        self._links: dict[Path, PathLink] = {}
        self._departed: dict[Path, PathLink] = {}
        """Paths that were given up with writes whose end is not known."""
        self._home = ""
        self._disk: ScsiDisk | None = None
        self._export: NbdExport | None = None
        self._starting: asyncio.Task[None] | None = None
        self._start_error: BlockfleetError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told_phase = DevicePhase.QUEUEING
        self._outages = 0
        self._closed = False
        self._unclean = unclean
        self._created = self._loop.time()
        self._first_use = asyncio.Lock()
        self._handlers: dict[EventKind, Callable[[Event], None]] = {
            EventKind.FENCE: self._on_fence,
            EventKind.RECHECK: self._on_recheck,
            EventKind.PATH: self._on_path,
            EventKind.PHASE: self._on_phase,
            EventKind.DEADLINE: self._on_deadline,
        }
        self._device = MultipathDevice(
            spec.policy, now=self._loop.time, random=random.random, on_event=self._on_event
        )
        self._device.set_spread(spread_of(spec))
        self._arm()

    # --- what the data plane calls -----------------------------------------------------------------------

    def update(self, spec: VolumeSpec) -> None:
        """Take another spread of I/O or other targets; raises ``INVALID_PARAMETER`` for what cannot change live."""
        for field in ("identity", "read_only"):
            if getattr(spec, field) != getattr(self.spec, field):
                raise BlockfleetError(
                    Isdsc.INVALID_PARAMETER,
                    f"{field} of volume {spec.name} cannot change while it is served",
                    remedy="withdraw it and publish it again",
                    field=field,
                )
        before, self.spec = self.spec, spec
        if spread_of(spec) != spread_of(before):
            self._device.set_spread(spread_of(spec))
        for link in tuple(self._links.values()):
            if link.session.spec.target not in spec.targets:
                self._remove(link, "its target is no longer the volume's")
        if self._start_error is not None and self._export is not None and self._starting is None:
            self._start_error = None
            self._starting = self._loop.create_task(self._start(self._export))

    async def settled(self) -> None:
        """Wait until the checks under way are done and the socket is there, SETTLE_TIMEOUT seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT):
                for link in tuple(self._links.values()):
                    await link.checked()
                if self._starting is not None:
                    await asyncio.wait((self._starting,))

    async def close(self) -> None:
        """Answer what is in flight, end the clients' connections, give the paths up."""
        if self._starting is not None:
            await asyncio.wait((self._starting,))
        if self._device.phase in (DevicePhase.QUEUEING, DevicePhase.FAILED):
            self._device.close()
        if self._export is not None:
            await self._export.stop()
        self._closed = True
        self._device.close()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(link.close() for link in (*self._links.values(), *self._departed.values())))
        self._events.record(EventNumber.VOLUME_WITHDRAWN, self.spec.name)

    def state(self) -> VolumeState:
        """Describe the volume."""
        disk, export = self._disk, self._export
        served = export is not None and self._starting is None and self._start_error is None
        return VolumeState(
            name=self.spec.name,
            identity=self.spec.identity,
            targets=self.spec.targets,
            size=disk.geometry.size if disk else 0,
            block_size=disk.geometry.block_size if disk else 0,
            policy=self._device.spread.policy,
            failback=self._device.spread.failback,
            path_settings=self.spec.path_settings,
            read_only=disk.geometry.read_only if disk else self.spec.read_only,
            phase=self._device.phase.value,
            socket=str(self._socket) if served else "",
            clients=export.clients if export else 0,
            paths=tuple(self._path_state(link) for link in self._links.values()),
            counters=self._device.counters | (export.counters if export else {}),
            fault=self._fault(),
        )

    def _path_state(self, link: PathLink) -> PathState:
        path = link.path
        return PathState(
            session=path.session,
            lun=logical_unit(UnitProfile(lun=path.lun, device_type=0)).lun,
            phase=PathPhase.MISMATCH if path.mismatch else PathPhase(path.phase.value),
            preferred=path.preferred,
            weight=path.weight,
            standby=path.standby,
            primary=path.primary,
            counters=path.counters,
        )

    def _fault(self) -> Fault | None:
        if self._start_error is not None:
            return fault_of(self._start_error)
        if self._disk is not None and self._disk.loss_pending:
            return fault_of(
                BlockfleetError(
                    Isdsc.SCSI_REQUEST_FAILED,
                    f"volume {self.spec.name}: the unit lost its write cache with writes that were not flushed",
                    remedy="check the data, then withdraw the volume and publish it again",
                )
            )
        refusals = [link.refusal for link in self._links.values() if link.refusal is not None]
        if refusals:
            return fault_of(refusals[0])
        if self._disk is None:
            return fault_of(
                BlockfleetError(
                    Isdsc.VOLUME_NOT_FOUND,
                    f"volume {self.spec.name}: no session shows logical unit {self.spec.identity}",
                    remedy="check that its target is logged in and maps the unit to this host",
                )
            )
        return None

    # --- what sessions tell ------------------------------------------------------------------------------

    def session_changed(self, session: Session) -> None:
        """Take a session's newest patience: I/O waits as long as the most patient path says."""
        if any(link.session is session for link in self._links.values()):
            self._device.queue_timeout = max(
                link.session.spec.options.replacement_timeout for link in self._links.values()
            )

    def session_logged_in(self, session: Session) -> None:
        """Check the paths through a session before they carry I/O again."""
        for link in self._of(session):
            link.logged_in()

    def session_scanned(self, session: Session) -> None:
        """Make a path of a unit that has turned up, and look again at paths that led to a wrong one."""
        if self._closed or session.spec.target not in self.spec.targets:
            return
        links = self._of(session)
        for link in links:
            if link.refusal is not None:
                link.check()
        if any(link.refusal is None for link in links):
            return
        known = {link.path.lun for link in links}
        for profile in session.profiles:
            if profile.identity == self.spec.identity and profile.lun not in known:
                self._add(session, profile.lun)
                return

    def session_lost(self, session: Session) -> None:
        """Stop using the paths through a session."""
        for link in self._of(session):
            link.lost("the session is lost")

    async def session_leaving(self, session: Session) -> None:
        """Let the paths through a session fall idle before it logs out."""
        await asyncio.gather(*(link.vacate("the session is being logged out") for link in self._of(session)))

    def session_closed(self, session: Session) -> None:
        """Forget the paths through a session."""
        for link in self._of(session):
            self._remove(link, "its session was closed")

    def _of(self, session: Session) -> list[PathLink]:
        return [link for link in self._links.values() if link.session is session]

    def _add(self, session: Session, lun: int) -> None:
        if len(self._links) >= MAXIMUM_PATHS:
            _log.warning(
                "volume %s has %d paths already: none through %s", self.spec.name, MAXIMUM_PATHS, session.spec.key
            )
            return
        link = PathLink(session, lun, self._device, self)
        self._links[link.path] = link
        self.session_changed(session)
        link.check()

    def _remove(self, link: PathLink, cause: str) -> None:
        link.lost(cause)
        if link.path in self._device.paths:
            self._device.remove_path(link.path)
        del self._links[link.path]
        self._departed = {path: other for path, other in self._departed.items() if not other.idle}
        if not link.idle:
            self._departed[link.path] = link
        self._events.record(EventNumber.PATH_REMOVED, self.spec.name, f"{link.path.session}: {cause}")

    # --- what links ask (LinkOwner) ----------------------------------------------------------------------

    async def before_first_use(self, link: PathLink) -> None:
        """Fence what an engine that was killed may have left in the unit."""
        async with self._first_use:
            if self._unclean:
                others = [
                    s for s in self._sessions() if s.spec.target in self.spec.targets and s is not link.session
                ]
                await asyncio.gather(*(self._end_predecessor(other, link.session) for other in others))
                await fence(link, link.path.lun, link.generation - 1, self._created)
                self._unclean = False

    async def _end_predecessor(self, session: Session, through: Session) -> None:
        """Make the target drop what a killed engine sent on a session: by a login, here or through another portal.

        Which group a portal that never answered is in is not known, so the detour stands in for no time.
        """
        if await session.wait_for_login(0, DETOUR_AFTER):
            return
        if session.spec.target == through.spec.target:
            await session.reinstate_through(through)
        await session.wait_for_login(0, max(0.0, self._created + TIME_FENCE - self._loop.time()))

    def detours(self, link: PathLink) -> tuple[Session, ...]:
        """Return the sessions of the link's portal group that are logged in."""
        own = link.session
        return tuple(
            other
            for other in self._sessions()
            if other is not own
            and other.logged_in
            and other.spec.target == own.spec.target
            and own.nexus.portal_group_tag is not None
            and other.nexus.portal_group_tag == own.nexus.portal_group_tag
        )

    def judge(self, link: PathLink, profile: UnitProfile | None) -> BlockfleetError | None:
        """Say why a unit must not be used; a path that was one before may have grown or shrunk."""
        target = link.session.spec.target
        if profile is None:
            return BlockfleetError(
                Isdsc.IDENTITY_MISMATCH,
                f"there is no logical unit behind {describe(link.path.lun)} of {target} any more",
                remedy="check the target's LUN mapping",
            )
        disk = self._disk
        known = link.profile is not None
        expected = VolumeIdentity(
            identity=self.spec.identity,
            target=self._home or target,
            blocks=0 if known or disk is None else disk.profile.blocks,
            block_size=disk.profile.block_size if disk else 0,
        )
        return refusal(expected, profile, target)

    def joined(self, link: PathLink) -> None:
        """Serve the volume from its first path on; take changes of size."""
        profile = link.profile
        assert profile is not None
        if self._disk is None:
            self._home = link.session.spec.target
            self._disk = ScsiDisk(self._device, link.path.lun, profile, read_only=self.spec.read_only)
            self._export = NbdExport(self.spec.name, self._disk, self._socket)
            self._starting = self._loop.create_task(self._start(self._export))
        else:
            self._refresh(self._disk, profile)

    def fenced(self, link: PathLink, method: FenceMethod) -> None:
        """Record the end of a fence."""
        self._events.record(
            EventNumber.PATH_FENCED, self.spec.name, f"{link.path.session}: by {method}", {"method": str(method)}
        )

    async def _start(self, export: NbdExport) -> None:
        try:
            await export.start()
        except BlockfleetError as error:
            self._start_error = error
            self._events.record(EventNumber.VOLUME_FAILED, self.spec.name, str(error))
        else:
            self._events.record(EventNumber.VOLUME_PUBLISHED, self.spec.name, details={"socket": str(self._socket)})
        finally:
            self._starting = None

    def _refresh(self, disk: ScsiDisk, profile: UnitProfile) -> None:
        """Take a path's newest profile; the size is the smallest that any path shows."""
        shown = [link.profile.blocks for link in self._links.values() if link.profile is not None]
        before = disk.profile
        after = replace(profile, blocks=min(shown))
        if after == before:
            return
        disk.update(after)
        if after.blocks != before.blocks:
            self._events.record(
                EventNumber.VOLUME_RESIZED,
                self.spec.name,
                f"from {before.size} to {after.size} bytes",
                {"before": str(before.size), "after": str(after.size)},
            )
            for link in self._links.values():
                if link.refusal is not None:
                    link.check()

    # --- what the device tells ---------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if not self._closed:
            self._handlers[event.kind](event)

    def _on_fence(self, event: Event) -> None:
        path = event.path
        link = None if path is None else self._links.get(path) or self._departed.get(path)
        if link is not None:
            link.begin_fence()

    def _on_recheck(self, event: Event) -> None:
        link = self._links.get(event.path) if event.path is not None else None
        if link is None:
            return
        attention = event.attention
        if attention & Attention.CACHE and self._disk is not None and self._disk.cache_lost():
            self._events.record(
                EventNumber.VOLUME_FAILED,
                self.spec.name,
                "the unit lost its write cache with writes that were not flushed: flushes fail from now on",
            )
        if attention & Attention.SPACE:
            self._events.record(EventNumber.UNITS_CHANGED, link.path.session, "thin provisioning: space runs out")
        if attention & Attention.LUNS:
            link.session.request_scan()
        if attention & _TO_CHECK:
            link.check()
        if attention & Attention.ALUA:
            link.poll_access()

    def _on_path(self, event: Event) -> None:
        path = event.path
        link = self._links.get(path) if path is not None else None
        if path is None or link is None or event.before is None:
            return
        number = _ARRIVALS.get(path.phase) or _PATH_EVENTS.get((event.before, path.phase))
        if number is EventNumber.PATH_RESTORED and not link.joins:
            number = EventNumber.PATH_ADDED
        if number is not None:
            cause = f": {event.cause}" if event.cause else ""
            self._events.record(number, self.spec.name, f"{path.session} is {path.phase.value}{cause}")

    def _on_phase(self, _event: Event) -> None:
        # Told when the present callback is over: a phase that it passes through is nobody's concern.
        self._loop.call_soon(self._tell_phase)

    def _tell_phase(self) -> None:
        phase = self._device.phase
        if phase is self._told_phase or self._closed:
            return
        before, self._told_phase = self._told_phase, phase
        if phase is DevicePhase.ONLINE and before is DevicePhase.QUEUEING and not self._outages:
            return  # the first path: VOLUME_PUBLISHED says it
        self._outages += 1
        self._events.record(_PHASE_EVENTS[phase], self.spec.name, _PHASE_TEXTS[phase])

    def _on_deadline(self, _event: Event) -> None:
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._device.deadline()
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._device.advance(self._loop.time())
        if not self._closed:
            self._arm()
