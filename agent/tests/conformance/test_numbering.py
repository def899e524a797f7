# SPDX-License-Identifier: GPL-3.0-or-later
"""NUM: command and status numbering, windows, task tags (RFC 3720 3.2.2, 10.2.1.8)."""

from __future__ import annotations

import os

import pytest
from tests.conformance import wire
from tests.conformance.conftest import LUN, READ_10, WRITE_10, Issued, Listener, Rig, at_every_level
from tests.conformance.raw_target import Peer

from blockfleet.net.nexus import Nexus
from blockfleet.scsi.command import Outcome

Session = tuple[Peer, Nexus, Listener]


def starting_at(cmd_sn: int) -> object:
    """A source of randomness of which four bytes are the initial CmdSN."""
    return lambda count: cmd_sn.to_bytes(4, "big") if count == 4 else os.urandom(count)


@at_every_level
async def test_NUM_01_cmdsn_rises_by_one_with_each_command(rig: Rig, session: Session) -> None:
    peer, nexus, _ = session
    served = rig.background(peer.serve(1000))
    for at in range(0, 1000, 50):
        batch = [Issued(nexus, READ_10, read=512) if n % 2 else Issued(nexus) for n in range(at, at + 50)]
        for command in batch:
            await command.good()
    first = peer.requests[0].cmdsn
    assert [pdu.cmdsn for pdu in await served] == [wire.serial_add(first, n) for n in range(1000)]


@at_every_level
async def test_NUM_02_an_immediate_request_carries_cmdsn_and_does_not_use_it_up(rig: Rig) -> None:
    peer, nexus, _ = await rig.session(noop_interval=0.1)
    ping = await peer.expect(wire.NOP_OUT)
    await peer.answer(ping)
    command = Issued(nexus)
    sent = await peer.expect(wire.COMMAND)
    assert ping.immediate
    assert ping.cmdsn == sent.cmdsn == peer.requests[0].cmdsn
    reset = rig.background(nexus.lun_reset(LUN, 2.0))
    request = await peer.expect(wire.TASK_REQUEST)
    assert request.immediate
    await peer.raw(peer.response(sent.itt))
    await command.good()
    await peer.answer(request)
    await reset
    Issued(nexus)
    assert (await peer.expect(wire.COMMAND)).cmdsn == request.cmdsn == wire.serial_add(sent.cmdsn)


@pytest.mark.parametrize("window", [1, 3, 100])
@at_every_level
async def test_NUM_04_the_window_is_used_and_kept(rig: Rig, window: int) -> None:
    peer, nexus, _ = await rig.login()
    peer.window = window
    await peer.log_in()
    while nexus.phase.value != "logged_in":
        await peer.quiet(0.01)
    commands = [Issued(nexus) for _ in range(window + 5)]
    flying = [await peer.expect(wire.COMMAND) for _ in range(window)]
    await peer.quiet()
    peer.exp_cmd_sn = wire.serial_add(flying[0].cmdsn)
    peer.max_cmd_sn = wire.serial_add(flying[0].cmdsn, window)
    await peer.raw(peer.response(flying[0].itt))
    await commands[0].good()
    await peer.expect(wire.COMMAND)
    await peer.quiet()


@pytest.mark.parametrize("start", [0xFFFFFFF0, 0x7FFFFFF0, 0xFFFFFFFF], ids=hex)
@at_every_level
async def test_NUM_05_commands_go_on_through_the_wrap(rig: Rig, start: int) -> None:
    peer, nexus, listener = await rig.login(random_bytes=starting_at(start))
    peer.window = 4
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    served = rig.background(peer.serve(40))
    commands = [Issued(nexus) for _ in range(40)]
    for command in commands:
        await command.good()
    assert [pdu.cmdsn for pdu in await served] == [wire.serial_add(start, n) for n in range(40)]


async def ping_in(peer: Peer, exp_cmd_sn: int, max_cmd_sn: int) -> None:
    """Send a NOP-In that carries nothing but a window."""
    fields = {"itt": wire.NONE_TAG, "ttt": wire.NONE_TAG, "expcmdsn": exp_cmd_sn, "maxcmdsn": max_cmd_sn}
    await peer.raw(peer.unnumbered(wire.NOP_IN, **fields))


async def closed_window(rig: Rig) -> tuple[Peer, Issued, int]:
    """Log in with a window of one, fill it, and hold one command more."""
    peer, nexus, listener = await rig.login()
    peer.window = 1
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    Issued(nexus)
    sn = (await peer.expect(wire.COMMAND)).cmdsn
    held = Issued(nexus)
    await peer.quiet()
    return peer, held, sn


@pytest.mark.parametrize("below", [2, 3, 1000, 0x7FFFFFFF])
@at_every_level
async def test_NUM_06_a_window_that_ends_before_it_begins_is_ignored(rig: Rig, below: int) -> None:
    peer, held, sn = await closed_window(rig)
    await ping_in(peer, wire.serial_add(sn, 1), wire.serial_add(sn, 1 - below))
    await peer.quiet()
    await ping_in(peer, wire.serial_add(sn), wire.serial_add(sn))
    assert (await peer.expect(wire.COMMAND)).cmdsn == wire.serial_add(sn)
    assert held.running


@at_every_level
async def test_NUM_07_an_older_window_does_not_shrink_a_newer_one(rig: Rig) -> None:
    peer, held, sn = await closed_window(rig)
    await ping_in(peer, wire.serial_add(sn), wire.serial_add(sn, 3))
    await peer.expect(wire.COMMAND)
    await ping_in(peer, sn, sn)
    nexus = rig.under_test
    for n in (2, 3):
        Issued(nexus)
        assert (await peer.expect(wire.COMMAND)).cmdsn == wire.serial_add(sn, n)
    Issued(nexus)
    await peer.quiet()
    assert held.running


@pytest.mark.parametrize("ahead", [2, 10, 0x70000000])
@at_every_level
async def test_NUM_08_an_expcmdsn_of_commands_never_sent_is_an_error(rig: Rig, ahead: int) -> None:
    peer, nexus, listener = await rig.session()
    command = Issued(nexus)
    sn = (await peer.expect(wire.COMMAND)).cmdsn
    await ping_in(peer, wire.serial_add(sn, ahead), wire.serial_add(sn, ahead + 10))
    await peer.gone()
    assert (await command.end()).outcome is Outcome.UNKNOWN
    await listener.loss()


@at_every_level
async def test_NUM_10_expstatsn_acknowledges_what_came_in_order(rig: Rig, session: Session) -> None:
    peer, nexus, _ = session
    for _ in range(20):
        command = Issued(nexus, READ_10, read=100)
        request = await peer.expect(wire.COMMAND)
        assert request.expstatsn == peer.stat_sn
        await peer.answer(request)
        await command.good()


@pytest.mark.parametrize("jump", [1, 2, 0x7FFFFFFF], ids=hex)
async def test_NUM_11_a_gap_in_statsn_leads_to_session_recovery(rig: Rig, jump: int) -> None:
    peer, nexus, listener = await rig.session()
    command = Issued(nexus)
    request = await peer.expect(wire.COMMAND)
    await peer.raw(peer.response(request.itt, statsn=wire.serial_add(peer.stat_sn, jump)))
    await peer.gone()
    assert (await command.end()).outcome is Outcome.UNKNOWN
    again = await (await rig.target.accept()).log_in()
    await listener.until(lambda: listener.logins == 2)
    assert again.requests[0].tsih == 0


@at_every_level
async def test_NUM_12_only_numbered_pdus_advance_expstatsn(rig: Rig, session: Session) -> None:
    peer, nexus, listener = session
    write = Issued(nexus, WRITE_10, write=b"w" * 5000)
    itt = (await peer.expect(wire.COMMAND)).itt
    await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=0x77, lun=0))
    assert (await peer.expect(wire.NOP_OUT)).expstatsn == peer.stat_sn
    await peer.raw(peer.r2t(itt, 1, 0, 4096, 904, lun=LUN))
    assert (await peer.expect(wire.DATA_OUT)).expstatsn == peer.stat_sn
    await peer.raw(peer.asynchronous(255))
    await listener.until(lambda: listener.events)
    await peer.raw(peer.reject(0x05, None, bytes(48)))
    await peer.raw(peer.unnumbered(wire.NOP_IN, itt=wire.NONE_TAG, ttt=0x78, lun=0))
    assert (await peer.expect(wire.NOP_OUT)).expstatsn == peer.stat_sn
    await peer.raw(peer.response(itt))
    await write.good()
    read = Issued(nexus, READ_10, read=8)
    request = await peer.expect(wire.COMMAND)
    assert request.expstatsn == peer.stat_sn
    await peer.raw(peer.data_in(request.itt, 0, 0, b"1234"))
    await peer.raw(peer.last_data_in(request.itt, 1, 4, b"5678"))
    await read.good()
    Issued(nexus)
    assert (await peer.expect(wire.COMMAND)).expstatsn == peer.stat_sn


@pytest.mark.parametrize("start", [0xFFFFFFFC, 0x7FFFFFFC], ids=hex)
@at_every_level
async def test_NUM_13_statsn_wraps(rig: Rig, start: int) -> None:
    peer, nexus, listener = await rig.login()
    peer.stat_sn = start
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    rig.background(peer.serve())
    for _ in range(10):
        await Issued(nexus).good()
    assert peer.stat_sn == wire.serial_add(start, 12)


@at_every_level
async def test_NUM_16_task_tags_are_unique_while_tasks_live(rig: Rig) -> None:
    peer, nexus, listener = await rig.login()
    peer.window = 400
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    assert nexus._session is not None
    nexus._session._next_tag = 0xFFFFFFF0  # the counter-preset hook that a wrap needs
    commands = [Issued(nexus) for _ in range(40)]
    flying = [(await peer.expect(wire.COMMAND)).itt for _ in range(40)]
    assert wire.NONE_TAG not in flying
    assert len(set(flying)) == 40
    nexus._session._next_tag = flying[3]
    commands += [Issued(nexus) for _ in range(10)]
    more = [(await peer.expect(wire.COMMAND)).itt for _ in range(10)]
    assert not set(more) & set(flying)
    for itt in flying + more:
        await peer.raw(peer.response(itt))
    for command in commands:
        await command.good()


@at_every_level
async def test_NUM_17_a_window_that_never_opens_blocks_nothing_but_commands(rig: Rig) -> None:
    rig.hurry(abort=0.3)
    peer, nexus, listener = await rig.login(noop_interval=0.15)
    peer.window = 0
    await peer.log_in()
    await listener.until(lambda: listener.logins)
    held = Issued(nexus, timeout=0.5)
    ping = await peer.expect(wire.NOP_OUT)
    assert ping.immediate
    await peer.answer(ping)
    reset = rig.background(nexus.lun_reset(LUN, 2.0))
    request = await peer.recv()
    while request.opcode == wire.NOP_OUT:
        await peer.answer(request)
        request = await peer.recv()
    assert request.opcode == wire.TASK_REQUEST
    await peer.answer(request)
    rig.background(peer.serve())
    assert await reset == 0
    command = await held.end(2.0)
    assert (command.outcome, not listener.losses) == (Outcome.NOT_SENT, True)
