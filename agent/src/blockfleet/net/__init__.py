# SPDX-License-Identifier: GPL-3.0-or-later
"""The iSCSI protocol over asyncio: connections, logins and a nexus that reconnects."""
