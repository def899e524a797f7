# SPDX-License-Identifier: GPL-3.0-or-later
"""One discovery session: log in, SendTargets=All, log out (RFC 3720 3.3, appendix D)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from blockfleet.iscsi.chap import ChapCredentials
from blockfleet.iscsi.events import Event
from blockfleet.iscsi.login_failure import LoginFailure, login_error
from blockfleet.iscsi.sendtargets import ALL_TARGETS, SendTargetsError, SendTargetsReader, TargetRecord
from blockfleet.iscsi.session import Patience
from blockfleet.iscsi.text import encode_text
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc
from blockfleet.model.portal import Portal
from blockfleet.net.login import Dialled, LoginIntent, dial_with_fallback

LOGOUT_PATIENCE = 1.0
"""Seconds for the Logout Response: the answer is in hand by then."""


async def send_targets(
    initiator_name: str,
    portal: Portal,
    credentials: ChapCredentials | None,
    *,
    isid: bytes,
    timeout: float,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Sequence[TargetRecord]:
    """Ask a portal for all its targets; ``timeout`` in seconds bounds the whole exchange.

    Raises :class:`BlockfleetError` where the portal is not reached, refuses the login or answers no text.
    """
    intent = LoginIntent(
        initiator_name=initiator_name,
        initiator_alias="",
        target=None,
        isid=isid,
        credentials=credentials,
        timeout=timeout,
        patience=Patience(noop_interval=0.0, text=timeout, logout=LOGOUT_PATIENCE),
    )
    dialled = await dial_with_fallback(portal, intent, random_bytes, _no_event)
    if isinstance(dialled, LoginFailure):
        raise login_error(dialled, None, portal)
    try:
        async with asyncio.timeout(timeout):
            return await _ask(dialled, portal)
    except TimeoutError:
        raise _failed(portal, f"no answer to SendTargets within {timeout:g} s") from None
    finally:
        await _leave(dialled)


async def _ask(dialled: Dialled, portal: Portal) -> Sequence[TargetRecord]:
    loop = asyncio.get_running_loop()
    reader = SendTargetsReader(portal, dialled.result.tag)
    answered: asyncio.Future[str] = loop.create_future()

    def collect(data: bytes) -> None:
        if answered.done():
            return
        try:
            reader.feed(data)
        except SendTargetsError as error:
            answered.set_result(str(error))

    def ended(error: str) -> None:
        if not answered.done():
            answered.set_result(error)

    dialled.session.send_text(encode_text([("SendTargets", ALL_TARGETS)]), loop.time(), collect, ended)
    error = await answered
    if error:
        raise _failed(portal, error)
    try:
        return reader.finish()
    except SendTargetsError as error:
        raise _failed(portal, str(error)) from None


async def _leave(dialled: Dialled) -> None:
    driver = dialled.driver
    if not driver.over.done():
        driver.session.logout(asyncio.get_running_loop().time())
        driver.drain()
        await asyncio.wait([driver.over], timeout=LOGOUT_PATIENCE + 1)
    driver.abort()


def _failed(portal: Portal, why: str) -> BlockfleetError:
    return BlockfleetError(
        Isdsc.INVALID_SENDTARGETS_TEXT,
        f"cannot discover targets at {portal}: {why}",
        remedy="check that the portal is an iSCSI target's",
    )


def _no_event(_event: Event) -> None:
    """A discovery session has no user for asynchronous messages."""
