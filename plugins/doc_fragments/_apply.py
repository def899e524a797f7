# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change or disappear in any release.

from __future__ import annotations


class ModuleDocFragment:
    """How a change is carried out."""

    DOCUMENTATION = r"""
options:
  wait_timeout:
    description:
      - Seconds that the agent waits, after it has changed something or found the host not in the declared state,
        for the host to get there. The module fails when time is up, and says what is missing.
      - With V(0), it looks once and does not wait.
    type: float
    default: 30
  allow_disruption:
    description:
      - Permit what interrupts those who use a volume, such as ending its last session or logging in anew.
      - Without it, a task that needs such a step fails before anything has changed, in check mode too.
    type: bool
    default: false
"""
