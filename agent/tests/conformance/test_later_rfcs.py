# SPDX-License-Identifier: GPL-3.0-or-later
"""NEW: what RFC 7143 and RFC 7144 added, as far as it concerns a session at ErrorRecoveryLevel 0."""

from __future__ import annotations

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, Issued, Rig
from tests.conformance.raw_target import Peer


async def originated(rig: Rig, *offers: str) -> tuple[Peer, dict[str, str]]:
    """Let the target originate keys; return the answers, with the session up."""
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(request, wire.text(*peer.answers(request, {}), *offers), flags=0x04)
    request = await peer.login_request()
    await peer.answer_login(request, tsih=8)
    peer.full_feature = True
    await listener.until(lambda: listener.logins)
    return peer, request.keys


@pytest.mark.parametrize("level", [0, 1, 2, 31])
async def test_NEW_02_the_protocol_level_is_the_smaller(rig: Rig, level: int) -> None:
    _, answers = await originated(rig, f"iSCSIProtocolLevel={level}")
    assert answers == {"iSCSIProtocolLevel": str(min(level, 1))}


@pytest.mark.parametrize("level", ["32", "-1", "x"])
async def test_NEW_02_an_illegal_level_is_refused(rig: Rig, level: str) -> None:
    peer, _, listener = await rig.login()
    request = await peer.pass_security()
    await peer.answer_login(
        request, wire.text(*peer.answers(request, {}), ("iSCSIProtocolLevel", level)), flags=0x04
    )
    await peer.gone()
    await listener.failure()


async def test_NEW_02_functions_of_rfc_7144_are_not_used_below_level_2(rig: Rig) -> None:
    peer, _ = await originated(rig, "iSCSIProtocolLevel=2")
    nexus = rig.under_test
    for work in (nexus.lun_reset(LUN, 2.0), nexus.target_warm_reset(2.0)):
        waiting = rig.background(work)
        request = await peer.expect(wire.TASK_REQUEST)
        assert request.bhs[1] & 0x7F in range(1, 9)
        await peer.answer(request)
        await waiting


async def test_NEW_03_a_node_architecture_changes_nothing(rig: Rig) -> None:
    peer, answers = await originated(rig, "X#NodeArchitecture=ExampleOS,v4.2")
    assert answers == {}
    issued = Issued(rig.under_test)
    await peer.answer(await peer.expect(wire.COMMAND))
    await issued.good()


MARKERS = {"OFMarker=Yes": "No", "IFMarker=Yes": "No", "OFMarkInt=2048~8192": "Reject", "IFMarkInt=64": "Reject"}


@pytest.mark.parametrize("offer", MARKERS)
async def test_NEW_04_markers_are_refused_in_terms_the_target_knows(rig: Rig, offer: str) -> None:
    _, answers = await originated(rig, offer)
    assert answers == {offer.partition("=")[0]: MARKERS[offer]}


async def test_NEW_04_markers_and_spkm_are_not_offered(rig: Rig) -> None:
    peer, _, _ = await rig.session()
    keys = {name: value for request in peer.requests for name, value in request.pairs}
    assert not {"OFMarker", "IFMarker", "OFMarkInt", "IFMarkInt"} & set(keys)
    assert "SPKM" not in keys["AuthMethod"]
