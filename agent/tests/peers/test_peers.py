# SPDX-License-Identifier: GPL-3.0-or-later
"""The peers work as the tests believe, seen with an initiator that is not ours (libiscsi)."""

from __future__ import annotations

import os
import struct
import subprocess

import pytest
from tests.peers.process import accepts, run, split_portal, wait_for
from tests.peers.tgt import Account

pytestmark = pytest.mark.peer

NAME = "iqn.2026-11.com.example:disk"
MEBIBYTE = 1 << 20
USER = Account("host1", "first-secret-1")
MUTUAL = Account("array1", "other-secret-22")


def url(portal: str, name: str = NAME, lun: int = 1, account: Account | None = None, options: str = "") -> str:
    user = f"{account.user}%{account.secret}@" if account else ""
    return f"iscsi://{user}{portal}/{name}/{lun}{options}"


MUTUAL_OPTIONS = f"?target_user={MUTUAL.user}&target_password={MUTUAL.secret}"


class TestTgt:
    def test_shows_its_unit_through_both_portals(self, tgt):
        tgt.add_target(NAME)
        tgt.add_unit(NAME, 24 * MEBIBYTE, scsi_sn="S1234", block_size=4096)
        for portal in tgt.portals:
            assert f"Target:{NAME}" in run("iscsi-ls", f"iscsi://{portal}")
            assert "IET" in run("iscsi-inq", url(portal))
            assert f"Total size:{24 * MEBIBYTE}" in run("iscsi-readcapacity16", url(portal))
        assert "S1234" in run("iscsi-inq", "-e", "1", "-c", "128", url(tgt.portals[0]))

    def test_listens_on_ipv4_and_ipv6(self, tgt6):
        tgt6.add_target(NAME)
        tgt6.add_unit(NAME, MEBIBYTE)
        assert [split_portal(portal)[0] for portal in tgt6.portals] == ["127.0.0.1", "::1"]
        for portal in tgt6.portals:
            assert "IET" in run("iscsi-inq", url(portal))

    def test_demands_chap_and_proves_itself(self, tgt):
        tgt.add_target(NAME, account=USER, mutual=MUTUAL)
        tgt.add_unit(NAME, MEBIBYTE)
        portal = tgt.portals[0]
        assert "IET" in run("iscsi-inq", url(portal, account=USER, options=MUTUAL_OPTIONS))
        run("iscsi-inq", url(portal), error=True)
        run("iscsi-inq", url(portal, account=Account(USER.user, "wrong-secret-1")), error=True)
        wrong = MUTUAL_OPTIONS.replace(MUTUAL.secret, "wrong-secret-22")
        assert "CHAP_R" in run("iscsi-inq", url(portal, account=USER, options=wrong), error=True)

    def test_instances_run_side_by_side(self, make_tgt):
        first, second = make_tgt(), make_tgt()
        for instance, size in ((first, 8), (second, 16)):
            instance.add_target(NAME)
            instance.add_unit(NAME, size * MEBIBYTE)
        for instance, size in ((first, 8), (second, 16)):
            shown = run("iscsi-readcapacity16", url(instance.portals[0]))
            assert f"Total size:{size * MEBIBYTE}\n" in shown

    def test_killed_and_restarted_is_the_same_at_the_same_place(self, tgt):
        tgt.add_target(NAME, account=USER)
        path = tgt.add_unit(NAME, 2 * MEBIBYTE, scsi_id="naa.5000c50015ea71ab")
        extra = tgt.add_portal("127.0.0.1:0")
        portals = tgt.portals
        before = run("iscsi-inq", "-e", "1", "-c", "131", url(extra, account=USER))
        path.write_bytes(b"kept" * (MEBIBYTE // 2))
        tgt.kill9()
        assert not any(map(accepts, portals))
        tgt.restart()
        assert tgt.portals == portals
        assert run("iscsi-inq", "-e", "1", "-c", "131", url(extra, account=USER)) == before
        assert path.read_bytes()[:8] == b"keptkept"

    def test_tells_its_connections_and_drops_them(self, tgt):
        tgt.add_target(NAME)
        tgt.add_unit(NAME, 8 * MEBIBYTE)
        assert tgt.connections(NAME) == []
        child = subprocess.Popen(
            ["iscsi-perf", "-i", "iqn.2026-11.com.example:host", "-b", "8", "-m", "1", url(tgt.portals[1])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: len(tgt.connections(NAME)) == 1, "a connection")
            (connection,) = tgt.connections(NAME)
            assert (connection.initiator, connection.address) == ("iqn.2026-11.com.example:host", "127.0.0.1")
            tgt.drop_connections(NAME)
            wait_for(lambda: [c for c in tgt.connections(NAME) if c.session == connection.session] == [], "its end")
        finally:
            child.kill()
            child.wait()

    def test_portal_that_was_removed_is_gone(self, tgt):
        gone, kept = tgt.portals
        tgt.remove_portal(gone)
        wait_for(lambda: not accepts(gone), "the portal's end")
        assert accepts(kept)


class TestIstgt:
    def test_shows_its_unit_through_both_portals(self, istgt):
        istgt.add_target(NAME, 16 * MEBIBYTE, serial="IST77777")
        istgt.start()
        for portal in istgt.portals:
            assert f"Total size:{16 * MEBIBYTE}" in run("iscsi-readcapacity16", url(portal, lun=0))
        assert "IST77777" in run("iscsi-inq", "-e", "1", "-c", "128", url(istgt.portals[0], lun=0))

    def test_demands_chap_and_proves_itself(self, istgt):
        istgt.add_target(NAME, 8 * MEBIBYTE, account=USER, mutual=MUTUAL)
        istgt.start()
        portal = istgt.portals[0]
        assert "istgt disk" in run("iscsi-inq", url(portal, lun=0, account=USER, options=MUTUAL_OPTIONS))
        run("iscsi-inq", url(portal, lun=0), error=True)
        run("iscsi-inq", url(portal, lun=0, account=USER), error=True)

    def test_killed_and_restarted_is_the_same_at_the_same_place(self, istgt):
        istgt.add_target(NAME, 8 * MEBIBYTE)
        istgt.start()
        portals = istgt.portals
        istgt.kill9()
        assert not any(map(accepts, portals))
        istgt.restart()
        assert istgt.portals == portals
        assert "istgt disk" in run("iscsi-inq", url(portals[1], lun=0))


class TestCapture:
    def test_decodes_login_commands_and_logout_with_good_digests(self, tgt, tshark_capture):
        tgt.add_target(NAME, account=USER)
        tgt.add_unit(NAME, MEBIBYTE)
        tgt.set(NAME, "HeaderDigest", "CRC32C")
        portal = tgt.portals[0]
        capture = tshark_capture(portal)
        run("iscsi-inq", url(portal, account=USER, options="?header_digest=crc32c"))
        capture.stop()
        pdus = capture.check()
        login = [pdu for pdu in pdus if pdu.opcode == 0x03]
        assert login[0].keys["TargetName"] == NAME
        assert login[0].keys["AuthMethod"] == "CHAP,None"
        assert any(pdu.keys.get("CHAP_N") == USER.user for pdu in login)
        assert {0x01, 0x03, 0x06, 0x21, 0x23, 0x25, 0x26} <= {pdu.opcode for pdu in pdus}
        commands = [pdu for pdu in pdus if pdu.opcode == 0x01]
        assert all("iscsi.headerdigest32" in pdu.fields for pdu in commands)
        numbers = [pdu.number("cmdsn") for pdu in commands]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    def test_a_mark_that_resembles_a_broken_protocol_is_no_malformed_pdu(self, tgt, tshark_capture, monkeypatch):
        # RFC 4585 6.1: version 2, payload-specific feedback, longer than the datagram.
        monkeypatch.setattr(
            "secrets.token_bytes", lambda length: bytes.fromhex("81ce00ff") + os.urandom(length - 4)
        )
        tgt.add_target(NAME)
        tgt.add_unit(NAME, MEBIBYTE)
        capture = tshark_capture(tgt.portals[0])
        run("iscsi-inq", url(tgt.portals[0]))
        capture.stop()
        assert "Malformed Packet" in capture.decode("-Y", "udp")
        assert capture.check()

    def test_bad_digest_and_malformed_pdu_are_found(self, tgt, tshark_capture):
        tgt.add_target(NAME)
        tgt.add_unit(NAME, MEBIBYTE)
        tgt.set(NAME, "HeaderDigest", "CRC32C")
        portal = tgt.portals[0]
        capture = tshark_capture(portal)
        run("iscsi-inq", url(portal, options="?header_digest=crc32c"))
        capture.stop()
        good = next(pdu for pdu in capture.check() if pdu.opcode == 0x01)
        digest = struct.pack("<I", int(good["headerdigest32"], 0))
        recorded = capture.file.read_bytes()
        if digest not in recorded:
            digest = digest[::-1]
        assert recorded.count(digest) >= 1
        capture.file.write_bytes(recorded.replace(digest, bytes(4)))
        with pytest.raises(AssertionError, match="bad digests"):
            capture.check()
