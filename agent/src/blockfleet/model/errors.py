# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors with the stable numbers and names of the Microsoft iSCSI Initiator guide (table "iSCSI Error Codes").

Codes from ``0xEFFF0001`` are the guide's; codes from ``0xEFFF8001`` are ours, for what it has no name for.
"""

from __future__ import annotations

from blockfleet.model.isdsc import Isdsc


class BlockfleetError(Exception):
    """What could not be done, why, and what to do about it.

    ``code`` is stable and fit for programs, the message is for people; ``remedy`` says what to do and is part
    of the message.  ``field`` names the option or document path that is at fault, where one is.
    """

    def __init__(self, code: Isdsc, message: str, *, remedy: str = "", field: str = "") -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.code = code
        self.remedy = remedy
        self.field = field
