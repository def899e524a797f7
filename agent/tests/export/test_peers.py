# SPDX-License-Identifier: GPL-3.0-or-later
"""Other implementations of NBD as clients of ours."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace

import pytest
from tests.export.conftest import FULL, MEBIBYTE
from tests.export.memory_disk import MemoryDisk

from blockfleet.block.device import Operation

pytestmark = pytest.mark.peer


async def run(*command: object, error: bool = False, within: float = 60.0) -> str:
    """Run a program to its end; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(within):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode()
    assert (process.returncode != 0) is error, text
    return text


def uri(export, name="") -> str:
    return f"nbd+unix:///{name}?socket={export.socket_path}"


async def test_nbdinfo_sees_size_abilities_and_block_sizes(export):
    (seen,) = json.loads(await run("nbdinfo", "--json", uri(export)))["exports"]
    expected = {
        "export-name": "vol1",
        "export-size": 8 * MEBIBYTE,
        "is_read_only": False,
        "is_rotational": False,
        "can_flush": True,
        "can_fua": True,
        "can_multi_conn": True,
        "can_trim": True,
        "can_zero": True,
        "can_fast_zero": False,
        "can_df": True,
        "can_cache": False,
        "block_size_minimum": 512,
        "block_size_preferred": 4096,
        "block_size_maximum": 4 * MEBIBYTE,
    }
    assert expected.items() <= seen.items()


async def test_nbdinfo_lists_the_export(export):
    listed = json.loads(await run("nbdinfo", "--list", "--json", uri(export)))
    assert [(e["export-name"], e["export-size"]) for e in listed["exports"]] == [("vol1", 8 * MEBIBYTE)]


async def test_nbdinfo_is_told_that_there_is_no_such_export(export):
    assert "vol2" in await run("nbdinfo", uri(export, "vol2"), error=True)
    assert export.counters["protocol_violations"] == 0


async def test_nbdcopy_in_and_out_over_several_connections(export, disk, folder):
    data = random.Random(3).randbytes(len(disk.data))
    (folder / "in").write_bytes(data)
    await run("nbdcopy", "--flush", "--connections=4", folder / "in", uri(export))
    assert disk.data == data
    assert Operation.FLUSH in {entry[0] for entry in disk.log}
    assert export.counters["connections"] >= 2
    await run("nbdcopy", "--connections=4", "--request-size=1048576", uri(export), folder / "out")
    assert (folder / "out").read_bytes() == data


async def test_nbdcopy_of_a_sparse_file_writes_zeroes(export, disk, folder):
    disk.data[:] = b"\xff" * len(disk.data)
    with (folder / "in").open("wb") as sparse:
        sparse.write(b"head" * 1024)
        sparse.truncate(len(disk.data))
    await run("nbdcopy", folder / "in", uri(export))
    assert disk.data == b"head" * 1024 + bytes(len(disk.data) - 4096)
    assert Operation.WRITE_ZEROES in {entry[0] for entry in disk.log}


async def test_qemu_io_writes_patterns_zeroes_discards_and_flushes(export, disk):
    commands = [
        "write -P 0xa5 4096 65536",
        "write -f -P 0x5a 131072 512",
        "read -P 0xa5 4096 65536",
        "write -z 8192 4096",
        "read -P 0 8192 4096",
        "write -z -u 16384 4096",
        "discard 0 4096",
        "flush",
        "read -P 0x5a 131072 512",
    ]
    arguments = [part for command in commands for part in ("-c", command)]
    output = await run("qemu-io", "-t", "writeback", "-f", "raw", *arguments, uri(export))
    assert "verification failed" not in output
    log = disk.log
    assert (Operation.WRITE, 4096, 65536, False, False) in log
    assert (Operation.WRITE, 131072, 512, True, False) in log
    assert (Operation.WRITE_ZEROES, 8192, 4096, False, False) in log
    assert (Operation.WRITE_ZEROES, 16384, 4096, False, True) in log
    assert {Operation.TRIM, Operation.FLUSH} <= {entry[0] for entry in log}


async def test_qemu_img_info_and_map(export):
    seen = json.loads(await run("qemu-img", "info", "--output=json", "-f", "raw", uri(export)))
    assert seen["virtual-size"] == 8 * MEBIBYTE
    (extent,) = json.loads(await run("qemu-img", "map", "--output=json", "-f", "raw", uri(export)))
    assert (extent["start"], extent["length"], extent["data"]) == (0, 8 * MEBIBYTE, True)


async def test_qemu_io_is_refused_writing_to_a_read_only_export(serve):
    disk = MemoryDisk(replace(FULL, read_only=True))
    export = await serve(disk)
    await run("qemu-io", "-f", "raw", "-c", "write 0 512", uri(export), error=True)
    assert "512/512" in await run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 512", uri(export))


async def test_qemu_io_reports_the_device_error(export, disk):
    disk.fail_with = 5
    assert "Input/output error" in await run("qemu-io", "-f", "raw", "-c", "read 0 512", uri(export), error=True)
    disk.fail_with = 28
    assert "No space left" in await run("qemu-io", "-f", "raw", "-c", "write 0 512", uri(export), error=True)


@pytest.mark.parametrize(("size", "depth"), [("4k", 32), ("64k", 8), ("1m", 4)])
async def test_fio_verifies_every_block_it_wrote(serve, size, depth):
    export = await serve(MemoryDisk(replace(FULL, size=32 * MEBIBYTE)))
    output = await run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={uri(export)}",
        "--rw=randwrite",
        f"--bs={size}",
        f"--iodepth={depth}",
        "--size=32M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--fsync=16",
        "--output-format=json",
    )
    (job,) = json.loads(output[output.index("{\n") :])["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 32 * MEBIBYTE
    assert export.counters["flushes"] > 0
    assert export.counters["errors"] == 0
