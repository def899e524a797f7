# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change or disappear in any release.

from __future__ import annotations


class ModuleDocFragment:
    """Where the agent is."""

    DOCUMENTATION = r"""
options:
  agent_socket:
    description:
      - Path of the Unix socket on which the agent of this host listens.
      - Only the owner of the socket can change things, which is V(root) where the role
        P(blockfleet.iscsi.agent#role) installed the agent. Use C(become) in the task.
    type: path
    default: /run/blockfleet/agent.sock
  agent_timeout:
    description:
      - Seconds that the agent has for an answer, beyond any time for which the task asks it to wait.
    type: float
    default: 30
requirements:
  - The Blockfleet agent, running on the managed host. The role P(blockfleet.iscsi.agent#role) installs it.
notes:
  - The module itself needs only Python 3.8 or newer and its standard library on the managed host.
"""
