# SPDX-License-Identifier: GPL-3.0-or-later
"""From desired and observed to a plan, from a plan to deeds, and then to look whether it came true."""
