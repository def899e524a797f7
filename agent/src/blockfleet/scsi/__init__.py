# SPDX-License-Identifier: GPL-3.0-or-later
"""SCSI as an initiator needs it (SPC-4, SBC-3): commands, sense, identification, capacity, ALUA."""
