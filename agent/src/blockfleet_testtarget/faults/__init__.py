# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that can be armed one by one; importing this package makes all of them known by name."""

from blockfleet_testtarget.faults import acts, commands, login, recovery, unit_acts, wire
from blockfleet_testtarget.faults.base import REGISTRY, Fault, FaultError, build_fault

__all__ = [
    "REGISTRY",
    "Fault",
    "FaultError",
    "acts",
    "build_fault",
    "commands",
    "login",
    "recovery",
    "unit_acts",
    "wire",
]
