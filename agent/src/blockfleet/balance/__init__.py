# SPDX-License-Identifier: GPL-3.0-or-later
"""How I/O is spread over several ways to the same thing: connections of a session, paths of a volume."""
