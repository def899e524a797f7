# SPDX-License-Identifier: GPL-3.0-or-later
"""The data-plane process, its control protocol and the client of that protocol."""
