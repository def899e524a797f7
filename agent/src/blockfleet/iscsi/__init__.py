# SPDX-License-Identifier: GPL-3.0-or-later
"""The iSCSI initiator protocol (RFC 3720), without I/O: bytes and `now` in; bytes, events and a deadline out."""
