# SPDX-License-Identifier: GPL-3.0-or-later
"""Our initiator under the load that ``iscsi-perf`` makes: sequential reads of one size at one depth.

Run as a program of its own: ``python initiator.py PORTAL TARGET LUN BYTES DEPTH SECONDS`` prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

import uvloop

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.portal import Portal
from blockfleet.net.nexus import Nexus, NexusParameters
from blockfleet.scsi import cdb
from blockfleet.scsi.command import Outcome, ScsiCommand

_WARM_UP = 0.3
_LOGIN_TIMEOUT = 10.0


class Load:
    """Keeps ``depth`` reads in flight and counts those that end while it is counting."""

    def __init__(self, nexus: Nexus, lun: int, block: int, blocks: int, length: int) -> None:
        self.done = 0
        self.stopping = False
        self.idle = asyncio.Event()
        self._nexus = nexus
        self._lun = lun << 48
        self._step = length // block
        self._wrap = blocks - self._step
        self._length = length
        self._lba = 0
        self._in_flight = 0

    def begin(self, depth: int) -> None:
        """Put the reads in flight."""
        self._in_flight = depth
        for _ in range(depth):
            self._read(memoryview(bytearray(self._length)))

    def _read(self, buffer: memoryview) -> None:
        lba = self._lba
        self._lba = lba + self._step if lba + self._step <= self._wrap else 0
        self._nexus.execute(ScsiCommand(self._lun, cdb.read_16(lba, self._step), self._ended, data_in=buffer))

    def _ended(self, command: ScsiCommand) -> None:
        if command.outcome != Outcome.COMPLETE or command.status or command.data_in_count != self._length:
            raise RuntimeError(f"a read failed: {command!r} {command.error}")
        self.done += 1
        if not self.stopping:
            assert command.data_in is not None
            self._read(command.data_in)
            return
        self._in_flight -= 1
        if not self._in_flight:
            self.idle.set()


class _Listener:
    def __init__(self) -> None:
        self.logged_in = asyncio.Event()

    def nexus_logged_in(self, nexus: Nexus) -> None:
        self.logged_in.set()

    def nexus_lost(self, nexus: Nexus, error: BlockfleetError) -> None:
        return  # what was in flight ends other than COMPLETE, and that is an error; else it is our own logout

    def nexus_login_failed(self, nexus: Nexus, error: BlockfleetError, will_retry: bool) -> None:
        raise RuntimeError(f"login failed: {error}")

    async def nexus_leaving(self, nexus: Nexus) -> None:
        """Nothing has to be moved away."""

    def nexus_async_event(self, nexus: Nexus, code: int, lun: int, sense: bytes) -> None:
        return


async def _run_one(nexus: Nexus, lun: int, command: bytes, length: int) -> ScsiCommand:
    """Run one command, again where a unit attention came in its place."""
    for _ in range(4):
        ended: asyncio.Future[ScsiCommand] = asyncio.get_running_loop().create_future()
        buffer = memoryview(bytearray(length)) if length else None
        nexus.execute(ScsiCommand(lun << 48, command, ended.set_result, data_in=buffer))
        done = await ended
        if done.outcome == Outcome.COMPLETE and done.status == 0:
            return done
    raise RuntimeError(f"the unit does not become ready: {done!r}")


async def _measure(options: argparse.Namespace) -> dict[str, float]:
    listener = _Listener()
    parameters = NexusParameters(
        initiator_name="iqn.2026-11.com.example:bench",
        initiator_alias="",
        target=options.target,
        portal=Portal.parse(options.portal),
        isid=bytes.fromhex("80b3c4000001"),
    )
    nexus = Nexus(parameters, listener)
    nexus.start()
    async with asyncio.timeout(_LOGIN_TIMEOUT):
        await listener.logged_in.wait()
    await _run_one(nexus, options.lun, cdb.test_unit_ready(), 0)
    capacity = await _run_one(nexus, options.lun, cdb.read_capacity_16(), 32)
    assert capacity.data_in is not None
    blocks = int.from_bytes(capacity.data_in[:8], "big") + 1
    block = int.from_bytes(capacity.data_in[8:12], "big")
    load = Load(nexus, options.lun, block, blocks, options.bytes)
    load.begin(options.depth)
    await asyncio.sleep(_WARM_UP)
    before, started, used = load.done, time.monotonic(), os.times()
    await asyncio.sleep(options.seconds)
    operations, elapsed, now = load.done - before, time.monotonic() - started, os.times()
    load.stopping = True
    await load.idle.wait()
    await nexus.stop()
    cpu = now.user + now.system - used.user - used.system
    return {"operations": operations, "seconds": elapsed, "cpu": cpu}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("portal")
    parser.add_argument("target")
    parser.add_argument("lun", type=int)
    parser.add_argument("bytes", type=int)
    parser.add_argument("depth", type=int)
    parser.add_argument("seconds", type=float)
    print(json.dumps(uvloop.run(_measure(parser.parse_args()))))  # noqa: T201 - its result


if __name__ == "__main__":
    main()
