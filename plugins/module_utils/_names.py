# Copyright (c) The Blockfleet authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

# Private to this collection: it may change or disappear in any release.
"""Names of iSCSI nodes."""

from __future__ import annotations

import unicodedata


def folded(name: str) -> str:
    """Return what names of iSCSI nodes are the same by, in whatever spelling (RFC 3722)."""
    return unicodedata.normalize("NFKC", name.strip()).lower()
