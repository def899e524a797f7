# SPDX-License-Identifier: GPL-3.0-or-later
"""The harnesses by name: one for each parser of bytes that a stranger may send."""

from __future__ import annotations

from tests.fuzz.harness import (
    addresses,
    config,
    connection,
    control,
    document,
    login,
    nbd,
    scsi,
    sendtargets,
    text,
    trace,
)
from tests.fuzz.harness.base import Harness

HARNESSES: dict[str, Harness] = {
    harness.name: harness
    for harness in (
        connection.HARNESS,
        login.HARNESS,
        text.HARNESS,
        sendtargets.HARNESS,
        scsi.HARNESS,
        nbd.HARNESS,
        control.HARNESS,
        document.HARNESS,
        addresses.HARNESS,
        config.HARNESS,
        trace.HARNESS,
    )
}
"""Every harness that ``make fuzz`` runs and whose corpus ``make test`` replays."""
