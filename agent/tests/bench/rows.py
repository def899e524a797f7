# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured: every row has a subject of ours and a peer that does the same work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from tests.bench.servers import Checkout, Server, Unit, measure_initiator, run_iscsi_perf
from tests.peers.process import run

KIB = 1 << 10
_AVERAGE = re.compile(r"iops average (\d+)")
_SIZE_NAMES = {4 * KIB: "4 KiB", 64 * KIB: "64 KiB", 256 * KIB: "256 KiB", 1024 * KIB: "1 MiB"}
SIZES = tuple(_SIZE_NAMES)
DEPTHS = (1, 8, 32)


@dataclass(frozen=True)
class Sample:
    """One measurement: operations a second, and CPU seconds of the serving process per operation."""

    rate: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """``group`` says between whom, the rest what work."""

    group: str
    work: str
    length: int
    depth: int

    @property
    def name(self) -> str:
        """The row's name, the same in every run: it is what runs are compared by."""
        return f"{self.group} {self.work} {_SIZE_NAMES[self.length]} depth {self.depth}"


ROWS = (
    *(Row("initiator", "read", length, depth) for length, depth in product(SIZES, DEPTHS)),
    *(Row("volume", work, length, depth) for work, length, depth in product(("read", "write"), SIZES, DEPTHS)),
    *(Row("export", work, length, depth) for work, length, depth in product(("read", "write"), SIZES, (1, 32))),
)
QUICK = tuple(row for row in ROWS if row.group != "export" and row.length != 256 * KIB and row.depth != 8)

PEERS = {"initiator": "iscsi-perf", "volume": "qemu-nbd", "export": "nbdkit memory"}
"""Who each group is measured against."""

Measure = Callable[[Row, float], Sample]


def measure_nbd(server: Server, unit_size: int) -> Measure:
    """Return what measures a row with fio's NBD client against a server."""

    def measure(row: Row, seconds: float) -> Sample:
        used = server.cpu()
        output = run(
            "fio",
            "--name=bench",
            "--ioengine=nbd",
            f"--uri=nbd+unix:///?socket={server.socket}",
            f"--rw=rand{row.work}",
            f"--bs={row.length}",
            f"--iodepth={row.depth}",
            f"--size={unit_size}",
            "--norandommap",
            "--randrepeat=0",
            "--time_based",
            f"--runtime={round(1000 * seconds)}ms",
            "--output-format=json",
            within=seconds + 60,
        )
        used = server.cpu() - used
        (job,) = json.loads(output[output.index("{\n") :])["jobs"]
        if job["error"]:
            raise RuntimeError(f"{row.name}: fio reports error {job['error']}")
        side = job[row.work]
        return Sample(side["iops"], used / max(side["total_ios"], 1))

    return measure


def measure_ours(checkout: Checkout, unit: Unit) -> Measure:
    """Return what measures a row with our initiator."""

    def measure(row: Row, seconds: float) -> Sample:
        seen = json.loads(measure_initiator(checkout, unit, row.length, row.depth, seconds))
        return Sample(seen["operations"] / seen["seconds"], seen["cpu"] / max(seen["operations"], 1))

    return measure


def measure_iscsi_perf(unit: Unit) -> Measure:
    """Return what measures a row with ``iscsi-perf``, which counts in whole seconds."""

    def measure(row: Row, seconds: float) -> Sample:
        whole = max(2, round(seconds))
        output, used = run_iscsi_perf(unit, row.length, row.depth, whole)
        rate = float(_AVERAGE.findall(output)[-1])
        return Sample(rate, used / max(rate * whole, 1))

    return measure
