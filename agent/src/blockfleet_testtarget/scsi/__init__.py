# SPDX-License-Identifier: GPL-3.0-or-later
"""The SCSI side of the test target: a device server that knows nothing of iSCSI."""
