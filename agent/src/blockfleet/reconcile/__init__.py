# SPDX-License-Identifier: GPL-3.0-or-later
"""Diff and plan (pure), apply, verify, and the loop that keeps a host in its declared state."""
