# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change or disappear in any release.

from __future__ import annotations


class ModuleDocFragment:
    """Login options as options of a module."""

    DOCUMENTATION = r"""
options:
  header_digest:
    description:
      - Digests of headers to offer, in order of preference. The agent's default is V(none) before V(crc32c).
      - Left out, it stays as it is declared.
    type: list
    elements: str
    choices: [crc32c, none]
  data_digest:
    description:
      - Digests of data to offer, in order of preference. The agent's default is V(none) before V(crc32c).
      - Left out, it stays as it is declared.
    type: list
    elements: str
    choices: [crc32c, none]
  login_timeout:
    description:
      - Seconds that one attempt to log in may take. The agent's default is V(10).
    type: float
  noop_interval:
    description:
      - Seconds of silence after which the target is asked whether it is still there; V(0) never asks.
        The agent's default is V(5).
    type: float
  noop_timeout:
    description:
      - Seconds that the target has to answer such a question before the session counts as lost.
        The agent's default is V(5).
    type: float
  replacement_timeout:
    description:
      - Seconds that I/O waits for a lost session to come back before it fails. The agent's default is V(120).
    type: float
  error_recovery_level:
    description:
      - Highest error recovery level to offer. The target may choose a lower one.
      - V(0) begins the session anew after any error, V(1) asks again for PDUs that were damaged or lost, and V(2)
        continues the session with the commands of a connection that was lost.
      - Left out, it stays as it is declared. Until it is declared, the agent offers V(2), but V(1) to a Linux kernel
        target (LIO), which does not survive level 2.
      - Where V(2) is declared, the commands of a session that has lost all of its connections wait for as long as the
        target keeps them (its Time2Retain). Otherwise they wait 5 seconds at most before another path may have them.
    type: int
    choices: [0, 1, 2]
"""
