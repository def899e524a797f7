# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that were written elsewhere judge the target: libiscsi, QEMU, and the dissector of tshark."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from blockfleet_testtarget.config import read_config
from blockfleet_testtarget.threaded import ThreadedTestTarget

pytestmark = pytest.mark.peer

NAME = "iqn.2026-11.com.example:disk"
SECRET = "a secret of 12"
MUTUAL = "another of 14."
ANSWERS = (
    "Login Response",
    "SCSI Data In",
    "Ready To Transfer",
    "SCSI Response",
    "Text Response",
    "Logout Response",
)
EXPECTED = yaml.safe_load(Path(__file__).with_name("iscsi-test-cu.yaml").read_text())


@pytest.fixture
def serve():
    running = []

    def begin(**changes):
        document = {
            "portals": ["127.0.0.1:0", {"group": 2}],
            "units": {"disk": {"size": "256M"}},
            "targets": [{"name": NAME, "luns": {0: "disk"}}],
            **changes,
        }
        target = ThreadedTestTarget(read_config(document))
        running.append(target)
        return target.__enter__()

    yield begin
    for target in running:
        target.__exit__()


def url(target, lun=0, portal=0, account=""):
    return f"iscsi://{account}{target.addresses[portal]}/{NAME}/{lun}"


def run(*command, timeout=100, check=True, **options):
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, **options
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0 or not check, output
    return output


def results_of(output):
    """Return the failed and the skipping tests of a verbose run of iscsi-test-cu, and how many ran."""
    suite = test = ""
    failed, skipping = set(), set()
    for line in output.splitlines():
        if found := re.match(r"Suite: (\S+)", line):
            suite = found[1]
        if found := re.match(r"  Test: (\S+) ", line):
            test = found[1]
        if "[SKIPPED]" in line:
            skipping.add(f"{suite}.{test}")
        if re.search(r"^\s*FAILED|\.\.\.FAILED", line):
            failed.add(f"{suite}.{test}")
    counted = re.search(r"^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", output, re.MULTILINE)
    assert counted is not None, output[-2000:]
    total, ran, _, failures = map(int, counted.groups())
    assert ran == total
    assert bool(failures) == bool(failed)
    return failed, skipping, ran


def test_all_families_of_iscsi_test_cu(serve):
    # One block of 4096 in eight of 512, or the tests of unaligned ranges would skip themselves.
    target = serve(units={"disk": {"size": "256M", "physical_exponent": 3}})
    names = ["-i", "iqn.2026-11.com.example:a", "-I", "iqn.2026-11.com.example:b"]
    output = run("iscsi-test-cu", "-d", "-v", "-t", "ALL", *names, url(target), url(target, portal=1), check=False)
    failed, skipping, ran = results_of(output)
    assert failed == set(EXPECTED["failing"])
    assert skipping == {test for tests in EXPECTED["skipping"].values() for test in tests}
    assert ran == 230


def test_read_only_unit_under_iscsi_test_cu(serve):
    target = serve(units={"disk": {"size": "64M", "read_only": True}})
    output = run("iscsi-test-cu", "-d", "-v", "-t", "ALL.ReadOnly", url(target), check=False)
    assert results_of(output) == (set(), set(), 1)


def test_libiscsi_sees_targets_and_units(serve):
    target = serve(
        units={"disk": {"size": "1G"}, "small": {"size": "2M"}},
        targets=[
            {"name": NAME, "luns": {3: "disk", 4: "small"}},
            {"name": "iqn.2026-11.com.example:other"},
        ],
    )
    listed = run("iscsi-ls", f"iscsi://{target.addresses[0]}")
    for portal, group in zip(target.addresses, (1, 2), strict=True):
        assert f"Target:{NAME} Portal:{portal},{group}" in listed
    shown = run("iscsi-ls", "-s", f"iscsi://{target.addresses[0]}/{NAME}")
    assert re.search(r"Lun:3 .*DIRECT_ACCESS", shown)
    assert "RETURNED LOGICAL BLOCK ADDRESS:2097151" in run("iscsi-readcapacity16", url(target, 3))
    assert "Vendor:TESTTGT" in run("iscsi-inq", url(target, 3))
    serial = target.call(lambda inner: inner.units["disk"].identity.serial)
    shown = run("iscsi-inq", "-e", "1", "-c", "131", url(target, 3))
    assert f"Designator:[TESTTGT {serial}]" in shown
    assert f"Designator:[{NAME},t,0x0001]" in shown
    assert shown.count("DEVICE DESIGNATOR") == 6


@pytest.mark.parametrize("mutual", [False, True], ids=["one-way", "mutual"])
def test_libiscsi_authenticates(serve, mutual):
    chap = {"user": "alice", "secret": SECRET, "mutual_user": "disk", "mutual_secret": MUTUAL}
    target = serve(targets=[{"name": NAME, "luns": {0: "disk"}, "chap": chap}])
    environment = {**os.environ, "LIBISCSI_CHAP_USERNAME": "alice", "LIBISCSI_CHAP_PASSWORD": SECRET}
    if mutual:
        environment |= {"LIBISCSI_CHAP_TARGET_USERNAME": "disk", "LIBISCSI_CHAP_TARGET_PASSWORD": MUTUAL}
    assert "Vendor:TESTTGT" in run("iscsi-inq", url(target), env=environment)
    environment["LIBISCSI_CHAP_PASSWORD"] = "not the secret"
    assert "Vendor" not in run("iscsi-inq", url(target), env=environment, check=False)
    assert not target.call(lambda inner: inner.sessions)


@pytest.mark.parametrize("digest", ["None", "CRC32C"])
def test_qemu_reads_what_it_wrote(serve, digest, tmp_path):
    target = serve(keys={"HeaderDigest": digest})
    wanted = digest.lower()
    options = f"driver=iscsi,transport=tcp,portal={target.addresses[0]},target={NAME},lun=0,header-digest={wanted}"
    commands = ["write -P 0x5a 1k 3M", "read -P 0x5a 1k 3M", "read -P 0 3146752 64k", "write -z 1M 64k"]
    commands += ["read -P 0 1M 64k", "discard 2M 64k", "read -P 0 2M 64k", "flush"]
    output = run("qemu-io", "--image-opts", options, *(part for each in commands for part in ("-c", each)))
    assert "verification failed" not in output
    assert output.count("bytes at offset") == 7
    assert target.call(lambda inner: inner.units["disk"].backing.read(1023, 3)) == b"\0\x5a\x5a"
    # libiscsi takes the StatSN of an R2T, which does not advance (10.8.3), for that of a status.
    noted = target.call(lambda inner: list(inner.violations))
    assert all("acknowledges what was not sent" in violation for violation in noted)


def test_qemu_converts_an_image_there_and_back(serve, tmp_path):
    target = serve(units={"disk": {"size": "16M"}})
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(16 << 20))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), url(target))
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", url(target), str(copy))
    assert copy.read_bytes() == source.read_bytes()


@pytest.mark.root
def test_dissector_finds_nothing_malformed(serve, tshark_capture):
    chap = {"user": "alice", "secret": SECRET}
    target = serve(targets=[{"name": NAME, "luns": {0: "disk"}, "chap": chap}])
    environment = {**os.environ, "LIBISCSI_CHAP_USERNAME": "alice", "LIBISCSI_CHAP_PASSWORD": SECRET}
    capture = tshark_capture(target.addresses[0])
    run("iscsi-ls", "-s", f"iscsi://{target.addresses[0]}", env=environment)
    run(
        "qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M", "-c", "flush", url(target),
        env=environment,
    )  # fmt: skip
    capture.stop()
    dissected = capture.decode("-Y", "tcp", "-V")
    # QEMU asks for 64 bytes of the longer page 83h first, and the dissector reads on where it was cut.
    cut = r"SCSI Payload \(Inquiry Response Data\)\n(?:    .*\n)*\[Malformed Packet: SCSI\]\n(?:    .*\n)*"
    dissected, pages = re.subn(cut, "", dissected)
    assert pages <= 1
    assert "Malformed" not in dissected
    for name in ANSWERS:
        assert f"Opcode: {name}" in dissected, name
