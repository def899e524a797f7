# SPDX-License-Identifier: GPL-3.0-or-later
"""The NBD server: one Unix socket a volume."""
