# SPDX-License-Identifier: GPL-3.0-or-later
"""Several paths to one logical unit: identity, policies and the fence."""
