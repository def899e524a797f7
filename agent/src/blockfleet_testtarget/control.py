# SPDX-License-Identifier: GPL-3.0-or-later
"""The control socket: one JSON object a line in, one a line out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from blockfleet_testtarget.config import ConfigError, UnitConfig, parse_size
from blockfleet_testtarget.faults import REGISTRY, FaultError, build_fault

if TYPE_CHECKING:
    from blockfleet_testtarget.target import TestTarget

LINE_LIMIT = 1 << 20


class ControlServer:
    """Serves the control socket of a target (mode 0600, in the file system)."""

    def __init__(self, target: TestTarget, path: Path) -> None:
        self.target = target
        self.path = path
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=LINE_LIMIT)
        self.path.chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self.answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            self.target.note(f"control connection ended: {error}")
        finally:
            writer.close()

    def answer(self, line: bytes) -> dict[str, Any]:
        """Carry out one request and return the answer: `ok`, with `error` or the result."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise FaultError("a request is a JSON object")
            operation = str(request.pop("op", ""))
            handler = _OPERATIONS.get(operation)
            if handler is None:
                raise FaultError(f"there is no op {operation!r} (known: {', '.join(_OPERATIONS)})")
            return {"ok": True, **handler(self.target, request)}
        except (ValueError, KeyError, ConfigError) as error:
            return {"ok": False, "error": str(error)}


def _arm(target: TestTarget, request: dict[str, Any]) -> dict[str, Any]:
    fault = target.arm(build_fault(str(request.pop("fault", "")), request))
    return {"armed": fault in target.faults}


def _disarm(target: TestTarget, request: dict[str, Any]) -> dict[str, Any]:
    name = request.get("fault")
    doomed = [fault for fault in target.faults if name in (None, fault.name)]
    for fault in doomed:
        target.disarm(fault)
    return {"disarmed": len(doomed)}


def _faults(target: TestTarget, request: dict[str, Any]) -> dict[str, Any]:
    del request
    return {
        "armed": [{"fault": fault.name, "struck": fault.struck, "times": fault.times} for fault in target.faults],
        "known": sorted(REGISTRY),
    }


def _status(target: TestTarget, request: dict[str, Any]) -> dict[str, Any]:
    del request
    return {
        "portals": [{"address": portal.address, "group": portal.group} for portal in target.portals],
        "targets": {
            node.name: {str(lun): unit.name for lun, unit in node.luns.items()} for node in target.nodes.values()
        },
        "units": {
            unit.name: {"size": unit.backing.size, "naa": unit.identity.naa.hex()} for unit in target.units.values()
        },
        "sessions": [
            {
                "initiator": session.nexus.initiator,
                "isid": session.nexus.isid.hex(),
                "tsih": session.tsih,
                "target": session.node.name if session.node is not None else None,
                "group": session.nexus.port.group_tag,
                "connections": sorted(session.connections),
                "tasks": len(session.tasks),
                "level": session.level,
                "departed": [
                    {"cid": one.connection.cid, "logged_out": one.logged_out} for one in session.cleanup.departures
                ]
                if session.cleanup is not None
                else [],
            }
            for session in target.sessions
        ],
        "connections_seen": target.connections_seen,
        "violations": list(target.violations),
        "notes": list(target.notes)[-50:],
    }


def _add_unit(target: TestTarget, request: dict[str, Any]) -> dict[str, Any]:
    name = str(request["name"])
    if name in target.units:
        raise FaultError(f"there is a unit {name!r} already")
    unit = UnitConfig(size=parse_size(request.get("size", "64M")), naa=str(request.get("naa", "")))
    target.add_unit(name, unit)
    return {}


_OPERATIONS: dict[str, Callable[[TestTarget, dict[str, Any]], dict[str, Any]]] = {
    "arm": _arm,
    "disarm": _disarm,
    "faults": _faults,
    "status": _status,
    "add_unit": _add_unit,
}
