# Copyright (c) The Blockfleet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change or disappear in any release.

from __future__ import annotations


class ModuleDocFragment:
    """CHAP credentials as options of a module."""

    DOCUMENTATION = r"""
options:
  user:
    description:
      - Name under which the host proves itself.
    type: str
  secret:
    description:
      - Secret with which the host proves itself, 12 to 255 bytes.
      - The agent keeps it encrypted and never shows it again. That a secret has changed is seen by comparing
        fingerprints, so that a rotated secret is a change and an unchanged one is not.
    type: str
  mutual_user:
    description:
      - Name that the other side has to show when it proves itself. Without it, any name will do.
      - Needs O(mutual_secret).
    type: str
  mutual_secret:
    description:
      - Secret with which the other side has to prove itself, 12 to 255 bytes and different from O(secret).
      - When it is given, a login to somebody who cannot prove this fails.
    type: str
  algorithms:
    description:
      - Digests to offer, strongest first.
    type: list
    elements: str
    choices: [sha3-256, sha256, sha1, md5]
    default: [sha3-256, sha256, sha1, md5]
  allow_weak_secret:
    description:
      - Accept secrets under 12 bytes, which RFC 3720 permits only on networks protected by IPsec.
    type: bool
    default: false
"""
