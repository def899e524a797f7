# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell an engine to serve one unit: ``python publish.py RUNTIME TARGET LUN PORTAL...`` prints the socket."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from blockfleet.engine.client import EngineClient
from blockfleet.engine.interface import EngineState, InitiatorSpec, SessionSpec, VolumeSpec, session_key
from blockfleet.model.portal import Portal

_TIMEOUT = 20.0


async def _until_unit_is_seen(engine: EngineClient, sessions: int, lun: int) -> str:
    """Wait until all sessions show the unit; return its identity."""
    while True:
        state: EngineState = await engine.observe()
        seen = [unit for session in state.sessions for unit in session.units if unit.lun == lun and unit.identity]
        if len(seen) == sessions:
            return seen[0].identity
        await asyncio.sleep(0.05)


async def _publish(options: argparse.Namespace) -> str:
    engine = EngineClient(options.runtime / "engine.sock")
    async with asyncio.timeout(_TIMEOUT):
        # Two engines of one name would take each other's session by reinstatement.
        await engine.configure(InitiatorSpec(name=f"iqn.2026-11.com.example:bench-{os.getpid()}"))
        for number, given in enumerate(options.portals, 1):
            portal = str(Portal.parse(given))
            isid = f"80b3c5{number:06x}"
            key = session_key(options.target, portal)
            await engine.open_session(SessionSpec(key=key, target=options.target, portal=portal, isid=isid))
        identity = await _until_unit_is_seen(engine, len(options.portals), options.lun)
        volume = await engine.publish(VolumeSpec(name="bench", identity=identity, targets=(options.target,)))
        while not (volume.socket and Path(volume.socket).exists()):
            await asyncio.sleep(0.05)
            (volume,) = (await engine.observe()).volumes
    await engine.close()
    return volume.socket


def main() -> None:
    """Publish and print the socket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime", type=Path)
    parser.add_argument("target")
    parser.add_argument("lun", type=int)
    parser.add_argument("portals", nargs="+")
    print(asyncio.run(_publish(parser.parse_args())))  # noqa: T201 - its result


if __name__ == "__main__":
    main()
