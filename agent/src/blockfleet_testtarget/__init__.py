# SPDX-License-Identifier: GPL-3.0-or-later
"""A test target that shares nothing with the product: written from RFC 3720, with constants of its own."""
