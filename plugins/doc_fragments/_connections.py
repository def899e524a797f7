# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change or disappear in any release.

from __future__ import annotations


class ModuleDocFragment:
    """Connections of sessions as options of a module."""

    DOCUMENTATION = r"""
options:
  connections:
    description:
      - Connections that each session shall have besides the leading one, which every session begins with. At most seven.
      - The list is taken whole. V([]) removes all of them. Left out, it stays as it is declared.
      - Connections are added to sessions and removed from them while they are in use. Only a session that began with one
        connection has to log in anew before it can have more, see O(relogin).
      - A target that allows fewer connections in a session is warned of, and the session goes on with fewer.
    type: list
    elements: dict
    suboptions:
      portal:
        description:
          - Another portal of the same portal group, as C(host), C(host:port), or C([IPv6]:port).
            A target refuses a portal of another group.
          - Left out, it is the portal of the session. Several connections may lead to one portal.
        type: str
      weight:
        description:
          - From V(0), which is the agent's default, to V(65535). With O(connection_policy=weighted_path) the lightest
            connection that is logged in carries the commands.
        type: int
      standby:
        description:
          - Hold the connection in reserve with O(connection_policy=fail_over_only) and
            O(connection_policy=round_robin_with_subset).
        type: bool
  leading_connection:
    description:
      - Weight and standby of the connection that each session begins with.
    type: dict
    suboptions:
      weight:
        description:
          - As for O(connections[].weight).
        type: int
      standby:
        description:
          - As for O(connections[].standby). One connection at least must not be in standby.
        type: bool
  connection_policy:
    description:
      - How each session spreads commands over its connections. It changes while sessions are in use.
      - V(fail_over_only) uses one connection and another when that fails.
      - V(round_robin) uses all in turn, and is the agent's default.
      - V(round_robin_with_subset) uses those in turn that are not in standby, and one of the others when there is none.
      - V(weighted_path) uses the one with the lowest weight.
      - V(least_queue_depth) uses the one that the fewest commands are in flight on.
      - How I/O is spread over sessions is another matter, see M(blockfleet.iscsi.mpio_policy).
    type: str
    choices: [fail_over_only, round_robin, round_robin_with_subset, weighted_path, least_queue_depth]
"""
