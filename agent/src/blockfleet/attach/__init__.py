# SPDX-License-Identifier: GPL-3.0-or-later
"""What a volume's NBD socket is made into, so that users can open it."""
