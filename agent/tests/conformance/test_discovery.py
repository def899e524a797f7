# SPDX-License-Identifier: GPL-3.0-or-later
"""DSC: discovery sessions and SendTargets (RFC 3720 3.3, 10.10, 10.11, appendix D)."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from tests.conformance import wire
from tests.conformance.conftest import CHAP_BOTH, CHAP_USER, ISID, MUTUAL_SECRET, MUTUAL_USER, SECRET, Rig
from tests.conformance.raw_target import Peer
from tests.conformance.wire import Pdu

from blockfleet.discovery.sendtargets import discover
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal

NAME = "iqn.2026-11.com.example:t"


async def asked(rig: Rig, **options: Any) -> tuple[Peer, Pdu, asyncio.Task[Any]]:
    """Start a discovery, let it log in, and return with its first Text Request."""
    found = rig.discover(**options)
    peer = await rig.target.accept()
    await peer.log_in(tag=9)
    return peer, await peer.expect(wire.TEXT), found


async def reply(
    peer: Peer, request: Pdu, data: bytes, b1: int = 0x80, ttt: int = wire.NONE_TAG, lun: int = 0
) -> None:
    """Send a Text Response (10.11)."""
    await peer.raw(peer.numbered(wire.TEXT_RESPONSE, b1, data=data, itt=request.itt, ttt=ttt, lun=lun))


async def leave(peer: Peer) -> Pdu:
    """Take the Logout Request and answer it."""
    logout = await peer.expect(wire.LOGOUT)
    await peer.log_out(logout)
    return logout


async def answered(rig: Rig, data: bytes) -> dict[str, list[tuple[str, int | None]]]:
    """Let a portal answer with ``data``; return what was found: name to addresses with tags."""
    peer, request, found = await asked(rig)
    await reply(peer, request, data)
    await leave(peer)
    return shown(await found)


def shown(records: Any) -> dict[str, list[tuple[str, int | None]]]:
    return {record.name: [(str(portal), tag) for portal, tag in record.portals] for record in records}


async def test_DSC_02_all_is_asked_for_in_a_discovery_session(rig: Rig) -> None:
    _, request, _ = await asked(rig)
    assert request.keys == {"SendTargets": "All"}


async def test_DSC_02_a_normal_session_never_asks_for_all(rig: Rig) -> None:
    peer, _, _ = await rig.session()
    await peer.raw(peer.asynchronous(4, p3=3))
    request = await peer.expect(wire.TEXT)
    assert ("SendTargets", "All") not in request.pairs


async def test_DSC_03_the_first_text_request_is_exact(rig: Rig) -> None:
    peer, request, _ = await asked(rig)
    assert request.final
    assert not request.more
    assert (request.ttt, request.lun) == (wire.NONE_TAG, 0)
    assert request.cmdsn == peer.requests[0].cmdsn
    assert request.expstatsn == peer.stat_sn
    assert request.itt != wire.NONE_TAG
    assert request.bhs[2:4] == b"\0\0"
    assert not any(request.bhs[32:48])


async def test_DSC_04_an_answer_over_many_pdus_is_read_whole(rig: Rig) -> None:
    peer, request, found = await asked(rig)
    expected = {f"{NAME}{n}": [(f"192.0.2.{n % 250 + 1}:3260", n % 7)] for n in range(5000)}
    data = b"".join(
        wire.text(("TargetName", name), ("TargetAddress", f"{places[0][0]},{places[0][1]}"))
        for name, places in expected.items()
    )
    step = 3001  # cuts names, keys and values
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    assert len(parts) > 100
    itt = request.itt
    for number, part in enumerate(parts[:-1]):
        # Whole pairs end a response without C; all others continue the text.
        await reply(peer, request, part, 0x40 if part[-1] else 0x00, ttt=number + 1, lun=0x0003 << 48)
        request = await peer.expect(wire.TEXT)
        assert (request.itt, request.ttt, request.lun) == (itt, number + 1, 0x0003 << 48)
        assert request.data == b""
    await reply(peer, request, parts[-1])
    await leave(peer)
    assert shown(await found) == expected


async def test_DSC_05_a_transfer_tag_means_nothing_with_f(rig: Rig) -> None:
    peer, request, found = await asked(rig)
    await reply(peer, request, wire.text(("TargetName", NAME)), 0x80, ttt=0x55)
    logout = await leave(peer)
    assert (logout.bhs[1], logout.itt != request.itt) == (0x80, True)
    assert list(shown(await found)) == [NAME]


async def test_DSC_06_no_end_and_no_transfer_tag_is_a_protocol_error(rig: Rig) -> None:
    peer, request, found = await asked(rig)
    await reply(peer, request, wire.text(("TargetName", NAME)), 0x00, ttt=wire.NONE_TAG)
    await peer.gone()
    with pytest.raises(BlockfleetError):
        await found


async def test_DSC_08_a_target_without_an_address_is_at_the_portal_that_answers(rig: Rig) -> None:
    here = f"127.0.0.1:{rig.target.port}"
    found = await answered(rig, wire.text(("TargetName", NAME + "1"), ("TargetName", NAME + "2")))
    assert found == {NAME + "1": [(here, 9)], NAME + "2": [(here, 9)]}


async def test_DSC_09_addresses_belong_to_the_name_before_them_with_their_groups(rig: Rig) -> None:
    data = wire.text(
        ("TargetName", NAME + "1"), "TargetAddress=192.0.2.1:3260,1", "TargetAddress=192.0.2.2:3261,2",
        "TargetAddress=[2001:db8::1]:3260,1", ("TargetName", NAME + "2"), "TargetAddress=192.0.2.3,2",
        "TargetAddress=192.0.2.4,2", "TargetAddress=san.example.com:5000,1",
    )  # fmt: skip
    assert await answered(rig, data) == {
        NAME + "1": [("192.0.2.1:3260", 1), ("192.0.2.2:3261", 2), ("[2001:db8::1]:3260", 1)],
        NAME + "2": [("192.0.2.3:3260", 2), ("192.0.2.4:3260", 2), ("san.example.com:5000", 1)],
    }


async def test_DSC_10_good_addresses_are_kept_and_bad_ones_skipped(rig: Rig) -> None:
    bad = ["192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x", "[2001:db8::1", "192.0.2.1:1,65536", "", ",1", "::g"]
    good = {
        "192.0.2.7": ("192.0.2.7:3260", None),
        "192.0.2.8:1": ("192.0.2.8:1", None),
        "[2001:DB8::7]": ("[2001:db8::7]:3260", None),
        "[fe80::1%eth0]:65535,0": ("[fe80::1%eth0]:65535", 0),
        "a.example.com:3261,65535": ("a.example.com:3261", 65535),
    }
    mixed = [form for pair in zip(bad, [*good, *good][: len(bad)], strict=True) for form in pair]
    data = wire.text(("TargetName", NAME), *(("TargetAddress", form) for form in mixed))
    assert await answered(rig, data) == {NAME: list(good.values())}


HOSTILE_NAMES = [
    "iqn.2026-11.com.example:" + "n" * 200,
    "../../etc/passwd",
    "iqn.2026-11.com.example:../../etc",
    "iqn.2026-11.com.example:a b",
    "iqn.2026-11.com.example:a\nb",
    "iqn.2026-13.com.example:x",
    "eui.123",
    "naa.xyz",
    "",
]


async def test_DSC_11_only_legal_names_are_taken_and_they_are_normalised(rig: Rig) -> None:
    longest = "iqn.2026-11.com.example:" + "n" * 199
    legal = [longest, "eui.0123456789ABCDEF", "naa.52004567BA64678D", "IQN.2026-11.COM.EXAMPLE:UPPER"]
    assert len(longest) == 223
    data = b"".join(wire.text(("TargetName", name), "TargetAddress=192.0.2.1,1") for name in HOSTILE_NAMES + legal)
    assert list(await answered(rig, data)) == [name.lower() for name in legal]


async def test_DSC_12_an_address_before_any_name_is_ignored(rig: Rig) -> None:
    data = wire.text("TargetAddress=192.0.2.1,1", ("TargetName", NAME), "TargetAddress=192.0.2.2,1")
    assert await answered(rig, data) == {NAME: [("192.0.2.2:3260", 1)]}


async def test_DSC_12_duplicates_count_once(rig: Rig) -> None:
    once = wire.text(("TargetName", NAME), "TargetAddress=192.0.2.2,1", "TargetAddress=192.0.2.2:3260,1")
    assert await answered(rig, once * 3) == {NAME: [("192.0.2.2:3260", 1)]}


async def test_DSC_12_an_empty_answer_is_no_target_and_no_error(rig: Rig) -> None:
    assert await answered(rig, b"") == {}


async def test_DSC_14_a_second_discovery_has_a_connection_of_its_own(rig: Rig) -> None:
    first, request, found = await asked(rig)
    second, other, found_too = await asked(rig, isid=bytes.fromhex("80c0ffee0009"))
    await first.quiet()
    for peer, text in ((second, other), (first, request)):
        await reply(peer, text, wire.text(("TargetName", NAME)))
        await leave(peer)
    assert shown(await found) == shown(await found_too)


@pytest.mark.parametrize("mutual", [False, True], ids=["one-way", "mutual"])
async def test_DSC_15_discovery_has_credentials_of_its_own(rig: Rig, mutual: bool) -> None:
    found = rig.discover(credentials=CHAP_BOTH if mutual else CHAP_USER)
    peer = await rig.target.accept()
    await peer.answer_login(await peer.login_request(), wire.text("AuthMethod=CHAP"))
    await peer.answer_login(await peer.login_request(), wire.text("CHAP_A=7", "CHAP_I=5", "CHAP_C=0x4142434445"))
    request = await peer.login_request()
    keys = request.keys
    assert keys["CHAP_R"] == "0x" + hashlib.sha256(b"\5" + SECRET + b"ABCDE").hexdigest()
    said = []
    if mutual:
        ours = bytes([int(keys["CHAP_I"], 0)]) + MUTUAL_SECRET + bytes.fromhex(keys["CHAP_C"][2:])
        said = [("CHAP_N", MUTUAL_USER), ("CHAP_R", "0x" + hashlib.sha256(ours).hexdigest())]
    await peer.answer_login(request, wire.text(*said))
    await peer.operational(await peer.login_request(), {})
    await reply(peer, await peer.expect(wire.TEXT), wire.text(("TargetName", NAME)))
    await leave(peer)
    assert list(shown(await found)) == [NAME]


async def test_DSC_15_a_demand_for_authentication_is_reported_for_the_discovery_service(rig: Rig) -> None:
    found = rig.discover()
    peer = await rig.target.accept()
    await peer.answer_login(await peer.login_request(), flags=0, status=0x0201)
    with pytest.raises(BlockfleetError, match="discovery service") as caught:
        await found
    assert caught.value.code is Isdsc.AUTHENTICATION_FAILURE


async def test_DSC_16_a_refused_discovery_session_is_told_apart(rig: Rig) -> None:
    found = rig.discover()
    peer = await rig.target.accept()
    await peer.answer_login(await peer.login_request(), flags=0, status=0x0209)
    with pytest.raises(BlockfleetError) as caught:
        await found
    assert caught.value.code is Isdsc.SESSION_TYPE_NOT_SUPPORTED


@pytest.mark.parametrize("how", ["closed", "reset", "silent"])
async def test_DSC_16_targets_are_kept_when_the_logout_is_not_answered(rig: Rig, how: str) -> None:
    started = asyncio.get_running_loop().time()
    found = rig.background(
        discover("iqn.2026-11.com.example:host", Portal.parse(rig.target.portal), None, isid=ISID, timeout=3.0)
    )
    peer = await (await rig.target.accept()).log_in()
    await reply(peer, await peer.expect(wire.TEXT), wire.text(("TargetName", NAME)))
    if how == "closed":
        peer.writer.close()
    elif how == "reset":
        await peer.expect(wire.LOGOUT)
        peer.reset()
    assert [entry.target for entry in await found] == [NAME]
    assert asyncio.get_running_loop().time() - started < 2.5
