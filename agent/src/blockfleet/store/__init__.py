# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent keeps across restarts: the desired state, its secrets, identities, the event log."""
