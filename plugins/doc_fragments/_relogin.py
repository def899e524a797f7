# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change or disappear in any release.

from __future__ import annotations


class ModuleDocFragment:
    """When changes of credentials and login options take effect."""

    DOCUMENTATION = r"""
options:
  relogin:
    description:
      - When changed credentials and login options reach sessions that are logged in already.
      - V(next_login) leaves the sessions alone. They use the new values when they next log in.
      - V(now) logs them out and in again. Where a volume is in use, this needs O(allow_disruption=true).
    type: str
    choices: [next_login, now]
    default: next_login
"""
