# SPDX-License-Identifier: GPL-3.0-or-later
"""How a volume's NBD socket becomes what its user asked for."""
